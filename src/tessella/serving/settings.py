"""Settings of `tessella serve`: address and limits."""

import ipaddress
import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from tessella.config import Settings

MAX_SIDE_PX = 2048
"""Pixels a side of the largest picture that is sent."""

_ORIGIN = re.compile(r"https?://[^/\s*]+")
_ROOT_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")
_OWN_ADDRESSES = ("v1", "sdapi", "studio", "healthz", "readyz", "metrics", "openapi.json")


class ServeSettings(Settings):
    """The server's address and limits. API keys are not a setting: they come from outside."""

    host: str = "127.0.0.1"
    """The address to listen on; any other than this machine's own needs API keys."""
    port: int = Field(8000, ge=0, le=65535)
    """The port; 0 picks a free one."""
    batch_size: int = Field(16, ge=1, le=16)
    """Pictures that are painted together, candidates included; one picture's candidates always are,
    however many."""
    max_queue: int = Field(256, ge=1, le=100_000)
    """Pictures that may wait to be painted, and painted ones that may wait to become files; a
    request beyond that gets a 429."""
    max_pictures: int = Field(10, ge=1, le=100)
    """The largest `n` of a request."""
    max_best_of: int = Field(16, ge=1, le=16)
    """The most candidates a picture."""
    max_steps: int = Field(64, ge=1, le=4096)
    """The most steps."""
    max_prompt_characters: int = Field(4000, ge=1, le=32_000)
    """The longest prompt. A model that cannot read all of it answers with the part that it read."""
    max_body_bytes: int = Field(20_000_000, ge=1000)
    """The largest body of a request, pictures included."""
    max_upload_pixels: int = Field(16_777_216, ge=1)
    """Most pixels of an uploaded picture that are decoded. A larger JPEG is decoded smaller; other
    pictures are refused before they are decoded."""
    max_uploads_bytes: int = Field(200_000_000, ge=1000)
    """Bytes of all uploads at one time; a request beyond that gets a 429."""
    max_connections: int = Field(4096, ge=16, le=60_000)
    """Connections at a time, or fewer where the system lets the process open few files. For one
    more, the one that has been silent longest is closed; if all are at work, it gets a 503."""
    header_timeout_seconds: float = Field(10.0, gt=0, allow_inf_nan=False)
    """How long the headers of a request may take to arrive, and a new connection to send any."""
    body_timeout_seconds: float = Field(30.0, gt=0, allow_inf_nan=False)
    """How long a body may take to arrive."""
    request_timeout_seconds: float = Field(120.0, gt=0, allow_inf_nan=False)
    """How long a request may take from its arrival to the end of its answer."""
    shutdown_timeout_seconds: float = Field(30.0, gt=0, allow_inf_nan=False)
    """How long pictures that have begun may take to finish after SIGTERM or Ctrl-C. 15 s later the
    process ends, whatever still holds it up."""
    allow_origins: tuple[str, ...] = ()
    """Web pages' origins, such as https://example.org, whose scripts may call the API (CORS)."""
    allow_frames: tuple[str, ...] = ()
    """Web pages' origins, such as https://huggingface.co, that may show the studio in a frame."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names that requests may be addressed to, besides this machine's own and numeric
    addresses; with API keys and none named here, any."""
    public_url: str | None = None
    """Where clients reach the server, if not where it listens; used in the URLs of pictures."""
    root_path: str = ""
    """The path below which a proxy serves everything, such as /paint, whether or not the proxy
    removes it from the addresses that it passes on."""
    response_format: Literal["auto", "b64_json", "url"] = "auto"
    """What a request without `response_format` gets; `auto` is what OpenAI does: `url` if it names
    the model dall-e-2 or dall-e-3, else `b64_json`."""
    any_model: bool | None = None
    """Paint with the first model whatever other name a request gives; if left out, only where one
    model is served."""
    log_prompts: bool = False
    """Write prompts into the access log."""

    @model_validator(mode="after")
    def _fits_the_queue(self) -> Self:
        if self.max_queue < self.max_pictures:
            raise ValueError(
                "max_queue must be at least max_pictures, or the largest request is always refused"
            )
        return self

    @field_validator("host")
    @classmethod
    def _reads_brackets(cls, host: str) -> str:
        """Reads [::1], as it stands in addresses, as ::1."""
        inside = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if inside != host:
            try:
                ipaddress.IPv6Address(inside)
            except ValueError:
                raise ValueError(
                    f"brackets hold an IPv6 address, such as [::1]: `{host}`"
                ) from None
        return inside

    @field_validator("root_path")
    @classmethod
    def _begins_no_own_address(cls, path: str) -> str:
        path = path.rstrip("/")
        if path and not _ROOT_PATH.fullmatch(path):
            raise ValueError(f"a path is like /paint, of letters, digits and ._~-: `{path}`")
        if path.split("/")[1:2] and path.split("/")[1] in _OWN_ADDRESSES:
            raise ValueError(f"the server's own addresses begin like that: `{path}`; take another")
        return path

    @field_validator("allow_origins", "allow_frames")
    @classmethod
    def _names_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"an origin is like https://example.org or http://localhost:3000: `{origin}`"
                )
        return origins

    @property
    def max_json_bytes(self) -> int:
        """The largest JSON, without pictures: two prompts of escaped letter pairs, and the rest.

        Explaining the faults of a hundred times as much takes seconds, and blocks everybody else.
        """
        return min(self.max_body_bytes, 65_536 + 2 * 12 * self.max_prompt_characters)

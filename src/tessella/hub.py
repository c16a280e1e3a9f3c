"""The Hugging Face hub: what `hf:USER/NAME@REVISION` names, fetched into the hub's own cache.

    address ─ names of the repository's files ─▶ those that are wanted ─ huggingface_hub ─▶ folder

`huggingface_hub` is the client: its cache, its tokens (`HF_TOKEN`, or what `hf auth login` keeps),
its settings (`HF_ENDPOINT`, `HF_HUB_OFFLINE`, …). Only files that the caller has chosen by their
names come down; nothing of a repository is ever run. A token is never printed.
"""

import contextlib
import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tessella.errors import TessellaError, first_line, needs_extra

PREFIX = "hf:"
_log = logging.getLogger("tessella")
_NAME = r"(?![^/@:]*(?:--|\.\.))[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?"
_REVISION = r"(?!/)(?:(?!\.\.)[^\s:@])+"  # the cache has a file of its name
_ADDRESS = re.compile(rf"({_NAME})/({_NAME})(?:@({_REVISION}))?(?::([^\s:@]+))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TOKEN = re.compile(r"hf_\w+|(?i:bearer) [^\s'\"]+")
_CACHED = ("models--", "datasets--")
_PARTS = ("text_encoder", "vqvae")  # folders of a model folder and of a pipeline of diffusers
_NO_SPACE = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}

RepositoryKind = Literal["model", "dataset"]


@dataclass(frozen=True)
class HubAddress:
    """A repository on the hub."""

    repository: str  # USER/NAME
    revision: str | None = None  # a branch, a tag or a commit; None: the main branch
    split: str | None = None  # of a data set

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{PREFIX}{self.repository}{revision}{f':{self.split}' if self.split else ''}"

    @property
    def name(self) -> str:
        """The repository's name, without its owner's."""
        return self.repository.partition("/")[2]

    @property
    def is_commit(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None


def is_hub_address(text: str | os.PathLike[str]) -> bool:
    """Says whether a name means a repository on the hub; `./hf:…` is a folder."""
    return str(text).startswith(PREFIX) and not str(text).startswith(f"{PREFIX}//")


def parse_address(
    text: str, error_class: type[TessellaError], *, kind: RepositoryKind = "model"
) -> HubAddress:
    """Reads `hf:USER/NAME@REVISION`; of a data set also `:SPLIT`; `hf:` may be left out.

    Raises:
        TessellaError: of the class that is given; it is no such address.
    """
    found = _ADDRESS.fullmatch(text.removeprefix(PREFIX))
    if found is None or (found[4] and kind == "model"):
        form = "hf:USER/NAME or hf:USER/NAME@REVISION"
        if kind == "dataset":
            form = "hf:USER/DATASET, with @REVISION and :SPLIT behind it where they are needed"
        raise error_class(
            f"Not the name of a repository on the hub: `{text}`. Expected {form}; names have "
            "letters, digits, `-`, `_` and `.`, with something else at both ends than `-` and `.`."
        )
    return HubAddress(f"{found[1]}/{found[2]}", found[3], found[4])


def download(
    address: HubAddress,
    kind: RepositoryKind,
    choose: Callable[[Sequence[str]], Sequence[str]],
    error_class: type[TessellaError],
) -> Path:
    """Fetches files of a repository into the hub's cache; what is there already is not fetched.

    Without a network, or with `HF_HUB_OFFLINE=1`, the files are those of the cache.

    Args:
        address: the repository.
        kind: of the repository.
        choose: takes the names of its files; returns those that are wanted, or patterns of them,
            or refuses the repository, of which nothing is then fetched.
        error_class: of errors.

    Returns:
        The folder of that revision in the cache. It may hold other files, fetched earlier.

    Raises:
        TessellaError: of the class that is given; the repository or revision does not exist, may
            not be read, or cannot be reached and is not in the cache; or changes all the time; or
            the disk is full.
    """
    client = import_client(f"`{address}`", error_class)
    with reaching(address, error_class):
        for _ in range(2):
            names, commit = _list_files(client, address, kind)
            # Not by its commit: the client then keeps no name of it for use without a network.
            folder = Path(
                client.snapshot_download(
                    address.repository,
                    repo_type=kind,
                    revision=address.revision,
                    allow_patterns=list(choose(names)),
                    local_files_only=commit is None,
                )
            )
            if commit in (None, folder.name):
                return folder
            # Another version was pushed meanwhile, of which nothing was chosen.
    raise error_class(
        f"The repository changes while it is fetched: `{address}`. Try again in a few minutes, or "
        f"name one version of it: {PREFIX}{address.repository}@{commit}."
    )


def import_client(what: str, error_class: type[TessellaError]) -> Any:
    """Imports `huggingface_hub`.

    Raises:
        TessellaError: of the class that is given; it is not installed.
    """
    with needs_extra("hub", what, error_class):
        import huggingface_hub
    return huggingface_hub


@contextlib.contextmanager
def reaching(
    address: HubAddress, error_class: type[TessellaError], *, is_writing: bool = False
) -> Iterator[None]:
    """Says why the hub does not give or take something, without its client's traceback or tokens.

    Raises:
        TessellaError: of the class that is given, in the place of the client's errors.
    """
    import_client(f"`{address}`", error_class)
    from huggingface_hub.errors import HTTPError, XetDownloadError

    try:
        with _quiet():
            yield
    except TessellaError:
        raise
    except (HTTPError, XetDownloadError, OSError, ValueError, RuntimeError) as error:
        # The client wraps what happens to one of many files.
        cause = error.__cause__ if isinstance(error, RuntimeError) else None
        why = _explain(cause if isinstance(cause, Exception) else error, address, is_writing)
        raise error_class(why) from None


def hide_tokens(text: str) -> str:
    """Leaves out what may be a token."""
    given = os.environ.get("HF_TOKEN", "").strip()
    return _TOKEN.sub("…", text.replace(given, "…") if given else text)


def find_hub_repository(folder: Path) -> Path | None:
    """Returns the repository in the Hugging Face hub's cache that a folder is a revision of.

    There `models--USER--NAME` has the contents of files in `blobs`, and links to them in
    `snapshots/COMMIT`.
    """
    snapshot = _find_snapshot(folder)
    repository = snapshot.parent.parent
    if snapshot.parent.name == "snapshots" and repository.name.startswith(_CACHED):
        return repository
    return None


def find_hub_address(folder: Path) -> HubAddress | None:
    """Returns the address, commit included, of a model's folder in the hub's cache."""
    repository = find_hub_repository(folder)
    if repository is None or not repository.name.startswith("models--"):
        return None
    return HubAddress("/".join(repository.name.split("--")[1:]), _find_snapshot(folder).name)


def _find_snapshot(folder: Path) -> Path:
    """Returns the revision's folder of a folder that is one, or a part of one."""
    return folder.parent if folder.name in _PARTS else folder


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lets the client draw bars on terminals alone."""
    from huggingface_hub import utils

    if sys.stderr.isatty() or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


def _list_files(
    client: Any, address: HubAddress, kind: RepositoryKind
) -> tuple[list[str], str | None]:
    """Lists the files of a revision, and names its commit; None: they are those of the cache."""
    try:
        info = client.HfApi().repo_info(
            address.repository, repo_type=kind, revision=address.revision
        )
    except Exception as error:
        names = _list_cached(address, kind) if _is_out_of_reach(error) else None
        if names is None:
            raise
        if not client.constants.HF_HUB_OFFLINE:
            _log.warning("The hub cannot be reached; its cache is taken: `%s`.", address)
        return names, None
    return [file.rfilename for file in info.siblings or ()], info.sha


def _list_cached(address: HubAddress, kind: RepositoryKind) -> list[str] | None:
    """Lists the files of a revision as they were when it was last fetched; None if it never was."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        tree = get_cached_repo_tree(address.repository, repo_type=kind, revision=address.revision)
    except CachedRepoTreeNotFoundError:
        return None
    return [file.path for file in tree]


def _is_out_of_reach(error: Exception) -> bool:
    """Says whether the hub gave no answer, or one that it is not working."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return bool(error.response.status_code >= 500)
    return isinstance(error, HTTPError | OfflineModeIsEnabled)


def _explain(error: Exception, address: HubAddress, is_writing: bool) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, HfHubHTTPError):
        return _explain_answer(error, address, is_writing)
    if _is_out_of_reach(error) or isinstance(error, LocalEntryNotFoundError):
        is_offline = constants.HF_HUB_OFFLINE
        why = "HF_HUB_OFFLINE is set" if is_offline else f"no connection to {constants.ENDPOINT}"
        said = "" if is_offline else f" ({hide_tokens(first_line(error))[:200]})"
        if is_writing:
            return f"Cannot reach the hub: `{address}`; {why}{said}. Try again with a connection."
        return (
            f"Cannot reach the hub, and its cache does not hold all of this: `{address}`; "
            f"{why}{said}. Name it once with a connection; then it is kept in "
            f"{constants.HF_HUB_CACHE}."
        )
    if isinstance(error, OSError) and error.errno is not None:
        what = "Cannot keep what the hub gives" if not is_writing else "Cannot push"
        full = "free some space, or let HF_HUB_CACHE name a folder on another disk"
        advice = full if error.errno in _NO_SPACE else "put that right"
        place = error.filename or constants.HF_HUB_CACHE
        return f"{what}: `{address}`, in `{place}`. {os.strerror(error.errno)}: {advice}."
    said = hide_tokens(" ".join(str(error).split()))[:500].rstrip(".")
    return (
        f"The hub's client refuses: `{address}`. {said}. Put that right and run the same command "
        "again."
    )


def _explain_answer(error: Exception, address: HubAddress, is_writing: bool) -> str:
    """Puts the hub's answer into words."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    log_in = "Log in with `hf auth login`, or set HF_TOKEN"
    has_token = get_token() is not None
    page = f"{constants.ENDPOINT}/{address.repository}"
    if isinstance(error, GatedRepoError):
        then = "Then run the same command again" if has_token else log_in
        return (
            f"The repository is open to those who agree to its terms: `{address}`. Agree at "
            f"{page}. {then}."
        )
    if isinstance(error, RevisionNotFoundError):
        return (
            f"The repository has no such revision: `{address}`. Expected a branch, a tag or a "
            f"commit; {page}/commits/main lists them."
        )
    if status in (401, 403) and (is_writing or has_token):
        who = "Your token may not write there" if is_writing else "Your token may not read there"
        if status == 401 or not has_token:
            who = "The hub does not know the token" if has_token else "The hub asks who you are"
        return (
            f"{who}: `{address}`{_quote(error)}. {log_in} to a token with the right "
            f"to {'write' if is_writing else 'read'} there."
        )
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        private = "or it is private, which the token does not open"
        if not has_token:
            private = f"or it is private. If it is yours: {log_in}"
        return f"The hub has no such repository: `{address}`; {private}. Check the name at {page}."
    advice = "Try again in a few minutes." if status == 429 or status >= 500 else f"See {page}."
    return f"The hub refuses: `{address}`, with the status {status}{_quote(error)}. {advice}"


def _quote(error: Exception) -> str:
    """Returns what the server said, on one line."""
    said = getattr(error, "server_message", None) or ""
    return f"; it says: {hide_tokens(' '.join(said.split()))[:300].rstrip('.')}" if said else ""

"""Who may ask, from where, and how much: what is refused, and what is told of it."""

import hmac
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from tessella.errors import ConfigError
from tessella.serving import middleware
from tessella.serving.app import create_app
from tessella.serving.middleware import ApiKeys, check_exposure, read_api_keys
from tessella.serving.settings import ServeSettings

pytestmark = pytest.mark.usefixtures("one_thread")

Serve = Callable[..., Any]

KEY, OTHER_KEY = "k" * 32, "another-key-of-32-characters-000"
ORIGIN = "https://example.org"


def fault(answer: httpx.Response) -> dict[str, Any]:
    """Reads an error, whose form is always the same."""
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    return dict(body["error"])


def with_key(key: str = KEY, scheme: str = "Bearer") -> dict[str, str]:
    return {"Authorization": f"{scheme} {key}"}


# Keys.


def test_a_key_opens_what_is_locked_and_nothing_else_does(serve: Serve) -> None:
    server = serve(keys=[KEY, OTHER_KEY])
    for key in (KEY, OTHER_KEY):
        assert server.get("/v1/models", headers=with_key(key)).status_code == 200
    assert server.get("/v1/models", headers=with_key(scheme="bEARER")).status_code == 200
    answer = server.get("/v1/models")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert fault(answer) == {
        "message": "An API key is missing. Send the header `Authorization: Bearer KEY`.",
        "type": "authentication_error",
        "param": None,
        "code": "invalid_api_key",
    }
    wrong = [
        with_key(KEY[:-1]),
        with_key(KEY + "k"),
        with_key(KEY.upper()),
        with_key(scheme="Basic"),
        with_key(scheme="Token"),
        with_key(f"{KEY},{OTHER_KEY}"),
        {"Authorization": KEY},
        {"Authorization": "Bearer"},
        {"Authorization": b"Bearer \xff\xfe"},
        {"X-Api-Key": KEY},
    ]
    for headers in wrong:
        answer = server.get("/v1/models", headers=headers)
        assert answer.status_code == 401, headers
        assert KEY not in answer.text
    assert "unknown" in fault(server.get("/v1/models", headers=with_key("no")))["message"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 200),
        ("/studio/main.js", 200),
        ("/healthz", 200),
        ("/readyz", 200),
        ("/v1/studio", 200),
        ("/v1/pictures/unknown.png", 404),
        ("/v1/models", 401),
        ("/v1/models/tiny/samples.png", 401),
        ("/v1/run", 401),
        ("/v1/nothing", 401),
        ("/v1", 401),
        ("/v1/", 401),
        ("/v1/studio/", 401),
        ("/v1/pictures", 401),
        ("/sdapi/v1/sd-models", 401),
        ("/sdapi/v1/nothing", 401),
        ("/%76%31/models", 401),
        ("/v1/pictures/../models", 401),
        ("/v1/pictures/%2e%2e/models", 404),
        ("//v1/models", 404),
        ("/V1/models", 404),
        ("/metrics", 401),
        ("/openapi.json", 401),
        ("/nothing", 404),
        ("/docs", 404),
    ],
)
def test_what_is_open(path: str, status: int, locked: Any) -> None:
    answer = locked.get(path)
    assert answer.status_code == status
    if status != 200:
        fault(answer)


@pytest.fixture(scope="module")
def locked(models: Any, run_app: Any) -> Any:
    """A server with a key."""
    with run_app(create_app(models, keys=[KEY])) as found:
        yield found


def test_every_method_needs_a_key(locked: Any) -> None:
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"):
        for path in ("/v1/models", "/v1/images/generations", "/metrics"):
            assert locked.client.request(method, path).status_code == 401
    assert locked.client.options("/v1/models").status_code == 405
    assert locked.get("/v1/studio").json()["key_required"] is True
    metrics = locked.get("/metrics", headers=with_key())
    assert metrics.status_code == 200
    assert metrics.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert locked.get("/openapi.json", headers=with_key()).status_code == 200


def test_all_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after one that fits, and whatever the scheme is; only hashes of one length are."""
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def record(given: bytes, known: bytes) -> bool:
        compared.append((given, known))
        return compare(given, known)

    monkeypatch.setattr(middleware.hmac, "compare_digest", record)
    keys = ApiKeys([KEY, OTHER_KEY])
    for authorization in (f"Bearer {KEY}", "Bearer x", "", f"Basic {KEY}", f"Bearer {'x' * 9999}"):
        compared.clear()
        assert keys.accept(authorization) is (authorization == f"Bearer {KEY}")
        assert len(compared) == 2
        assert {len(part) for pair in compared for part in pair} == {32}
    assert KEY not in repr(vars(keys))
    assert not ApiKeys()
    assert not ApiKeys().accept("Bearer ")


def test_keys_are_read(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\n  {KEY}  \n{OTHER_KEY}\n", encoding="utf-8")
    assert read_api_keys(None, None) == []
    assert read_api_keys("", None) == []
    assert read_api_keys(f" {KEY} ,, {OTHER_KEY},", None) == [KEY, OTHER_KEY]
    assert read_api_keys("e" * 16, file) == ["e" * 16, KEY, OTHER_KEY]


@pytest.mark.parametrize("bad", ["short", "x" * 15, "blanks in the key here", "ü" * 20])
def test_keys_that_are_none(bad: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n{bad}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"API key 2 must have at least 16 .*openssl") as caught:
        read_api_keys(None, file)
    assert bad not in str(caught.value)
    with pytest.raises(ConfigError, match="API key 1 must"):
        read_api_keys(bad, None)


def test_key_files_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    with pytest.raises(ConfigError, match=r"Cannot read the API keys: `.*keys`\. No such file"):
        read_api_keys(None, file)
    with pytest.raises(ConfigError, match=r"Cannot read .* Is a directory"):
        read_api_keys(None, tmp_path)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"It is not UTF-8\."):
        read_api_keys(None, file)
    file.write_text("# none yet\n\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"holds no API key: `.*`\. Write one a line"):
        read_api_keys(None, file)


def test_others_are_not_let_in_without_a_key() -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        check_exposure(ServeSettings(host=host), ApiKeys(), insecure=False)
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org", "", "127.0.0.1.example.org"):
        settings = ServeSettings(host=host)
        check_exposure(settings, ApiKeys([KEY]), insecure=False)
        check_exposure(settings, ApiKeys(), insecure=True)
        with pytest.raises(ConfigError, match=r"Anyone who can reach .* --insecure"):
            check_exposure(settings, ApiKeys(), insecure=False)


# Hosts.


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("LOCALHOST:9", 200),
        ("[::1]:8000", 200),
        ("evil.example:8000", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost@evil.example", 403),
        ("evil.example#localhost", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_a_page_cannot_point_its_name_at_this_machine(host: str, status: int, server: Any) -> None:
    """DNS rebinding: the browser thinks that it still speaks to the page's own server."""
    answer = server.get("/v1/models", headers={"Host": host})
    assert answer.status_code == status
    if status == 403:
        error = fault(answer)
        message = error.pop("message")
        assert error == {"type": "permission_error", "param": None, "code": "unknown_host"}
        assert message.startswith("This server does not answer to this host name")
        assert "start the server with --allowed-host " in message


def test_refusals_name_the_way_out(server: Any) -> None:
    message = fault(server.get("/", headers={"Host": "paint.example:8000"}))["message"]
    assert message == (
        "This server does not answer to this host name: `paint.example`. If it is yours, start the "
        "server with --allowed-host paint.example."
    )
    message = fault(server.get("/", headers={"Origin": "https://page.example:9"}))["message"]
    assert message == (
        "Web pages of other origins may not use this server: `https://page.example:9`. If the page "
        "is yours, start the server with --allow-origin https://page.example:9."
    )
    # Nothing odd is repeated.
    assert "<" not in fault(server.get("/", headers={"Host": "<b>`"}))["message"]
    assert "<" not in fault(server.get("/", headers={"Origin": "https://<b>"}))["message"]


@pytest.mark.parametrize("coding", ["gzip", "br", "gzip, br", "<odd>"])
def test_compressed_bodies(coding: str, server: Any) -> None:
    """They were called invalid JSON."""
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    answer = server.post("/images/generations", content=b"\x1f\x8b", headers=headers)
    assert answer.status_code == 415
    error = fault(answer)
    assert error["code"] == "compressed_body"
    assert error["message"].endswith("Send it as it is, without the header Content-Encoding.")
    assert (f"`{coding}`" in error["message"]) is ("<" not in coding)
    plain = {"Content-Encoding": "identity"}
    assert server.client.get("/healthz", headers=plain).status_code == 200


def test_named_hosts(serve: Serve) -> None:
    server = serve(allowed_hosts=("Paint.example",), host="0.0.0.0")
    assert server.get("/", headers={"Host": "paint.example:80"}).status_code == 200
    assert server.get("/", headers={"Host": "other.example"}).status_code == 403


@pytest.mark.parametrize("host", ["192.0.2.7:8000", "[2001:db8::1]:8000", "0.0.0.0"])
def test_addresses_in_numbers(serve: Serve, host: str) -> None:
    """A server that others may reach once answered nobody but itself."""
    assert serve().get("/", headers={"Host": host}).status_code == 200
    origin = {"Host": host, "Origin": "http://192.0.2.7"}
    assert serve().get("/", headers=origin).status_code == 403


def test_with_keys_any_host_unless_some_are_named(serve: Serve, locked: Any) -> None:
    assert locked.get("/", headers={"Host": "any.example"}).status_code == 200
    server = serve(keys=[KEY], allowed_hosts=("paint.example",))
    assert server.get("/", headers={"Host": "any.example"}).status_code == 403
    assert server.get("/", headers={"Host": "paint.example"}).status_code == 200


def test_requests_of_old_need_no_host_where_there_are_keys(locked: Any, server: Any) -> None:
    for asked, status in ((locked, b"200"), (server, b"403")):
        with asked.connect(b"GET /healthz HTTP/1.0\r\n\r\n") as connected:
            assert connected.recv(100).split()[1] == status


# Origins.


def test_pages_of_other_origins_may_not_ask(server: Any) -> None:
    """Another port of this machine is another origin: there may be anything."""
    own = {"Origin": server.url}
    assert server.get("/v1/models", headers=own).status_code == 200
    for origin in (
        "https://evil.example",
        "null",
        "",
        "http://127.0.0.1",
        "http://127.0.0.1:1",
        "http://localhost:1",
        f"{server.url}.evil.example",
        f"https://evil.example/{server.url}x",
    ):
        for ask in (server.get, server.client.options):
            answer = ask("/v1/models", headers={"Origin": origin})
            assert answer.status_code == 403, origin
            assert fault(answer)["code"] == "foreign_origin"
        answer = server.post("/images/variations", headers={"Origin": origin}, files={})
        assert answer.status_code == 403


def test_cors_headers_are_for_named_origins_alone(serve: Serve) -> None:
    server = serve(allow_origins=(ORIGIN,))
    named = server.get("/v1/models", headers={"Origin": ORIGIN})
    assert named.status_code == 200
    assert named.headers["access-control-allow-origin"] == ORIGIN
    assert "Origin" in named.headers["vary"]
    assert "access-control-allow-credentials" not in named.headers
    assert "x-request-id" in named.headers["access-control-expose-headers"].lower()
    for origin in (f"{ORIGIN}.evil.example", "http://example.org", "https://sub.example.org"):
        foreign = server.get("/v1/models", headers={"Origin": origin})
        assert foreign.status_code == 403
        assert "access-control-allow-origin" not in foreign.headers
    plain = server.get("/v1/models")
    assert "access-control-allow-origin" not in plain.headers


def preflight(server: Any, origin: str, *headers: str) -> httpx.Response:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": ", ".join(headers),
    }
    return server.client.options("/v1/images/generations", headers=asked)


def test_preflights_are_answered_for_named_origins(serve: Serve) -> None:
    """Also with keys, which a preflight does not carry; with what OpenAI's client adds."""
    server = serve(allow_origins=(ORIGIN,), keys=[KEY])
    answer = preflight(server, ORIGIN, "authorization", "content-type", "x-stainless-lang")
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "x-stainless-lang" in answer.headers["access-control-allow-headers"]
    foreign = preflight(server, "https://evil.example", "authorization")
    assert foreign.status_code >= 400
    assert "access-control-allow-origin" not in foreign.headers


def test_named_pages_can_read_why_they_are_refused(serve: Serve) -> None:
    """A script once saw a network failure where the key was wrong or the body too large."""
    server = serve(allow_origins=(ORIGIN,), keys=[KEY], max_body_bytes=1000)
    refused = server.get("/v1/models", headers={"Origin": ORIGIN})
    assert refused.status_code == 401
    large = server.post(
        "/images/variations", content=b"x" * 1001, headers={"Origin": ORIGIN, **with_key()}
    )
    assert large.status_code == 413
    for answer in (refused, large):
        assert answer.headers["access-control-allow-origin"] == ORIGIN


def test_without_named_origins_no_preflight_is_answered(server: Any, locked: Any) -> None:
    assert preflight(server, ORIGIN).status_code == 403
    answer = preflight(locked, ORIGIN)
    assert answer.status_code == 405
    assert "access-control-allow-origin" not in answer.headers


# Bodies.


def test_bodies_over_the_limit(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "_DRAIN_SECONDS", 3600)  # what is whole is not waited for
    server = serve(max_body_bytes=2000)

    def parts(size: int) -> Any:
        for _ in range(size // 100):
            yield b"x" * 100

    for content in (b"x" * 2001, parts(2100)):
        answer = server.post(
            "/images/edits",
            content=content,
            headers={"Content-Type": "multipart/form-data; boundary=b"},
        )
        assert answer.status_code == 413
        assert answer.headers["connection"] == "close"
        assert fault(answer) == {
            "message": "The body is too large: at most 2,000 bytes are read. Send a smaller "
            "picture, or shorter texts.",
            "type": "invalid_request_error",
            "param": None,
            "code": "body_too_large",
        }
    within = server.post(
        "/images/generations", content=parts(2000), headers={"Content-Type": "application/json"}
    )
    assert within.status_code == 400


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_client_that_still_sends_reads_that_it_is_too_much(is_chunked: bool, server: Any) -> None:
    """Much more than fits into the buffers between: the connection must not be reset unread."""
    content = b'--b\r\nContent-Disposition: form-data; name="image"; filename="i"\r\n\r\n'
    content += b"x" * 40_000_000
    answer = server.post(
        "/images/edits",
        content=iter([content]) if is_chunked else content,
        headers={"Content-Type": "multipart/form-data; boundary=b"},
    )
    assert answer.status_code == 413
    for path, status in (("/nothing", 404), ("/models", 405), ("/images/generations", 415)):
        answer = server.post(path, content=content[:19_000_000])
        assert answer.status_code == status
    assert server.generate(steps=1).status_code == 200


def test_who_is_refused_may_finish_sending(locked: Any) -> None:
    """A proxy that cannot send all of a body says that the server failed, not that it refused."""
    head = b"POST /v1/images/edits HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
    with locked.connect(head) as connected:
        connected.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connected.recv(1)
        connected.sendall(b"x" * 9)
        connected.settimeout(60)
        assert connected.recv(99).startswith(b"HTTP/1.1 401 ")


def test_json_is_never_as_large_as_a_picture(server: Any) -> None:
    """To say what is wrong with 20 MB of it once took seconds, in which nobody else was heard."""
    content = b'{"prompt":[' + b"1," * 500_000 + b"1]}"
    for kind in ("application/json", "Application/JSON; charset=utf-8"):
        answer = server.post("/images/generations", content=content, headers={"Content-Type": kind})
        assert answer.status_code == 413
    # As long as can be: every letter a pair of escapes.
    longest = "\U0001f308" * 4000
    assert len(httpx.Request("POST", "http://x", json={"p": longest}).content) > 16_000
    content = '{"prompt":"' + "\\ud83c\\udf08" * 4000 + '","negative_prompt":"'
    content += "\\ud83c\\udf08" * 4000 + '"}'
    answer = server.post(
        "/images/generations", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 200
    with pytest.raises(ValidationError):
        ServeSettings(max_body_bytes=999)
    assert ServeSettings(max_body_bytes=1000).max_json_bytes == 1000


def ask_slowly(server: Any, head: bytes, first: bytes) -> bytes:
    """Sends a part of a body and waits for what is said to that."""
    with server.connect(head + b"\r\n" + first) as connected:
        said = b""
        while True:
            part = connected.recv(65536)
            said += part
            if not part:
                return said


@pytest.mark.parametrize(
    ("length", "first"),
    [(b"Content-Length: 100", b'{"p'), (b"Transfer-Encoding: chunked", b'3\r\n{"p\r\n')],
)
def test_slow_bodies(length: bytes, first: bytes, serve: Serve) -> None:
    server = serve(body_timeout_seconds=0.2)
    head = b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\n"
    head += b"Content-Type: application/json\r\n" + length + b"\r\n"
    started = time.monotonic()
    said = ask_slowly(server, head, first)
    assert 0.15 < time.monotonic() - started < 15  # the default is 30
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in said.lower()
    assert b'"message":"The body took longer than 0.2 s."' in said
    assert b'"code":"body_timeout"' in said


def test_a_body_that_drips_has_one_deadline(serve: Serve) -> None:
    server = serve(body_timeout_seconds=0.3)
    head = b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    with server.connect(head) as connected:
        started = time.monotonic()
        connected.settimeout(0.05)
        said = b""
        while not said:
            connected.sendall(b" ")
            try:
                said = connected.recv(100)
            except TimeoutError:
                continue
        assert said.startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - started < 30


def test_who_hangs_up_while_sending_is_no_failure(
    server: Any, until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It was told as an internal error, with a traceback."""
    route = "/v1/images/generations"
    head = f"POST {route} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

    def count(status: str) -> float:
        return server.metric("tessella_requests_total", route=route, status=status)

    gone, failed = count("499"), count("500")
    server.connect(f"{head}Content-Length: 100\r\n\r\n{{".encode()).close()
    until(lambda: count("499") == gone + 1)
    assert "Traceback" not in caplog.text
    assert count("500") == failed


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"0x10", b"1,1", b"9" * 30])
def test_lengths_that_are_none(length: bytes, server: Any) -> None:
    head = b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
    with server.connect(head + length + b"\r\n\r\n") as connected:
        assert connected.recv(100).split()[1] in (b"400", b"413")


def test_what_is_asked_once_is_read_once(server: Any) -> None:
    """Two lengths are one request too many: what stands behind is never taken for another."""
    content = (
        b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    )
    with server.connect(content) as connected:
        connected.settimeout(1)
        said = b""
        try:
            while part := connected.recv(65536):
                said += part
        except TimeoutError:
            pass
        assert said.count(b"HTTP/1.1 200") == 0

"""Requests that are wrong, each in one way: what `serving_malformed.py` sends.

Every function of KINDS takes a random number generator and returns the bytes of one request that no
server should fulfil; apart from its one fault it is a good request with a good key. NOT_HTTP holds
bytes that are not a request at all, ODD unusual requests that may be fulfilled.

Nothing is measured here; run by itself, this file does nothing.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from http_clients import encode_request
from malformed_pictures import black_mask, bombs, draw_broken, draw_odd, good_picture

KEY = "sk-" + "malformed" * 4
GENERATIONS = "/v1/images/generations"
FORMS = ("/v1/images/edits", "/v1/images/variations", "/v1/images/reconstructions")
PROMPT = "a large red circle on a white background"
GOOD: dict[str, Any] = {"prompt": PROMPT, "seed": 1, "steps": 1}

Rng = random.Random

# fmt: off
WRONG_VALUES: dict[str, Sequence[Any]] = {
    "prompt": (None, 7, True, [], {}, ["a"], "", "   ", "\n\t", "a" * 4001, "é" * 100_000),
    "model": (7, [], {}, True, "nobody", "../scenes", "scenes/", "/etc/passwd", "x" * 100_000),
    "n": ("1", 1.5, True, [], {}, 0, -1, 11, 10**18, -(10**30)),
    "size": (64, "64", "0x0", "-1x5", "64x64x64", "99999x99999", "auto ", "64X64", "64×64",
             "\uff16\uff14x\uff16\uff14", "1e3x1e3", "64x64\n", "", [64, 64], "9" * 5000 + "x1"),
    "response_format": ("png", 1, "", "B64_JSON", []),
    "output_format": ("gif", "", 3, "png\0", ["png"]),
    "output_compression": (-1, 101, "80", 0.5),
    "stream": ("true", 1, 0, "yes", []),
    "partial_images": (-1, 17, 1.5, "3", True),
    "seed": (-2, 2**53, 1.5, "7", True, 10**30, []),
    "steps": (0, 65, "16", 1e9, True, -16),
    "guidance_scale": (-1, 1e6, "2", True, []),
    "temperature": (-0.1, "hot", 1e300, True, {}),
    "top_k": (0, -5, 1.5, "5"),
    "top_p": (0, 1.1, -1, "0.5", []),
    "best_of": (0, 17, "2", 1.5),
    "negative_prompt": (7, [], "a" * 100_000),
    "background": ("transparent", 1),
    "quality": ("best", 1, []),
    "user": (7, [], {}),
}
NUMBERS = ("n", "seed", "steps", "top_k", "best_of", "guidance_scale", "temperature", "top_p")
WRONG_NUMBERS = (
    "1e999", "-1e999", "1e400", "9" * 400, "-" + "9" * 400, "9" * 5000, "1" + "0" * 100_000, "NaN",
    "Infinity", "-Infinity", "0x10", "1_000", "01", "+1", "1.", ".5", "1e", "--1", "-1e-", "1,5",
)
UNKNOWN_FIELDS = (
    "prompt_", "Prompt", "__proto__", "__class__", "constructor", "steps ", "", "n\0", "a" * 10_000,
    "cfg_scale", "width", "$where", "prompt[]", "seed.x", "😀",
)
JSON_TYPES = (
    "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/xml",
    "multipart/form-data; boundary=x", "application/jsonx", "image/png", "*/*", "application", "é",
)
METHODS = ("GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "HEAD", "POST")
ADDRESSES = (  # address, the methods that it takes
    (GENERATIONS, ("POST",)), (FORMS[0], ("POST",)), (FORMS[1], ("POST",)), (FORMS[2], ("POST",)),
    ("/v1/models", ("GET", "HEAD")), ("/v1/models/scenes", ("GET", "HEAD")),
    ("/v1/models/scenes/card", ("GET", "HEAD")), ("/healthz", ("GET", "HEAD")),
    ("/metrics", ("GET", "HEAD")), ("/openapi.json", ("GET", "HEAD")), ("/", ("GET", "HEAD")),
)
WRONG_PATHS = (
    "/v1/models/..%2f..%2fetc%2fpasswd", "/v1/models/../../etc/passwd", "/v1/models/%00",
    "/v1/models/scenes/../../card", "/v1/models/.", "/v1/models/%2e%2e",
    "/v1/models/scenes%00.png", "/studio/../../../etc/passwd",
    "/studio/%2e%2e/%2e%2e/pyproject.toml", "/studio/..%5c..%5capp.py", "/studio/%2e%2e%2fapp.py",
    "/studio/....//....//app.py", "/studio//etc/passwd", "/studio/%c0%af", "/studio/%",
    "/studio/nothing.js", "/v1/pictures/../../x.png", "/v1/pictures/x.png",
    "/v1/pictures/%2fetc%2fpasswd", "/v1/images", "/v1", "/v2/models", "/v1/images/generations/x",
    "/v1/run/pictures/..%2f..%2frun.json", "/.git/config", "/.env", "//evil.example/v1/models",
    "/v1/models/" + "a" * 8000, "/" + "../" * 500, "/v1/models/\xff\xfe", "/v1/mod els",
    "http://evil.example/v1/x",
)
WRONG_KEYS = (
    "", "Bearer", "Bearer ", "Bearer wrong", f"Bearer {KEY[:-1]}", f"Bearer {KEY}x",
    f"Bearer {KEY.upper()}", f"Basic {KEY}", KEY, f"Token {KEY}", "Bearer é\xff", "Bearer null",
    "Bearer " + "x" * 50_000, f"Bearer {KEY},{KEY}", f"Bearer {KEY[::-1]}",
)
ENCODINGS = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "bytes", "escape")
ODD_BYTES = (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\x00", b"\x80", b"\xf5\x80\x80\x80")
ODD_ESCAPES = (r"\ud800", r"\udfff", r"\x41", r"\u12")
# An empty part of a form counts as left out, and a seed of -1 is drawn.
WRONG_FIELDS = {
    "n": ("0", "11", "1.5", "x", "NaN", "1e999", "-1", "0x1", "1_0", "\u0661", " 1"),
    "stream": ("1", "yes", "TRUE", "on", "None"),
    "seed": ("x", "1e99", "9" * 5000),
    "strength": ("0", "-1", "2", "NaN", "inf", "x"),
    "size": ("64", "0x0", "1e9x1"),
    "steps": ("0", "99", "1.5", "x", "true"),
}
WRONG_LENGTHS = ("-5", "abc", "1e3", "0x10", "9" * 400, "1 2", "99999999999999999999")
# fmt: on


@dataclass(frozen=True)
class Request:
    """What is sent on one connection."""

    kind: str
    content: bytes
    ends: bool = False  # the client stops sending after it, as one that went away


def draw_requests(count: int, seed: int) -> list[Callable[[], Request]]:
    """Chooses the kinds of malformed requests; each is made only when it is sent."""
    rng = Rng(seed)
    names = rng.choices(list(KINDS), weights=[WEIGHTS.get(name, 10) for name in KINDS], k=count)

    def prepare(number: int, name: str) -> Callable[[], Request]:
        return lambda: Request(name, KINDS[name](Rng(f"{seed} {number}")))

    return [prepare(number, name) for number, name in enumerate(names)]


# --- JSON ------------------------------------------------------------------------------------


def post(body: bytes, path: str = GENERATIONS, **headers: str) -> bytes:
    """Encodes a request with the key."""
    return encode_request("POST", path, body, key=KEY, **headers)


def cut_json(rng: Rng) -> bytes:
    body = json.dumps(GOOD).encode()
    return post(body[: rng.randrange(len(body))])


def wrong_value(rng: Rng) -> bytes:
    name = rng.choice(list(WRONG_VALUES))
    return post(json.dumps({**GOOD, name: rng.choice(WRONG_VALUES[name])}).encode())


def huge_number(rng: Rng) -> bytes:
    text = json.dumps({**GOOD, rng.choice(NUMBERS): "?"}).replace('"?"', rng.choice(WRONG_NUMBERS))
    return post(text.encode())


def deep_nesting(rng: Rng) -> bytes:
    depth = rng.choice((50, 500, 5_000, 100_000))
    nested = rng.choice(
        ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, "[" * depth)
    )
    name = rng.choice(("prompt", "n", "other"))
    return post(rng.choice((nested, f'{{"{name}": {nested}}}')).encode())


def odd_encoding(rng: Rng) -> bytes:
    text = json.dumps({**GOOD, "prompt": "café ?"}, ensure_ascii=False)
    encoding = rng.choice(ENCODINGS)
    if encoding == "bytes":
        return post(text.encode().replace(b"?", rng.choice(ODD_BYTES)))
    if encoding == "escape":
        return post(text.replace("?", rng.choice(ODD_ESCAPES)).encode())
    return post(text.encode(encoding), content_type=f"application/json; charset={encoding}")


def unknown_field(rng: Rng) -> bytes:
    many: dict[str, object] = {f"field{number}": number for number in range(5_000)}
    one: dict[str, object] = {rng.choice(UNKNOWN_FIELDS): rng.choice((None, 1, "x", [], {}))}
    return post(json.dumps({**GOOD, **(many if rng.random() < 0.05 else one)}).encode())


def no_object(rng: Rng) -> bytes:
    bodies = (b"[]", b"null", b'"x"', b"7", b"true", json.dumps([GOOD]).encode(), b"{}", b" ")
    return post(rng.choice(bodies))


def wrong_content_type(rng: Rng) -> bytes:
    if rng.random() < 0.3:
        return post(json.dumps(GOOD).encode(), path=rng.choice(FORMS))
    return post(json.dumps(GOOD).encode(), content_type=rng.choice(JSON_TYPES))


# --- forms -----------------------------------------------------------------------------------

Part = tuple[str, bytes, bool]  # name, contents, whether it is a file


def encode_form(parts: Sequence[Part], boundary: str = "boundary") -> bytes:
    """Encodes multipart/form-data."""
    lines = []
    for name, contents, is_file in parts:
        file = '; filename="a"\r\nContent-Type: application/octet-stream' if is_file else ""
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        lines.append(head.encode() + contents + b"\r\n")
    return b"".join(lines) + f"--{boundary}--\r\n".encode()


def post_form(parts: Sequence[Part], path: str) -> bytes:
    """Encodes a form's request."""
    return post(encode_form(parts), path, content_type="multipart/form-data; boundary=boundary")


def good_parts(path: str) -> list[Part]:
    """Returns the parts of a good request."""
    parts = [("image", good_picture("PNG"), True)]
    if path != FORMS[2]:
        parts += [("prompt", PROMPT.encode(), False), ("steps", b"1", False)]
    return parts


def wrong_boundary(rng: Rng) -> bytes:
    path = rng.choice(FORMS)
    kinds = ("", "; boundary=", "; boundary=other", "; boundary=" + "b" * 10_000, ";boundary=é")
    body = encode_form(good_parts(path))
    return post(body, path, content_type=f"multipart/form-data{rng.choice(kinds)}")


def cut_form(rng: Rng) -> bytes:
    path = rng.choice(FORMS)
    body = encode_form(good_parts(path))
    end = len(body) - len(b"--boundary--\r\n")
    cut = rng.choice((rng.randrange(end), end, body.index(b"\r\n\r\n") + 2, 0))
    return post(body[:cut], path, content_type="multipart/form-data; boundary=boundary")


def wrong_parts(rng: Rng) -> bytes:
    path = rng.choice(FORMS)
    parts = good_parts(path)
    image = parts[0]
    flood = [(f"x{number}" if rng.random() < 0.5 else "n", b"1", False) for number in range(3_000)]
    return post_form(
        rng.choice(
            (
                parts[1:],  # no picture
                [*parts, image],  # two
                [("image", image[1], False), *parts[1:]],  # no file
                [("image", PROMPT.encode(), False), *parts[1:]],
                [*parts, ("prompt_", b"x", False)],
                [*parts, ("", b"x", False)],
                [*parts, ("image2", image[1], True)],
                [*parts, ("model", b"scenes", True)],
                [*parts, ("model", b"scenes", False), ("model", b"scenes", False)],
                [*parts, ("model", b"\xff\xfe", False)],
                [*parts, *flood],
                [*parts, *[("image", image[1], True)] * 300],
                [*parts, ("user", b"u" * 2_000_000, False)],
            )
        ),
        path,
    )


def wrong_field(rng: Rng) -> bytes:
    path, name = rng.choice(FORMS[:2]), rng.choice(list(WRONG_FIELDS))
    parts = [part for part in good_parts(path) if part[0] != name]
    return post_form([*parts, (name, rng.choice(WRONG_FIELDS[name]).encode(), False)], path)


# --- pictures --------------------------------------------------------------------------------


def wrong_picture(rng: Rng) -> bytes:
    return post_picture(rng, draw_broken(rng))


def bomb(rng: Rng) -> bytes:
    return post_picture(rng, rng.choice(bombs()))


def post_picture(rng: Rng, picture: bytes) -> bytes:
    """Sends a picture in the place of a good one, or of a mask."""
    path = rng.choice(FORMS)
    parts = good_parts(path)
    if path == FORMS[0] and rng.random() < 0.5:
        return post_form([*parts, ("mask", picture, True)], path)
    return post_form([("image", picture, True), *parts[1:]], path)


def wrong_mask(rng: Rng) -> bytes:
    sizes = ((95, 96), (96, 95), (48, 48), (192, 192), (1, 1))
    mask = rng.choice((good_picture("PNG", rng.choice(sizes)), black_mask()))
    return post_form([*good_parts(FORMS[0]), ("mask", mask, True)], FORMS[0])


# --- HTTP ------------------------------------------------------------------------------------


def wrong_method(rng: Rng) -> bytes:
    path, allowed = rng.choice(ADDRESSES)
    method = rng.choice([name for name in METHODS if name not in allowed])
    return encode_request(method, path, key=KEY)


def wrong_path(rng: Rng) -> bytes:
    return encode_request(rng.choice(("GET", "POST")), rng.choice(WRONG_PATHS), key=KEY)


def wrong_key(rng: Rng) -> bytes:
    paths = (GENERATIONS, "/v1/models", "/v1/models/scenes", "/metrics", "/openapi.json", *FORMS)
    path, key = rng.choice(paths), rng.choice(WRONG_KEYS)
    headers: dict[str, Any] = {"Authorization": key} if key else {}
    if path.startswith("/v1/images"):
        return encode_request("POST", path, json.dumps(GOOD).encode(), **headers)
    return encode_request("GET", path, **headers)


def wrong_length(rng: Rng) -> bytes:
    """Says a wrong length, or one over every limit."""
    blank = json.dumps({**GOOD, "prompt": " "}).encode()
    length = rng.choice((*WRONG_LENGTHS, "1000000000000"))
    return post(blank, Content_Length=length)


def wrong_chunks(rng: Rng) -> bytes:
    head = post(b"", Transfer_Encoding="chunked").replace(b"Content-Length: 0\r\n", b"")
    blank = json.dumps({**GOOD, "prompt": " "}).encode()
    chunk = f"{len(blank):x}\r\n".encode() + blank + b"\r\n0\r\n\r\n"
    both = head.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n")
    sizes = (b"zz\r\n", b"-5\r\n", b"ffffffffffffffffff\r\n", b"5;" + b"x" * 100_000 + b"\r\n")
    return rng.choice((head + rng.choice(sizes) + blank, head + chunk, both + chunk))


def long_body(rng: Rng) -> bytes:
    """Sends more than the limit of 20 MB, in chunks, with its length, or as a form's file."""
    flood = bytes(2**20)
    kind = rng.randrange(3)
    if kind == 0:
        return post(b" " * 21_000_000)
    if kind == 1:
        return post_form([("image", flood * 21, True)], rng.choice(FORMS))
    head = post(b"", Transfer_Encoding="chunked").replace(b"Content-Length: 0\r\n", b"")
    return head + (f"{len(flood):x}\r\n".encode() + flood + b"\r\n") * 21 + b"0\r\n\r\n"


def header_flood(rng: Rng) -> bytes:
    blank = json.dumps({**GOOD, "prompt": " "}).encode()
    floods = (
        {f"X-{number}": "x" for number in range(5_000)},
        {"X-Long": "x" * 100_000},
        {"Cookie": "a=b; " * 5_000},
        {"Host": "evil.example\x7f"},
        {"Accept-Encoding": "\xff\xfe" * 100},
    )
    return post(blank, **rng.choice(floods))


# fmt: off
KINDS: dict[str, Callable[[Rng], bytes]] = {
    make.__name__: make for make in (
        cut_json, wrong_value, huge_number, deep_nesting, odd_encoding, unknown_field, no_object,
        wrong_content_type, wrong_boundary, cut_form, wrong_parts, wrong_field, wrong_picture, bomb,
        wrong_mask, wrong_method, wrong_path, wrong_key, wrong_length, wrong_chunks, long_body,
        header_flood,
    )
}
WEIGHTS = {"wrong_value": 40, "huge_number": 20, "wrong_picture": 40, "bomb": 5, "long_body": 0.5}

NOT_HTTP = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),  # TLS
    b"SSH-2.0-OpenSSH_9.6\r\n", b"GET /\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\r\n\r\n\r\n", b"\0" * 1000, b"{}\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
    b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", b"A" * 200_000,
    b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n",
    b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /v1/models HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
)
# fmt: on


def unfinished(rng: Rng) -> Request:
    """Stops within a good request."""
    whole = rng.choice((post(json.dumps(GOOD).encode()), post_form(good_parts(FORMS[1]), FORMS[1])))
    return Request("unfinished", whole[: rng.randrange(1, len(whole))], ends=True)


def odd(rng: Rng) -> Request:
    """Sends a picture that is unusual but whole."""
    path = rng.choice(FORMS[1:])
    parts = [("image", draw_odd(rng), True), *good_parts(path)[1:]]
    return Request("odd", post_form(parts, path))

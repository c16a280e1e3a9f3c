"""A server that speaks as much of the Hugging Face hub's HTTP as its client needs.

Repositories with commits and branches, uploads by commit and by LFS, downloads with redirects to
another address, private and gated repositories, tokens. Headers and errors are those that
`huggingface_hub` reads (`hf_raise_for_status`, `get_hf_file_metadata`).
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import pytest
import yaml
from huggingface_hub import constants

Files = dict[str, bytes]
ANNS_TOKEN, BOBS_TOKEN = "hf_AnnMayWriteToHerOwn", "hf_BobMayReadWhatIsPublic"
LFS_SUFFIXES = (".safetensors", ".png", ".parquet", ".tar", ".bin", ".jpg")
# Of the hub's list: those that tests use.
LICENCES = {"apache-2.0", "cc-by-4.0", "mit", "unknown", "other"}


@dataclass
class Repository:
    """One repository; a branch leads to its newest commit."""

    private: bool = False
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    blobs: Files = field(default_factory=dict)  # of the hub, by SHA-256

    def commit(self, files: Files, branch: str = "main") -> str:
        names = sorted((name, hashlib.sha1(files[name]).hexdigest()) for name in files)
        oid = hashlib.sha1(f"{len(self.commits)}{names}".encode()).hexdigest()
        self.commits[oid] = files
        self.blobs |= {hashlib.sha256(content).hexdigest(): content for content in files.values()}
        self.branches[branch] = oid
        return oid

    def find(self, revision: str) -> str | None:
        oid = self.branches.get(revision, revision)
        return oid if oid in self.commits else None


class Hub(ThreadingHTTPServer):
    """The server: what it holds, who may write, and what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[tuple[str, str], Repository] = {}  # by kind and name
        self.blobs: Files = {}  # by SHA-256
        self.owners = {ANNS_TOKEN: "ann", BOBS_TOKEN: "bob"}
        self.writers = {"ann"}
        self.fetched: list[str] = []  # files whose content was sent
        self.status: int | None = None  # of every answer, if it is set

    def put(self, name: str, files: Files, kind: str = "model", **flags: bool) -> Repository:
        """Puts a repository there, past the upload."""
        repository = Repository(blobs=self.blobs, **flags)
        repository.commit(files)
        self.repositories[kind, name] = repository
        return repository


class _Refusal(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        try:
            if self.server.status:
                raise _Refusal(self.server.status, message="The hub is down")
            _ = self._user  # an unknown token is refused whatever is asked
            for method, pattern, act in _ROUTES:
                found = re.fullmatch(pattern, url.path)
                if found and self.command in method.split():
                    return act(self, *map(unquote, found.groups("")))
            raise _Refusal(404, message=f"No route: {self.command} {self.path}")
        except _Refusal as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": error.message}
            self._send(
                json.dumps({"error": error.message}).encode(),
                error.status,
                {name: value for name, value in headers.items() if value},
            )

    def _send(
        self, content: bytes = b"", status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | dict(headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    @property
    def _user(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.server.owners:
            raise _Refusal(401, message="Invalid credentials in Authorization header")
        return self.server.owners.get(token)

    def _find(self, kind: str, name: str) -> Repository:
        repository = self.server.repositories.get((kind, name))
        owner = name.partition("/")[0]
        if repository is None or (repository.private and self._user != owner):
            if self._user is None:
                raise _Refusal(401, message="Invalid username or password.")
            raise _Refusal(404, "RepoNotFound", "Repository not found")
        return repository

    def _find_files(self, kind: str, name: str, revision: str) -> tuple[str, Files]:
        repository = self._find(kind, name)
        oid = repository.find(revision)
        if oid is None:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid, repository.commits[oid]

    def _require_writer(self, owner: str) -> None:
        if self._user is None:
            raise _Refusal(401, message="Invalid username or password.")
        if self._user not in self.server.writers or self._user != owner:
            raise _Refusal(403, message=f"You don't have the rights to write to {owner}")

    def create(self) -> None:
        asked = json.loads(self.body)
        self._require_writer(asked["organization"])
        key = asked.get("type", "model"), f"{asked['organization']}/{asked['name']}"
        if key in self.server.repositories:
            raise _Refusal(409, message="You already created this model repo")
        is_private = asked.get("visibility") == "private" or asked.get("private", False)
        self.server.put(key[1], {".gitattributes": b""}, key[0], private=is_private)
        self._send_json({"url": f"{self.server.url}/{key[1]}", "name": key[1]})

    def info(self, kinds: str, name: str, revision: str = "main") -> None:
        oid, files = self._find_files(kinds[:-1], name, revision)
        repository = self._find(kinds[:-1], name)
        siblings = [{"rfilename": file} for file in files]
        values = {"id": name, "sha": oid, "private": repository.private, "siblings": siblings}
        self._send_json(values | {"tags": [], "downloads": 0, "likes": 0})

    def tree(self, kinds: str, name: str, revision: str) -> None:
        _, files = self._find_files(kinds[:-1], name, revision)
        self._send_json([_describe(file, content) for file, content in files.items()])

    def validate(self) -> None:
        """The checks of a card's header that the hub makes, as far as its documentation tells."""
        content = json.loads(self.body)["content"]
        header = yaml.safe_load(content.split("---")[1])
        errors = []
        if header.get("license") not in LICENCES:
            errors.append(f'"license" must be one of: {", ".join(LICENCES)}')
        if header.get("license") == "other" and not header.get("license_name"):
            errors.append('"license_name" is required')
        for index in header.get("model-index", []):
            for result in index["results"]:
                if not (result["task"]["type"] and result["dataset"]["type"]):
                    errors.append('"model-index" lacks a type')
        answer = {"errors": [{"message": message} for message in errors], "warnings": []}
        self._send(json.dumps(answer).encode(), 400 if errors else 200)

    def preupload(self, kinds: str, name: str, revision: str) -> None:
        self._require_writer(name.partition("/")[0])
        _, files = self._find_files(kinds[:-1], name, revision)
        answers = []
        for asked in json.loads(self.body)["files"]:
            path, mode = asked["path"], "regular"
            if path.endswith(LFS_SUFFIXES):
                mode = "lfs"
            known = _describe(path, files[path]) if path in files else {}
            answer = {"path": path, "uploadMode": mode, "shouldIgnore": False}
            answers.append(answer | {"oid": known.get("lfs", known).get("oid")})
        self._send_json({"files": answers})

    def batch(self, name: str) -> None:
        self._require_writer(name.partition("/")[0])
        objects = []
        for asked in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.server.url}/lfs/{asked['oid']}", "header": {}}
            known = asked["oid"] in self.server.blobs
            objects.append(asked | ({} if known else {"actions": {"upload": upload}}))
        self._send_json({"transfer": "basic", "objects": objects})

    def put_blob(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refusal(400, message="The content has another SHA-256")
        self.server.blobs[oid] = self.body
        self._send()

    def commit(self, kinds: str, name: str, branch: str) -> None:
        self._require_writer(name.partition("/")[0])
        repository = self._find(kinds[:-1], name)
        if branch not in repository.branches:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        files = dict(repository.commits[repository.branches[branch]])
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                if value.get("parentCommit") not in (None, repository.branches[branch]):
                    raise _Refusal(412, message="A commit has happened since")
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            else:
                del files[value["path"]]
        oid = repository.commit(files, branch)
        self._send_json({"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid})

    def branch(self, kinds: str, name: str, branch: str) -> None:
        self._require_writer(name.partition("/")[0])
        repository = self._find(kinds[:-1], name)
        if branch in repository.branches:
            raise _Refusal(409, message="Reference already exists")
        repository.branches[branch] = repository.branches["main"]
        self._send_json({})

    def resolve(self, prefix: str, name: str, revision: str, path: str) -> None:
        kind = "dataset" if prefix else "model"
        oid, files = self._find_files(kind, name, revision)
        # What there is may be seen by all.
        if self._find(kind, name).gated and self._user != name.partition("/")[0]:
            raise _Refusal(403 if self._user else 401, "GatedRepo", "Access is restricted.")
        if path not in files:
            raise _Refusal(404, "EntryNotFound", "Entry not found")
        content = files[path]
        described = _describe(path, content)
        headers = {"X-Repo-Commit": oid, "ETag": f'"{described["oid"]}"'}
        if "lfs" not in described:
            if self.command == "GET":
                self.server.fetched.append(path)
            return self._send(content, headers=headers)
        digest = described["lfs"]["oid"]
        self._send(
            status=302,
            headers=headers
            | {
                "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(len(content)),
                # Of another name: the client follows redirects within the hub before it looks.
                "Location": f"{self.server.url.replace('127.0.0.1', 'localhost')}"
                f"/storage/{digest}/{path}",
            },
        )

    def send_blob(self, digest: str, path: str) -> None:
        if self.command == "GET":
            self.server.fetched.append(path)
        self._send(self.server.blobs[digest], headers={"ETag": f'"{digest}"'})


def _describe(path: str, content: bytes) -> dict[str, Any]:
    """Returns a file as the hub lists it: its hash as a blob of git, or that of LFS."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    described = {"type": "file", "path": path, "size": len(content), "oid": blob}
    if path.endswith(LFS_SUFFIXES):
        digest = hashlib.sha256(content).hexdigest()
        described["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
    return described


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES: list[tuple[str, str, Any]] = [
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("GET", f"/api/(models|datasets)/{_NAME}", _Handler.info),
    ("GET", f"/api/(models|datasets)/{_NAME}/revision/([^/]+)", _Handler.info),
    ("GET", f"/api/(models|datasets)/{_NAME}/tree/([^/]+)", _Handler.tree),
    ("POST", f"/api/(models|datasets)/{_NAME}/preupload/([^/]+)", _Handler.preupload),
    ("POST", f"/api/(models|datasets)/{_NAME}/commit/([^/]+)", _Handler.commit),
    ("POST", f"/api/(models|datasets)/{_NAME}/branch/([^/]+)", _Handler.branch),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", "/lfs/([0-9a-f]+)", _Handler.put_blob),
    ("GET HEAD", f"/(datasets/)?{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
    ("GET HEAD", "/storage/([0-9a-f]+)/(.+)", _Handler.send_blob),
]


@contextlib.contextmanager
def start_hub() -> Iterator[Hub]:
    """Starts a hub on a free port."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


def use_hub(patch: pytest.MonkeyPatch, url: str, cache: Path, token: str | None = None) -> None:
    """Makes the client of this process use a hub and a cache, as its environment variables do.

    It has read these when it was imported. Uploads go by LFS: the protocol of Xet's storage, which
    the client prefers, is a program of its own.
    """
    patch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.delenv("HF_TOKEN", raising=False)
    if token is not None:
        patch.setenv("HF_TOKEN", token)
    huggingface_hub.close_session()

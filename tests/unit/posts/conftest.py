"""A server that speaks the chat-completions protocol over real HTTP, by a script of answers."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tessella.posts.image_language import ImageLanguage
from tessella.posts.language_model import LanguageModel
from tessella.posts.request import PostRequest
from tessella.text import TextSettings, TextTokenizer
from tessella.text.vocabulary import summarize_captions

# Four subjects in two styles, as captions of stickers are.
SUBJECTS = ("octopus", "bread", "croissant", "birthday cake", "coffee", "blue bird", "red heart")
CAPTIONS = [f"{subject}, {style} emoji" for style in ("flat", "3d") for subject in SUBJECTS]


@dataclass(frozen=True)
class Answer:
    """What the server sends once."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    wait_seconds: float = 0.0  # before it answers
    trickles: bool = False  # the body is the beginning of an answer, headers too; it never ends


@dataclass
class ChatServer:
    """Answers by its script, and records its requests."""

    script: list[Answer] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    @staticmethod
    def answer(body: bytes, status: int = 200, **how: Any) -> Answer:
        """Anything at all."""
        return Answer(body, status, **how)

    @staticmethod
    def say(content: Any, **more: Any) -> Answer:
        """A completion with this content."""
        finish = more.pop("finish_reason", "stop")
        message = {"role": "assistant", "content": content, **more}
        choice = {"index": 0, "message": message, "finish_reason": finish}
        completion = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "tiny",
            "choices": [choice],
        }
        return Answer(json.dumps(completion).encode())

    @staticmethod
    def draft(**changes: Any) -> dict[str, Any]:
        """A good post, or one with faults."""
        good = {
            "text": "Fresh bread every morning.",
            "hashtags": ["bread", "bakery"],
            "alt_text": "A loaf of bread.",
            "label": "bread, flat emoji",
        }
        return good | changes

    @classmethod
    def say_posts(cls, *drafts: dict[str, Any]) -> Answer:
        """A completion with posts."""
        return cls.say(json.dumps({"posts": drafts}))

    @staticmethod
    def fail(status: int, message: str = "no", **headers: str) -> Answer:
        """An error."""
        error = {"error": {"message": message, "type": "x", "code": None}}
        return Answer(json.dumps(error).encode(), status, headers)


@pytest.fixture
def chat_server() -> Iterator[ChatServer]:
    chat = ChatServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            chat.requests.append(json.loads(self.rfile.read(length)))
            sent = {name.lower(): value for name, value in self.headers.items()}
            chat.headers.append({"path": self.path, **sent})
            answer = chat.script.pop(0) if chat.script else chat.fail(418, "no more")
            time.sleep(answer.wait_seconds)
            try:
                if answer.trickles:
                    self.wfile.write(answer.body)
                while answer.trickles:
                    self.wfile.write(b" ")
                    time.sleep(0.005)
                self.send_response(answer.status)
                kinds = {"Content-Type": "application/json", **answer.headers}
                for name, value in {**kinds, "Content-Length": str(len(answer.body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)
            except OSError:
                pass  # the client has gone

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        chat.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield chat
        server.shutdown()
        thread.join()


Open = Callable[..., LanguageModel]


@pytest.fixture
def open_model(chat_server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Opens a language model at the server; waits between its own tries are skipped."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tessella.posts.chat_client._FIRST_PAUSE_SECONDS", 0.0)

    def open_model(
        script: Sequence[Answer], max_retries: int | None = None, **how: Any
    ) -> LanguageModel:
        if max_retries is not None:
            monkeypatch.setattr("tessella.posts.chat_client._MAX_RETRIES", max_retries)
        chat_server.script = list(script)
        return LanguageModel.open("tiny", **{"base_url": chat_server.url, **how})

    return open_model


@pytest.fixture(scope="session")
def text_tokenizer() -> TextTokenizer:
    return TextTokenizer.train(CAPTIONS, TextSettings(max_tokens=16))


@pytest.fixture(scope="session")
def language(text_tokenizer: TextTokenizer) -> ImageLanguage:
    # As of a data set in which each subject is rare.
    summary = summarize_captions(CAPTIONS * 2, text_tokenizer)
    words = {word: (n if n > 4 else 1) for word, n in summary.words.items()}
    return ImageLanguage(text_tokenizer, type(summary)(40, words, summary.examples))


@pytest.fixture(scope="session")
def ask() -> Callable[..., PostRequest]:
    """Asks for posts, as it should be or otherwise."""

    def ask(**changes: Any) -> PostRequest:
        how = {"platform": "instagram", "tone": "warm", "seed": 0} | changes
        business = how.pop("business", "Bluebird Bakery")
        about = how.pop("about", "We bake bread and croissants. Our coffee is strong.")
        return PostRequest.create(business, about, **how)

    return ask

"""Small runs for the campaigns against faults: commands in forked processes, what they leave.

Python and torch take seconds to start, a small run takes less. So a campaign imports everything
once and forks for each command; a fork begins without threads, as a new process does.
"""

import contextlib
import gc
import hashlib
import io
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # the optimizer imports it, seconds long: before a fork, not in each
from torch.utils.tensorboard import SummaryWriter  # noqa: F401  the same

from tessella.cli import app
from tessella.data.scenes import canonical_caption, draw_scene, sample_scene
from tessella.images import save_png
from tessella.training import fit  # noqa: F401  the same

SIZE = 16
SETTINGS = {
    "data.image_size": SIZE,
    "precision": "fp32",
    "tokenizer.patch": 4,
    "tokenizer.widths": "[16]",
    "tokenizer.quantizer.codebook_size": 16,
    "transformer.width": 16,
    "transformer.depth": 2,
    "transformer.heads": 1,
    "transformer.dropout": 0.1,
    "retrieval.neighbors": 1,
    "generation.steps": 2,
    **{
        f"{stage}_training.{name}": value
        for stage in ("tokenizer", "transformer")
        # After every step, so that the same things are written in each run.
        for name, value in {"batch_size": 8, "save_every_seconds": 1e-9}.items()
    },
}
WEIGHTS = ("tokenizer.safetensors", "transformer.safetensors")
EXAMPLES = ("examples.safetensors", "examples.jsonl")
_PASSING = re.compile(r"\.(tmp|old)-tessella-|\.partial\.|\.units$|\.old\.jsonl$")
_UNCLEAR = re.compile(r"Traceback|Run again with --debug|Fatal Python error|no message")
_EVENTS = re.compile(r"events\.out\.tfevents\..*")
HANG_SECONDS = 180.0


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int  # exit status; negative: the signal that ended it
    out: str
    err: str
    seconds: float

    @property
    def problems(self) -> list[str]:
        """What is wrong with the way it ended: only success and an error in words are right."""
        found = []
        is_mute = self.status == 1 and "Error: " not in self.err
        if _UNCLEAR.search(self.err) or "Traceback" in self.out or is_mute:
            found.append(f"unclear: {self.err.strip()[-400:]}")
        if self.status not in (0, 1, 2, 130, -signal.SIGKILL):
            found.append(f"unclear: it ended with {self.status}: {self.err.strip()[-300:]}")
        return found


@dataclass
class Process:
    """A command that runs in a process of its own."""

    pid: int
    folder: Path  # of its output
    began: float = field(default_factory=time.monotonic)
    ended: int | None = None

    def poll(self) -> int | None:
        """Returns how it ended, as `Ended.status`; None while it runs."""
        if self.ended is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.ended = os.waitstatus_to_exitcode(status)
        return self.ended

    def send(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Waits for its end; one that hangs is killed, and its status is -SIGABRT."""
        while self.poll() is None:
            if time.monotonic() - self.began > HANG_SECONDS:
                self.send(signal.SIGKILL)
                os.waitpid(self.pid, 0)
                self.ended = -signal.SIGABRT
            time.sleep(0.005)
        texts = [
            (self.folder / name).read_text(encoding="utf-8", errors="replace")
            for name in ("out", "err")
        ]
        shutil.rmtree(self.folder, ignore_errors=True)
        return Ended(self.ended or 0, texts[0], texts[1], time.monotonic() - self.began)


def start(words: Sequence[str], before: Callable[[], object] | None = None) -> Process:
    """Starts a command of tessella.

    Args:
        words: after `tessella`.
        before: is called in the new process first.
    """
    folder = Path(tempfile.mkdtemp(prefix="fault-"))
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Process(pid, folder)
    status = 99
    try:
        gc.disable()  # it ends soon
        os.setsid()
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
        if before is not None:
            before()
        app(list(words), prog_name="tessella")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001  what Python would do with it
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def run(words: Sequence[str], before: Callable[[], object] | None = None) -> Ended:
    """Runs a command of tessella to its end."""
    return start(words, before).wait()


def fit_words(
    data: Path, out: Path, *, command: str = "fit", images: int = 16, seed: int = 0
) -> list[str]:
    """Returns the words of a small `fit`."""
    words = [command, str(data), "--out", str(out), "--seed", str(seed)]
    lengths = {f"{stage}_training.images": images for stage in ("tokenizer", "transformer")}
    for name, value in {**SETTINGS, **lengths}.items():
        words += ["--set", f"{name}={value}"]
    return words


def draw_data(folder: Path, count: int, *, first: int = 0) -> Path:
    """Draws pictures with captions into a folder; returns it."""
    for number in range(first, first + count):
        scene = sample_scene(np.random.default_rng(number))
        save_png(folder / f"{number:03d}.png", draw_scene(scene, SIZE))
        # Not a scene's own words: whether scenes are right would be measured, on thousands of them.
        caption = f"drawing {number}: {canonical_caption(scene)}"
        (folder / f"{number:03d}.txt").write_text(caption, encoding="utf-8")
    return folder


def hash_files(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Hashes files of a folder; one that is not there has no hash."""
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()[:16]
        for name in names
        if (folder / name).is_file()
    }


def hash_model(folder: Path) -> dict[str, str]:
    """Hashes what a model paints with: weights, examples, vocabulary, settings."""
    return hash_files(folder, (*WEIGHTS, *EXAMPLES, "text_tokenizer.json", "config.json"))


def list_files(folder: Path) -> set[str]:
    """Lists the files of a folder; TensorBoard's, one a process, count as one."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return {_EVENTS.sub("events", path.as_posix()) for path in paths}


def list_passing(folder: Path) -> list[str]:
    """Lists what is there only while something is written."""
    paths = folder.rglob("*")
    return sorted(str(p.relative_to(folder)) for p in paths if _PASSING.search(p.name))


def list_temporary(folder: Path) -> list[str]:
    """Lists temporary names: a process that ends by itself leaves none."""
    return [name for name in list_passing(folder) if "-tessella-" in name]


def read_notes(path: Path) -> dict[str, object]:
    """Reads what a process noted; nothing if it did not come to it."""
    try:
        notes: dict[str, object] = json.loads(path.read_bytes())
        return notes
    except (OSError, ValueError):
        return {}


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """Yields an empty folder, with one thread for torch and all imported that a run needs."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="tessella-faults-") as folder:
        place = Path(folder)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            app(fit_words(draw_data(place / "warm" / "data", 12), place / "warm" / "run"))
        shutil.rmtree(place / "warm")
        gc.freeze()  # a forked process then shares what is here
        yield place

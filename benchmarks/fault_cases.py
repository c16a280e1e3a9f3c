"""What the campaign against faults compares with, and how a case is judged."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from PIL import Image

from fault_injection import Injector
from fault_runs import (
    Ended,
    draw_data,
    fit_words,
    list_files,
    list_passing,
    list_temporary,
    read_notes,
    run,
)
from tessella.training.checkpoint import read_images_seen

_VOLATILE = re.compile(r"(metrics|units)\.jsonl$|tfevents|report\.html$|\.lock$|events$")
_TEMPORARY = re.compile(r"\.tmp-tessella-[0-9a-f]+-\d+-[0-9a-f]+")


@dataclass(frozen=True)
class Problem:
    """What is wrong with the way a case ended."""

    kind: str  # state_lost, unclear_errors, left_behind
    text: str


@dataclass
class Outcome:
    """How a case ended."""

    name: str
    ending: str  # same: nobody noticed; refused: with words; ended: by a signal
    problems: list[Problem] = field(default_factory=list)


@dataclass
class Scenario:
    """A command, what it writes, and what must be there in the end."""

    name: str
    words: list[str]
    target: Path  # the folder that it writes
    origin: Path | None  # what the folder is before; None: it is not there
    finish: list[str] = field(default_factory=list)  # the command again, without a fault
    finished: Path | None = None  # what the folder is after it, undisturbed
    usable: Callable[[], list[Problem]] | None = None  # whether what is there still works

    def reset(self) -> None:
        """Makes the folder as it is before the command."""
        shutil.rmtree(self.target, ignore_errors=True)
        if self.origin is not None:
            shutil.copytree(self.origin, self.target)


@dataclass
class Bench:
    """The undisturbed runs, and what is known from earlier cases."""

    place: Path
    data: Path  # captioned pictures
    more: Path  # others
    run: Path  # finished
    tokenizer: Path  # a run after `fit-tokenizer`
    other: Path  # finished, of another seed
    every: int  # try every n-th case
    jobs: int  # processes that share the cases
    job: int = 0  # number of this one
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """By scenario, what its command does to files."""
    _painted: dict[Path, str] = field(default_factory=dict)
    _number: int = 0

    @property
    def work(self) -> Path:
        """Where this process tries its cases."""
        return self.place / f"job-{self.job}"

    def is_chosen(self) -> bool:
        """Says whether the next case is tried, and here."""
        self._number += 1
        turn, rest = divmod(self._number, self.every)
        return not rest and turn % self.jobs == self.job

    def scenarios(self) -> Iterator[Scenario]:
        """Yields every command that writes."""
        out = self.work / "run"
        for command, origin, finished in (
            ("fit-tokenizer", None, self.tokenizer),
            ("fit-transformer", self.tokenizer, self.run),
        ):
            words = fit_words(self.data, out, command=command)
            yield Scenario(command, words, out, origin, words, finished)
        model = self.work / "model"
        words = ["examples", "add", str(model), str(self.more)]
        yield self._complete(
            Scenario("examples-add", words, model, self.run / "model", words), usable=True
        )
        words = ["export", str(self.run / "model"), "--out", str(model)]
        yield self._complete(Scenario("export", words, model, None, [*words, "--force"]))
        words = ["export", str(self.other / "model"), "--out", str(model), "--force"]
        yield self._complete(
            Scenario("export-over", words, model, self.run / "model", words), usable=True
        )
        words = ["report", str(out)]
        yield self._complete(Scenario("report", words, out, self.run, words))
        picture = self.work / "pictures"
        words = ["generate", "a red circle", "--model", str(self.run), "--out", str(picture)]
        yield self._complete(Scenario("generate", words, picture, None, [*words, "--force"]))

    def _complete(self, scenario: Scenario, *, usable: bool = False) -> Scenario:
        """Runs the command undisturbed, once, to know what is there afterwards."""
        scenario.finished = self.place / "finished" / scenario.name
        if not scenario.finished.exists():
            scenario.reset()
            ended = run(scenario.words)
            if ended.status:
                raise SystemExit(f"{scenario.name} fails without a fault: {ended.err}")
            shutil.copytree(scenario.target, scenario.finished)
        if usable and scenario.origin is not None:
            for folder in (scenario.origin, scenario.finished):
                if folder not in self._painted:
                    self._painted[folder] = self.paint(folder)
            known = {self._painted[scenario.origin], self._painted[scenario.finished]}
            scenario.usable = lambda: self.check_paints(scenario.target, known)
        return scenario

    def paint(self, model: Path) -> str:
        """Paints with a model; returns the picture's hash, or what it said."""
        out = self.work / "painted"
        shutil.rmtree(out, ignore_errors=True)
        words = ["generate", "drawing a red circle", "--model", str(model), "--out", str(out)]
        ended = run(words)
        if ended.status:
            return f"{ended.status}: {ended.err.strip()}"
        return hash_picture(out)

    def check_paints(self, model: Path, known: set[str]) -> list[Problem]:
        """Checks that a model paints as it did before the command, or does after it."""
        painted = self.paint(model)
        return [] if painted in known else [Problem("state_lost", f"it does not paint: {painted}")]

    def judge(
        self, scenario: Scenario, ended: Ended, name: str, *, reaches: bool = True
    ) -> Outcome:
        """Judges how a command ended and what it left, and finishes from there.

        Args:
            scenario: what was run.
            ended: how.
            name: of the case.
            reaches: whether the process still found its folder when it ended.
        """
        ending = {0: "same", 1: "refused", 2: "refused"}.get(ended.status, "ended")
        problems = [Problem("unclear_errors", text) for text in ended.problems]
        target = scenario.target
        if reaches and ended.status >= 0 and (left := list_temporary(target)):
            problems.append(Problem("left_behind", f"at once: {', '.join(left)}"))
        # One file a state, since several processes share them.
        settled = self.place / "settled" / f"{scenario.name}-{hash_state(target)}"
        if not settled.exists():
            found = [asdict(problem) for problem in self._finish(scenario)]
            settled.with_suffix(f".{self.job}").write_text(json.dumps(found), encoding="utf-8")
            settled.with_suffix(f".{self.job}").replace(settled)
        known = json.loads(settled.read_text(encoding="utf-8"))
        return Outcome(name, ending, problems + [Problem(**one) for one in known])

    def _finish(self, scenario: Scenario) -> list[Problem]:
        """Runs the command again and compares what is there with what should be."""
        problems = scenario.usable() if scenario.usable is not None else []
        ended = run(scenario.finish)
        if ended.status:
            text = f"again it ended with {ended.status}: {ended.err.strip()[-400:]}"
            return [*problems, Problem("state_lost", text)]
        if "damaged" in ended.err:
            problems.append(Problem("state_lost", f"half-written: {ended.err.strip()[-400:]}"))
        return [*problems, *compare(scenario.target, scenario.finished)]


def hash_picture(folder: Path) -> str:
    """Hashes the pixels of the only picture in a folder; its texts name the model."""
    [path] = folder.rglob("*.png")
    with Image.open(path) as image:
        return hashlib.sha256(image.tobytes()).hexdigest()


def compare(target: Path, finished: Path | None) -> list[Problem]:
    """Compares a folder with what it should be."""
    problems = []
    if finished is None:
        return []
    if left := list_passing(target):
        problems.append(Problem("left_behind", ", ".join(left)))
    names, expected = list_files(target), list_files(finished)
    if missing := expected - names:
        problems.append(Problem("state_lost", f"missing: {sorted(missing)}"))
    if more := names - expected - set(left):
        problems.append(Problem("left_behind", f"more: {sorted(more)}"))
    for name in sorted(names & expected):
        if _VOLATILE.search(name):
            continue
        if (target / name).read_bytes() != (finished / name).read_bytes():
            problems.append(Problem("state_lost", f"another content: {name}"))
    return problems


def hash_state(folder: Path) -> str:
    """Hashes all that a command finds in a folder; of logs, only how many lines they have."""
    digest = hashlib.sha256()
    paths = [path for path in folder.rglob("*") if not path.is_dir()] if folder.exists() else []
    described = []
    for path in paths:
        name = _TEMPORARY.sub("temporary", path.relative_to(folder).as_posix())
        content = path.read_bytes()
        if _VOLATILE.search(name):
            is_log = name.endswith("jsonl")
            content = str([content.count(b"\n"), content[-1:]] if is_log else []).encode()
            name = re.sub(r"events\.out.*", "events", name)
        described.append(f"{name} {hashlib.sha256(content).hexdigest()}")
    digest.update("\n".join(sorted(set(described))).encode())
    return digest.hexdigest()


def run_faulty(
    bench: Bench, scenario: Scenario, injector: Injector
) -> tuple[Ended, dict[str, object], list[Problem]]:
    """Runs a command with a fault; returns how it ended, what was noted, which checkpoints went."""
    scenario.reset()
    notes = bench.work / "notes.json"
    notes.unlink(missing_ok=True)

    def before() -> None:
        injector.notes = notes
        injector.install()

    ended = run(scenario.words, before)
    noted = read_notes(notes)
    return ended, noted, find_lost(noted)


def find_lost(noted: dict[str, object]) -> list[Problem]:
    """Finds checkpoints that had their names, and are not there any more."""
    problems = []
    finished = noted.get("finished", {})
    for folder, images in finished.items() if isinstance(finished, dict) else ():
        try:
            seen = read_images_seen(Path(folder)) if Path(folder).exists() else -1
        except Exception as error:  # noqa: BLE001  whatever it is, the checkpoint is lost
            seen, images = str(error), images  # type: ignore[assignment]
        if seen != images:
            problems.append(Problem("state_lost", f"checkpoint {images} of {folder}: {seen}"))
    return problems


def prepare(place: Path, every: int, jobs: int) -> Bench:
    """Makes the data and the undisturbed runs, and counts what each command does to files."""
    data = draw_data(place / "data", 12)
    more = draw_data(place / "more", 3, first=100)
    bench = Bench(place, data, more, place / "whole", place / "half", place / "other", every, jobs)
    for name in ("finished", "settled", *(f"job-{job}" for job in range(jobs))):
        (place / name).mkdir()
    out = bench.work / "run"

    def finish(words: Sequence[str]) -> None:
        ended = run(words)
        if ended.status:
            raise SystemExit(f"A run fails without a fault: {ended.err}")

    finish(fit_words(data, out))
    shutil.move(out, place / "plain")
    finish(fit_words(data, out, command="fit-tokenizer"))
    shutil.copytree(out, bench.tokenizer)
    finish(fit_words(data, out, command="fit-transformer"))
    shutil.move(out, bench.run)
    if problems := compare(place / "plain" / "model", bench.run / "model"):
        raise SystemExit(f"Both halves of a run are not the whole: {problems}")
    finish(fit_words(data, bench.other, seed=1))
    whole = Scenario("fit", fit_words(data, out), out, None)
    for scenario in (*bench.scenarios(), whole):
        noted = run_faulty(bench, scenario, Injector(scenario.target))[1]
        counts = noted.get("counts")
        bench.counts[scenario.name] = counts if isinstance(counts, dict) else {}
    return bench

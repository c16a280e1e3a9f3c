"""Damage to what was saved: every file of a checkpoint and of a model folder."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import tessella
from fault_cases import Bench, Outcome, Problem, Scenario, compare
from fault_runs import fit_words, run
from tessella.errors import TessellaError
from tessella.files import hash_tensors
from tessella.model.folder import read_captions
from tessella.training.checkpoint import load_latest_checkpoint

Damage = Callable[[Path, Path], None]
"""Damages a file, given another run's of the same name."""


def _flip(share: float) -> Damage:
    def flip(path: Path, other: Path) -> None:
        content = bytearray(path.read_bytes())
        content[min(int(share * len(content)), len(content) - 1)] ^= 0x10
        path.write_bytes(content)

    return flip


def _cut(share: float) -> Damage:
    def cut(path: Path, other: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: min(int(share * len(content)), len(content) - 1)])

    return cut


def _remove(path: Path, other: Path) -> None:
    path.unlink()


def _swap(path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


DAMAGES: Mapping[str, Damage] = {
    **{f"flipped at {share:.0%}": _flip(share) for share in (0, 0.25, 0.5, 0.75, 1)},
    **{f"cut at {share:.0%}": _cut(share) for share in (0.1, 0.5, 1)},
    "emptied": _cut(0),
    "missing": _remove,
    "swapped": _swap,
}


def try_damages(bench: Bench) -> Iterator[Outcome]:
    """Damages each file in each way."""
    yield from _try_models(bench)
    yield from _try_checkpoints(bench)
    yield from _try_whole_runs(bench)


def _each(folder: Path, bench: Bench) -> Iterator[tuple[str, str, Damage]]:
    """Yields the chosen damages of a folder's files: name of the case, file, damage."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            for name, damage in DAMAGES.items():
                if bench.is_chosen():
                    relative = path.relative_to(folder).as_posix()
                    yield f"{relative} {name}", relative, damage


def _try_models(bench: Bench) -> Iterator[Outcome]:
    """A damaged model paints as before, or is refused."""
    model, good = bench.work / "model", bench.run / "model"
    expected, wrong = _paint(good), [Problem("state_lost", "another picture, without a word")]
    for name, relative, damage in _each(good, bench):
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(good, model)
        damage(model / relative, bench.other / "model" / relative)
        yield _judge(f"model {name}", lambda: [] if _paint(model) == expected else wrong)


def _paint(folder: Path) -> bytes:
    """Paints with a model, and reads what else a person sees of it."""
    model = tessella.load(folder, device="cpu")
    read_captions(folder)
    [picture] = model.generate("drawing a red circle", seed=0)
    return picture.tobytes()


def _try_checkpoints(bench: Bench) -> Iterator[Outcome]:
    """With a damaged checkpoint a run goes on from a good one: the same, or the one before."""
    for stage in ("tokenizer", "transformer"):
        good = bench.run / stage / "checkpoints"
        known = [_read_all(good)]
        newest = max(path.name for path in good.iterdir())
        folder = bench.work / "checkpoints"
        _copy(good, folder)
        shutil.rmtree(folder / newest)
        known.append(_read_all(folder))
        for name, relative, damage in _each(good, bench):
            _copy(good, folder)
            damage(folder / relative, bench.other / stage / "checkpoints" / relative)

            def read(folder: Path = folder, known: list[str] = known) -> list[Problem]:
                is_good = _read_all(folder) in known
                return [] if is_good else [Problem("state_lost", "it is another state")]

            outcome = _judge(f"{stage} {name}", read)
            if outcome.ending == "refused":
                outcome.problems.append(Problem("state_lost", "no good one was found"))
            yield outcome


def _read_all(folder: Path) -> str:
    """Hashes the newest good checkpoint."""
    state = load_latest_checkpoint(folder)
    if state is None:
        return "none"
    return f"{state.images_seen} {sorted(state.info.items())} {hash_tensors(state.tensors)}"


def _copy(good: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)


def _judge(name: str, use: Callable[[], list[Problem]]) -> Outcome:
    """Judges what comes of using something damaged, in this process."""
    try:
        problems = use()
        return Outcome(name, "same", problems)
    except TessellaError as error:
        is_mute = not str(error).strip()
        mute = [Problem("unclear_errors", "an error without words")]
        return Outcome(name, "refused", mute if is_mute else [])
    except Exception as error:  # noqa: BLE001  that is what is looked for
        text = f"{type(error).__name__}: {error}"
        return Outcome(name, "refused", [Problem("unclear_errors", text)])


def _try_whole_runs(bench: Bench) -> Iterator[Outcome]:
    """`fit` with the newest checkpoint of a stage damaged, and with all of them."""
    out = bench.work / "run"
    words = fit_words(bench.data, out)
    scenario = Scenario("all", words, out, bench.run)
    for stage in ("tokenizer", "transformer"):
        for count in (1, 2):
            if not bench.is_chosen():
                continue
            scenario.reset()
            shutil.rmtree(out / "model")  # so that the weights are needed
            folder = out / stage / "checkpoints"
            for path in sorted(folder.iterdir(), reverse=True)[:count]:
                _flip(0.5)(path / "state.safetensors", path)
            before = sorted(path.relative_to(out) for path in folder.rglob("*"))
            ended = run(words)
            problems = [Problem("unclear_errors", text) for text in ended.problems]
            after = sorted(path.relative_to(out) for path in folder.rglob("*"))
            if count == 1:
                if ended.status:
                    problems.append(Problem("state_lost", ended.err.strip()[-300:]))
                else:
                    problems += compare(out / "model", bench.run / "model")
            elif not ended.status or before != after:
                problems.append(Problem("state_lost", "damaged checkpoints were taken or removed"))
            ending = "refused" if ended.status else "same"
            yield Outcome(f"{count} of {stage} flipped", ending, problems)

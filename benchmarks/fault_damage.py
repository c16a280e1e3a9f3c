"""Damage to what was saved: every file of a checkpoint and of a model folder."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from fault_cases import Bench, Outcome, Problem, Scenario, compare, hash_picture
from fault_runs import Ended, fit_words, run

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
    yield from _try_all_checkpoints(bench)


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
    model, good = bench.place / "work" / "model", bench.run / "model"
    expected = bench.paint(good)
    for name, relative, damage in _each(good, bench):
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(good, model)
        damage(model / relative, bench.other / "model" / relative)
        out = bench.place / "painted"
        shutil.rmtree(out, ignore_errors=True)
        words = ["generate", "drawing a red circle", "--model", str(model), "--out", str(out)]
        ended = run(words)
        problems = [Problem("unclear_errors", text) for text in ended.problems]
        if not ended.status and hash_picture(out) != expected:
            problems.append(Problem("state_lost", "it paints another picture without a word"))
        yield Outcome(f"model {name}", _ending(ended), problems)


def _try_checkpoints(bench: Bench) -> Iterator[Outcome]:
    """With a damaged checkpoint a run ends in the same weights, or is refused."""
    out = bench.place / "work" / "run"
    for stage, command, origin in (
        ("tokenizer", "fit-tokenizer", bench.tokenizer),
        ("transformer", "fit-transformer", bench.run),
    ):
        words = fit_words(bench.data, out, command=command)
        scenario = Scenario(command, words, out, origin, words, origin)
        folder = f"{stage}/checkpoints"
        for name, relative, damage in _each(origin / folder, bench):
            scenario.reset()
            shutil.rmtree(out / "model", ignore_errors=True)  # so that the weights are needed
            damage(out / folder / relative, bench.other / folder / relative)
            ended = run(words)
            problems = [Problem("unclear_errors", text) for text in ended.problems]
            if ended.status:
                problems.append(Problem("state_lost", ended.err.strip()[-300:]))
            elif (out / "model").exists() == (origin / "model").exists():
                problems += _compare_weights(out, origin)
            else:
                problems.append(Problem("state_lost", "no model"))
            yield Outcome(f"{folder} {name}", _ending(ended), problems)


def _try_all_checkpoints(bench: Bench) -> Iterator[Outcome]:
    """With every checkpoint damaged a run is refused, and what is there stays."""
    out = bench.place / "work" / "run"
    words = fit_words(bench.data, out, command="fit-transformer")
    scenario = Scenario("all", words, out, bench.run)
    for name, damage in DAMAGES.items():
        for file in ("state.safetensors", "checkpoint.json"):
            if not bench.is_chosen():
                continue
            scenario.reset()
            folder = out / "transformer" / "checkpoints"
            for path in folder.rglob(file):
                damage(path, bench.other / path.relative_to(out))
            before = sorted(path.relative_to(out) for path in folder.rglob("*"))
            ended = run(words)
            problems = [Problem("unclear_errors", text) for text in ended.problems]
            after = sorted(path.relative_to(out) for path in folder.rglob("*"))
            if not ended.status:  # such as without the last line end of JSON
                problems += compare(out, bench.run)
            elif before != after:
                problems.append(Problem("state_lost", "damaged checkpoints were removed"))
            yield Outcome(f"all {file} {name}", _ending(ended), problems)


def _compare_weights(out: Path, origin: Path) -> list[Problem]:
    names = [
        path.relative_to(origin)
        for path in origin.rglob("*.safetensors")
        if "checkpoints" not in path.parts
    ]
    return [
        Problem("state_lost", f"another content: {name}")
        for name in names
        if not (out / name).exists() or (out / name).read_bytes() != (origin / name).read_bytes()
    ]


def _ending(ended: Ended) -> str:
    return {0: "same", 1: "refused", 2: "refused"}.get(ended.status, "ended")

"""The folder of a run: its layout, its lock, and run.json with the settings that it began with.

RUN/run.json                what was asked for, and the recipe that the run follows
RUN/.lock                   locked while a process trains in the run
RUN/text_tokenizer.json     the vocabulary, or which frozen encoder is in RUN/text_encoder/
RUN/text/                   a frozen encoder's features of every caption
RUN/data/                   the cache of checked images; skipped.jsonl
RUN/tokenizer/              stage 1: checkpoints, metrics.jsonl, tensorboard, samples;
                            after fit-tokenizer a model folder without a transformer
RUN/codes/                  the codes of every image
RUN/transformer/            stage 2: checkpoints, metrics.jsonl, tensorboard, samples
RUN/nearest.png, .json      generated pictures beside the nearest training pictures, and beside
                            the examples that they looked at, if measured
RUN/model/                  the finished model
RUN/report.html             curves, pictures and numbers on one page

`runs/record.py`, which reads runs, has the names.
"""

import contextlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import Any

from tessella.config import build, changed_settings, merge, read_config
from tessella.data.cache import read_manifest
from tessella.data.prepare import describe_data
from tessella.errors import CheckpointError, ConfigError
from tessella.files import is_locked, lock, write_json
from tessella.runs import record
from tessella.training.recipe import Recipe

RUN_FORMAT = 3
"""Of run.json and the checkpoints; goes up when an older run can no longer be resumed."""

# Asking whether a run is locked holds its lock for a moment.
_LOCK_SECONDS = 0.2
# What a run writes before it has a run.json, besides hidden files.
_BEFORE_RUN_FILE = {record.DATA_FOLDER, f"{record.DATA_FOLDER}.skipped.jsonl", record.TEXT_FOLDER}


def lock_run(out: Path) -> AbstractContextManager[object]:
    """Makes a run's folder and keeps other processes from training in it until it is left.

    Raises:
        ConfigError: another process trains there, or the folder cannot be used.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        return lock(out / record.LOCK_FILE, wait_seconds=_LOCK_SECONDS).acquire()
    except TimeoutError:
        raise _is_taken(out) from None
    except OSError as error:
        raise ConfigError(
            f"Cannot use the run's folder: `{out}`; {error.strerror}. Choose another --out."
        ) from None


def require_free(out: Path) -> None:
    """Refuses a folder in which another process trains, without making or locking it.

    Raises:
        ConfigError: another process trains there.
    """
    with contextlib.suppress(OSError):  # `lock_run` says what is wrong
        if is_locked(out / record.LOCK_FILE, wait_seconds=_LOCK_SECONDS):
            raise _is_taken(out)


def _is_taken(out: Path) -> ConfigError:
    return ConfigError(
        f"Another process is training in this folder: `{out}`. Wait for it, stop it, or "
        "choose another --out."
    )


def open_run(out: Path, asked: Mapping[str, Any]) -> Recipe | None:
    """Reads the recipe of the run in a folder, to resume it.

    Args:
        out: the run's folder; it need not exist.
        asked: `minutes`, `seed` and `recipe` as plain values. A run keeps the minutes that it
            began with if none are asked for now.

    Returns:
        The recipe that the run follows; None if a new run can begin there.

    Raises:
        CheckpointError: the run has another format.
        ConfigError: the run began with other settings, or the folder holds something else.
    """
    if not (out / record.RUN_FILE).exists():
        if out.exists() and not out.is_dir():
            raise ConfigError(f"The run's folder is a file: `{out}`. Choose another --out.")
        names = {path.name for path in out.iterdir()} if out.exists() else set()
        if any(not name.startswith(".") for name in names - _BEFORE_RUN_FILE):
            raise ConfigError(
                f"The folder holds something other than a run: `{out}`. Choose a new or empty "
                "--out."
            )
        return None
    run = read_config(out / record.RUN_FILE)
    if run.get("format") != RUN_FORMAT:
        raise CheckpointError(
            f"The run has format `{run.get('format')}`; this tessella resumes format {RUN_FORMAT}: "
            f"`{out}`. {_advise_on_other_format(out)}"
        )
    now = dict(asked)
    if now["minutes"] is None:
        now["minutes"] = run["asked"]["minutes"]
    # A setting that came later was not asked for.
    before = run["asked"] | {"recipe": merge(_defaults(), run["asked"]["recipe"])}
    changed = changed_settings(before, now)
    for name, (before, after) in changed.items():
        further = ""
        if (out / record.MODEL_FOLDER).exists():
            further = f" To train its finished model further, give a new --out and --from {out}."
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise ConfigError(
            f"The run began with other settings: `{out}` has {name.removeprefix('recipe.')} = "
            f"`{before}`, now it is `{after}`{more}. Use the same settings to resume it, or a new "
            f"--out to begin again.{further}"
        )
    return build(Recipe, {"retrieval": {"neighbors": 0}} | run["recipe"])


def read_data_facts(out: Path) -> Mapping[str, Any] | None:
    """Reads what a run trains on: from run.json, or of an older run from its cache, if it is there.

    Returns:
        As `tessella.data.prepare.describe_data`; None if it is not known.
    """
    facts = read_config(out / record.RUN_FILE).get("data")
    if facts:
        return dict(facts)
    manifest = read_manifest(out / record.DATA_FOLDER)
    return None if manifest is None else describe_data(manifest)


def _defaults() -> dict[str, Any]:
    return Recipe().model_dump(mode="json")


def write_run_file(
    out: Path,
    sources: Sequence[str],
    asked: Mapping[str, Any],
    recipe: Recipe,
    reasons: Mapping[str, str] | None = None,
    data: Mapping[str, Any] | None = None,
    processes: Mapping[str, Any] | None = None,
) -> None:
    """Writes run.json, which makes a folder a run.

    Args:
        out: the run's folder.
        sources: DATA, as on the command line.
        asked: what `open_run` compares when the run is resumed.
        recipe: what the run follows; its lengths may come from `minutes`.
        reasons: setting → why it was chosen, for people.
        data: fingerprints and counts of what it trains on, from `describe_data`.
        processes: that it began with: how many, on which devices.

    Raises:
        CheckpointError: it cannot be written.
    """
    run = {
        "format": RUN_FORMAT,
        "version": metadata.version("tessella"),
        "sources": list(map(str, sources)),
        "asked": dict(asked),
        "recipe": recipe.model_dump(mode="json"),
        "reasons": dict(reasons or {}),
        "data": dict(data or {}),
        "processes": dict(processes or {}),
    }
    write_json(out / record.RUN_FILE, run, what="the run's recipe")


def _advise_on_other_format(out: Path) -> str:
    """Says how to continue from a run that cannot be resumed."""
    if (out / record.MODEL_FOLDER).exists():
        return (
            "Its finished model still works. To train it further, give a new --out and "
            f"--from {out}."
        )
    if (out / record.TOKENIZER_MODEL_FOLDER).exists():
        return (
            "Its image tokenizer still works: choose a new --out and set "
            f"tokenizer_training.init_from to `{out}`."
        )
    return "Finish it with the version of tessella that began it, or choose a new --out."

"""Prepare: DATA becomes a checked, split, memory-mapped cache, once.

    sources ─ parts ─▶ units ─▶ assemble ─▶ cache ─▶ PreparedData(train, validation)

A cache of the same data and settings is used again at once. A new one is built under a temporary
name beside it (`tessella.files.new_folder`) and renamed when it is complete, so that a crash
leaves nothing that would be used but whole units, with which the next attempt begins.
"""

import contextlib
import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessella.data import cache
from tessella.data.assemble import assemble
from tessella.data.cache import CaptionedImages
from tessella.data.decode import NUM_PARAPHRASES
from tessella.data.places import refuse_stored
from tessella.data.records import Skipped
from tessella.data.settings import DataSettings
from tessella.data.sources import WHAT_DATA_MAY_BE, Source, describe_notes, recognise_all
from tessella.data.units import Units
from tessella.errors import CheckpointError, DataError
from tessella.files import lock, new_folder, remove_leftovers, write_json

Progress = Callable[[int, int | None], None]

# Pictures of these cannot be read again one by one, as `data.cache=codes` does.
_STORED_KINDS = ("parquet", "arrow", "zip")


@dataclass(frozen=True)
class PreparedData:
    """Captioned images, ready to train on."""

    train: CaptionedImages
    validation: CaptionedImages  # empty if the validation fraction is 0
    manifest: Mapping[str, Any]  # sources, settings and counts, as in manifest.json
    skipped: tuple[Skipped, ...]  # the files that were skipped, and why

    @property
    def sides(self) -> dict[str, CaptionedImages]:
        """Both sides of the split by name."""
        return {"train": self.train, "validation": self.validation}

    @property
    def readings(self) -> dict[str, int]:
        """How many pictures have their captions from where: "captions from train.csv, …"."""
        return dict(self.manifest.get("readings", {}))

    @property
    def notes(self) -> tuple[str, ...]:
        """What else was done to the data, in words."""
        return tuple(self.manifest.get("notes", ()))


def prepare(
    sources: Sequence[str | Source],
    settings: DataSettings,
    folder: Path,
    *,
    progress: Progress | None = None,
    expected: Mapping[str, Any] | None = None,
    known: Path | None = None,
) -> PreparedData:
    """Reads captioned images from DATA into a cache, or uses the cache that is there.

    Images with the same square pixels are never on both sides of the split. A side is chosen by
    hash; with a validation fraction above 0 and two different images, neither side is empty.

    Args:
        sources: paths, `scenes:N` or `scenes2:N`; see `tessella.data.sources`. Or recognised
            already.
        settings: image size, split and limits.
        folder: of the cache; replaced if the data or the settings changed.
        progress: called with the number of images done and of all, None if that is not known.
        expected: from `describe_data`: other pictures are refused, and the cache stays as it is.
        known: another cache: what it has of the same pictures is not decoded again.

    Raises:
        DataError: the data is not recognised, is not what is expected, too much of it is bad, the
            cache cannot be written, or the folder holds something else.
    """
    recognised = _recognise(sources, settings)
    for source in recognised if settings.cache == "codes" else ():
        if source.kind in _STORED_KINDS:
            raise refuse_stored(source.argument)
    check_place(folder, [source.argument for source in recognised])
    identity = _identify(recognised, settings)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # The others wait, then use the cache that the first one has built.
        with lock(folder.with_name(f".{folder.name}.lock")):
            remove_leftovers(folder.parent)
            manifest = cache.read_manifest(folder)
            if manifest is None or manifest["identity"] != identity:
                finished = folder if known is None or folder.exists() else known
                manifest = _build(
                    folder, recognised, settings, identity, progress, expected, finished
                )
            else:  # what a kill left that came after the cache had its name
                shutil.rmtree(_units_folder(folder), ignore_errors=True)
            _check_expected(manifest, expected)
    except CheckpointError as error:  # a full disk, or a folder that cannot be written
        raise DataError(str(error)) from error
    except OSError as error:
        raise DataError(
            f"Cannot write the cache: `{folder}` ({error.strerror}). Name another folder."
        ) from error
    skipped = cache.read_skipped(folder)
    _check_skipped(manifest["counts"]["images"], skipped, settings, folder)
    train, validation = (CaptionedImages(folder, side, manifest) for side in cache.SIDES)
    return PreparedData(train, validation, manifest, skipped)


def _identify(sources: Sequence[Source], settings: DataSettings) -> dict[str, Any]:
    """Gathers everything that determines the contents of a cache."""
    names = {"image_size", "validation_fraction", "split_by", "max_image_pixels"}
    # Since a setting was added, its default must not make an older cache another one.
    names |= set() if settings.named_splits else {"named_splits"}
    names |= set() if settings.cache == "pixels" else {"cache"}
    names |= set() if settings.caption_column is None else {"caption_column"}
    values = settings.model_dump(include=names)
    if any(source.kind == "scenes" for source in sources):
        values |= {"seed": settings.seed, "num_paraphrases": NUM_PARAPHRASES}
    return {"sources": [source.identity() for source in sources], "settings": values}


def _recognise(sources: Sequence[str | Source], settings: DataSettings) -> list[Source]:
    """Recognises what is not recognised yet."""
    given = [sources] if isinstance(sources, str) else list(sources)
    known = [source for source in given if isinstance(source, Source)]
    return known or recognise_all([str(source) for source in given], settings.caption_column)


def describe_data(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns, as plain values, what tells whether the pictures of a cache are still the same."""
    counts = {name: manifest["counts"][name] for name in ("images", *cache.SIDES)}
    return {"fingerprints": dict(manifest["fingerprints"]), **counts}


def _check_expected(manifest: Mapping[str, Any], expected: Mapping[str, Any] | None) -> None:
    """Raises if a cache does not hold the pictures that are expected."""
    if expected is None or manifest["fingerprints"] == expected["fingerprints"]:
        return
    now = describe_data(manifest)
    before, after = (
        f"{one['images']:,} images ({one['validation']:,} held out)" for one in (expected, now)
    )
    raise DataError(
        f"The data is not what the run began with: it had {before}, now there are {after}"
        f"{'' if before != after else ', of which some have changed'}. Nothing was changed. Use "
        "the data that the run began with, or choose a new --out to train on what is there now."
    )


def check_place(folder: Path, arguments: Sequence[str]) -> None:
    """Refuses to replace anything but a cache, and to write into the data.

    Args:
        folder: of the cache.
        arguments: DATA. They need not be there, and are not read.

    Raises:
        DataError: says what is in the way.
    """
    is_taken = folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
    if is_taken and not cache.is_cache(folder):
        raise DataError(
            f"The cache's folder holds something else: `{folder}`. "
            "Name another one, or empty it yourself."
        )
    for argument in arguments:
        root = Path(argument).expanduser()
        if root.is_dir() and folder.resolve().is_relative_to(root.resolve()):
            raise DataError(
                f"The cache would lie inside the data: `{folder}` in `{argument}`. "
                "Nothing is ever written there; name a folder outside it."
            )


def _build(
    folder: Path,
    sources: Sequence[Source],
    settings: DataSettings,
    identity: dict[str, Any],
    progress: Progress | None,
    expected: Mapping[str, Any] | None,
    finished: Path,
) -> dict[str, Any]:
    """Builds a cache under a temporary name, then renames it; returns its manifest.

    What a finished cache has of the same pictures is taken from there.

    Its units are kept beside it until then: an attempt that is killed is not lost.
    """
    work = _units_folder(folder)
    kept = "what is done is kept, and a cache that was there before is unchanged"
    with new_folder(folder, what="the cache of the data", kept=kept) as building:
        work.mkdir(exist_ok=True)
        try:
            remove_leftovers(work)
            units = Units(settings, work, finished / cache.UNITS, _count(sources, progress))
            manifest = _fill(building, units, sources, settings)
            manifest = {"format": cache.CACHE_FORMAT, "identity": identity, **manifest}
            try:
                _check_expected(manifest, expected)
            except DataError:
                shutil.rmtree(work, ignore_errors=True)  # a refused command changes nothing
                raise
        finally:
            with contextlib.suppress(OSError):
                work.rmdir()  # if nothing is in it
        write_json(building / cache.MANIFEST, manifest)
    shutil.rmtree(work, ignore_errors=True)
    return manifest


def _units_folder(folder: Path) -> Path:
    """Returns where the units of a cache are until it is complete."""
    return folder.with_name(f".{folder.name}.units")


def _count(sources: Sequence[Source], progress: Progress | None) -> Callable[[int], None]:
    """Returns what counts the records that are done, for the progress."""
    sizes = [source.count for source in sources]
    total = None if None in sizes else sum(filter(None, sizes))
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            # Captions without a picture are skipped too, but are not in the total.
            progress(done if total is None else min(done, total), total)

    return advance


def _fill(
    building: Path, units: Units, sources: Sequence[Source], settings: DataSettings
) -> dict[str, Any]:
    """Decodes everything into the files of a cache; returns what its manifest says of them."""
    notes = Counter[str]()
    found = [
        [
            unit
            for part in source.parts(settings.seed, settings.split_by)
            for unit in units.of_part(part, notes)
        ]
        for source in sources
    ]
    (building / cache.UNITS).mkdir()
    units.link(itertools.chain.from_iterable(found), building / cache.UNITS)
    values = assemble(building, units, found, settings)
    words = [note for source in sources for note in source.notes]
    files = sorted(path for path in building.rglob("*") if path.is_file())
    sizes = {path.relative_to(building).as_posix(): path.stat().st_size for path in files}
    return {**values, "notes": words + describe_notes(notes), "file_bytes": sizes}


def _check_skipped(
    num_images: int, skipped: Sequence[Skipped], settings: DataSettings, folder: Path
) -> None:
    """Raises if no image is left, or too many files were skipped."""
    bad, total = len(skipped), len(skipped) + num_images
    if num_images and bad <= settings.max_skipped_fraction * total:
        return
    if not bad:
        raise DataError(f"The data holds no images. {WHAT_DATA_MAY_BE}")
    counts = Counter(s.kind for s in skipped)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    examples = "; ".join(f"`{s.name}`: {s.reason.rstrip('.')}" for s in skipped[:3])
    raise DataError(
        f"Too many files were skipped: {bad} of {total} ({kinds}), at most "
        f"{settings.max_skipped_fraction:.0%} may be. The first: {examples}. All are listed in "
        f"`{folder / cache.SKIPPED}`. Fix or remove them, or raise data.max_skipped_fraction."
    )

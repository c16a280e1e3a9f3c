"""Prepare: DATA becomes a checked, split, memory-mapped cache, once.

    sources ─ records ─▶ decode ─▶ cache ─▶ PreparedData(train, validation)

Unchanged data and settings are used again at once. A cache is built beside its place under
another name (`tessella.files.new_folder`) and takes its name when it is whole, so that a crash
leaves nothing that would be used.
"""

import contextlib
import json
import shutil
from array import array
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tessella.data.cache import (
    FORMAT,
    MANIFEST,
    SIDES,
    SKIPPED,
    CacheWriter,
    CaptionedImages,
    Totals,
    is_cache,
    read_manifest,
    read_skipped,
    write_sides,
)
from tessella.data.decode import DIGEST_BYTES, NUM_PARAPHRASES
from tessella.data.records import Skipped
from tessella.data.settings import DataSettings
from tessella.data.sources import WHAT_DATA_MAY_BE, Source, recognise_all
from tessella.data.split import assign_sides, split_key
from tessella.data.workers import Batch, decode_records
from tessella.errors import CheckpointError, DataError
from tessella.files import lock, new_folder, write_json

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class PreparedData:
    """Captioned images, ready to learn from."""

    train: CaptionedImages
    validation: CaptionedImages  # empty if nothing was to be kept out
    manifest: Mapping[str, Any]  # sources, settings and counts, as in manifest.json
    skipped: tuple[Skipped, ...]  # what was left out, and why

    @property
    def sides(self) -> dict[str, CaptionedImages]:
        """Both sides of the split by name."""
        return {"train": self.train, "validation": self.validation}


def prepare(
    sources: Sequence[str],
    settings: DataSettings,
    folder: Path,
    *,
    progress: Progress | None = None,
) -> PreparedData:
    """Reads captioned images from DATA into a cache, or uses the cache that is there.

    Images with the same square pixels are never on both sides of the split. A side is chosen by
    hash; with a validation fraction above 0 and two different images, neither side is empty.

    Args:
        sources: paths, or `scenes:N`; see `tessella.data.sources`.
        settings: what size, which split, how much may be bad.
        folder: where the cache is; replaced if the data or the settings changed.
        progress: called with the images done and their number, None if that is not known.

    Raises:
        DataError: the data is not recognised, too much of it is bad, there is no room for the
            cache, or the folder holds something else.
    """
    given = [sources] if isinstance(sources, str) else [str(source) for source in sources]
    found = recognise_all(given)
    _check_folder(folder, found)
    wanted = _identity(found, settings)
    with _writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        # The others wait, then use the cache that the first one has built.
        with lock(folder.with_name(f".{folder.name}.lock")):
            manifest = read_manifest(folder)
            if manifest is None or manifest["identity"] != wanted:
                manifest = _build(found, settings, folder, wanted, progress)
    skipped = read_skipped(folder)
    _check_skipped(_totals(manifest), settings, folder / SKIPPED, skipped)
    train, validation = (
        CaptionedImages(folder, side, settings.image_size, manifest["fingerprints"][side])
        for side in SIDES
    )
    return PreparedData(train, validation, manifest, skipped)


def _identity(sources: Sequence[Source], settings: DataSettings) -> dict[str, Any]:
    """Gathers all that the contents of a cache follow from."""
    names = {"image_size", "validation_fraction", "split_by", "max_image_pixels"}
    chosen = settings.model_dump(include=names)
    if any(source.kind == "scenes" for source in sources):
        chosen |= {"seed": settings.seed, "num_paraphrases": NUM_PARAPHRASES}
    return {"sources": [source.identity() for source in sources], "settings": chosen}


def _check_folder(folder: Path, sources: Sequence[Source]) -> None:
    """Refuses to replace what is no cache, and to write into the data."""
    if folder.exists() and not is_cache(folder) and (folder.is_file() or any(folder.iterdir())):
        raise DataError(
            f"The cache's folder holds something else: `{folder}`. "
            "Name another one, or empty it yourself."
        )
    for source in sources:
        if source.root is None or not source.root.is_dir():
            continue
        if folder.resolve().is_relative_to(source.root.resolve()):
            raise DataError(
                f"The cache would lie inside the data: `{folder}` in `{source.given}`. "
                "Nothing is ever written there; name a folder outside it."
            )


def _build(
    sources: Sequence[Source],
    settings: DataSettings,
    folder: Path,
    identity: dict[str, Any],
    progress: Progress | None,
) -> dict[str, Any]:
    """Builds a cache under another name, then puts it in its place; returns its manifest."""
    what, kept = "the cache of the data", "a cache that was there before is unchanged"
    with new_folder(folder, what=what, kept=kept) as building:
        manifest = _fill(building, sources, settings, folder, identity, progress)
        write_json(building / MANIFEST, manifest)
    _kept_report(folder).unlink(missing_ok=True)
    return manifest


def _fill(
    building: Path,
    sources: Sequence[Source],
    settings: DataSettings,
    folder: Path,
    identity: dict[str, Any],
    progress: Progress | None,
) -> dict[str, Any]:
    """Decodes everything into the files of a cache and returns its manifest."""
    pixel_keys, group_keys, digests = array("Q"), array("Q"), bytearray()
    num_grouped = 0
    batches = _batches(sources, settings, progress)
    with CacheWriter(building) as writer, contextlib.closing(batches):
        for batch in batches:
            writer.add(batch.pixels, [r.captions or d.captions for r, d in batch.kept])
            for skipped in batch.skipped:
                writer.skip(skipped)
            for record, decoded in batch.kept:
                key = split_key(decoded.digest)
                pixel_keys.append(key)
                group_keys.append(key if record.group is None else split_key(record.group))
                num_grouped += record.group is not None
                digests += bytes.fromhex(decoded.digest)
        totals = writer.totals

    _check_enough(totals, settings, building, folder)
    if settings.split_by is not None and not num_grouped:
        raise DataError(
            f"No image has the field to split by: `{settings.split_by}`. It is looked for in "
            "metadata columns and in the .json files of tars; leave data.split_by out to split "
            "by pixels alone."
        )
    validation = assign_sides(
        np.frombuffer(pixel_keys, dtype=np.uint64),
        np.frombuffer(group_keys, dtype=np.uint64) if settings.split_by is not None else None,
        settings.validation_fraction,
    )
    hashes = np.frombuffer(digests, dtype=np.uint8).reshape(-1, DIGEST_BYTES)
    fingerprints = write_sides(building, validation, hashes)
    num_validation = int(validation.sum())
    return {
        "format": FORMAT,
        "identity": identity,
        "counts": {
            "images": totals.images,
            "captions": totals.captions,
            "train": totals.images - num_validation,
            "validation": num_validation,
            "skipped": totals.skipped,
        },
        "fingerprints": fingerprints,
        "file_bytes": {path.name: path.stat().st_size for path in sorted(building.iterdir())},
    }


def _batches(
    sources: Sequence[Source], settings: DataSettings, progress: Progress | None
) -> Generator[Batch, None, None]:
    """Decodes all sources one after another, and tells the progress."""
    counts = [source.count for source in sources]
    total = None if None in counts else sum(count or 0 for count in counts)
    records = (r for s in sources for r in s.records(settings.seed, settings.split_by))
    batches = decode_records(
        records,
        size=settings.image_size,
        max_pixels=settings.max_image_pixels,
        workers=settings.num_workers,
    )
    done = 0
    # Closed at once on an error or Ctrl-C, so that no decoding process outlives the call.
    with contextlib.closing(batches):
        for batch in batches:
            yield batch
            done += len(batch.kept) + len(batch.skipped)
            if progress is not None:
                # Captions without a picture are skipped too, but were not counted beforehand.
                progress(done if total is None else min(done, total), total)


def _check_enough(totals: Totals, settings: DataSettings, building: Path, folder: Path) -> None:
    """Stops if too much was skipped; the list of what was skipped outlives the half-built cache."""
    report = _kept_report(folder)
    try:
        with (building / SKIPPED).open(encoding="utf-8") as file:
            first = tuple(Skipped(**json.loads(line)) for line in islice(file, 3))
        _check_skipped(totals, settings, report, first)
    except DataError:
        shutil.copyfile(building / SKIPPED, report)
        raise


def _kept_report(folder: Path) -> Path:
    """Says where the list of skipped files is kept when there is no cache to hold it."""
    return folder.with_name(f"{folder.name}.{SKIPPED}")


def _check_skipped(
    totals: Totals, settings: DataSettings, report: Path, skipped: Sequence[Skipped]
) -> None:
    """Raises if no image is left, or too many files were skipped."""
    bad = sum(totals.skipped.values())
    if totals.images and bad <= settings.max_skipped_fraction * (bad + totals.images):
        return
    if not bad:
        raise DataError(f"The data holds no images. {WHAT_DATA_MAY_BE}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(totals.skipped.items()))
    examples = "; ".join(f"`{s.name}`: {s.reason.rstrip('.')}" for s in skipped[:3])
    raise DataError(
        f"Too many files had to be skipped: {bad} of {bad + totals.images} ({kinds}), at most "
        f"{settings.max_skipped_fraction:.0%} may be. The first: {examples}. All are listed in "
        f"`{report}`. Mend or remove them, or raise data.max_skipped_fraction."
    )


def _totals(manifest: Mapping[str, Any]) -> Totals:
    counts = manifest["counts"]
    return Totals(counts["images"], counts["captions"], counts["skipped"])


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns a full disk or a folder that may not be written into an error of the data."""
    try:
        yield
    except CheckpointError as error:
        raise DataError(str(error)) from error
    except OSError as error:
        raise DataError(
            f"Cannot write the cache: `{folder}` ({error.strerror}). Name another folder."
        ) from error

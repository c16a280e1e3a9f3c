"""An image tokenizer alone, in a folder as diffusers lays it out: our own, and other people's.

    config.json, diffusion_pytorch_model.safetensors ⇄ settings and network

What others have published becomes a tokenizer of ours with the network `taming`, and is one from
then on: `VQModel` of diffusers, alone or in the folder `vqvae` of a pipeline, and files of LlamaGen
and Taming Transformers, whose sizes their weights tell. Only safetensors are read; pickles are
refused with the way out.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor

from tessella import config
from tessella.checksums import SUMS_FILE, check_link, check_own, prove, read_file, write_sums
from tessella.errors import CheckpointError, ConfigError
from tessella.files import new_folder, sha256_file, write_json, write_tensors, write_text
from tessella.hub import find_hub_address
from tessella.model.find import name_model
from tessella.model.folder_weights import build_network, load_network, load_weights, read_weights
from tessella.tokenizer import TokenizerSettings, VectorQuantizerSettings, VQAutoencoder, layouts
from tessella.untrusted import parse_json, to_line

CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
INDEX_FILE = "model_index.json"
"""Of a pipeline of diffusers."""
WEIGHTS_FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
"""The names that are looked for; the first is diffusers', and what is written."""
PART = "vqvae"
"""The folder of the image tokenizer in a pipeline's."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".msgpack")
PUBLISHED_FILES = frozenset({
    CONFIG_FILE, CARD_FILE, INDEX_FILE, SUMS_FILE, f"{PART}/{CONFIG_FILE}"
})  # fmt: skip
"""All that is read of such a folder beside its weights, with slashes."""

_OWN_CLASS, _DIFFUSERS_CLASS = "ImageTokenizer", "VQModel"
# diffusers' pipelines whose tokenizer reads and paints [0, 1]; nothing in its own folder says so.
_UNIT_PIPELINES = "Amused"
_PIXEL_RANGE, _ORIGIN = "_pixel_range", "_origin"  # in config.json, as in `TokenizerSettings`
_VERSION = "_tessella_version"  # in what is written here
_LLAMAGEN_SETTINGS = {"codebook_embed_dim", "encoder_ch_mult"}
# diffusers' default, which most published configurations have left there.
_MEANINGLESS_SIZE, _USUAL_SIZE = 32, 256
_SMALLEST_SIZE, _LARGEST_SIZE = 8, 2048  # of `ModelConfig.image_size`
_MAX_TEXT_BYTES = 1_000_000
_MAX_LICENCE = 200  # characters
_NO_LICENCES = {"", "unknown", "null", "~"}
_FIELD, _ITEM = re.compile(r"([\w.-]+)\s*:(?:\s+(.*))?"), re.compile(r"\s*-\s+(.*)")  # of YAML


@dataclass(frozen=True)
class PublishedTokenizer:
    """An image tokenizer that a folder holds alone."""

    tokenizer: VQAutoencoder  # on the CPU
    image_size: int  # side of the pictures that it was trained on, as far as is known


def open_published(folder: Path) -> PublishedTokenizer | None:
    """Loads the image tokenizer of a folder in diffusers' layout; None if the folder is another.

    Raises:
        CheckpointError: its class is not read, or a file is missing, damaged, a pickle or of
            another network.
    """
    part = _find_part(folder)
    weights = _find_weights(part)
    for path in (part / CONFIG_FILE, weights) if part.name == PART else ():
        if path is not None and path.exists():
            prove(part.parent, f"{PART}/{path.name}")
    values = _read_json(part / CONFIG_FILE)
    if values is None or (values and not _describes_tokenizer(values)):
        return None
    kind = values.get("_class_name")
    if kind not in (None, _OWN_CLASS, _DIFFUSERS_CLASS):
        raise CheckpointError(
            f"This is no image tokenizer that is read: `{part}` has the class `{kind}`. Expected "
            f"{_DIFFUSERS_CLASS} of diffusers, or what `tessella export --tokenizer-only` writes."
        )
    if weights is None:
        _refuse_pickles(part)
        if not values:
            return None
        raise CheckpointError(
            f"The image tokenizer has no weights: `{part}`. {' or '.join(WEIGHTS_FILES)} was "
            "expected. Copy the whole folder again."
        )
    return _open_own(values, weights) if kind == _OWN_CLASS else _open_foreign(values, weights)


def published_weights(names: Sequence[str]) -> list[str]:
    """Returns which of a repository's files may be the weights of an image tokenizer alone."""
    if not {CONFIG_FILE, f"{PART}/{CONFIG_FILE}"}.intersection(names):
        return []
    folder = "" if CONFIG_FILE in names else f"{PART}/"
    return [f"{folder}{name}" for name in WEIGHTS_FILES if f"{folder}{name}" in names][:1]


def is_published(folder: Path) -> bool:
    """Returns whether a folder's configuration is that of an image tokenizer that is read."""
    values = _read_json(_find_part(folder) / CONFIG_FILE) or {}
    known = (None, _OWN_CLASS, _DIFFUSERS_CLASS)
    return _describes_tokenizer(values) and values.get("_class_name") in known


def _describes_tokenizer(values: Mapping[str, Any]) -> bool:
    """Returns whether a config.json is one of diffusers' kind, or of LlamaGen's."""
    return "_class_name" in values or bool(_LLAMAGEN_SETTINGS & _unwrap(values).keys())


def find_published(folder: Path) -> Path | None:
    """Returns the weights of a folder whose image tokenizer `open_published` loads, else None."""
    return _find_weights(_find_part(folder)) if is_published(folder) else None


def describe_source(weights: Path) -> dict[str, str | None]:
    """Returns the `origin` and the `licence` of weights, as in `TokenizerSettings`.

    Args:
        weights: a file in a model's folder, or in that of a tokenizer alone.
    """
    root = _find_root(weights.parent)
    address = find_hub_address(weights.parent)
    name = str(address) if address else name_model(root)
    file = weights.relative_to(root).as_posix()
    origin = f"{name}, {file}, SHA-256 {sha256_file(weights)}"
    return {"origin": origin, "licence": read_licence(root)}


def read_licence(folder: Path) -> str | None:
    """Reads the licence that the header of a folder's card names; None if there is none."""
    path = folder / CARD_FILE
    try:
        check_own(path)
        with path.open("rb") as file:  # without its sum: people edit cards
            card = file.read(_MAX_TEXT_BYTES).decode("utf-8-sig", errors="replace")
    except (OSError, CheckpointError):
        return None  # a model loads whatever has become of its card
    header = _read_header(card)
    licence = header.get("license", "")
    licence = header.get("license_name", "") if licence == "other" else licence
    return None if licence.lower() in _NO_LICENCES else to_line(licence)[:_MAX_LICENCE]


def _read_header(card: str) -> dict[str, str]:
    """Reads the fields of a card's YAML whose values are plain, or lists of such, with commas."""
    first, *lines = card.splitlines() or [""]
    fields: dict[str, list[str]] = {}
    values: list[str] = []
    for line in lines if first.rstrip() == "---" else ():
        if line.rstrip() == "---":
            break
        if item := _ITEM.fullmatch(line):
            values.append(_read_plain(item[1]))
        elif field := _FIELD.fullmatch(line):
            fields.setdefault(field[1], values := [])
            value = (field[2] or "").strip()
            listed = value[1:].partition("]")[0].split(",") if value[:1] == "[" else [value]
            values += filter(None, map(_read_plain, listed))
    return {name: ", ".join(values) for name, values in fields.items()}


def _read_plain(value: str) -> str:
    """Reads a plain value of YAML: without quotes, or else without a comment."""
    value = value.strip()
    if value[:1] in ("'", '"'):
        return value[1:].partition(value[0])[0].strip()
    return re.split(r"(?:^|\s)#", value)[0].strip()


def write_published(tokenizer: VQAutoencoder, image_size: int, folder: Path, card: str) -> str:
    """Writes an image tokenizer alone, whole or not at all.

    One of VQGAN's network with one learned codebook is written as diffusers' `VQModel`, any other
    with the settings and names that it has here.

    Args:
        tokenizer: in eval mode.
        image_size: side of the pictures that it was trained on.
        folder: replaced if it is there.
        card: the text of README.md.

    Returns:
        The class that config.json names.

    Raises:
        CheckpointError: it cannot be written; what was there stays.
    """
    settings = tokenizer.settings
    values: dict[str, Any]
    tensors: Mapping[str, Tensor]
    if _is_diffusers(settings):
        values = _describe_for_diffusers(settings, image_size)
        tensors = layouts.to_layout(tokenizer, layouts.DIFFUSERS)
    else:
        values = {
            "_class_name": _OWN_CLASS,
            _VERSION: metadata.version("tessella"),
            "image_size": image_size,
            "tokenizer": settings.model_dump(mode="json"),
        }
        tensors = tokenizer.state_dict()
    with new_folder(folder, what="the image tokenizer") as building:
        write_json(building / CONFIG_FILE, values)
        write_tensors(building / WEIGHTS_FILES[0], tensors)
        write_text(building / CARD_FILE, card)
        write_sums(building)
    return str(values["_class_name"])


def _find_part(folder: Path) -> Path:
    """Returns the tokenizer's folder in a pipeline's, else the folder itself.

    Raises:
        CheckpointError: it is a link that leads out of the pipeline's.
    """
    part = folder / PART
    if not part.is_dir() or (folder / CONFIG_FILE).exists():
        return folder
    check_link(part)
    return part


def _find_root(part: Path) -> Path:
    """Returns the pipeline's folder that a tokenizer's lies in, else the folder itself."""
    return part.parent if part.name == PART and (part.parent / INDEX_FILE).is_file() else part


def _find_weights(part: Path) -> Path | None:
    return next((part / name for name in WEIGHTS_FILES if (part / name).is_file()), None)


def _open_own(values: Mapping[str, Any], weights: Path) -> PublishedTokenizer:
    with _unread(weights):
        given = values.get("tokenizer")
        settings = config.build(TokenizerSettings, given if isinstance(given, dict) else {})
    tokenizer = load_network(lambda: VQAutoencoder(settings), weights)
    return PublishedTokenizer(tokenizer, _choose_size(values, "image_size", settings))


def _open_foreign(values: Mapping[str, Any], weights: Path) -> PublishedTokenizer:
    values = _unwrap(values)
    tensors = layouts.rename_old(read_weights(weights))
    layout = layouts.find_layout(tensors)
    if layout is None:
        known = ", ".join(one.name for one in layouts.LAYOUTS)
        raise CheckpointError(
            f"The weights are those of no VQGAN: `{weights}`. The names of one of these were "
            f"expected: {known}."
        )
    found = layouts.infer_settings(tensors, layout)
    if values.get("_class_name") == _DIFFUSERS_CLASS:
        _compare(values, found, weights.parent)
    found["quantizer"]["normalize"] = layout is layouts.LLAMAGEN and bool(
        values.get("codebook_l2_norm", True)
    )
    with _unread(weights):
        settings = config.build(TokenizerSettings, found | _describe_use(values, weights))
    room = {"codes": tensors[layouts.CODEBOOK][:, 0]}  # a count for each, which files don't hold
    tokenizer = build_network(lambda: VQAutoencoder(settings), weights, {**tensors, **room})
    load_weights(tokenizer, weights, layouts.from_layout(tensors, layout, tokenizer))
    return PublishedTokenizer(tokenizer, _choose_size(values, "sample_size", settings))


def _compare(values: Mapping[str, Any], found: Mapping[str, Any], folder: Path) -> None:
    """Refuses a configuration of `VQModel` that describes another network than the weights.

    Raises:
        CheckpointError: names the first difference.
    """
    quantizer = found["quantizer"]
    attention = {"coarsest": True, "middle": True, "none": False}[found["attention"]]
    attends = found["attention"] == "coarsest"
    of_weights = {
        "norm_type": "group",
        "norm_num_groups": 32,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": found["widths"],
        "layers_per_block": found["blocks"],
        "latent_channels": found["latent_width"],
        "vq_embed_dim": quantizer["code_width"],
        "num_vq_embeddings": quantizer["codebook_size"],
        "mid_block_add_attention": attention,
        "down_block_types": _name_blocks("Down", "Encoder", found["widths"], attends=attends),
        "up_block_types": _name_blocks("Up", "Decoder", found["widths"], attends=attends)[::-1],
    }
    for name, expected in of_weights.items():
        if values.get(name) not in (None, expected):
            raise CheckpointError(
                f"The configuration does not fit the weights beside it, or is of a network that "
                f"is not read: `{folder / CONFIG_FILE}` has {name} = `{values[name]}`, expected "
                f"{expected}. Copy the whole folder again."
            )
    if values.get("act_fn", "silu") not in ("silu", "swish"):
        raise CheckpointError(
            f"The image tokenizer has an activation that is not read: `{values['act_fn']}` in "
            f"`{folder / CONFIG_FILE}`. Expected silu."
        )


def _describe_for_diffusers(settings: TokenizerSettings, image_size: int) -> dict[str, Any]:
    """Lists the configuration of a `VQModel`."""
    attends = settings.attention == "coarsest"
    quantizer = settings.quantizer
    return {
        "_class_name": _DIFFUSERS_CLASS,
        _VERSION: metadata.version("tessella"),
        "act_fn": "silu",
        "block_out_channels": list(settings.widths),
        "down_block_types": _name_blocks("Down", "Encoder", settings.widths, attends=attends),
        "force_upcast": False,
        "in_channels": 3,
        "latent_channels": settings.latent_width or quantizer.code_width,
        "layers_per_block": settings.blocks,
        "lookup_from_codebook": True,
        "mid_block_add_attention": settings.attention != "none",
        "norm_num_groups": 32,
        "norm_type": "group",
        "num_vq_embeddings": quantizer.codebook_size,
        "out_channels": 3,
        "sample_size": image_size,
        "up_block_types": _name_blocks("Up", "Decoder", settings.widths, attends=attends)[::-1],
        "vq_embed_dim": quantizer.code_width,
        # Nothing of diffusers, which passes over names that begin so.
        _PIXEL_RANGE: settings.pixel_range,
        _ORIGIN: settings.origin,
    }


def _name_blocks(way: str, side: str, widths: Sequence[int], *, attends: bool) -> list[str]:
    """Names diffusers' blocks of each level, finest first."""
    plain = f"{way}{side}Block2D"
    return [*[plain] * (len(widths) - 1), f"Attn{plain}" if attends else plain]


def _is_diffusers(settings: TokenizerSettings) -> bool:
    """Returns whether `VQModel` describes such a tokenizer."""
    is_plain = isinstance(settings.quantizer, VectorQuantizerSettings)
    return (
        settings.network == "taming"
        and not settings.upsampling
        and is_plain
        and settings.quantizer.codes_per_position == 1
    )


def _describe_use(values: Mapping[str, Any], weights: Path) -> dict[str, Any]:
    """Returns the settings that say where weights come from and what they read."""
    root = _find_root(weights.parent)
    pixel_range = values.get(_PIXEL_RANGE)
    if pixel_range is None:
        above = _read_json(root / INDEX_FILE) or {}
        is_unit = str(above.get("_class_name")).startswith(_UNIT_PIPELINES)
        pixel_range = "unit" if is_unit else "signed"
    if _ORIGIN not in values:
        return {"pixel_range": pixel_range, **describe_source(weights)}
    origin = values[_ORIGIN]  # null of what was trained here
    licence = read_licence(root) if origin else None
    return {"pixel_range": pixel_range, "origin": origin, "licence": licence}


def _choose_size(values: Mapping[str, Any], name: str, settings: TokenizerSettings) -> int:
    """Takes a configuration's size of pictures, if it means anything.

    Raises:
        CheckpointError: a position is larger than any picture.
    """
    factor = settings.downsampling
    if factor > _LARGEST_SIZE:
        raise CheckpointError(
            f"The image tokenizer has too many levels: `{len(settings.widths)}`; pictures have at "
            f"most {_LARGEST_SIZE} pixels a side."
        )
    given: Any = values.get(name)
    is_meant = given != _MEANINGLESS_SIZE or _VERSION in values
    in_range = isinstance(given, int) and _SMALLEST_SIZE <= given <= _LARGEST_SIZE
    if is_meant and in_range and given % factor == 0:
        return int(given)
    return max(1, _USUAL_SIZE // factor) * factor


def _unwrap(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns LlamaGen's settings, which its library may write one level deeper."""
    inner = values.get("config")
    return inner if isinstance(inner, dict) else values


def _read_json(path: Path) -> dict[str, Any] | None:
    """Reads a JSON object; {} if there is no such file, None if it holds something else."""
    try:
        values = parse_json(read_file(path, most_bytes=_MAX_TEXT_BYTES))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _refuse_pickles(folder: Path) -> None:
    """Refuses a folder whose weights are pickles.

    Raises:
        CheckpointError: says how to convert them.
    """
    try:
        names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in PICKLES)
    except OSError:
        return  # no folder, which is said where its configuration is missed
    if names:
        raise CheckpointError(
            f"The folder holds weights as pickles, which could run anything and are never loaded: "
            f"`{folder}` has {names[0]}. Convert them to {WEIGHTS_FILES[0]} on a machine where "
            "that does no harm: docs/how-to/image-tokenizer.md has the lines."
        )


@contextlib.contextmanager
def _unread(weights: Path) -> Iterator[None]:
    """Re-raises settings that are out of range as a tokenizer that is not read."""
    try:
        yield
    except ConfigError as error:
        raise CheckpointError(
            f"The image tokenizer has a size or form that is not read: `{weights}`. {error}"
        ) from None

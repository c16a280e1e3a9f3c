"""Writes a model as a static web page that paints in the browser: no server, no other host.

    index.html  page.js  painter.js  examples.js    of `web_page/`
    onnx.json, text_tokenizer.json, *.onnx          `onnx_export.py`
    examples.*, stems.json                          of a model that looks things up
    README.md, samples.png                          the model's card
    page.json                                       its title, first prompt, bytes that it loads
    ort.*                                           onnxruntime-web, which npm brings

The stemmer stays in Python: `stems.json` has the stems of the captions' words and their plurals.
"""

import gzip
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tessella.checksums import write_sums
from tessella.errors import ConfigError
from tessella.files import new_folder, write_bytes, write_json
from tessella.model.find import name_model
from tessella.model.folder import CARD_FILE, SAMPLES_FILE, read_captions
from tessella.model.memory import check_out
from tessella.model.onnx_export import write_graphs
from tessella.retrieval import ExampleMemory
from tessella.retrieval.index import split_stems, split_words
from tessella.text.vocabulary import CaptionSummary

PAGE = Path(__file__).parent / "web_page"
RUNTIME_VERSION = "1.30.0"
"""Of onnxruntime-web, which the page was tested with."""
RUNTIME = Path("node_modules/onnxruntime-web")
_SCRIPT = "ort.wasm.bundle.min.mjs"
_PROGRAM = "ort-wasm-simd-threaded.wasm"


def export_web(
    folder: Path, out: Path, *, without_examples: bool = False, force: bool = False
) -> int:
    """Writes a model folder as a web page; returns how many examples are on it.

    Args:
        folder: of the model.
        out: the folder that is written.
        without_examples: leaves out the pictures that it can look at.
        force: replaces what is there.

    Raises:
        ConfigError: the model is not exported, `out` is taken, `onnx` or onnxruntime-web is
            missing, or onnxruntime-web has another version.
        CheckpointError: the model is damaged, or the folder cannot be written.
    """
    check_out(folder, out, force=force, option="--web")
    runtime = find_runtime()
    captions = read_captions(folder)
    with new_folder(out, what="the web page") as building:
        memory = write_graphs(folder, building, without_examples=without_examples)
        if memory is not None:
            said = (caption for row in memory.rows for caption in row.captions)
            write_json(building / "stems.json", list_stems(said))
        # A quarter as large, and the page unpacks it: plain file servers do not compress.
        program = gzip.compress(runtime[1].read_bytes(), mtime=0)
        write_bytes(building / f"{_PROGRAM}.gzip", program, what="the web page")
        loads = (path for path in building.iterdir() if path.name not in (CARD_FILE, SAMPLES_FILE))
        page = {
            "title": name_model(folder),
            "prompt": _choose_prompt(captions, memory),
            "has_examples": memory is not None,
            "has_card": (building / CARD_FILE).exists(),
            "bytes": sum(path.stat().st_size for path in loads),
        }
        write_json(building / "page.json", page)
        for path in (*PAGE.iterdir(), runtime[0]):
            shutil.copyfile(path, building / path.name)
        write_sums(building)
    return 0 if memory is None else len(memory)


def _choose_prompt(captions: CaptionSummary | None, memory: ExampleMemory | None) -> str:
    """Chooses the prompt that the page paints first: one of the captions that the model learned."""
    if captions is not None and captions.examples:
        return captions.examples[0]
    return memory.rows[0].captions[0] if memory is not None else ""


def find_runtime() -> Sequence[Path]:
    """Finds onnxruntime-web's script and program in `node_modules` of this folder.

    Raises:
        ConfigError: one is missing, or of another version than the page was tested with.
    """
    files = [RUNTIME / "dist" / name for name in (_SCRIPT, _PROGRAM)]
    get_it = f"Get it with npm install onnxruntime-web@{RUNTIME_VERSION}, in this folder."
    try:
        version = json.loads((RUNTIME / "package.json").read_bytes())["version"]
    except (OSError, ValueError, KeyError, TypeError):
        version = None
    if version is None or not all(path.is_file() for path in files):
        raise ConfigError(
            f"The page needs onnxruntime-web, which is not here: `{RUNTIME.resolve()}`. {get_it}"
        )
    if version != RUNTIME_VERSION:
        raise ConfigError(
            f"The page was tested with another version of onnxruntime-web: `{version}`. Expected "
            f"{RUNTIME_VERSION}. {get_it}"
        )
    return files


def list_stems(captions: Iterable[str]) -> dict[str, str]:
    """Lists the stem of each word of captions, and of its plural or singular."""
    words = {word for caption in captions for word in split_words(caption)}
    stems = {}
    for word in sorted(words):
        [stem, *others] = split_stems(word) or [""]
        if others or not stem:
            continue  # pairs of letters are their own stems
        stems[word] = stem
        for form in _other_numbers(word):
            if split_stems(form) == [stem]:
                stems[form] = stem
    return stems


def _other_numbers(word: str) -> Iterator[str]:
    yield f"{word}s"
    yield f"{word}es"
    yield word.removesuffix("s")
    yield word.removesuffix("es")

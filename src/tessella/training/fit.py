"""`fit`: captioned images in, a model folder out; rerun the same call to resume.

    DATA ─ data cache ─▶ tokenizer ─▶ codes ─▶ transformer ─▶ evaluation ─▶ model folder, report

`training/run_folder.py` says what lies where in the run's folder. Each part is saved when it is
done, and is not done again.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from rich.console import Console

from tessella.data.prepare import PreparedData, describe_data, prepare
from tessella.data.sources import Source
from tessella.errors import ConfigError, TessellaError
from tessella.files import remove_leftovers, write_json
from tessella.model.folder import TrainedTokenizer
from tessella.model.pipeline import TextToImage
from tessella.objectives import create_transformer
from tessella.runs import record
from tessella.runs.report import write_report
from tessella.text import TEXT_FILE, TextEncoder, create_text_encoder, load_text
from tessella.tokenizer import VQAutoencoder
from tessella.training.auto_neighbors import choose_neighbors
from tessella.training.budget import compute_budget
from tessella.training.callbacks import Callbacks
from tessella.training.checkpoint import CHECKPOINTS_FOLDER, read_images_seen
from tessella.training.checks import (
    check_request,
    check_run,
    find_text_encoder,
    start_tokenizer,
)
from tessella.training.codes import Codes, prepare_codes
from tessella.training.finish import finish_run
from tessella.training.initialize import grow_text_encoder, initialize_transformer
from tessella.training.launch import Peers, check_launch, find_peers, watch_peers
from tessella.training.loop import create_accelerator, train
from tessella.training.neighbors import ExampleReader, prepare_examples
from tessella.training.progress import show_progress
from tessella.training.recipe import Recipe
from tessella.training.request import FitRequest as FitRequest  # what `fit` takes
from tessella.training.request import ResolvedRun, resolve_run
from tessella.training.run_folder import lock_run, read_data_facts, write_run_file
from tessella.training.stage import N, Stage, TrainingSettings
from tessella.training.text_features import CaptionReader, describe_cut, prepare_captions
from tessella.training.tokenizer_stage import TokenizerStage
from tessella.training.trackers import Trackers
from tessella.training.transformer_stage import TransformerStage, caption_mirrored

_PALETTE_IMAGES = 2_000


def fit(request: FitRequest, console: Console, callbacks: Sequence[object] = ()) -> Path:
    """Trains a model, continuing where an earlier call stopped.

    Args:
        request: data, settings, the run's folder.
        console: shows the plan and progress.
        callbacks: see `Callback`.

    Returns:
        The model folder; the run's folder if only the tokenizer was asked for.

    Raises:
        ConfigError: a setting is wrong, or the run in `out` began with others; or a callback has
            nothing to call.
        DataError: the data cannot be used.
        CheckpointError: a saved file is damaged or cannot be written.
        Interrupted: a signal came; the state is saved.
        TrainingStopped: a callback asked for it; the state is saved.
    """
    began = time.monotonic()
    told = Callbacks(callbacks, request.out)
    accelerator = create_accelerator(request.device)
    check_launch(accelerator.num_processes)
    peers = find_peers(accelerator)
    if not accelerator.is_main_process:
        console = Console(quiet=True)
    # What is quiet hides progress, not failures.
    tell: Callable[[str], object] = (
        warnings.warn if console.quiet else functools.partial(console.print, markup=False)
    )
    trackers = Trackers(request.trackers, request.out, tell)
    told.add(trackers)
    with watch_peers(peers), contextlib.closing(trackers):
        folder = _check_and_fit(request, told, peers, accelerator, console, began)
        accelerator.wait_for_everyone()  # the first process writes last
    return folder


def _check_and_fit(
    request: FitRequest,
    callbacks: Callbacks,
    peers: Peers,
    accelerator: Accelerator,
    console: Console,
    began: float,
) -> Path:
    # All that may be refused without reading the data is, before the run's folder is touched.
    sources = check_request(request, is_main=accelerator.is_main_process)
    # Before any process may write run.json: all of them must find the run new, or none.
    resolved = resolve_run(request, accelerator)
    text_encoder = check_run(request, resolved)
    console.print(f"Processes: {peers.describe()}.")
    if resolved.recipe.tokenizer.origin:
        console.print(f"Image tokenizer: {resolved.recipe.tokenizer.source}.", markup=False)
    call = _Call(request, callbacks, sources, resolved, text_encoder, peers, began)
    with _enter_run(call) if accelerator.is_main_process else contextlib.nullcontext():
        return _fit(call, accelerator, console)


@dataclass(frozen=True)
class _Call:
    """A call of `fit` that was checked."""

    request: FitRequest
    callbacks: Callbacks
    sources: Sequence[Source]
    resolved: ResolvedRun
    text_encoder: TextEncoder | None  # of a new run, if it does not depend on the captions
    peers: Peers
    began: float  # by the monotonic clock


@contextlib.contextmanager
def _enter_run(call: _Call) -> Iterator[None]:
    """Locks the run's folder, and tidies up what a killed process left there."""
    out = call.request.out
    with lock_run(out):
        if call.resolved.is_new and (out / record.RUN_FILE).exists():
            raise ConfigError(
                f"Another process has begun a run in this folder meanwhile: `{out}`. Run the same "
                "command again to resume it, or choose another --out."
            )
        remove_leftovers(out, deep=True)
        yield


def _fit(call: _Call, accelerator: Accelerator, console: Console) -> Path:
    request, resolved, began = call.request, call.resolved, call.began
    out, is_main = request.out, accelerator.is_main_process
    console.print(f"Precision: {resolved.precision}.")
    recipe, is_new = resolved.recipe.replace(precision=resolved.precision.name), resolved.is_new
    with accelerator.main_process_first():
        data = _prepare_data(call, recipe, console)
        text_encoder = _create_text_encoder(call, recipe, data, console)
        captions: CaptionReader = text_encoder
        if request.stage != "tokenizer":
            flips = recipe.transformer_training.flips
            captions = _prepare_captions(text_encoder, data, out, console, flips=flips)
    choice = None
    if is_new and recipe.retrieval.neighbors == "auto":
        choice = choose_neighbors(recipe, request.minutes, data)
        console.print(f"Examples beside each prompt: {choice.neighbors}; {choice.why}.")
        recipe = recipe.replace(retrieval=recipe.retrieval.replace(neighbors=choice.neighbors))
    # Before run.json is written: what cannot be built must not claim the folder.
    model = TextToImage.create(recipe.describe_model(), text_encoder)
    if is_new:
        if request.minutes is not None:
            seconds_left = 60 * request.minutes - (time.monotonic() - began)
            budget = compute_budget(recipe, seconds_left, data, text_encoder, captions, accelerator)
            console.print(f"Plan for {request.minutes:g} minutes: {budget.describe()}")
            recipe = budget.recipe
        recipe = broadcast_object_list([recipe])[0]  # each process has measured; one decides
        if is_main:
            asked = request.sources, request.describe(), recipe, resolved.reasons
            write_run_file(out, *asked, describe_data(data.manifest), call.peers.facts())
            if choice is not None:
                write_json(out / record.EXAMPLES_FOLDER / record.CHOICE_FILE, asdict(choice))
        accelerator.wait_for_everyone()
    if is_main and not (out / TEXT_FILE).exists():
        text_encoder.save(out / TEXT_FILE)

    run = _Run(request, recipe, data, accelerator, console, call.callbacks)
    model = model.with_parts(tokenizer=run.train_tokenizer())
    if is_main and request.stage == "tokenizer":
        TrainedTokenizer(model.config, model.tokenizer).save(out / record.TOKENIZER_MODEL_FOLDER)
        console.print(f"The image tokenizer is in {out / record.TOKENIZER_MODEL_FOLDER}.")
    if is_main:
        _write_report(out, console)
    if request.stage == "tokenizer":
        return out

    with accelerator.main_process_first():
        codes = run.prepare_codes(model.tokenizer)
        examples = run.prepare_examples(model, codes, captions)
    model = run.train_transformer(model, codes, captions, examples)
    if is_main:
        metrics = finish_run(model, request, recipe, data, console)
        _write_report(out, console)
        images, path = recipe.transformer_training.images, out / record.MODEL_FOLDER
        if metrics is not None:
            call.callbacks.call("on_end", "model", images, images, metrics=metrics, path=path)
        minutes = (time.monotonic() - began) / 60
        console.print(f"The model is in {out / record.MODEL_FOLDER}, after {minutes:.1f} minutes.")
    return out / record.MODEL_FOLDER


@dataclass(frozen=True)
class _Run:
    """What the parts of a run share."""

    request: FitRequest
    recipe: Recipe
    data: PreparedData
    accelerator: Accelerator
    console: Console
    callbacks: Callbacks

    def train_tokenizer(self) -> VQAutoencoder:
        """Trains the image tokenizer, or restores it; returns the averaged weights.

        A palette is chosen instead: in seconds, and the same each time, so it is not saved.
        """
        settings, seed = self.recipe.tokenizer_training, self.request.seed
        device, images = self.accelerator.device, self.data.train
        torch.manual_seed(seed)
        tokenizer = VQAutoencoder(self.recipe.tokenizer)
        if settings.init_from is not None and self._read_images_seen("tokenizer") is None:
            start_tokenizer(tokenizer, self.recipe)
        if self.recipe.tokenizer.network != "palette":
            stage = TokenizerStage(tokenizer, settings, self.data.sides, device, seed)
            tokenizer = self._train(stage, settings, "tokenizer")
        elif settings.init_from is None:
            sample = np.random.default_rng(seed).permutation(len(images))[:_PALETTE_IMAGES]
            tokenizer.learn_palette(images.pixels(np.sort(sample)), seed)
        return tokenizer.eval().requires_grad_(False).to(device)

    def prepare_codes(self, tokenizer: VQAutoencoder) -> dict[str, Codes]:
        """Encodes all images with the trained tokenizer, or finds them encoded."""
        settings, before = self.recipe.transformer_training, self.request.run_before
        codes = {}
        for side, images in self.data.sides.items():
            with show_progress(self.console, f"codes of {side}") as progress:
                codes[side] = prepare_codes(
                    images,
                    tokenizer,
                    self.request.out / record.CODES_FOLDER / f"{side}.npy",
                    device=self.accelerator.device,
                    flips=settings.flips and side == "train",
                    crops=settings.crops if side == "train" else 0,
                    progress=progress,
                    known=before and before / record.CODES_FOLDER / f"{side}.npy",
                )
        return codes

    def prepare_examples(
        self, model: TextToImage, codes: Mapping[str, Codes], captions: CaptionReader
    ) -> ExampleReader | None:
        """Finds what every picture looks at, once; None if the model looks at nothing."""
        if not model.config.neighbors:
            return None
        with show_progress(self.console, "neighbours") as progress:
            return prepare_examples(
                self.data.sides,
                codes["train"],
                model.tokenizer,
                captions,
                self.recipe.retrieval,
                self.request.out / record.EXAMPLES_FOLDER,
                sources=self.request.sources,
                flips=self.recipe.transformer_training.flips,
                progress=progress,
            )

    def train_transformer(
        self,
        model: TextToImage,
        codes: Mapping[str, Codes],
        captions: CaptionReader,
        examples: ExampleReader | None,
    ) -> TextToImage:
        """Trains the transformer, or restores it; returns the model with the averaged weights."""
        settings = self.recipe.transformer_training
        torch.manual_seed(self.request.seed)
        transformer = create_transformer(
            self.recipe.objective,
            self.recipe.transformer,
            model.transformer.shape,
            model.tokenizer.codebook.cpu(),
        )
        if settings.init_from is not None and self._read_images_seen("transformer") is None:
            codebook = None if settings.images else model.tokenizer.codebook
            encoder = model.text_tokenizer
            initialize_transformer(transformer, settings.init_from, encoder, codebook)
        model = model.with_parts(
            transformer=transformer, memory=examples.memory if examples else None
        )
        stage = TransformerStage(model, settings, self.data.sides, codes, captions, examples)
        sections = ("tokenizer", "text", "transformer", "retrieval", "objective")
        transformer = self._train(stage, settings, *sections)
        transformer.eval().requires_grad_(False).to(self.accelerator.device)
        return model.with_parts(transformer=transformer)

    def _train(self, stage: Stage[N], settings: TrainingSettings, *sections: str) -> N:
        """Trains a stage whose weights depend on these sections of the recipe.

        And on its training settings and the precision, which `open_run` keeps the same.
        """
        parts = [self.recipe.select(sections), self.data.train.fingerprint, self.request.seed]
        return train(
            stage,
            settings,
            self.request.out / stage.name,
            seed=self.request.seed,
            accelerator=self.accelerator,
            console=self.console,
            fingerprint=hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest(),
            precision=self.recipe.precision,
            callbacks=self.callbacks,
        )

    def _read_images_seen(self, stage: str) -> int | None:
        """Reads how far a stage is; None if it has no checkpoint to resume from."""
        return read_images_seen(self.request.out / stage / CHECKPOINTS_FOLDER)


def _prepare_data(call: _Call, recipe: Recipe, console: Console) -> PreparedData:
    """Reads the data, or finds it read; a run's data must be what it began with."""
    out = call.request.out
    expected = None if call.resolved.is_new else read_data_facts(out)
    before = call.request.run_before
    with show_progress(console, "data") as progress:
        data = prepare(
            call.sources,
            recipe.data,
            out / record.DATA_FOLDER,
            progress=progress,
            expected=expected,
            known=before and before / record.DATA_FOLDER,
        )
    counts = data.manifest["counts"]
    console.print(
        f"Data: {counts['images']:,} images, {counts['captions']:,} captions; "
        f"{counts['train']:,} for training, {counts['validation']:,} held out, "
        f"{len(data.skipped):,} skipped."
    )
    for origin, count in data.readings.items():
        console.print(f"Read: {origin} ({count:,} images).", markup=False)
    for note in data.notes:
        console.print(f"Note: {note}.", markup=False)
    if ignored := counts.get("ignored_profiles"):
        console.print(f"Of {ignored:,} images the colour profile is broken; it is ignored.")
    if not counts["validation"]:
        console.print("No image is held out: all numbers will be of training pictures.")
    return data


def _create_text_encoder(
    call: _Call, recipe: Recipe, data: PreparedData, console: Console
) -> TextEncoder:
    """Takes the run's text encoder or that of `init_from`, grown; else learns or reads one."""
    out = call.request.out
    if not call.resolved.is_new and (out / TEXT_FILE).exists():
        return load_text(out)
    encoder = call.text_encoder
    if encoder is None:
        encoder = find_text_encoder(recipe)
    if encoder is None:
        return create_text_encoder(recipe.text, data.train.all_captions())
    if recipe.transformer_training.init_from is None or not recipe.transformer_training.images:
        return encoder
    grown = grow_text_encoder(encoder, data.train.all_captions(), recipe.text)
    sizes = encoder.vocabulary_size, grown.vocabulary_size - encoder.vocabulary_size
    console.print("Words: {:,} tokens of the model to start from, {:,} new ones.".format(*sizes))
    return grown


def _prepare_captions(
    text_encoder: TextEncoder, data: PreparedData, out: Path, console: Console, *, flips: bool
) -> CaptionReader:
    """Lets a frozen encoder read every caption, once; warns about captions that are too long."""
    captions = itertools.chain.from_iterable(one.all_captions() for one in data.sides.values())
    if flips:
        captions = itertools.chain(captions, map(caption_mirrored, data.train.all_captions()))
    with show_progress(console, "captions") as progress:
        path = out / record.TEXT_FOLDER / "features.npy"
        reader = prepare_captions(text_encoder, captions, path, progress=progress)
    if warning := describe_cut(reader, data.train, text_encoder.max_tokens):
        console.print(warning)
    return reader


def _write_report(out: Path, console: Console) -> None:
    """Writes the run's report; without one the run continues."""
    try:
        write_report(out)
    except TessellaError as error:
        console.print(f"The run has no report: {error}")

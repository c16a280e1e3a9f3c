"""`fit`: captioned images in, a model folder out; the same call again goes on where it stopped.

RUN/run.json                what was asked, and the recipe that the run keeps to
RUN/text_tokenizer.json     the vocabulary, or which frozen encoder is in RUN/text_encoder/
RUN/text/                   what a frozen encoder makes of every caption
RUN/data/                   the cache of checked images; skipped.jsonl
RUN/tokenizer/              checkpoints, metrics.jsonl, tensorboard, samples of stage 1;
                            after fit-tokenizer its model, without a transformer
RUN/codes/                  every image's codes
RUN/transformer/            checkpoints, metrics.jsonl, tensorboard, samples of stage 2
RUN/nearest.png, .json      painted pictures beside the nearest training pictures, if measured
RUN/model/                  the finished model
RUN/report.html             curves, pictures and numbers on one page
"""

import contextlib
import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from rich.console import Console
from rich.progress import Progress
from torch import nn

from tessella.config import build, flatten, read_config
from tessella.data.prepare import PreparedData, prepare
from tessella.errors import CheckpointError, ConfigError, TessellaError
from tessella.evaluation.memorisation import make_pairs_sheet
from tessella.evaluation.model import ModelEvaluation, evaluate_model
from tessella.files import remove_leftovers, write_json
from tessella.images import save_png
from tessella.model.find import find_model, find_tokenizer
from tessella.model.folder import TrainedTokenizer
from tessella.model.pipeline import TextToImage
from tessella.objectives import create_transformer
from tessella.runs.record import (
    CODES_FOLDER,
    DATA_FOLDER,
    LOCK_FILE,
    MODEL_FOLDER,
    NEAREST_FILE,
    NEAREST_PICTURE,
    RUN_FILE,
    TEXT_FOLDER,
    TOKENIZER_MODEL_FOLDER,
)
from tessella.runs.report import write_report
from tessella.text import TEXT_FILE, TextEncoder, create_text_encoder, load_text
from tessella.text.vocabulary import summarize_captions
from tessella.tokenizer import ImageTokenizer, ReconstructionLoss
from tessella.training.budget import choose_preset, plan_training
from tessella.training.checkpoint import load_latest_checkpoint
from tessella.training.codes import Codes, Passes, prepare_codes
from tessella.training.initialize import (
    initialize_tokenizer,
    initialize_transformer,
    load_text_tokenizer,
)
from tessella.training.loop import (
    CHECKPOINTS_FOLDER,
    N,
    Stage,
    TrainingSettings,
    create_accelerator,
    train,
)
from tessella.training.model_card import CardFacts, write_card
from tessella.training.recipe import Recipe, resolve_recipe
from tessella.training.stages import TokenizerStage, TransformerStage
from tessella.training.text_features import CaptionReader, describe_cut, prepare_captions

FORMAT = 2
"""Of run.json; goes up when an older tessella could no longer read it."""


_CARD_CAPTIONS = 8
_PALETTE_IMAGES = 2_000


@dataclass(frozen=True)
class FitRequest:
    """What is asked of a run."""

    sources: Sequence[str]  # DATA
    out: Path  # the run's folder
    preset: str | None = None  # None: the default, or with `minutes` the largest that is worth it
    config_file: Path | None = None
    assignments: Sequence[str] = ()  # section.key=value
    minutes: float | None = None  # the time that it may take; None keeps the recipe's lengths
    seed: int = 0
    device: str = "auto"
    stage: Literal["all", "tokenizer", "transformer"] = "all"


def fit(request: FitRequest, console: Console) -> Path:
    """Trains what is asked, from where an earlier call stopped.

    Args:
        request: data, settings, where to.
        console: where plan and progress are shown.

    Returns:
        The model folder; the run's folder if only one stage was asked.

    Raises:
        ConfigError: a setting is wrong, or the run in `out` was begun with others.
        DataError: the data cannot be used.
        CheckpointError: something saved is damaged or cannot be written.
        Interrupted: a signal came; the state is saved.
    """
    accelerator = create_accelerator(request.device)
    with _only_one(request.out) if accelerator.is_main_process else contextlib.nullcontext():
        return _fit(request, accelerator, console)


def _fit(request: FitRequest, accelerator: Accelerator, console: Console) -> Path:
    began = time.monotonic()
    if accelerator.is_main_process:
        remove_leftovers(request.out)
    # Before the others are let in: the first one writes run.json once all know that it is new.
    recipe, is_new = resolve_run(request, accelerator)
    if is_new:
        with accelerator.main_process_first():
            _require_what_is_named(recipe)
    with accelerator.main_process_first():
        data = _prepare_data(request, recipe, console)
        text_tokenizer = _create_text_tokenizer(recipe, data, request.out, is_new)
        captions: CaptionReader = text_tokenizer
        if request.stage != "tokenizer":
            captions = _prepare_captions(text_tokenizer, data, request.out, console)
    # Before the folder becomes a run of what cannot be built; a plan changes the lengths alone.
    model = TextToImage.create(recipe.describe_model(), text_tokenizer)
    if is_new:
        if request.minutes is not None:
            seconds_left = 60 * request.minutes - (time.monotonic() - began)
            plan = plan_training(recipe, seconds_left, data, text_tokenizer, captions, accelerator)
            console.print(f"Plan for {request.minutes:g} minutes: {plan.describe()}")
            recipe = plan.recipe
        recipe = _keep_run(request, recipe, accelerator)
    if accelerator.is_main_process and not (request.out / TEXT_FILE).exists():
        text_tokenizer.save(request.out / TEXT_FILE)

    run = _Run(request, recipe, data, accelerator, console)
    run.train_tokenizer(model)
    model = model.with_parts()  # the objective's codebook may be computed from its weights
    if accelerator.is_main_process:
        _write_report(request.out, console)
    if request.stage == "tokenizer":
        return request.out
    with accelerator.main_process_first():
        codes = run.prepare_codes(model)
    run.train_transformer(model, codes, captions)
    folder = request.out / MODEL_FOLDER
    if accelerator.is_main_process:
        run.finish(model, folder)
        _write_report(request.out, console)
        minutes = (time.monotonic() - began) / 60
        console.print(f"The model is in {folder}, after {minutes:.1f} minutes.")
    accelerator.wait_for_everyone()
    return folder


class _Run:
    """What the parts of a run share."""

    def __init__(
        self,
        request: FitRequest,
        recipe: Recipe,
        data: PreparedData,
        accelerator: Accelerator,
        console: Console,
    ) -> None:
        self._request = request
        self._recipe = recipe
        self._data = data
        self._accelerator = accelerator
        self._console = console

    def train_tokenizer(self, model: TextToImage) -> None:
        """Trains the tokenizer, or finds it trained; the model then has the averaged weights."""
        if self._recipe.tokenizer.network == "palette":
            self._choose_palette(model)
            return
        settings = self._recipe.tokenizer_training
        torch.manual_seed(self._request.seed)
        tokenizer = ImageTokenizer(self._recipe.tokenizer)
        if settings.init_from is not None and not self._has_checkpoint("tokenizer"):
            whole = initialize_tokenizer(tokenizer, settings.init_from)
            if not whole and not settings.images:
                raise ConfigError(
                    "A new decoder has to learn: `0` images. Set tokenizer_training.images."
                )
        stage = TokenizerStage(
            tokenizer, settings, self._data.sides, self._accelerator.device, self._request.seed
        )
        if self._request.stage == "transformer":
            _require_finished(self._request.out / stage.name, settings)
        average = self._train(stage, settings, self._fingerprint("tokenizer"))
        model.tokenizer.load_state_dict(average.tokenizer.state_dict())
        self._finish_tokenizer(model)

    def _finish_tokenizer(self, model: TextToImage) -> None:
        """Ends the tokenizer's training; it can be looked at without a transformer."""
        model.tokenizer.eval().requires_grad_(False).to(self._accelerator.device)
        if self._accelerator.is_main_process and self._request.stage == "tokenizer":
            folder = self._request.out / TOKENIZER_MODEL_FOLDER
            TrainedTokenizer(model.config, model.tokenizer).save(folder)
            self._console.print(f"The image tokenizer is in {folder}.")

    def _choose_palette(self, model: TextToImage) -> None:
        """Chooses the colours; in seconds, and the same ones each time, so nothing is saved."""
        start = self._recipe.tokenizer_training.init_from
        if start is not None:
            initialize_tokenizer(model.tokenizer, start)
        else:
            images, seed = self._data.train, self._request.seed
            chosen = np.random.default_rng(seed).permutation(len(images))[:_PALETTE_IMAGES]
            model.tokenizer.learn_palette(images.pixels(np.sort(chosen)), seed)
        self._finish_tokenizer(model)

    def prepare_codes(self, model: TextToImage) -> dict[str, Codes]:
        """Encodes all images with the trained tokenizer, or finds them encoded."""
        codes = {}
        settings = self._recipe.transformer_training
        learned = Passes(settings.flips, settings.crops)
        for side, images in self._data.sides.items():
            with _progress(self._console, f"codes of {side}") as progress:
                codes[side] = prepare_codes(
                    images,
                    model.tokenizer,
                    self._request.out / CODES_FOLDER / f"{side}.npy",
                    device=self._accelerator.device,
                    passes=learned if side == "train" else Passes(),
                    progress=progress,
                )
        return codes

    def train_transformer(
        self, model: TextToImage, codes: Mapping[str, Codes], captions: CaptionReader
    ) -> None:
        """Trains the transformer, or finds it trained; the model then has the averaged weights."""
        settings = self._recipe.transformer_training
        torch.manual_seed(self._request.seed)
        transformer = create_transformer(
            self._recipe.objective, self._recipe.transformer, model.transformer.shape
        )
        if settings.init_from is not None and not self._has_checkpoint("transformer"):
            codebook = None if settings.images else model.tokenizer.codebook
            initialize_transformer(transformer, settings.init_from, codebook)
        stage = TransformerStage(
            model.with_parts(transformer=transformer), settings, self._data.sides, codes, captions
        )
        parts = ("tokenizer", "text", "transformer", "objective")
        average = self._train(stage, settings, self._fingerprint(*parts))
        model.transformer.load_state_dict(average.transformer.state_dict())
        model.transformer.eval().requires_grad_(False).to(self._accelerator.device)

    def finish(self, model: TextToImage, folder: Path) -> None:
        """Measures the finished model, writes its card and its folder, unless it is there."""
        if _is_saved(model, folder):
            return
        measured = evaluate_model(model, self._data)
        for name, metric in measured.metrics.items():
            self._console.print(f"{name}: {metric.value:.4g} ({metric.protocol})")
        metrics = {name: asdict(metric) for name, metric in measured.metrics.items()}
        facts = CardFacts(
            sources=[Path(source).name for source in self._request.sources],
            counts=self._data.manifest["counts"],
            sample_captions=measured.prompts[:_CARD_CAPTIONS],
            metrics=metrics,
            parameters={
                "tokenizer": count_parameters(model.tokenizer),
                "transformer": count_parameters(model.transformer),
            },
            licence=self._recipe.data.licence,
            seed=self._request.seed,
        )
        card = write_card(self._recipe, facts)
        self._save_nearest(measured)
        captions = summarize_captions(
            self._data.train.all_captions(), model.text_tokenizer, facts.sample_captions
        )
        # Last: the model's folder says that all is done.
        model.save(folder, card=card, metrics=metrics, samples=measured.sheet, captions=captions)

    def _save_nearest(self, measured: ModelEvaluation) -> None:
        """Writes the nearest training pictures, if measured: into the run, which stays here."""
        pairs, out = measured.generation.pairs, self._request.out
        if not pairs:
            return
        save_png(out / NEAREST_PICTURE, make_pairs_sheet(pairs))
        said = [
            {"prompt": pair.prompt, "caption": pair.caption, "distance": pair.distance}
            for pair in pairs
        ]
        protocol = measured.metrics["copy_rate"].protocol
        write_json(out / NEAREST_FILE, {"protocol": protocol, "pairs": said})

    def _train(self, stage: Stage[N], settings: TrainingSettings, fingerprint: str) -> N:
        return train(
            stage,
            settings,
            self._request.out / stage.name,
            seed=self._request.seed,
            accelerator=self._accelerator,
            console=self._console,
            fingerprint=fingerprint,
        )

    def _has_checkpoint(self, stage: str) -> bool:
        """Whether a stage has a checkpoint, which goes before the weights that it started from."""
        folder = self._request.out / stage / CHECKPOINTS_FOLDER
        return load_latest_checkpoint(folder) is not None

    def _fingerprint(self, *sections: str) -> str:
        """Hashes what the weights of a stage follow from, besides its training settings.

        Those are the same for as long as the run is: `_refuse_changes` sees to it.
        """
        values = self._recipe.model_dump(mode="json", include=set(sections))
        parts = [values, self._data.train.fingerprint, self._request.seed]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _require_what_is_named(recipe: Recipe) -> None:
    """Finds what a recipe names, before data is read and the folder becomes a run.

    Raises:
        ConfigError: weights of a loss are not to be found.
        CheckpointError: a model to start from is not there.
    """
    ReconstructionLoss(recipe.tokenizer_training.loss)
    if recipe.tokenizer_training.init_from is not None:
        find_tokenizer(recipe.tokenizer_training.init_from)
    if recipe.transformer_training.init_from is not None:
        find_model(recipe.transformer_training.init_from)


def _create_text_tokenizer(
    recipe: Recipe, data: PreparedData, out: Path, is_new: bool
) -> TextEncoder:
    """Learns a vocabulary or reads a frozen encoder, or takes the run's, or its start's."""
    if not is_new and (out / TEXT_FILE).exists():
        return load_text(out)
    start = recipe.transformer_training.init_from
    if start is not None:
        return load_text_tokenizer(start, recipe.text.encoder)
    return create_text_encoder(recipe.text, data.train.all_captions())


def _prepare_captions(
    text_tokenizer: TextEncoder, data: PreparedData, out: Path, console: Console
) -> CaptionReader:
    """Lets a frozen encoder read every caption, or finds them read; says which are too long."""
    captions = (caption for images in data.sides.values() for caption in images.all_captions())
    with _progress(console, "captions") as progress:
        path = out / TEXT_FOLDER / "features.npy"
        reader = prepare_captions(text_tokenizer, captions, path, progress=progress)
    problem = describe_cut(reader, data.train, text_tokenizer.max_tokens)
    if problem:
        console.print(problem)
    return reader


def _write_report(out: Path, console: Console) -> None:
    """Writes the run's report; training goes on without one."""
    try:
        write_report(out)
    except TessellaError as error:
        console.print(f"The run has no report: {error}")


def resolve_run(request: FitRequest, accelerator: Accelerator) -> tuple[Recipe, bool]:
    """Returns the recipe that the run keeps to, and whether the run is a new one."""
    recipe = resolve_recipe(request.preset, request.config_file, request.assignments)
    path = request.out / RUN_FILE
    if path.exists():
        run = read_config(path)
        if run.get("format") != FORMAT:
            raise CheckpointError(
                f"The run has format `{run.get('format')}`; this tessella reads format {FORMAT}: "
                f"`{request.out}`. Choose a new --out."
            )
        now = _asked(request, recipe)
        if request.minutes is None:
            # What they led to is fixed in the run; they need not be said again.
            now["minutes"] = run["asked"]["minutes"]
        _refuse_changes(flatten(run["asked"]), flatten(now), request.out)
        return build(Recipe, run["recipe"]), False
    if request.out.exists() and any(request.out.iterdir()) and not _is_begun(request.out):
        raise ConfigError(
            f"The folder holds something else than a run: `{request.out}`. Choose a new or empty "
            "--out."
        )
    if request.minutes is not None and request.preset is None and request.config_file is None:
        chosen = [choose_preset(request.minutes, accelerator)]
        broadcast_object_list(chosen)  # each process has measured; one decides
        recipe = resolve_recipe(chosen[0], None, request.assignments)
    return recipe, True


def _asked(request: FitRequest, recipe: Recipe) -> dict[str, Any]:
    return {
        "minutes": request.minutes,
        "seed": request.seed,
        "recipe": recipe.model_dump(mode="json"),
    }


def _refuse_changes(before: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    """Raises if a run is called again with other settings than it was begun with."""
    changed = [name for name in before | now if before.get(name) != now.get(name)]
    if changed:
        name = changed[0]
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise ConfigError(
            f"The run was begun with other settings: `{out}` has {name.removeprefix('recipe.')} = "
            f"`{before.get(name)}`, now it is `{now.get(name)}`{more}. Give the same settings to "
            "go on, or a new --out to begin again."
        )


def _is_begun(out: Path) -> bool:
    """Whether a folder without run.json is a run that stopped before it had one."""
    return all(
        path.name in (DATA_FOLDER, f"{DATA_FOLDER}.skipped.jsonl", TEXT_FOLDER)
        or path.name.startswith(".")
        for path in out.iterdir()
    )


def _keep_run(request: FitRequest, recipe: Recipe, accelerator: Accelerator) -> Recipe:
    """Fixes the recipe in the run; all processes keep to the first one's."""
    shared = [recipe.model_dump(mode="json")]
    broadcast_object_list(shared)
    if accelerator.is_main_process:
        asked = resolve_recipe(request.preset, request.config_file, request.assignments)
        run = {
            "format": FORMAT,
            "version": metadata.version("tessella"),
            "sources": [str(source) for source in request.sources],
            "asked": _asked(request, asked),
            "recipe": shared[0],
        }
        write_json(request.out / RUN_FILE, run, what="the run's recipe")
    accelerator.wait_for_everyone()
    return build(Recipe, shared[0])


def _prepare_data(request: FitRequest, recipe: Recipe, console: Console) -> PreparedData:
    with _progress(console, "data") as progress:
        data = prepare(request.sources, recipe.data, request.out / DATA_FOLDER, progress=progress)
    counts = data.manifest["counts"]
    console.print(
        f"Data: {counts['images']:,} images, {counts['captions']:,} captions; "
        f"{counts['train']:,} to train on, {counts['validation']:,} kept out, "
        f"{len(data.skipped):,} skipped."
    )
    return data


def _require_finished(folder: Path, settings: TrainingSettings) -> None:
    saved = load_latest_checkpoint(folder / CHECKPOINTS_FOLDER)
    if saved is None or saved.images_seen < settings.images:
        seen = 0 if saved is None else saved.images_seen
        raise ConfigError(
            f"The image tokenizer is not trained yet: `{folder}` has seen {seen:,} of "
            f"{settings.images:,} images. Run `tessella fit-tokenizer` with the same --out first."
        )


def _is_saved(model: TextToImage, folder: Path) -> bool:
    """Whether a folder holds this very model."""
    try:
        saved = TextToImage.load(folder, "cpu")
    except TessellaError:
        return False
    return saved.config == model.config and all(
        torch.equal(tensor, mine.state_dict()[name].cpu())
        for mine, theirs in (
            (model.tokenizer, saved.tokenizer),
            (model.transformer, saved.transformer),
        )
        for name, tensor in theirs.state_dict().items()
    )


def count_parameters(network: nn.Module) -> int:
    """Counts the numbers that a network has learned."""
    return sum(parameter.numel() for parameter in network.parameters())


@contextlib.contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """Keeps a second call from training in the same folder at the same time.

    The system releases the lock when its holder dies: a crash never blocks a run.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"Cannot make the run's folder: `{out}`; {error.strerror}.") from None
    with (out / LOCK_FILE).open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"Another process is training in this folder: `{out}`. Wait for it, stop it, or "
                "choose another --out."
            ) from None
        yield


@contextlib.contextmanager
def _progress(console: Console, what: str) -> Iterator[Callable[[int, int | None], None]]:
    """Shows a bar that goes away when it is full."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)

"""Checks of a call of `fit`: what is bound to fail is refused before anything is written or read.

In the order of what they cost: settings, the run's folder, DATA's kind, then the model.
"""

from pathlib import Path

from tessella.data.prepare import check_place
from tessella.data.sources import Source, recognise_all
from tessella.errors import ConfigError
from tessella.model.find import find_model, find_tokenizer
from tessella.model.pipeline import TextToImage
from tessella.runs import record
from tessella.text import TextEncoder, create_text_encoder
from tessella.tokenizer import VQAutoencoder
from tessella.tokenizer.losses import ReconstructionLoss
from tessella.training.checkpoint import CHECKPOINTS_FOLDER, read_images_seen
from tessella.training.initialize import (
    initialize_tokenizer,
    initialize_transformer,
    load_text_encoder,
)
from tessella.training.recipe import Recipe
from tessella.training.request import FitRequest, ResolvedRun
from tessella.training.run_folder import open_run, require_free
from tessella.training.sharding import require_sharding
from tessella.training.trackers import check_trackers


def check_request(request: FitRequest, *, is_main: bool = True) -> list[Source]:
    """Refuses what no measuring is needed for.

    Args:
        request: what is asked for.
        is_main: whether this is the first of the processes that train together, which has the lock.

    Returns:
        DATA, recognised.

    Raises:
        ConfigError: a setting is wrong, the run in `out` began with others, `out` holds something
            else, another process trains there, or a tracker is not installed.
        CheckpointError: the run has another format.
        DataError: DATA is not recognised, or `out` lies in it.
    """
    check_trackers(request.trackers)
    asked = request.describe()
    open_run(request.out, asked)
    if is_main:
        require_free(request.out)
    check_place(request.out / record.DATA_FOLDER, request.sources)
    return recognise_all(request.sources, asked["recipe"]["data"]["caption_column"])


def check_run(request: FitRequest, resolved: ResolvedRun) -> TextEncoder | None:
    """Refuses a run whose model cannot be built, or whose parts are missing.

    Returns:
        The text encoder of a new run, as `find_text_encoder`.

    Raises:
        ConfigError: settings do not go together, weights of a loss are missing, or the
            transformer is asked for before the image tokenizer.
        CheckpointError: a model to start from is missing or damaged.
    """
    recipe = resolved.recipe
    if request.stage == "transformer" and recipe.tokenizer.network != "palette":
        require_trained_tokenizer(request.out, recipe)
    if not resolved.is_new:
        return None
    for stage in (recipe.tokenizer_training, recipe.transformer_training):
        if stage.sharding != "none":
            require_sharding()
    recipe.describe_model().create_tokenizer()
    ReconstructionLoss(recipe.tokenizer_training.loss)
    for init_from, find in (
        (recipe.tokenizer_training.init_from, find_tokenizer),
        (recipe.transformer_training.init_from, find_model),
    ):
        if init_from is not None:
            find(init_from)
    encoder = find_text_encoder(recipe)
    # Any vocabulary will do to see whether the rest goes together.
    stand_in = create_text_encoder(recipe.text, ["a picture"]) if encoder is None else encoder
    model = TextToImage.create(recipe.describe_model(), stand_in)
    start_tokenizer(model.tokenizer, recipe)
    if recipe.transformer_training.init_from is not None and request.stage != "tokenizer":
        init_from = recipe.transformer_training.init_from
        initialize_transformer(model.transformer, init_from, stand_in)
    return encoder


def start_tokenizer(tokenizer: VQAutoencoder, recipe: Recipe) -> None:
    """Copies the weights that the image tokenizer starts from, if the recipe names any.

    Raises:
        ConfigError: they belong to other settings, or the decoder would stay untrained.
        CheckpointError: they cannot be read.
    """
    settings = recipe.tokenizer_training
    if settings.init_from is None:
        return
    has_decoder = initialize_tokenizer(tokenizer, settings.init_from)
    if not has_decoder and not settings.images:
        raise ConfigError("A new decoder has to learn: `0` images. Set tokenizer_training.images.")


def require_trained_tokenizer(out: Path, recipe: Recipe) -> None:
    """Refuses to train the transformer before the image tokenizer.

    Raises:
        ConfigError: says how far the image tokenizer is.
    """
    images = recipe.tokenizer_training.images
    images_seen = read_images_seen(out / "tokenizer" / CHECKPOINTS_FOLDER)
    if images_seen is None or images_seen < images:
        raise ConfigError(
            f"The image tokenizer is not trained yet: `{out / 'tokenizer'}` has "
            f"seen {images_seen or 0:,} of {images:,} images. Run `tessella fit-tokenizer` "
            "with the same --out first."
        )


def find_text_encoder(recipe: Recipe) -> TextEncoder | None:
    """Loads the text encoder that a recipe names; None if a vocabulary is learned from captions.

    Raises:
        ConfigError: it cannot be read, or is not that of the model to start from.
        CheckpointError: the model to start from cannot be read.
    """
    init_from = recipe.transformer_training.init_from
    if init_from is not None:
        return load_text_encoder(init_from, recipe.text.encoder)
    return None if recipe.text.encoder is None else create_text_encoder(recipe.text, ())

"""`tessella post`: a business in, social-media posts with pictures out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tessella.cli.llm_options import (
    DEFAULT_KEY_ENV,
    DEFAULT_TIMEOUT_SECONDS,
    Llm,
    LlmBaseUrl,
    LlmKeyEnv,
    LlmTimeoutSeconds,
)
from tessella.cli.options import DEFAULT_MODEL, BestOf, Debug, Device, DryRun, Json, Model, Seed
from tessella.cli.reporting import create_console, print_json, told_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from tessella.images import Pixels
    from tessella.model.pipeline import TextToImage
    from tessella.posts.folder import PostsFolder, PostsJob
    from tessella.posts.image_language import ImageLanguage

_OUT = Path("posts")


def post(
    business: Annotated[
        str, typer.Option(metavar="NAME", help="The name of the business.", show_default=False)
    ],
    about: Annotated[
        str, typer.Option(metavar="TEXT", help="What it does, in sentences.", show_default=False)
    ],
    count: Annotated[int, typer.Option(metavar="NUMBER", help="Posts.", min=1, max=50)] = 3,
    platform: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="instagram, facebook, x, linkedin, threads, bluesky, mastodon, pinterest or "
            "tiktok.",
        ),
    ] = "instagram",
    tone: Annotated[
        str,
        typer.Option(
            metavar="WORDS", help="Any; with --offline: warm, playful, professional or bold."
        ),
    ] = "warm",
    model: Model = DEFAULT_MODEL,
    best_of: BestOf = 4,
    seed: Seed = 0,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="For posts.json, posts.html and the pictures. The same command goes on with "
            "what is there.",
        ),
    ] = _OUT,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask no language model: write from templates.")
    ] = False,
    llm: Llm = None,
    llm_base_url: LlmBaseUrl = None,
    llm_key_env: LlmKeyEnv = DEFAULT_KEY_ENV,
    llm_timeout_seconds: LlmTimeoutSeconds = DEFAULT_TIMEOUT_SECONDS,
    device: Device = "auto",
    dry_run: DryRun = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write social-media posts for a business, and paint their pictures.

    A language model (--llm, else OPENAI_MODEL) writes texts, hashtags, alt texts and a label each,
    in the words that the image model knows; without one (--offline) templates do.
    """
    kept = "What is done is kept; the same command goes on from there."
    with told_errors(debug, if_interrupted=kept):
        from tessella.model.find import find_model
        from tessella.model.folder import read_captions
        from tessella.model.pipeline import TextToImage
        from tessella.posts.folder import NO_CHOICE, PostsFolder, PostsJob
        from tessella.posts.image_language import ImageLanguage
        from tessella.posts.language_model import LanguageModel
        from tessella.posts.model_writer import ModelWriter
        from tessella.posts.offline import OfflineWriter
        from tessella.posts.request import PostRequest

        request = PostRequest.create(business, about, platform=platform, tone=tone, seed=seed)
        language_model = None
        if not offline:
            language_model = LanguageModel.open(
                llm,
                base_url=llm_base_url,
                key_variable=llm_key_env,
                timeout_seconds=llm_timeout_seconds,
            )
        folder = find_model(model)
        painter = TextToImage.load(folder, device)
        notes = []
        if best_of > 1 and not painter.objective.has_likelihood:
            best_of, notes = 1, [NO_CHOICE]
        language = ImageLanguage(painter.text_tokenizer, read_captions(folder))
        writer = (
            ModelWriter(language_model, language) if language_model else OfflineWriter(language)
        )
        asked = PostsJob(request, count, model, best_of, writer.language_model)
        posts = PostsFolder(out.expanduser(), asked, notes)
        if dry_run:
            _tell_plan(asked, posts, language, as_json)
            return
        posts.write(writer)
        for file in posts.paint(_make_paint(painter, best_of)):
            create_console(as_json).print(f"Painted {file}")
        _tell(asked, posts, posts.write_page(), as_json)


def _make_paint(painter: "TextToImage", best_of: int) -> "Callable[[str, int], Pixels]":
    """Makes what paints one label with one seed."""
    import numpy as np

    def paint(label: str, seed: int) -> "Pixels":
        [image] = painter.generate(label, seed=seed, best_of=best_of)
        return np.asarray(image)

    return paint


def _tell(asked: "PostsJob", posts: "PostsFolder", page: Path, as_json: bool) -> None:
    """Says what was written and painted, by whom, and what was repaired."""
    if as_json:
        print_json({"dry_run": False, "out": str(posts.path), **posts.describe()})
        return
    console = create_console(as_json)
    console.print(f"{len(posts.posts)} posts for {asked.request.platform.name}: {page}")
    if asked.language_model:
        console.print(f"Written by the language model {asked.language_model}.")
    for note in posts.notes:
        console.print(note)
    for number, one in enumerate(posts.posts, start=1):
        for repair in one.repairs:
            console.print(f"Post {number}: {repair}.")


def _tell_plan(
    asked: "PostsJob", posts: "PostsFolder", language: "ImageLanguage", as_json: bool
) -> None:
    """Says what would be written, and what a language model would be asked."""
    from tessella.posts.model_writer import build_messages
    from tessella.posts.writer import BATCH_SIZE

    missing = asked.count - len(posts.posts)
    messages = []
    if asked.language_model and missing:
        messages = build_messages(asked.request, language, min(missing, BATCH_SIZE), posts.posts)
    if as_json:
        out = {"dry_run": True, "out": str(posts.path), **posts.describe()}
        print_json(out | {"messages": messages})
        return
    console = create_console(as_json)
    console.print(f"Would write {missing} of {asked.count} posts: {posts.path}")
    for note in posts.notes:
        console.print(note)
    for message in messages:
        console.print(f"--- {message['role']}\n{message['content']}")

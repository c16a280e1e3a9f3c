"""`tessella post`: a business in, social-media posts with pictures out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tessella.cli.llm_options import LlmOptions
from tessella.cli.option_groups import GroupedCommand, get_group
from tessella.cli.options import DEFAULT_MODEL, BestOf, Debug, Device, DryRun, Json, Model, Seed
from tessella.cli.reporting import create_console, print_json, told_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from tessella.images import Pixels
    from tessella.model.pipeline import TextToImage
    from tessella.posts.folder import PostsFolder, PostsJob
    from tessella.posts.image_language import ImageLanguage

_Business = Annotated[str, typer.Option(metavar="NAME", help="The name of the business.")]
_About = Annotated[str, typer.Option(metavar="TEXT", help="What it does, in sentences.")]
_Count = Annotated[int, typer.Option(metavar="NUMBER", help="Number of posts.", min=1, max=50)]
_Platform = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="instagram, facebook, x, linkedin, threads, bluesky, mastodon, pinterest or tiktok.",
    ),
]
_Tone = Annotated[
    str,
    typer.Option(metavar="WORDS", help="Any; with --offline: warm, playful, professional or bold."),
]
_Out = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER",
        help="The folder for posts.json, posts.html and the pictures. Rerun the command to resume.",
    ),
]
_Offline = Annotated[
    bool, typer.Option("--offline", help="Write from templates, without a language model.")
]
_OUT = Path("posts")


class PostCommand(GroupedCommand):
    """The command, with the options of a language model."""

    groups = (LlmOptions,)


def post(
    context: typer.Context,
    business: _Business,
    about: _About,
    count: _Count = 3,
    platform: _Platform = "instagram",
    tone: _Tone = "warm",
    model: Model = DEFAULT_MODEL,
    best_of: BestOf = 4,
    seed: Seed = 0,
    out: _Out = _OUT,
    offline: _Offline = False,
    device: Device = "auto",
    dry_run: DryRun = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write social-media posts for a business, and paint their pictures.

    A language model (--llm, else OPENAI_MODEL) writes the text, hashtags, alt text and picture
    prompt of each post, in words that the image model knows. With --offline, templates do.
    """
    resume = "Finished posts and pictures are kept; rerun the command to resume."
    with told_errors(debug, if_interrupted=resume):
        from tessella.model.find import find_model
        from tessella.model.folder import read_captions
        from tessella.model.pipeline import TextToImage
        from tessella.posts.folder import NO_CHOICE, PostsFolder, PostsJob
        from tessella.posts.image_language import ImageLanguage
        from tessella.posts.model_writer import ModelWriter
        from tessella.posts.offline import OfflineWriter
        from tessella.posts.request import PostRequest

        request = PostRequest.create(business, about, platform=platform, tone=tone, seed=seed)
        language_model = None
        if not offline:
            language_model = get_group(context, LlmOptions).open()
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
    """Makes the function that paints one label with one seed."""
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

"""`tessella post`: a business in, social-media posts with pictures out."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tessella.cli.command import Command, get_console, get_group
from tessella.cli.llm_options import LlmOptions
from tessella.cli.options import (
    DEFAULT_MODEL,
    BestOf,
    Device,
    DryRun,
    Model,
    Precision,
    References,
    Seed,
)
from tessella.cli.pictures import read_references
from tessella.cli.reporting import Result

if TYPE_CHECKING:
    from tessella.model.pipeline import TextToImage
    from tessella.posts.folder import PaintedPicture, PostsFolder, PostsJob
    from tessella.posts.image_language import ImageLanguage
    from tessella.retrieval import Example


@dataclass(frozen=True)
class PostOptions:
    """What to write, and where."""

    business: Annotated[str, typer.Option(metavar="NAME")]
    """The name of the business."""
    about: Annotated[str, typer.Option(metavar="TEXT")]
    """What it does, in sentences."""
    count: Annotated[int, typer.Option(metavar="NUMBER", min=1, max=50)] = 3
    """Number of posts."""
    platform: Annotated[str, typer.Option(metavar="NAME")] = "instagram"
    """instagram, facebook, x, linkedin, threads, bluesky, mastodon, pinterest or tiktok."""
    tone: Annotated[str, typer.Option(metavar="WORDS")] = "warm"
    """How the posts sound, in any words; with --offline warm, playful, professional or bold."""
    model: Model = DEFAULT_MODEL
    best_of: BestOf = 4
    references: References = None
    seed: Seed = 0
    out: Annotated[Path, typer.Option(metavar="FOLDER")] = Path("posts")
    """The folder for posts.json, posts.html and the pictures. Rerun the command to resume."""
    offline: Annotated[bool, typer.Option("--offline")] = False
    """Write from templates, without a language model."""
    device: Device = "auto"
    precision: Precision = "auto"
    dry_run: DryRun = False


class PostCommand(Command):
    """The command, with its options and those of a language model."""

    groups = (PostOptions, LlmOptions, *Command.groups)
    if_interrupted = "Finished posts and pictures are kept; rerun the command to resume."


def post(context: typer.Context) -> Result:
    """Write social-media posts for a business, and paint their pictures.

    A language model (--llm, else OPENAI_MODEL) writes the text, hashtags, alt text and picture
    prompt of each post, in words that the image model knows. With --offline, templates do.
    """
    from tessella.model.find import find_model
    from tessella.model.folder import read_captions
    from tessella.model.pipeline import TextToImage
    from tessella.posts.folder import NO_CHOICE, PostsFolder, PostsJob
    from tessella.posts.image_language import ImageLanguage
    from tessella.posts.model_writer import ModelWriter
    from tessella.posts.offline import OfflineWriter
    from tessella.posts.request import PostRequest

    options = get_group(context, PostOptions)
    request = PostRequest.create(
        options.business,
        options.about,
        platform=options.platform,
        tone=options.tone,
        seed=options.seed,
    )
    language_model = None if options.offline else get_group(context, LlmOptions).open()
    folder = find_model(options.model)
    painter = TextToImage.load(folder, options.device, options.precision)
    references = read_references(options.references, painter)
    best_of, notes = options.best_of, []
    if best_of > 1 and not painter.objective.has_likelihood:
        best_of, notes = 1, [NO_CHOICE]
    language = ImageLanguage(painter.text_tokenizer, read_captions(folder))
    writer = ModelWriter(language_model, language) if language_model else OfflineWriter(language)
    job = PostsJob(
        request,
        options.count,
        options.model,
        best_of,
        writer.language_model,
        [one.name for one in references],
    )
    posts = PostsFolder(options.out.expanduser(), job, notes)
    if options.dry_run:
        return _plan(job, posts, language)
    posts.write(writer)
    for file in posts.paint(functools.partial(_paint, painter, job, references)):
        get_console(context).print(f"Painted {file}")
    page = posts.write_page()
    values = {"dry_run": False, "out": str(posts.path), **posts.describe()}
    return Result(values, _describe(job, posts, page))


def _paint(
    painter: "TextToImage", job: "PostsJob", references: Sequence["Example"], label: str, seed: int
) -> "PaintedPicture":
    """Paints the picture of a post."""
    from tessella.model.provenance import create_png_texts, describe_request
    from tessella.model.request import ImageRequest
    from tessella.posts.folder import PaintedPicture

    settings = painter.config.generation
    examples = painter.examples.find(label, settings.neighbors, references=references)
    request = ImageRequest(label, seed, examples=examples)
    images = painter.generate_images([request], best_of=job.best_of)
    made_with = {
        "command": "post",
        "model": job.model,
        "best_of": job.best_of,
        "settings": settings.model_dump(mode="json"),
        "precision": asdict(painter.precision),
    }
    texts = create_png_texts([describe_request(request)], made_with)
    return PaintedPicture(images.pixels[0], texts)


def _describe(job: "PostsJob", posts: "PostsFolder", page: Path) -> Iterator[str]:
    """Says what was written, by whom, and what was repaired."""
    from tessella.posts.folder import POSTS_FILE

    yield f"{len(posts.posts)} posts for {job.request.platform.name}: {page}"
    if job.language_model:
        yield f"Written by the language model {job.language_model}."
    yield from posts.notes
    if any(post["examples"] for post in posts.describe()["posts"]):
        yield f"Looked at: see `examples` in {posts.path / POSTS_FILE}"
    for number, one in enumerate(posts.posts, start=1):
        for repair in one.repairs:
            yield f"Post {number}: {repair}."


def _plan(job: "PostsJob", posts: "PostsFolder", language: "ImageLanguage") -> Result:
    """Says what would be written, and what a language model would be asked."""
    from tessella.posts.model_writer import build_messages
    from tessella.posts.writer import BATCH_SIZE

    missing = job.count - len(posts.posts)
    messages = []
    if job.language_model and missing:
        messages = build_messages(job.request, language, min(missing, BATCH_SIZE), posts.posts)
    values = {"dry_run": True, "out": str(posts.path), **posts.describe(), "messages": messages}
    lines = [f"Would write {missing} of {job.count} posts: {posts.path}", *posts.notes]
    if job.references:
        lines.append(f"Every picture would look at: {'; '.join(job.references)}")
    lines += ["--- {role}\n{content}".format(**message) for message in messages]
    return Result(values, lines)

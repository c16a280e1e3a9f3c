"""The application: routes, and the middleware around them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fastapi import APIRouter, FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from tessella.generation import GenerationSettings
from tessella.posts.language_model import LanguageModel
from tessella.posts.offline import TONES
from tessella.posts.platforms import PLATFORMS
from tessella.serving.access_log import AccessLog
from tessella.serving.addresses import OneAddress
from tessella.serving.api_errors import ApiError, JsonResponse, install_error_handlers
from tessella.serving.document import ERRORS, install_document
from tessella.serving.images import create_images_router
from tessella.serving.middleware import ApiKeys, Guard, needs_key
from tessella.serving.model_routes import create_models_router
from tessella.serving.models_served import ServedModel
from tessella.serving.posts_routes import PostsBody, create_posts_router
from tessella.serving.run_routes import create_run_router
from tessella.serving.schemas import (
    MAX_API_SEED,
    EditBody,
    GenerationBody,
    StudioBody,
    VariationBody,
)
from tessella.serving.sdapi import create_sdapi_router
from tessella.serving.sdapi_bodies import ImageToImageBody
from tessella.serving.service import PaintingService
from tessella.serving.settings import ServeSettings
from tessella.serving.studio import create_studio_router
from tessella.serving.worker import PaintingWorker

_OWN_FIELDS = ["seed", "best_of", "negative_prompt", "strength", *GenerationSettings.model_fields]
_DESCRIPTION = f"""\
Paints pictures with models that were trained on your own captioned images. The image API is
OpenAI's: its clients work with this server as their base URL, ending in `/v1`. Tessella adds the
fields {", ".join(f"`{name}`" for name in _OWN_FIELDS)}."""


def create_app(
    models: Mapping[str, ServedModel],
    settings: ServeSettings | None = None,
    *,
    keys: Sequence[str] = (),
    language_model: LanguageModel | None = None,
    run: Path | None = None,
    worker: PaintingWorker | None = None,
) -> FastAPI:
    """Builds the application; its worker begins with it and ends with it.

    Args:
        models: by the name that requests give; the first is the default.
        settings: limits.
        keys: API keys; none leaves the API open.
        language_model: writes posts; None: templates do.
        run: a training run's folder, shown live by the page.
        worker: the one in whose thread the models were loaded; one is made unless given.
    """
    service = PaintingService(models, settings or ServeSettings(), worker)
    api_keys = ApiKeys(keys)

    app = FastAPI(
        title="tessella",
        version="1",
        summary="Text to image with your own models.",
        description=_DESCRIPTION,
        lifespan=service.live,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        default_response_class=JsonResponse,
        responses=ERRORS,
    )
    app.state.service = service
    routers = _create_routers(service, language_model, run)
    page = StudioBody(
        models=list(models),
        run=run is not None,
        posts="off" if not models else "llm" if language_model else "offline",
        key_required=bool(api_keys),
        post_platforms=list(PLATFORMS),
        post_tones=list(TONES),
        max_seed=MAX_API_SEED,
    )
    studio = create_studio_router(page, service.settings.allow_frames)
    for router in (*routers, studio):
        app.include_router(router)
    # Not from the document: making it takes a second, during which nobody is answered.
    app.state.addresses = [getattr(one, "path", "") for router in routers for one in router.routes]
    app.state.routes = [one for router in (*routers, studio) for one in router.routes]
    install_error_handlers(app)
    install_document(
        app, lambda path: bool(api_keys) and needs_key(path), service.settings.root_path
    )
    _add_middleware(app, service, api_keys)
    return app


def _create_routers(
    service: PaintingService, language_model: LanguageModel | None, run: Path | None
) -> list[APIRouter]:
    """Creates the addresses of the API."""
    routers = [
        create_images_router(service),
        create_sdapi_router(service),
        create_models_router(service),
        create_posts_router(language_model, service),
        _create_health_router(service),
    ]
    if run is not None:
        routers.append(create_run_router(run))
    return routers


def _add_middleware(app: FastAPI, service: PaintingService, api_keys: ApiKeys) -> None:
    """Puts around an application what every request goes through."""
    settings = service.settings
    # The last one added is the first to see a request: a named page may read each refusal.
    app.add_middleware(Guard, settings=settings, keys=api_keys)
    if settings.allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allow_origins,
            allow_methods=["GET", "POST"],
            # OpenAI's client for browsers sends a dozen of its own.
            allow_headers=["*"],
            expose_headers=["Retry-After", "X-Request-Id"],
        )
    words = [*service.models, *_list_words()]
    app.add_middleware(AccessLog, metrics=service.metrics, words=words)
    app.add_middleware(OneAddress, root_path=settings.root_path)


def _list_words() -> Iterator[str]:
    """Lists what errors quote that is no client's: fields, parts of forms, options."""
    bodies = GenerationBody, EditBody, VariationBody, PostsBody, ImageToImageBody
    for kind in bodies:
        yield from kind.model_fields
    yield from GenerationSettings.model_fields
    yield from ("image", "mask", "image[]", "n", "Authorization: Bearer KEY", "--any-model")


def _create_health_router(service: PaintingService) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/healthz", summary="Check that the server is alive")
    async def is_alive() -> Response:
        if not service.worker.is_alive:
            message = "The painting thread has ended; the log says why. Restart the server."
            raise ApiError(503, message, code="worker_ended")
        return JsonResponse({"status": "ok"})

    @router.get("/readyz", summary="Check that the server takes requests")
    async def is_ready() -> Response:
        if not service.worker.takes_jobs:
            raise ApiError(503, "The server takes no requests.", code="not_ready")
        return JsonResponse({"status": "ok"})

    @router.get(
        "/metrics",
        summary="Fetch counters for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    def fetch_metrics() -> Response:
        return Response(service.metrics.render(), media_type="text/plain; version=0.0.4")

    return router

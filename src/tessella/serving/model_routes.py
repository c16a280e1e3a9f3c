"""The routes about models: their list, cards, codebooks."""

import functools
import hashlib
import re

import numpy as np
import torch
from fastapi import APIRouter, Request
from starlette.responses import Response

from tessella.images import encode_picture
from tessella.model.codec import decode_latent
from tessella.serving import schemas
from tessella.serving.api_errors import ApiError
from tessella.serving.document import describe_file
from tessella.serving.image_answer import encode_base64
from tessella.serving.models_served import ServedModel
from tessella.serving.service import PaintingService
from tessella.serving.studio import answer_unless_known

_MAX_EXAMPLES = 24
_INDEX = re.compile(r"[0-9]{1,12}")
_CODEBOOK_COLUMNS = 32
_MOSAIC_SIDE = 5  # enough that its middle does not see its edge


def create_models_router(service: PaintingService) -> APIRouter:
    """Serves OpenAI's list of models, and the rest of what is known about each."""
    router = APIRouter(prefix="/v1/models", tags=["models"])

    @router.get("", summary="List the models")
    def list_models() -> schemas.ModelsBody:
        models = [_describe(served, service) for served in service.models.values()]
        return schemas.ModelsBody(object="list", data=models)

    @router.get("/{name}", summary="Describe a model")
    def describe(name: str) -> schemas.ModelBody:
        return _describe(service.find(name), service)

    @router.get("/{name}/card", summary="Read a model's card")
    def read_card(name: str) -> schemas.CardBody:
        served, samples = service.find_exactly(name), f"/v1/models/{name}/samples.png"
        return schemas.CardBody(
            id=name, markdown=served.card, metrics=served.metrics, samples=samples
        )

    @router.get(
        "/{name}/samples.png",
        summary="Fetch the sheet of pictures of a model's card",
        response_class=Response,
        responses=describe_file("The sheet", "image/png"),
    )
    def fetch_samples(name: str) -> Response:
        samples = service.find_exactly(name).samples
        if samples is None:
            raise ApiError(404, f"The model has no samples: `{name}`.", code="not_found")
        return Response(samples, media_type="image/png")

    @router.get(
        "/{name}/examples/{index}.png",
        summary="Fetch an example that the model looks at, as its codes decode",
        response_class=Response,
        responses=describe_file("The picture", "image/png"),
    )
    async def fetch_example(name: str, index: str, request: Request) -> Response:
        served = service.find_exactly(name)
        if not _INDEX.fullmatch(index):
            raise ApiError(404, f"An example has a number, from 0: `{index[:40]}`.", param="index")
        codes = served.examples.read(int(index)).codes.tobytes()
        # The same number may be another picture later: the browser asks, and mostly gets a 304.
        tag = hashlib.sha256(f"{served.created} ".encode() + codes).hexdigest()[:24]
        headers = {"ETag": f'"{tag}"', "Cache-Control": "private, no-cache"}
        known = request.headers.get("if-none-match")
        if headers["ETag"] in (known or ""):
            return answer_unless_known(b"", "image/png", headers, known)
        content = await service.call(request, lambda: _draw_example(served, codes))
        return answer_unless_known(content, "image/png", headers, None)

    @router.get("/{name}/codebook", summary="Fetch the codebook as tiles")
    async def read_codebook(name: str, request: Request) -> schemas.CodebookBody:
        served = service.find_exactly(name)
        return await service.call(request, lambda: _draw_codebook(served))

    return router


def _describe(served: ServedModel, service: PaintingService) -> schemas.ModelBody:
    config, objective = served.model.config, served.model.objective
    most = served.examples.most
    return schemas.ModelBody(
        id=served.name,
        object="model",
        created=served.created,
        owned_by="tessella",
        image_size=config.image_size,
        grid=list(config.grid),
        codebook_size=config.tokenizer.quantizer.codebook_size,
        codes_per_position=config.tokenizer.quantizer.codes_per_position,
        objective=objective.name,
        precision=served.model.precision.name,
        max_prompt_tokens=served.model.text_tokenizer.max_tokens,
        generation=config.generation,
        can=schemas.ModelAbilities.model_validate(objective),
        limits=schemas.ModelLimits.model_validate(service.settings),
        memory=schemas.ModelMemory(examples=len(served.examples), neighbors=most) if most else None,
        examples=served.captions.examples[:_MAX_EXAMPLES] if served.captions else [],
    )


@functools.lru_cache(maxsize=256)
def _draw_example(served: ServedModel, codes: bytes) -> bytes:
    """Decodes an example's codes (M, h, w) uint16 into a PNG."""
    grids = np.frombuffer(codes, np.uint16).reshape(-1, *served.model.config.grid)
    [pixels] = served.model.decode_codes(torch.from_numpy(grids.astype(np.int64))[None])
    return encode_picture(pixels)


@functools.lru_cache(maxsize=16)
def _draw_codebook(served: ServedModel) -> schemas.CodebookBody:
    """Decodes a mosaic of each code alone, and takes the tile in its middle.

    The other codes of a position are the mean of their codebooks.
    """
    model, codebook = served.model, served.model.tokenizer.codebook  # (M, K, C)
    means = codebook.mean(1)
    latents = (codebook + (means.sum(0) - means)[:, None]).flatten(0, 1)  # (M · K, C)
    size = len(latents)
    tile = model.config.tokenizer.downsampling
    height, width = (min(side, _MOSAIC_SIDE) for side in model.config.grid)
    top, left = height // 2 * tile, width // 2 * tile
    rows = -(-size // _CODEBOOK_COLUMNS)
    tiles = np.full((rows * _CODEBOOK_COLUMNS, tile, tile, 3), 255, dtype=np.uint8)
    for codes in torch.arange(size).split(_CODEBOOK_COLUMNS):
        mosaics = latents[codes, :, None, None].expand(-1, -1, height, width)
        decoded = decode_latent(model.tokenizer, mosaics, model.config.grid)
        tiles[codes.numpy()] = decoded[:, top : top + tile, left : left + tile]
    sheet = tiles.reshape(rows, _CODEBOOK_COLUMNS, tile, tile, 3).swapaxes(1, 2)
    picture = sheet.reshape(rows * tile, _CODEBOOK_COLUMNS * tile, 3)
    return schemas.CodebookBody(
        codebook_size=codebook.shape[1],
        codes_per_position=len(codebook),
        columns=_CODEBOOK_COLUMNS,
        tile_px=tile,
        b64_png=encode_base64(encode_picture(picture)),
    )

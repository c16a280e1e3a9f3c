"""A canvas: the positions of a picture, some with codes, the others still to be sampled.

The ways to generate differ only in the canvas that they start from:

    generate     nothing is known
    edit         all positions are known that the mask does not touch
    outpaint     the picture is known, its surroundings are not
    vary         some positions are known, drawn by the seed

A transformer sees h × w positions at once. A larger canvas is sampled window by window; windows
overlap by half, and each keeps the codes that it finds, so that it continues its neighbours.

Source: sliding windows as in Taming Transformers (arXiv:2012.09841, section 3.3), which moves
by one code where this moves by half a window.
"""

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from tessella.errors import GenerationError
from tessella.images import Pixels, fit_square, to_rgb
from tessella.model.mask import Mask

MAX_SIDE = 4096
"""Pixels a side of the largest picture and canvas."""

Window = tuple[slice, slice]
"""Rows and columns of a canvas."""


@dataclass(frozen=True, eq=False)
class Canvas:
    """One picture before it is generated."""

    codes: Tensor  # (M, h, w) int64, read where `known`; (1, h, w) where nothing is
    known: Tensor  # (h, w) bool: positions that keep their code
    image: Pixels | None = None  # (H, W, 3) the picture whose pixels stay; None: none do
    repainted: Mask | None = None  # (H, W) True where they don't

    @classmethod
    def new(cls, grid: tuple[int, int]) -> "Canvas":
        """Returns an empty canvas of (h, w) positions."""
        return cls(torch.zeros((1, *grid), dtype=torch.int64), torch.zeros(grid, dtype=torch.bool))

    @classmethod
    def edit(cls, image: Pixels, codes: Tensor, repainted: Mask) -> "Canvas":
        """Keeps a picture (S, S, 3) with codes (M, h, w) but for what the mask (S, S) touches."""
        _, height, width = codes.shape
        tiles = torch.from_numpy(repainted).view(height, len(image) // height, width, -1)
        return cls(codes, ~tiles.any(3).any(1), image, repainted)

    @classmethod
    def outpaint(
        cls, image: Pixels, codes: Tensor, *, left: int, top: int, right: int, bottom: int
    ) -> "Canvas":
        """Puts a picture (S, S, 3) with codes (M, h, w) on a larger canvas.

        Raises:
            GenerationError: nothing is added, or not by whole positions, or too much.
        """
        size, side = len(image), len(image) // codes.shape[1]
        check_margins({"left": left, "top": top, "right": right, "bottom": bottom}, side)
        find_grid((left + size + right, top + size + bottom), side, size)
        around = ((top, bottom), (left, right))
        spare = [margin // side for margin in (left, right, top, bottom)]
        return cls(
            functional.pad(codes, spare),
            functional.pad(torch.ones_like(codes[0], dtype=torch.bool), spare),
            np.pad(image, (*around, (0, 0))),
            np.pad(np.zeros((size, size), np.bool_), around, constant_values=True),
        )

    @classmethod
    def variations(cls, codes: Tensor, seeds: Sequence[int], *, strength: float) -> "list[Canvas]":
        """Keeps some of a picture's codes (M, h, w); each seed draws its own positions.

        Raises:
            GenerationError: the strength is out of range.
        """
        if not 0 < strength <= 1:
            raise GenerationError(
                "The strength is the fraction of a picture to repaint, above 0 and at "
                f"most 1: `{strength}`. Try 0.5."
            )
        num_positions = codes[0].numel()
        num_open = max(1, round(strength * num_positions))
        ranks = [np.random.default_rng(seed).permutation(num_positions) for seed in seeds]
        is_known = [torch.from_numpy(rank >= num_open).view_as(codes[0]) for rank in ranks]
        return [cls(codes, known) for known in is_known]

    def finish(self, generated: Pixels) -> Pixels:
        """Puts the pixels that stay back into the generated picture (H, W, 3)."""
        if self.image is None or self.repainted is None:
            return generated
        return np.where(self.repainted[..., None], generated, self.image)


def find_layout(known: Tensor, grid: tuple[int, int]) -> Hashable:
    """Returns a key of canvases that can be sampled together: those with equal layouts.

    Args:
        known: (h', w') bool, at least as large as the grid.
        grid: (h, w), what the transformer sees.
    """
    if tuple(known.shape) == grid:
        return grid, int(known.sum())
    # A larger one is sampled by windows, whose order depends on which positions are known.
    return tuple(known.shape), known.cpu().numpy().tobytes()


def plan_windows(known: Tensor, grid: tuple[int, int]) -> list[Window]:
    """Plans the windows that sample a canvas, each position once.

    They go row by row; around known positions they go outwards from their middle, so that every
    window has something to continue.

    Args:
        known: (h', w') bool, at least as large as the grid.
        grid: (h, w), what the transformer sees.

    Returns:
        Windows of h × w positions in the order of sampling, each with an open position by then.
    """
    (height, width), (rows, columns) = grid, known.shape
    windows = list(itertools.product(_list_spans(rows, height), _list_spans(columns, width)))
    is_decoded = known.to("cpu", copy=True)
    if is_decoded.any():
        y, x = is_decoded.nonzero().double().mean(0).tolist()
        y, x = y - (height - 1) / 2, x - (width - 1) / 2  # a window's corner, were it in the middle
        windows.sort(key=lambda w: (w[0].start - y) ** 2 + (w[1].start - x) ** 2)
    planned = []
    for window in windows:
        if not is_decoded[window].all():
            planned.append(window)
            is_decoded[window] = True
    return planned


def _list_spans(total: int, side: int) -> list[slice]:
    """Lists the spans of one axis: they overlap by half, the last ends with the canvas."""
    starts = [*range(0, total - side, max(1, side // 2)), total - side]
    return [slice(start, start + side) for start in starts]


def derive_seed(seed: int, window: int) -> int:
    """Derives each window's seed from the picture's, which the first window keeps."""
    if window == 0:
        return seed
    return int(np.random.SeedSequence([seed, window]).generate_state(1, np.uint64)[0] >> 1)


def find_grid(size: tuple[int, int], downsampling: int, trained_size: int) -> tuple[int, int]:
    """Finds the positions (h, w) of a canvas.

    Args:
        size: (width, height) in pixels.
        downsampling: pixels a side of one position.
        trained_size: side of the pictures that the model learned.

    Raises:
        GenerationError: the size isn't a multiple of the downsampling, is smaller than the trained
            one or too large; names valid ones.
    """
    width, height = size
    value = f"`{width}x{height}`"
    low, high = trained_size, MAX_SIDE // downsampling * downsampling
    if min(size) < low or max(size) > high:
        multiples = [side // downsampling * downsampling for side in size]
        nearest = "x".join(str(min(max(side, low), high)) for side in multiples)
        raise GenerationError(
            f"A canvas must be at least {low} pixels a side (the size that the model learned) and "
            f"at most {high}: {value}. Try {nearest}."
        )
    if width % downsampling or height % downsampling:
        below = [side // downsampling * downsampling for side in size]
        above = [-(-side // downsampling) * downsampling for side in size]
        raise GenerationError(
            f"A canvas must be a multiple of {downsampling} (the tokenizer's "
            f"downsampling): {value}. Try {below[0]}x{below[1]} or {above[0]}x{above[1]}."
        )
    return height // downsampling, width // downsampling


def check_margins(margins: Mapping[str, int], downsampling: int) -> None:
    """Refuses to outpaint by nothing, or by a fraction of a position.

    Args:
        margins: pixels by the name of the side.
        downsampling: pixels a side of one position.

    Raises:
        GenerationError: names the side and valid margins.
    """
    for name, margin in margins.items():
        if margin < 0 or margin % downsampling:
            low = max(0, margin // downsampling * downsampling)
            raise GenerationError(
                f"What is added must be a multiple of {downsampling} (the tokenizer's "
                f"downsampling): `{name} {margin}`. Try {low} or {low + downsampling}."
            )
    if not any(margins.values()):
        raise GenerationError(
            "There is nothing to outpaint: `left`, `top`, `right` and `bottom` are "
            f"0. Give pixels to add, multiples of {downsampling}."
        )


def fit_images(images: Sequence[Image.Image] | Pixels, size: int) -> Pixels:
    """Crops pictures to the square in the middle and resizes them.

    Args:
        images: of any size and mode.
        size: side of the squares in pixels.

    Returns:
        (B, size, size, 3); a picture that has this size already stays as it is.

    Raises:
        GenerationError: the list is empty, or holds something else than pictures.
        DataError: a picture's values cannot be read as colours.
    """
    if not len(images):
        raise GenerationError("There is no picture. Give at least one.")
    squares = []
    for image in images:
        opened = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        if not isinstance(opened, Image.Image):
            raise GenerationError(
                f"This is not a picture: `{type(image).__name__}`. Open it with PIL.Image.open."
            )
        squares.append(fit_square(to_rgb(opened), size))
    return np.stack(squares)

"""pixels ↔ codes: batches of any size, and pictures that do not depend on their neighbours."""

import numpy as np
import pytest
import torch

from tessella.images import to_float
from tessella.model import codec
from tessella.model.codec import decode_latent, encode_pixels, encode_stored
from tessella.tokenizer import VQAutoencoder
from untrained import create_untrained, describe_tokenizer

TOKENIZER: VQAutoencoder = create_untrained().tokenizer
GRID = (4, 4)


def draw_latent(count: int, grid: tuple[int, int] = GRID) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(16, (count, 1, *grid), generator=generator)
    return TOKENIZER.quantizer.look_up(codes)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 9])
def test_pixels_do_not_depend_on_the_other_pictures(count: int) -> None:
    """Alone or beside others, first or last: the same, bit for bit."""
    latent = draw_latent(count)
    together = decode_latent(TOKENIZER, latent, GRID)
    assert together.shape == (count, 16, 16, 3)
    assert together.dtype == np.uint8
    for index in range(count):
        alone = decode_latent(TOKENIZER, latent[index : index + 1], GRID)
        assert np.array_equal(alone[0], together[index])


def test_the_decoder_sees_one_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of larger pictures fewer, as many positions at a time; never none."""
    sizes: list[int] = []
    decode = TOKENIZER.decode_latent

    def record(latent: torch.Tensor) -> torch.Tensor:
        sizes.append(len(latent))
        return decode(latent)

    monkeypatch.setattr(TOKENIZER, "decode_latent", record)
    for count, grid, expected in (
        (1, GRID, [4]),
        (5, GRID, [4, 4]),
        (3, (4, 8), [2, 2]),
        (2, (16, 16), [1, 1]),
    ):
        sizes.clear()
        assert len(decode_latent(TOKENIZER, draw_latent(count, grid), GRID)) == count
        assert sizes == expected


def test_pixels_are_encoded_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    codes = encode_pixels(TOKENIZER, pixels)
    assert codes.shape == (5, 1, *GRID)
    monkeypatch.setattr(codec, "_ENCODED_TOGETHER", 2)
    assert torch.equal(encode_pixels(TOKENIZER, pixels), codes)


def test_a_memory_holds_all_codes_of_a_position() -> None:
    """As the tokenizer encodes them, in the order of its codebooks."""
    tokenizer = create_untrained(tokenizer=describe_tokenizer(3)).tokenizer
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    stored = encode_stored(tokenizer, pixels)
    assert (stored.dtype, stored.shape) == (np.uint16, (2, 3, *GRID))
    with torch.no_grad():
        groups = tokenizer._encode(to_float(torch.from_numpy(pixels))).chunk(3, 1)
        for m, group in enumerate(groups):
            assert np.array_equal(stored[:, m], tokenizer.quantizer.parts[m].encode(group))
    assert len({grid.tobytes() for grid in stored[0]}) == 3

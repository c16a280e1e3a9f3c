"""How close reconstructions come, by hand."""

import numpy as np
import pytest
import torch

from tessella.evaluation import reconstruction
from tessella.evaluation.reconstruction import compute_psnr, evaluate_reconstructions
from tessella.tokenizer import ImageTokenizer, TokenizerSettings

CPU = torch.device("cpu")


def test_psnr_by_hand() -> None:
    """Every pixel wrong by 255 is 0 dB; by 25.5, 20 dB; the mean is of the dB, not the errors."""
    black = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    made = black.copy()
    made[0] = 255
    assert compute_psnr(made[:1], black[:1]) == pytest.approx(0.0)
    made[1] = 51  # a fifth: 20 · log10(5)
    assert compute_psnr(made[1:], black[1:]) == pytest.approx(13.9794, abs=1e-4)
    assert compute_psnr(made, black) == pytest.approx(13.9794 / 2, abs=1e-4)
    # Darker by as much is as wrong: uint8 does not wrap around.
    assert compute_psnr(black, made) == compute_psnr(made, black)


def test_one_wrong_level_counts_less_than_none_at_all() -> None:
    image = np.full((1, 8, 8, 3), 100, dtype=np.uint8)
    nearly = image.copy()
    nearly[0, 0, 0, 0] = 101
    # 1 / 192 is the mean square of the one, a quarter of it stands for none.
    assert compute_psnr(nearly, image) == pytest.approx(10 * np.log10(255**2 * 192))
    assert compute_psnr(image, image) == pytest.approx(10 * np.log10(255**2 * 192 * 4))


class Stripes(ImageTokenizer):
    """A tokenizer that is not trained but told: the code of a picture is its first pixel."""

    def __init__(self) -> None:
        super().__init__(
            TokenizerSettings.model_validate(
                {"patch": 4, "widths": (16,), "quantizer": {"codebook_size": 8, "code_width": 2}}
            )
        )

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        first = ((image[:, :1, ::4, ::4] + 1) * 127.5).round().long()
        return first[:, 0] % 8

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        grey = codes.float()[:, None] / 127.5 - 1
        return grey.repeat(1, 3, 4, 4)


@pytest.mark.parametrize("batch", [64, 2])
def test_a_report_by_hand(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five pictures, codes 1, 1, 1, 1 and 3: entropy of (0.8, 0.2) is 0.50040."""
    monkeypatch.setattr(reconstruction, "_BATCH", batch)
    pixels = np.empty((5, 4, 4, 3), dtype=np.uint8)
    pixels[:] = np.array([1, 1, 1, 1, 3])[:, None, None, None]
    made = evaluate_reconstructions(Stripes().eval(), pixels, CPU)
    assert np.array_equal(made.pixels, pixels)
    assert made.codes.flatten().tolist() == [1, 1, 1, 1, 3]
    assert made.codes_used == 2
    assert made.perplexity == pytest.approx(np.exp(0.50040), abs=1e-4)
    assert made.psnr == pytest.approx(compute_psnr(pixels, pixels))
    assert made.metrics() == {
        "psnr": made.psnr,
        "codes_used": 2.0,
        "perplexity": made.perplexity,
    }


def test_every_code_alike_is_the_whole_codebook() -> None:
    pixels = np.empty((8, 4, 4, 3), dtype=np.uint8)
    pixels[:] = np.arange(8)[:, None, None, None]
    assert evaluate_reconstructions(Stripes().eval(), pixels, CPU).perplexity == pytest.approx(8.0)

"""The bundled models generate the same pictures as ever."""

import hashlib

import pytest

import tessella
from tessella.model.request import list_requests


@pytest.mark.parametrize(
    ("name", "prompts", "digest"),
    [
        (
            "scenes",
            [
                "a large red star on a navy background",
                "a small blue ring left of a large green square on a white background",
            ],
            "50625cc67d2abb7e2a2e246c9cb14cd81ad6d49a7d3a33e2bb57a9a001c518e4",
        ),
        (
            "stickers",
            ["octopus, 3d emoji", "red apple, glossy emoji"],
            "3e2c013967b1db2ef170b992bcaa06bf7e03993afc0d82924e6d370970fd14da",
        ),
    ],
)
def test_a_bundled_model_generates_the_codes_that_it_always_did(
    name: str, prompts: list[str], digest: str
) -> None:
    """SHA-256 of four pictures' codes, from the code before the redesign, with 1 and 2 threads.

    Codes rather than pixels: another CPU rounds otherwise, which an argmax survives almost surely
    and the last bit of a pixel does not. If this fails on new hardware alone, look at the
    pictures; if it fails anywhere after a change of code, the change is wrong.
    """
    model = tessella.load(name, device="cpu")
    codes = model.generate_images(list_requests(prompts, count=2, seed=3)).codes
    assert codes is not None
    assert hashlib.sha256(codes.numpy().astype("<i8").tobytes()).hexdigest() == digest

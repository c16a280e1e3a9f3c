"""The bundled models generate the same pictures from one release to the next."""

import hashlib

import pytest

import tessella
from tessella.checksums import SUMS_FILE, prove, read_sums
from tessella.model.find import find_model, list_bundled
from tessella.model.request import list_requests


@pytest.mark.parametrize("name", list_bundled())
def test_the_sums_of_a_bundled_model_name_every_file(name: str) -> None:
    """After a change, `tessella.checksums.write_sums(folder)` writes them anew."""
    folder = find_model(name)
    names = {path.name for path in folder.iterdir()} - {SUMS_FILE}
    assert set(read_sums(folder) or ()) == names
    for one in names:
        prove(folder, one)


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
            "7f8b88d4ff69c7b7b723d09f7fe01e3d8d65dbfd7d2dec28bdf57809ddd6cb01",
        ),
    ],
)
def test_a_bundled_model_generates_the_same_codes(
    name: str, prompts: list[str], digest: str
) -> None:
    """SHA-256 of four pictures' codes, computed when it was bundled, with 1 and with 2 threads.

    Codes rather than pixels: another CPU may round differently, which an argmax almost always
    survives and the last bit of a pixel does not. A failure on new hardware alone is a reason to
    look at the pictures; a failure after a change of code means that the change is wrong.
    """
    model = tessella.load(name, device="cpu")
    codes = model.generate_images(list_requests(prompts, count=2, seed=3)).codes
    assert codes is not None
    assert hashlib.sha256(codes.numpy().astype("<i8").tobytes()).hexdigest() == digest

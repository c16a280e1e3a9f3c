"""What all tests share: two threads, and one small prepared data set."""

from collections.abc import Mapping

import pytest
import torch

from tessella.data.cache import CaptionedImages
from tessella.data.prepare import prepare
from tessella.data.settings import DataSettings


@pytest.fixture(autouse=True, scope="session")
def _two_threads() -> None:
    """As many as the smallest machine has; a result may depend on the number."""
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, CaptionedImages]:
    """Both sides of forty drawn scenes, 16×16 pixels."""
    settings = DataSettings(image_size=16, validation_fraction=0.2, workers=1)
    return prepare(["scenes:40"], settings, tmp_path_factory.mktemp("scenes") / "data").sides

"""Invalid settings and batches, and what objectives share."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tessella.errors import ConfigError, GenerationError, ShapeError
from tessella.generation import GenerationSettings
from tessella.objectives import (
    GenerationBatch,
    ObjectiveLoss,
    PlainObjectiveSettings,
    SharedLatentSettings,
    create_objective,
    create_transformer,
)
from tessella.objectives.latent_mse import LatentMSE
from tessella.objectives.parallel import Parallel
from tessella.objectives.sampling import compute_accuracy, gather_log_probability
from tessella.transformer import Transformer, TransformerSettings, TransformerShape, flatten_codes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "`steps`: got: `0`; input should be greater than or equal to 1"),
        ({"steps": 1_000_000}, "`steps`: got: `1000000`; input should be less than or equal to 40"),
        ({"steps": math.nan}, "`steps`: got: `nan`"),
        ({"temperature": -0.1}, "`temperature`: got: `-0.1`"),
        ({"temperature": math.nan}, "`temperature`: got: `nan`"),
        ({"temperature": math.inf}, "`temperature`: got: `inf`"),
        ({"temperature": 101}, "`temperature`: got: `101`"),
        ({"top_k": 0}, "`top_k`: got: `0`"),
        ({"top_p": 0.0}, "`top_p`: got: `0.0`; input should be greater than 0"),
        ({"top_p": 1.1}, "`top_p`: got: `1.1`; input should be less than or equal to 1"),
        ({"top_p": math.nan}, "`top_p`: got: `nan`"),
        ({"guidance_scale": math.inf}, "`guidance_scale`: got: `inf`"),
        ({"guidance_scale": math.nan}, "`guidance_scale`: got: `nan`"),
        ({"guidance_scale": -1.0}, "`guidance_scale`: got: `-1.0`"),
        ({"guidance_schedule": "cosine"}, "`cosine`; input should be 'constant' or 'linear'"),
        ({"confidence_temperature": -1.0}, "`confidence_temperature`: got: `-1.0`"),
        ({"confidence_temperature": math.nan}, "`confidence_temperature`: got: `nan`"),
        ({"confidence_temperature": math.inf}, "`confidence_temperature`: got: `inf`"),
        ({"step_schedule": "linear"}, "`linear`; input should be 'cosine' or 'arccos'"),
        (
            {"order": "raster"},
            "`raster`; input should be 'auto', 'random', 'halton' or 'confidence'",
        ),
        ({"temprature": 1}, "Unknown setting `temprature`; did you mean `temperature`"),
    ],
)
def test_invalid_settings(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GenerationSettings().replace(**changes)


SIZE = TransformerSettings(width=16, depth=2, heads=2)
SHAPE = TransformerShape(5, 4, 0, codebook_size=3, grid=(2, 3), code_width=2)


def create_batch(known_codes: Tensor, known: Tensor) -> GenerationBatch:
    text = torch.tensor([[1, 2]])
    rows = torch.zeros(2, dtype=torch.int64)
    settings = GenerationSettings()
    return GenerationBatch(text, text, rows, rows, [1, 2], settings, known_codes, known)


def mark(*rows: list[int]) -> Tensor:
    return torch.tensor(rows).bool()


@pytest.mark.parametrize("books", [1, 4])
def test_known_positions_may_lie_anywhere(books: int) -> None:
    codes = torch.zeros(2, 3, books, dtype=torch.int64)
    for known in (mark([0, 0, 0], [0, 0, 0]), mark([1, 0, 1], [0, 1, 1])):
        assert create_batch(known=known, known_codes=codes).known is known


@pytest.mark.parametrize(
    ("known", "codes", "message"),
    [
        (
            mark([1, 0, 1], [0, 0, 1]),
            torch.zeros(2, 3, 1).long(),
            r"must know equally many positions: `\[2, 1\]`. Generate them one after the other.",
        ),
        (
            mark([1, 0, 1], [1, 0, 1]),
            torch.zeros(2, 4, 2).long(),
            r"must have the same pictures and positions: `\(2, 3\)` and `\(2, 4, 2\)`.",
        ),
        (
            mark([1, 0, 1], [1, 0, 1]),
            torch.zeros(2, 3).long(),
            r"`known` \(B, N\) and `known_codes` \(B, N, M\) .* `\(2, 3\)` and `\(2, 3\)`.",
        ),
    ],
)
def test_invalid_known_codes(known: Tensor, codes: Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        create_batch(known=known, known_codes=codes)


@pytest.mark.parametrize(
    "settings",
    [PlainObjectiveSettings(name="latent_mse"), SharedLatentSettings()],
    ids=lambda settings: settings.name,
)
def test_an_objective_without_a_likelihood(settings: Any) -> None:
    transformer = create_transformer(settings, SIZE, SHAPE)
    objective = create_objective(settings, transformer, torch.zeros(1, 3, 2))
    with pytest.raises(
        GenerationError,
        match=f"no likelihood, so pictures cannot be scored: `{objective.name}`. "
        "any_order, autoregressive, masked and parallel have one.",
    ):
        objective.compute_log_likelihood(torch.zeros(1, 2), torch.zeros(1, 1, 2, 2))


def test_an_objective_holds_its_transformer_and_only_reads_its_codebook() -> None:
    """What is trained and saved is the transformer; the codebook moves to a device with it."""
    transformer = Transformer(SIZE, SHAPE)
    objective = LatentMSE(transformer, torch.nn.Parameter(torch.zeros(1, 3, 2)))
    assert {id(p) for p in objective.parameters()} == {id(p) for p in transformer.parameters()}
    assert objective.state_dict().keys() == {f"transformer.{n}" for n in transformer.state_dict()}
    assert not objective.codebook.requires_grad
    assert objective.to(torch.float64).codebook.dtype == torch.float64


def test_plain_objectives_share_one_settings_class() -> None:
    for name in ("any_order", "autoregressive", "parallel", "latent_mse"):
        settings = PlainObjectiveSettings(name=name)
        assert (
            create_objective(settings, Transformer(SIZE, SHAPE), torch.zeros(1, 3, 2)).name == name
        )
    with pytest.raises(ConfigError, match="`name`: got: `diffusion`; input should be 'any_order'"):
        PlainObjectiveSettings().replace(name="diffusion")


def test_accuracy_and_log_probability_by_hand() -> None:
    logits = torch.tensor([[[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]]]).log()
    codes = torch.tensor([[1, 0, 1]])
    assert compute_accuracy(logits, codes).item() == pytest.approx(2 / 3)
    probability = gather_log_probability(logits + 7, codes).exp()
    torch.testing.assert_close(probability, torch.tensor([[0.75, 0.5, 0.1]]))


def test_the_loss_is_a_position_s() -> None:
    """The sum over its two codes and the mean over positions; the accuracy is a code's."""
    shares = torch.tensor([[[0.25, 0.75], [0.5, 0.5]], [[0.9, 0.1], [0.2, 0.8]]])
    codes = torch.tensor([[[1, 0], [0, 0]]])
    scored = ObjectiveLoss.of_logits(shares.log()[None] + 7, codes)
    expected = -(math.log(0.75 * 0.5) + math.log(0.9 * 0.2)) / 2
    assert scored.loss.item() == pytest.approx(expected, rel=1e-5)
    assert scored.accuracy.item() == 0.75
    single = ObjectiveLoss.of_logits(shares.log()[None, :, :1], codes[:, :, :1])
    assert single.loss.item() == pytest.approx(-math.log(0.75 * 0.9) / 2, rel=1e-5)


def test_codes_are_listed_by_position() -> None:
    """Row by row of the grid; the codes of a position stay together."""
    codes = torch.tensor([[[[0, 1, 2], [3, 4, 5]], [[10, 11, 12], [13, 14, 15]]]])
    expected = [[[0, 10], [1, 11], [2, 12], [3, 13], [4, 14], [5, 15]]]
    assert flatten_codes(codes).tolist() == expected
    assert flatten_codes(codes[:, :1]).tolist() == [[[0], [1], [2], [3], [4], [5]]]


def test_codes_are_looked_up_row_by_row() -> None:
    codebook = torch.tensor([[[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]])
    objective = Parallel(Transformer(SIZE, SHAPE), codebook)
    codes = torch.tensor([[[0, 1, 2, 2, 1, 0]]])
    generated = objective.look_up(codes)
    assert generated.codes is not None
    assert generated.codes.tolist() == [[[[0, 1, 2], [2, 1, 0]]]]
    assert generated.latent.tolist() == [
        [[[0.0, 2.0, 4.0], [4.0, 2.0, 0.0]], [[1.0, 3.0, 5.0], [5.0, 3.0, 1.0]]]
    ]
    # A larger picture's codes come with its grid.
    larger = objective.look_up(codes.view(1, 1, 1, 6))
    assert torch.equal(larger.latent.flatten(), generated.latent.flatten())
    assert larger.latent.shape == (1, 2, 1, 6)


def test_the_vectors_of_a_position_s_codes_are_added() -> None:
    codebook = torch.tensor([[[0.0, 1.0], [2.0, 3.0]], [[10.0, 20.0], [30.0, 40.0]]])
    shape = dataclasses.replace(SHAPE, codebook_size=2, codes_per_position=2)
    objective = Parallel(Transformer(SIZE, shape), codebook)
    generated = objective.look_up(torch.tensor([[[0, 1, 0, 1, 0, 0], [0, 0, 1, 1, 0, 1]]]))
    assert generated.codes is not None
    assert generated.codes.tolist() == [[[[0, 1, 0], [1, 0, 0]], [[0, 0, 1], [1, 0, 1]]]]
    assert generated.latent.tolist() == [
        [[[10.0, 12.0, 30.0], [32.0, 10.0, 30.0]], [[21.0, 23.0, 41.0], [43.0, 21.0, 41.0]]]
    ]

"""Requests: which picture gets which seed and canvas, and which numbers are refused."""

from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import numpy as np
import pytest
from PIL import Image

from tessella.errors import GenerationError
from tessella.generation import GenerationSettings
from tessella.model.canvas import Canvas
from tessella.model.request import (
    MAX_SEED,
    GenerationOptions,
    ImageRequest,
    check_prompts,
    enumerate_requests,
    list_requests,
)
from tessella.objectives import OnStep


def list_seeds(**options: Any) -> list[tuple[str, int]]:
    return [(one.prompt, one.seed) for one in list_requests(["a", "b"], **options)]


def test_picture_i_has_the_seed_of_its_first_candidate() -> None:
    assert list_seeds() == [("a", 0), ("b", 0)]
    assert list_seeds(count=2, seed=5) == [("a", 5), ("a", 6), ("b", 5), ("b", 6)]
    # 5, 6, 7 are the first picture's candidates, 8, 9, 10 the second's.
    assert list_seeds(count=2, seed=5, best_of=3) == [("a", 5), ("a", 8), ("b", 5), ("b", 8)]


def test_the_last_seed_is_the_largest_there_is() -> None:
    assert list_seeds(count=2, seed=MAX_SEED - 1)[1] == ("a", MAX_SEED)
    assert list_seeds(seed=MAX_SEED, best_of=64)[0] == (
        "a",
        MAX_SEED,
    )  # candidates: `Sampler.check`


def test_canvases_are_planned_once_for_all_prompts() -> None:
    calls: list[list[int]] = []

    def plan(seeds: Any) -> list[Canvas]:
        calls.append(list(seeds))
        return [Canvas.new((1, seed)) for seed in seeds]

    requests = list_requests(["a", "b"], count=2, seed=3, negative_prompt="c", plan=plan)
    assert calls == [[3, 4]]
    assert [one.canvas_on((9, 9)).codes.shape[2] for one in requests] == [3, 4, 3, 4]
    assert {one.negative_prompt for one in requests} == {"c"}


def test_enumerated_requests_count_their_seeds() -> None:
    requests = enumerate_requests(["b", "a", "b"])
    assert [(one.prompt, one.seed) for one in requests] == [("b", 0), ("a", 1), ("b", 2)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count of pictures must be between 1 and 10000: `0`"),
        ({"count": 10_001}, "between 1 and 10000: `10001`"),
        ({"best_of": 0}, "candidates, best_of, must be between 1 and 64: `0`"),
        ({"best_of": 65}, "between 1 and 64: `65`"),
        ({"seed": -1}, r"seed must be between 0 and \d+: `-1`"),
        ({"seed": MAX_SEED, "count": 2}, r"seed must be .*: `9223372036854775808`"),
    ],
)
def test_numbers_out_of_range_are_refused_before_a_canvas_is_planned(
    options: dict[str, Any], message: str
) -> None:
    plan: Callable[..., Any] = pytest.fail
    with pytest.raises(GenerationError, match=message):
        list_requests(["a"], plan=plan, **options)


def test_prompts_are_checked_and_listed() -> None:
    assert check_prompts("a star") == ["a star"]
    assert check_prompts(("a", "b")) == ["a", "b"]
    for prompts in ("", " ", ["a", "\n"]):
        with pytest.raises(GenerationError, match="A prompt must say something: `"):
            check_prompts(prompts)
    with pytest.raises(GenerationError, match=r"There is no prompt\. Give"):
        check_prompts([])


def test_a_request_is_a_new_picture_unless_it_has_a_canvas() -> None:
    generated = np.full((4, 4, 3), 9, dtype=np.uint8)
    plain = ImageRequest("a", 0)
    assert plain.canvas_on((2, 3)).known.tolist() == [[False] * 3] * 2
    assert plain.finish(generated) is generated
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    canvas = Canvas.edit(image, Canvas.new((1, 1)).codes, np.eye(4, dtype=bool))
    edited = ImageRequest("a", 0, canvas=canvas)
    assert edited.canvas_on((2, 3)) is canvas
    assert edited.finish(generated)[..., 0].tolist() == (9 * np.eye(4, dtype=int)).tolist()


def test_options_are_the_settings_and_those_of_a_request() -> None:
    """Type checkers read them from the TypedDict, which must not drift from the settings."""
    options = get_type_hints(GenerationOptions)
    own = {"count": int, "seed": int, "negative_prompt": str, "best_of": int}
    own |= {"references": Sequence[Image.Image] | None, "on_step": OnStep | None}
    settings = {
        name: field.annotation | None for name, field in GenerationSettings.model_fields.items()
    }
    assert options == own | settings
    assert not GenerationOptions.__required_keys__

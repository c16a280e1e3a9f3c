"""What numbers mean, in a person's words."""

import pytest

from tessella.evaluation.plain_words import describe_plainly


def test_each_number_has_its_sentence() -> None:
    values = {
        "reconstruction_psnr": 40.0,
        "reconstruction_fid_squeezenet-fire9": 3.0,
        "all_correct_seen_pairs": 0.98,
        "all_correct_held_out_pairs": 0.5,
        "right_color_seen_pairs": 1.0,
        "right_count_seen_pairs": 0.9999,
        "right_texture_held_out_pairs": 0.62,
        "painted_precision_efficientnet-head": 0.75,
        "painted_recall_efficientnet-head": 0.251,
        "retrieval_by_features": 0.4,
        "copy_rate": 0.015,
    }
    assert list(describe_plainly(values)) == [
        "Of new scenes, 98% are painted right in every detail.",
        "Of those with a pair of words that training never showed, 50% are.",
        "Of new scenes, one demand at a time, these are right: numbers of objects 99.9%, colours "
        "100%.",
        "Of those with such a pair, one demand at a time, these are right: textures 62%.",
        "40% of the pictures look most like the real picture of their own prompt.",
        "75% of the pictures look like real ones.",
        "25% of the real ones look like something that the model paints.",
        "2% of the pictures are closer to a training picture than 99% of real ones are.",
        "Its codes give a picture back with colours off by 1.0% of the way from black to white.",
    ]


@pytest.mark.parametrize(
    ("fraction", "said"),
    [
        (1.0, "100%"),
        (0.9996, "99.9%"),
        (0.996, "99.6%"),
        (0.994, "99%"),
        (0.0001, "0.1%"),
        (0, "0%"),
    ],
)
def test_almost_all_is_not_all(fraction: float, said: str) -> None:
    [sentence] = describe_plainly({"all_correct_seen_pairs": fraction})
    assert sentence == f"Of new scenes, {said} are painted right in every detail."


def test_what_was_not_measured_is_not_mentioned() -> None:
    assert list(describe_plainly({"copy_rate": 0.0, "codes_used": 5})) == [
        "No picture is closer to a training picture than 99% of real ones are."
    ]
    assert list(describe_plainly({})) == []

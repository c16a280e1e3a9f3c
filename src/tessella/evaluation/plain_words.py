"""Metrics in a person's words, for the first lines of a report; the table has what stands behind.

metrics ─▶ "Of new scenes, 98 % are painted right in every detail."
"""

from collections.abc import Iterator, Mapping


def describe_plainly(values: Mapping[str, float]) -> Iterator[str]:
    """Says what metrics mean, one sentence each, what is painted before what is kept.

    Args:
        values: by the names that `evaluate_images` gives them; others are passed over.
    """
    if (seen := values.get("all_correct_seen_pairs")) is not None:
        yield f"Of new scenes, {seen:.0%} are painted right in every detail."
    if (held_out := values.get("all_correct_held_out_pairs")) is not None:
        yield f"Where colour and shape were never seen together, {held_out:.0%} are."
    if (own := values.get("retrieval_by_features")) is not None:
        yield f"{own:.0%} of the pictures look most like the real picture of their own prompt."
    if (precision := _find(values, "painted_precision_")) is not None:
        yield f"{precision:.0%} of the pictures look like real ones."
    if (recall := _find(values, "painted_recall_")) is not None:
        yield f"{recall:.0%} of the real ones look like something that the model paints."
    if (copies := values.get("copy_rate")) is not None:
        rate = f"{copies:.1%} of the pictures are" if copies else "No picture is"
        yield f"{rate} as close to a training picture as a copy."
    if (psnr := values.get("reconstruction_psnr")) is not None:
        error = 10 ** (-psnr / 20)
        yield (
            f"Its codes give a picture back with colours off by {error:.1%} of the way from black "
            "to white."
        )


def _find(values: Mapping[str, float], start: str) -> float | None:
    """Returns the first metric whose name begins so."""
    return next((value for name, value in values.items() if name.startswith(start)), None)

"""Scenes: drawn pictures of simple objects, whose captions can be checked exactly.

On the data's way: first, beside the readers of files. The sets are endless and have no files: a
scene depends only on its random generator. Callers bring it: training draws scene i of seed s from
``np.random.default_rng([s, i])``.

    shapes   one object, drawn               words   sizes, relations and backgrounds in captions
    pairs    scenes:N, one or two objects    groups  scenes2:N, three or four, in groups
    sets     what each set can do, by its name

`tessella.evaluation.scenes` reads pictures back.
"""

from tessella.data.scenes.pairs import (
    HELD_OUT,
    JITTER,
    PLACES,
    RELATIONS,
    SINGLE_PROBABILITY,
    SIZES,
    Arrangement,
    Scene,
    SceneObject,
    canonical_caption,
    draw_coverage,
    draw_scene,
    paraphrases,
    parse_caption,
    sample_scene,
)
from tessella.data.scenes.shapes import BACKGROUNDS, COLORS, SHAPES, Color, Point

__all__ = [
    "BACKGROUNDS",
    "COLORS",
    "HELD_OUT",
    "JITTER",
    "PLACES",
    "RELATIONS",
    "SHAPES",
    "SINGLE_PROBABILITY",
    "SIZES",
    "Arrangement",
    "Color",
    "Point",
    "Scene",
    "SceneObject",
    "canonical_caption",
    "draw_coverage",
    "draw_scene",
    "paraphrases",
    "parse_caption",
    "sample_scene",
]

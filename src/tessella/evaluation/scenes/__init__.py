"""Reads pictures of scenes: does a picture show what its prompt says?

Stands at the end of the data's way: `sample_prompts` chooses scenes that training never drew, the
model paints their captions, `classify_scenes` or `classify_groups` reads each picture, and
`compute_scene_accuracy` and `count_demands` count.

    looks    which object stands at a place      pairs   pictures of scenes
    groups   pictures of scenes2                 readers prompts and counts of every set
"""

from tessella.evaluation.scenes.groups import ClassifiedGroups, classify_groups
from tessella.evaluation.scenes.pairs import ClassifiedObject, ClassifiedScene, classify_scenes
from tessella.evaluation.scenes.readers import (
    READERS,
    compute_scene_accuracy,
    count_demands,
    sample_prompts,
)

__all__ = [
    "READERS",
    "ClassifiedGroups",
    "ClassifiedObject",
    "ClassifiedScene",
    "classify_groups",
    "classify_scenes",
    "compute_scene_accuracy",
    "count_demands",
    "sample_prompts",
]

"""Recipe keys and values that have other names now: messages for old recipes.

Keys of tables are computed under the first names of a field, so a renamed field changes none of them.
"""

import re
from collections.abc import Mapping
from typing import Any

RENAMED = {
    "training.optimiser": "optimizer",
    "training.clip": "max_grad_norm",
    "training.warmup": "warmup_ratio",
    "training.patience": "early_stopping_patience",
    "training.tokens_at_once": "micro_batch_tokens",
    "training.checkpoint_activations": "activation_checkpointing",
    "teacher.train.optimiser": "optimizer",
    "teacher.batch_size": "in_flight",
    "teacher.concurrent_batches": "in_flight",
    "teacher.view": "modality",
    "teacher.patience": "idle_timeout",
    "students.view": "modality",
    "students.volumes": "train_sizes",
    "students.sizes": "models",
    "students.models.view": "modality",
}
"""New name of a key by its old path. `teacher` stands for each of `teachers` as well, a list for its items."""
VALUES = {"plot": "image", "numbers": "text"}
"""New name of a modality by its old one."""
OF_VALUES = ("teacher.modality", "students.modality", "students.models.modality")
"""Paths of the keys that have such a value."""
FIRST = {new: old for old, new in VALUES.items()}


def new_name(place: str) -> str | None:
    """The new name of a key at a place such as `teachers.mine.view` or `students.models.0.view`, if it has one."""
    return RENAMED.get(_path(place))


def new_value(place: str, value: Any) -> str | None:
    """The new name of a value at a place of a recipe, if it has one."""
    return VALUES.get(value) if _path(place) in OF_VALUES and isinstance(value, str) else None


def _path(place: str) -> str:
    """The path of a key as `RENAMED` has it: the same for each teacher, and for each item of a list."""
    return re.sub(r"\.\d+(?=\.)", "", re.sub(r"^teachers\.[^.]+", "teacher", place))


def first_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A teacher's settings under the names and values with which the keys of tables are computed."""
    found = dict(settings)
    if "modality" in found:
        modality = found.pop("modality")
        found["view"] = FIRST.get(modality, modality)
    if "train" in found:
        found["train"] = dict(found["train"])
        found["train"]["optimiser"] = found["train"].pop("optimizer")
    return found

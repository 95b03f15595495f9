"""Recipe keys and values that have other names now: messages for old recipes, and reading of stored ones.

Keys of tables and ids of runs are computed under the first names of a field, so a renamed field changes none of
them.
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
FIRST = {new: old for old, new in VALUES.items()}


def new_name(place: str) -> str | None:
    """The new name of a key at a place such as `teachers.mine.view` or `students.models.0.view`, if it has one."""
    path = re.sub(r"^teachers\.[^.]+", "teacher", place)
    return RENAMED.get(re.sub(r"\.\d+(?=\.)", "", path))


def new_value(place: str, value: Any) -> str | None:
    """The new name of a value at a place of a recipe, if it has one."""
    return VALUES.get(value) if place.endswith("modality") and isinstance(value, str) else None


def renewed(fields: Mapping[Any, Any], place: str = "") -> dict[Any, Any]:
    """Stored fields under their current names. place: of the section that they are; default: a whole recipe."""
    found = {}
    for name, value in fields.items():
        if place == "teachers":
            found[name] = _renewed(value, "teacher")
        else:
            path = f"{place}.{name}".lstrip(".")
            current = RENAMED.get(path, name)
            found[current] = _renewed(value, f"{place}.{current}".lstrip("."))
    return found


def _renewed(value: Any, place: str) -> Any:
    if isinstance(value, Mapping):
        return renewed(value, place)
    if isinstance(value, list):
        return [_renewed(one, place) for one in value]
    return new_value(place, value) or value


def first_names(fields: dict[str, Any]) -> dict[str, Any]:
    """A section's fields under the names and values with which keys and ids are computed."""
    if "modality" not in fields:
        return fields
    others = {name: value for name, value in fields.items() if name != "modality"}
    return {**others, "view": FIRST.get(fields["modality"], fields["modality"])}

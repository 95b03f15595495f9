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
BUILT_IN = ("rules", "local", "openai", "vllm")
OF_ENGINES = ("batch_size", "concurrent_batches")
"""Old keys of vLLM engines, which shaped no reply. A teacher of another kind may have a key of the same name."""
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
    found: dict[Any, Any] = {}
    kind = fields.get("kind", "openai") if place == "teacher" else None
    if kind and kind not in BUILT_IN:  # of a plugin, whose settings have names of its own
        return dict(fields)
    engine = kind == "vllm"
    for name, value in fields.items():
        if place == "teacher" and name in OF_ENGINES:
            found |= {} if engine else {name: value}
        elif place == "curation" and name == "policies":  # of plugins, as well
            found[name] = value
        elif place == "teachers":
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

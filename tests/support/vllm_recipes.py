"""Teachers on vLLM engines, as a recipe describes them."""

from typing import Any

from tsd.recipe import VllmTeacher


def teacher(**changes: Any) -> VllmTeacher:
    """A teacher with some settings."""
    return VllmTeacher.model_validate({"kind": "vllm", "model": "Qwen/Qwen2.5-VL-7B-Instruct", **changes})

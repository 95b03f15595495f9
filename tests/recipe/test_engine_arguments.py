"""Arguments of vLLM's server in a recipe: which are part of a teacher's identity, and which are refused."""

from typing import Any

import pytest

from tsd.errors import RecipeError
from tsd.recipe import Recipe, VllmTeacher, load


def teacher(engine: dict[str, Any], **fields: Any) -> VllmTeacher:
    return VllmTeacher(kind="vllm", model="eyes", engine=engine, **fields)


def loaded(engine: str) -> Recipe:
    return load("laptop", [f"teacher={{kind: vllm, model: eyes, engine: {engine}}}"])


@pytest.mark.parametrize(
    "engine",
    [
        {"uvicorn_log_level": "debug", "disable_uvicorn_access_log": False, "max_log_len": 3},
        {"enable_log_requests": True, "otlp-traces-endpoint": "http://127.0.0.1:1"},
        {"download_dir": "/models", "safetensors_load_strategy": "eager", "load_format": "runai_streamer"},
        {"tensor_parallel_size": 2, "pipeline-parallel-size": 2, "data_parallel_size": 2},
        {"num_gpu_blocks_override": 9, "swap_space": 8, "mm_processor_cache_gb": 0, "cpu_offload_gb": 1},
        {"max_num_seqs": 8, "async_scheduling": True, "timeout_keep_alive": 5},
    ],
)
def test_what_only_machines_and_logs_are_told_is_in_no_identity(engine: dict[str, Any]) -> None:
    assert teacher(engine).identity == teacher({}).identity


@pytest.mark.parametrize(
    "engine",
    [
        {"load_format": "dummy"},
        {"load-format": "Dummy"},
        {"load_format": "bitsandbytes"},
        {"dtype": "float16"},
        {"quantization": "fp8"},
        {"kv_cache_dtype": "fp8"},
        {"generation_config": "auto"},
        {"an_argument_of_a_later_version": 1},
    ],
)
def test_what_shapes_responses_or_is_not_known_is_in_the_identity(engine: dict[str, Any]) -> None:
    assert teacher(engine).identity != teacher({}).identity


def test_cpus_are_in_the_identity_unless_the_dtype_is_given() -> None:
    assert teacher({}, gpu=False).identity != teacher({}).identity
    assert teacher({"dtype": "auto"}, gpu=False).identity == teacher({}, gpu=False).identity
    assert teacher({"dtype": "float32"}, gpu=False).identity == teacher({"dtype": "float32"}).identity


@pytest.mark.parametrize("name", ["tensor_parallel_size", "pipeline-parallel-size"])
@pytest.mark.parametrize("value", ["x", "null", "0", "-1", "1.5", "true", "[2]"])
def test_a_number_of_gpus_that_is_none_is_refused_in_one_line(name: str, value: str) -> None:
    with pytest.raises(RecipeError) as caught:
        loaded(f"{{{name}: {value}}}")
    said = str(caught.value)
    assert f"engine.{name.replace('-', '_')} must be a whole number of GPUs, at least 1" in said
    assert len(said.splitlines()) == 1


def test_gpus_of_an_engine_are_the_product_of_both() -> None:
    asked = loaded("{tensor_parallel_size: 4, pipeline_parallel_size: 2}").teacher
    assert isinstance(asked, VllmTeacher)
    assert asked.gpus == 8

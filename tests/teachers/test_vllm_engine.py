"""What a vLLM engine is told by a recipe, what becomes of its output, and how the stage ends when it is silent."""

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from tsd.errors import RecipeError, TeacherError
from tsd.recipe import VllmTeacher, load
from tsd.teachers import vllm_engine

LIMIT = 50  # tokens


def teacher(**changes: Any) -> VllmTeacher:
    """A teacher with some settings."""
    return VllmTeacher.model_validate({"kind": "vllm", "model": "Qwen/Qwen2.5-VL-7B-Instruct", **changes})


def output(text: str, tokens: int, error: str = "") -> dict[str, Any]:
    """A row as `ray.data.llm` gives it back."""
    counted = {"num_input_tokens": 700, "num_generated_tokens": tokens, "time_taken_llm": 1.5}
    return {"generated_text": text, "__inference_error__": error, **counted}


def test_replicas_and_gpus_are_those_of_the_recipe() -> None:
    told = vllm_engine.settings(teacher(replicas=3, tensor_parallel=4, accelerator="H100", max_model_len=2000), {})
    assert told["concurrency"] == (3, 3)
    assert told["engine_kwargs"]["tensor_parallel_size"] == 4
    assert told["accelerator_type"] == "H100"
    assert (
        told["placement_group_config"] is None
    )  # a GPU and a CPU for each of tensor_parallel, which is Ray's own
    assert told["engine_kwargs"]["max_model_len"] == 2000
    assert told["prepare_multimodal_stage"]["model_config_kwargs"]["max_model_len"] == 2000


def test_a_model_that_is_shown_numbers_alone_need_not_see() -> None:
    told = {view: vllm_engine.settings(teacher(view=view), {}) for view in ("plot", "numbers", "both")}
    images = {view: one["engine_kwargs"]["limit_mm_per_prompt"]["image"] for view, one in told.items()}
    forms = {view: one["prepare_multimodal_stage"]["chat_template_content_format"] for view, one in told.items()}
    assert images == {"plot": 1, "numbers": 0, "both": 1}
    assert forms == {"plot": "openai", "numbers": "string", "both": "openai"}


def test_without_gpus_an_engine_asks_for_none() -> None:
    (bundle,) = vllm_engine.settings(teacher(gpu=False), {})["placement_group_config"].values()
    assert "GPU" not in bundle
    assert bundle["CPU"] + 2 * vllm_engine.STAGE_CPUS + 1 <= 2  # a machine of two CPUs draws plots beside it


def test_arguments_of_the_engine_win_and_reach_the_stages_that_read_the_model() -> None:
    told = vllm_engine.settings(
        teacher(engine={"tokenizer_mode": "mistral", "max_model_len": 77, "dtype": "half"}), {}
    )
    assert told["engine_kwargs"]["max_model_len"] == 77
    assert told["engine_kwargs"]["dtype"] == "half"
    assert told["prepare_multimodal_stage"]["model_config_kwargs"]["tokenizer_mode"] == "mistral"
    assert "dtype" not in told["prepare_multimodal_stage"]["model_config_kwargs"]


def test_a_request_holds_the_schema_and_the_sampling() -> None:
    messages = [{"role": "user", "content": "?"}]
    asked = vllm_engine.request(teacher(temperature=0.5, max_tokens=LIMIT), '{"type": "object"}', messages, "")
    sampling = {"temperature": 0.5, "max_tokens": LIMIT, "structured_outputs": {"json": '{"type": "object"}'}}
    assert asked == {"messages": messages, "sampling_params": sampling, vllm_engine.ERROR: ""}


@pytest.mark.parametrize(
    ("config", "asked", "told"),
    [
        ({"model_type": "qwen3_vl", "text_config": {"hidden_size": 64}}, {}, ["Qwen3ForCausalLM"]),
        ({"model_type": "qwen3_vl"}, {"hf_overrides": {"rope_theta": 1.0}}, ["Qwen3ForCausalLM"]),
        ({"model_type": "qwen3_vl", "text_config": {"architectures": ["Own"]}}, {}, None),
        ({"model_type": "qwen3_vl"}, {"hf_overrides": {"text_config": {"architectures": ["Other"]}}}, ["Other"]),
        ({"model_type": "qwen2_5_vl", "text_config": {}}, {}, None),
        ({}, {}, None),
    ],
)
def test_qwen3_vl_is_told_its_language_part_where_neither_its_config_nor_the_recipe_names_it(
    config: dict[str, Any], asked: dict[str, Any], told: list[str] | None
) -> None:
    settings = vllm_engine.settings(teacher(engine=asked), config)
    found = settings["engine_kwargs"].get("hf_overrides", {})
    assert found.get("text_config", {}).get("architectures") == told
    assert {**asked.get("hf_overrides", {}), **found} == found  # what else the recipe says stays
    # the stage before the engine reads the same model
    assert settings["prepare_multimodal_stage"]["model_config_kwargs"].get("hf_overrides", {}) == found


@pytest.mark.parametrize(
    ("row", "status", "reason"),
    [
        (output('{"trend": "It rises."}', LIMIT - 1), "ok", None),
        (output('{"trend": "It rises."}', LIMIT), "ok", None),  # it ended with its last token
        (output('{"trend": "It ri', LIMIT), "truncated", "teacher.max_tokens"),
        (output('{"trend": "It\trises."}', LIMIT), "ok", None),  # JSON but for a raw tab, which engines let pass
        (output("", 0, "ValueError: the prompt\n  is too long"), "error", "ValueError: the prompt is too long"),
    ],
)
def test_what_comes_out_of_the_engine_is_a_reply(row: dict[str, Any], status: str, reason: str | None) -> None:
    reply = vllm_engine.read_output(row, LIMIT)
    assert reply.status == status
    assert (reason in reply.reason) if reason and reply.reason else reason == reply.reason
    if status == "error":
        assert (reply.text, reply.output_tokens) == (None, 0)
    else:
        assert reply.text == row["generated_text"]
        assert (reply.input_tokens, reply.output_tokens) == (700, row["num_generated_tokens"])
        assert reply.latency_ms == 1500


def test_halves_of_letters_and_nuls_do_not_reach_the_tables() -> None:
    reply = vllm_engine.read_output(output("a\udc80b\0c", 3), LIMIT)
    assert reply.text == "a?b�c"
    json.dumps(reply.text).encode()


def test_how_an_engine_runs_is_no_part_of_what_it_replies() -> None:
    plain = teacher().identity
    running = {"gpu_memory_utilization": 0.5, "max_num_seqs": 8, "enforce_eager": True}
    assert teacher(replicas=8, tensor_parallel=4, gpu=False, batch_size=4, engine=running).identity == plain
    shaping = [{"engine": {"dtype": "half"}}, {"max_model_len": 99}, {"choices": True}, {"view": "both"}]
    assert len({json.dumps(teacher(**change).identity) for change in shaping} | {json.dumps(plain)}) == 5


def test_a_recipe_names_the_field_of_a_vllm_teacher_that_is_wrong() -> None:
    with pytest.raises(RecipeError, match=r"unknown key teacher.replica, did you mean 'replicas'\?"):
        load("laptop", ["teacher={kind: vllm}", "teacher.model=x", "teacher.replica=2"])
    with pytest.raises(RecipeError, match=r"teacher.model is missing"):
        load("laptop", ["teacher={kind: vllm}"])


@pytest.mark.ray
def test_a_series_that_cannot_be_drawn_is_an_error_of_its_row_and_ends_nothing(series: pa.Table) -> None:
    import numpy as np

    from tsd.cluster.vllm_teacher import draw, read, request

    recipe = load("laptop", ["teacher={kind: vllm}", "teacher.model=x", "plots.width=196", "plots.height=140"])
    values = series["values"].slice(0, 8).to_pylist()
    values[3] = []
    at, field = series.schema.get_field_index("values"), series.schema.field("values")
    rows = series.slice(0, 8).set_column(at, field, pa.array(values, field.type))

    class Parts:
        def read_part(self, part: int) -> pa.Table:
            return rows

    (drawn,) = draw(recipe, Parts(), {"part": np.array([7]), "known": [[]]})
    assert drawn["part"] == [7] * 8
    assert len(set(drawn["key"])) == 8
    assert [bool(why) for why in drawn["failed"]] == [row == 3 for row in range(8)]
    asked = [dict(zip(drawn, row, strict=True)) for row in zip(*drawn.values(), strict=True)]
    found = read(recipe.teacher, {**asked[3], **request(recipe.teacher, "{}", asked[3])})
    reply = json.loads(found["reply"])
    assert (found["part"], found["key"], reply["status"]) == (7, drawn["key"][3], "error")
    assert reply["reason"] == " ".join(drawn["failed"][3].split())
    assert "Error: " in reply["reason"]


@pytest.mark.ray
def test_a_row_that_one_of_rays_stages_cannot_take_is_an_error_that_later_stages_let_pass() -> None:
    from ray import cloudpickle
    from ray.llm._internal.batch.stages.base import StatefulStageUDF

    from tsd.cluster.vllm_teacher import row_by_row

    class Prepare(StatefulStageUDF):
        async def udf(self, batch: list[dict[str, Any]]) -> Any:
            for row in reversed(batch):  # in any order, as Ray's own
                yield {self.IDX_IN_BATCH_COLUMN: row[self.IDX_IN_BATCH_COLUMN], "half": 12 // row["size"]}

    async def through(kind: type, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        (out,) = [one async for one in kind("data", ["size"])({"data": rows})]
        return list(out["data"])

    sizes = (1, 0, 3)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(through(Prepare, [{"size": size, vllm_engine.ERROR: ""} for size in sizes]))
    spared = cloudpickle.loads(cloudpickle.dumps(row_by_row(Prepare)))  # as it comes to a worker
    rows = asyncio.run(through(spared, [{"size": size, vllm_engine.ERROR: ""} for size in sizes]))
    assert [row.get("half") for row in rows] == [12, None, 4]
    assert [row[vllm_engine.ERROR].partition(":")[0] for row in rows] == ["", "ZeroDivisionError", ""]
    assert asyncio.run(through(Prepare, rows)) == rows


@pytest.mark.ray
def test_an_engine_that_falls_silent_ends_the_stage() -> None:
    from tsd.cluster.vllm_teacher import patiently

    def rows() -> Iterator[dict[str, Any]]:
        yield {"part": 1}
        time.sleep(5)
        yield {"part": 2}

    waiting = patiently(rows(), 0.2)
    assert next(waiting) == {"part": 1}
    started = time.monotonic()
    with pytest.raises(TeacherError, match=r"no reply for 0\.2 s"):
        next(waiting)
    assert time.monotonic() - started < 2


@pytest.mark.ray
def test_an_engine_that_does_not_start_is_one_line_that_names_the_cause() -> None:
    from ray.exceptions import RayError

    from tsd.cluster.vllm_teacher import cause_of, patiently

    trace = (
        "ray::Worker died\n  File x\nOSError: no model\n  File y\nTypeError: no argument 'x'\n  hint: none such\n"
    )
    assert cause_of(trace) == "TypeError: no argument 'x' hint: none such"
    assert cause_of("it went away") == "it went away"

    def rows() -> Iterator[dict[str, Any]]:
        raise RayError(trace)
        yield {}

    with pytest.raises(TeacherError) as caught:
        list(patiently(rows(), 5))
    assert str(caught.value).startswith("the engine stopped: TypeError: no argument 'x' hint: none such (")
    assert "\n" not in str(caught.value)


@pytest.mark.ray
def test_rows_that_come_pass_through_and_other_errors_stay_what_they_are() -> None:
    from tsd.cluster.vllm_teacher import patiently

    assert list(patiently(iter([{"part": 1}, {"part": 2}]), 5)) == [{"part": 1}, {"part": 2}]

    def rows() -> Iterator[dict[str, Any]]:
        raise KeyError("part")
        yield {}

    with pytest.raises(KeyError):
        list(patiently(rows(), 5))


@pytest.mark.ray
def test_rows_that_all_fail_from_the_first_on_stop_the_stage_and_others_are_rows_with_a_reason() -> None:
    from tsd.cluster.vllm_teacher import MOST_ERRORS, unless_all_fail

    def rows(*statuses: str) -> Iterator[dict[str, Any]]:
        return ({"reply": json.dumps({"status": one, "reason": "too long"})} for one in statuses)

    failed = ["error"] * MOST_ERRORS
    with pytest.raises(TeacherError, match=r"too long; the same command"):
        list(unless_all_fail(rows(*failed), answered=False))
    assert len(list(unless_all_fail(rows(*failed[1:]), answered=False))) == MOST_ERRORS - 1
    assert len(list(unless_all_fail(rows("ok", *failed, *failed), answered=False))) == 2 * MOST_ERRORS + 1
    assert len(list(unless_all_fail(rows(*failed, *failed), answered=True))) == 2 * MOST_ERRORS

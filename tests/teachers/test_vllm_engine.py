"""What a vLLM engine is told by a recipe, how the API client asks it, and how the stage ends when it is silent."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support import fake_engine
from support.asked import PLOTS, Asked

from tsd.errors import InputError, RecipeError, TeacherError
from tsd.generation.generator import draw_table
from tsd.recipe import Recipe, VllmTeacher, load
from tsd.tasks import SINGLE
from tsd.teachers import vllm_engine
from tsd.teachers.api.account import Earlier
from tsd.teachers.api.limits import RateLimiter
from tsd.teachers.api.live_requests import MOST_REFUSALS
from tsd.teachers.api.worker import RateLimiterClient
from tsd.teachers.preview import preview
from tsd.teachers.prompts import Questions

LIMIT = 50  # tokens
PORT = 4711


def teacher(**changes: Any) -> VllmTeacher:
    """A teacher with some settings."""
    return VllmTeacher.model_validate({"kind": "vllm", "model": "Qwen/Qwen2.5-VL-7B-Instruct", **changes})


def settings(**changes: Any) -> dict[str, Any]:
    """What the server of such a teacher is told, with a model whose config says nothing."""
    return vllm_engine.settings(teacher(**changes), "/models/eyes", {})


# ---- What the server is told


@pytest.mark.ray
def test_replicas_and_gpus_are_those_of_the_recipe() -> None:
    from tsd.cluster.engines import needs

    asked = teacher(replicas=3, tensor_parallel=4, accelerator="H100", max_model_len=2000)
    assert vllm_engine.as_api(asked, engines=3).workers == 3
    assert needs(asked) == {"num_cpus": 1.0, "num_gpus": 4, "accelerator_type": "H100"}
    told = vllm_engine.settings(asked, "/models/eyes", {})
    assert (told["tensor_parallel_size"], told["max_model_len"]) == (4, 2000)
    assert needs(teacher(tensor_parallel=2, engine={"pipeline_parallel_size": 2}))["num_gpus"] == 4


@pytest.mark.ray
def test_without_gpus_an_engine_asks_for_none() -> None:
    from tsd.cluster.engines import needs

    assert teacher(gpu=False, tensor_parallel=4).gpus == 0
    assert needs(teacher(gpu=False)).keys() == {"num_cpus"}
    assert 2 * needs(teacher(gpu=False))["num_cpus"] <= 1  # a machine of two CPUs has room beside two engines


def test_a_model_that_is_shown_numbers_alone_need_not_see() -> None:
    told = {modality: settings(modality=modality) for modality in ("image", "text", "both")}
    assert {modality: one["limit_mm_per_prompt"]["image"] for modality, one in told.items()} == {
        "image": 1,
        "text": 0,
        "both": 1,
    }
    forms = {modality: one["chat_template_content_format"] for modality, one in told.items()}
    assert forms == {"image": "openai", "text": "string", "both": "openai"}


def test_arguments_of_the_engine_win() -> None:
    told = settings(engine={"tokenizer_mode": "mistral", "max_model_len": 77, "dtype": "half"})
    assert (told["max_model_len"], told["dtype"], told["tokenizer_mode"]) == (77, "half", "mistral")


def test_arguments_are_words_of_a_command_line() -> None:
    told = {
        "max_num_seqs": 8,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "hf_overrides": {"text_config": {"architectures": ["Qwen3ForCausalLM"]}},
        "allowed_media_domains": ["a.org", "b.org"],
        "seed": None,
        "disable_log_stats": False,
        "dtype": "float32",
    }
    assert list(vllm_engine.flags(told)) == [
        "--max-num-seqs=8",
        "--enforce-eager",
        "--no-enable-prefix-caching",
        '--hf-overrides={"text_config": {"architectures": ["Qwen3ForCausalLM"]}}',
        *("--allowed-media-domains", "a.org", "b.org"),
        "--dtype=float32",
    ]


def test_the_command_names_interpreter_model_name_and_an_address_of_this_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "eyes").mkdir()
    (tmp_path / "eyes/config.json").write_text('{"model_type": "qwen3_vl"}')
    monkeypatch.chdir(tmp_path)
    asked = teacher(model="eyes", engine={"max_num_seqs": 8})
    program, *words = vllm_engine.command(asked, PORT)
    assert (program, words[:2]) == (sys.executable, ["-m", "vllm.entrypoints.openai.api_server"])
    assert f"--model={tmp_path / 'eyes'}" in words
    assert {"--served-model-name=eyes", "--host=127.0.0.1", f"--port={PORT}", "--max-num-seqs=8"} <= set(words)
    (structured,) = [word for word in words if word.startswith("--structured-outputs-config=")]
    assert json.loads(structured.partition("=")[2]) == {"backend": "xgrammar", "disable_any_whitespace": True}
    assert '--hf-overrides={"text_config": {"architectures": ["Qwen3ForCausalLM"]}}' in words
    other = vllm_engine.command(teacher(model="eyes", engine_python="/opt/vllm/bin/python"), PORT)
    assert other[0] == "/opt/vllm/bin/python"


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
    found = vllm_engine.settings(teacher(engine=asked), "/models/eyes", config).get("hf_overrides", {})
    assert found.get("text_config", {}).get("architectures") == told
    assert {**asked.get("hf_overrides", {}), **found} == found  # what else the recipe says stays


@pytest.mark.parametrize("name", ["api_key", "api-key", "host", "port", "served_model_name", "ssl_keyfile"])
def test_address_and_token_of_a_server_are_not_the_recipe_s_to_set(name: str) -> None:
    with pytest.raises(RecipeError, match=f"engine must not hold {name.replace('-', '_')}, which tsd sets itself"):
        load("laptop", ["teacher={kind: vllm}", "teacher.model=x", f"teacher.engine={{{name}: a}}"])


def test_a_token_of_a_hub_does_not_stand_in_a_recipe() -> None:
    with pytest.raises(RecipeError, match="set HF_TOKEN instead") as caught:
        load("laptop", ["teacher={kind: vllm}", "teacher.model=x", "teacher.engine={hf_token: hf_secret}"])
    assert "hf_secret" not in str(caught.value)


def test_an_interpreter_that_is_no_program_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InputError, match=r"teacher\.engine_python"):
        vllm_engine.require_python(teacher(engine_python=str(tmp_path / "python")))
    vllm_engine.require_python(teacher(engine_python=sys.executable))
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # the machines with GPUs may have it
    vllm_engine.require_python(teacher(engine_python=str(tmp_path / "python")))


# ---- How it is asked


def test_an_engine_is_asked_as_the_recipe_says_and_under_the_keys_that_its_replies_always_had(
    recipe: Recipe, series: pa.Table
) -> None:
    asked = teacher(modality="both", choices=True, temperature=0.5, max_tokens=LIMIT, in_flight=7, repairs=3)
    api = vllm_engine.as_api(asked, engines=2, base_url="http://127.0.0.1:1/v1")
    assert (api.model, api.name, api.identity) == (asked.name, asked.name, asked.identity)
    assert (api.in_flight, api.workers, api.repairs, api.structured) == (14, 2, 3, "schema")
    assert (api.modality, api.choices, api.temperature, api.max_tokens) == ("both", True, 0.5, LIMIT)
    assert api.usd(10**6, 10**6) == 0
    few = series.slice(0, 3)
    mine, its = (Questions(one, SINGLE, PLOTS, 0) for one in (asked, api))
    assert mine.keys(few) == its.keys(few)
    assert [one.messages for one in mine.ask(few, "abc")] == [one.messages for one in its.ask(few, "abc")]


def test_request_keys_are_those_of_the_engine_inside_ray_s_own_pipeline(series: pa.Table) -> None:
    # As commit fd32b57 made it, so replies in the journals of that version are used again.
    asking = Questions(teacher(max_tokens=LIMIT), SINGLE, PLOTS, 0)
    assert asking.keys(series.slice(0, 1)) == ["3bd013d79787fe340ae9436965663b5a"]


def test_how_an_engine_runs_is_no_part_of_what_it_replies() -> None:
    plain = teacher().identity
    running = {"gpu_memory_utilization": 0.5, "max_num_seqs": 8, "enforce_eager": True}
    assert teacher(replicas=8, tensor_parallel=4, gpu=False, in_flight=4, engine=running).identity == plain
    assert teacher(engine_python="/opt/python", repairs=0, quality={"last": 7}).identity == plain
    shaping = [{"engine": {"dtype": "half"}}, {"max_model_len": 99}, {"choices": True}, {"modality": "both"}]
    assert len({json.dumps(teacher(**change).identity) for change in shaping} | {json.dumps(plain)}) == 5


def test_a_recipe_names_the_field_of_a_vllm_teacher_that_is_wrong() -> None:
    with pytest.raises(RecipeError, match=r"unknown key teacher.replica, did you mean 'replicas'\?"):
        load("laptop", ["teacher={kind: vllm}", "teacher.model=x", "teacher.replica=2"])
    with pytest.raises(RecipeError, match=r"teacher.model is missing"):
        load("laptop", ["teacher={kind: vllm}"])


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Start a fake engine for a teacher with some settings, whose own are `told`."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "eyes").mkdir()
    (tmp_path / "eyes/config.json").write_text("{}")
    program = str(fake_engine.program(tmp_path))

    def asked(told: dict[str, Any], **changes: Any) -> VllmTeacher:
        for name, value in fake_engine.settings(tmp_path, **told).items():
            monkeypatch.setenv(name, value)
        return teacher(model=str(tmp_path / "eyes"), gpu=False, engine_python=program, **changes)

    yield asked
    assert vllm_engine.TOKEN not in os.environ


def test_rows_are_answered_by_an_engine_and_those_too_long_for_it_are_errors_and_stop_nothing(
    engine: Any, series: pa.Table, tmp_path: Path
) -> None:
    asked = engine({"seconds": 1.0, "limit": 2000}, modality="text", in_flight=8)
    longer = load("laptop", ["teacher={kind: rules}", "series.length=512"])
    long = draw_table(SINGLE, longer.series, 0, 0, MOST_REFUSALS + 15)
    few, rest = MOST_REFUSALS + 10, 5
    both = pa.concat_tables([series.slice(0, 1), long.slice(0, few), series.slice(1, 1), long.slice(few, rest)])
    with vllm_engine.serving(asked) as api:
        rows = Asked(api, both, tmp_path / "annotations").table.to_pylist()
    assert [row["status"] for row in rows] == ["ok", *["error"] * few, "ok", *["error"] * rest]
    assert all("context length" in row["reason"] for row in rows if row["status"] == "error")
    assert {row["model"] for row in rows if row["status"] == "ok"} == {asked.name}


def test_rows_that_are_all_refused_stop_the_stage(engine: Any, series: pa.Table, tmp_path: Path) -> None:
    with vllm_engine.serving(engine({"limit": 10}, modality="text")) as api:
        asked = Asked(api, series.slice(0, 100), tmp_path / "annotations")
    assert asked.table is None
    assert str(asked.stopped).startswith("the engine will not serve ")
    assert "context length" in str(asked.stopped)
    assert "teacher.max_model_len" in str(asked.stopped)


def test_a_preview_starts_an_engine_and_ends_it(
    engine: Any, recipe: Recipe, series: pa.Table, tmp_path: Path
) -> None:
    asking = recipe.model_copy(update={"teacher": engine({}), "plots": PLOTS})
    table, page = preview(asking, series.slice(0, 3), str(tmp_path / "study/annotations"), Earlier())
    assert table["status"].to_pylist() == ["ok"] * 3
    assert page.count("<img") == 3
    assert sum(fake_engine.counted(tmp_path, fake_engine.ANSWERED).values()) == 3


def test_a_preview_whose_engine_does_not_start_says_why(
    engine: Any, recipe: Recipe, series: pa.Table, tmp_path: Path
) -> None:
    asking = recipe.model_copy(update={"teacher": engine({"fail": "ValueError: no such model"})})
    with pytest.raises(TeacherError, match="the engine does not start: ValueError: no such model; its log is "):
        preview(asking, series.slice(0, 3), str(tmp_path / "study/annotations"), Earlier())


def test_requests_wait_while_a_worker_s_server_is_held() -> None:
    async def waits() -> list[bool]:
        api = vllm_engine.as_api(teacher(), 1)
        limiter = RateLimiterClient(RateLimiter(api, Earlier()), api, 1)
        passed = []
        limiter.hold(True)
        waiting = asyncio.create_task(limiter.clear())
        await asyncio.sleep(0.2)
        passed.append(waiting.done())
        limiter.hold(False)
        await asyncio.wait_for(waiting, 2)
        passed.append(waiting.done())
        limiter.hold(True)
        limiter.stopped.set()
        await asyncio.wait_for(limiter.clear(), 2)  # a stage that was stopped waits for nothing
        return passed

    assert asyncio.run(waits()) == [False, True]


# ---- How the stage ends


@pytest.mark.ray
def test_an_engine_that_falls_silent_ends_the_stage() -> None:
    from tsd.cluster.engines import patiently

    def rows() -> Iterator[dict[str, Any]]:
        yield {"part": 1}
        time.sleep(5)
        yield {"part": 2}

    began = time.monotonic()
    waiting = patiently(rows(), lambda: time.monotonic() - began, 0.2)
    assert next(waiting) == {"part": 1}
    started = time.monotonic()
    with pytest.raises(TeacherError, match=r"no engine gave a reply for 0\.2 s"):
        next(waiting)
    assert time.monotonic() - started < 2


@pytest.mark.ray
def test_replies_within_a_part_are_no_silence() -> None:
    from tsd.cluster.engines import patiently

    def rows() -> Iterator[dict[str, Any]]:
        time.sleep(1)
        yield {"part": 1}

    assert list(patiently(rows(), lambda: 0.1, 0.2)) == [{"part": 1}]


@pytest.mark.ray
def test_a_worker_that_fails_is_one_line_that_names_the_cause() -> None:
    from ray.exceptions import RayError

    from tsd.cluster.engines import cause_of, patiently

    trace = (
        "ray::Worker died\n  File x\nOSError: no model\n  File y\nTypeError: no argument 'x'\n  hint: none such\n"
    )
    assert cause_of(trace) == "TypeError: no argument 'x' hint: none such"
    assert cause_of("it went away") == "it went away"

    def rows() -> Iterator[dict[str, Any]]:
        raise RayError(trace)
        yield {}

    with pytest.raises(TeacherError) as caught:
        list(patiently(rows(), lambda: 0, 5))
    assert str(caught.value).startswith("the engine stopped: TypeError: no argument 'x' hint: none such (")
    assert "\n" not in str(caught.value)


@pytest.mark.ray
def test_rows_that_come_pass_through_and_other_errors_stay_what_they_are() -> None:
    from tsd.cluster.engines import patiently

    assert list(patiently(iter([{"part": 1}, {"part": 2}]), lambda: 0, 5)) == [{"part": 1}, {"part": 2}]

    def rows() -> Iterator[dict[str, Any]]:
        raise KeyError("part")
        yield {}

    with pytest.raises(KeyError):
        list(patiently(rows(), lambda: 0, 5))

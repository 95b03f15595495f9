"""What a vLLM engine is told by a recipe, and how the API client asks it."""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.asked import PLOTS
from support.vllm_recipes import teacher

from tsd.errors import InputError, RecipeError
from tsd.recipe import Recipe, load
from tsd.tasks import SINGLE
from tsd.teachers import vllm_engine
from tsd.teachers.prompts import Questions

LIMIT = 50  # tokens
PORT = 4711


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
    assert "--middleware=tsd_engine_guard.RequireToken" in words
    assert (vllm_engine.MODULES / "tsd_engine_guard.py").is_file()
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


@pytest.mark.parametrize(
    "name",
    ["api_key", "api-key", "host", "port", "served_model_name", "ssl_keyfile", "api-ke", "api_key.x", "ssl"],
)
def test_address_and_token_of_a_server_are_not_the_recipe_s_to_set(name: str) -> None:
    first = name.partition(".")[0].replace("-", "_")
    with pytest.raises(RecipeError, match=f"engine must not hold {first}, which tsd sets itself"):
        load("laptop", ["teacher={kind: vllm}", "teacher.model=x", f"teacher.engine={{{name}: a}}"])


def test_names_of_arguments_mean_the_same_with_hyphens_and_with_underscores() -> None:
    told = {"tensor-parallel-size": 4, "max-model-len": 77, "max-num-seqs": 8, "dtype": "half", "revision": "b"}
    hyphens = teacher(engine=told)
    assert hyphens == teacher(engine={name.replace("-", "_"): value for name, value in told.items()})
    assert hyphens.gpus == 4
    assert hyphens.identity["engine"].keys() == {"max_model_len", "dtype", "revision"}
    words = list(vllm_engine.flags(vllm_engine.settings(hyphens, "/models/eyes", {})))
    assert [word for word in words if word.startswith("--max-model-len")] == ["--max-model-len=77"]


def test_a_field_of_an_argument_keeps_its_name() -> None:
    told = teacher(engine={"hf-overrides.rope_theta": 1.5, "speculative_config.eagle-3": True}).engine
    assert list(vllm_engine.flags(told)) == ["--hf-overrides.rope_theta=1.5", "--speculative-config.eagle-3=true"]


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("{max-num-seqs: 8, max_num_seqs: 9}", "max_num_seqs is there twice"),
        ("{'seed=1 --api-key': x}", "is no name of an argument"),
        ("{'seed=1': true}", "is no name of an argument"),
        ("{'': true}", "is no name of an argument"),
    ],
)
def test_an_argument_has_one_name_and_no_value_in_it(engine: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load("laptop", ["teacher={kind: vllm}", "teacher.model=x", f"teacher.engine={engine}"])


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
    assert teacher(replicas=8, tensor_parallel=4, in_flight=4, engine=running).identity == plain
    assert teacher(engine_python="/opt/python", repairs=0, quality={"last": 7}).identity == plain
    shaping = [{"engine": {"dtype": "half"}}, {"max_model_len": 99}, {"choices": True}, {"modality": "both"}]
    assert len({json.dumps(teacher(**change).identity) for change in shaping} | {json.dumps(plain)}) == 5


def test_a_recipe_names_the_field_of_a_vllm_teacher_that_is_wrong() -> None:
    with pytest.raises(RecipeError, match=r"unknown key teacher.replica, did you mean 'replicas'\?"):
        load("laptop", ["teacher={kind: vllm}", "teacher.model=x", "teacher.replica=2"])
    with pytest.raises(RecipeError, match=r"teacher.model is missing"):
        load("laptop", ["teacher={kind: vllm}"])

"""What a vLLM engine inside the pipeline is told, and what comes out of it as a reply. Nothing is run here."""

import json
import os
from collections.abc import Mapping
from typing import Any

from tsd.recipe import VllmTeacher
from tsd.teachers import Reply
from tsd.teachers.api.responses import SHOWN, clean

# Logical CPUs of what works beside an engine, and of an engine without GPU: with a whole one that draws, two do.
STAGE_CPUS, ENGINE_CPUS = 0.25, 0.5
# Arguments of the engine that the stages before it need as well, to read the model's folder as it does.
LOADING = ("trust_remote_code", "tokenizer", "tokenizer_mode", "config_format", "revision", "hf_overrides")
# The architecture of a model's language part, by `model_type`, where vLLM 0.29 asks for it and no config has it.
LANGUAGE = {"qwen3_vl": "Qwen3ForCausalLM"}

ERROR = "__inference_error__"  # the column in which Ray's stages hand on why a row failed; they let it pass by

Row = dict[str, Any]


def settings(teacher: VllmTeacher, config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `ray.data.llm.vLLMEngineProcessorConfig`. config: the model's own config.json."""
    model = os.path.abspath(teacher.model) if os.path.isdir(teacher.model) else teacher.model
    told = completed(teacher.engine, config)
    loading = {name: told[name] for name in LOADING if name in told}
    stage = {"enabled": True, "num_cpus": STAGE_CPUS}
    return {
        "model_source": model,
        "engine_kwargs": {
            "max_model_len": teacher.max_model_len,
            "tensor_parallel_size": teacher.tensor_parallel,
            "limit_mm_per_prompt": {"image": int(teacher.sees_plots), "video": 0},
            # JSON allows blanks between its signs, and a weak model would write them until max_tokens.
            "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
            **told,
        },
        "concurrency": (teacher.replicas, teacher.replicas),
        "batch_size": teacher.batch_size,
        "max_concurrent_batches": teacher.concurrent_batches,
        "accelerator_type": teacher.accelerator,
        "placement_group_config": None if teacher.gpu else {"bundle_per_worker": {"CPU": ENGINE_CPUS}},
        "should_continue_on_error": True,
        "log_engine_metrics": False,
        "prepare_multimodal_stage": {
            **stage,
            "model_config_kwargs": {"max_model_len": teacher.max_model_len, **loading},
            # The templates of models that see take a message in pieces, those of others as one text.
            "chat_template_content_format": "openai" if teacher.sees_plots else "string",
        },
        "chat_template_stage": stage,
        "tokenize_stage": False,  # the engine does, which knows how many tokens a picture takes
        "detokenize_stage": False,
    }


def completed(told: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's arguments, with what vLLM must be told about a model whose config leaves it out."""
    language = LANGUAGE.get(config.get("model_type", ""))
    overrides = told.get("hf_overrides") or {}
    own, asked = (one.get("text_config") or {} for one in (config, overrides))
    if language is None or own.get("architectures") or asked.get("architectures"):
        return dict(told)
    return {**told, "hf_overrides": {**overrides, "text_config": {**asked, "architectures": [language]}}}


def request(teacher: VllmTeacher, schema: str, messages: list[Row], failed: str) -> Row:
    """What an engine is asked. schema: of the reply, as JSON; failed: why there is nothing to ask, or nothing."""
    sampling = {"temperature": teacher.temperature, "max_tokens": teacher.max_tokens}
    return {
        "messages": messages,
        "sampling_params": {**sampling, "structured_outputs": {"json": schema}},
        ERROR: failed,
    }


def named(error: Exception) -> str:
    """An error as a row tells of it."""
    return f"{type(error).__name__}: {error}"


def read_output(output: Mapping[str, Any], max_tokens: int) -> Reply:
    """One row that came out of the engine, as a reply."""
    error = output[ERROR]
    if error:
        return Reply(None, "error", clean(" ".join(error.split()))[:SHOWN])
    text, said = clean(output["generated_text"]), int(output["num_generated_tokens"])
    status, reason = "ok", None
    if said >= max_tokens and not _is_json(text):  # Ray does not hand on why the engine stopped
        status, reason = "truncated", "the reply reached teacher.max_tokens"
    return Reply(
        text,
        status,
        reason,
        input_tokens=int(output["num_input_tokens"]),
        output_tokens=said,
        latency_ms=1000 * float(output["time_taken_llm"]),
    )


def _is_json(text: str) -> bool:
    try:
        json.loads(text, strict=False)
    except ValueError:
        return False
    return True

"""Build the arguments and requests of a vLLM engine in the pipeline, and parse its outputs. Runs no engine."""

import json
import os
from collections.abc import Mapping
from typing import Any

from tsd.recipe import VllmTeacher
from tsd.teachers import Reply
from tsd.teachers.api.responses import SHOWN, clean

# Logical CPUs of each stage beside an engine, and of an engine without GPU. With one CPU that renders plots, two
# CPUs suffice.
STAGE_CPUS, ENGINE_CPUS = 0.25, 0.5
# Engine arguments that earlier stages also need, so that they load the model folder in the same way.
LOADING = ("trust_remote_code", "tokenizer", "tokenizer_mode", "config_format", "revision", "hf_overrides")
# Architecture of the language model by `model_type`. vLLM 0.29 requires it, and the model configs omit it.
LANGUAGE = {"qwen3_vl": "Qwen3ForCausalLM"}

ERROR = "__inference_error__"  # column in which Ray's stages pass on a row's error; they skip such rows

Row = dict[str, Any]


def settings(teacher: VllmTeacher, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `ray.data.llm.vLLMEngineProcessorConfig`. config: the model's own config.json."""
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
            # JSON allows whitespace between tokens, and a weak model could emit it until max_tokens.
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
            # Chat templates of vision-language models take a list of content parts, those of text models a string.
            "chat_template_content_format": "openai" if teacher.sees_plots else "string",
        },
        "chat_template_stage": stage,
        "tokenize_stage": False,  # the engine tokenizes: only it knows the number of image tokens
        "detokenize_stage": False,
    }


def completed(told: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the engine arguments, completed with settings that vLLM requires but the model's config omits."""
    language = LANGUAGE.get(config.get("model_type", ""))
    overrides = told.get("hf_overrides") or {}
    own, asked = (one.get("text_config") or {} for one in (config, overrides))
    if language is None or own.get("architectures") or asked.get("architectures"):
        return dict(told)
    return {**told, "hf_overrides": {**overrides, "text_config": {**asked, "architectures": [language]}}}


def request(teacher: VllmTeacher, schema: str, messages: list[Row], failed: str) -> Row:
    """Build one engine request. schema: JSON schema of the response; failed: error message, empty if none."""
    sampling = {"temperature": teacher.temperature, "max_tokens": teacher.max_tokens}
    return {
        "messages": messages,
        "sampling_params": {**sampling, "structured_outputs": {"json": schema}},
        ERROR: failed,
    }


def named(error: Exception) -> str:
    """Format an error as type and message, for a row's reason."""
    return f"{type(error).__name__}: {error}"


def read_output(output: Mapping[str, Any], max_tokens: int) -> Reply:
    """Convert one output row of the engine to a reply. max_tokens: the response limit that detects truncation."""
    error = output[ERROR]
    if error:
        return Reply(None, "error", clean(" ".join(error.split()))[:SHOWN])
    text, said = clean(output["generated_text"]), int(output["num_generated_tokens"])
    status, reason = "ok", None
    if said >= max_tokens and not _is_json(text):  # Ray does not pass on the finish reason
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

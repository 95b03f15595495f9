"""Arguments of vLLM's server in a recipe: which shape its responses, and which are about machines."""

import re
from collections.abc import Mapping
from typing import Any, Final

# Arguments about speed, memory, machines, logs and access. Responses do not depend on them, but for rounding.
RUNNING: Final = frozenset(
    (
        # memory
        *("block_size", "cpu_offload_gb", "cpu_offload_params", "gpu_memory_utilization", "kv_cache_memory_bytes"),
        *("mm_ipc_gpu_memory_gb", "mm_processor_cache_gb", "mm_processor_cache_type", "mm_tensor_ipc"),
        *("mm_shm_cache_max_object_size_mb", "num_gpu_blocks_override", "offload_backend", "offload_group_size"),
        *("offload_num_in_group", "offload_params", "offload_prefetch_step", "skip_mm_profiling", "swap_space"),
        # batches and caches
        *("async_scheduling", "cudagraph_capture_sizes", "disable_chunked_mm_input", "enable_chunked_prefill"),
        *("enable_prefix_caching", "enforce_eager", "long_prefill_token_threshold", "max_cudagraph_capture_size"),
        *(
            "max_long_partial_prefills",
            "max_num_batched_tokens",
            "max_num_partial_prefills",
            "max_num_queued_reqs",
        ),
        *("max_num_queued_tokens", "max_num_scheduled_tokens", "max_num_seqs", "mm_hasher_algorithm"),
        *("prefill_schedule_interval", "prefix_caching_hash_algo", "renderer_num_workers", "scheduling_policy"),
        *("scheduler_reserve_full_isl", "stream_interval", "watermark"),
        # machines
        *("all2all_backend", "cpu_distributed_timeout_seconds", "data_parallel_backend", "data_parallel_size"),
        *("data_parallel_size_local", "device_ids", "disable_custom_all_reduce", "distributed_executor_backend"),
        *("distributed_timeout_seconds", "enable_eplb", "enable_expert_parallel", "eplb_config", "master_addr"),
        *("master_port", "mm_encoder_tp_mode", "nnodes", "node_rank", "numa_bind", "numa_bind_cpus"),
        *("numa_bind_nodes", "pipeline_parallel_size", "tensor_parallel_size", "api_server_count"),
        # loading
        *("download_dir", "max_parallel_loading_workers", "safetensors_load_strategy", "use_tqdm_on_load"),
        *("safetensors_prefetch_block_size", "safetensors_prefetch_num_threads"),
        # logs and measurements
        *("aggregate_engine_logging", "collect_detailed_traces", "cudagraph_metrics", "disable_log_requests"),
        *("disable_access_log_for_endpoints", "disable_log_stats", "disable_uvicorn_access_log"),
        *("enable_layerwise_nvtx_tracing", "enable_log_deltas", "enable_log_outputs", "enable_log_requests"),
        *("enable_logging_iteration_details", "enable_mfu_metrics", "enable_per_request_metrics"),
        *("enable_prompt_tokens_details", "enable_server_load_tracking", "jit_monitor_mode", "kv_cache_metrics"),
        *("kv_cache_metrics_sample", "log_config_file", "log_error_stack", "max_log_len", "otlp_traces_endpoint"),
        *("per_request_spec_decode_metrics", "ray_workers_use_nsight", "show_hidden_metrics_for_version"),
        "uvicorn_log_level",
        # access
        *("allow_credentials", "allowed_headers", "allowed_methods", "allowed_origins", "disable_fastapi_docs"),
        *("enable_offline_docs", "enable_request_id_headers", "enable_tokenizer_info_endpoint"),
        *("h11_max_header_count", "h11_max_incomplete_event_size", "timeout_keep_alive"),
    )
)
# Ways of loading a model's own weights as they are. `dummy` and others load different ones.
SAME_WEIGHTS: Final = (
    *("auto", "fastsafetensors", "hf", "instanttensor", "mistral", "npcache", "pt", "runai_streamer"),
    *("runai_streamer_sharded", "safetensors", "sharded_state", "tensorizer"),
)
# Arguments that would change who may ask the server, and where, as what and by which protocol.
CLOSED: Final = (
    *("api_key", "config", "grpc", "headless", "host", "middleware", "model", "port", "root_path"),
    *("served_model_name", "ssl_", "uds"),
)
PARALLEL: Final = ("tensor_parallel_size", "pipeline_parallel_size")  # whose product is the GPUs of an engine
ARGUMENT: Final = re.compile(r"[A-Za-z]\w*(\.[\w.+-]+)?")  # the part behind a point names a field of a mapping


def named(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments under their Python names. Raises ValueError for what is no name, or is there twice."""
    found: dict[str, Any] = {}
    for name, value in told.items():
        first, point, field = name.partition(".")
        plain = first.replace("-", "_") + point + field
        if not ARGUMENT.fullmatch(plain):
            raise ValueError(f"{name!r} is no name of an argument, such as max_num_seqs")
        if plain in found:
            raise ValueError(f"{plain} is there twice, with - and with _: leave one out")
        found[plain] = value
    return found


def require_allowed(told: Mapping[str, Any]) -> None:
    """Raise ValueError for an argument that tsd sets itself, or a number of GPUs that is none."""
    for name in (name.partition(".")[0] for name in told):
        # The server takes the beginning of a name for the name.
        if name.startswith("ssl_") or any(closed.startswith(name) for closed in CLOSED):
            raise ValueError(f"engine must not hold {name}, which tsd sets itself: leave it out")
        if "hf_token".startswith(name):
            raise ValueError("engine must not hold hf_token, which would be shown: set HF_TOKEN instead")
    for name in PARALLEL:
        if name in told and not (type(told[name]) is int and told[name] > 0):
            raise ValueError(
                f"engine.{name} must be a whole number of GPUs, at least 1, not {told[name]!r}: correct it, or "
                "leave it out"
            )


def shaping(told: Mapping[str, Any], gpu: bool) -> dict[str, Any]:
    """Return the arguments on which responses depend. gpu: whether the engine runs on GPUs.

    Without a dtype, GPUs and CPUs may compute in different ones, so that CPUs are named. GPUs are not, which keeps
    old keys.
    """
    found = {name: value for name, value in told.items() if name not in RUNNING}
    if str(found.get("load_format", "auto")).lower() in SAME_WEIGHTS:
        found.pop("load_format", None)
    if not gpu and found.get("dtype") in (None, "auto"):
        found["dtype"] = "auto on CPUs"
    return found

"""Who describes the series."""

import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from tsd.recipe.section import EVERY, Positive, Section, Share, Uri

ERROR_RATE = 0.04
OPENAI = "api.openai.com"


class RulesTeacher(Section):
    """A teacher that is not a model: it states the measured facets in varied sentences."""

    kind: Literal["rules"] = "rules"
    varied: bool = True
    """Whether its sentences vary; if not, a facet is always stated in the same words."""
    error_rate: dict[str, Share] = Field(default={EVERY: ERROR_RATE})
    """The share of wrong labels, by facet; `every` is that of the facets which are not named, a number alone that
    of all."""

    @model_validator(mode="before")
    @classmethod
    def _every_facet_has_a_rate(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "error_rate" not in value:
            return value
        rates = value["error_rate"]
        return {**value, "error_rate": {EVERY: ERROR_RATE, **rates} if isinstance(rates, dict) else {EVERY: rates}}

    @property
    def name(self) -> str:
        """What the tables call this teacher."""
        return "rules"

    @property
    def identity(self) -> dict[str, Any]:
        """All that shapes its replies."""
        return self.model_dump(exclude=set() if not self.varied else {"varied"})  # older replies keep their keys


class Training(Section):
    """How a teacher of one's own is trained: to look at pictures whose truth is known, and to state it."""

    size: Literal["0.03M", "0.1M", "0.3M", "1M"] = "0.3M"
    """Its built-in size; see `tsd.models.vision_students`."""
    pictures: Positive = 60_000
    """Of series of their own, which no study sees. With fewer it is a worse teacher."""
    batch_size: Positive = 32
    """Pictures in a step."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate; the size's own when left out."""
    optimiser: Literal["adamw", "muon"] = "muon"
    """As of `training.optimiser`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of its first weights and of the order of its pictures."""


SHAPING = {
    "kind",
    "model",
    "revision",
    "view",
    "choices",
    "structured",
    "temperature",
    "max_tokens",
    "max_model_len",
}
# Arguments of vLLM's engine that say how it uses its machine, not what it replies.
RUNNING = {
    *(
        "block_size",
        "cpu_offload_gb",
        "disable_log_stats",
        "distributed_executor_backend",
        "enable_chunked_prefill",
    ),
    *("enable_prefix_caching", "enforce_eager", "gpu_memory_utilization", "kv_cache_memory_bytes", "load_format"),
    *("max_num_batched_tokens", "max_num_seqs", "pipeline_parallel_size", "skip_mm_profiling"),
}


class ModelTeacher(Section):
    """A model that is shown each series and asked to describe it."""

    model: str
    """The model's name, as the server or the hub knows it, or its folder."""
    train: Training | None = None
    """In the place of a model: train one, where it is not there yet, and keep it in RUN/teacher. It is small,
    looks at plots, and is asked as it was taught."""
    view: Literal["plot", "numbers", "both"] = "plot"
    """What it is shown: the plot, the values as text, or both."""
    choices: bool = False
    """Have it choose among the task's own sentences (a schema of enums), for models that cannot word their own."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    max_tokens: Positive = 256
    """Longest reply, in tokens."""

    @property
    def name(self) -> str:
        """What the tables call this teacher."""
        return f"own-{self.train.size}" if self.train else self.model

    @property
    def identity(self) -> dict[str, Any]:
        """All that shapes its replies; how fast and how often it is asked does not."""
        return self.model_dump(include={*SHAPING, *({"train"} if self.train else ())})

    @property
    def own(self) -> bool:
        """Whether it is a model of tsd's own, which is asked one thing alone, in few words."""
        return self.train is not None

    @property
    def sees_plots(self) -> bool:
        """Whether it is shown pictures."""
        return self.view != "numbers"

    @model_serializer(mode="wrap")
    def _where_it_is_kept_follows(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Of a teacher that is trained, the study's folder says where it lies, and a recipe does not."""
        fields: dict[str, Any] = write(self)
        return {name: value for name, value in fields.items() if self.train is None or name != "model"}

    @model_validator(mode="after")
    def _looks_as_it_learned(self) -> Self:
        if self.own and (self.view != "plot" or self.temperature):
            raise ValueError(
                "a teacher of one's own looks at plots and says what is likeliest: leave out "
                f"{'view' if self.view != 'plot' else 'temperature'}"
            )
        return self


class LocalTeacher(ModelTeacher):
    """A small model of one's own that looks at the plots in the pipeline's own processes, on CPUs."""

    kind: Literal["local"]
    workers: Positive = 2
    """Processes that look, a CPU each."""
    batch_size: Positive = 256
    """Plots that a process looks at together."""

    @property
    def own(self) -> bool:
        """Only such models can be run so."""
        return True


class BatchConfig(Section):
    """How an offline Batch API is used; its limits are the provider's."""

    price_share: Share = 0.5
    """What a token costs in a batch, as a share of the live price."""
    most_requests: Positive = 50_000
    """In one batch; a part of the series (series.blocks_per_part) makes one or several."""
    most_megabytes: Positive = 190
    """In one batch's file."""
    at_once: Positive = 64
    """Batches under way at once."""
    poll_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Between two looks at a batch."""
    rounds: Positive = 4
    """How often what a batch left unanswered is put into another one."""
    idle_timeout: Annotated[float, Field(gt=0)] = 3600.0
    """Seconds without progress in collecting a batch (files that cannot be read, lines that are missing, a status
    that tsd does not know) after which the stage stops. Nothing is asked again meanwhile."""


def _address(url: str) -> str:
    """The address of an API without what was copied with it. Raises ValueError where it cannot be one."""
    url = url.strip()
    if "://" not in url:
        raise ValueError(f"must begin with https:// or http://, such as https://{url.lstrip('/') or 'host/v1'}")
    parts = urlsplit(url)
    try:
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("has a port that is no number from 0 to 65535") from None
    if parts.scheme not in ("http", "https") or not host or re.search(r"\s", url):
        raise ValueError("must be an address such as https://host/v1")
    unknown = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if name != "api-version"]
    if unknown or parts.fragment:
        raise ValueError(
            f"must not hold {f'?{unknown[0]}=' if unknown else '#'}…: an address is kept and shown; a key is "
            "named by teacher.key_env, and of parameters only api-version is known"
        )
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


class QualityConfig(Section):
    """When the stage stops because too few replies can be used."""

    last: Positive = 100
    """Rows that are looked at: the last so many that ended."""
    least_usable: Share = 0.2
    """The share of them that must be `ok`; 0 never stops."""


class ApiTeacher(ModelTeacher):
    """A model behind an OpenAI-compatible API."""

    kind: Literal["openai"]
    base_url: Annotated[Uri, AfterValidator(_address)] = "http://127.0.0.1:8000/v1"
    """Where the API is, usually ending in /v1; left out, where `vllm serve` puts it on this machine. It is no part
    of what a reply depends on: replies of one address are used at another that serves the same model."""
    revision: str | None = None
    """Of the model, where it matters which: replies of one revision are not used for another."""
    key_env: str | None = None
    """The environment variable that holds the key, which stands nowhere else; by default OPENAI_API_KEY for
    OpenAI's own API, and none for any other."""
    mode: Literal["live", "batch"] = "live"
    """One request a series, or the provider's offline batches, at a lower price and within a day."""
    structured: Literal["auto", "schema", "json", "none"] = "auto"
    """How a reply's form is asked for: JSON schema, JSON mode or words; auto: the first that the server takes, in
    batches the schema."""
    repairs: Annotated[int, Field(ge=0)] = 1
    """How often a teacher is told what is wrong with a reply that is invalid or truncated, and asked again."""
    in_flight: Positive = 32
    """Requests under way at once, all workers together."""
    workers: Positive = 2
    """Processes that ask."""
    requests_per_minute: Positive | None = None
    """The provider's limit, which all workers together keep."""
    tokens_per_minute: Positive | None = None
    """The same, of tokens in and out."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds until a request counts as failed."""
    retries: Annotated[int, Field(ge=0)] = 5
    """How often a failed request is tried again; being told to wait is no failure."""
    patience: Annotated[float, Field(gt=0)] = 300.0
    """Seconds without any answer, after which the stage stops."""
    quality: QualityConfig = QualityConfig()
    budget_usd: Annotated[float, Field(gt=0)] | None = None
    """The stage stops before it costs more, earlier starts included."""
    budget_tokens: Positive | None = None
    """The stage stops before it takes more tokens, in and out, earlier starts included."""
    seconds_a_reply: Annotated[float, Field(gt=0)] = 4.0
    """What the server takes, for the dry run: an estimate, no limit."""
    usd_per_million_input: Annotated[float, Field(ge=0)] = 0.0
    usd_per_million_output: Annotated[float, Field(ge=0)] = 0.0
    batch: BatchConfig = BatchConfig()

    @model_validator(mode="after")
    def _fields_fit_each_other(self) -> Self:
        if self.workers > self.in_flight:
            raise ValueError(f"in_flight must be at least workers ({self.workers}), not {self.in_flight}")
        if self.budget_usd and not (self.usd_per_million_input or self.usd_per_million_output):
            raise ValueError("budget_usd needs a price: set usd_per_million_input and usd_per_million_output")
        return self

    @property
    def key_variable(self) -> str | None:
        """The environment variable that holds the key; None where the server asks for none."""
        if self.key_env is None and urlsplit(self.base_url).hostname == OPENAI:
            return "OPENAI_API_KEY"
        return self.key_env

    def usd(self, input_tokens: float, output_tokens: float) -> float:
        """What so many tokens cost, in batches at the price of batches."""
        dollars = (input_tokens * self.usd_per_million_input + output_tokens * self.usd_per_million_output) / 1e6
        return dollars * (self.batch.price_share if self.mode == "batch" else 1.0)


class VllmTeacher(ModelTeacher):
    """A model that vLLM runs inside the pipeline, on the cluster's own machines."""

    kind: Literal["vllm"]
    replicas: Positive = 1
    """Engines, each with a copy of the model."""
    tensor_parallel: Positive = 1
    """GPUs that share one copy."""
    gpu: bool = True
    """Run on GPUs; on CPUs only to try a tiny model."""
    accelerator: str | None = None
    """The type of GPU to ask Ray for, such as H100; any, where none is named."""
    max_model_len: Positive = 8192
    """Longest prompt and reply together, in tokens, pictures included."""
    batch_size: Positive = 32
    """Rows that are handed to an engine, and come back, together."""
    concurrent_batches: Positive = 8
    """Of them, that an engine works on at once."""
    engine: dict[str, Any] = Field(default={})
    """More arguments of vLLM's engine by their names in Python, such as {dtype: float16}."""
    patience: Annotated[float, Field(gt=0)] = 1800.0
    """Seconds without any reply, the engine's start included, after which the stage stops."""
    replies_per_second: Annotated[float, Field(gt=0)] | None = None
    """Of one GPU (or of an engine on CPUs), as you measured it: what the dry run's hours follow from."""
    usd_per_gpu_hour: Annotated[float, Field(ge=0)] = 0.0
    """For the dry run's dollars."""

    @property
    def identity(self) -> dict[str, Any]:
        """All that shapes its replies; on how many machines, and how they are used, does not."""
        shaping = {name: value for name, value in self.engine.items() if name not in RUNNING}
        return {**super().identity, "engine": shaping}


# By kind, which is how pydantic names them in the place of an error.
TEACHERS: dict[str, type[Section]] = {
    "rules": RulesTeacher,
    "local": LocalTeacher,
    "openai": ApiTeacher,
    "vllm": VllmTeacher,
}

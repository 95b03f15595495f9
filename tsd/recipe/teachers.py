"""Recipe sections: the teachers that annotate the series."""

import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from tsd.recipe import engine_arguments
from tsd.recipe.renamed import first_names
from tsd.recipe.section import EVERY, Positive, Section, Share, Uri

ERROR_RATE = 0.04
OPENAI = "api.openai.com"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class RulesTeacher(Section):
    """A rule-based teacher without a model: it states the measured labels in varied phrasings."""

    kind: Literal["rules"] = "rules"
    """States the measured labels, without a model."""
    varied: bool = True
    """Whether phrasings vary. Otherwise a facet always has the same one."""
    error_rate: dict[str, Share] = Field(default={EVERY: ERROR_RATE})
    """Fraction of wrong labels, by facet. `every` is for the facets not named; a single number is for all."""

    @model_validator(mode="before")
    @classmethod
    def _every_facet_has_a_rate(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "error_rate" not in value:
            return value
        rates = value["error_rate"]
        return {**value, "error_rate": {EVERY: ERROR_RATE, **rates} if isinstance(rates, dict) else {EVERY: rates}}

    @property
    def name(self) -> str:
        """The teacher's name in tables."""
        return "rules"

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that determine its responses."""
        return self.model_dump(exclude=set() if not self.varied else {"varied"})  # keeps old keys


class Training(Section):
    """How a locally trained teacher is trained: on plots with known ground truth."""

    size: Literal["0.03M", "0.1M", "0.3M", "1M"] = "0.3M"
    """Built-in model size; see `tsd.models.vision_students`."""
    pictures: Positive = 60_000
    """Training images, of series that no study uses. Fewer images give a worse teacher."""
    batch_size: Positive = 32
    """Images per step."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate. Default: that of the size."""
    optimizer: Literal["adamw", "muon"] = "muon"
    """As `training.optimizer`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the initial weights and of the order of the images."""


SHAPING = {
    "kind",
    "model",
    "revision",
    "modality",
    "prompt",
    "choices",
    "structured",
    "temperature",
    "max_tokens",
    "max_model_len",
}


class ModelTeacher(Section):
    """A model that is prompted with each series."""

    model: str
    """The model's name on the server or hub, or its folder."""
    train: Training | None = None
    """Instead of `model`: train one if it does not exist yet, and store it in RUN/teacher. It is a small vision
    model with a short prompt of its own."""
    modality: Literal["image", "text", "both"] = "image"
    """Input modality: the plot, the values as text, or both."""
    prompt: Literal["plain", "defined"] | None = None
    """Whether the prompt defines each class. Default: `defined` with `truth: robust`, else `plain`. A locally
    trained teacher is never told."""
    choices: bool = False
    """Restrict responses to the task's own phrasings (a schema of enums), for models that cannot phrase
    answers."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Sampling temperature. 0 decodes greedily."""
    max_tokens: Positive = 256
    """Maximum length of a response in tokens."""

    @property
    def name(self) -> str:
        """The teacher's name in tables."""
        return f"own-{self.train.size}" if self.train else self.model

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that determine its responses, under the names that the keys of tables have."""
        return first_names(self.current_identity)

    @property
    def current_identity(self) -> dict[str, Any]:
        """The settings that determine its responses. Excludes how fast and how often requests are sent.

        A prompt that is left to its default follows from the truth, which is in the keys of tables itself.
        """
        shaping = {*SHAPING, *({"train"} if self.train else ())} - ({"prompt"} if self.prompt is None else set())
        return self.model_dump(include=shaping)

    @property
    def own(self) -> bool:
        """Whether it is a locally trained model, which has a short prompt of its own."""
        return self.train is not None

    @property
    def sees_images(self) -> bool:
        """Whether its prompts contain images."""
        return self.modality != "text"

    @model_serializer(mode="wrap")
    def _where_it_is_kept_follows(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit the folder of a trained teacher, which follows from the study's folder."""
        fields: dict[str, Any] = write(self)
        return {name: value for name, value in fields.items() if self.train is None or name != "model"}

    @model_validator(mode="after")
    def _prompted_as_trained(self) -> Self:
        if self.own and (self.modality != "image" or self.temperature):
            raise ValueError(
                "a locally trained teacher sees plots and decodes greedily: leave out "
                f"{'modality' if self.modality != 'image' else 'temperature'}"
            )
        return self


class LocalTeacher(ModelTeacher):
    """A locally trained small vision model, run in the pipeline's own processes on CPUs."""

    kind: Literal["local"]
    """A small vision model that tsd trains, run in the pipeline's processes."""
    workers: Positive = 2
    """Inference processes, one CPU each."""
    batch_size: Positive = 256
    """Images per forward pass."""

    @property
    def own(self) -> bool:
        """Always true: only such models can be run this way."""
        return True


class BatchConfig(Section):
    """How a provider's offline Batch API is used. The limits are the provider's."""

    price_share: Share = 0.5
    """Price of a token in a batch, as a fraction of the live price."""
    most_requests: Positive = 50_000
    """Maximum requests per batch. One part of the series (series.blocks_per_part) becomes one or more batches."""
    most_megabytes: Positive = 190
    """Maximum size of a batch's input file in megabytes."""
    at_once: Positive = 64
    """Maximum batches in progress."""
    poll_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Seconds between status requests for a batch."""
    rounds: Positive = 4
    """Maximum batches per request: unanswered requests go into another batch."""
    idle_timeout: Annotated[float, Field(gt=0)] = 3600.0
    """Seconds without progress in collecting a batch (unreadable files, missing lines, an unknown status) after
    which the stage stops. No requests are repeated meanwhile."""


def _address(url: str) -> str:
    """Normalise a copied API address. Raises ValueError if it cannot be one."""
    url = url.strip()
    if "://" not in url:
        raise ValueError(f"must begin with https:// or http://, such as https://{url.lstrip('/') or 'host/v1'}")
    parts = urlsplit(url)
    try:
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("has a port that is not a number from 0 to 65535") from None
    if parts.scheme not in ("http", "https") or not host or re.search(r"\s", url):
        raise ValueError("must be an address such as https://host/v1")
    unknown = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if name != "api-version"]
    if unknown or parts.fragment:
        raise ValueError(
            f"must not hold {f'?{unknown[0]}=' if unknown else '#'}…, since addresses are stored and shown: set "
            "teacher.key_env for a key; the only parameter allowed is api-version"
        )
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


class QualityConfig(Section):
    """When the stage stops because too few responses are usable. Teachers of plugins have no such check: they
    annotate a whole part of the series at once."""

    last: Positive = 100
    """Number of latest rows that are considered."""
    least_usable: Share = 0.2
    """Minimum fraction of them with status `ok`. 0 never stops."""


class ApiTeacher(ModelTeacher):
    """A model behind an OpenAI-compatible API."""

    kind: Literal["openai"]
    """A model behind an OpenAI-compatible API."""
    base_url: Annotated[Uri, AfterValidator(_address)] = "http://127.0.0.1:8000/v1"
    """Base URL of the API, usually ending in /v1. Default: the address of `vllm serve` on this machine. Responses
    do not depend on it: they are reused for another address that serves the same model."""
    revision: str | None = None
    """Revision of the model. Responses of one revision are not reused for another."""
    key_env: str | None = None
    """Environment variable of the API key. Default: OPENAI_API_KEY for OpenAI's API, none for others."""
    mode: Literal["live", "batch"] = "live"
    """`live`: one request per series. `batch`: the provider's offline batches, cheaper but slower."""
    structured: Literal["auto", "schema", "json", "none"] = "auto"
    """How the response format is enforced: JSON schema, JSON mode or by the prompt only (`none`). `auto` uses the
    first that the server accepts, and the schema in batches."""
    repairs: Annotated[int, Field(ge=0)] = 1
    """Maximum follow-up requests for an invalid or truncated response, with a description of the error."""
    in_flight: Positive = 32
    """Maximum concurrent requests, over all workers."""
    workers: Positive = 2
    """Client processes."""
    requests_per_minute: Positive | None = None
    """The provider's rate limit, shared by all workers."""
    tokens_per_minute: Positive | None = None
    """The provider's rate limit for input and output tokens together."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds after which a request counts as failed."""
    retries: Annotated[int, Field(ge=0)] = 5
    """Maximum retries of a failed request. Rate-limit responses do not count as failures."""
    idle_timeout: Annotated[float, Field(gt=0)] = 300.0
    """Seconds without any response after which the stage stops."""
    quality: QualityConfig = QualityConfig()
    budget_usd: Annotated[float, Field(gt=0)] | None = None
    """Maximum cost, earlier starts included. The stage stops before it exceeds it."""
    budget_tokens: Positive | None = None
    """Maximum input and output tokens, earlier starts included. The stage stops before it exceeds it."""
    seconds_a_reply: Annotated[float, Field(gt=0)] = 4.0
    """Estimated seconds per response, for the dry run only."""
    usd_per_million_input: Annotated[float, Field(ge=0)] = 0.0
    """Price of a million input tokens in dollars. 0: not known."""
    usd_per_million_output: Annotated[float, Field(ge=0)] = 0.0
    """Price of a million output tokens in dollars. 0: not known."""
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
        """Environment variable of the API key; None if the server needs no key."""
        if self.key_env is None and urlsplit(self.base_url).hostname == OPENAI:
            return "OPENAI_API_KEY"
        return self.key_env

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine, so that no proxy is used."""
        return urlsplit(self.base_url).hostname in LOOPBACK

    @property
    def place(self) -> str:
        """What messages call the server."""
        return self.base_url

    @property
    def checks(self) -> str:
        """The settings that a message about a refusal names."""
        return "teacher.base_url, teacher.model and the key"

    @property
    def takes_schemas(self) -> bool:
        """Whether the server is known to accept a JSON schema before it is asked."""
        return False

    def usd(self, input_tokens: float, output_tokens: float) -> float:
        """Cost in dollars of so many tokens, at batch prices in batch mode."""
        dollars = (input_tokens * self.usd_per_million_input + output_tokens * self.usd_per_million_output) / 1e6
        return dollars * (self.batch.price_share if self.mode == "batch" else 1.0)


class VllmTeacher(ModelTeacher):
    """A model run by vLLM within the pipeline, on the cluster's machines: a server for each engine."""

    kind: Literal["vllm"]
    """A model run by vLLM within the pipeline."""
    replicas: Positive = 1
    """Number of engines, each with a copy of the model."""
    tensor_parallel: Positive = 1
    """GPUs per engine, over which the model is split."""
    gpu: bool = True
    """Run on GPUs. CPUs are suitable for tiny models only."""
    accelerator: str | None = None
    """GPU type to request from Ray, such as H100. Default: any."""
    max_model_len: Positive = 8192
    """Maximum length of prompt and response together in tokens, image tokens included."""
    in_flight: Positive = 256
    """Maximum concurrent requests per engine."""
    engine: dict[str, Any] = Field(default={})
    """Further arguments of vLLM's server by their Python names, such as {dtype: float16}."""
    engine_python: str | None = None
    """Python interpreter that starts the engine, with vLLM in its environment, on every machine that has an
    engine. Default: the one that runs tsd."""
    repairs: Annotated[int, Field(ge=0)] = 1
    """Maximum follow-up requests for an invalid or truncated response, with a description of the error."""
    quality: QualityConfig = QualityConfig()
    idle_timeout: Annotated[float, Field(gt=0)] = 1800.0
    """Seconds without any response, engine start included, after which the stage stops."""
    hang_timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds without a sign of life of an engine, after which it is ended and started again. Its start does not
    count. Signs are responses, and answers to checks until a response takes ten times as long as any before."""
    replies_per_second: Annotated[float, Field(gt=0)] | None = None
    """Measured throughput per GPU (per engine on CPUs), for the dry run's estimate of hours."""
    usd_per_gpu_hour: Annotated[float, Field(ge=0)] = 0.0
    """For the dry run's estimate of dollars."""

    @field_validator("engine")
    @classmethod
    def _names_as_in_python(cls, told: dict[str, Any]) -> dict[str, Any]:
        return engine_arguments.named(told)

    @model_validator(mode="after")
    def _the_address_and_the_token_are_not_set_here(self) -> Self:
        engine_arguments.require_allowed(self.engine)
        return self

    @property
    def gpus(self) -> int:
        """GPUs of one engine, which are on one machine; 0 on CPUs."""
        split: int = self.engine.get("tensor_parallel_size", self.tensor_parallel)
        stages: int = self.engine.get("pipeline_parallel_size", 1)
        return split * stages if self.gpu else 0

    @property
    def current_identity(self) -> dict[str, Any]:
        """The settings that determine its responses. Excludes the number and use of machines."""
        return {**super().current_identity, "engine": engine_arguments.shaping(self.engine, self.gpu)}

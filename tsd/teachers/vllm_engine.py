"""A vLLM engine as a recipe describes it: its command line, how the API client asks it, and its keeper."""

import asyncio
import importlib.util
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from tsd.errors import InputError, TeacherError, how_to_install
from tsd.models import sources
from tsd.progress import clock
from tsd.recipe import ApiTeacher, VllmTeacher
from tsd.teachers import engine_modules
from tsd.teachers.api.worker import RateLimiterClient
from tsd.teachers.engine_server import HOST, EngineServer, Seen

SERVER = "vllm.entrypoints.openai.api_server"
TOKEN = "VLLM_API_KEY"  # environment variable in which the server and its client look for the token
GUARD = "tsd_engine_guard.RequireToken"  # asks for the token where the server does not
MODULES = Path(engine_modules.__file__).parent
RETRIES = 2  # of a row that ends the engine, each of which costs a start
# Arguments of which the server has no opposite.
SWITCHES = ("aggregate_engine_logging", "data_parallel_multi_port_external_lb", "disable_log_stats")
# Architecture of the language model by `model_type`. vLLM 0.29 requires it, and the model configs omit it.
LANGUAGE = {"qwen3_vl": "Qwen3ForCausalLM"}


class EngineApi(ApiTeacher):
    """The API of a teacher's engines. Name and identity are the teacher's, and with them the keys."""

    asked: VllmTeacher
    """The teacher of the recipe."""

    @property
    def name(self) -> str:
        """The teacher's name in tables."""
        return self.asked.name

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that determine its responses."""
        return self.asked.identity

    @property
    def place(self) -> str:
        """What messages call the server."""
        return "the engine"

    @property
    def checks(self) -> str:
        """The settings that a message about a refusal names."""
        return "teacher.model, teacher.max_model_len and teacher.engine"

    @property
    def takes_schemas(self) -> bool:
        """Always: vLLM takes a JSON schema."""
        return True


def as_api(teacher: VllmTeacher, engines: int, base_url: str = f"http://{HOST}/v1") -> EngineApi:
    """Return how the API client asks a teacher's engines. engines: number of them, each with a client of its own.

    base_url: address of the client's engine. Nothing is paid for, and no limit of requests applies.
    """
    same = ("train", "modality", "choices", "temperature", "max_tokens", "repairs", "quality", "idle_timeout")
    return EngineApi(
        kind="openai",
        asked=teacher,
        model=teacher.name,
        base_url=base_url,
        key_env=TOKEN,
        structured="schema",
        in_flight=engines * teacher.in_flight,
        workers=engines,
        timeout=teacher.idle_timeout,
        retries=RETRIES,
        **{name: getattr(teacher, name) for name in same},
    )


def require_python(teacher: VllmTeacher) -> None:
    """Raise InputError if this machine has no interpreter, or no vLLM, for the engine."""
    if teacher.engine_python is not None:  # a driver on a cluster need not have what the nodes with GPUs have
        alone = not os.environ.get("RAY_ADDRESS")
        if alone and shutil.which(os.path.expanduser(teacher.engine_python)) is None:
            raise InputError(
                f"teacher.engine_python: {teacher.engine_python} is not a program on this machine: name the "
                "Python of an environment with vLLM, such as /opt/vllm/bin/python"
            )
    elif importlib.util.find_spec("vllm") is None:
        raise InputError(
            f"teacher.kind=vllm needs vLLM, which is not installed here: {how_to_install('vllm')}, or name the "
            "Python of an environment that has it (teacher.engine_python)"
        )


class EngineKeeper:
    """Keeps a teacher's engine running on this machine, in a thread, for one client.

    The client's requests wait while the engine does not answer. If the engine is given up, the client stops.
    """

    def __init__(self, teacher: VllmTeacher) -> None:
        self.server = EngineServer(partial(command, teacher), TOKEN, MODULES, teacher.hang_timeout)
        self.events = SimpleQueue[str]()
        """An empty text each time that the engine is found to answer; at last why it is given up, if it is."""
        self._client: tuple[RateLimiterClient, asyncio.AbstractEventLoop] | None = None
        self._answers, self._changing = False, threading.Lock()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def start(self) -> None:
        """Start the engine, and start it again whenever it ends."""
        self._thread.start()

    def attach(self, client: RateLimiterClient, loop: asyncio.AbstractEventLoop) -> None:
        """Set the client that alone asks this engine. loop: the event loop of its requests."""
        with self._changing:
            self._client = client, loop
            self._hold()

    def close(self) -> None:
        """End the engine and wait until it has ended."""
        self.server.close()
        self._thread.join()

    def _keep(self) -> None:
        reason = self.server.run(self._available, self._stopped, self._seen)
        if reason and self._client:
            client, loop = self._client
            stopping = client.stop(reason)
            try:
                asyncio.run_coroutine_threadsafe(stopping, loop)
            except RuntimeError:  # the loop is closed: nobody waits
                stopping.close()
        self.events.put(reason or "")

    def _available(self, there: bool) -> None:
        with self._changing:
            self._answers = there
            self._hold()
        if there:
            self.events.put("")

    def _hold(self) -> None:
        if self._client:
            client, loop = self._client
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(client.hold, not self._answers)

    def _stopped(self) -> bool:
        return self._client is not None and self._client[0].stopped.is_set()

    def _seen(self) -> Seen:
        """Return what the client has seen. As long as no row was answered, the engine is at fault for its ends."""
        if self._client is None:
            return Seen()
        client, _ = self._client
        state, suspects = client.server, client.suspects
        explained = suspects.blamed if suspects.answers else 0
        return Seen(state.last_answer, state.overdue(self.server.hang_seconds), explained, state.doubted)


@contextmanager
def serving(teacher: VllmTeacher) -> Iterator[tuple[EngineApi, EngineKeeper]]:
    """Run an engine on this machine inside this context. Yields how it is asked, and its keeper.

    Raises TeacherError, in the engine's own words, if it does not start, or not within `teacher.idle_timeout`.
    """
    require_python(teacher)
    keeper, before = EngineKeeper(teacher), os.environ.get(TOKEN)
    os.environ[TOKEN] = keeper.server.token  # where the client finds it
    keeper.start()
    try:
        try:
            reason = keeper.events.get(timeout=teacher.idle_timeout)
        except Empty:
            reason = (
                f"the engine did not answer within {clock(teacher.idle_timeout)} (teacher.idle_timeout): see its "
                f"log {keeper.server.log}"
            )
        if reason:
            raise TeacherError(reason)
        yield as_api(teacher, 1, keeper.server.base_url), keeper
    finally:
        keeper.close()
        if before is None:
            del os.environ[TOKEN]
        else:
            os.environ[TOKEN] = before


def command(teacher: VllmTeacher, port: int) -> list[str]:
    """Return the command line of a teacher's server. Copies a model on an object store to this machine first.

    Raises InputError if the model's folder cannot be read.
    """
    model = sources.local(teacher.model)
    if os.path.isdir(model):
        model = os.path.abspath(model)
    told = settings(teacher, model, config_of(model, teacher.engine.get("revision")))
    python = os.path.expanduser(teacher.engine_python or sys.executable)
    return [python, "-m", SERVER, *flags({**told, "host": HOST, "port": port})]


def settings(teacher: VllmTeacher, model: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the server's arguments by their Python names. `teacher.engine` overrides the others.

    model: folder on this machine, or the name on a hub. config: the model's own config.json.
    """
    return {
        "model": model,
        "served_model_name": teacher.name,
        "max_model_len": teacher.max_model_len,
        "tensor_parallel_size": teacher.tensor_parallel,
        "limit_mm_per_prompt": {"image": int(teacher.sees_images), "video": 0},
        # Chat templates of vision-language models take a list of content parts, those of text models a string.
        "chat_template_content_format": "openai" if teacher.sees_images else "string",
        # JSON allows whitespace between tokens, and a weak model could emit it until max_tokens.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        "generation_config": "vllm",  # sampling is what the recipe says, not what the model's folder proposes
        "disable_log_stats": True,
        "disable_uvicorn_access_log": True,
        "middleware": GUARD,
        **completed(teacher.engine, config),
    }


def completed(told: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the engine arguments, completed with settings that vLLM requires but the model's config omits."""
    language = LANGUAGE.get(config.get("model_type", ""))
    overrides = told.get("hf_overrides") or {}
    own, asked = (one.get("text_config") or {} for one in (config, overrides))
    if language is None or own.get("architectures") or asked.get("architectures"):
        return dict(told)
    return {**told, "hf_overrides": {**overrides, "text_config": {**asked, "architectures": [language]}}}


def config_of(model: str, revision: str | None) -> dict[str, Any]:
    """Return a model's config.json from its folder or hub; empty if it has none."""
    from transformers import PretrainedConfig

    try:
        config, _ = PretrainedConfig.get_config_dict(model, revision=revision)
    except OSError:
        return {}
    return dict(config)


def flags(told: Mapping[str, Any]) -> Iterator[str]:
    """Yield arguments as words of a command line: {"max_num_seqs": 8} as --max-num-seqs=8.

    True and False become --name and --no-name, a mapping becomes JSON, a list several words. None, and False where
    there is no --no-name, are left out: they are vLLM's default. A name with a point is that of a mapping and of a
    field of it, which has a value in any case.
    """
    for name, value in told.items():
        first, point, field = name.partition(".")
        flag = f"--{first.replace('_', '-')}{point}{field}"
        if point:
            yield f"{flag}={value if isinstance(value, str) else json.dumps(value)}"
        elif value is True:
            yield flag
        elif value is False:
            yield from () if name in SWITCHES else (flag.replace("--", "--no-", 1),)
        elif isinstance(value, Mapping):
            yield f"{flag}={json.dumps(value)}"
        elif isinstance(value, list | tuple | set):
            yield from (flag, *map(str, value))
        elif value is not None:
            yield f"{flag}={value}"

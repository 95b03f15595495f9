"""Annotation stage for a model that vLLM runs on the cluster's machines: series in, replies out.

Rows stream through Ray Data: render, prepare, generate, parse. They return in any order. The driver stores each in
the journal, and writes a part once it has all of its replies. A failed row gets a reason.
"""

import asyncio
import importlib.util
import json
import logging
import os
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache, partial
from queue import Empty, Queue
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError

from tsd.cluster import nodes
from tsd.cluster.session import calm
from tsd.errors import InputError, TeacherError, how_to_install
from tsd.models import sources
from tsd.progress import Step, clock
from tsd.recipe import Recipe, VllmTeacher
from tsd.storage import datasets, folders
from tsd.teachers import Reply, annotations, judge, vllm_engine
from tsd.teachers.api.counts import tally, tell
from tsd.teachers.api.journal import Journal
from tsd.teachers.api.messages import INPUT, OUTPUT, ROWS, STATUS, Counts
from tsd.teachers.api.responses import SHOWN
from tsd.teachers.prompts import Questions, reply_schema

DRAWN_AT_ONCE = 64  # plots
MOST_ERRORS = 20  # before the first reply: beyond it, the cause is not the rows
PREPARING = ("PrepareMultimodalStage", "ChatTemplateStage")  # Ray's stages before the engine
NAMED = re.compile(r"[\w.]+(Error|Exception): ")
QUEUED = 1024  # replies that wait for the driver

Row = dict[str, Any]


def ask(recipe: Recipe, series: datasets.Dataset, folder: str, key: str, step: Step) -> dict[int, datasets.Part]:
    """Annotate every part that is not finished. Returns all parts, existing and new.

    Raises InputError if the engine cannot run here, TeacherError if it stops producing replies.
    """
    teacher = _vllm(recipe)
    require_engine(teacher)
    made = datasets.finished_parts(folder, key)
    missing = [part for part in range(series.parts) if part not in made]
    if not missing:
        step.skip(series.rows)
        return made
    with ThreadPoolExecutor(folders.READERS) as pool:
        known = dict(
            zip(missing, pool.map(lambda part: list(Journal(folder, part).replies()), missing), strict=True)
        )
    step.skip(sum(part.rows for part in made.values()) + sum(map(len, known.values())))
    for part in [part for part in missing if known[part]]:
        begun = _Part(recipe, series, folder, part)
        if begun.whole:  # an earlier start was killed between the last reply and the write
            made[part] = begun.write(key)
            del known[part]
        begun.close()
    counts: Counts = Counter()
    under_way: dict[int, _Part] = {}
    replies: Iterator[Row] = iter(())
    if known:
        wanted = {"num_cpus": vllm_engine.ENGINE_CPUS, "num_gpus": teacher.tensor_parallel if teacher.gpu else 0}
        replies = nodes.noting_waits(
            patiently(_replies(recipe, series, known), teacher.patience), step, wanted, "the engine's next reply"
        )
    try:
        for row in unless_all_fail(replies, answered=bool(made) or any(known.values())):
            part = row["part"]
            if part not in under_way:
                under_way[part] = _Part(recipe, series, folder, part)
            reply = under_way[part].add(row["key"], Reply(**json.loads(row["reply"])))
            counts.update({ROWS: 1, INPUT: reply.input_tokens, OUTPUT: reply.output_tokens})
            counts[STATUS + reply.status] += 1
            step.begin()
            step.advance(1, tell(counts, step))
            if under_way[part].whole:
                made[part] = under_way.pop(part).write(key)
    finally:
        for left in under_way.values():
            left.close()
    return made


def require_engine(teacher: VllmTeacher) -> None:
    """Raise InputError if the engine certainly cannot start."""
    if importlib.util.find_spec("vllm") is None:
        raise InputError(f"teacher.kind=vllm needs vLLM, which is not installed here: {how_to_install('vllm')}")
    looks_like_a_folder = teacher.model.startswith((".", "/", "~")) or sources.is_uri(teacher.model)
    if looks_like_a_folder and folders.read_json(teacher.model, "config.json") is None:
        raise InputError(f"teacher.model: {teacher.model} is not the folder of a model: it holds no config.json")
    wanted, there = teacher.replicas * teacher.tensor_parallel, ray.cluster_resources().get("GPU", 0)
    alone = not os.environ.get("RAY_ADDRESS")  # a cluster may start machines on demand
    if teacher.gpu and there < wanted and alone:
        raise InputError(
            f"teacher.replicas × teacher.tensor_parallel asks for {wanted} GPUs and this machine has {there:g}: "
            "join a cluster (RAY_ADDRESS), or set teacher.gpu=false to try a tiny model on CPUs"
        )


class _Part:
    """A part in progress: its request keys and its journal."""

    def __init__(self, recipe: Recipe, series: datasets.Dataset, folder: str, part: int) -> None:
        self.recipe, self.folder, self.part = recipe, folder, part
        self.series = series.read_part(part)
        self.keys = _questions(recipe).keys(self.series)
        self.journal = Journal(folder, part).__enter__()
        self.replies = self.journal.replies()
        self.missing = set(self.keys) - set(self.replies)

    @property
    def whole(self) -> bool:
        """Whether every series has its reply."""
        return not self.missing

    def add(self, key: str, reply: Reply) -> Reply:
        """Store a reply. Failed rows are requested again by the next start. Returns the validated reply."""
        reply = judge(self.recipe.asks, reply)
        if reply.status != "error":
            self.journal.add(key, reply)
        self.replies[key] = reply
        self.missing.discard(key)
        return reply

    def write(self, key: str) -> datasets.Part:
        """Write the complete part. Its journal's archive is kept, so that the same bytes can be restored."""
        task = self.recipe.asks
        replies = [self.replies[key] for key in self.keys]
        table = annotations(task, self.recipe.teacher.name, self.series, self.keys, replies)
        self.journal.keep(table)
        done = datasets.write_part(self.folder, self.part, table, task.tables.annotations, key, tally(table))
        self.close()
        self.journal.delete()
        return done

    def close(self) -> None:
        """Close the journal so that another start can use it."""
        self.journal.__exit__()


def _replies(recipe: Recipe, series: datasets.Dataset, known: Mapping[int, list[str]]) -> Iterator[Row]:
    """Yield the reply to every prompt without one, in any order: part, key, and the reply as JSON.

    known: by part, the keys of existing replies.
    """
    teacher = _vllm(recipe)
    work = [{"part": part, "known": keys} for part, keys in known.items()]
    questions = (
        ray.data.from_items(work, override_num_blocks=len(work))
        .map_batches(partial(draw, recipe, series), batch_size=1)
        .repartition(target_num_rows_per_block=teacher.batch_size)  # so many replies return together
    )
    asked = processor(teacher, json.dumps(reply_schema(recipe.asks, teacher.choices)))(questions)
    return iter(asked.map(partial(read, teacher), num_cpus=vllm_engine.STAGE_CPUS).iter_rows())


def processor(teacher: VllmTeacher, schema: str) -> Any:
    """Build the Ray Data processor from prompts to engine outputs. schema: JSON schema of a response."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    few = {"num_cpus": vllm_engine.STAGE_CPUS}
    outline = sources.local(teacher.model, weights=False)
    named = teacher.model_copy(update={"model": outline})
    with _quiet():
        made = build_processor(
            vLLMEngineProcessorConfig(**vllm_engine.settings(named, config_of(named))),
            preprocess=partial(request, teacher, schema),
            preprocess_map_kwargs=few,
            postprocess_map_kwargs=few,
        )
    for name in PREPARING:
        stage = made.get_stage_by_name(name)
        # A copy, since Ray declares the field such that no other class can be assigned.
        made.stages[name] = stage.model_copy(update={"fn": row_by_row(stage.fn)})
    if outline != teacher.model:
        for name, stage in made.stages.items():
            made.stages[name] = stage.model_copy(update={"fn": with_copy_of(teacher.model, outline, stage.fn)})
    return made


def with_copy_of(source: str, outline: str, stage: type) -> type:
    """Wrap a Ray stage so that it fetches the model to its machine first: vLLM loads from local folders.

    source: URI of the model folder. outline: the driver's copy without weights, as named by the stage arguments.
    """

    class WithCopy(stage):  # type: ignore[misc] # Ray's class has no types
        def __init__(self, *arguments: Any, **named: Any) -> None:
            folder = sources.local(source)

            def placed(value: Any) -> Any:
                if isinstance(value, dict):
                    return {name: placed(one) for name, one in value.items()}
                return folder if value == outline else value

            super().__init__(*arguments, **placed(named))

    return WithCopy


def config_of(teacher: VllmTeacher) -> dict[str, Any]:
    """Return the model's config.json from its folder or hub; empty if it has none."""
    from transformers import PretrainedConfig

    try:
        config, _ = PretrainedConfig.get_config_dict(teacher.model, revision=teacher.engine.get("revision"))
    except OSError:
        return {}
    return dict(config)


def row_by_row(stage: type) -> type:
    """Wrap a Ray stage so that a row it cannot process gets an error, as the engine's rows do, and stops
    nothing.
    """

    class RowByRow(stage):  # type: ignore[misc] # Ray's class has no types
        async def udf(self, batch: list[Row]) -> AsyncIterator[Row]:
            for output in await asyncio.gather(*(self._take(row) for row in batch)):
                yield output

        async def _take(self, row: Row) -> Row:
            try:
                (output,) = [output async for output in stage.udf(self, [row])]  # type: ignore[attr-defined]
            except Exception as error:
                place = self.IDX_IN_BATCH_COLUMN
                return {place: row[place], vllm_engine.ERROR: vllm_engine.named(error)}
            return dict(output)

    return RowByRow


def draw(recipe: Recipe, series: datasets.Dataset, batch: Row) -> Iterator[Row]:
    """Yield the prompts of all series without a reply, DRAWN_AT_ONCE at a time. batch: parts and their
    known keys.
    """
    for part, known in zip(batch["part"].tolist(), batch["known"], strict=True):
        table, questions = series.read_part(part), _questions(recipe)
        keys, there = questions.keys(table), set(known)
        rows = [row for row, key in enumerate(keys) if key not in there]
        for first in range(0, len(rows), DRAWN_AT_ONCE):
            some = rows[first : first + DRAWN_AT_ONCE]
            asked = _ask(questions, table.take(some), [keys[row] for row in some])
            yield {
                "part": [part] * len(some),
                "key": [keys[row] for row in some],
                "asked": [messages for messages, _ in asked],
                "failed": [why for _, why in asked],
            }


def _ask(questions: Questions, series: pa.Table, keys: Sequence[str]) -> list[tuple[str, str]]:
    """Build the messages of each series as JSON; for a series that cannot be rendered, the error instead."""
    try:
        return [(json.dumps(question.messages), "") for question in questions.ask(series, keys)]
    except Exception as error:
        if len(keys) == 1:
            return [("[]", vllm_engine.named(error))]
    return [one for row in range(len(keys)) for one in _ask(questions, series.slice(row, 1), keys[row : row + 1])]


def request(teacher: VllmTeacher, schema: str, row: Row) -> Row:
    """Convert a prompt to an engine request."""
    return vllm_engine.request(teacher, schema, json.loads(row["asked"]), row["failed"])


def read(teacher: VllmTeacher, row: Row) -> Row:
    """Parse an engine output into part, key, and the reply as JSON."""
    reply = vllm_engine.read_output(row, teacher.max_tokens)
    return {"part": row["part"], "key": row["key"], "reply": json.dumps(asdict(reply))}


def patiently(rows: Iterator[Row], seconds: float) -> Iterator[Row]:
    """Yield rows as they arrive. Raises TeacherError if none arrives for `seconds`, or if the engine did not
    start.

    Ray restarts a dead engine forever, and waits forever for machines that it does not get.
    """
    queue: Queue[Row | BaseException | None] = Queue(QUEUED)

    def fill() -> None:
        try:
            for row in rows:
                queue.put(row)
            queue.put(None)
        except BaseException as error:
            queue.put(error)

    threading.Thread(target=fill, daemon=True).start()
    while True:
        try:
            item = queue.get(timeout=seconds)
        except Empty:
            raise TeacherError(
                f"the engine gave no reply for {clock(seconds)} (teacher.patience): see the logs of its Ray "
                "actor; the same command goes on from here"
            ) from None
        if item is None:
            return
        if isinstance(item, RayError):
            said = cause_of(str(item))
            raise TeacherError(f"the engine stopped: {said} (the logs of its Ray actor say more)") from item
        if isinstance(item, BaseException):
            raise item
        yield item


def unless_all_fail(rows: Iterator[Row], answered: bool) -> Iterator[Row]:
    """Yield rows as they arrive. Raises TeacherError if the first ones all fail: the cause is then not the rows.

    answered: whether an earlier start has received a reply that was not an error.
    """
    for count, row in enumerate(rows, 1):
        if not answered:
            reply = json.loads(row["reply"])
            answered = reply["status"] != "error"
            if not answered and count == MOST_ERRORS:
                raise TeacherError(
                    f"none of the first {MOST_ERRORS} rows has a reply, the last of them for this reason: "
                    f"{reply['reason']}; the same command begins anew"
                )
        yield row


def cause_of(trace: str) -> str:
    """Return the original error at the end of a worker's traceback, in one line."""
    lines = [line.strip() for line in trace.splitlines() if line.strip()]
    first = max((i for i, line in enumerate(lines) if NAMED.match(line)), default=-1)
    return " ".join(lines[first:])[:SHOWN]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence logging: building a processor reconfigures Ray's loggers."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        calm()
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # Ray logs an engine's failure and also raises it


@lru_cache(maxsize=1)  # a worker reuses expensive objects for all parts
def _questions(recipe: Recipe) -> Questions:
    return Questions(_vllm(recipe), recipe.asks, recipe.plots, recipe.seed)


def _vllm(recipe: Recipe) -> VllmTeacher:
    assert isinstance(recipe.teacher, VllmTeacher)
    return recipe.teacher

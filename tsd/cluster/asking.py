"""The annotation stage for a teacher behind an API: a pool of Ray Data actors asks, one gate watches over all."""

import asyncio
import contextlib
import json
import threading
from collections import Counter
from collections.abc import Collection, Coroutine, Iterator, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import ray

from tsd import store
from tsd.cluster import nodes
from tsd.errors import InputError
from tsd.progress import Step
from tsd.recipe import ApiTeacher, Recipe
from tsd.teachers.asking import Questions
from tsd.teachers.batch_api import BatchApi
from tsd.teachers.counts import tally, tell
from tsd.teachers.gate import EARLIER, ROWS, Counts, Gate, Turnstile
from tsd.teachers.journal import Journal
from tsd.teachers.openai_api import OpenAIApi
from tsd.teachers.server import require_key

PARTS_AT_ONCE = 2  # of a worker: while one part waits for its last replies, the next one keeps the worker busy
LOOK_SECONDS = 0.5  # between two looks at the gate
WORKER_CPUS = 0.5  # a worker mostly waits
CALLS_OF_A_WORKER = 16  # of the gate, besides those of its requests

T = TypeVar("T")


def ask(
    recipe: Recipe, series: store.Dataset, folder: str, key: str, step: Step, lost: Collection[int] = ()
) -> dict[int, store.Part]:
    """Ask about every part that is not there yet. Returns all parts, old and new.

    Raises InputError where the stage had to be stopped; what came until then is kept.
    """
    teacher = recipe.teacher
    assert isinstance(teacher, ApiTeacher)
    require_key(teacher)  # said here, not by a worker
    found = store.finished_parts(folder, key)
    step.skip(sum(part.rows for part in found.values()))
    missing = [part for part in range(series.parts) if part not in found]
    if not missing:
        return found
    spent: Counts = Counter()
    for part in found.values():
        spent.update(part.note)
    gate = open_gate(teacher, spent)
    batches = teacher.batch.at_once if teacher.mode == "batch" else None
    workers = min(teacher.workers, len(missing), batches or teacher.in_flight)
    share = (batches or teacher.in_flight) // workers
    at_once = share if batches else PARTS_AT_ONCE  # a batch is only waited for
    rows = nodes.done(
        Asker,
        [{"part": part} for part in missing],
        arguments=(recipe, series, folder, key, gate, share),
        num_cpus=WORKER_CPUS,
        compute=ray.data.ActorPoolStrategy(
            size=workers,
            max_tasks_in_flight_per_actor=at_once,
            max_concurrent_calls_per_actor=at_once,
            enable_true_multi_threading=True,
        ),
    )
    with _watched(gate, step):
        made = {int(row["part"]): json.loads(row["made"]) for row in rows}
    _, stopped = ray.get(gate.progress.remote())
    if stopped:
        raise InputError(stopped)
    step.advance(series.rows - step.skipped - step.done)  # what a killed worker had not yet reported
    return found | {part: store.Part(**one) for part, one in made.items()}


def open_gate(teacher: ApiTeacher, spent: Mapping[str, float]) -> Any:
    """A `Gate` as a Ray actor. Every request may wait in it; by default an actor takes 1,000 calls at once."""
    calls = 2 * teacher.in_flight + CALLS_OF_A_WORKER * teacher.workers
    return ray.remote(Gate).options(num_cpus=0, max_concurrency=calls).remote(teacher, spent)


class Asker:
    """A worker: asks about several parts at once, in an event loop of its own."""

    def __init__(
        self, recipe: Recipe, series: store.Dataset, folder: str, key: str, gate: Any, share: int
    ) -> None:
        self.recipe, self.series, self.folder, self.key = recipe, series, folder, key
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.turnstile, self.api = self._run(self._open(gate, share))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One row: a part in; the part and what was made of it out, as JSON, null where the stage was stopped."""
        part = int(batch["part"][0])
        made = store.find_part(self.folder, part, self.key)  # Ray repeats the task of a worker that died
        if made is None and not self.turnstile.stopped.is_set():
            with Journal(self.folder, part) as journal:
                table = self._run(self.api.annotate(part, self.series.read_part(part), journal))
            if table is not None:
                schema = self.recipe.asks.tables.annotations
                made = store.write_part(self.folder, part, table, schema, self.key, tally(table))
                journal.delete()
        return {"part": [part], "made": [json.dumps(made and asdict(made))]}

    async def _open(self, gate: Any, share: int) -> tuple[Turnstile, OpenAIApi | BatchApi]:
        recipe = self.recipe
        assert isinstance(recipe.teacher, ApiTeacher)
        questions = Questions(recipe.teacher, recipe.asks, recipe.plots, recipe.seed)
        turnstile = await Turnstile(_Remote(gate), recipe.teacher, share).__aenter__()
        kind = BatchApi if recipe.teacher.mode == "batch" else OpenAIApi
        return turnstile, kind(questions, turnstile, share)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()


class _Remote:
    """A gate that is a Ray actor: its calls return what can be awaited."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name).remote


@contextlib.contextmanager
def _watched(gate: Any, step: Step) -> Iterator[None]:
    """Show what the gate counts for as long as the context lasts."""
    over = threading.Event()
    before = step.skipped

    def look() -> None:
        counts, _ = ray.get(gate.progress.remote())
        step.skip(before + counts[EARLIER] - step.skipped)
        step.begin()  # what came before the first reply was getting ready
        step.advance(counts[ROWS] - counts[EARLIER] - step.done, tell(counts, step))

    def watch() -> None:
        while not over.wait(LOOK_SECONDS):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join(10)
    look()  # at what has come since

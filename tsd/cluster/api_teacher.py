"""Annotation stage for a teacher behind an API: a pool of Ray Data actors that share one rate limiter."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Collection, Coroutine, Iterable, Iterator
from datetime import datetime
from typing import Any, TypeVar

import ray

from tsd.cluster import nodes, parts
from tsd.cluster.session import on_driver
from tsd.errors import InputError, StorageError
from tsd.progress import Step, clock
from tsd.recipe import ApiTeacher, Recipe
from tsd.storage import datasets, lock_files, locks
from tsd.teachers.api.account import Earlier
from tsd.teachers.api.batch import BatchApi
from tsd.teachers.api.connection import require_key
from tsd.teachers.api.counts import tally, tell
from tsd.teachers.api.history import Say, adopt_preview, earlier_requests, keep_address, require_journals
from tsd.teachers.api.journal import Journal
from tsd.teachers.api.limits import RateLimiter
from tsd.teachers.api.live import OpenAIApi
from tsd.teachers.api.messages import ANSWERED, EARLIER, MODEL, ROWS, Counts
from tsd.teachers.api.worker import RateLimiterClient
from tsd.teachers.prompts import Questions

PARTS_AT_ONCE = 2  # per worker: while one part waits for its last replies, the next one is processed
LOOK_SECONDS = 0.5  # between two polls of the rate limiter
WORKER_CPUS = 0.5  # a worker mostly waits for responses
CALLS_OF_A_WORKER = 16  # concurrent calls to the rate limiter, besides those of its requests
GUARD_SECONDS = 10.0  # between two checks of the lock
LONG_PAUSE = 5.0  # seconds; longer pauses are shown in the progress line

T = TypeVar("T")


def ask(
    recipe: Recipe,
    series: datasets.Dataset,
    folder: str,
    key: str,
    step: Step,
    lost: Collection[int] = (),
    say: Say = print,
) -> dict[int, datasets.Part]:
    """Annotate every part that is not finished. Returns all parts, existing and new.

    lost: parts that were finished and are missing; they are restored from their journals. say: prints a line.
    Raises InputError if the stage was stopped; replies received until then are kept.
    """
    assert isinstance(recipe.teacher, ApiTeacher)
    teacher = recipe.teacher
    require_key(teacher)  # raised here, not in a worker
    made = parts.find([parts.Target(((folder, key),), series.parts)])
    (found,) = made.parts[""]
    step.skip(sum(part.rows for part in found.values()))
    if not made.missing:
        return found
    require_journals(teacher, folder, lost, found, series)
    if 0 not in found:  # else the bill of a later preview counts where it is stored
        adopt_preview(folder)
    keep_address(teacher, folder, say)
    return Pool(recipe, teacher, series, folder, key, step, say).annotate(made)


class _RateLimiter(RateLimiter):
    """Rate limiter as a Ray actor. After a restart it reads the billing from the journals."""

    def __init__(self, teacher: ApiTeacher, folder: str | None, key: str) -> None:
        super().__init__(teacher, earlier_requests(folder, key) if folder else Earlier())

    async def look(self) -> tuple[Counts, str | None, float]:
        """Return the result of `progress`, and the seconds left of a pause."""
        counts, stopped = await self.progress()
        return counts, stopped, self.paused()


def open_rate_limiter(teacher: ApiTeacher, folder: str | None = None, key: str = "") -> Any:
    """Start a `RateLimiter` actor on the driver's node. Its concurrency covers all requests: all may wait in it.

    folder, key: of the annotations whose journals it reads.
    """
    calls = 2 * teacher.in_flight + CALLS_OF_A_WORKER * teacher.workers
    return ray.remote(_RateLimiter).options(max_concurrency=calls, **on_driver()).remote(teacher, folder, key)


class Asker:
    """Worker that annotates several parts concurrently in its own event loop."""

    def __init__(
        self,
        recipe: Recipe,
        teacher: ApiTeacher,
        series: datasets.Dataset,
        folder: str,
        key: str,
        rate_limiter: Any,
        share: int,
        claim: locks.Claim | None,
    ) -> None:
        """teacher: how the server is asked. claim: the driver's lock on the study's folder; the worker stops when
        it is lost.
        """
        self.recipe, self.teacher, self.series, self.folder, self.key = recipe, teacher, series, folder, key
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.limiter, self.api = self._run(self._open(rate_limiter, share))
        self.guard = asyncio.run_coroutine_threadsafe(self._guard(claim), self.loop)

    def __call__(self, _: str, part: int) -> list[datasets.Part]:
        """Annotate a part and write it. Raises FailedError if the stage was stopped."""
        made = None
        if not self.limiter.stopped.is_set():
            with Journal(self.folder, part) as journal:
                # Checked while holding the journal's lock: its previous holder may have just written the part.
                made = datasets.find_part(self.folder, part, self.key) or self._make(part, journal)
        if made is None:
            raise parts.FailedError("the stage was stopped: the same command goes on from here")
        return [made]

    def _make(self, part: int, journal: Journal) -> datasets.Part | None:
        table = self._run(self.api.annotate(part, self.series.read_part(part), journal))
        if table is None:
            return None
        note = tally(table, journal.keep(table))
        made = datasets.write_part(self.folder, part, table, self.recipe.asks.tables.annotations, self.key, note)
        journal.delete()
        return made

    async def _open(self, rate_limiter: Any, share: int) -> tuple[RateLimiterClient, OpenAIApi | BatchApi]:
        questions = Questions(self.teacher, self.recipe.asks, self.recipe.plots, self.recipe.seed)
        limiter = await RateLimiterClient(_Remote(rate_limiter), self.teacher, share).__aenter__()
        kind = BatchApi if self.teacher.mode == "batch" else OpenAIApi
        return limiter, kind(questions, limiter, share)

    async def _guard(self, claim: locks.Claim | None) -> None:
        """Stop requests if another command has taken over the folder from a stalled driver."""
        while claim and not self.limiter.stopped.is_set():
            try:
                await asyncio.to_thread(claim.require)
            except lock_files.TakenOverError as error:
                await self.limiter.stop(str(error))
            except StorageError:  # storage is temporarily unavailable: the writers report that
                pass
            await asyncio.sleep(GUARD_SECONDS)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()


class _Remote:
    """Proxy to a rate limiter that is a Ray actor: its calls return awaitables."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name).remote


class Pool:
    """The workers of a stage, their rate limiter, and what the driver shows of them."""

    worker: type[Asker] = Asker

    def __init__(
        self,
        recipe: Recipe,
        teacher: ApiTeacher,
        series: datasets.Dataset,
        folder: str,
        key: str,
        step: Step,
        say: Say,
        **needs: Any,
    ) -> None:
        """teacher: how the workers ask their server. needs: resources of a worker, as for `map_batches`."""
        self.recipe, self.teacher, self.series, self.folder, self.key = recipe, teacher, series, folder, key
        self.needs = needs or {"num_cpus": WORKER_CPUS}
        self._rate_limiter = open_rate_limiter(teacher, folder, key)
        self._step, self._say, self._before = step, say, step.skipped
        self._models: set[str] = set()
        self._answered, self._heard = 0, time.monotonic()  # the latest response

    def annotate(self, made: parts.Made) -> parts.Parts:
        """Annotate the missing parts. Returns all. Raises InputError if the stage was stopped."""
        with self._watched():
            self._make(made)
        _, stopped, _ = ray.get(self._rate_limiter.look.remote())
        if stopped or made.failed:  # a rate limiter that was restarted lost the reason
            raise InputError(stopped or "; ".join(made.failed.values()))
        step = self._step
        step.advance(self.series.rows - step.skipped - step.done)  # rows not yet reported by killed workers
        (found,) = made.parts.values()
        return found[0]

    def _make(self, made: parts.Made) -> None:
        """Have the workers annotate the missing parts."""
        teacher, missing = self.teacher, len(made.missing)
        batches = teacher.batch.at_once if teacher.mode == "batch" else None
        workers = min(teacher.workers, missing, batches or teacher.in_flight)
        share = (batches or teacher.in_flight) // workers
        # A batch only waits. With few parts, the first worker that is ready must not take them all.
        at_once = share if batches else min(PARTS_AT_ONCE, -(-missing // workers))
        lock = locks.claim(self.folder)
        arguments = (self.recipe, teacher, self.series, self.folder, self.key, self._rate_limiter, share, lock)
        pool = ray.data.ActorPoolStrategy(
            size=workers,
            max_tasks_in_flight_per_actor=at_once,
            max_concurrent_calls_per_actor=at_once,
            enable_true_multi_threading=True,
        )
        # Guarded by the workers themselves: a stop at once would lose the replies under way.
        options = {"guarded": False, "watch": self.watch, "compute": pool, **self.needs}
        for _ in parts.make_missing(self.worker, made, arguments=arguments, **options):
            pass  # the rate limiter counts what the progress line shows

    def watch(self, rows: Iterator[parts.Row]) -> Iterator[parts.Row]:
        """Wrap the iterator of the workers' results."""
        return rows

    def silent(self) -> float:
        """Seconds since the latest response, or since the start."""
        return time.monotonic() - self._heard

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Show the rate limiter's counts in the progress line inside this context."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(LOOK_SECONDS):
                self._look()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join(10)
        self._look()  # once more, for the final counts

    def _look(self) -> None:
        step = self._step
        counts, _, paused = ray.get(self._rate_limiter.look.remote())
        if counts[ANSWERED] != self._answered:
            self._answered, self._heard = counts[ANSWERED], time.monotonic()
        step.skip(max(0, self._before + counts[EARLIER] - step.skipped))
        step.begin()  # time before the first reply was setup
        step.advance(max(0, counts[ROWS] - counts[EARLIER] - step.done), self._waits(paused) + tell(counts, step))
        for line in changes(self._models, [name for name in counts if name.startswith(MODEL)]):
            self._say(line)

    def _waits(self, paused: float) -> str:
        """Say what is waited for, and since when; "" if nothing is. paused: seconds left of a pause."""
        if paused > LONG_PAUSE:
            return f"the server asked to wait, {clock(paused)} left, "
        if self.teacher.mode == "batch" or self.silent() < nodes.SILENT_SECONDS:
            return ""
        what = nodes.lacking(self.needs) or self.teacher.place
        return f"waiting for {what} since {datetime.fromtimestamp(time.time() - self.silent()):%H:%M:%S}, "


def changes(known: set[str], now: Iterable[str]) -> list[str]:
    """Format one line per model that responded after others had. Adds the new models to `known`."""
    new = sorted(set(now) - known)
    lines = [
        f"  the model changed: {name.removeprefix(MODEL)} answers now, before it was "
        f"{', '.join(sorted(one.removeprefix(MODEL) for one in known))}"
        for name in new
        if known
    ]
    known.update(new)
    return lines

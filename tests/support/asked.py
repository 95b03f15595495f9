"""Asking about some series without Ray, by whatever way the teacher's mode says."""

import asyncio
from pathlib import Path
from typing import Any

import pyarrow as pa

from tsd.recipe import ApiTeacher, PlotConfig
from tsd.tasks import SINGLE, Task
from tsd.teachers.api.account import Earlier
from tsd.teachers.api.batch import BatchApi
from tsd.teachers.api.journal import Journal, parts_with_journals, read_all
from tsd.teachers.api.limits import RateLimiter
from tsd.teachers.api.live import OpenAIApi
from tsd.teachers.api.messages import Counts
from tsd.teachers.api.worker import RateLimiterClient
from tsd.teachers.prompts import Questions
from tsd.teachers.vllm_engine import EngineKeeper

PLOTS = PlotConfig(width=196, height=140)
KEY = "TSD_TEST_KEY"  # the environment variable of the key
SECRET = "sk-do-not-tell-4711"
PRICES = {"usd_per_million_input": 2.0, "usd_per_million_output": 6.0}
LIVE_USD = 1000 * 2e-6 + 50 * 6e-6  # of one request
DEAR = {"usd_per_million_input": 1000.0, "usd_per_million_output": 1000.0}  # $1.05 a reply of 1,050 tokens
REPLY_USD = 1.05


def api(url: str, **changes: Any) -> ApiTeacher:
    """A teacher behind a local API."""
    fixed = {"kind": "openai", "model": "seer", "base_url": url, "key_env": KEY, "workers": 1}
    return ApiTeacher.model_validate({**fixed, "retries": 2, "timeout": 20, **changes})


def in_batches(url: str, **changes: Any) -> ApiTeacher:
    """The same, asked in batches that are looked at often."""
    batch = {"poll_seconds": 0.05, "idle_timeout": 1.0, **changes.pop("batch", {})}
    return api(url, **{"mode": "batch", "batch": batch, **changes})


class Asked:
    """What came of it: the table, None if it was stopped, why, what was counted, and what that was meanwhile."""

    def __init__(
        self,
        teacher: ApiTeacher,
        series: pa.Table,
        folder: Path | str,
        task: Task = SINGLE,
        keeper: EngineKeeper | None = None,
    ) -> None:
        """keeper: of the engine that is asked, if it is one."""
        self.seen: list[Counts] = []
        self.table, self.stopped, self.counts = asyncio.run(self._ask(teacher, series, folder, task, keeper))

    async def _ask(
        self, teacher: ApiTeacher, series: pa.Table, folder: Path | str, task: Task, keeper: EngineKeeper | None
    ) -> Any:
        earlier = Earlier()
        for history in read_all(str(folder), parts_with_journals(str(folder))).values():
            earlier.add(history.account)
        rate_limiter, batch = RateLimiter(teacher, earlier), teacher.mode == "batch"
        share = teacher.batch.at_once if batch else teacher.in_flight
        async with RateLimiterClient(rate_limiter, teacher, share) as limiter:
            if keeper:
                keeper.attach(limiter, asyncio.get_running_loop())
            asker = (BatchApi if batch else OpenAIApi)(Questions(teacher, task, PLOTS, 0), limiter, share)
            watch = asyncio.create_task(self._watch(rate_limiter))
            with Journal(str(folder), 0) as journal:
                table = await asker.annotate(0, series, journal)
            watch.cancel()
            await asker.close()
        counts, stopped = await rate_limiter.progress()
        return table, stopped, counts

    async def _watch(self, rate_limiter: RateLimiter) -> None:
        while True:
            counts, _ = await rate_limiter.progress()
            self.seen.append(counts.copy())
            await asyncio.sleep(0.05)

"""A multimodal teacher behind an OpenAI-compatible API: plot in, reply out, several requests at once.

Retrying what may pass is the `openai` client's work; what will not pass (a wrong key, an unknown model) ends
the stage with one line before more is sent.
"""

import base64
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
import pyarrow as pa

from tsd.errors import InputError
from tsd.plots import VERSION, Plotter, choose_look
from tsd.recipe import ApiTeacher, PlotConfig
from tsd.tasks import Task
from tsd.teachers import Reply, annotations, request_keys

HOPELESS = (
    openai.AuthenticationError,
    openai.PermissionDeniedError,
    openai.NotFoundError,
    openai.BadRequestError,
)


class OpenAIApi:
    """Asks the recipe's model about the plot of each series."""

    def __init__(self, config: ApiTeacher, task: Task, plots: PlotConfig, seed: int) -> None:
        key = os.environ.get(config.key_env)
        if not key:
            raise InputError(f"the environment variable {config.key_env} (teacher.key_env) holds no key: set it")
        self.config = config
        self.task = task
        self.plots = plots
        self.seed = seed
        self.plotter = Plotter()
        self.client = openai.OpenAI(
            api_key=key, base_url=config.base_url, timeout=config.timeout, max_retries=config.retries
        )

    def annotate(self, series: pa.Table) -> pa.Table:
        """series: the task's series table. Returns its annotations table, the same rows in the same order."""
        values = [row.values.to_numpy() for row in series["values"]]
        items = [np.split(row, self.task.curves) for row in values]
        looks = [choose_look(self.plots, self.seed, series_id) for series_id in series["series_id"].to_pylist()]
        prompts = [self.task.teacher_prompt(len(curves[0])) for curves in items]
        with ThreadPoolExecutor(self.config.in_flight) as pool:
            replies = list(pool.map(self._ask, prompts, self.plotter(items, looks)))
        keys = request_keys(self.task, [self.config.identity, VERSION], series, [vars(look) for look in looks])
        return annotations(self.task, self.config.name, series, keys, replies)

    def _ask(self, prompt: str, picture: bytes) -> Reply:
        url = "data:image/png;base64," + base64.b64encode(picture).decode()
        content: Any = [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": url}}]
        started = time.perf_counter()
        try:
            answer = self.client.chat.completions.create(
                model=self.config.model,
                messages=[{"role": "user", "content": content}],
                temperature=self.config.temperature,
                max_tokens=self.config.max_tokens,
                response_format={"type": "json_object"},
            )
        except HOPELESS as error:
            raise InputError(
                f"{self.config.base_url} will not serve {self.config.model} ({error.status_code}): "
                "check teacher.base_url, teacher.model and the key"
            ) from None
        except openai.OpenAIError as error:
            return Reply(None, "error", type(error).__name__, attempts=self.config.retries + 1)
        return self._read(answer, 1000 * (time.perf_counter() - started))

    def _read(self, answer: Any, latency_ms: float) -> Reply:
        choice = answer.choices[0] if answer.choices else None
        asked = answer.usage.prompt_tokens if answer.usage else 0
        said = answer.usage.completion_tokens if answer.usage else 0
        cost = (asked * self.config.usd_per_million_input + said * self.config.usd_per_million_output) / 1e6
        status, reason = "ok", None
        if choice is None or choice.message.content is None:
            refusal = choice.message.refusal if choice else None
            status, reason = ("refused", refusal) if refusal else ("error", "the reply was empty")
        elif choice.finish_reason == "length":
            status, reason = "truncated", "the reply reached teacher.max_tokens"
        elif choice.finish_reason == "content_filter":
            status, reason = "refused", "the provider's filter"
        return Reply(
            choice.message.content if choice else None,
            status,
            reason,
            input_tokens=asked,
            output_tokens=said,
            cost_usd=cost,
            latency_ms=latency_ms,
        )

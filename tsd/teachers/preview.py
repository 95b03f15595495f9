"""Annotate the first rows of a study before the full run, to show prompts, responses and cost.

The responses are stored in a separate journal. The full run reuses them and does not pay for them again.
"""

import asyncio
import base64
from pathlib import Path
from typing import Any

import pyarrow as pa

from tsd.errors import InputError
from tsd.recipe import ApiTeacher, LocalTeacher, ModelTeacher, Recipe, VllmTeacher
from tsd.reporting.pages import template
from tsd.storage import folders
from tsd.teachers import in_process, vllm_engine
from tsd.teachers.api.account import Earlier
from tsd.teachers.api.history import preview_folder
from tsd.teachers.api.journal import Journal
from tsd.teachers.api.limits import RateLimiter
from tsd.teachers.api.live import OpenAIApi
from tsd.teachers.api.worker import RateLimiterClient
from tsd.teachers.prompts import Questions, prompt_text

PAGE = "preview.html"


def preview(recipe: Recipe, series: pa.Table, folder: str, earlier: Earlier) -> tuple[pa.Table, str]:
    """Annotate series of the first part. Returns their annotations table and the HTML page that shows them.

    folder: folder of the annotations. earlier: billing of all previous requests of this run.
    Raises InputError if the server refuses to respond or if the budget is used up.
    """
    annotations, pictures = _ask(recipe, series, folder, earlier)
    return annotations, _page(recipe, series, annotations, pictures)


def _ask(recipe: Recipe, series: pa.Table, folder: str, earlier: Earlier) -> tuple[pa.Table, list[str]]:
    """Return the annotations, and the plots as base64 PNG if the teacher uses images."""
    teacher = recipe.teacher
    if isinstance(teacher, in_process.KINDS):
        return in_process.annotate(recipe, series), []
    if isinstance(teacher, LocalTeacher):
        from tsd.plots.plotter import Plotter, choose_look
        from tsd.teachers.local import Local

        looks = [choose_look(recipe.plots, recipe.seed, one) for one in series["series_id"].to_pylist()]
        drawn = [base64.b64encode(one).decode() for one in Plotter()(recipe.asks.items(series), looks)]
        with folders.local_copy(teacher.model) as model:
            return Local(teacher, recipe.asks, Path(model)).annotate(series), drawn
    if isinstance(teacher, VllmTeacher):
        with vllm_engine.serving(teacher) as (api, keeper):
            return _ask_api(recipe, api, series, folder, earlier, keeper)
    return _ask_api(recipe, teacher, series, folder, earlier)


def _ask_api(
    recipe: Recipe,
    teacher: ApiTeacher,
    series: pa.Table,
    folder: str,
    earlier: Earlier,
    keeper: vllm_engine.EngineKeeper | None = None,
) -> tuple[pa.Table, list[str]]:
    """Return the annotations by a live API, and the plots as base64 PNG if the teacher uses images.

    keeper: of the engine that is asked, if it is one.
    """
    questions = Questions(teacher, recipe.asks, recipe.plots, recipe.seed)
    shown = [_picture(question.messages) for question in questions.ask(series, questions.keys(series))]
    live = teacher.model_copy(update={"mode": "live", "in_flight": min(teacher.in_flight, 4)})
    asking = Questions(live, recipe.asks, recipe.plots, recipe.seed)
    return asyncio.run(_live(asking, series, folder, earlier, keeper)), [one for one in shown if one]


async def _live(
    questions: Questions,
    series: pa.Table,
    folder: str,
    earlier: Earlier,
    keeper: vllm_engine.EngineKeeper | None,
) -> pa.Table:
    """Annotate series through a live API, with a separate journal.

    Replies already in the journal of the full run are copied, so they are not paid for again.
    Raises InputError if the stage stops before every row has a reply.
    """
    teacher = questions.teacher
    assert isinstance(teacher, ApiTeacher)
    rate_limiter = RateLimiter(teacher, earlier)
    async with RateLimiterClient(rate_limiter, teacher, teacher.in_flight) as limiter:
        if keeper:
            keeper.attach(limiter, asyncio.get_running_loop())
        asker = OpenAIApi(questions, limiter, teacher.in_flight)
        watching = asyncio.create_task(_watch(rate_limiter))
        try:
            known = Journal(folder, 0).replies()  # do not pay again for rows that the full run has annotated
            with Journal(preview_folder(folder), 0) as journal:
                for key, reply in known.items():
                    journal.add(key, reply)
                table = await asker.annotate(0, series, journal)
        finally:
            watching.cancel()
            await asker.close()
    _, stopped = await rate_limiter.progress()
    if table is None:
        raise InputError(stopped or "the preview was stopped")
    return table


async def _watch(rate_limiter: RateLimiter) -> None:
    """Poll the rate limiter: it detects an unresponsive server only when its progress is queried."""
    while True:
        await asyncio.sleep(0.5)
        await rate_limiter.progress()


def _picture(messages: list[dict[str, Any]]) -> str | None:
    """Return the plot in a prompt as base64, or None if the prompt has no image."""
    for piece in messages[0]["content"]:
        if piece["type"] == "image_url":
            return str(piece["image_url"]["url"]).partition(",")[2]
    return None


def _page(recipe: Recipe, series: pa.Table, annotations: pa.Table, pictures: list[str]) -> str:
    """Render the HTML page of a preview. pictures: base64 PNGs, one per row, or empty for text-only teachers."""
    truths = series["truth"].to_pylist()
    rows = annotations.to_pylist()
    shown: list[str] | list[None] = pictures or [None] * len(rows)
    cards = [
        {**row, "truth": truth, "picture": picture}
        for row, truth, picture in zip(rows, truths, shown, strict=True)
    ]
    length = len(series["values"][0]) // recipe.asks.curves
    teacher = recipe.teacher
    asked = (
        prompt_text(teacher, recipe.asks, length)
        if isinstance(teacher, ModelTeacher)
        else recipe.asks.teacher_prompt(length)
    )
    return template("preview").render(
        title=recipe.name, teacher=recipe.teacher.name, cards=cards, prompt=asked, facets=recipe.asks.names
    )


def lines(annotations: pa.Table, rows: int) -> list[str]:
    """Format a preview for the terminal. rows: number of rows of the full run, for the cost estimate."""
    said = []
    for row in annotations.to_pylist():
        labels = ", ".join(f"{facet} {label or '–'}" for facet, label in row["labels"].items())
        why = f": {row['reason']}" if row["reason"] else ""
        said.append(f"series {row['series_id']}  {row['status']}{why}  {labels}  ${row['cost_usd']:,.4f}")
        said.append(f"  {' '.join((row['text'] or '(no text)').split())[:200]}")
    cost = sum(annotations["cost_usd"].to_pylist())
    tokens = sum(annotations["input_tokens"].to_pylist()) + sum(annotations["output_tokens"].to_pylist())
    count = len(annotations)
    usable = sum(status == "ok" for status in annotations["status"].to_pylist())
    said.append(
        f"{usable} of {count} are usable; {tokens / count:,.0f} tokens and ${cost / count:,.4f} a row: about "
        f"${cost / count * rows:,.2f} for all {rows:,}"
    )
    return said

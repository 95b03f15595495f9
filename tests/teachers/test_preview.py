"""The first rows, asked before all others: what is shown, and that nothing is paid for twice."""

import os
from pathlib import Path

import pyarrow as pa
import pytest
from support.api_server import Answer, Server, completion
from support.asked import PLOTS, PRICES, Asked, api

from tsd.recipe import Recipe, RulesTeacher
from tsd.teachers.api.account import Earlier
from tsd.teachers.api.history import adopt_preview, earlier_requests
from tsd.teachers.api.journal import Journal
from tsd.teachers.preview import lines, preview

THOUGHT = "It seems flat to me."


def test_a_preview_shows_plot_reply_thought_labels_and_cost_and_is_not_paid_for_again(
    recipe: Recipe, server: Server, series: pa.Table, tmp_path: Path
) -> None:
    server.answer = lambda *_: Answer(
        200, completion(f"<think>{THOUGHT}</think>{completion()['choices'][0]['message']['content']}")
    )
    teacher, folder = api(server.url, **PRICES), str(tmp_path / "annotations")
    asking = recipe.model_copy(update={"teacher": teacher, "plots": PLOTS, "seed": 0})
    table, page = preview(asking, series.slice(0, 5), folder, Earlier())
    assert server.asked == 5
    assert (page.count("<img"), page.count(THOUGHT)) == (5, 5)
    said = lines(table, 64_000)
    assert "5 of 5 are usable" in said[-1]
    assert "for all 64,000" in said[-1]
    assert earlier_requests(folder, "key").billed.usd == pytest.approx(sum(table["cost_usd"].to_pylist()))

    again, _ = preview(asking, series.slice(0, 8), folder, earlier_requests(folder, "key"))
    assert server.asked == 8
    assert len(again) == 8
    adopt_preview(folder)
    assert not os.path.exists(tmp_path / "preview")
    whole = Asked(teacher, series.slice(0, 20), folder)
    assert len(whole.table) == 20
    assert server.asked == 20
    assert earlier_requests(folder, "key").billed.usd == pytest.approx(sum(whole.table["cost_usd"].to_pylist()))
    preview(asking, series.slice(0, 20), folder, Earlier())  # what the stage has asked is shown, not asked
    assert server.asked == 20
    assert len(Journal(folder, 0).replies()) == 20


def test_a_preview_of_a_teacher_that_costs_nothing_needs_no_journal(
    recipe: Recipe, series: pa.Table, tmp_path: Path
) -> None:
    asking = recipe.model_copy(update={"teacher": RulesTeacher()})
    table, page = preview(asking, series.slice(0, 3), str(tmp_path / "annotations"), Earlier())
    assert len(table) == 3
    assert "<img" not in page
    assert list(tmp_path.iterdir()) == []

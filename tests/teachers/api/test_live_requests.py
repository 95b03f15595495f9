"""What a live request holds: plot, prompt, schema and key; and what is left out for a server that refuses it."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from support.api_server import FAULTS, Answer, Server, completion, error
from support.asked import PLOTS, SECRET, Asked, api

from tsd.generation.generator import draw_table
from tsd.recipe import PlotConfig, Recipe
from tsd.tasks import PAIR, SINGLE
from tsd.teachers.prompts import Questions

pytestmark = pytest.mark.usefixtures("quick")


def test_the_request_shows_the_plot_in_the_recipes_size_and_asks_the_teachers_prompt(
    server: Server, ask: Any, series: pa.Table
) -> None:
    ask(series.slice(0, 1), temperature=0.25, max_tokens=99)
    (body,) = server.bodies
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("seer", 0.25, 99)
    text, picture = body["messages"][0]["content"]
    assert text["text"] == SINGLE.teacher_prompt(128, defined=True)
    head, _, data = picture["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (image.format, image.size, image.mode) == ("PNG", (196, 140), "P")
    assert len(set(np.asarray(image).flatten().tolist())) > 2  # something is drawn


@pytest.mark.parametrize("task", [SINGLE, PAIR], ids=["single", "pair"])
@pytest.mark.parametrize("modality", ["image", "text", "both"])
def test_a_modality_is_the_plot_the_numbers_or_both(
    server: Server, tmp_path: Path, task: Any, modality: str
) -> None:
    items = draw_table(task, Recipe(name="x", task=task.name).series, 0, 0, 2)
    Asked(api(server.url, modality=modality, repairs=0), items, tmp_path, task)
    kinds = {"image": ["text", "image_url"], "text": ["text"], "both": ["text", "image_url"]}
    for body in server.bodies:
        assert [part["type"] for part in body["messages"][0]["content"]] == kinds[modality]
    said = {body["messages"][0]["content"][0]["text"] for body in server.bodies}
    for values in items["values"].to_pylist():
        numbers = [", ".join(map(str, curve)) for curve in np.split(np.array(values), task.curves)]
        assert any(all(line in text for line in numbers) for text in said) == (modality != "image")


def test_the_replys_form_is_asked_for_by_schema(server: Server, ask: Any, series: pa.Table) -> None:
    ask(series.slice(0, 1))
    ask(series.slice(0, 1), choices=True)
    free, chosen = (body["response_format"]["json_schema"]["schema"] for body in server.bodies)
    assert free["required"] == list(SINGLE.topics)
    assert free["properties"]["trend"] == {"type": "string"}
    for topic in SINGLE.topics:
        sentences = chosen["properties"][topic]["enum"]
        assert len(sentences) == len(set(sentences))
    every = {topic: chosen["properties"][topic]["enum"][0] for topic in SINGLE.topics}
    assert SINGLE.parse(json.dumps(every)).reason is None


@pytest.mark.parametrize(
    ("refused", "sent"),
    [
        ("response_format json_schema is not supported", {"json_object"}),
        ("response_format is not supported", {None}),
        ("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", {"json_schema"}),
        ("temperature does not support 0.0 with this model", {"json_schema"}),
    ],
)
def test_what_a_server_does_not_know_is_said_otherwise_and_only_the_first_request_is_spent_on_it(
    server: Server, ask: Any, series: pa.Table, refused: str, sent: set[str | None]
) -> None:
    def answer(_: int, body: dict[str, Any]) -> Answer:
        form = body.get("response_format", {}).get("type")
        unknown = {
            "response_format json_schema is not supported": form == "json_schema",
            "response_format is not supported": form is not None,
            "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.": "max_tokens" in body,
            "temperature does not support 0.0 with this model": "temperature" in body,
        }
        return error(400, refused) if unknown[refused] else Answer(200, completion())

    server.answer = answer
    said = ask(series.slice(0, 30), in_flight=8).table
    assert set(said["status"].to_pylist()) == {"ok"}
    assert server.asked <= 32
    assert {body.get("response_format", {}).get("type") for body in server.bodies[3:]} == sent


def test_an_answer_that_is_none_settles_nothing_about_what_the_server_knows(
    server: Server, ask: Any, series: pa.Table
) -> None:
    def answer(n: int, body: dict[str, Any]) -> Answer:
        if n == 0:
            return FAULTS["HTML"]
        return error(400, "response_format?") if "response_format" in body else Answer(200, completion())

    server.answer = answer
    said = ask(series.slice(0, 12), in_flight=4).table
    assert set(said["status"].to_pylist()) == {"ok"}


def test_a_server_that_asks_for_no_key_gets_none_of_ours(
    server: Server, ask: Any, series: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    assert len(ask(series.slice(0, 2), key_env=None).table) == 2
    assert not [sent for sent in server.keys if SECRET in sent]
    server.answer = lambda *_: error(401, "who are you?")
    assert "teacher.key_env names no variable" in ask(series.slice(0, 2), key_env=None).stopped
    assert api("https://api.openai.com/v1", key_env=None).key_variable == "OPENAI_API_KEY"


def test_the_key_is_sent_to_the_server_and_stands_in_no_row(server: Server, ask: Any, series: pa.Table) -> None:
    said = ask(series.slice(0, 2)).table
    assert server.keys == {f"Bearer {SECRET}"}
    assert SECRET not in json.dumps(said.to_pylist())
    assert SECRET not in json.dumps(api(server.url).model_dump())


def test_a_request_key_follows_what_shapes_the_reply_and_not_how_it_is_asked(
    server: Server, series: pa.Table
) -> None:
    few = series.slice(0, 2)

    def keys(plots: PlotConfig = PLOTS, **changes: Any) -> tuple[str, ...]:
        return tuple(Questions(api(server.url, **changes), SINGLE, plots, 0).keys(few))

    plain = keys()
    operational = [
        {"in_flight": 1},
        {"in_flight": 9, "workers": 3},
        {"timeout": 10},
        {"retries": 0},
        {"repairs": 0},
        {"mode": "batch"},
        {"usd_per_million_input": 3.0},
        {"requests_per_minute": 3},
        {"key_env": "PATH"},
        {"base_url": "https://another.example/v1"},
    ]
    assert {keys(**change) for change in operational} == {plain}
    shaping = [
        {"model": "other"},
        {"temperature": 0.5},
        {"max_tokens": 10},
        {"revision": "2026-11"},
        {"modality": "text"},
        {"modality": "both"},
        {"choices": True},
        {"structured": "json"},
    ]
    looks = [PlotConfig(width=196, height=168), PlotConfig(style="paper"), PLOTS.model_copy(update={"vary": True})]
    others = [keys(**change) for change in shaping] + [keys(plots) for plots in looks]
    assert len({plain, *others}) == 1 + len(shaping) + len(looks)
    assert keys(PLOTS.model_copy(update={"store": True})) == plain
    assert keys(PlotConfig(style="paper"), modality="text") == keys(modality="text")

"""Teachers: the rules teacher and its error rates, and an API teacher against a real HTTP server."""

import base64
import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest

from tsd.drawing import draw_table
from tsd.errors import InputError
from tsd.recipe import ApiTeacher, PlotConfig, Recipe, RulesTeacher
from tsd.tasks import SINGLE
from tsd.teachers import make_teacher
from tsd.teachers.openai_api import OpenAIApi
from tsd.teachers.rules import Rules

PLOTS = PlotConfig(width=196, height=140)
SOUND = SINGLE.reply({"trend": "flat", "noise": "low", "maximum": "end", "minimum": "middle"}, (0, 0, 0))
SECRET = "sk-do-not-tell-4711"


# ---- Rules


@settings(max_examples=20)
@given(st.integers(0, 1023), st.integers(1, 300))
def test_what_the_rules_teacher_says_of_a_series_does_not_depend_on_its_company(
    annotations: pa.Table, series: pa.Table, recipe: Recipe, first: int, count: int
) -> None:
    teacher = make_teacher(recipe)
    assert teacher.annotate(series.slice(first, count)).equals(annotations.slice(first, count))


def test_rows_come_back_in_the_order_they_were_given(series: pa.Table, annotations: pa.Table) -> None:
    order = np.random.default_rng(1).permutation(len(series))
    shuffled = Rules(RulesTeacher(), SINGLE, 0).annotate(series.take(order))
    assert shuffled.equals(annotations.take(order).combine_chunks())


def test_without_errors_the_rules_teacher_says_the_truth_in_many_ways(series: pa.Table) -> None:
    perfect = RulesTeacher(error_rate={"every": 0})
    said = Rules(perfect, SINGLE, 0).annotate(series)
    assert said["labels"].to_pylist() == series["truth"].to_pylist()
    assert set(said["status"].to_pylist()) == {"ok"}
    trends = {json.loads(text)["trend"] for text in said["text"].to_pylist()}
    assert len(trends) == 3 * SINGLE.phrasing_counts[0]


def test_the_rules_teacher_errs_as_often_as_it_is_told_in_each_facet_alone() -> None:
    rates = {"trend": 0.05, "noise": 0.3, "maximum": 0.0, "minimum": 1.0}
    series = draw_table(SINGLE, Recipe(name="x").series, 3, 0, 8192)
    said = Rules(RulesTeacher(error_rate=rates), SINGLE, 3).annotate(series)
    for facet, rate in rates.items():
        pairs = zip(said["labels"].to_pylist(), series["truth"].to_pylist(), strict=True)
        wrong = sum(label[facet] != truth[facet] for label, truth in pairs)
        interval = binomtest(wrong, len(series)).proportion_ci(0.99)
        assert interval.low <= rate <= interval.high, f"{facet}: {wrong} of {len(series)}"


def test_a_wrong_label_is_each_of_the_other_classes_about_as_often() -> None:
    rates = {"every": 1}
    series = draw_table(SINGLE, Recipe(name="x").series, 3, 0, 4096)
    said = Rules(RulesTeacher(error_rate=rates), SINGLE, 3).annotate(series)
    for facet, classes in SINGLE.classes.items():
        pairs = zip(said["labels"].to_pylist(), series["truth"].to_pylist(), strict=True)
        up = [(classes.index(label[facet]) - classes.index(truth[facet])) % 3 == 1 for label, truth in pairs]
        interval = binomtest(sum(up), len(up)).proportion_ci(0.999)
        assert interval.low <= 0.5 <= interval.high, facet


def keys_of(series: pa.Table, teacher: RulesTeacher, seed: int = 0) -> list[str]:
    """The request keys of the rules teacher."""
    keys: list[str] = Rules(teacher, SINGLE, seed).annotate(series)["request_key"].to_pylist()
    return keys


def test_a_request_key_changes_with_what_shapes_the_reply_and_with_the_values(series: pa.Table) -> None:
    few = series.slice(0, 50)
    plain = keys_of(few, RulesTeacher())
    assert len(set(plain)) == 50
    assert keys_of(few, RulesTeacher()) == plain
    assert not set(plain) & set(keys_of(few, RulesTeacher(error_rate={"trend": 0.5})))
    assert not set(plain) & set(keys_of(few, RulesTeacher(), seed=1))
    other = draw_table(SINGLE, Recipe(name="x").series, 9, 0, 50)
    assert not set(plain) & set(keys_of(other, RulesTeacher()))


# ---- A real server that answers as it is told


@dataclass
class Server:
    """A local API: what each request gets, and what was asked."""

    url: str = ""
    answer: Callable[[int], tuple[int, dict[str, Any]]] = lambda _: (200, {})
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)


def completion(content: str | None, finish: str = "stop", refusal: str | None = None) -> dict[str, Any]:
    """A chat completion as OpenAI's API words it."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "seer",
        "choices": [{"index": 0, "finish_reason": finish, "message": message, "logprobs": None}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050},
    }


@contextmanager
def serving() -> Iterator[Server]:
    state, lock = Server(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                state.asked.append(body)
                state.keys.add(self.headers["Authorization"])
                number = len(state.asked) - 1
            status, reply = state.answer(number)
            payload = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.send_header("retry-after-ms", "5")  # what the client waits before it asks again
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A local API, and a key for it in the environment."""
    monkeypatch.setenv("TSD_TEST_KEY", SECRET)
    with serving() as state:
        yield state


def api(server: Server, **changes: Any) -> ApiTeacher:
    """A teacher behind the local API."""
    fixed = {"kind": "openai", "model": "seer", "base_url": server.url, "key_env": "TSD_TEST_KEY"}
    return ApiTeacher.model_validate({**fixed, "retries": 2, "timeout": 20, **changes})


def ask(server: Server, series: pa.Table, **changes: Any) -> pa.Table:
    """What the API teacher makes of these series."""
    return OpenAIApi(api(server, **changes), SINGLE, PLOTS, 0).annotate(series)


def test_a_whole_reply_is_read_and_its_tokens_and_cost_are_counted(server: Server, series: pa.Table) -> None:
    server.answer = lambda _: (200, completion(SOUND))
    said = ask(server, series.slice(10, 5), usd_per_million_input=2.0, usd_per_million_output=6.0)
    assert said["series_id"].to_pylist() == [10, 11, 12, 13, 14]
    for row in said.to_pylist():
        assert (row["status"], row["reason"], row["text"], row["teacher"]) == ("ok", None, SOUND, "seer")
        assert row["labels"] == {"trend": "flat", "noise": "low", "maximum": "end", "minimum": "middle"}
        assert (row["input_tokens"], row["output_tokens"]) == (1000, 50)
        assert row["cost_usd"] == pytest.approx(1000 * 2e-6 + 50 * 6e-6)
        assert row["latency_ms"] > 0


def test_replies_stay_with_their_series_when_they_come_back_out_of_order(server: Server, series: pa.Table) -> None:
    late = threading.Event()

    def answer(number: int) -> tuple[int, dict[str, Any]]:
        picture = server.asked[number]["messages"][0]["content"][1]["image_url"]["url"]
        if number == 0:
            late.wait(10)  # the first request is answered after all others
        elif number == 7:
            late.set()
        return 200, completion(hashlib.sha256(picture.encode()).hexdigest())

    server.answer = answer
    together = ask(server, series.slice(0, 8), in_flight=8)
    one_by_one = [ask(server, series.slice(i, 1))["text"][0].as_py() for i in range(8)]
    assert len(set(one_by_one)) == 8
    assert together["text"].to_pylist() == one_by_one


@pytest.mark.parametrize(
    ("reply", "status", "reason"),
    [
        (completion(None, refusal="I would rather not."), "refused", "I would rather not."),
        (completion("", finish="content_filter"), "refused", "filter"),
        (completion(SOUND[:30], finish="length"), "truncated", "max_tokens"),
        (completion(None), "error", "empty"),
        (completion("Lovely weather today."), "invalid", "trend: not mentioned"),
        (completion('{"trend": "It rises.", "noise": "It is low."}'), "invalid", "maximum: not mentioned"),
        ({**completion(SOUND), "choices": []}, "error", "empty"),
    ],
    ids=["refusal", "filter", "truncated", "empty", "garbage", "half an answer", "no choices"],
)
def test_a_reply_that_cannot_be_used_is_a_row_with_its_status_and_reason(
    server: Server, series: pa.Table, reply: dict[str, Any], status: str, reason: str
) -> None:
    server.answer = lambda number: (200, reply)
    said = ask(server, series.slice(0, 3))
    assert len(said) == 3
    assert set(said["status"].to_pylist()) == {status}
    assert all(reason in row for row in said["reason"].to_pylist())


def test_one_failed_reply_leaves_the_others_whole(server: Server, series: pa.Table) -> None:
    server.answer = lambda n: (200, completion(SOUND)) if n != 2 else (200, completion(None, refusal="no"))
    statuses = ask(server, series.slice(0, 6))["status"].to_pylist()
    assert sorted(statuses) == ["ok"] * 5 + ["refused"]


@pytest.mark.parametrize("code", [500, 503, 429])
def test_a_server_that_recovers_costs_retries_and_no_row(server: Server, series: pa.Table, code: int) -> None:
    server.answer = lambda n: (code, {"error": {"message": "later"}}) if n < 2 else (200, completion(SOUND))
    said = ask(server, series.slice(0, 1))
    assert said["status"].to_pylist() == ["ok"]
    assert len(server.asked) == 3


def test_a_server_that_does_not_recover_is_a_row_with_an_error(server: Server, series: pa.Table) -> None:
    server.answer = lambda n: (500, {"error": {"message": "broken"}})
    said = ask(server, series.slice(0, 2))
    assert said["status"].to_pylist() == ["error", "error"]
    assert said["text"].to_pylist() == [None, None]
    assert said["attempts"].to_pylist() == [3, 3]
    assert len(server.asked) == 6
    assert said["labels"].to_pylist() == [dict.fromkeys(SINGLE.classes)] * 2


def test_a_server_that_is_not_there_is_a_row_with_an_error(
    monkeypatch: pytest.MonkeyPatch, series: pa.Table
) -> None:
    monkeypatch.setenv("TSD_TEST_KEY", SECRET)
    nowhere = Server(url="http://127.0.0.1:9/v1")  # the discard port: nothing listens
    said = ask(nowhere, series.slice(0, 2), retries=0)
    assert said["status"].to_pylist() == ["error", "error"]


@pytest.mark.parametrize("code", [400, 401, 403, 404])
def test_what_no_retry_will_mend_ends_the_stage_with_one_line(server: Server, series: pa.Table, code: int) -> None:
    server.answer = lambda n: (code, {"error": {"message": f"no, and your key is {SECRET}"}})
    with pytest.raises(InputError) as caught:
        ask(server, series.slice(0, 40), in_flight=1)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert server.url in message
    assert str(code) in message
    assert SECRET not in message
    assert len(server.asked) < 40


def test_a_missing_key_is_said_before_anything_is_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TSD_TEST_KEY")
    with pytest.raises(InputError) as caught:
        OpenAIApi(api(server), SINGLE, PLOTS, 0)
    assert "TSD_TEST_KEY" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert server.asked == []


def test_the_request_shows_the_plot_in_the_recipes_size_and_asks_the_teachers_prompt(
    server: Server, series: pa.Table
) -> None:
    server.answer = lambda _: (200, completion(SOUND))
    ask(server, series.slice(0, 1), temperature=0.25, max_tokens=99)
    (body,) = server.asked
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("seer", 0.25, 99)
    text, picture = body["messages"][0]["content"]
    assert text["text"] == SINGLE.teacher_prompt(128)
    head, _, data = picture["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (image.format, image.size, image.mode) == ("PNG", (196, 140), "P")
    assert len(set(np.asarray(image).flatten().tolist())) > 2  # something is drawn


def test_the_key_is_sent_to_the_server_and_stands_in_no_row(server: Server, series: pa.Table) -> None:
    server.answer = lambda _: (200, completion(SOUND))
    said = ask(server, series.slice(0, 2))
    assert server.keys == {f"Bearer {SECRET}"}
    assert SECRET not in json.dumps(said.to_pylist())
    assert SECRET not in json.dumps(api(server).model_dump())


def test_an_api_request_key_follows_what_shapes_the_reply_and_not_how_it_is_asked(
    server: Server, series: pa.Table
) -> None:
    server.answer = lambda _: (200, completion(SOUND))
    few = series.slice(0, 2)

    def keys(plots: PlotConfig = PLOTS, **changes: Any) -> tuple[str, ...]:
        return tuple(OpenAIApi(api(server, **changes), SINGLE, plots, 0).annotate(few)["request_key"].to_pylist())

    plain = keys()
    operational = [
        {"in_flight": 1},
        {"timeout": 10},
        {"retries": 0},
        {"usd_per_million_input": 3.0},
        {"key_env": "PATH"},
    ]
    assert {keys(**change) for change in operational} == {plain}
    shaping = [{"model": "other"}, {"temperature": 0.5}, {"max_tokens": 10}, {"base_url": server.url + "/"}]
    looks = [PlotConfig(width=196, height=168), PlotConfig(style="paper"), PLOTS.model_copy(update={"vary": True})]
    others = [keys(**change) for change in shaping] + [keys(plots) for plots in looks]
    assert len({plain, *others}) == 8
    assert keys(PLOTS.model_copy(update={"store": True})) == plain

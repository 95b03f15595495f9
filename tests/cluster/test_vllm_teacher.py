"""A teacher that is trained here: its replies, against the truth and against transformers.

It replies in the pipeline's own processes, in a real vLLM engine that the pipeline starts, in two engines of which
one is killed, and behind a vLLM server that the API teacher asks.
"""

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from jsonschema import validate
from support.commands import ROOT, command, environment, run_alone, run_on_one_ray
from support.fake_engine import alive
from support.vllm_engines import LONGEST, MARKS, SMALL, START, engines_of, kill_session, requests_at, status_of

from tsd.recipe import Recipe, load
from tsd.storage import datasets
from tsd.tasks import SINGLE
from tsd.teachers.prompts import Question, Questions, reply_schema

pytestmark = MARKS

SHOWN = 200  # series that the teacher describes
COUNT, IN_FLIGHT = 4096, 16  # series that two engines describe, and requests under way at each
OWN = (
    f"series.count={SHOWN}",
    "teacher={kind: local, train: {size: 0.3M, pictures: 16000}}",
)
ENGINE = ("teacher.kind=vllm", "teacher.gpu=false", f"teacher.max_model_len={LONGEST}")
LEAST = {"trend": 0.75, "noise": 0.88, "maximum": 0.7, "minimum": 0.7}  # of a quarter of its usual pictures


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's folder with its trained teacher and its series, which the teacher has described in the pipeline's
    own processes."""
    out = tmp_path_factory.mktemp("own")
    stages = (command(out, *OWN, stage=stage) for stage in ("generate", "annotate"))
    run_on_one_ray(*stages, cpus=2, timeout=900)
    return set_aside(out / "tiny", "local")


def set_aside(study: Path, way: str) -> Path:
    """Keep a study's annotations under a name of their own, so that another teacher may describe its series."""
    (study / "annotations").rename(study / f"annotations-{way}")
    return study


def said(study: Path, way: str) -> list[dict[str, Any]]:
    """The annotations that were set aside."""
    found = datasets.open_dataset(str(study / f"annotations-{way}"), SINGLE.tables.annotations).read().to_pylist()
    assert [row["series_id"] for row in found] == list(range(SHOWN))
    return list(found)


def same(some: Iterable[str], others: Iterable[str]) -> int:
    """How many of two ways' replies are alike."""
    return sum(one == other for one, other in zip(some, others, strict=True))


@dataclass
class Killed:
    """What is left of an annotation by two engines of which one was killed: its rows, and what was seen."""

    rows: list[dict[str, Any]]
    processes: list[psutil.Process]  # of both engines
    tokens: set[str]
    commands: list[str]  # words of their command lines
    status: int  # of an answer to who has no token


@pytest.fixture(scope="module")
def killed(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """The teacher in two engines inside the pipeline; the one that is asked last is killed while it replies."""
    study = tmp_path_factory.mktemp("two") / "tiny"
    shutil.copytree(own / "teacher", study / "teacher")
    # Four parts: the first engine that is up takes two, before the other is.
    more = (f"series.count={COUNT}", "series.blocks_per_part=1", "teacher.replicas=2")
    more += (f"teacher.in_flight={IN_FLIGHT}", f"teacher.engine={json.dumps(SMALL)}")
    run_alone(command(study.parent, *OWN, *more[:2], stage="generate"), cpus=2)
    process = subprocess.Popen(
        command(study.parent, *OWN, *ENGINE, *more, stage="annotate"),
        cwd=ROOT,
        env=environment(2),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + START
        # A client keeps its connections when its parts are done. The engine that is asked last has just begun.
        asked: dict[int, list[psutil.Process]] = {}
        while len(asked) < 2:
            assert process.poll() is None, process.communicate()[0][-3000:]
            assert time.monotonic() < until, "no requests went to both engines"
            time.sleep(0.2)
            for engine in engines_of(study / "teacher"):
                if engine[1].pid not in asked and requests_at(engine[1]) > 4:
                    asked[engine[1].pid] = engine
        started = [one for engine in asked.values() for one in engine]
        tokens = {one.environ()["VLLM_API_KEY"] for one in started}
        commands = [word for one in started for word in one.cmdline()]
        *_, (_, last, *_) = asked.values()
        status = status_of(last, "/v1/models")
        last.kill()
        printed = process.communicate(timeout=1200)[0]
        assert process.returncode == 0, printed[-3000:]
    finally:
        if process.poll() is None:
            kill_session(process)
    rows = datasets.open_dataset(str(study / "annotations"), SINGLE.tables.annotations).read().to_pylist()
    return Killed(list(rows), started, tokens, commands, status)


@pytest.fixture(scope="module")
def piped_own(killed: Killed) -> list[dict[str, Any]]:
    """What the engines say of the series that the other ways are asked about, too."""
    return killed.rows[:SHOWN]


@pytest.fixture(scope="module")
def by_transformers(own: Path) -> list[str]:
    """What the folder says by transformers alone, of PNGs."""
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = own / "teacher"
    processor, model = AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder)
    series = datasets.open_dataset(str(own / "series"), SINGLE.tables.series).read()
    asking = Questions(recipe_of_own(own).teacher, SINGLE, recipe_of_own(own).plots, 0)
    texts = []
    for question in asking.ask(series, asking.keys(series)):
        words, picture = question.messages[0]["content"]
        png = base64.b64decode(picture["image_url"]["url"].partition(",")[2])
        turn = {"role": "user", "content": [words, {"type": "image"}]}
        prompt = processor.apply_chat_template([turn], add_generation_prompt=True)
        asked = processor(text=[prompt], images=[Image.open(io.BytesIO(png))], return_tensors="pt")
        reply = model.generate(**asked, max_new_tokens=80)[0, asked["input_ids"].shape[1] :]
        texts.append(processor.decode(reply, skip_special_tokens=True))
    return texts


def recipe_of_own(study: Path, kind: str = "local") -> Recipe:
    """The recipe of the study whose teacher was trained."""
    return load("laptop", [*OWN, f"out={study.parent}", "name=tiny", f"teacher.kind={kind}"])


def test_of_two_engines_one_is_killed_and_only_its_rows_in_flight_are_asked_again(killed: Killed) -> None:
    assert [row["series_id"] for row in killed.rows] == list(range(COUNT))
    assert {row["status"] for row in killed.rows} <= {"ok", "invalid", "truncated"}
    repaired = sum(row["status"] != "ok" for row in killed.rows)  # asked once more for another reason
    assert 0 < sum(row["attempts"] - 1 for row in killed.rows) <= IN_FLIGHT + repaired
    assert not alive(killed.processes, 30)


def test_each_engine_has_a_token_of_its_own_that_nobody_else_sees(killed: Killed) -> None:
    assert len(killed.tokens) == 2
    assert killed.status == 401
    logs = list(Path(tempfile.gettempdir(), f"tsd-engines-{os.getuid()}").glob("*.log"))
    assert logs
    for text in [*killed.commands, *(log.read_text(errors="replace") for log in logs)]:
        assert not [token for token in killed.tokens if token in text]


def test_a_teacher_of_one_s_own_sees_what_is_true(own: Path, piped_own: list[dict[str, Any]]) -> None:
    truth = datasets.open_dataset(str(own / "series"), SINGLE.tables.series).read()["truth"].to_pylist()
    for found in (said(own, "local"), piped_own):
        assert all((row["status"], row["reason"]) == ("ok", None) for row in found)
        right = {
            name: sum(row["labels"][name] == known[name] for row, known in zip(found, truth, strict=True)) / SHOWN
            for name in SINGLE.names
        }
        assert all(right[name] >= least for name, least in LEAST.items()), right


def test_the_pipeline_s_engine_and_its_own_processes_say_what_transformers_says(
    own: Path, piped_own: list[dict[str, Any]], by_transformers: list[str]
) -> None:
    assert same((row["text"] for row in said(own, "local")), by_transformers) >= 0.99 * SHOWN
    assert same((row["text"] for row in piped_own), by_transformers) >= 0.99 * SHOWN
    for row in piped_own:
        validate(json.loads(row["text"]), reply_schema(SINGLE, choices=True))


@pytest.fixture(scope="module")
def server(own: Path, tmp_path_factory: pytest.TempPathFactory, piped_own: object) -> Iterator[str]:
    """The address of a vLLM server with the teacher, as `vllm serve` starts it; after the pipeline, whose engine
    has gone by then."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = [
        *("--model", str(own / "teacher"), "--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", "float32", "--max-model-len", str(LONGEST), "--max-num-seqs", "16"),
        *("--enforce-eager", "--skip-mm-profiling", "--limit-mm-per-prompt", '{"image": 1, "video": 0}'),
        # Else a weak model writes blanks, which JSON allows, until max_tokens.
        *("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}'),
    ]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags],
            env=environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        until = time.monotonic() + START
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def answers(url: str) -> bool:
    """Whether there is a server that says it is well."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def complete(server: str, question: Question, model: Path, **more: Any) -> Any:
    """The server's answer to a question, asked as the API teacher does."""
    from openai import OpenAI

    form = {"name": "description", "strict": True, "schema": reply_schema(SINGLE, choices=False)}
    with OpenAI(base_url=server, api_key="none") as client:
        return client.chat.completions.create(
            model=str(model),
            messages=question.messages,
            temperature=0,
            max_tokens=200,
            response_format={"type": "json_schema", "json_schema": form},
            **more,
        )


def test_two_plots_give_two_predictions_and_one_plot_always_the_same(server: str, own: Path) -> None:
    recipe = recipe_of_own(own, "openai")
    asking = Questions(recipe.teacher, SINGLE, recipe.plots, 0)
    series = datasets.open_dataset(str(own / "series"), SINGLE.tables.series).read().slice(0, 2)
    first, second = asking.ask(series, asking.keys(series))
    assert first.messages[0]["content"][0] == second.messages[0]["content"][0]

    def predicted(question: Question) -> list[float]:
        answer = complete(server, question, own / "teacher", logprobs=True, top_logprobs=3)
        return [each.logprob for one in answer.choices[0].logprobs.content for each in one.top_logprobs]

    again, other = predicted(first), predicted(second)
    assert predicted(first) == pytest.approx(again, abs=1e-3)
    assert max(abs(a - b) for a, b in zip(again, other, strict=False)) > 0.1


def test_behind_a_server_the_teacher_says_the_same_and_is_asked_by_one_other_word(
    server: str, own: Path, by_transformers: list[str]
) -> None:
    asked = ("teacher.kind=openai", f"teacher.base_url={server}")
    run_alone(command(own.parent, *OWN, *asked, stage="annotate"), cpus=2)
    found = said(set_aside(own, "openai"), "openai")
    assert all((row["status"], row["attempts"]) == ("ok", 1) for row in found)
    assert same((row["text"] for row in found), by_transformers) >= 0.99 * SHOWN
    assert all(row["input_tokens"] > 16 for row in found)  # of the picture alone

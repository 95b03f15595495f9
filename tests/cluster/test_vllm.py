"""A real vLLM engine on CPUs, started by the pipeline: the replies of a student, and a teacher that is killed.

The teacher is a tiny Qwen2.5-VL of random weights and Qwen's real vocabulary. It says nonsense, is asked too much,
and is killed and started again.
"""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from jsonschema import validate
from support.commands import ROOT, command, environment, run_alone
from support.fake_engine import alive
from support.vllm_engines import (
    LONGEST,
    MARKS,
    SMALL,
    START,
    engines_of,
    kill_session,
    made,
    replies_in,
    status_of,
)

from tsd.recipe import Recipe, load
from tsd.storage import datasets
from tsd.tasks import SINGLE
from tsd.teachers.prompts import Question, Questions, reply_schema

pytestmark = MARKS

COUNT = 48
SHORT, LONG = 32, 1024  # points; the numbers of a long series are more than the model takes
STUDY = (f"series.count={COUNT}", f"series.length=[{SHORT}, {LONG}]", "plots.width=196", "plots.height=140")
TEACHER = ("teacher.modality=both", "teacher.choices=true", "teacher.max_tokens=200")
PATHS = ("/v1/models", "/health", "/metrics", "/tokenize", "/invocations", "/ping", "/docs", "/openapi.json")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Qwen2.5-VL."""
    return made("save_tiny_qwen", tmp_path_factory.mktemp("model") / "tiny-qwen-vl")


# ---- A student that replies from an engine


def test_a_student_that_was_exported_says_in_vllm_what_it_says_here(tmp_path: Path) -> None:
    from tsd.inference.decoding import decode
    from tsd.models.students import load_model
    from tsd.models.tokenizer import load_tokenizer

    source = made("save_tiny_text_qwen", tmp_path / "hub")
    student = f"{{name: hub, source: {source}, learning_rate: 3.0e-2}}"
    few = ("series.count=1000", f"series.length={SHORT}", "students.train_sizes=[16]")
    some = ("evaluation.series=20", "evaluation.validation_examples=20", "evaluation.max_new_tokens=40")
    recipe = (f"students.models=[{student}]", *few, *some, "evaluation.vllm=true")
    run_alone(command(tmp_path, *recipe), cpus=2, timeout=900)
    (folder,) = (tmp_path / "tiny/students").iterdir()
    predictions = tmp_path / "tiny/predictions" / folder.name
    said = datasets.open_dataset(str(predictions), SINGLE.tables.predictions).read()["text"].to_pylist()
    series = datasets.open_dataset(str(tmp_path / "tiny/series"), SINGLE.tables.series).read().to_pylist()
    prompts = [SINGLE.student_prompt(row["values"]) for row in series if row["split"] == "test"][: len(said)]
    here = decode(load_model(str(folder)), load_tokenizer(str(folder)), prompts, 40)
    assert len(set(said)) > 3
    assert sum(a == b for a, b in zip(said, here, strict=True)) >= 0.9 * len(said)  # a near tie may fall


# ---- The engine inside the pipeline


def piped(model: Path) -> tuple[str, ...]:
    """Overrides: the pipeline starts the engine, with eight requests under way."""
    return (
        *STUDY,
        *TEACHER,
        "teacher.kind=vllm",
        f"teacher.model={model}",
        "teacher.gpu=false",
        f"teacher.max_model_len={LONGEST}",
        "teacher.in_flight=8",
        f"teacher.engine={json.dumps(SMALL)}",
    )


@pytest.fixture(scope="module")
def engines() -> list[psutil.Process]:
    """The processes of the engine that `stopped` started, once it was killed."""
    return []


@pytest.fixture(scope="module")
def without_token() -> dict[str, int]:
    """The status of that engine's answers to who has no token, by path."""
    return {}


@pytest.fixture(scope="module")
def stopped(
    tmp_path_factory: pytest.TempPathFactory,
    model: Path,
    engines: list[psutil.Process],
    without_token: dict[str, int],
) -> tuple[Path, dict[str, Any]]:
    """A study whose annotation was killed once some replies had come; the study, and those replies by key."""
    out = tmp_path_factory.mktemp("pipeline")
    run_alone(command(out, *STUDY, stage="generate"), cpus=2)
    journal = out / "tiny/annotations/replies/part-00000000"
    process = subprocess.Popen(
        command(out, *piped(model), stage="annotate"),
        cwd=ROOT,
        env=environment(2),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + START
        while len(replies_in(journal)) < 4:
            assert process.poll() is None, "the stage ended before it could be killed"
            assert time.monotonic() < until, "no replies came"
            time.sleep(0.05)
        engines += [process for each in engines_of(model) for process in each]
        without_token |= {path: status_of(engines[1], path) for path in PATHS}
    finally:
        kill_session(process)
    return out / "tiny", {line["key"]: line for line in replies_in(journal)}


def questions(study: Path, model: Path) -> list[Question]:
    """What the engine in the pipeline was asked about each series, in their order."""
    recipe: Recipe = load("laptop", ["teacher={kind: rules}", *piped(model)])
    asking = Questions(recipe.teacher, recipe.asks, recipe.plots, recipe.seed)
    series = datasets.open_dataset(str(study / "series"), SINGLE.tables.series).read()
    return asking.ask(series, asking.keys(series))


@pytest.fixture(scope="module")
def rows(stopped: tuple[Path, dict[str, Any]], model: Path) -> list[dict[str, Any]]:
    """The annotations once the study was started again and ran to its end."""
    study, _ = stopped
    run_alone(command(study.parent, *piped(model), stage="annotate"), cpus=2, timeout=START)
    found = datasets.open_dataset(str(study / "annotations"), SINGLE.tables.annotations).read().to_pylist()
    return list(found)


@pytest.fixture(scope="module")
def lengths(stopped: tuple[Path, dict[str, Any]]) -> dict[int, int]:
    """Points in each series, by id."""
    study, _ = stopped
    series = datasets.open_dataset(str(study / "series"), SINGLE.tables.series).read()
    return dict(zip(series["series_id"].to_pylist(), map(len, series["values"]), strict=True))


def test_no_process_of_an_engine_outlives_its_driver_by_half_a_minute(
    stopped: tuple[Path, dict[str, Any]], engines: list[psutil.Process]
) -> None:
    assert len(engines) >= 3  # a supervisor, a server and vLLM's own child
    assert not alive(engines, 30)


def test_no_path_of_an_engine_answers_who_has_no_token(
    stopped: tuple[Path, dict[str, Any]], without_token: dict[str, int]
) -> None:
    assert without_token == dict.fromkeys(PATHS, 401)


def test_rows_in_are_rows_out_and_a_question_too_long_ends_nothing(
    rows: list[dict[str, Any]], lengths: dict[int, int]
) -> None:
    assert [row["series_id"] for row in rows] == list(range(COUNT)) == list(lengths)
    assert {SHORT, LONG} == set(lengths.values())
    for row in rows:
        if lengths[row["series_id"]] == LONG:
            assert (row["status"], row["text"], row["output_tokens"]) == ("error", None, 0)
            assert "context length" in row["reason"]
        else:
            assert (row["status"], row["reason"]) == ("ok", None)


def test_every_reply_has_the_schema_and_its_labels_are_read(rows: list[dict[str, Any]]) -> None:
    replies = [row for row in rows if row["status"] == "ok"]
    for row in replies:
        said = json.loads(row["text"])
        validate(said, reply_schema(SINGLE, choices=True))
        assert all(SINGLE.classes[facet].count(label) == 1 for facet, label in row["labels"].items())
    assert len({row["text"] for row in replies}) > 3  # other plots and numbers, other nonsense


def test_tokens_are_counted_pictures_included(
    rows: list[dict[str, Any]], stopped: tuple[Path, dict[str, Any]], model: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    study, _ = stopped
    asked = {question.series_id: question for question in questions(study, model)}
    for row in rows:
        if row["status"] == "ok":
            (turn,) = asked[row["series_id"]].messages
            # The picture stands last, between two signs; round it are the turns' own tokens.
            plain = {"role": "user", "content": turn["content"][0]["text"]}
            words = len(tokenizer.apply_chat_template([plain], add_generation_prompt=True)["input_ids"])
            assert row["input_tokens"] == words + 2 + 196 // 28 * 140 // 28
            assert len(tokenizer(row["text"])["input_ids"]) < row["output_tokens"] <= 200
            assert row["latency_ms"] > 0


def test_killed_and_started_again_the_replies_that_had_come_are_not_asked_again(
    rows: list[dict[str, Any]], stopped: tuple[Path, dict[str, Any]]
) -> None:
    study, before = stopped
    after = {row["request_key"]: row for row in rows}
    assert 4 <= len(before) < sum(row["status"] == "ok" for row in rows)
    for key, reply in before.items():
        assert (after[key]["text"], after[key]["latency_ms"]) == (reply["text"], reply["latency_ms"])
    left = [path.name for path in (study / "annotations/replies").iterdir()]
    assert left == ["part-00000000.jsonl.zst"]  # kept, so that the part can be made again

"""A real vLLM engine on CPUs, inside the pipeline and as a server that the API teacher asks.

The models are tiny Qwen-VLs of random weights: what they say is nonsense, so these tests assert the plumbing.
Rows in are rows out, replies have the schema, tokens are counted, and the plots are really seen.
"""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import ROOT, command, environment, run, run_together
from jsonschema import validate

from tsd import store
from tsd.recipe import Recipe, load
from tsd.tasks import SINGLE
from tsd.teachers.asking import Question, Questions, reply_schema

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm"),
]

COUNT = 48
SHORT, LONG = 32, 1024  # points; the numbers of a long series are more than the model takes
LONGEST = 2048  # tokens
STUDY = (f"series.count={COUNT}", f"series.length=[{SHORT}, {LONG}]", "plots.width=196", "plots.height=140")
TEACHER = ("teacher.view=both", "teacher.choices=true", "teacher.max_tokens=200")
SMALL = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 16, "skip_mm_profiling": True}
FEW = {  # what keeps an engine small on a machine without GPU and without network
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="module", autouse=True)
def _small_engines() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in FEW.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Qwen2.5-VL."""
    return made("save_tiny_qwen", tmp_path_factory.mktemp("model") / "tiny-qwen-vl")


def made(by: str, folder: Path) -> Path:
    """A model's folder; made in a process of its own, which takes torch's memory with it."""
    code = f"from pathlib import Path; from tiny_qwen import {by}; {by}(Path({str(folder)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env={**environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return folder


# ---- A student that replies from an engine


def test_a_student_that_was_exported_says_in_vllm_what_it_says_here(tmp_path: Path) -> None:
    from tsd.decoding import decode
    from tsd.students import load_model, load_tokenizer

    source = made("save_tiny_text_qwen", tmp_path / "hub")
    student = f"{{name: hub, source: {source}, learning_rate: 3.0e-2}}"
    few = ("series.count=1000", f"series.length={SHORT}", "students.volumes=[16]")
    some = ("evaluation.series=20", "evaluation.validation_examples=20", "evaluation.max_new_tokens=40")
    recipe = (f"students.sizes=[{student}]", *few, *some, "evaluation.vllm=true")
    run(command(tmp_path, *recipe), cpus=2, timeout=900)
    (folder,) = (tmp_path / "tiny/students").iterdir()
    predictions = tmp_path / "tiny/predictions" / folder.name
    said = store.open_dataset(str(predictions), SINGLE.tables.predictions).read()["text"].to_pylist()
    series = store.open_dataset(str(tmp_path / "tiny/series"), SINGLE.tables.series).read().to_pylist()
    prompts = [SINGLE.student_prompt(row["values"]) for row in series if row["split"] == "test"][: len(said)]
    here = decode(load_model(str(folder)), load_tokenizer(str(folder)), prompts, 40)
    assert len(set(said)) > 3
    assert sum(a == b for a, b in zip(said, here, strict=True)) >= 0.9 * len(said)  # a near tie may fall


# ---- The engine inside the pipeline


def piped(model: Path) -> tuple[str, ...]:
    """Overrides: the engine runs inside the pipeline, eight rows come back together."""
    return (
        *STUDY,
        *TEACHER,
        "teacher.kind=vllm",
        f"teacher.model={model}",
        "teacher.gpu=false",
        f"teacher.max_model_len={LONGEST}",
        "teacher.batch_size=8",
        "teacher.concurrent_batches=1",
        f"teacher.engine={json.dumps(SMALL)}",
    )


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, model: Path) -> tuple[Path, dict[str, Any]]:
    """A study whose annotation was killed once some replies had come; the study, and those replies by key."""
    out = tmp_path_factory.mktemp("pipeline")
    run(command(out, *STUDY, stage="generate"), cpus=2)
    journal = out / "tiny/annotations/replies/part-00000000/replies.jsonl"
    process = subprocess.Popen(
        command(out, *piped(model), stage="annotate"),
        cwd=ROOT,
        env=environment(2),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + 600
        while len(lines_of(journal)) < 4:
            assert process.poll() is None, "the stage ended before it could be killed"
            assert time.monotonic() < until, "no replies came"
            time.sleep(0.05)
    finally:
        kill_session(process)
    return out / "tiny", {line["key"]: line for line in lines_of(journal)}


def kill_session(leader: subprocess.Popen[bytes]) -> None:
    """`kill -9` a process and all that it started: Ray's workers and vLLM's have groups of their own."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == leader.pid:
                process.kill()
    leader.wait(30)


def lines_of(journal: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal."""
    if not journal.is_file():
        return []
    return [json.loads(line) for line in journal.read_text().splitlines()[:-1] if line]


@pytest.fixture(scope="module")
def rows(stopped: tuple[Path, dict[str, Any]], model: Path) -> list[dict[str, Any]]:
    """The annotations once the study was started again and ran to its end."""
    study, _ = stopped
    run(command(study.parent, *piped(model), stage="annotate"), cpus=2, timeout=600)
    found = store.open_dataset(str(study / "annotations"), SINGLE.tables.annotations).read().to_pylist()
    return list(found)


@pytest.fixture(scope="module")
def lengths(stopped: tuple[Path, dict[str, Any]]) -> dict[int, int]:
    """Points in each series, by id."""
    study, _ = stopped
    series = store.open_dataset(str(study / "series"), SINGLE.tables.series).read()
    return dict(zip(series["series_id"].to_pylist(), map(len, series["values"]), strict=True))


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
    assert not list((study / "annotations/replies").iterdir())


# Of four rows one has a picture that ends too early, and one could not be drawn.
BREAK = """
import base64, io, json, sys
from PIL import Image
from tsd.cluster.session import session  # before Ray, which reads its settings when it is imported
import ray
from tsd.cluster.vllm import processor, read
from tsd.recipe import load

recipe = load("laptop", ["teacher={kind: rules}", *sys.argv[1:]])
whole = io.BytesIO()
Image.new("L", (196, 140), 255).save(whole, "PNG")
def about(picture):
    url = "data:image/png;base64," + base64.b64encode(picture).decode()
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    return [{"role": "user", "content": parts}]

asked = [about(whole.getvalue()), about(whole.getvalue()[:40]), about(whole.getvalue()), []]
rows = [{"part": 0, "key": str(i), "asked": json.dumps(one), "failed": ""} for i, one in enumerate(asked)]
rows[3]["failed"] = "ValueError: it cannot be drawn"
with session():
    before = processor(recipe.teacher, "{}")
    del before.stages["vLLMEngineStage"]  # what it is given is what counts here
    for row in before(ray.data.from_items(rows, override_num_blocks=1)).iter_rows():
        failed = row["__inference_error__"]
        reply = json.loads(read(recipe.teacher, row)["reply"]) if failed else {"status": "ok"}
        print(json.dumps({"key": row["key"], "prompt": row.get("prompt"), **reply}))
"""


def test_a_row_that_the_stages_before_the_engine_cannot_take_is_an_error_and_the_others_pass(model: Path) -> None:
    printed = run([sys.executable, "-c", BREAK, *piped(model)], cpus=2)
    found = {row["key"]: row for row in map(json.loads, printed.splitlines())}
    assert sorted(found) == ["0", "1", "2", "3"]
    for key in "02":
        assert (found[key]["status"], "What is it?" in found[key]["prompt"]) == ("ok", True)
    assert found["1"]["status"] == "error"
    assert "Error: " in found["1"]["reason"]
    assert (found["3"]["status"], found["3"]["reason"]) == ("error", "ValueError: it cannot be drawn")


def test_qwen3_vl_runs_in_the_pipeline_by_its_folder_alone(tmp_path: Path) -> None:
    folder = made("save_tiny_qwen3", tmp_path / "tiny-qwen3-vl")
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "qwen3_vl"
    assert "architectures" not in config["text_config"]  # as in Qwen's own, and vLLM 0.29 wants them
    few = (*piped(folder), "series.count=8", f"series.length={SHORT}")
    stages = (command(tmp_path, *few, stage=stage) for stage in ("generate", "annotate"))
    run_together(*stages, cpus=2, timeout=900)
    found = store.open_dataset(str(tmp_path / "tiny/annotations"), SINGLE.tables.annotations).read().to_pylist()
    assert [row["series_id"] for row in found] == list(range(8))
    for row in found:
        assert (row["status"], row["reason"]) == ("ok", None)
        validate(json.loads(row["text"]), reply_schema(SINGLE, choices=True))


# ---- A server, asked directly and by the API teacher


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory, rows: object) -> Iterator[str]:
    """The address of a vLLM server with the tiny model; after the pipeline, whose engine has gone by then."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = [
        *("--model", str(model), "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)),
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
        until = time.monotonic() + 600
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


def questions(study: Path, model: Path, view: str = "both") -> list[Question]:
    """What the engine in the pipeline was asked about each series, in their order."""
    recipe: Recipe = load("laptop", ["teacher={kind: rules}", *piped(model), f"teacher.view={view}"])
    asking = Questions(recipe.teacher, recipe.asks, recipe.plots, recipe.seed)
    series = store.open_dataset(str(study / "series"), SINGLE.tables.series).read()
    return asking.ask(series, asking.keys(series))


def complete(server: str, question: Question, **more: Any) -> Any:
    """The server's answer to a question, asked as the engine in the pipeline was."""
    from openai import OpenAI

    form = {"name": "description", "strict": True, "schema": reply_schema(SINGLE, choices=True)}
    with OpenAI(base_url=server, api_key="none") as client:
        return client.chat.completions.create(
            model="tiny",
            messages=question.messages,
            temperature=0,
            max_tokens=200,
            response_format={"type": "json_schema", "json_schema": form},
            **more,
        )


def test_two_plots_give_two_predictions_and_one_plot_always_the_same(
    server: str, stopped: tuple[Path, dict[str, Any]], lengths: dict[int, int], model: Path
) -> None:
    # Without the numbers, two questions about series of one length differ in nothing but the plot.
    study, _ = stopped
    first, second, *_ = (one for one in questions(study, model, view="plot") if lengths[one.series_id] == SHORT)
    assert first.messages[0]["content"][0] == second.messages[0]["content"][0]

    def predicted(question: Question) -> list[float]:
        answer = complete(server, question, logprobs=True, top_logprobs=10)
        return [one.logprob for one in answer.choices[0].logprobs.content[1].top_logprobs]

    again, other = predicted(first), predicted(second)
    assert predicted(first) == pytest.approx(again, abs=1e-4)
    assert max(abs(a - b) for a, b in zip(again, other, strict=True)) > 0.01


def test_the_server_says_of_each_series_what_the_engine_in_the_pipeline_said(
    server: str, rows: list[dict[str, Any]], stopped: tuple[Path, dict[str, Any]], model: Path
) -> None:
    # So each reply stayed with its series on its way through the pipeline, where rows overtake one another.
    study, _ = stopped
    pairs = [
        (row, complete(server, question))
        for row, question in zip(rows, questions(study, model), strict=True)
        if row["status"] == "ok"
    ]
    same = [
        row["text"] == answer.choices[0].message.content and row["output_tokens"] == answer.usage.completion_tokens
        for row, answer in pairs
    ]
    assert sum(same) >= 0.9 * len(same)  # rounding differs with who shares a batch, and a near tie may fall
    assert all(row["input_tokens"] == answer.usage.prompt_tokens for row, answer in pairs)


def test_the_api_teacher_gets_schema_valid_replies_from_a_vllm_server(
    server: str, stopped: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    study, _ = stopped
    shutil.copytree(study / "series", tmp_path / "tiny/series")
    asked = (
        "teacher.kind=openai",
        f"teacher.base_url={server}",
        "teacher.model=tiny",
        *TEACHER,
        "teacher.view=plot",
    )
    run(command(tmp_path, *STUDY, *asked, stage="annotate"), cpus=2)
    found = store.open_dataset(str(tmp_path / "tiny/annotations"), SINGLE.tables.annotations).read().to_pylist()
    assert [row["series_id"] for row in found] == list(range(COUNT))
    for row in found:
        assert (row["status"], row["attempts"]) == ("ok", 1)
        validate(json.loads(row["text"]), reply_schema(SINGLE, choices=True))
        assert row["input_tokens"] > 196 // 28 * 140 // 28  # a token a patch, and the words
        assert 0 < row["output_tokens"] <= 200

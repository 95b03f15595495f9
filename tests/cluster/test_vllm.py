"""A real vLLM engine on CPUs, started by the pipeline and as a server that the API teacher asks.

Two models: a tiny Qwen2.5-VL of random weights and Qwen's real vocabulary, which says nonsense and is asked too
much, killed and started again; and a teacher of one's own, trained here, whose replies are held against the truth
and against what transformers makes of the same folder.
"""

import base64
import importlib.util
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from jsonschema import validate
from support.commands import ROOT, command, environment, run_alone, run_on_one_ray
from support.fake_engine import alive

from tsd.recipe import Recipe, load
from tsd.storage import datasets
from tsd.tasks import SINGLE
from tsd.teachers.prompts import Question, Questions, reply_schema

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm"),
]

COUNT = 48
SHORT, LONG = 32, 1024  # points; the numbers of a long series are more than the model takes
LONGEST = 2048  # tokens
SHOWN = 200  # series that a teacher of one's own describes
STUDY = (f"series.count={COUNT}", f"series.length=[{SHORT}, {LONG}]", "plots.width=196", "plots.height=140")
TEACHER = ("teacher.modality=both", "teacher.choices=true", "teacher.max_tokens=200")
SMALL = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 16, "skip_mm_profiling": True}
PATHS = ("/v1/models", "/health", "/metrics", "/tokenize", "/invocations", "/ping", "/docs", "/openapi.json")
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
    code = f"from pathlib import Path; from support.tiny_qwen import {by}; {by}(Path({str(folder)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment(), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return folder


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
        until = time.monotonic() + 600
        while len(replies_in(journal)) < 4:
            assert process.poll() is None, "the stage ended before it could be killed"
            assert time.monotonic() < until, "no replies came"
            time.sleep(0.05)
        engines += [process for each in engines_of(model) for process in each]
        without_token |= {path: status_of(engines[1], path) for path in PATHS}
    finally:
        kill_session(process)
    return out / "tiny", {line["key"]: line for line in replies_in(journal)}


def status_of(engine: psutil.Process, path: str) -> int:
    """The status of an engine's answer to who has no token."""
    (port,) = [word.partition("=")[2] for word in engine.cmdline() if word.startswith("--port=")]
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def engines_of(model: Path) -> list[list[psutil.Process]]:
    """The processes of each engine that runs with a model: its supervisor, its server, and what that started."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = " ".join(process.cmdline())
            if "engine_supervisor.py" in words and f"--model={model}" in words:
                found.append([process, *process.children(), *process.children()[0].children(recursive=True)])
    return found


def questions(study: Path, model: Path) -> list[Question]:
    """What the engine in the pipeline was asked about each series, in their order."""
    recipe: Recipe = load("laptop", ["teacher={kind: rules}", *piped(model)])
    asking = Questions(recipe.teacher, recipe.asks, recipe.plots, recipe.seed)
    series = datasets.open_dataset(str(study / "series"), SINGLE.tables.series).read()
    return asking.ask(series, asking.keys(series))


def kill_session(leader: subprocess.Popen[bytes]) -> None:
    """`kill -9` a process and all that it started: Ray's workers and vLLM's have groups of their own."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == leader.pid:
                process.kill()
    leader.wait(30)


def replies_in(journal: Path) -> list[dict[str, Any]]:
    """The lines of a journal's files that hold a reply."""
    texts = [file.read_text() for file in sorted(journal.glob("*.jsonl"))]
    lines = [json.loads(line) for text in texts for line in text.splitlines()[:-1] if line]
    return [line for line in lines if "key" in line]


@pytest.fixture(scope="module")
def rows(stopped: tuple[Path, dict[str, Any]], model: Path) -> list[dict[str, Any]]:
    """The annotations once the study was started again and ran to its end."""
    study, _ = stopped
    run_alone(command(study.parent, *piped(model), stage="annotate"), cpus=2, timeout=600)
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


# ---- A teacher of one's own, in all three ways

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


@pytest.fixture(scope="module")
def piped_own(own: Path, rows: object) -> list[dict[str, Any]]:
    """What the teacher says in an engine inside the pipeline, once that of the tests above has gone."""
    engine = f"teacher.engine={json.dumps(SMALL)}"
    run_alone(command(own.parent, *OWN, *ENGINE, engine, stage="annotate"), cpus=2, timeout=900)
    return said(set_aside(own, "vllm"), "vllm")


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


def test_of_two_engines_one_is_killed_and_only_its_rows_in_flight_are_asked_again(
    own: Path, piped_own: object, tmp_path: Path
) -> None:
    count, in_flight = 2048, 16
    study = tmp_path / "tiny"
    shutil.copytree(own / "teacher", study / "teacher")
    more = (f"series.count={count}", "series.blocks_per_part=1", "teacher.replicas=2")
    more += (f"teacher.in_flight={in_flight}", f"teacher.engine={json.dumps(SMALL)}")
    run_alone(command(tmp_path, *OWN, *more[:2], stage="generate"), cpus=2)
    process = subprocess.Popen(
        command(tmp_path, *OWN, *ENGINE, *more, stage="annotate"),
        cwd=ROOT,
        env=environment(2),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    started: list[psutil.Process] = []
    try:
        parts = [study / f"annotations/replies/part-0000000{part}" for part in (0, 1)]
        until = time.monotonic() + 900
        while min(len(replies_in(part)) for part in parts) < 20:
            assert process.poll() is None, process.communicate()[0][-3000:]
            assert time.monotonic() < until, "no replies came from both engines"
            time.sleep(0.2)
        both = engines_of(study / "teacher")
        assert len(both) == 2
        started = [one for each in both for one in each]
        tokens = {one.environ()["VLLM_API_KEY"] for one in started}
        assert len(tokens) == 2
        assert unauthorised(both[0][1]) == 401
        both[0][1].kill()
        printed = process.communicate(timeout=900)[0]
        assert process.returncode == 0, printed[-3000:]
    finally:
        if process.poll() is None:
            kill_session(process)
    rows = datasets.open_dataset(str(study / "annotations"), SINGLE.tables.annotations).read().to_pylist()
    assert [row["series_id"] for row in rows] == list(range(count))
    assert {row["status"] for row in rows} <= {"ok", "invalid", "truncated"}
    repaired = sum(row["status"] != "ok" for row in rows)  # asked once more for another reason
    assert 0 < sum(row["attempts"] - 1 for row in rows) <= in_flight + repaired
    assert not alive(started, 30)
    logs = list(Path(tempfile.gettempdir(), f"tsd-engines-{os.getuid()}").glob("*.log"))
    assert logs
    for log in logs:
        assert not [token for token in tokens if token in log.read_text(errors="replace")]


def unauthorised(server: psutil.Process) -> int:
    """The status that a server answers to who has no token. Its command line names no token either."""
    words = server.cmdline()
    assert server.environ()["VLLM_API_KEY"] not in " ".join(words)
    (port,) = [word.partition("=")[2] for word in words if word.startswith("--port=")]
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


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

"""Throughput of teachers: an API teacher, and a small, locally trained vision teacher.

The API teacher is compared with the package bespokelabs-curator on the same server and prompts. A local server
answers each request after 200 ms; 64 requests may be in flight, so 320 a second are ideal. The server measures the
rate over the middle eight tenths of the requests, without start and end. curator has a separate environment, which
is made once (.venv-curator, two minutes).

The local teacher, trained on few plots, runs in this process on one core, rendering of plots included. It is
compared with the rules teacher and, if .venv-vllm exists (`make environments`), with the same model in vLLM's
engine on this machine's CPUs, in the pipeline and behind a server. The rates of the latter two are differences
between two numbers of series, so they exclude the start. Writes teachers.json. Twelve minutes.

    python benchmarks/teachers.py --check
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import measured
import torch

from tsd.cluster import stages
from tsd.cluster.session import session
from tsd.generation import generator
from tsd.progress import Reporter
from tsd.recipe import LocalTeacher, Recipe, RulesTeacher, load
from tsd.storage import folders
from tsd.storage.datasets import Dataset
from tsd.study import local_teacher
from tsd.tasks import SINGLE
from tsd.teachers.local import Local
from tsd.teachers.rules import Rules

LATENCY, IN_FLIGHT = 0.2, 64
IDEAL = IN_FLIGHT / LATENCY
SERIES, REPEATS = 6144, 3
CURATOR = "bespokelabs-curator==0.1.31"
CL100K = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"  # the name under which tiktoken keeps its vocabulary
KEY = "TSD_BENCHMARK_KEY"
PICTURES, LOOKED_AT = 8000, 2048  # plots that the own teacher learns from, and series that it describes in a turn
FEW_AND_MANY = 128, 640  # series that vLLM describes
IN_PROCESS = "in this process, one core"
VLLM = measured.ROOT / ".venv-vllm" / "bin"
ENGINE = (
    "kind=vllm",
    "gpu=false",
    "max_model_len=2048",
    'engine={"dtype": "float32", "enforce_eager": true, "max_num_seqs": 16, "skip_mm_profiling": true}',
)
TRACKING = "tracking.uri=sqlite:///{}/mlflow.db"
QUIET = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
QUIET |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
REPLY = SINGLE.reply({"trend": "flat", "noise": "low", "maximum": "end", "minimum": "middle"}, (0, 0, 0))


def main() -> None:
    """Time each modality and curator in turns, print the rates, hold them against the bounds."""
    parser = measured.parser(__doc__)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)  # of the process of the server
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    os.environ[KEY] = "none"
    python = curator_environment()
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, measured.serving(__file__, "--serve") as url:
        recipe = load("laptop", [f"series.count={SERIES}", "series.blocks_per_part=1", f"out={folder}"])
        with session():
            series = stages.generate(recipe, Reporter())
            prompts = Path(folder) / "prompts.json"
            prompts.write_text(json.dumps(numbers_prompts(recipe, series)))
            for turn in range(REPEATS):
                works: dict[str, Any] = {
                    f"tsd, {name} view": lambda modality=modality, turn=turn: ask(
                        recipe, series, url, modality, turn
                    )
                    for name, modality in (("numbers", "text"), ("plot", "image"))
                }
                works["curator, the same numbers"] = lambda: curate(python, url, prompts)
                for name, work in works.items():
                    stats(url, "reset")
                    work()
                    found = stats(url, "stats")
                    assert found["requests"] >= SERIES, f"{name}: {found}"
                    assert found["most_in_flight"] <= IN_FLIGHT, f"{name}: {found}"
                    rates.setdefault(name, []).append(found["rate"])
    ways = own_ways()
    rows: list[dict[str, Any]] = [
        {"who": name, "requests/s": median(each), "share of the ideal": median(each) / IDEAL}
        for name, each in rates.items()
    ]
    measured.show(
        f"{SERIES:,} requests, {IN_FLIGHT} in flight, {1000 * LATENCY:.0f} ms each; ideal {IDEAL:.0f}/s", rows
    )
    measured.show(
        f"{PICTURES:,} plots learned from; series described a second",
        [{"way": way, "series/s": rate} for way, rate in ways.items()],
    )
    shares: dict[str, float] = {row["who"]: row["share of the ideal"] for row in rows}
    measured.finish(
        __file__,
        {"series": SERIES, "repeats": REPEATS, "rates": rows, "every_rate": rates, "own_teacher": ways},
        [
            measured.Bound("numbers view, share of the ideal rate", shares["tsd, numbers view"], least=0.8),
            measured.Bound("plot view, share of the ideal rate", shares["tsd, plot view"], least=0.8),
            measured.Bound("series a second that a core looks at, drawing included", ways[IN_PROCESS], least=150),
        ],
        options.check,
    )


def own_ways() -> dict[str, float]:
    """Series per second that a locally trained teacher describes, each way, and the rules teacher."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = load("laptop", [f"teacher.train.pictures={PICTURES}", f"out={folder}", TRACKING.format(folder)])
        local_teacher.prepare_alone(recipe, Reporter())
        assert isinstance(recipe.teacher, LocalTeacher)
        model = Path(recipe.teacher.model)
        teachers: dict[str, Local | Rules] = {
            IN_PROCESS: Local(recipe.teacher, SINGLE, model),
            "rules, one core": Rules(RulesTeacher(), SINGLE, 0),
        }
        torch.set_num_threads(1)
        works: dict[str, Callable[[], object]] = {
            way: partial(describe, teacher, recipe) for way, teacher in teachers.items()
        }
        rates = {way: LOOKED_AT / seconds for way, seconds in measured.medians(works, REPEATS).items()}
        if not VLLM.exists():
            print("no .venv-vllm: its rates are left out (`make environments`)")
            return rates
        rates["vLLM's engine in the pipeline, both cores"] = rate_between(recipe, ENGINE)
        with serving_own(model) as url:
            rates["vLLM's server, both cores"] = rate_between(recipe, ["kind=openai", f"base_url={url}"])
    return rates


def describe(teacher: Local | Rules, recipe: Recipe) -> None:
    """Have a teacher describe series of the recipe, drawn anew."""
    teacher.annotate(generator.draw_table(SINGLE, recipe.series, recipe.seed, 0, LOOKED_AT))


def rate_between(recipe: Recipe, teacher: Sequence[str]) -> float:
    """Series a second of the annotation stage in vLLM's environment, between two numbers of series."""
    seconds = []
    for count in FEW_AND_MANY:
        sets = [f"teacher.train.pictures={PICTURES}", f"series.count={count}", TRACKING.format(recipe.out)]
        sets += [f"name={recipe.name}", *(f"teacher.{each}" for each in teacher)]
        for stage in ("generate", "annotate"):
            words = [str(VLLM / "tsd"), stage, "laptop", "--out", recipe.out]
            subprocess.run(
                [*words, *(word for each in sets for word in ("--set", each))],
                env=os.environ | QUIET,
                check=True,
                timeout=600,
                stdout=subprocess.DEVNULL,
            )
        spent = folders.read_json(recipe.folder, "timings.json")
        seconds.append(float(spent["Ask the teacher"]))
        for name in ("series", "annotations"):
            folders.delete_folder(f"{recipe.folder}/{name}")
        folders.write_json(recipe.folder, "timings.json", {})
    few, many = FEW_AND_MANY
    return (many - few) / (seconds[1] - seconds[0])


@contextmanager
def serving_own(model: Path) -> Iterator[str]:
    """A vLLM server with the teacher, as `vllm serve` starts it; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "2048"]
    flags += ["--max-num-seqs", "16", "--enforce-eager", "--skip-mm-profiling"]
    process = subprocess.Popen(
        [str(VLLM / "python"), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *flags],
        env=os.environ | QUIET,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 300
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, "vllm serve ended"
            assert time.monotonic() < until, "vllm serve is not ready after five minutes"
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


def ask(recipe: Recipe, series: Dataset, url: str, modality: str, turn: int) -> None:
    """Ask the server about every series, as the annotation stage does."""
    teacher = {
        "kind": "openai",
        "model": "seer",
        "base_url": f"{url}/v1",
        "key_env": KEY,
        "modality": modality,
        "in_flight": IN_FLIGHT,
    }
    overrides = [f"teacher.{name}={value}" for name, value in teacher.items()]
    asking = load("laptop", ["teacher={kind: openai}", *overrides, f"out={recipe.out}", f"name={modality}-{turn}"])
    stages.annotate(asking, series, Reporter())


def numbers_prompts(recipe: Recipe, series: Dataset) -> list[str]:
    """The prompts with the values as text."""
    from tsd.recipe import ApiTeacher
    from tsd.teachers.prompts import Questions

    teacher = ApiTeacher(kind="openai", model="seer", base_url="http://localhost/v1", modality="text")
    questions = Questions(teacher, recipe.asks, recipe.plots, recipe.seed)
    asked = [questions.ask(rows, [""] * len(rows)) for rows in series.each_part()]
    return [str(one.messages[0]["content"][0]["text"]) for part in asked for one in part]


# ---- curator, in an environment of its own

CURATOR_SCRIPT = """
import json, sys
from bespokelabs import curator

url, prompts = sys.argv[1], json.load(open(sys.argv[2]))
llm = curator.LLM(
    model_name="seer",
    backend="openai",
    generation_params={"max_tokens": 256, "temperature": 0.0},
    backend_params={
        "base_url": url + "/v1",
        "max_concurrent_requests": %d,
        "max_requests_per_minute": 10**7,
        "max_tokens_per_minute": 10**10,
    },
)
llm(prompts)
"""


def curator_environment() -> Path:
    """The Python of an environment with curator."""
    folder = Path(__file__).parents[1] / ".venv-curator"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"Setting up {folder.name}: two minutes, once")
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--quiet", CURATOR], check=True)
        (folder / "ready").touch()
    return python


def curate(python: Path, url: str, prompts: Path) -> None:
    """Have curator ask the same."""
    (vocabulary,) = python.parents[1].rglob(f"litellm/**/{CL100K}")
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {
            "OPENAI_API_KEY": "none",
            "CURATOR_CACHE_DIR": cache,
            "CURATOR_DISABLE_RICH_DISPLAY": "1",
            "TELEMETRY_ENABLED": "false",
            "PYTHONPATH": "",
            # curator counts tokens with a vocabulary that it would fetch; litellm, which it needs, brings it.
            "TIKTOKEN_CACHE_DIR": str(vocabulary.parent),
        }
        script = CURATOR_SCRIPT % IN_FLIGHT
        done = subprocess.run(
            [python, "-c", script, url, str(prompts)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]


# ---- The server, in a process of its own


def stats(url: str, what: str) -> dict[str, float]:
    """What the server measured since the last reset."""
    with urllib.request.urlopen(f"{url}/{what}", timeout=30) as answer:
        found: dict[str, float] = json.loads(answer.read())
        return found


def serve() -> None:
    """Answer every chat request after the latency."""
    from aiohttp import web

    message = {"role": "assistant", "content": REPLY}
    usage = {"prompt_tokens": 500, "completion_tokens": 60, "total_tokens": 560}
    choices = [{"index": 0, "finish_reason": "stop", "message": message}]
    head = {"id": "1", "object": "chat.completion", "created": 0, "model": "seer"}
    payload = json.dumps({**head, "choices": choices, "usage": usage}).encode()
    times: list[float] = []
    seen: dict[str, float] = {}

    def reset() -> None:
        times.clear()
        seen.update(in_flight=0, most_in_flight=0)

    async def chat(request: web.Request) -> web.Response:
        await request.read()
        times.append(time.monotonic())
        seen["in_flight"] += 1
        seen["most_in_flight"] = max(seen["most_in_flight"], seen["in_flight"])
        await asyncio.sleep(LATENCY)
        seen["in_flight"] -= 1
        return web.Response(body=payload, content_type="application/json")

    async def tell(request: web.Request) -> web.Response:
        if request.path == "/reset":
            reset()
        middle = times[len(times) // 10 : 9 * len(times) // 10]
        rate = (len(middle) - 1) / (middle[-1] - middle[0]) if len(middle) > 1 else 0.0
        return web.json_response({**seen, "requests": len(times), "rate": rate})

    async def run() -> None:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", chat)
        app.router.add_get("/{what:reset|stats}", tell)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
        await asyncio.Event().wait()

    reset()
    asyncio.run(run())


if __name__ == "__main__":
    main()

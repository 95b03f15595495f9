"""Tokens of a large corpus: what a training worker needs of time and memory before its first step.

512,000 examples with Qwen's vocabulary. *Before*: each worker of each run tokenises its corpus itself; it is
measured on two smaller corpora, and what the larger takes more is scaled to 512,000 examples. *After*: a stage
on Ray writes token parts once, and a worker maps them from a copy on its machine's disk. Each worker is a fresh
process. Memory is private memory (RssAnon), the peak beyond the model's. The second start finds the parts and
makes the copy anew, as the first run of a trial on a machine does. Writes tokens.json. Eight minutes on two
slow cores.

    python benchmarks/tokens.py --check
    python benchmarks/tokens.py --examples 32000
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
from measured import ROOT, Bound, finish, parser, show

COUNT, PART = 512_000, 16_384  # examples; rows of a part, as in recipes/cluster.yaml
FEW, MORE = 8_000, 40_000  # that a worker tokenises itself
VALIDATION = 512
LONGEST = 1024
MOST_MB, MOST_SECONDS = 500.0, 20.0


def main() -> None:
    """Make the corpus, tokenise it both ways, open it in workers, and hold the figures against the bounds."""
    options = parser(__doc__)
    options.add_argument("--examples", type=int, default=COUNT, help="of the corpus; fewer write no record")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = measure(folder, asked.examples)
    scale = (asked.examples - FEW) / (MORE - FEW)
    few, more = found["old"]
    grown = {name: few[name] + (more[name] - few[name]) * scale for name in few}
    before = {"way": "each worker", "examples": asked.examples, "tokenising s": grown["seconds"]}
    before |= {"worker MB": grown["MB"], "first step s": grown["first step"]}
    after = {"way": "token parts", "examples": asked.examples, "tokenising s": found["stage"]}
    after |= {"worker MB": found["second"]["MB"], "first step s": found["second"]["first step"]}
    show(f"Before the first step (each worker: scaled from {FEW:,} and {MORE:,} examples)", [before, after])
    bounds = [
        Bound("MB that a worker takes beyond its model", found["second"]["MB"], most=MOST_MB),
        Bound(
            "seconds from a worker's start to its first step, parts there",
            found["second"]["first step"],
            most=MOST_SECONDS,
        ),
    ]
    if asked.examples == COUNT:
        finish(__file__, {"rows": [before, after], "measured": found}, bounds, asked.check)


def measure(folder: Path, count: int) -> dict[str, Any]:
    """Every figure: seconds of the stage, and of each worker seconds and memory."""
    make(folder, count)
    found: dict[str, Any] = {"old": [worker("old", folder, examples) for examples in (FEW, MORE)]}
    started = time.perf_counter()
    worker("stage", folder, count)
    found["stage"] = time.perf_counter() - started
    found["first"] = worker("new", folder, count)
    found["second"] = worker("new", folder, count)
    return found


def make(folder: Path, count: int) -> None:
    """Write a tiny model with Qwen's vocabulary, and examples: the rules teacher's, repeated under new ids."""
    sys.path.insert(0, str(ROOT / "tests"))
    from lessons import lessons
    from support.tiny_qwen import save_tiny_text_qwen

    from tsd.recipe import load
    from tsd.storage import datasets
    from tsd.storage.schemas import EXAMPLES

    save_tiny_text_qwen(folder / "source", hidden=16)
    _, some, _ = lessons(load("laptop", ["teacher={kind: rules}"]), 32_768)
    parts = 0
    for first in range(0, count + VALIDATION, PART):
        rows = min(PART, count + VALIDATION - first)
        take = pa.array([(first + row) % len(some) for row in range(rows)])
        split = pa.array(["train" if first + row < count else "validation" for row in range(rows)])
        table = some.take(take).set_column(0, "series_id", pa.array(range(first, first + rows)))
        datasets.write_part(
            str(folder / "examples"), parts, table.set_column(1, "split", split), EXAMPLES, "k" * 16
        )
        parts += 1
    datasets.commit(str(folder / "examples"), EXAMPLES, "k" * 16, parts, {})


def worker(way: str, folder: Path, count: int) -> dict[str, Any]:
    """Run one way in a fresh process. Returns what it measured."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
    code = f"import tokens; tokens.{way}({str(folder)!r}, {count})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def stage(folder: str, _: int) -> None:
    """The stage's executor on a Ray of its own, with a worker that tokenises as the stage's does."""
    from rich.console import Console

    from tsd.cluster import parts
    from tsd.cluster.session import session
    from tsd.models.tokenizer import load_tokenizer
    from tsd.progress import Reporter
    from tsd.storage import datasets
    from tsd.storage.schemas import EXAMPLES, TOKENS
    from tsd.training.token_parts import summary, token_table

    examples = datasets.open_dataset(f"{folder}/examples", EXAMPLES)
    place, key = f"{folder}/tokens", "t" * 16

    class Tokenises:
        def __init__(self) -> None:
            self.tokenizer = load_tokenizer(f"{folder}/source")

        def __call__(self, _: str, part: int) -> list[datasets.Part]:
            table, note = token_table(examples.read_part(part), self.tokenizer)
            return [datasets.write_part(place, part, table, TOKENS, key, note)]

    with session(), Reporter(Console(file=sys.stderr)).stage("Tokenise", examples.rows, "examples") as step:
        made = parts.make(Tokenises, [parts.Target(((place, key),), examples.parts)], step, workers=2, num_cpus=1)
        (found,) = made.parts[""]
        about = summary([found[part].note for part in range(examples.parts)])
        datasets.commit(place, TOKENS, key, examples.parts, {}, found, about)
    print("{}")


def old(folder: str, count: int) -> None:
    """A worker that tokenises its corpus, and takes a step."""
    started = time.perf_counter()
    from tsd.models.tokenizer import load_tokenizer
    from tsd.storage import datasets
    from tsd.storage.schemas import EXAMPLES
    from tsd.training.corpus import select, tokenise

    model, tokenizer = _model(folder), load_tokenizer(f"{folder}/source")
    examples = datasets.open_dataset(f"{folder}/examples", EXAMPLES)
    with _Peak() as peak:
        begun = time.perf_counter()
        corpus = tokenise(select(examples.each_part(), "train", count), tokenizer, LONGEST)
        seconds = time.perf_counter() - begun
        _step(model, corpus)
        ended = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "first step": ended, "MB": peak.most / 1e6}))


def new(folder: str, count: int) -> None:
    """A worker that maps the token parts, and takes a step."""
    started = time.perf_counter()
    from tsd.storage import datasets
    from tsd.storage.schemas import TOKENS
    from tsd.training.token_parts import corpora

    model = _model(folder)
    with _Peak() as peak:
        begun = time.perf_counter()
        tokens = datasets.open_dataset(f"{folder}/tokens", TOKENS)
        with corpora(tokens, {"train": count, "validation": VALIDATION}, LONGEST, 1) as found:
            seconds = time.perf_counter() - begun
            _step(model, found["train"])
            ended = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "first step": ended, "MB": peak.most / 1e6}))


def _model(folder: str) -> Any:
    """The student, loaded as a worker loads it."""
    from tsd.models.students import build
    from tsd.models.tokenizer import load_tokenizer
    from tsd.recipe import Student

    student = Student(name="tiny", source=f"{folder}/source", learning_rate=1e-3)
    return build(student, load_tokenizer(f"{folder}/source"), 0, LONGEST)


def _step(model: Any, corpus: Any) -> None:
    """One optimizer step on the first batch."""
    from tsd.recipe import TrainingConfig
    from tsd.training import loop

    class FirstStepError(Exception):
        """Ends the training after its first step."""

    def report(_: Any) -> None:
        raise FirstStepError

    config = TrainingConfig(batch_size=1, checkpoint_every=1)
    with suppress(FirstStepError):
        loop.train(
            model,
            corpus,
            config,
            learning_rate=1e-3,
            seed=0,
            place=loop.WorkerContext(),
            optimizer=loop.make_optimizer(model, config),
            progress=loop.Progress(),
            save=report,
        )


class _Peak:
    """The most private memory that this process had, beyond what it had at the start, in bytes."""

    def __enter__(self) -> "_Peak":
        import threading

        self.start, self.over = _private(), threading.Event()
        self.most = 0
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _look(self) -> None:
        while not self.over.wait(0.01):
            self.most = max(self.most, _private() - self.start)


def _private() -> int:
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return next(1024 * int(words[1]) for words in lines if words[0] == "RssAnon:")


if __name__ == "__main__":
    main()

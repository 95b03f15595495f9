"""Students' replies to the test series, part by part."""

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from tsd.cluster import parts
from tsd.cluster.imports import quick_imports
from tsd.errors import InputError, TsdError, how_to_install
from tsd.evaluation.scoring import answers
from tsd.models.chat import chat_tokens
from tsd.plots.rasterised import draw
from tsd.progress import Reporter
from tsd.recipe import Recipe
from tsd.storage import datasets, folders
from tsd.study import identity
from tsd.study.identity import Engine
from tsd.study.scored_series import test_series
from tsd.training.runs import RunSpec

LIBRARIES = ("tsd.inference.decoding", "tsd.models.students")  # and with them transformers


@dataclass
class Decoded:
    """Result of decoding: seconds per run that was not finished, and reasons of failures, by run id."""

    seconds: dict[str, float]
    failed: dict[str, str]


def decode(recipe: Recipe, runs: Sequence[RunSpec], series: datasets.Dataset, reporter: Reporter) -> Decoded:
    """Decode every student on the first test series, with one predictions dataset per run.

    A student that fails is skipped with its reason, and retried by the next start. Raises InputError if the recipe
    requires vLLM and it is not installed.
    """
    if recipe.evaluation.vllm and not identity.vllm_is_installed():
        raise InputError(f"evaluation.vllm=true needs vLLM, which is not installed here: {how_to_install('vllm')}")
    chunks = -(-len(test_series(recipe, series)) // recipe.evaluation.batch_size)
    schema = recipe.asks.tables.predictions
    keys = {run.run_id: identity.predictions_key(recipe, run, series) for run in runs}
    engines = {run.run_id: identity.engine_of(recipe, run.student) for run in runs}
    places = {run_id: f"{recipe.folder}/predictions/{run_id}" for run_id in keys}
    targets = [
        parts.Target(((places[run], key),), chunks, run)
        for run, key in keys.items()
        if not datasets.find_finished(places[run], schema, key)
    ]
    seconds = {target.name: 0.0 for target in targets}
    with reporter.stage("Decode", len(keys) * chunks, "batches") as step:
        step.skip((len(keys) - len(targets)) * chunks)

        def describe(run: str, made: Sequence[datasets.Part]) -> str:
            seconds[run] += sum(part.note or 0.0 for part in made)  # unknown if its worker died afterwards
            return run

        made = parts.make(
            Decoder,
            targets,
            step,
            arguments=(recipe, series, engines, keys),
            size=lambda _: 1,
            describe=describe,
            workers=recipe.evaluation.workers,
            num_cpus=1,
            num_gpus=1 if recipe.training.gpu else 0,
        )
        for target in targets:
            if target.name not in made.failed:
                (found,) = made.parts[target.name]
                parents = {"series": series.digest}
                datasets.commit(places[target.name], schema, keys[target.name], chunks, parents, found)
    return Decoded(seconds, made.failed)


class Decoder:
    """Decodes chunks of the test series. Keeps the last student loaded."""

    def __init__(
        self, recipe: Recipe, series: datasets.Dataset, engines: Mapping[str, Engine], keys: Mapping[str, str]
    ) -> None:
        """engines, keys: of the runs' predictions, by run id."""
        with quick_imports():
            import torch

            for name in LIBRARIES:
                importlib.import_module(name)
        self.recipe, self.engines, self.keys = recipe, engines, keys
        self.test = test_series(recipe, series)
        self.loaded: tuple[str, Callable[[pa.Table], list[str]]] | None = None
        self.held = ExitStack()  # the vLLM engine of the loaded student, if any
        self.failed: dict[str, str] = {}  # reasons of failed students, which are not retried
        if not recipe.training.gpu:
            torch.set_num_threads(recipe.training.threads)

    def __call__(self, run: str, chunk: int) -> list[datasets.Part]:
        """Decode one batch of the test series by a run's student, and write it. Raises FailedError."""
        size = self.recipe.evaluation.batch_size
        rows = self.test.slice(chunk * size, size)
        if run in self.failed:
            raise parts.FailedError(self.failed[run])
        try:
            reply = self._student(run)
            started = time.perf_counter()
            texts = reply(rows)
            seconds = time.perf_counter() - started
        except Exception as error:  # the model is at fault: other students are still decoded
            self.failed[run] = _one_line(error)
            self._forget()
            raise parts.FailedError(self.failed[run]) from error
        task = self.recipe.asks
        table = pa.table(
            {
                "run_id": [run] * len(rows),
                "series_id": rows["series_id"],
                "text": texts,
                **answers(task, rows, texts),
            }
        )
        folder, schema = f"{self.recipe.folder}/predictions/{run}", task.tables.predictions
        part = datasets.write_part(folder, chunk, table, schema, self.keys[run])
        return [replace(part, note=seconds)]  # not stored: the same predictions have the same bytes

    def _forget(self) -> None:
        """Free the loaded student before another one needs its memory."""
        self.loaded = None
        self.held.close()

    def _student(self, run: str) -> Callable[[pa.Table], list[str]]:
        """Return the function that generates a student's responses to series."""
        if self.loaded is None or self.loaded[0] != run:
            self._forget()
            with folders.local_copy(f"{self.recipe.folder}/students/{run}") as folder:
                self.loaded = run, self._load(Path(folder), self.engines[run])
        return self.loaded[1]

    def _load(self, folder: Path, engine: Engine) -> Callable[[pa.Table], list[str]]:
        """Load a student into its engine and return the function that generates its responses."""
        from tsd.inference.decoding import decode as reply
        from tsd.inference.decoding import describe
        from tsd.models.students import load_model
        from tsd.models.tokenizer import load_tokenizer
        from tsd.models.vision import is_vision_model

        tokenizer, gpu, most = load_tokenizer(str(folder)), self.recipe.training.gpu, self.recipe.max_new_tokens
        task = self.recipe.asks
        if engine == "vllm":
            from tsd.inference import vllm

            longest = max(map(len, chat_tokens(self._prompts(self.test), tokenizer)))
            loaded = self.held.enter_context(vllm.Engine(folder, tokenizer, longest, most, gpu))
            return lambda rows: loaded.decode(self._prompts(rows))
        model = load_model(str(folder)).to("cuda" if gpu else "cpu")
        if is_vision_model(model):
            return lambda rows: describe(model, tokenizer, task, draw(task.items(rows)), most)
        return lambda rows: reply(model, tokenizer, self._prompts(rows), max_new_tokens=most)

    def _prompts(self, series: pa.Table) -> list[str]:
        return [self.recipe.asks.student_prompt(values) for values in series["values"].to_pylist()]


def _one_line(error: Exception) -> str:
    """Format an error as one line."""
    said = next(iter(str(error).strip().splitlines()), "")
    return said if isinstance(error, TsdError) else f"{type(error).__name__}: {said}"

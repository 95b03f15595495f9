"""The stages that run on Ray Data, part by part: generate, annotate, curate, decode.

Each finished part is on disk before Ray receives its result. So a stopped stage resumes with the missing parts,
and the files do not depend on the number of workers.
"""

import importlib.util
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.markup import escape

from tsd import curation
from tsd.cluster import nodes
from tsd.errors import InputError, TsdError, how_to_install
from tsd.evaluation import scoring
from tsd.generation import generator
from tsd.plots.rasterised import draw
from tsd.progress import Reporter, Step
from tsd.recipe import LocalTeacher, ModelTeacher, Recipe, RulesTeacher, VllmTeacher
from tsd.storage import datasets, locks
from tsd.storage.schemas import EXAMPLES, PLOTS, REJECTS, fingerprint
from tsd.teachers.api.counts import tally
from tsd.teachers.rules import Rules
from tsd.training.corpus import chat_tokens

Parts = dict[int, datasets.Part]
Work = Callable[[int], Sequence[datasets.Part]]  # compute one part of every output
SEEN = ("series_id", "split", "values", "truth")  # columns of a series that curation uses
SHOWN = 3  # lost parts that a message lists


def generate(recipe: Recipe, reporter: Reporter) -> datasets.Dataset:
    """Generate the series and measure their true labels. Class shares and baselines are stored as metadata."""
    folder, key, schema = f"{recipe.folder}/series", series_key(recipe), recipe.asks.tables.series
    done = datasets.find_finished(folder, schema, key)
    per_part = recipe.series.blocks_per_part * generator.BLOCK
    count = recipe.series.count

    def work(part: int) -> list[datasets.Part]:
        first = part * per_part
        table = generator.draw_table(recipe.asks, recipe.series, recipe.seed, first, min(per_part, count - first))
        return [datasets.write_part(folder, part, table, schema, key, scoring.tally(recipe.asks, table))]

    with reporter.stage("Draw series", count, recipe.asks.unit) as step:
        if done:
            step.skip(done.rows)
            return done
        parts = -(-count // per_part)
        lost = find_lost(folder, key, parts)
        (made,) = _run(work, parts, [(folder, key)], step)
        counted = scoring.add(made[part].note for part in range(parts))
        drawn = datasets.commit(folder, schema, key, parts, {}, made, scoring.about(recipe.asks, counted))
    lost.say(reporter)
    return drawn


def draw_plots(recipe: Recipe, series: datasets.Dataset, reporter: Reporter) -> datasets.Dataset:
    """Render the plots to disk. Optional: a teacher renders its own."""
    folder, key = f"{recipe.folder}/plots", datasets.digest(["plots", *plots_identity(recipe), series.digest])
    done = datasets.find_finished(folder, PLOTS, key)

    def work(part: int) -> list[datasets.Part]:
        return [datasets.write_part(folder, part, plot_table(recipe, series.read_part(part)), PLOTS, key)]

    with reporter.stage("Draw plots", series.rows, "plots") as step:
        if done:
            step.skip(done.rows)
            return done
        lost = find_lost(folder, key, series.parts)
        (made,) = _run(work, series.parts, [(folder, key)], step)
        drawn = datasets.commit(folder, PLOTS, key, series.parts, {"series": series.digest}, made)
    lost.say(reporter)
    return drawn


def annotate(recipe: Recipe, series: datasets.Dataset, reporter: Reporter) -> datasets.Dataset:
    """Annotate every series with the teacher. Cost and status counts are stored as metadata."""
    folder, key = f"{recipe.folder}/annotations", annotations_key(recipe, series)
    schema, parents = recipe.asks.tables.annotations, {"series": series.digest}
    done = datasets.find_finished(folder, schema, key)
    rules = _rules(recipe) if isinstance(recipe.teacher, RulesTeacher) else None

    def work(part: int) -> list[datasets.Part]:
        assert rules
        table = rules.annotate(series.read_part(part))
        return [datasets.write_part(folder, part, table, schema, key, tally(table))]

    with reporter.stage(f"Ask the teacher ({recipe.teacher.name})", series.rows, "replies") as step:
        if done:
            step.skip(done.rows)
            return done
        lost = find_lost(folder, key, series.parts)
        if rules:
            (made,) = _run(work, series.parts, [(folder, key)], step)
        else:
            made = _ask(recipe, series, folder, key, step, lost.parts, reporter)
        counted: Counter[str] = Counter()
        for part in made.values():
            counted.update(part.note)
        said = datasets.commit(folder, schema, key, series.parts, parents, made, dict(counted))
    lost.say(reporter)
    return said


def _ask(
    recipe: Recipe,
    series: datasets.Dataset,
    folder: str,
    key: str,
    step: Step,
    lost: Collection[int],
    reporter: Reporter,
) -> Parts:
    """Annotate the missing parts with the teacher of the recipe.

    lost: parts that existed before; for paid teachers they are restored from the journal only.
    """
    # Imported here: openai and matplotlib delay the start of workers that do not need them.
    if isinstance(recipe.teacher, VllmTeacher):
        from tsd.cluster import vllm_teacher

        return vllm_teacher.ask(recipe, series, folder, key, step)
    if isinstance(recipe.teacher, LocalTeacher):
        from tsd.cluster import local_teacher

        return local_teacher.ask(recipe, series, folder, key, step)
    from tsd.cluster import api_teacher

    return api_teacher.ask(recipe, series, folder, key, step, lost=lost, say=reporter.say)


def curate(
    recipe: Recipe, series: datasets.Dataset, annotations: datasets.Dataset, reporter: Reporter
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split the annotations into examples and rejects. The counts of both are stored with the examples."""
    kept, rejected = f"{recipe.folder}/examples", f"{recipe.folder}/rejects"
    parents = {"series": series.digest, "annotations": annotations.digest}
    key = datasets.digest(["curate", curation.VERSION, recipe.asks.version, recipe.curation.model_dump(), parents])
    done = datasets.find_finished(kept, EXAMPLES, key), datasets.find_finished(rejected, REJECTS, key)
    whole = all(done) and datasets.find_finished(f"{recipe.folder}/verdicts", recipe.asks.tables.verdicts, key)
    verdicts = None if whole else _judge(recipe, series, annotations, key, parents, reporter)

    def work(part: int) -> list[datasets.Part]:
        assert verdicts
        judged = verdicts.read_part(part)
        examples, rejects, counts = curation.sort_out(
            recipe.asks, annotations.read_part(part), series.read_part(part, SEEN), judged, settled
        )
        return [
            datasets.write_part(kept, part, examples, EXAMPLES, key, counts),
            datasets.write_part(rejected, part, rejects, REJECTS, key),
        ]

    with reporter.stage("Curate", annotations.rows, "replies") as step:
        if done[0] and done[1]:
            step.skip(done[0].rows + done[1].rows)
            return done[0], done[1]
        assert verdicts
        settled = curation.settle(recipe.asks, verdicts.read(curation.needed(recipe.curation)), recipe.curation)
        lost = [find_lost(folder, key, series.parts) for folder in (kept, rejected)]
        good, bad = _run(work, series.parts, [(kept, key), (rejected, key)], step)
        counted = curation.about(curation.add(good[part].note for part in range(series.parts)))
        both = (
            datasets.commit(kept, EXAMPLES, key, series.parts, parents, good, counted),
            datasets.commit(rejected, REJECTS, key, series.parts, parents, bad),
        )
    for one in lost:
        one.say(reporter)
    return both


def _judge(
    recipe: Recipe,
    series: datasets.Dataset,
    annotations: datasets.Dataset,
    key: str,
    parents: dict[str, str],
    reporter: Reporter,
) -> datasets.Dataset:
    """Validate each annotation separately. The corpus-level filter needs all of these verdicts."""
    folder, schema = f"{recipe.folder}/verdicts", recipe.asks.tables.verdicts
    done = datasets.find_finished(folder, schema, key)

    def work(part: int) -> list[datasets.Part]:
        said, known = annotations.read_part(part), series.read_part(part, SEEN)
        table = curation.judge(recipe.asks, said, known, recipe.curation, _contradictions(recipe))
        return [datasets.write_part(folder, part, table, schema, key)]

    with reporter.stage("Judge", annotations.rows, "replies") as step:
        if done:
            step.skip(done.rows)
            return done
        if recipe.curation.nli:
            from tsd.curation.nli import require_contradiction  # torch and transformers

            require_contradiction(recipe.curation.nli.model)  # raised here, not in a worker
        lost = find_lost(folder, key, series.parts)
        (made,) = _run(work, series.parts, [(folder, key)], step)
        judged = datasets.commit(folder, schema, key, series.parts, parents, made)
    lost.say(reporter)
    return judged


@dataclass(frozen=True)
class Lost:
    """Parts of a table that existed before, and the problem of each; their files are set aside."""

    folder: str
    parts: Mapping[int, str]

    def say(self, reporter: Reporter) -> None:
        """Report which parts were rebuilt and why."""
        if self.parts:
            table, count = self.folder.removeprefix(datasets.study_of(self.folder)).lstrip("/"), len(self.parts)
            whys = ", ".join(
                f"{datasets.part_name(part)}: {why}" for part, why in list(self.parts.items())[:SHOWN]
            )
            more = f", and {count - SHOWN} more" if count > SHOWN else ""
            noun = "part" if count == 1 else "parts"
            reporter.say(escape(f"  remade {count:,} {noun} of {table} with the same bytes ({whys}{more})"))


def find_lost(folder: str, key: str, parts: int) -> Lost:
    """Find the lost parts and set their files aside.

    If the manifest is damaged, all missing parts count as lost, since they may have existed.
    """
    lost = datasets.lost_parts(folder, key)
    if datasets.has_damaged_manifest(folder):
        lost |= datasets.unreadable_parts(folder)
        there = datasets.finished_parts(folder, key)
        lost |= {part: "it is missing, as is a whole manifest" for part in range(parts) if part not in there}
    for part in lost:
        datasets.set_aside(folder, part)
    return Lost(folder, lost)


@dataclass
class Decoded:
    """Result of decoding: seconds per run that was not finished, and reasons of failures, by run id."""

    seconds: dict[str, float]
    failed: dict[str, str]


def decode(recipe: Recipe, run_ids: Sequence[str], series: datasets.Dataset, reporter: Reporter) -> Decoded:
    """Decode every student on the first test series, with one predictions dataset per run.

    A student that fails is skipped with its reason, and retried by the next start. Raises InputError if the recipe
    requires vLLM and it is not installed.
    """
    if recipe.evaluation.vllm and not _vllm_is_installed():
        raise InputError(f"evaluation.vllm=true needs vLLM, which is not installed here: {how_to_install('vllm')}")
    chunks = -(-len(test_series(recipe, series)) // recipe.evaluation.batch_size)
    schema = recipe.asks.tables.predictions
    keys = {run: predictions_key(recipe, run, series) for run in run_ids}
    folders = {run: f"{recipe.folder}/predictions/{run}" for run in run_ids}
    open_runs = [run for run in run_ids if not datasets.find_finished(folders[run], schema, keys[run])]
    work = [
        {"run": run, "chunk": chunk}
        for run in open_runs
        for chunk in sorted(set(range(chunks)) - set(datasets.finished_parts(folders[run], keys[run])))
    ]
    made = Decoded(dict.fromkeys(open_runs, 0.0), {})
    with reporter.stage("Decode", len(run_ids) * chunks, "batches") as step:
        step.skip(len(run_ids) * chunks - len(work))
        rows = nodes.done(
            Decoder,
            work,
            step,
            arguments=(recipe, series, keys),
            concurrency=(1, max(1, min(recipe.evaluation.workers, len(work)))),
            num_cpus=1,
            num_gpus=1 if recipe.training.gpu else 0,
        )
        for row in rows:
            if row["failed"]:
                made.failed[row["run"]] = row["failed"]
                continue
            made.seconds[row["run"]] += row["seconds"]
            step.advance(1, row["run"])
        for run in open_runs:
            if run not in made.failed:
                datasets.commit(folders[run], schema, keys[run], chunks, {"series": series.digest})
    return made


class Decoder:
    """Decodes chunks of the test series. Keeps the last student loaded."""

    def __init__(self, recipe: Recipe, series: datasets.Dataset, keys: dict[str, str]) -> None:
        import torch

        self.recipe, self.keys = recipe, keys
        self.test = test_series(recipe, series)
        self.loaded: tuple[str, Callable[[pa.Table], list[str]]] | None = None
        self.held = ExitStack()  # the vLLM engine of the loaded student, if any
        self.failed: dict[str, str] = {}  # reasons of failed students, which are not retried
        if not recipe.training.gpu:
            torch.set_num_threads(recipe.training.threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Map one row with run and chunk to run, seconds and error message, which is empty on success."""
        run, chunk = str(batch["run"][0]), int(batch["chunk"][0])
        size = self.recipe.evaluation.batch_size
        rows = self.test.slice(chunk * size, size)
        seconds = 0.0
        if run not in self.failed:
            try:
                reply = self._student(run)
                started = time.perf_counter()
                texts = reply(rows)
                seconds = time.perf_counter() - started
            except Exception as error:  # the model is at fault: other students are still decoded
                self.failed[run] = _one_line(error)
                self._forget()
        if run not in self.failed:
            self._write(run, chunk, rows, texts)
        return {"run": [run], "seconds": [seconds], "failed": [self.failed.get(run, "")]}

    def _write(self, run: str, chunk: int, rows: pa.Table, texts: Sequence[str]) -> None:
        task = self.recipe.asks
        table = pa.table(
            {
                "run_id": [run] * len(rows),
                "series_id": rows["series_id"],
                "text": texts,
                "labels": pa.array([task.parse(text).labels for text in texts], task.tables.labels),
                "truth": rows["truth"],
            }
        )
        datasets.write_part(
            f"{self.recipe.folder}/predictions/{run}", chunk, table, task.tables.predictions, self.keys[run]
        )

    def _forget(self) -> None:
        """Free the loaded student before another one needs its memory."""
        self.loaded = None
        self.held.close()

    def _student(self, run: str) -> Callable[[pa.Table], list[str]]:
        """Return the function that generates a student's responses to series."""
        if self.loaded is None or self.loaded[0] != run:
            self._forget()
            with datasets.local_copy(f"{self.recipe.folder}/students/{run}") as folder:
                self.loaded = run, self._load(Path(folder))
        return self.loaded[1]

    def _load(self, folder: Path) -> Callable[[pa.Table], list[str]]:
        """Load a student and return the function that generates its responses.

        Uses vLLM if the recipe asks for it, or by default on a GPU if it is installed and supports the model.
        """
        from tsd.inference.decoding import decode as reply
        from tsd.inference.decoding import describe
        from tsd.models.students import load_model, load_tokenizer
        from tsd.models.vision import looks

        tokenizer, gpu, most = load_tokenizer(str(folder)), self.recipe.training.gpu, self.recipe.max_new_tokens
        task, wanted = self.recipe.asks, self.recipe.evaluation.vllm
        if wanted or (wanted is None and gpu and _vllm_is_installed()):
            from tsd.inference import vllm

            if vllm.fits(folder):
                longest = max(map(len, chat_tokens(self._prompts(self.test), tokenizer)))
                engine = self.held.enter_context(vllm.Engine(folder, tokenizer, longest, most, gpu))
                return lambda rows: engine.decode(self._prompts(rows))
        model = load_model(str(folder)).to("cuda" if gpu else "cpu")
        if looks(model):
            return lambda rows: describe(model, tokenizer, task, draw(task.items(rows)), most)
        return lambda rows: reply(model, tokenizer, self._prompts(rows), max_new_tokens=most)

    def _prompts(self, series: pa.Table) -> list[str]:
        return [self.recipe.asks.student_prompt(values) for values in series["values"].to_pylist()]


def _one_line(error: Exception) -> str:
    """Format an error as one line."""
    said = next(iter(str(error).strip().splitlines()), "")
    return said if isinstance(error, TsdError) else f"{type(error).__name__}: {said}"


def _vllm_is_installed() -> bool:
    return importlib.util.find_spec("vllm") is not None


def test_series(recipe: Recipe, series: datasets.Dataset) -> pa.Table:
    """Return the first test series by id, as many as the recipe evaluates.

    Raises InputError if there are fewer.
    """
    wanted = recipe.evaluation.series
    found: list[pa.Table] = []
    for rows in series.each_part(["series_id", "split", "values", "truth", "margins"]):
        found.append(rows.filter(pc.equal(rows["split"], "test")))
        if sum(map(len, found)) >= wanted:
            return pa.concat_tables(found).slice(0, wanted).combine_chunks()
    raise InputError(
        f"evaluation.series asks for {wanted:,} test series and there are {sum(map(len, found)):,}: "
        "raise series.count"
    )


def plot_table(recipe: Recipe, series: pa.Table) -> pa.Table:
    """Render the plot of each series as a teacher sees it. Returns columns series_id and png."""
    from tsd.plots.plotter import choose_look

    items = recipe.asks.items(series)
    looks = [choose_look(recipe.plots, recipe.seed, series_id) for series_id in series["series_id"].to_pylist()]
    return pa.table({"series_id": series["series_id"], "png": pa.array(_plotter()(items, looks), pa.binary())})


def _rules(recipe: Recipe) -> Rules:
    assert isinstance(recipe.teacher, RulesTeacher)
    return Rules(recipe.teacher, recipe.asks, recipe.seed)


@lru_cache(maxsize=1)  # a worker reuses expensive objects for all parts
def _contradictions(recipe: Recipe) -> curation.Contradictions | None:
    if recipe.curation.nli is None:
        return None
    from tsd.curation.nli import Inference

    return Inference(recipe.curation.nli)


@lru_cache(maxsize=1)
def _plotter() -> Any:
    from tsd.plots.plotter import Plotter

    return Plotter()


def predictions_key(recipe: Recipe, run: str, series: datasets.Dataset) -> str:
    """Hash of what determines a run's predictions: student, series and maximum response length."""
    asked = recipe.evaluation.model_dump(include={"series", "batch_size"})
    return datasets.digest(["predictions", recipe.asks.version, run, asked, recipe.max_new_tokens, series.digest])


def series_key(recipe: Recipe) -> str:
    """Hash of what determines the series: generator, seed and the recipe's section."""
    asked = [recipe.task, recipe.asks.version, fingerprint(recipe.asks.tables.series)]
    return datasets.digest(["series", generator.VERSION, *asked, recipe.seed, recipe.series.model_dump()])


def annotations_key(recipe: Recipe, series: datasets.Dataset) -> str:
    """Hash of what determines the annotations: prompt, teacher, plots and series."""
    looks = isinstance(recipe.teacher, ModelTeacher) and recipe.teacher.sees_plots
    plots = plots_identity(recipe) if looks else []
    shown = [recipe.asks.version, recipe.teacher.identity, *plots, recipe.seed]
    return datasets.digest(["annotations", *shown, series.digest])


def plots_identity(recipe: Recipe) -> list[Any]:
    """Return what determines a plot besides its series."""
    from tsd.plots.plotter import VERSION  # matplotlib is slow to import

    return [recipe.plots.identity, VERSION]


def _run(work: Work, parts: int, outputs: Sequence[tuple[str, str]], step: Step) -> list[Parts]:
    """Compute the parts that some output lacks. Returns the parts of each output, existing and new.

    work: computes one part of every output. outputs: folder and key of each.
    """
    found = [datasets.finished_parts(folder, key) for folder, key in outputs]
    there = [part for part in range(parts) if all(part in old for old in found)]
    step.skip(sum(old[part].rows for part in there for old in found))
    missing = np.setdiff1d(np.arange(parts), there)
    if len(missing) == 0:
        return found

    claim = locks.claim(outputs[0][0])

    def make_one(part: int) -> Sequence[datasets.Part]:
        if claim:
            claim.require()  # another command may have taken over the folder from a stalled driver
        # Ray repeats the whole task of a worker that died: outputs that it has written are reused.
        written = [datasets.find_part(folder, part, key) for folder, key in outputs]
        whole = [one for one in written if one is not None]
        return whole if len(whole) == len(outputs) else work(part)

    def make(batch: dict[str, Any]) -> dict[str, Any]:
        part = int(batch["part"][0])
        return {"part": [part], "made": [json.dumps([asdict(one) for one in make_one(part)])]}

    # Ray Data carries only part numbers and counts, so its memory does not grow with the series.
    for row in nodes.done(make, missing, step):
        made = [datasets.Part(**one) for one in json.loads(row["made"])]
        for output, one in zip(found, made, strict=True):
            output[int(row["part"])] = one
        step.advance(sum(one.rows for one in made))
    return found

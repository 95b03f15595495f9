"""The stages that flow through Ray Data, part by part: generate, annotate, curate, decode.

Each finished part is on disk before Ray hears of it, so a stage that was stopped goes on with the parts that
are missing, and any number of workers gives the same files.
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
Work = Callable[[int], Sequence[datasets.Part]]  # make one part of every output
SEEN = ("series_id", "split", "values", "truth")  # of a series, by curation
SHOWN = 3  # of the parts that were lost, in the line that says so


def generate(recipe: Recipe, reporter: Reporter) -> datasets.Dataset:
    """Draw the series and measure their truth; the shares of their classes and the baselines go with them."""
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
    """Keep the plots on disk; a teacher needs none of them, it is shown its own."""
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
    """Have the teacher describe every series; what it cost and how its replies ended go with them."""
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
    """lost: parts that were there once; where replies are paid for, they come from the journal or not at all."""
    # openai and matplotlib: workers that ask nobody are ready seconds sooner without them
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
    """Sort the annotations into examples and rejects; the counts of both go with the examples."""
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
    """Decide on each annotation by itself: what the corpus as a whole decides needs all of these."""
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

            require_contradiction(recipe.curation.nli.model)  # said here, not by a worker
        lost = find_lost(folder, key, series.parts)
        (made,) = _run(work, series.parts, [(folder, key)], step)
        judged = datasets.commit(folder, schema, key, series.parts, parents, made)
    lost.say(reporter)
    return judged


@dataclass(frozen=True)
class Lost:
    """Parts of a table that were there once, and what is wrong with each; what lay there of them is set aside."""

    folder: str
    parts: Mapping[int, str]

    def say(self, reporter: Reporter) -> None:
        """Say, once they are there again, which parts were made again and why."""
        if self.parts:
            table, count = self.folder.removeprefix(datasets.study_of(self.folder)).lstrip("/"), len(self.parts)
            whys = ", ".join(
                f"{datasets.part_name(part)}: {why}" for part, why in list(self.parts.items())[:SHOWN]
            )
            more = f", and {count - SHOWN} more" if count > SHOWN else ""
            noun = "part" if count == 1 else "parts"
            reporter.say(escape(f"  remade {count:,} {noun} of {table} with the same bytes ({whys}{more})"))


def find_lost(folder: str, key: str, parts: int) -> Lost:
    """The parts that were lost. Where the manifest was damaged, none of those that are missing is known not to
    have been there."""
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
    """What came of decoding: seconds spent on each run that was not yet finished, and why some could not reply."""

    seconds: dict[str, float]
    failed: dict[str, str]


def decode(recipe: Recipe, run_ids: Sequence[str], series: datasets.Dataset, reporter: Reporter) -> Decoded:
    """Decode every student on the first test series, one predictions dataset a run.

    A student that cannot reply is left behind with the reason, and tried again by another start.
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
    """Decodes chunks of the test series; keeps the student of the last chunk loaded."""

    def __init__(self, recipe: Recipe, series: datasets.Dataset, keys: dict[str, str]) -> None:
        import torch

        self.recipe, self.keys = recipe, keys
        self.test = test_series(recipe, series)
        self.loaded: tuple[str, Callable[[pa.Table], list[str]]] | None = None
        self.held = ExitStack()  # the engine of the student that is loaded, where it has one
        self.failed: dict[str, str] = {}  # why students cannot reply: nobody waits for them twice
        if not recipe.training.gpu:
            torch.set_num_threads(recipe.training.threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One row: run and chunk in; run, seconds, and why its student cannot reply out, empty where it can."""
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
            except Exception as error:  # what a model raises is about its student: the others are decoded
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
        """Let go of the student that is loaded, before another one needs its memory."""
        self.loaded = None
        self.held.close()

    def _student(self, run: str) -> Callable[[pa.Table], list[str]]:
        """What gives a student's replies to series."""
        if self.loaded is None or self.loaded[0] != run:
            self._forget()
            with datasets.local_copy(f"{self.recipe.folder}/students/{run}") as folder:
                self.loaded = run, self._load(Path(folder))
        return self.loaded[1]

    def _load(self, folder: Path) -> Callable[[pa.Table], list[str]]:
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
    """Why a student cannot reply."""
    said = next(iter(str(error).strip().splitlines()), "")
    return said if isinstance(error, TsdError) else f"{type(error).__name__}: {said}"


def _vllm_is_installed() -> bool:
    return importlib.util.find_spec("vllm") is not None


def test_series(recipe: Recipe, series: datasets.Dataset) -> pa.Table:
    """The first test series by id, as many as the recipe evaluates on. Raises InputError if there are fewer."""
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
    """The plot of each series, as a teacher would be shown it."""
    from tsd.plots.plotter import choose_look

    items = recipe.asks.items(series)
    looks = [choose_look(recipe.plots, recipe.seed, series_id) for series_id in series["series_id"].to_pylist()]
    return pa.table({"series_id": series["series_id"], "png": pa.array(_plotter()(items, looks), pa.binary())})


def _rules(recipe: Recipe) -> Rules:
    assert isinstance(recipe.teacher, RulesTeacher)
    return Rules(recipe.teacher, recipe.asks, recipe.seed)


@lru_cache(maxsize=1)  # a worker keeps what is costly to build from part to part
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
    """What makes a run's predictions: the student, the series and how long a reply may be."""
    asked = recipe.evaluation.model_dump(include={"series", "batch_size"})
    return datasets.digest(["predictions", recipe.asks.version, run, asked, recipe.max_new_tokens, series.digest])


def series_key(recipe: Recipe) -> str:
    """What makes the series: the generator, the seed and the recipe's section."""
    asked = [recipe.task, recipe.asks.version, fingerprint(recipe.asks.tables.series)]
    return datasets.digest(["series", generator.VERSION, *asked, recipe.seed, recipe.series.model_dump()])


def annotations_key(recipe: Recipe, series: datasets.Dataset) -> str:
    """What makes the annotations: the prompt, the teacher, what it is shown and which series."""
    looks = isinstance(recipe.teacher, ModelTeacher) and recipe.teacher.sees_plots
    plots = plots_identity(recipe) if looks else []
    shown = [recipe.asks.version, recipe.teacher.identity, *plots, recipe.seed]
    return datasets.digest(["annotations", *shown, series.digest])


def plots_identity(recipe: Recipe) -> list[Any]:
    """What makes a plot besides its series."""
    from tsd.plots.plotter import VERSION  # matplotlib takes a while to load

    return [recipe.plots.identity, VERSION]


def _run(work: Work, parts: int, outputs: Sequence[tuple[str, str]], step: Step) -> list[Parts]:
    """Make the parts that not all of the outputs have yet. Returns the parts of each output, old and new.

    outputs: folder and key of each.
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
            claim.require()  # the driver may stand still, and another command may have taken the folder over
        # Ray repeats the whole task of a worker that died: what it had already written is not made again.
        written = [datasets.find_part(folder, part, key) for folder, key in outputs]
        whole = [one for one in written if one is not None]
        return whole if len(whole) == len(outputs) else work(part)

    def make(batch: dict[str, Any]) -> dict[str, Any]:
        part = int(batch["part"][0])
        return {"part": [part], "made": [json.dumps([asdict(one) for one in make_one(part)])]}

    # Ray Data carries numbers of parts and what was counted in them: its memory does not grow with the series.
    for row in nodes.done(make, missing, step):
        made = [datasets.Part(**one) for one in json.loads(row["made"])]
        for output, one in zip(found, made, strict=True):
            output[int(row["part"])] = one
        step.advance(sum(one.rows for one in made))
    return found

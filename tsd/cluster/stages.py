"""The stages that flow through Ray Data, part by part: generate, annotate, curate, decode.

Each finished part is on disk before Ray hears of it, so a stage that was stopped goes on with the parts that
are missing, and any number of workers gives the same files.
"""

import importlib.util
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from tsd import curation, drawing, scoring, store
from tsd.bare import draw
from tsd.corpus import chat_tokens
from tsd.errors import InputError
from tsd.progress import Reporter, Step
from tsd.recipe import LocalTeacher, ModelTeacher, Recipe, RulesTeacher, VllmTeacher
from tsd.schema import EXAMPLES, PLOTS, REJECTS, fingerprint
from tsd.teachers.counts import tally
from tsd.teachers.rules import Rules

Parts = dict[int, store.Part]
Work = Callable[[int], Sequence[store.Part]]  # make one part of every output
SEEN = ("series_id", "split", "values", "truth")  # of a series, by curation
MOST_TASKS = 4096  # of one stage; with more parts than that, a task makes several


def generate(recipe: Recipe, reporter: Reporter) -> store.Dataset:
    """Draw the series and measure their truth; the shares of their classes and the baselines go with them."""
    folder, key, schema = f"{recipe.folder}/series", series_key(recipe), recipe.asks.tables.series
    done = store.find_finished(folder, schema, key)
    per_part = recipe.series.blocks_per_part * drawing.BLOCK
    count = recipe.series.count

    def work(part: int) -> list[store.Part]:
        first = part * per_part
        table = drawing.draw_table(recipe.asks, recipe.series, recipe.seed, first, min(per_part, count - first))
        return [store.write_part(folder, part, table, schema, key, scoring.tally(recipe.asks, table))]

    with reporter.stage("Draw series", count, recipe.asks.unit) as step:
        if done:
            step.skip(done.rows)
            return done
        parts = -(-count // per_part)
        (made,) = _run(work, parts, [(folder, key)], step)
        counted = scoring.add(made[part].note for part in range(parts))
        return store.commit(folder, schema, key, parts, {}, made, scoring.about(recipe.asks, counted))


def draw_plots(recipe: Recipe, series: store.Dataset, reporter: Reporter) -> store.Dataset:
    """Keep the plots on disk; a teacher needs none of them, it is shown its own."""
    folder, key = f"{recipe.folder}/plots", store.digest(["plots", *plots_identity(recipe), series.digest])
    done = store.find_finished(folder, PLOTS, key)

    def work(part: int) -> list[store.Part]:
        return [store.write_part(folder, part, plot_table(recipe, series.read_part(part)), PLOTS, key)]

    with reporter.stage("Draw plots", series.rows, "plots") as step:
        if done:
            step.skip(done.rows)
            return done
        (made,) = _run(work, series.parts, [(folder, key)], step)
        return store.commit(folder, PLOTS, key, series.parts, {"series": series.digest}, made)


def annotate(recipe: Recipe, series: store.Dataset, reporter: Reporter) -> store.Dataset:
    """Have the teacher describe every series; what it cost and how its replies ended go with them."""
    folder, key = f"{recipe.folder}/annotations", annotations_key(recipe, series)
    schema, parents = recipe.asks.tables.annotations, {"series": series.digest}
    done = store.find_finished(folder, schema, key)
    rules = _rules(recipe) if isinstance(recipe.teacher, RulesTeacher) else None

    def work(part: int) -> list[store.Part]:
        assert rules
        table = rules.annotate(series.read_part(part))
        return [store.write_part(folder, part, table, schema, key, tally(table))]

    with reporter.stage(f"Ask the teacher ({recipe.teacher.name})", series.rows, "replies") as step:
        if done:
            step.skip(done.rows)
            return done
        if rules:
            (made,) = _run(work, series.parts, [(folder, key)], step)
        else:
            made = _ask(recipe, series, folder, key, step, reporter)
        counted: Counter[str] = Counter()
        for part in made.values():
            counted.update(part.note)
        return store.commit(folder, schema, key, series.parts, parents, made, dict(counted))


def _ask(recipe: Recipe, series: store.Dataset, folder: str, key: str, step: Step, reporter: Reporter) -> Parts:
    # openai and matplotlib: workers that ask nobody are ready seconds sooner without them
    if isinstance(recipe.teacher, VllmTeacher):
        from tsd.cluster import vllm

        return vllm.ask(recipe, series, folder, key, step)
    if isinstance(recipe.teacher, LocalTeacher):
        from tsd.cluster import looking

        return looking.ask(recipe, series, folder, key, step)
    from tsd.cluster import asking

    return asking.ask(recipe, series, folder, key, step, say=reporter.say)


def curate(
    recipe: Recipe, series: store.Dataset, annotations: store.Dataset, reporter: Reporter
) -> tuple[store.Dataset, store.Dataset]:
    """Sort the annotations into examples and rejects; the counts of both go with the examples."""
    kept, rejected = f"{recipe.folder}/examples", f"{recipe.folder}/rejects"
    parents = {"series": series.digest, "annotations": annotations.digest}
    key = store.digest(["curate", curation.VERSION, recipe.asks.version, recipe.curation.model_dump(), parents])
    done = store.find_finished(kept, EXAMPLES, key), store.find_finished(rejected, REJECTS, key)
    verdicts = None if all(done) else _judge(recipe, series, annotations, key, parents, reporter)

    def work(part: int) -> list[store.Part]:
        assert verdicts
        judged = verdicts.read_part(part)
        examples, rejects, counts = curation.sort_out(
            recipe.asks, annotations.read_part(part), series.read_part(part, SEEN), judged, settled
        )
        return [
            store.write_part(kept, part, examples, EXAMPLES, key, counts),
            store.write_part(rejected, part, rejects, REJECTS, key),
        ]

    with reporter.stage("Curate", annotations.rows, "replies") as step:
        if done[0] and done[1]:
            step.skip(done[0].rows + done[1].rows)
            return done[0], done[1]
        assert verdicts
        settled = curation.settle(recipe.asks, verdicts.read(curation.needed(recipe.curation)), recipe.curation)
        good, bad = _run(work, series.parts, [(kept, key), (rejected, key)], step)
        counted = curation.about(curation.add(good[part].note for part in range(series.parts)))
        return (
            store.commit(kept, EXAMPLES, key, series.parts, parents, good, counted),
            store.commit(rejected, REJECTS, key, series.parts, parents, bad),
        )


def _judge(
    recipe: Recipe,
    series: store.Dataset,
    annotations: store.Dataset,
    key: str,
    parents: dict[str, str],
    reporter: Reporter,
) -> store.Dataset:
    """Decide on each annotation by itself: what the corpus as a whole decides needs all of these."""
    folder, schema = f"{recipe.folder}/verdicts", recipe.asks.tables.verdicts
    done = store.find_finished(folder, schema, key)

    def work(part: int) -> list[store.Part]:
        said, known = annotations.read_part(part), series.read_part(part, SEEN)
        table = curation.judge(recipe.asks, said, known, recipe.curation, _contradictions(recipe))
        return [store.write_part(folder, part, table, schema, key)]

    with reporter.stage("Judge", annotations.rows, "replies") as step:
        if done:
            step.skip(done.rows)
            return done
        if recipe.curation.nli:
            from tsd.curation.inference import require_contradiction  # torch and transformers

            require_contradiction(recipe.curation.nli.model)  # said here, not by a worker
        (made,) = _run(work, series.parts, [(folder, key)], step)
        return store.commit(folder, schema, key, series.parts, parents, made)


def decode(recipe: Recipe, run_ids: Sequence[str], series: store.Dataset, reporter: Reporter) -> dict[str, float]:
    """Decode every student on the first test series, one predictions dataset a run.

    Returns the seconds spent on decoding each run that was not yet finished.
    """
    if recipe.evaluation.vllm and not _vllm_is_installed():
        raise InputError("evaluation.vllm=true needs vLLM, which is not installed here: pip install 'tsd[vllm]'")
    chunks = -(-len(test_series(recipe, series)) // recipe.evaluation.batch_size)
    schema = recipe.asks.tables.predictions
    keys = {run: predictions_key(recipe, run, series) for run in run_ids}
    folders = {run: f"{recipe.folder}/predictions/{run}" for run in run_ids}
    open_runs = [run for run in run_ids if not store.find_finished(folders[run], schema, keys[run])]
    work = [
        {"run": run, "chunk": chunk}
        for run in open_runs
        for chunk in sorted(set(range(chunks)) - set(store.finished_parts(folders[run], keys[run])))
    ]
    seconds: dict[str, float] = dict.fromkeys(open_runs, 0.0)
    with reporter.stage("Decode", len(run_ids) * chunks, "batches") as step:
        step.skip(len(run_ids) * chunks - len(work))
        if work:
            rows = ray.data.from_items(work, override_num_blocks=len(work)).map_batches(
                Decoder,
                fn_constructor_args=(recipe, series, keys),
                batch_size=1,
                concurrency=(1, min(recipe.evaluation.workers, len(work))),
                num_cpus=1,
                num_gpus=1 if recipe.training.gpu else 0,
            )
            for row in rows.iter_rows():
                seconds[row["run"]] += row["seconds"]
                step.advance(1, row["run"])
        for run in open_runs:
            store.commit(folders[run], schema, keys[run], chunks, {"series": series.digest})
    return seconds


class Decoder:
    """Decodes chunks of the test series; keeps the student of the last chunk loaded."""

    def __init__(self, recipe: Recipe, series: store.Dataset, keys: dict[str, str]) -> None:
        import torch

        self.recipe, self.keys = recipe, keys
        self.test = test_series(recipe, series)
        self.loaded: tuple[str, Callable[[pa.Table], list[str]]] | None = None
        self.held = ExitStack()  # the engine of the student that is loaded, where it has one
        if not recipe.training.gpu:
            torch.set_num_threads(recipe.training.threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One row: run and chunk in; run and seconds out."""
        task = self.recipe.asks
        run, chunk = str(batch["run"][0]), int(batch["chunk"][0])
        reply = self._student(run)
        size = self.recipe.evaluation.batch_size
        rows = self.test.slice(chunk * size, size)
        started = time.perf_counter()
        texts = reply(rows)
        seconds = time.perf_counter() - started
        table = pa.table(
            {
                "run_id": [run] * len(rows),
                "series_id": rows["series_id"],
                "text": texts,
                "labels": pa.array([task.parse(text).labels for text in texts], task.tables.labels),
                "truth": rows["truth"],
            }
        )
        store.write_part(
            f"{self.recipe.folder}/predictions/{run}", chunk, table, task.tables.predictions, self.keys[run]
        )
        return {"run": [run], "seconds": [seconds]}

    def _student(self, run: str) -> Callable[[pa.Table], list[str]]:
        """What gives a student's replies to series."""
        if self.loaded is None or self.loaded[0] != run:
            self.loaded = None  # before another one needs its memory
            self.held.close()
            with store.local_copy(f"{self.recipe.folder}/students/{run}") as folder:
                self.loaded = run, self._load(Path(folder))
        return self.loaded[1]

    def _load(self, folder: Path) -> Callable[[pa.Table], list[str]]:
        from tsd.decoding import decode as reply
        from tsd.decoding import describe
        from tsd.sight import looks
        from tsd.students import load_model, load_tokenizer

        tokenizer, gpu, most = load_tokenizer(str(folder)), self.recipe.training.gpu, self.recipe.max_new_tokens
        task, wanted = self.recipe.asks, self.recipe.evaluation.vllm
        if wanted or (wanted is None and gpu and _vllm_is_installed()):
            from tsd import vllm_decoding

            if vllm_decoding.fits(folder):
                longest = max(map(len, chat_tokens(self._prompts(self.test), tokenizer)))
                engine = self.held.enter_context(vllm_decoding.Engine(folder, tokenizer, longest, most, gpu))
                return lambda rows: engine.decode(self._prompts(rows))
        model = load_model(str(folder)).to("cuda" if gpu else "cpu")
        if looks(model):
            return lambda rows: describe(model, tokenizer, task, draw(task.items(rows)), most)
        return lambda rows: reply(model, tokenizer, self._prompts(rows), max_new_tokens=most)

    def _prompts(self, series: pa.Table) -> list[str]:
        return [self.recipe.asks.student_prompt(values) for values in series["values"].to_pylist()]


def _vllm_is_installed() -> bool:
    return importlib.util.find_spec("vllm") is not None


def test_series(recipe: Recipe, series: store.Dataset) -> pa.Table:
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
    from tsd.plots import (  # matplotlib: workers that draw no plots are ready sooner without it
        choose_look,
    )

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
    from tsd.curation.inference import Inference

    return Inference(recipe.curation.nli)


@lru_cache(maxsize=1)
def _plotter() -> Any:
    from tsd.plots import Plotter

    return Plotter()


def predictions_key(recipe: Recipe, run: str, series: store.Dataset) -> str:
    """What makes a run's predictions: the student, the series and how long a reply may be."""
    asked = recipe.evaluation.model_dump(include={"series", "batch_size"})
    return store.digest(["predictions", recipe.asks.version, run, asked, recipe.max_new_tokens, series.digest])


def series_key(recipe: Recipe) -> str:
    """What makes the series: the generator, the seed and the recipe's section."""
    asked = [recipe.task, recipe.asks.version, fingerprint(recipe.asks.tables.series)]
    return store.digest(["series", drawing.VERSION, *asked, recipe.seed, recipe.series.model_dump()])


def annotations_key(recipe: Recipe, series: store.Dataset) -> str:
    """What makes the annotations: the prompt, the teacher, what it is shown and which series."""
    looks = isinstance(recipe.teacher, ModelTeacher) and recipe.teacher.sees_plots
    plots = plots_identity(recipe) if looks else []
    shown = [recipe.asks.version, recipe.teacher.identity, *plots, recipe.seed]
    return store.digest(["annotations", *shown, series.digest])


def plots_identity(recipe: Recipe) -> list[Any]:
    """What makes a plot besides its series."""
    from tsd.plots import VERSION  # matplotlib takes a while to load

    return [recipe.plots.identity, VERSION]


def _run(work: Work, parts: int, outputs: Sequence[tuple[str, str]], step: Step) -> list[Parts]:
    """Make the parts that not all of the outputs have yet. Returns the parts of each output, old and new.

    outputs: folder and key of each.
    """
    found = [store.finished_parts(folder, key) for folder, key in outputs]
    there = [part for part in range(parts) if all(part in old for old in found)]
    step.skip(sum(old[part].rows for part in there for old in found))
    missing = np.setdiff1d(np.arange(parts), there)
    if len(missing) == 0:
        return found

    def make_one(part: int) -> Sequence[store.Part]:
        # Ray repeats the whole task of a worker that died: what it had already written is not made again.
        written = [store.find_part(folder, part, key) for folder, key in outputs]
        whole = [one for one in written if one is not None]
        return whole if len(whole) == len(outputs) else work(part)

    def make(batch: dict[str, Any]) -> dict[str, Any]:
        made = [json.dumps([asdict(one) for one in make_one(int(part))]) for part in missing[batch["id"]]]
        return {"part": missing[batch["id"]], "made": made}

    tasks = min(len(missing), MOST_TASKS)
    # Ray Data carries numbers of parts and what was counted in them: its memory does not grow with the series.
    rows = ray.data.range(len(missing), override_num_blocks=tasks).map_batches(make, batch_size=1)
    for row in rows.iter_rows():
        made = [store.Part(**one) for one in json.loads(row["made"])]
        for output, one in zip(found, made, strict=True):
            output[int(row["part"])] = one
        step.advance(sum(one.rows for one in made))
    return found

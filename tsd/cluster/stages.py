"""The stages that flow through Ray Data, part by part: generate, annotate, curate, decode.

Each finished part is on disk before Ray hears of it, so a stage that was stopped goes on with the parts that
are missing, and any number of workers gives the same files.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from tsd import store
from tsd.curation import curate as curate_table
from tsd.errors import InputError
from tsd.language import PROMPT_VERSION, parse_reply, student_prompt
from tsd.progress import Reporter, Step
from tsd.recipe import Recipe
from tsd.schema import ANNOTATIONS, EXAMPLES, LABELS, PREDICTIONS, REJECTS, SERIES
from tsd.series import processes
from tsd.teachers import make_teacher

Work = Callable[[int], int]  # make one part, return its rows


def generate(recipe: Recipe, reporter: Reporter) -> store.Dataset:
    """Draw the series and measure their truth."""
    folder, key = f"{recipe.folder}/series", series_key(recipe)
    done = store.find_finished(folder, SERIES, key)
    per_part = recipe.series.blocks_per_part * processes.BLOCK
    count = recipe.series.count

    def work(part: int) -> int:
        first = part * per_part
        table = processes.draw_table(recipe.series, recipe.seed, first, min(per_part, count - first))
        store.write_part(folder, part, table, SERIES, key)
        return len(table)

    with reporter.stage("Draw series", count, "series") as step:
        if done:
            step.skip(done.rows)
            return done
        parts = -(-count // per_part)
        _run(work, parts, [store.finished_parts(folder, key)], step)
        return store.commit(folder, SERIES, key, parts, {})


def annotate(recipe: Recipe, series: store.Dataset, reporter: Reporter) -> store.Dataset:
    """Have the teacher describe every series."""
    folder, key = f"{recipe.folder}/annotations", annotations_key(recipe, series)
    done = store.find_finished(folder, ANNOTATIONS, key)

    def work(part: int) -> int:
        teacher = make_teacher(recipe.teacher, recipe.plots, recipe.seed)
        table = teacher.annotate(series.read_part(part))
        store.write_part(folder, part, table, ANNOTATIONS, key)
        return len(table)

    with reporter.stage(f"Ask the teacher ({recipe.teacher.name})", series.rows, "replies") as step:
        if done:
            step.skip(done.rows)
            return done
        make_teacher(recipe.teacher, recipe.plots, recipe.seed)  # a missing key is said here, not by a worker
        _run(work, series.parts, [store.finished_parts(folder, key)], step)
        return store.commit(folder, ANNOTATIONS, key, series.parts, {"series": series.digest})


def curate(
    recipe: Recipe, series: store.Dataset, annotations: store.Dataset, reporter: Reporter
) -> tuple[store.Dataset, store.Dataset]:
    """Sort the annotations into examples and rejects."""
    kept, rejected = f"{recipe.folder}/examples", f"{recipe.folder}/rejects"
    parents = {"series": series.digest, "annotations": annotations.digest}
    key = store.digest(["curate", PROMPT_VERSION, recipe.curation.model_dump(), parents])
    done = store.find_finished(kept, EXAMPLES, key), store.find_finished(rejected, REJECTS, key)

    def work(part: int) -> int:
        examples, rejects = curate_table(annotations.read_part(part), series.read_part(part), recipe.curation)
        store.write_part(kept, part, examples, EXAMPLES, key)
        store.write_part(rejected, part, rejects, REJECTS, key)
        return len(examples) + len(rejects)

    with reporter.stage("Curate", annotations.rows, "replies") as step:
        if done[0] and done[1]:
            step.skip(done[0].rows + done[1].rows)
            return done[0], done[1]
        both = [store.finished_parts(kept, key), store.finished_parts(rejected, key)]
        _run(work, series.parts, both, step)
        return (
            store.commit(kept, EXAMPLES, key, series.parts, parents),
            store.commit(rejected, REJECTS, key, series.parts, parents),
        )


def decode(recipe: Recipe, run_ids: Sequence[str], series: store.Dataset, reporter: Reporter) -> dict[str, float]:
    """Decode every student on the first test series, one predictions dataset a run.

    Returns the seconds spent on decoding each run that was not yet finished.
    """
    chunks = -(-len(test_series(recipe, series)) // recipe.evaluation.batch_size)
    keys = {run: predictions_key(recipe, run, series) for run in run_ids}
    folders = {run: f"{recipe.folder}/predictions/{run}" for run in run_ids}
    open_runs = [run for run in run_ids if not store.find_finished(folders[run], PREDICTIONS, keys[run])]
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
            store.commit(folders[run], PREDICTIONS, keys[run], chunks, {"series": series.digest})
    return seconds


class Decoder:
    """Decodes chunks of the test series; keeps the student of the last chunk loaded."""

    def __init__(self, recipe: Recipe, series: store.Dataset, keys: dict[str, str]) -> None:
        import torch

        self.recipe, self.keys = recipe, keys
        self.test = test_series(recipe, series)
        self.device = "cuda" if recipe.training.gpu else "cpu"
        self.loaded: tuple[str, Any, Any] | None = None
        if not recipe.training.gpu:
            torch.set_num_threads(recipe.training.threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One row: run and chunk in; run and seconds out."""
        from tsd.decoding import decode as reply

        run, chunk = str(batch["run"][0]), int(batch["chunk"][0])
        model, tokenizer = self._student(run)
        size = self.recipe.evaluation.batch_size
        rows = self.test.slice(chunk * size, size)
        prompts = [student_prompt(values) for values in rows["values"].to_pylist()]
        started = time.perf_counter()
        texts = reply(model, tokenizer, prompts, self.recipe.evaluation.max_new_tokens)
        seconds = time.perf_counter() - started
        table = pa.table(
            {
                "run_id": [run] * len(rows),
                "series_id": rows["series_id"],
                "text": texts,
                "labels": pa.array([parse_reply(text).labels for text in texts], LABELS),
                "truth": rows["truth"],
            }
        )
        store.write_part(f"{self.recipe.folder}/predictions/{run}", chunk, table, PREDICTIONS, self.keys[run])
        return {"run": [run], "seconds": [seconds]}

    def _student(self, run: str) -> tuple[Any, Any]:
        from tsd.students import load_model, load_tokenizer

        if self.loaded is None or self.loaded[0] != run:
            with store.local_copy(f"{self.recipe.folder}/students/{run}") as folder:
                self.loaded = run, load_model(folder).to(self.device), load_tokenizer(folder)
        return self.loaded[1:]


def test_series(recipe: Recipe, series: store.Dataset) -> pa.Table:
    """The first test series by id, as many as the recipe evaluates on. Raises InputError if there are fewer."""
    wanted = recipe.evaluation.series
    rows = series.read(["series_id", "split", "values", "truth"])
    test = rows.filter(pc.equal(rows["split"], "test")).slice(0, wanted)
    if len(test) < wanted:
        raise InputError(
            f"evaluation.series asks for {wanted:,} test series and there are {len(test):,}: raise series.count"
        )
    return test.combine_chunks()


def predictions_key(recipe: Recipe, run: str, series: store.Dataset) -> str:
    """What makes a run's predictions: the student, the series and how long a reply may be."""
    asked = recipe.evaluation.model_dump(include={"series", "batch_size", "max_new_tokens"})
    return store.digest(["predictions", PROMPT_VERSION, run, asked, series.digest])


def series_key(recipe: Recipe) -> str:
    """What makes the series: the generator, the seed and the recipe's section."""
    return store.digest(["series", processes.VERSION, recipe.seed, recipe.series.model_dump()])


def annotations_key(recipe: Recipe, series: store.Dataset) -> str:
    """What makes the annotations: the prompt, the teacher, what it is shown and which series."""
    from tsd.plots import VERSION as DRAWING  # matplotlib takes a while to load

    return store.digest(
        [
            "annotations",
            PROMPT_VERSION,
            recipe.teacher.identity,
            recipe.plots.identity,
            DRAWING,
            recipe.seed,
            series.digest,
        ]
    )


def _run(work: Work, parts: int, finished: Sequence[dict[int, int]], step: Step) -> None:
    """Make the parts that not all of the outputs have yet."""
    there = [part for part in range(parts) if all(part in found for found in finished)]
    step.skip(sum(found[part] for part in there for found in finished))
    missing = sorted(set(range(parts)) - set(there))
    if not missing:
        return

    def make(batch: dict[str, Any]) -> dict[str, Any]:
        return {"rows": np.array([work(int(part)) for part in batch["item"]])}

    rows = ray.data.from_items(missing, override_num_blocks=len(missing)).map_batches(make, batch_size=1)
    for row in rows.iter_rows():
        step.advance(row["rows"])

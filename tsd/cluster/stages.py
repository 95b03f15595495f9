"""The stages that run on Ray Data, part by part: generate, annotate, curate, decode.

Each finished part is on disk before Ray receives its result. So a stopped stage resumes with the missing parts,
and the files do not depend on the number of workers.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from rich.markup import escape

from tsd import curation
from tsd.cluster import nodes
from tsd.evaluation import scoring
from tsd.generation import generator
from tsd.progress import Reporter, Step
from tsd.recipe import LocalTeacher, ModelTeacher, Recipe, RulesTeacher, VllmTeacher
from tsd.storage import datasets, folders, keys, locks, manifests
from tsd.storage.schemas import EXAMPLES, PLOTS, REJECTS, fingerprint
from tsd.teachers.api.counts import tally
from tsd.teachers.rules import Rules

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
    folder, key = f"{recipe.folder}/plots", keys.digest(["plots", *plots_identity(recipe), series.digest])
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
    key = keys.digest(["curate", curation.VERSION, recipe.asks.version, recipe.curation.model_dump(), parents])
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
            table, count = self.folder.removeprefix(folders.study_of(self.folder)).lstrip("/"), len(self.parts)
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
    if manifests.has_damaged_manifest(folder):
        lost |= datasets.unreadable_parts(folder)
        there = datasets.finished_parts(folder, key)
        lost |= {part: "it is missing, as is a whole manifest" for part in range(parts) if part not in there}
    for part in lost:
        datasets.set_aside(folder, part)
    return Lost(folder, lost)


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


def series_key(recipe: Recipe) -> str:
    """Hash of what determines the series: generator, seed and the recipe's section."""
    asked = [recipe.task, recipe.asks.version, fingerprint(recipe.asks.tables.series)]
    return keys.digest(["series", generator.VERSION, *asked, recipe.seed, recipe.series.model_dump()])


def annotations_key(recipe: Recipe, series: datasets.Dataset) -> str:
    """Hash of what determines the annotations: prompt, teacher, plots and series."""
    looks = isinstance(recipe.teacher, ModelTeacher) and recipe.teacher.sees_plots
    plots = plots_identity(recipe) if looks else []
    shown = [recipe.asks.version, recipe.teacher.identity, *plots, recipe.seed]
    return keys.digest(["annotations", *shown, series.digest])


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

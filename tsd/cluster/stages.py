"""The stages that make tables with Ray Data, part by part: generate, annotate, curate."""

from collections import Counter
from collections.abc import Collection
from functools import lru_cache

from tsd import curation
from tsd.cluster import parts
from tsd.cluster.parts import Target
from tsd.evaluation import scoring
from tsd.generation import generator
from tsd.progress import Reporter, Step
from tsd.recipe import LocalTeacher, Recipe, VllmTeacher
from tsd.storage import datasets
from tsd.storage.schemas import EXAMPLES, PLOTS, REJECTS
from tsd.study import identity
from tsd.study.lost_parts import find_lost
from tsd.study.plot_tables import plot_table
from tsd.teachers import in_process
from tsd.teachers.api.counts import tally

SEEN = ("series_id", "split", "values", "truth")  # columns of a series that curation uses


def generate(recipe: Recipe, reporter: Reporter) -> datasets.Dataset:
    """Generate the series and measure their true labels. Class shares and baselines are stored as metadata."""
    folder, key, schema = f"{recipe.folder}/series", identity.series_key(recipe), recipe.asks.tables.series
    done = datasets.find_finished(folder, schema, key)
    per_part = recipe.series.blocks_per_part * generator.BLOCK
    count = recipe.series.count

    def work(_: str, part: int) -> list[datasets.Part]:
        first = part * per_part
        table = generator.draw_table(recipe.asks, recipe.series, recipe.seed, first, min(per_part, count - first))
        return [datasets.write_part(folder, part, table, schema, key, scoring.tally(recipe.asks, table))]

    with reporter.stage("Draw series", count, recipe.asks.unit) as step:
        if done:
            step.skip(done.rows)
            return done
        total = -(-count // per_part)
        lost = find_lost(folder, key, total)
        (made,) = parts.make(work, [Target(((folder, key),), total)], step).parts[""]
        counted = scoring.add(made[part].note for part in range(total))
        drawn = datasets.commit(folder, schema, key, total, {}, made, scoring.about(recipe.asks, counted))
    lost.say(reporter)
    return drawn


def draw_plots(recipe: Recipe, series: datasets.Dataset, reporter: Reporter) -> datasets.Dataset:
    """Render the plots to disk. Optional: a teacher renders its own."""
    folder, key = f"{recipe.folder}/plots", identity.plots_key(recipe, series)
    done = datasets.find_finished(folder, PLOTS, key)

    def work(_: str, part: int) -> list[datasets.Part]:
        return [datasets.write_part(folder, part, plot_table(recipe, series.read_part(part)), PLOTS, key)]

    with reporter.stage("Draw plots", series.rows, "plots") as step:
        if done:
            step.skip(done.rows)
            return done
        lost = find_lost(folder, key, series.parts)
        (made,) = parts.make(work, [Target(((folder, key),), series.parts)], step).parts[""]
        drawn = datasets.commit(folder, PLOTS, key, series.parts, {"series": series.digest}, made)
    lost.say(reporter)
    return drawn


def annotate(recipe: Recipe, series: datasets.Dataset, reporter: Reporter) -> datasets.Dataset:
    """Annotate every series with the teacher. Cost and status counts are stored as metadata."""
    folder, key = f"{recipe.folder}/annotations", identity.annotations_key(recipe, series)
    schema, parents = recipe.asks.tables.annotations, {"series": series.digest}
    done = datasets.find_finished(folder, schema, key)

    def work(_: str, part: int) -> list[datasets.Part]:
        table = in_process.annotate(recipe, series.read_part(part))
        return [datasets.write_part(folder, part, table, schema, key, tally(table))]

    with reporter.stage(f"Ask the teacher ({recipe.teacher.name})", series.rows, "replies") as step:
        if done:
            step.skip(done.rows)
            return done
        lost = find_lost(folder, key, series.parts)
        if isinstance(recipe.teacher, in_process.KINDS):
            (made,) = parts.make(work, [Target(((folder, key),), series.parts)], step).parts[""]
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
) -> parts.Parts:
    """Annotate the missing parts with the teacher of the recipe.

    lost: parts that existed before; for paid teachers they are restored from the journal only.
    """
    # Imported here: openai and matplotlib delay the start of workers that do not need them.
    if isinstance(recipe.teacher, VllmTeacher):
        from tsd.cluster import engines

        return engines.ask(recipe, series, folder, key, step, say=reporter.say)
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
    key = identity.curation_key(recipe, series, annotations)
    done = datasets.find_finished(kept, EXAMPLES, key), datasets.find_finished(rejected, REJECTS, key)
    whole = all(done) and datasets.find_finished(f"{recipe.folder}/verdicts", recipe.asks.tables.verdicts, key)
    verdicts = None if whole else _judge(recipe, series, annotations, key, parents, reporter)

    def work(_: str, part: int) -> list[datasets.Part]:
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
        good, bad = parts.make(work, [Target(((kept, key), (rejected, key)), series.parts)], step).parts[""]
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

    def work(_: str, part: int) -> list[datasets.Part]:
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
        (made,) = parts.make(work, [Target(((folder, key),), series.parts)], step).parts[""]
        judged = datasets.commit(folder, schema, key, series.parts, parents, made)
    lost.say(reporter)
    return judged


@lru_cache(maxsize=1)  # a worker reuses expensive objects for all parts
def _contradictions(recipe: Recipe) -> curation.Contradictions | None:
    if recipe.curation.nli is None:
        return None
    from tsd.curation.nli import Inference

    return Inference(recipe.curation.nli)

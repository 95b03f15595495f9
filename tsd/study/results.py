"""The results of a study: scores of its students, the runs table, and what the report shows. Needs no Ray."""

import base64
import importlib.metadata
import io
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

import tsd
from tsd.errors import StorageError
from tsd.evaluation import metrics, scoring
from tsd.evaluation.laws import FittedLaw
from tsd.models import card
from tsd.plots.figures import style
from tsd.progress import Reporter
from tsd.recipe import ModelTeacher, Recipe, to_yaml
from tsd.recipe.additions import METRICS
from tsd.reporting import report as reporting
from tsd.storage import datasets, folders, keys, manifests
from tsd.storage.schemas import fingerprint
from tsd.study import comparisons, identity, placement, provenance
from tsd.study.context import CPU_SECONDS, TIMINGS, StudyContext
from tsd.study.lost_parts import find_lost
from tsd.study.plot_tables import plot_table
from tsd.study.scored_series import test_series
from tsd.training.runs import RunRecord

SAMPLES = 8


def score_runs(
    study: StudyContext, records: Mapping[str, RunRecord], seconds: Mapping[str, float], parents: Mapping[str, str]
) -> pa.Table:
    """Score the predictions of every run and write the runs table. Returns it.

    records, seconds: by run id; seconds: spent on decoding by this start. parents: digests of series and examples.
    """
    rows = []
    for run_id, known in records.items():
        # Seconds of the first decoding count, if parts were lost since.
        record = replace(known, decode_seconds=known.decode_seconds or seconds.get(run_id))
        if record != known:
            folders.write_json(f"{study.recipe.folder}/records", f"{run_id}.json", record.as_dict())
        said = study.predictions_of(run_id).read()
        found = scoring.score(said, study.task)
        for name in study.recipe.evaluation.metrics:
            found[name] = metrics.measure(name, METRICS[name].measure, said)
        scored = {name: found[name].as_dict() for name in study.scores}
        _complete_card(study, run_id, scored)
        rows.append({**record.as_dict(), "teacher": study.teacher, **scored})
    rows.sort(key=lambda row: (row["parameters"], row["examples"], row["seed"]))
    table = pa.Table.from_pylist(rows, study.tables.runs)
    write_runs(study.recipe, table, parents, study.reporter)
    for row in table.to_pylist():
        scores = {name: row[name]["value"] for name in study.scores}
        study.tracker.finish(row, scores, int(time.time() * 1000))
    return table


def drop_predictions_of_other_engines(study: StudyContext, keys: Mapping[str, str]) -> None:
    """Delete predictions that another engine made, so that they are made again: all of a study's come from one.

    keys: of the predictions that are wanted, by run id. Where the folder keeps no recipe, nothing is deleted: then
    another key may mean another recipe, and the caller refuses the folder.
    """
    if provenance.read(study.recipe) is None:
        return
    for run_id, key in keys.items():
        folder = f"{study.recipe.folder}/predictions/{run_id}"
        try:
            datasets.require_made_by(folder, key)
        except StorageError:
            folders.delete_folder(folder)
            study.reporter.say(f"  predictions/{run_id} came from another engine: they are made again")


def _complete_card(study: StudyContext, run_id: str, scores: Mapping[str, Mapping[str, float]]) -> None:
    """Rewrite a student's model card with its scores. One whose metadata were deleted keeps its card."""
    folder = f"{study.recipe.folder}/students/{run_id}"
    said = folders.read_fields(folder, card.CARD)
    if said is not None:
        folders.write_bytes(folder, card.README, card.render(said, scores, study.recipe.asks).encode())


def write_runs(recipe: Recipe, runs: pa.Table, parents: Mapping[str, str], reporter: Reporter) -> None:
    """Write the runs table of a study, unless the same table exists."""
    folder, schema = f"{recipe.folder}/runs", recipe.asks.tables.runs
    key = keys.digest(["runs", runs.to_pylist(), dict(parents), *identity.added_metrics(recipe)])
    lost = None
    if manifests.made_by(folder) == key:
        if datasets.find_finished(folder, schema, key):
            return
        lost = find_lost(folder, key, 1)
    else:
        folders.delete_folder(folder)
    made = {0: datasets.write_part(folder, 0, runs, schema, key)}
    datasets.commit(folder, schema, key, 1, parents, made)
    if lost:
        lost.say(reporter)


def read_own_runs(study: StudyContext) -> pa.Table:
    """Read the runs table. Raises StorageError if it holds runs, or metrics, of another recipe."""
    folder = f"{study.recipe.folder}/runs"
    manifest = manifests.whole_manifest(folder)
    if manifest and manifest["schema"] != fingerprint(study.tables.runs):
        raise StorageError(
            f"{folder} was written with other evaluation.metrics, or by another version of tsd: run "
            "`tsd evaluate` with this recipe first"
        )
    runs = study.open("runs").read()
    planned = {run.run_id for run in study.planned_runs()}
    if others := [run_id for run_id in runs["run_id"].to_pylist() if run_id not in planned]:
        raise StorageError(
            f"{study.recipe.folder}/runs was made from another recipe: it holds {others[0]}, which this recipe "
            "does not train: name another folder with --out, or run `tsd evaluate` with this recipe first"
        )
    return runs


def write_report(study: StudyContext, shown: reporting.Study) -> None:
    """Write the report's page and its scaling figure into the study's folder, and hand the page to MLflow."""
    page = reporting.write(shown)
    folders.write_bytes(study.recipe.folder, "report.html", page.encode())
    study.tracker.close(page)
    picture = io.BytesIO()
    figure = reporting.scaling_figure(study.recipe.asks, shown.runs, shown.baselines, shown.fits)
    with style():
        figure.savefig(picture, format="png", dpi=144)
    folders.write_bytes(study.recipe.folder, "scaling.png", picture.getvalue())


def assemble(
    study: StudyContext, runs: pa.Table, fits: dict[str, FittedLaw | str], machines: Mapping[str, float]
) -> reporting.Study:
    """Collect the content of a report. machines: the number of CPUs and GPUs, as "CPU" and "GPU"."""
    recipe = study.recipe
    series, annotations, examples = (study.open(name) for name in ("series", "annotations", "examples"))
    failed = study.failures()
    test = test_series(recipe, series)
    said = study.predictions_of(reporting.best(runs)["run_id"]).read()
    seconds: dict[str, float] = folders.read_fields(recipe.folder, TIMINGS) or {}
    known = comparisons.lookup(recipe, runs)
    return reporting.Study(
        title=recipe.name,
        task=recipe.asks,
        recipe_yaml=to_yaml(recipe),
        runs=runs,
        baselines=scoring.baselines(recipe.asks, test),
        fits=fits,
        samples=_samples(study, said, test, annotations),
        seconds=seconds,
        cpu_seconds=folders.read_fields(recipe.folder, CPU_SECONDS) or {},
        useful_share=useful_share(recipe, runs, seconds, machines),
        clear=scoring.without_ties(recipe.asks, said, test),
        classes=series.about["classes"],
        teacher=study.teacher,
        counts=examples.about,
        beside=_beside(said, annotations),
        facts=_facts(study, series, test) | {f"Failed: {run_id}": reason for run_id, reason in failed.items()},
        objectives=comparisons.distilled_against_sft(study.recipe, known),
        modalities=comparisons.image_against_text(study.recipe, known),
        modalities_at_flops=comparisons.image_against_text_at_flops(study.recipe, known),
    )


def useful_share(
    recipe: Recipe, runs: pa.Table, seconds: Mapping[str, float], machines: Mapping[str, float]
) -> float:
    """Share of the wall time in which students trained or decoded, given the number of concurrent workers."""
    resource = "GPU" if recipe.training.gpu else "CPU"
    there = machines.get(resource, 1)
    needs = {student.name: placement.need(student, recipe.training) for student in recipe.students.models}
    shares = {name: need.workers * (need.gpus or need.cpus) / there for name, need in needs.items()}
    least = 1 / min(
        recipe.training.concurrent_trials, len(runs)
    )  # minimum share of the machines attributed to a trial
    trained = sum(max(least, shares[row["student"]]) * row["train_seconds"] for row in runs.to_pylist())
    decoded = (pc.sum(runs["decode_seconds"]).as_py() or 0.0) / recipe.evaluation.workers
    return float((trained + decoded) / sum(seconds.values()))


def _beside(said: pa.Table, annotations: datasets.Dataset) -> dict[str, scoring.Beside]:
    """Compare the best student with its teacher on the scored series."""
    ids = pc.unique(said["series_id"])
    rows = (
        part.filter(pc.is_in(part["series_id"], ids)) for part in annotations.each_part(["series_id", "labels"])
    )
    return scoring.beside_teacher(said, pa.concat_tables(rows))


def _samples(
    study: StudyContext, predictions: pa.Table, test: pa.Table, annotations: datasets.Dataset
) -> list[reporting.Sample]:
    """Select test series with the texts of teacher and best student: up to half of them are mistakes."""
    said = predictions.to_pylist()
    wrong = [i for i, row in enumerate(said) if row["labels"] != row["truth"]][: SAMPLES // 2]
    right = [i for i, row in enumerate(said) if row["labels"] == row["truth"]][: SAMPLES - len(wrong)]
    ids = pa.array([said[i]["series_id"] for i in sorted(wrong + right)])
    rows = annotations.read(["series_id", "text", "labels"])
    taught = {row["series_id"]: row for row in rows.filter(pc.is_in(rows["series_id"], ids)).to_pylist()}
    values = {row["series_id"]: row["values"] for row in test.to_pylist()}
    seen = _seen(study.recipe, test.filter(pc.is_in(test["series_id"], ids)))
    return [
        reporting.Sample(
            series_id=row["series_id"],
            values=values[row["series_id"]],
            truth=row["truth"],
            teacher=taught[row["series_id"]]["text"] or "",
            student=row["text"],
            student_labels=row["labels"],
            teacher_labels=taught[row["series_id"]]["labels"],
            seen=seen.get(row["series_id"]),
        )
        for row in (said[i] for i in sorted(wrong + right))
    ]


def _seen(recipe: Recipe, series: pa.Table) -> dict[int, str]:
    """Return the plots that the teacher was shown, as base64 PNGs by series id; empty if it uses no images."""
    teacher = recipe.teacher
    if not (isinstance(teacher, ModelTeacher) and teacher.sees_images):
        return {}
    plots = plot_table(recipe, series).to_pylist()
    return {plot["series_id"]: base64.b64encode(plot["png"]).decode() for plot in plots}


def _facts(study: StudyContext, series: datasets.Dataset, test: pa.Table) -> dict[str, str]:
    """Collect the facts of a report: folder, date, series, machine, versions and tracking address."""
    packages = ("ray", "torch", "transformers", "mlflow")
    return {
        "Study": study.recipe.folder,
        "Written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "Series": f"{series.rows:,}, of which {len(test):,} of the test split are scored",
        "Series digest": series.digest,
        "Machine": f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()}",
        "Versions": ", ".join(
            [
                f"tsd {tsd.__version__}",
                *(f"{name} {importlib.metadata.version(name)}" for name in packages),
            ]
        ),
        "MLflow": study.recipe.tracking.uri,
    }

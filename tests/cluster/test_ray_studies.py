"""Real local Ray: whole studies, killed and restarted, on one and on four workers."""

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from support.commands import BRIEF, command, ended, kill_once, run, run_on_one_ray
from support.cross_encoder import save_cross_encoder

from tsd.curation import review
from tsd.evaluation import scoring
from tsd.recipe import load
from tsd.storage import datasets
from tsd.storage.schemas import EXAMPLES, PLOTS, REJECTS
from tsd.tasks import SINGLE

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]

TABLES = ("series", "annotations", "verdicts", "examples", "rejects")


def contents(folder: Path) -> dict[str, str]:
    """The digest of every file below a folder, by relative path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def tables(study: Path) -> dict[str, dict[str, str]]:
    """The files of the tables that promise to be the same, by table."""
    return {name: contents(study / name) for name in TABLES}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A study that ran from start to end on one worker and kept its plots, and what it printed."""
    out = tmp_path_factory.mktemp("undisturbed")
    printed = run(command(out, "plots.store=true"), cpus=1)
    return out / "tiny", printed


def test_a_study_ends_with_a_report_and_prints_no_noise(undisturbed: tuple[Path, str]) -> None:
    study, printed = undisturbed
    page = (study / "report.html").read_text()
    assert "0.03M" in page
    assert (study / "scaling.png").stat().st_size > 10_000
    assert str(study / "report.html") in printed
    for noise in (
        "WARNING",
        "INFO",
        "ray::",
        "Traceback",
        "alembic",
        "Configuration for experiment",
        "(raylet)",
    ):
        assert noise not in printed
    progress = re.compile(r": \d+% after ")  # every 10 s, so more on a slow machine
    assert len([line for line in printed.splitlines() if not progress.search(line)]) < 80


def test_every_table_of_a_study_has_its_schema_and_counts_its_rows(undisturbed: tuple[Path, str]) -> None:
    study, _ = undisturbed
    rows = {
        name: datasets.open_dataset(str(study / name), schema).read().num_rows
        for name, schema in {
            "series": SINGLE.tables.series,
            "annotations": SINGLE.tables.annotations,
            "examples": EXAMPLES,
            "rejects": REJECTS,
            "runs": SINGLE.tables.runs,
        }.items()
    }
    assert rows["series"] == rows["annotations"] == rows["examples"] + rows["rejects"] == 6000
    assert rows["runs"] == 2


def test_the_class_table_is_printed_and_goes_with_the_series_beside_their_baselines(
    undisturbed: tuple[Path, str],
) -> None:
    study, printed = undisturbed
    lines = [line.split() for line in printed.splitlines()]
    series = datasets.open_dataset(str(study / "series"), SINGLE.tables.series)
    rows = series.read()
    shares = scoring.class_table(SINGLE, rows)
    assert series.about["classes"] == shares
    test = rows.filter([split == "test" for split in rows["split"].to_pylist()])
    assert series.about["baselines"] == scoring.baselines(SINGLE, test)
    for facet, classes in SINGLE.classes.items():
        (said,) = (line for line in lines if line[:2] == [facet, classes[0]])
        assert said[1::2] == list(classes)
        assert said[2::2] == [f"{shares[facet][name]:.1%}" for name in classes]


def test_plots_are_kept_when_asked_and_are_those_that_a_teacher_is_shown(undisturbed: tuple[Path, str]) -> None:
    from tsd.plots.plotter import Plotter, choose_look

    study, printed = undisturbed
    assert "6,000 plots" in printed
    kept = datasets.open_dataset(str(study / "plots"), PLOTS)
    series = datasets.open_dataset(str(study / "series"), SINGLE.tables.series)
    assert (kept.rows, kept.manifest["parents"]) == (6000, {"series": series.digest})
    recipe = load("laptop", ["teacher={kind: rules}"])
    rows, drawn = series.read_part(1).slice(0, 5).to_pylist(), kept.read_part(1).slice(0, 5).to_pylist()
    looks = [choose_look(recipe.plots, recipe.seed, row["series_id"]) for row in rows]
    pictures = Plotter()([np.array(row["values"], np.uint8) for row in rows], looks)
    assert drawn == [{"series_id": row["series_id"], "png": png} for row, png in zip(rows, pictures, strict=True)]


def test_the_runs_stand_in_mlflow_below_their_study(undisturbed: tuple[Path, str]) -> None:
    from mlflow import MlflowClient

    study, _ = undisturbed
    client = MlflowClient(f"sqlite:///{study.parent}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("tsd").experiment_id])
    children = [one for one in found if "mlflow.parentRunId" in one.data.tags]
    assert len(found) == 3
    assert len(children) == 2
    for one in children:
        assert one.info.status == "FINISHED"
        assert {"validation_loss", "trend", "loss"} <= set(one.data.metrics)


# Every policy at once; an extremum that is wrong is corrected, the rest of what is wrong is dropped.
POLICIES = (
    "curation.form=json",
    "curation.against_truth={maximum: correct, minimum: correct}",
    "curation.caps=0.34",
    "curation.length=[20, 400]",
)


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides that ask for every policy, one that asks a model included."""
    model = save_cross_encoder(tmp_path_factory.mktemp("model"))
    return (*POLICIES, f"curation.nli={{model: {model}, threshold: 0.75}}")


@pytest.fixture(scope="module")
def by_four(tmp_path_factory: pytest.TempPathFactory, policies: tuple[str, ...]) -> tuple[Path, Path]:
    """Tables that four workers made, curated plainly and by every policy."""
    plain, strict = (tmp_path_factory.mktemp(name) for name in ("plain", "strict"))
    (strict / "tiny").mkdir()
    for name in ("series", "annotations"):
        (strict / "tiny" / name).symlink_to(plain / "tiny" / name)
    run_on_one_ray(
        *(command(plain, stage=stage) for stage in ("generate", "annotate", "curate")),
        command(strict, *policies, stage="curate"),
        cpus=4,
    )
    return plain / "tiny", strict / "tiny"


def test_four_workers_write_the_same_bytes_as_one(
    undisturbed: tuple[Path, str], by_four: tuple[Path, Path]
) -> None:
    study, _ = undisturbed
    four, _ = by_four
    assert tables(four) == tables(study)


def test_every_policy_of_curation_gives_the_same_bytes_with_four_workers_and_with_one_after_two_kills(
    undisturbed: tuple[Path, str], by_four: tuple[Path, Path], policies: tuple[str, ...], tmp_path: Path
) -> None:
    study, _ = undisturbed
    _, four = by_four
    killed = tmp_path / "tiny"
    for name in ("series", "annotations"):
        shutil.copytree(study / name, killed / name)
    for pattern in ("verdicts/part-*.parquet", "rejects/part-*.parquet"):
        kill_when(command(killed.parent, *policies, stage="curate"), killed, pattern)
    before = finished_files(killed)
    printed = run(command(killed.parent, *policies, stage="curate"), cpus=1)
    assert "were corrected" in printed
    assert not [name for name, born in before.items() if finished_files(killed)[name] != born]
    assert tables(killed) == tables(four)
    reasons = set(datasets.open_dataset(str(killed / "rejects"), REJECTS).read()["reason"].to_pylist())
    for part in ("by NLI", "over the cap on a class of", "contradicts the measured"):
        assert any(part in reason for reason in reasons)
    examples = datasets.open_dataset(str(killed / "examples"), EXAMPLES)
    rejected = sum(found["rows"] for found in examples.about["rejects"]) + examples.about["rare"]["rows"]
    assert examples.about["kept"] == 6000 - rejected == examples.rows


def test_students_of_two_teachers_are_compared_on_the_same_series_and_nothing_is_made_twice(
    tmp_path: Path,
) -> None:
    teachers = "teachers={perfect: {error_rate: 0}, careless: {error_rate: {every: 0, noise: 1}}}"
    extra = (teachers, "curation.against_truth=keep", "training.concurrent_trials=2", *BRIEF)
    printed = run(command(tmp_path, *extra), cpus=2)
    whole = tmp_path / "tiny"
    assert not (whole / "annotations").exists()
    runs = datasets.open_dataset(str(whole / "runs"), SINGLE.tables.runs).read().to_pylist()
    assert [row["teacher"] for row in runs] == ["perfect", "careless"]
    for name, right in (("perfect", 1.0), ("careless", 0.0)):
        counts = datasets.open_dataset(str(whole / "teachers" / name / "examples"), EXAMPLES).about
        found = review.accuracy(counts["said"]["noise"])
        assert found is not None
        assert found.value == right
        assert f"The teacher, {name}, has all four right on {100 * right:.1f} % of the scored series" in printed
        assert (whole / "teachers" / name / "report.html").is_file()
    page = (whole / "report.html").read_text()
    assert all(name in page for name in ("perfect", "careless", "2 teachers"))
    before = {
        path: path.stat().st_mtime_ns for path in whole.rglob("*/part-*.parquet") if path.parent.name != "runs"
    }
    run(command(tmp_path, *extra), cpus=2)
    assert {path: path.stat().st_mtime_ns for path in before} == before


# What is on disk when a stage is well under way, and the stage's name. Drawing is killed in test_data_plane.py,
# curation in the test of its policies.
UNDER_WAY = {
    "annotate": "annotations/part-*.parquet",
    "train": "trials/0.03M-1600*/**/.metadata",
    "evaluate": "predictions/*/part-*.parquet",
    "report": "runs/manifest.json",
}


def test_killed_from_asking_to_report_a_study_goes_on_and_redoes_nothing(
    undisturbed: tuple[Path, str], tmp_path: Path, long: bool
) -> None:
    study, _ = undisturbed
    mine = tmp_path / "tiny"
    arguments = command(tmp_path, "evaluation.workers=2")  # the undisturbed one had one
    before: dict[str, int] = {}
    for stage, pattern in UNDER_WAY.items():
        if stage == "annotate" and not long:  # the executor is killed in test_ray_parts.py
            continue
        kill_when(arguments, mine, pattern, cpus=2)
        after = finished_files(mine)
        redone = [name for name, born in before.items() if after.get(name) != born]
        assert not redone, f"after the kill in {stage} these were written again: {redone}"
        before = after
    printed = run(arguments, cpus=2)
    after = finished_files(mine)
    assert not [name for name, born in before.items() if after.get(name) != born]
    assert "from before" in printed
    assert tables(mine) == tables(study)
    losses = [
        sorted(
            row["validation_loss"]
            for row in datasets.open_dataset(str(place / "runs"), SINGLE.tables.runs).read().to_pylist()
        )
        for place in (mine, study)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)  # the killed run resumed: the same run, not another


def kill_when(arguments: list[str], study: Path, pattern: str, cpus: int = 1) -> None:
    """Start a study and `kill -9` it and all that it started once a file matches the pattern."""
    kill_once(lambda: any(study.glob(pattern)), arguments, cpus)


def finished_files(study: Path) -> dict[str, int]:
    """When each file that a restart must not write again was written, in ns: parts, students, records."""
    kept = [*study.glob("*/part-*.parquet"), *study.glob("predictions/*/part-*.parquet")]
    kept += [*study.glob("students/*/model.safetensors"), *study.glob("records/*.json")]
    kept = [path for path in kept if path.parent.name not in ("runs", "records")]  # small, rewritten with scores
    return {str(path.relative_to(study)): path.stat().st_mtime_ns for path in kept}


def test_a_rare_class_is_warned_of_and_the_others_are_not() -> None:
    from tsd.cluster.study import class_lines

    shares = {
        facet: dict(zip(classes, (0.5, 0.41, 0.09), strict=True)) for facet, classes in SINGLE.classes.items()
    }
    *table, warning = class_lines(SINGLE, shares)
    assert len(table) == 4
    assert "rare" in warning
    assert all(f"{facet} {classes[2]} (9.0%)" in warning for facet, classes in SINGLE.classes.items())
    assert "increasing" not in warning
    even = {facet: dict.fromkeys(classes, 1 / 3) for facet, classes in SINGLE.classes.items()}
    assert len(class_lines(SINGLE, even)) == 4


def test_started_again_a_finished_study_only_writes_its_report_anew(undisturbed: tuple[Path, str]) -> None:
    study, _ = undisturbed
    before = finished_files(study)
    printed = run(command(study.parent), cpus=2)
    assert finished_files(study) == before
    assert "2/2 finished" in printed


def test_another_recipe_in_the_same_folder_is_refused(undisturbed: tuple[Path, str]) -> None:
    study, _ = undisturbed
    before = tables(study)
    result = ended(command(study.parent, "series.length=64"), 2)
    assert result.returncode == 2
    assert "another recipe" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert tables(study) == before


def test_a_student_answers_where_tsd_cannot_be_imported(undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    study, _ = undisturbed
    student = next((study / "students").glob("0.03M-1600*"))
    program = f"""
import sys
sys.modules["tsd"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(student)!r})
model = AutoModelForCausalLM.from_pretrained({str(student)!r})
turns = [{{"role": "user", "content": "Describe the series: " + " ".join(str(i % 100) for i in range(128))}}]
asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
said = model.generate(**asked, max_new_tokens=60)
print(tokenizer.decode(said[0, asked["input_ids"].shape[1]:], skip_special_tokens=True))
try:
    import tsd
except ImportError:
    print("no tsd")
"""
    printed = run([sys.executable, "-c", program])
    said, absent = printed.strip().splitlines()
    assert absent == "no tsd"
    assert said.startswith('{"trend": "')  # trained for 200 steps, it knows how an answer begins


def test_a_student_explains_a_csv_file(undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    study, _ = undisturbed
    student = next((study / "students").glob("0.03M-1600*"))
    table = tmp_path / "measurements.csv"
    table.write_text("day,load\n" + "".join(f"{i},{100 + i * 3}\n" for i in range(300)))
    printed = run(
        [
            sys.executable,
            "-m",
            "tsd.cli",
            "explain",
            str(table),
            "--model",
            str(student),
            "--column",
            "load",
            "--json",
        ]
    )
    answer = json.loads(printed)
    assert answer["rows"] == 300
    assert any("averaged" in change for change in answer["changes"])
    assert any("mapped onto" in change for change in answer["changes"])
    assert set(answer["labels"]) == {"trend", "noise", "maximum", "minimum"}

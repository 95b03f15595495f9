"""Distilling on a real local Ray: a study with a teacher, its students, and one whose teacher fails."""

import json
import subprocess
from pathlib import Path

import pytest
from support.commands import BRIEF, command, ended

from tsd.cluster.distillation import require_fitting_teachers
from tsd.errors import InputError
from tsd.models.tokenizer import build_tokenizer
from tsd.recipe import Recipe, load
from tsd.storage import datasets
from tsd.study.identity import plan_runs, tokenizer_key
from tsd.study.trials import plan_trials
from tsd.tasks import SINGLE
from tsd.training.runs import RunSpec

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]

SIZES = (
    "students.models=[0.03M, 0.1M, {name: taught, size: 0.03M, distil: {teacher: 0.1M}}, "
    "{name: failing, size: 0.03M, learning_rate: 1.0e+30}, "
    "{name: untaught, size: 0.03M, distil: {teacher: failing}}]"
)
CHAIN = (
    "students.models=[{name: last, size: 0.03M, distil: {teacher: next}}, "
    "{name: next, size: 0.1M, distil: {teacher: 0.3M}}, 0.3M, 0.03M]"
)


def planned(*overrides: str) -> tuple[Recipe, list[RunSpec]]:
    """A study of four students on two train sizes with two seeds, and its runs."""
    recipe = load(
        "laptop",
        ["teacher={kind: rules}", CHAIN, "students.train_sizes=[500,2000]", "students.seeds=[0,1]", *overrides],
    )
    return recipe, plan_runs(recipe, "digest")


def by_cell(runs: list[RunSpec]) -> dict[tuple[str, int, int], RunSpec]:
    """The runs by student, train size and seed."""
    return {(run.student.name, run.examples, run.seed): run for run in runs}


def test_every_run_waits_for_the_one_that_it_learns_from_which_saw_most_and_has_its_seed() -> None:
    recipe, runs = planned()
    waves = {run.run_id: (run, trial.wave) for trial in plan_trials(recipe, runs) for run in trial.runs}
    assert len(waves) == 16
    distilled = [(run, wave) for run, wave in waves.values() if run.teacher_run]
    assert len(distilled) == 8
    for run, wave in distilled:
        teacher, before = waves[run.teacher_run]
        assert teacher.student.name == run.student.distil.teacher
        assert (teacher.examples, teacher.seed) == (2000, run.seed)
        assert before == wave - 1
    names = {(wave, run.student.name) for run, wave in waves.values()}
    assert names == {(0, "0.3M"), (0, "0.03M"), (1, "next"), (2, "last")}


def test_a_changed_teacher_makes_other_runs_of_its_students_and_of_nobody_else() -> None:
    slower = CHAIN.replace("0.3M, 0.03M]", "{name: 0.3M, learning_rate: 0.001}, 0.03M]")
    before, after = (by_cell(runs) for _, runs in (planned(), planned(slower)))
    changed = {cell[0] for cell in before if before[cell].run_id != after[cell].run_id}
    assert changed == {"last", "next", "0.3M"}


def test_a_teacher_with_other_tokens_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    for name, words in (("same", "a hill a hill"), ("other", "a vale a vale of tears of tears")):
        build_tokenizer([words], 99).save_pretrained(tmp_path / name)
    for name in ("same", "other"):
        size = f"students.models=[{{name: 0.03M, distil: {{teacher: {tmp_path / name}}}}}]"
        recipe = load("laptop", ["teacher={kind: rules}", f"out={tmp_path}", "name=tiny", size])
        own = tokenizer_key(recipe, recipe.students.models[0], "examples")
        build_tokenizer(["a hill a hill"], 99).save_pretrained(tmp_path / "tiny" / "tokenizers" / own)
        if name == "same":
            require_fitting_teachers(recipe, "examples")
        else:
            with pytest.raises(
                InputError, match=r"0.03M cannot be distilled from .*other: .* 2\d\d and 2\d\d tokens"
            ):
                require_fitting_teachers(recipe, "examples")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Such a study, and what it printed."""
    out = tmp_path_factory.mktemp("runs")
    arguments = command(out, SIZES, *BRIEF, "students.train_sizes=[200]")
    result = ended(arguments, 2, timeout=600)
    return out / "tiny", result


def test_a_student_learns_from_one_that_the_same_study_trained_before_it(
    done: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, result = done
    table = datasets.open_dataset(str(folder / "runs"), SINGLE.tables.runs).read()
    runs = {run["student"]: run for run in table.to_pylist()}
    assert set(runs) == {"0.03M", "0.1M", "taught"}, result.stdout + result.stderr
    assert (runs["0.03M"]["distilled_from"], runs["0.03M"]["teacher_flops"]) == (None, None)
    assert runs["taught"]["distilled_from"] == "0.1M"
    # As many tokens through a forward pass as its teacher saw through forward and backward.
    assert runs["taught"]["teacher_flops"] == pytest.approx(runs["0.1M"]["flops"] / 3)
    assert runs["taught"]["flops"] == runs["0.03M"]["flops"]
    for run in runs.values():
        assert run["flops_6nd"] == 6 * run["parameters_without_embeddings"] * run["tokens"] < run["flops"]
    assert runs["taught"]["validation_loss"] != runs["0.03M"]["validation_loss"]
    (teacher,) = (json.loads(path.read_text()) for path in (folder / "records").glob("0.1M-*.json"))
    (card,) = (json.loads(path.read_text()) for path in (folder / "students").glob("taught-*/tsd.json"))
    assert card["run"]["distilled_from"] == teacher["student"]


def test_its_report_sets_it_beside_the_one_that_learned_from_words(
    done: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, result = done
    assert "SFT and knowledge distillation: in 1 comparison of" in " ".join(result.stdout.split())
    assert 'id="objectives"' in (folder / "report.html").read_text()


def test_a_student_whose_teacher_fails_is_not_begun_and_says_why(
    done: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, result = done
    assert result.returncode == 1
    assert "2 of 5 runs failed" in result.stderr
    failed = json.loads((folder / "failures.json").read_text())
    (teacher,) = (run_id for run_id in failed if run_id.startswith("failing-"))
    (untaught,) = (run_id for run_id in failed if run_id.startswith("untaught-"))
    assert "lower the learning rate" in failed[teacher]
    assert failed[untaught] == f"its teacher {teacher} failed"

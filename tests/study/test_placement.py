"""What runs ask for, how long they take beside one another, and which of them share a trial."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsd.models.students import SCRATCH, build, parameter_counts
from tsd.models.tokenizer import build_tokenizer
from tsd.recipe import Student, TrainingConfig, load
from tsd.study.identity import plan_runs
from tsd.study.placement import LARGEST, Need, cost, need, packs, parameters
from tsd.study.trials import Trial, plan_trials

ON_GPUS = TrainingConfig(gpu=True, workers=8, batch_size=64)


def of(source: str, **fields: float) -> Student:
    """A student that starts from a model."""
    return Student(name="one", source=source, learning_rate=1e-5, **fields)


@pytest.mark.parametrize("name", SCRATCH)
def test_a_built_in_size_is_what_its_name_says(name: str) -> None:
    tokenizer = build_tokenizer(["a b"], 64)
    body = parameter_counts(build(Student(name=name), tokenizer, 0, 64))[1]
    assert parameters(Student(name=name)) == pytest.approx(body, rel=0.05)


@pytest.mark.parametrize(
    ("source", "size"),
    [
        ("Qwen/Qwen2.5-1.5B-Instruct", 1.5e9),
        ("Qwen/Qwen3-0.6B", 0.6e9),
        ("/models/SmolLM2-135M/", 135e6),
        ("/models/32Bit/Llama-7B-chat", 7e9),
        ("/models/somebody", 1e9),
    ],
)
def test_the_size_of_a_model_is_read_in_its_name(source: str, size: float) -> None:
    assert parameters(of(source)) == size


def test_twice_the_examples_take_twice_as_long_and_a_larger_student_longer() -> None:
    assert cost(Student(name="0.3M"), 2000) == 2 * cost(Student(name="0.3M"), 1000)
    assert cost(Student(name="0.03M"), 1000) < cost(Student(name="0.1M"), 1000) < cost(of("a/0.5B"), 1000)


def test_a_student_asks_for_what_the_training_section_says_or_for_its_own() -> None:
    assert need(Student(name="0.3M"), TrainingConfig(threads=2)) == Need(1, 2, 0)
    assert need(of("a/7B"), ON_GPUS) == Need(8, 0, 1)
    assert need(of("a/0.5B", workers=1, gpus=0.25), ON_GPUS) == Need(1, 0, 0.25)


@given(costs=st.lists(st.floats(1, 1e6), min_size=1, max_size=40), at_once=st.integers(1, 8))
def test_every_run_is_in_one_trial_and_no_trial_is_long_but_for_a_single_run(
    costs: list[float], at_once: int
) -> None:
    runs = list(enumerate(costs))
    found = packs(runs, cost=lambda run: run[1], alike=lambda run: run[0] % 2, at_once=at_once)
    assert Counter(run for pack in found for run in pack) == Counter(runs)
    for pack in found:
        assert len({run[0] % 2 for run in pack}) == 1
        assert len(pack) == 1 or sum(run[1] for run in pack) <= LARGEST * sum(costs) / at_once * (1 + 1e-9)
    totals = [sum(run[1] for run in pack) for pack in found]
    assert totals == sorted(totals, reverse=True)


def test_the_laptop_study_needs_fewer_than_half_as_many_trials_as_runs_and_the_longest_starts_first() -> None:
    recipe = load("laptop")
    found = packs(
        list(recipe.students.cells()),
        cost=lambda cell: cost(cell[0], cell[1]),
        alike=lambda cell: need(cell[0], recipe.training),
        at_once=recipe.training.concurrent_trials,
    )
    assert sum(map(len, found)) == 15
    assert len(found) <= 7
    assert [(cell[0].name, cell[1]) for cell in found[0]] == [("0.3M", 32000)]


# ---- The trials of a study


def planned(*overrides: str) -> list[Trial]:
    """A study's trials."""
    recipe = load("laptop", overrides)
    return plan_trials(recipe, plan_runs(recipe, "digest of the examples"))


def test_a_student_waits_for_the_run_that_it_learns_from_and_that_one_has_its_seed_or_the_first() -> None:
    trials = planned(
        "students.models=[0.3M, {name: taught, size: 0.03M, distil: {teacher: 0.3M}}]",
        "students.train_sizes=[100, 4000]",
        "students.seeds={100: [0, 1], every: [1, 2]}",
    )
    runs = {run.run_id: (run, trial.wave) for trial in trials for run in trial.runs}
    assert len(runs) == 8
    for run, wave in runs.values():
        assert wave == (run.teacher_run is not None) == (run.student.name == "taught")
        if wave:
            teacher, before = runs[run.teacher_run]
            assert (teacher.student.name, teacher.examples, before) == ("0.3M", 4000, 0)
            assert teacher.seed == (run.seed or 1)


def test_a_runs_id_knows_nothing_of_the_machines_and_all_of_what_shapes_weights() -> None:
    def ids(*overrides: str) -> set[str]:
        return {run.run_id for trial in planned(*overrides) for run in trial.runs}

    usual = ids()
    for override in (
        "students.models=[{name: 0.03M, workers: 2}, 0.1M, 0.3M]",
        "training.workers=2",
        "training.concurrent_trials=1",
    ):
        assert ids(override) == usual
    for override in ("training.epochs=2", "training.max_grad_norm=0.5", "evaluation.validation_examples=100"):
        assert not ids(override) & usual


def test_the_same_runs_make_the_same_trials_whatever_was_finished() -> None:
    assert [trial.name for trial in planned()] == [trial.name for trial in planned()]
    assert len({trial.name for trial in planned()}) == len(planned()) < 15

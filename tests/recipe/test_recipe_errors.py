"""Wrong recipes: each gets one line with the place, the value and what was expected."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.recipe_texts import RULES, complaint, written

from tsd.errors import RecipeError
from tsd.recipe import load, names, to_yaml

WRONG_SETS = {
    "an unknown section": ("sereis.count=3", ["sereis", "did you mean 'series'?"]),
    "an unknown key": ("series.lenght=64", ["series.lenght", "did you mean 'length'?"]),
    "an unknown key two levels down": (
        "teacher={kind: rules, error_rate: {trnd: 0.1}}",
        ["teacher.error_rate.trnd", "did you mean 'trend'?"],
    ),
    "a key unlike any other": ("series.zzz=1", ["series.zzz", "valid: ", "length"]),
    "a key of a list's item": (
        "students.models=[{name: 0.3M, lerning_rate: 1}]",
        ["students.models.0.lerning_rate", "did you mean 'learning_rate'?"],
    ),
    "text for a number": ("series.count=many", ["series.count", "'many'", "integer"]),
    "a number for a section": ("series=3", ["series", "is 3"]),
    "nothing for a number": ("series.count=", ["series.count", "None", "integer"]),
    "too short a series": ("series.length=3", ["series.length", "is 3", "32"]),
    "a length among several that is too long": (
        "series.length=[64, 2000]",
        ["series.length", "2000", "32 to 1024"],
    ),
    "no length at all": ("series.length=[]", ["series.length", "32 to 1024"]),
    "half a point": ("series.length=99.5", ["series.length", "99.5", "whole number"]),
    "an unknown process": ("series.mix={lineer: 1}", ["series.mix", "'lineer'", "did you mean 'linear'?"]),
    "a negative weight": ("series.mix={linear: -1}", ["series.mix.linear", "-1", "0"]),
    "a mix of nothing": ("series.mix={linear: 0}", ["series.mix", "above 0"]),
    "a range that no process has": (
        "series.ranges={season_perod: [1, 2]}",
        ["series.ranges", "'season_perod'", "did you mean 'season_period'?"],
    ),
    "a range outside what can be drawn": (
        "series.ranges={season_period: [0, 2]}",
        ["series.ranges", "season_period", "0.01 to 10", "[0.0, 2.0]"],
    ),
    "a parameter's range the wrong way round": ("series.ranges={shift_at: [0.8, 0.2]}", ["shift_at", "low, high"]),
    "fewer candidates than series": ("series.oversampling=0.5", ["series.oversampling", "0.5", "1"]),
    "a swing the wrong way round": ("series.swing=[9, 3]", ["swing", "low, high"]),
    "own noise shares that miss one": ("series.own_noise_shares=[0, 0, 0]", ["own_noise_shares", "sum to 1"]),
    "no epochs": ("training.epochs=0", ["training.epochs", "is 0", "greater than 0"]),
    "a share above one": (
        "teacher={kind: rules, error_rate: {noise: 1.5}}",
        ["teacher.error_rate.noise", "1.5", "1"],
    ),
    "not a number": ("training.max_grad_norm=.nan", ["training.max_grad_norm", "nan"]),
    "an endless number": ("training.max_grad_norm=.inf", ["training.max_grad_norm", "inf", "finite"]),
    "a decay of one": ("training.betas=[0.9, 1.0]", ["training.betas.1", "1.0", "less than 1"]),
    "a negative drift": ("series.drift=[-3, 2]", ["series", "drift", "-3"]),
    "a range the wrong way round": ("series.tau=[[2, 1], [1, 2], [1, 2]]", ["tau", "low, high"]),
    "split shares that miss one": ("series.split=[0.5, 0.3, 0.1]", ["split", "sum to 1", "0.9"]),
    "trend shares that pass one": ("series.trend_shares=[0.5, 0.5, 0.5]", ["trend_shares", "sum to 1", "1.5"]),
    "noise shares that miss one": ("series.noise_shares=[0.1, 0.1, 0.1]", ["noise_shares", "sum to 1", "0.3"]),
    "an unknown student": ("students.models=[0.4M]", ["students.models.0", "'0.4M'", "did you mean", "source"]),
    "the same student twice": ("students.models=[0.3M, 0.3M]", ["models", "twice"]),
    "the same train size twice": ("students.train_sizes=[5, 5]", ["train_sizes", "twice"]),
    "the same seed twice": ("students.seeds={2000: [1, 1]}", ["seeds", "twice"]),
    "seeds for no train size": ("students.seeds={smal: [1]}", ["students.seeds"]),
    "a share of a GPU on CPUs": (
        "students.models=[{name: 0.3M, gpus: 0.5}]",
        ["0.3M requests 0.5 of a GPU", "training.gpu is false"],
    ),
    "more workers than share a batch": (
        "students.models=[{name: 0.3M, workers: 3}]",
        ["batch_size 8", "3 workers"],
    ),
    "no students": ("students.models=[]", ["students.models", "at least 1"]),
    "adapters on nothing": ("students.models=[{name: 0.3M, lora: {r: 4}}]", ["lora", "source"]),
    "a source without a rate": (
        "students.models=[{name: q, source: a/b}]",
        ["students.models.0", "learning_rate"],
    ),
    "workers that cannot share": ("training={batch_size: 8, workers: 3}", ["batch_size 8", "3 workers"]),
    "an unknown kind of teacher": ("teacher.kind=opnai", ["teacher", "'opnai'", "'openai'"]),
    "a teacher without a model": ("teacher={kind: openai}", ["teacher.model", "missing"]),
    "an unknown policy": ("curation.against_truth=fix", ["curation.against_truth.every", "'fix'", "'correct'"]),
    "a policy for no facet": ("curation.against_truth.maximun=keep", ["against_truth.maximun", "'maximum'?"]),
    "a cap on no facet": ("curation.caps={nois: 0.5}", ["curation.caps.nois", "did you mean 'noise'?"]),
    "a cap that no corpus keeps": ("curation.caps.noise=0.3", ["curation.caps of noise", "0.333", "0.3"]),
    "a length the wrong way round": ("curation.length=[9, 3]", ["length", "[minimum, maximum]", "[9, 3]"]),
    "an inference without a model": ("curation.nli={threshold: 0.5}", ["curation.nli.model", "missing"]),
    "an unknown key of one of several teachers": (
        "teachers.good.eror_rate=0",
        ["teachers.good.eror_rate", "did you mean 'error_rate'?"],
    ),
    "a facet that is none in one of several teachers": (
        "teachers={model: {error_rate: {nois: 0.1}}}",
        ["teachers.model.error_rate.nois", "did you mean 'noise'?"],
    ),
    "a teacher whose name is no folder's": ("teachers={a/b: {}}", ["teachers", "a/b"]),
    "a name with a slash": ("name=a/b", ["name", "'a/b'"]),
    "a seed below nothing": ("seed=-1", ["seed", "-1", "0"]),
    "an unknown truth": ("truth=Robust", ["truth is 'Robust'", "'paper' or 'robust'"]),
    "unknown places": ("places=fifths", ["places is 'fifths'", "'quarters' or 'thirds'"]),
    "a task without a name": ("task=", ["task is None: name one of single, pair, rich, or module:TASK"]),
    "an unknown prompt": ("teacher.prompt=define", ["teacher.prompt is 'define'", "'plain' or 'defined'"]),
    "a section that is none": ("evaluation=fast", ["evaluation is 'fast': must be a section of keys"]),
    "a teacher that is none": ("teacher=rules", ["teacher is 'rules': must be a section of keys"]),
    "teachers that are a list": ("teachers=[a]", ["teachers is ['a']: must be a section of keys"]),
    "a list that is none": ("evaluation.metrics=close", ["evaluation.metrics is 'close': must be a list"]),
    "an override without a value": ("series.count", ["series.count", "expected a.b=value"]),
    "an override into a value": ("series.count.x=1", ["series.count.x", "count is a value"]),
    "a date that no calendar has": ("series.count=2024-99-99", ["series.count", "2024-99-99"]),
    "an override that is not YAML": ("series.split=[1", ["series.split", "[1"]),
}


def test_the_task_rich_has_no_truth_of_the_paper() -> None:
    said = complaint("rich", "truth=paper")
    assert "truth: the task rich has no paper truth: set truth: robust" in said
    said = complaint("laptop", "task=rich", "truth=paper")
    assert "the task rich has no paper truth" in said


def test_workers_share_a_batch_of_tokens_whatever_batch_size_says() -> None:
    recipe = load("laptop", ["training={batch_size: 8, workers: 3, tokens_per_batch: 4096}"])
    assert recipe.training.tokens_per_batch == 4096


def test_an_old_key_of_one_teacher_is_an_unknown_key_of_another() -> None:
    message = complaint("laptop", RULES, "teacher.batch_size=7")
    assert "unknown key teacher.batch_size" in message


@pytest.mark.parametrize(("override", "said"), WRONG_SETS.values(), ids=WRONG_SETS)
def test_a_wrong_value_gets_one_line_that_names_place_value_and_expectation(
    override: str, said: list[str]
) -> None:
    message = complaint("laptop", override)
    assert all(part in message for part in said), message


WRONG_FILES = {
    "an unclosed list": ("name: x\nseries:\n  split: [1,\n", ["line 4"]),
    "a tab": ("name: x\n\tseed: 3\n", ["line 2"]),
    "a Python object": ("name: !!python/object:os.system {}\n", ["line 1"]),
    "a list": ("- name\n", ["mapping", "list"]),
    "nothing": ("", ["mapping"]),
    "no name": ("seed: 3\n", ["name is missing"]),
    "an empty section": ("name: x\nseries:\n", ["series", "None"]),
    "extends of a number": ("extends: 3\n", ["extends", "3"]),
    "extends of an unknown recipe": ("extends: labtop\n", ["'labtop'", "did you mean 'laptop'?"]),
    "extends of a missing file": ("extends: gone.yaml\n", ["gone.yaml", "no recipe file"]),
    "a key that is no text": ("name: x\n1: 2\n", ["1", "string"]),
    "another kind's key": ("name: x\nteacher: {kind: rules, eror_rate: 1}\n", ["did you mean 'error_rate'?"]),
}


@pytest.mark.parametrize(("text", "said"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_wrong_file_gets_one_line_that_names_the_file_and_what_is_wrong(
    text: str, said: list[str], tmp_path: Path
) -> None:
    path = written(tmp_path, text)
    message = complaint(path)
    assert path in message or str(tmp_path) in message or "extends" in text, message
    assert all(part in message for part in said), message


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "photo.yaml"
    path.write_bytes(b"name: \xff\xd8\xff\n")
    message = complaint(str(path))
    assert str(path) in message
    assert "UTF-8" in message


def test_a_missing_recipe_file_is_named_beside_the_recipes_there_are(tmp_path: Path) -> None:
    message = complaint(str(tmp_path / "none.yaml"))
    assert str(tmp_path / "none.yaml") in message
    assert "laptop" in message


def test_an_unknown_recipe_is_told_the_nearest_name() -> None:
    assert "did you mean 'cluster'?" in complaint("clutser")


def test_a_rules_teacher_is_never_offered_the_keys_of_an_api_teacher() -> None:
    message = complaint("laptop", RULES, "teacher.modell=x")
    assert "error_rate" in message
    assert "'model'" not in message


@given(st.text(max_size=60))
def test_any_text_at_all_is_a_recipe_or_one_line(text: str) -> None:
    lines = []
    try:
        load("laptop", [f"about={text}", f"series.count={text}"])
    except RecipeError as error:
        lines = str(error).splitlines()
    assert len(lines) <= 1


def test_no_shipped_recipe_holds_a_key() -> None:
    for name in names():
        teacher = yaml.safe_load(to_yaml(load(name)))["teacher"]
        assert set(teacher) & {"key", "api_key", "token", "password"} == set()


@pytest.mark.parametrize(
    ("override", "split"),
    [
        ("students.train_sizes=[9000]", "train"),
        ("evaluation.validation_examples=2000", "validation"),
        ("evaluation.series=2000", "test"),
    ],
)
def test_asking_more_of_a_split_than_it_holds_is_said_before_anything_is_drawn(override: str, split: str) -> None:
    modest = ["series.count=10000", "students.train_sizes=[2000]"]
    load("laptop", [RULES, *modest]).require_enough_series()
    with pytest.raises(
        RecipeError, match=f"{override.split('=')[0]} needs .* {split} split .* raise series.count"
    ):
        load("laptop", [RULES, *modest, override]).require_enough_series()


@pytest.mark.parametrize(
    "override",
    [
        "tracking.uri=postgresql://me:hunter2@db/mlflow",
        "out=https://me:hunter2@store/x",
        "teacher={kind: openai, model: m, base_url: 'http://me:hunter2@api/v1'}",
    ],
)
def test_an_address_with_a_password_is_refused_and_not_repeated(override: str) -> None:
    with pytest.raises(RecipeError, match="must not hold a user or password") as refused:
        load("laptop", [override])
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("field", "pixels", "fits"), [("width", 450, "448 or 476"), ("height", 223, "196 or 224")]
)
def test_a_size_that_cuts_a_patch_is_refused_with_those_that_fit(field: str, pixels: int, fits: str) -> None:
    said = complaint("laptop", f"plots.{field}={pixels}")
    assert f"{field} must be a multiple of 28" in said
    assert fits in said
    assert "plots.width is 112" in complaint("laptop", "plots.width=112")

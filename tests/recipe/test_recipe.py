"""Recipes: what they inherit, how they are overridden, and the one line that each wrong one gets."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tsd.errors import RecipeError
from tsd.recipe import ApiTeacher, LocalTeacher, RulesTeacher, load, names, to_yaml

RULES = "teacher={kind: rules}"


def written(folder: Path, text: str, name: str = "mine.yaml") -> str:
    """The path of a recipe file with this text."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def complaint(source: str, *overrides: str) -> str:
    """The one line that loading a wrong recipe ends with."""
    with pytest.raises(RecipeError) as caught:
        load(source, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- Right ones


def test_the_paper_recipe_shows_the_paper_s_figure_and_the_others_a_compact_one() -> None:
    assert load("paper").plots.sizes == [(1000, 500)]
    assert load("cluster").plots.sizes == [(448, 224)]
    assert load("cluster").plots.image_tokens == 16 * 8
    assert load("laptop").plots.sizes == [(128, 128)]  # bare, for a teacher of one's own
    assert load("laptop").plots.image_tokens == 4 * 4


def test_laptop_paper_and_cluster_come_with_tsd() -> None:
    assert {"laptop", "paper", "cluster"} <= set(names())


@pytest.mark.parametrize("name", names())
def test_a_shipped_recipe_loads_under_its_own_name_and_says_what_it_is_for(name: str) -> None:
    recipe = load(name)
    assert recipe.name == name
    assert recipe.about


@pytest.mark.parametrize("name", names())
def test_a_printed_recipe_loads_as_the_same_recipe(name: str, tmp_path: Path) -> None:
    assert load(written(tmp_path, to_yaml(load(name)))) == load(name)


def test_the_laptop_recipe_has_three_sizes_three_train_sizes_and_a_free_teacher() -> None:
    recipe = load("laptop")
    assert len(recipe.students.models) >= 3
    assert len(recipe.students.train_sizes) >= 3
    assert isinstance(recipe.teacher, LocalTeacher)
    assert recipe.teacher.train is not None
    assert recipe.series.length == 128
    assert recipe.evaluation.series >= 1000


def test_seeds_may_differ_by_train_size() -> None:
    students = load("laptop", ["students.seeds={2000: [0, 1, 2], 8000: [0, 1]}"]).students
    assert [students.seeds_for(train_size) for train_size in (1, 2000, 2001, 8000, 8001)] == [
        *[(0, 1, 2)] * 2,
        *[(0, 1)] * 2,
        (0,),
    ]
    found = [(student.name, train_size, seed) for student, train_size, seed in students.cells()]
    assert len(found) == len(set(found)) == 3 * (3 + 2 + 1)
    assert list(load("laptop", ["students.seeds=[4, 5]"]).students.seeds.values()) == [(4, 5)]


def test_the_paper_recipe_has_the_adapters_and_the_rate_of_the_released_notebook() -> None:
    (student,) = load("paper").students.models
    assert student.lora is not None
    assert (student.lora.r, student.lora.alpha, student.lora.targets) == (4, 32, ("q_proj", "v_proj"))
    assert student.learning_rate == 2e-4


# ---- extends


def test_a_recipe_that_extends_another_by_name_names_only_what_differs(tmp_path: Path) -> None:
    mine = load(written(tmp_path, "extends: laptop\nname: mine\nseries: {length: 64}\n"))
    laptop = load("laptop")
    assert mine.series == laptop.series.model_copy(update={"length": 64})
    assert mine.students == laptop.students
    assert mine.name == "mine"


def test_extends_by_path_is_read_from_beside_the_recipe_that_says_so(tmp_path: Path) -> None:
    written(tmp_path, "extends: laptop\nseed: 7\n", "base/base.yaml")
    written(tmp_path, "extends: base.yaml\nseries: {count: 2048}\n", "base/middle.yaml")
    mine = load(written(tmp_path, "extends: ../base/middle.yaml\nname: mine\n", "mine/mine.yaml"))
    assert (mine.name, mine.seed, mine.series.count) == ("mine", 7, 2048)


@pytest.mark.parametrize("spelling", ["{name}", "./{name}", "../{folder}/{name}"])
def test_recipes_that_extend_each_other_in_a_circle_are_told_so(tmp_path: Path, spelling: str) -> None:
    def other(name: str) -> str:
        return spelling.format(name=name, folder=tmp_path.name)

    written(tmp_path, f"extends: {other('a.yaml')}\nname: b\n", "b.yaml")
    assert "extends itself" in complaint(written(tmp_path, f"extends: {other('b.yaml')}\nname: a\n", "a.yaml"))


def test_a_teacher_of_another_kind_replaces_the_old_one_whole(tmp_path: Path) -> None:
    recipe = load(written(tmp_path, "extends: paper\nname: mine\nteacher: {kind: rules}\n"))
    assert recipe.teacher == RulesTeacher()


def test_a_teacher_of_the_same_kind_keeps_what_is_not_named(tmp_path: Path) -> None:
    teacher = load(written(tmp_path, "extends: paper\nteacher: {temperature: 0.5}\n")).teacher
    assert teacher == load("paper").teacher.model_copy(update={"temperature": 0.5})
    assert isinstance(teacher, ApiTeacher)


# ---- Overrides


def test_an_override_changes_one_field_and_leaves_its_neighbours() -> None:
    laptop = load("laptop", [RULES])
    recipe = load(
        "laptop", [RULES, "series.count=2048", "students.train_sizes=[10, 20]", "teacher.error_rate.trend=0.5"]
    )
    assert recipe.series == laptop.series.model_copy(update={"count": 2048})
    assert recipe.students.train_sizes == (10, 20)
    assert recipe.students.models == laptop.students.models
    assert isinstance(recipe.teacher, RulesTeacher)
    assert isinstance(laptop.teacher, RulesTeacher)
    assert recipe.teacher.error_rate == {**laptop.teacher.error_rate, "trend": 0.5}


@given(st.integers(1, 10**10), st.integers(0, 2**63 - 1))
def test_any_valid_number_can_be_set_and_comes_back_as_it_was(count: int, seed: int) -> None:
    recipe = load("laptop", [f"series.count={count}", f"seed={seed}"])
    assert (recipe.series.count, recipe.seed) == (count, seed)


def test_of_two_overrides_of_one_field_the_last_one_holds() -> None:
    assert load("laptop", ["seed=1", "seed=2"]).seed == 2


def test_a_recipe_may_name_several_lengths_a_mix_and_ranges_and_be_printed_with_them(tmp_path: Path) -> None:
    text = "extends: laptop\nseries: {length: [64, 128], mix: {season: 2}, ranges: {season_period: [0.3, 2.0]}}\n"
    recipe = load(written(tmp_path, text))
    assert recipe.series.lengths == (64, 128)
    assert recipe.series.mix == {"season": 2.0}
    again = load(written(tmp_path, to_yaml(recipe), "again.yaml"))
    assert again == recipe
    assert hash(again) == hash(recipe)


def test_a_policy_in_a_word_holds_for_every_facet_and_one_by_facet_for_those_it_names() -> None:
    assert load("laptop").curation.against_truth == {"every": "drop"}
    assert load("laptop", ["curation.against_truth=keep"]).curation.against_truth == {"every": "keep"}
    mixed = load("laptop", ["curation.against_truth.maximum=correct", "curation.caps=0.5"]).curation
    assert [mixed.policy(facet) for facet in ("trend", "maximum")] == ["drop", "correct"]
    assert mixed.cap("noise") == 0.5


def test_only_what_is_dropped_lowers_the_share_that_a_recipe_expects_to_keep() -> None:
    rates = "teacher.error_rate={every: 0.1, noise: 0.5}"
    assert load("laptop", [RULES, rates]).kept_share == pytest.approx(0.9**3 * 0.5)
    assert load("laptop", [RULES, rates, "curation.against_truth.noise=correct"]).kept_share == pytest.approx(
        0.9**3
    )
    assert load("laptop", [RULES, rates, "curation.against_truth=keep"]).kept_share == 1


def test_several_teachers_make_a_recipe_each_that_differs_in_its_teacher_and_its_folder(tmp_path: Path) -> None:
    text = "extends: laptop\nname: mine\nteachers: {good: {error_rate: 0}, bad: {error_rate: {noise: 0.5}}}\n"
    recipe = load(written(tmp_path, text), ["out=x"])
    assert load(written(tmp_path, to_yaml(recipe), "again.yaml")) == recipe
    assert {name: one.folder for name, one in recipe.by_teacher.items()} == {
        "good": "x/mine/teachers/good",
        "bad": "x/mine/teachers/bad",
    }
    good, bad = recipe.by_teacher.values()
    assert (good.teacher, bad.teacher) == (
        RulesTeacher(error_rate={"every": 0}),
        RulesTeacher(error_rate={"every": 0.04, "noise": 0.5}),
    )
    assert (good.series, good.students, good.seed, good.teachers) == (recipe.series, recipe.students, 0, {})
    assert recipe.kept_share == bad.kept_share < good.kept_share
    assert load("laptop").by_teacher == {}


# ---- Wrong ones: each gets one line with the place, the value and what was expected

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
    "an override without a value": ("series.count", ["series.count", "expected a.b=value"]),
    "an override into a value": ("series.count.x=1", ["series.count.x", "count is a value"]),
    "a date that no calendar has": ("series.count=2024-99-99", ["series.count", "2024-99-99"]),
    "an override that is not YAML": ("series.split=[1", ["series.split", "[1"]),
}


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


# ---- Students that learn from students


def students(*sizes: str) -> str:
    """An override that names the students."""
    return f"students.models=[{', '.join(sizes)}]"


def test_a_distilled_student_has_a_size_a_teacher_and_a_twin_that_learns_from_words() -> None:
    recipe = load("laptop", [students("0.03M", "0.3M", "{name: taught, size: 0.03M, distil: {teacher: 0.3M}}")])
    words, large, taught = recipe.students.models
    assert (taught.architecture, taught.distil.divergence, taught.distil.weight) == ("0.03M", "forward", 0.5)
    assert recipe.students.teacher_of(taught) is large
    assert recipe.students.sft_counterpart(taught) is words
    assert recipe.students.teacher_of(words) is recipe.students.sft_counterpart(words) is None


def test_a_student_with_another_learning_rate_is_no_twin() -> None:
    other = "{name: taught, size: 0.03M, learning_rate: 0.001, distil: {teacher: 0.3M}}"
    recipe = load("laptop", [students("0.03M", "0.3M", other)])
    assert recipe.students.sft_counterpart(recipe.students.models[2]) is None


def test_a_teacher_may_be_a_folder_or_a_hub_s_model_and_may_itself_have_had_one() -> None:
    outside = load("laptop", [students("{name: 0.03M, distil: {teacher: runs/laptop/students/best}}")])
    assert outside.students.teacher_of(outside.students.models[0]) is None
    chain = load(
        "laptop",
        [students("{name: 0.03M, distil: {teacher: 0.1M}}", "{name: 0.1M, distil: {teacher: 0.3M}}", "0.3M")],
    )
    assert chain.students.teacher_of(chain.students.models[0]) is chain.students.models[1]


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (
            ["{name: 0.03M, distil: {teacher: 0.4M}}", "0.3M"],
            "unknown distil.teacher '0.4M', did you mean '0.3M'?",
        ),
        (["{name: 0.03M, distil: {teacher: large}}"], "unknown distil.teacher 'large'; the name of a folder"),
        (["{name: 0.03M, distil: {teacher: 0.03M}}"], "its own teacher: 0.03M ← 0.03M"),
        (
            ["{name: 0.03M, distil: {teacher: 0.1M}}", "{name: 0.1M, distil: {teacher: 0.03M}}"],
            "its own teacher: 0.03M ← 0.1M ← 0.03M",
        ),
        (
            ["{name: 0.03M, distil: {teacher: q}}", "{name: q, source: a/b, learning_rate: 1.0e-4}"],
            "0.03M cannot be distilled from q: one starts from scratch",
        ),
        (["{name: mine, size: 0.04M}"], "unknown size '0.04M', did you mean '0.03M'?"),
        (["{name: mine, size: 0.03M, source: a/b, learning_rate: 1.0e-4}"], "a `size` or a `source`, not both"),
        (["{name: 0.03M, distil: {teacher: 0.3M, weight: 0}}", "0.3M"], "weight"),
        (["{name: 0.03M, distil: {teacher: 0.3M, beta: 1}}", "0.3M"], "beta"),
        (
            ["{name: 0.03M, distil: {teacher: 0.3M, kind: forward}}", "0.3M"],
            "unknown key students.models.0.distil.kind",
        ),
    ],
)
def test_a_student_that_cannot_be_taught_so_is_refused_with_the_reason(sizes: list[str], said: str) -> None:
    assert said in complaint("laptop", students(*sizes))


# ---- Teachers of one's own, and students that look


def test_a_teacher_that_is_trained_lies_with_its_study_and_is_taught_in_three_ways_by_one_word() -> None:
    asked = {kind: load("laptop", [f"teacher.kind={kind}"]) for kind in ("local", "vllm", "openai")}
    assert {recipe.teacher.model for recipe in asked.values()} == {"runs/laptop/teacher"}
    assert {recipe.teacher.name for recipe in asked.values()} == {"own-0.3M"}
    assert {recipe.plots.style for recipe in asked.values()} == {"bare"}
    assert len({str(recipe.teacher.identity) for recipe in asked.values()}) == 3
    assert load("laptop", ["out=elsewhere"]).teacher.identity == asked["local"].teacher.identity


def test_several_teachers_may_each_be_trained() -> None:
    recipe = load("laptop", ["teachers={good: {train: {pictures: 9000}}, bad: {train: {pictures: 500}}}"])
    assert [one.teacher.model for one in recipe.by_teacher.values()] == [
        f"runs/laptop/teachers/{name}/teacher" for name in ("good", "bad")
    ]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("teacher={kind: local}", "teacher.model is missing"),
        ("teacher.model=x", "leave out model or train"),
        ("teacher.modality=both", "leave out modality"),
        ("teacher.temperature=0.5", "leave out temperature"),
        ("plots.style=paper", "a locally trained teacher needs bare plots"),
        ("students={modality: image, models: [3M]}", "unknown size of a vision student '3M'"),
        (
            "students.models=[{name: a, source: x/y, modality: image, learning_rate: 1}]",
            "vision students are trained from scratch",
        ),
        (
            "students.models=[0.3M, {name: a, size: 0.1M, modality: image, distil: {teacher: 0.3M}}]",
            "their modalities differ",
        ),
    ],
)
def test_what_does_not_look_is_told_so(override: str, said: str) -> None:
    assert said in complaint("laptop", override)


def test_students_look_where_the_section_or_they_themselves_say_so() -> None:
    every = load("laptop", ["students.modality=image"]).students.models
    assert [student.modality for student in every] == ["image"] * 3
    both = load(
        "laptop", ["students={modality: image, models: [0.1M, {name: reads, size: 0.1M, modality: text}]}"]
    )
    assert [student.modality for student in both.students.models] == ["image", "text"]
    assert [student.modality for student in load("laptop").students.models] == ["text"] * 3


def test_a_student_that_looks_is_compared_with_the_one_of_its_size_that_reads() -> None:
    sees = "{name: sees, size: 0.1M, modality: image}"
    taught = "{name: taught, size: 0.1M, distil: {teacher: 0.3M}}"
    students = load("laptop", [f"students.models=[{taught}, 0.1M, 0.3M, {sees}]"]).students
    found = {student.name: students.text_counterpart(student) for student in students.models}
    assert found["sees"] is not None
    assert {name: other and other.name for name, other in found.items()} == {
        **dict.fromkeys(("taught", "0.1M", "0.3M")),
        "sees": "0.1M",
    }


# ---- Overrides of a teacher


@pytest.mark.parametrize("recipe", ["laptop", "paper", "cluster"])
def test_a_teachers_kind_is_set_as_it_is_in_a_file(recipe: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {recipe}\nteacher: {{kind: rules}}\n")
    assert load(recipe, ["teacher.kind=rules"]) == load(str(path))
    assert load(recipe, ["teacher.kind=rules", "teacher.error_rate=0.1"]) == load(
        recipe, ["teacher.error_rate=0.1", "teacher.kind=rules"]
    )


def test_the_kind_of_one_of_several_teachers_drops_what_that_kind_has_not() -> None:
    two = "teachers={a: {kind: local, train: {pictures: 100}}, b: {kind: openai, model: m, in_flight: 4}}"
    said = load("laptop", [two, "teachers.a.kind=rules", "teachers.b.kind=vllm"])
    assert said.teachers["a"] == RulesTeacher()
    assert (said.teachers["b"].kind, said.teachers["b"].model) == ("vllm", "m")


def test_a_teacher_that_is_given_a_model_is_not_trained_and_the_reverse() -> None:
    sets = ["teacher.kind=openai", "teacher.model=eyes-7b"]
    for order in (sets, sets[::-1]):
        teacher = load("laptop", order).teacher
        assert (teacher.model, teacher.train) == ("eyes-7b", None)
    trained = load("paper", ["teacher.kind=local", "teacher.train={pictures: 100}", "plots.style=bare"]).teacher
    assert trained.train.pictures == 100
    with pytest.raises(RecipeError, match="leave out model or train"):
        load("laptop", [*sets, "teacher.train.size=0.1M", "teacher.train={pictures: 5}"])


def test_a_key_that_was_set_and_that_the_kind_has_not_is_still_an_error() -> None:
    with pytest.raises(RecipeError, match=r"teacher\.in_flight"):
        load("laptop", ["teacher.in_flight=3", "teacher.kind=rules"])


def test_a_section_that_is_set_whole_comes_before_what_is_set_in_it() -> None:
    sets = ["students.seeds=[5]", "students={models: [0.1M], train_sizes: [10]}"]
    for order in (sets, sets[::-1]):
        said = load("laptop", order).students
        assert (said.train_sizes, said.seeds) == ((10,), {"every": (5,)})

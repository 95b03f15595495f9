"""Recipes: what comes with tsd, what they inherit, and how they are overridden."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.recipe_texts import RULES, complaint, written

from tsd.errors import RecipeError
from tsd.recipe import ApiTeacher, LocalTeacher, RulesTeacher, load, names, to_yaml
from tsd.teachers.prompts import prompt_text

ROOT = Path(__file__).parents[2]

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


def test_the_rich_recipe_is_the_laptop_s_with_nine_facets_and_its_own_series() -> None:
    recipe, laptop = load("rich"), load("laptop")
    assert (len(recipe.asks.facets), len(laptop.asks.facets)) == (9, 4)
    assert recipe.students == laptop.students
    assert recipe.series.mix != laptop.series.mix
    assert recipe.series.count * recipe.series.split[0] > max(recipe.students.train_sizes)


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


def test_the_paper_recipe_has_the_paper_s_truth_and_a_prompt_without_definitions() -> None:
    recipe, default = load("paper"), load("paper", ["truth=robust"])
    assert (recipe.truth, recipe.places, recipe.teacher.prompt) == ("paper", "quarters", "plain")
    assert set(recipe.asks.measures) >= {"trend_delta", "noise_rms"}
    assert "Definitions:" not in prompt_text(recipe.teacher, recipe.asks, 128)
    assert recipe.series.noise_rms != default.series.noise_rms  # its classes are balanced for the cubic fit
    assert recipe.series == load("laptop", ["truth=paper"]).series.model_copy(
        update={name: getattr(recipe.series, name) for name in ("count", "blocks_per_part", "mix", "own_range")}
    )


@pytest.mark.parametrize("study", sorted((ROOT / "docs" / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_study_of_past_figures_names_the_truth_that_they_were_measured_by(study: Path) -> None:
    recipe = load(str(study))
    assert recipe.truth == "paper"
    assert recipe.asks.measures.keys() >= {"trend_delta", "noise_rms"}


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

"""Students and local teachers in a recipe: distillation, modalities, and twins to compare with."""

import pytest
from support.recipe_texts import complaint, students

from tsd.recipe import load

# ---- Students that learn from students


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

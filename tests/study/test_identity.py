"""Identity: a run's id follows everything that shapes its weights and nothing else, and so do the other keys."""

import ast
import importlib
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest

import tsd
from tsd.generation.generator import draw_table
from tsd.recipe import LocalTeacher, Lora, ModelTeacher, Recipe, SeriesConfig, Student, TrainingConfig, load
from tsd.recipe.section import MACHINE, Section
from tsd.recipe.training import Distil
from tsd.storage import datasets
from tsd.study import identity
from tsd.tasks import SINGLE
from tsd.teachers import local
from tsd.teachers.prompts import Questions
from tsd.training import runs
from tsd.training.runs import RunSpec

SPEC = RunSpec(
    student=Student(name="mine", source="hub/model", learning_rate=1e-3),
    examples=100,
    seed=0,
    training=TrainingConfig(),
    validation_examples=10,
    corpus="corpus",
    tokenizer="tokenizer",
    precision="float32",
)
# Another value of every field. A field that is added to a model must be added here.
STUDENT: dict[str, Any] = {
    "name": "other",
    "size": "0.1M",
    "source": "hub/other",
    "lora": Lora(),
    "modality": "image",
    "learning_rate": 1e-4,
    "workers": 2,
    "gpus": 0.5,
    "distil": Distil(teacher="hub/teacher"),
}
TRAINING: dict[str, Any] = {
    "epochs": 2,
    "early_stopping_patience": 1,
    "batch_size": 16,
    "tokens_per_batch": 512,
    "packing": True,
    "micro_batch_tokens": 512,
    "activation_checkpointing": True,
    "optimizer": "muon",
    "betas": (0.9, 0.99),
    "weight_decay": 0.1,
    "warmup_ratio": 0.1,
    "max_grad_norm": 0.5,
    "max_length": 512,
    "workers": 2,
    "threads": 2,
    "gpu": True,
    "concurrent_trials": 1,
    "checkpoint_every": 10,
    "keep_checkpoints": 2,
    "max_failures": 0,
}
OTHERS: dict[str, Any] = {
    "examples": 200,
    "seed": 1,
    "validation_examples": 20,
    "corpus": "other",
    "tokenizer": "other",
    "precision": "bfloat16",
    "teacher_run": "0.3M-100-s0-01234567",
}
BRIEF = ("teacher={kind: rules}", "name=tiny")


def changed(section: Section, field: str, value: Any) -> Any:
    """The same section with one field changed, as it is: not every pair of fields is valid together."""
    return section.model_copy(update={field: value})


@pytest.mark.parametrize("field", Student.model_fields)
def test_a_students_field_changes_the_id_unless_it_is_the_machines(field: str) -> None:
    other = replace(SPEC, student=changed(SPEC.student, field, STUDENT[field]))
    assert (other.run_id != SPEC.run_id) == (Student.shaped_by(field) != MACHINE)


@pytest.mark.parametrize("field", TrainingConfig.model_fields)
def test_a_field_of_training_changes_the_id_unless_it_is_the_machines(field: str) -> None:
    assert getattr(SPEC.training, field) != TRAINING[field]
    other = replace(SPEC, training=changed(SPEC.training, field, TRAINING[field]))
    assert (other.run_id != SPEC.run_id) == (TrainingConfig.shaped_by(field) != MACHINE)


@pytest.mark.parametrize("model", [Lora, Distil])
def test_every_field_of_an_adapter_or_of_distillation_changes_the_id(model: type[Section]) -> None:
    name = "lora" if model is Lora else "distil"
    section = Lora() if model is Lora else Distil(teacher="hub/teacher")
    spec = replace(SPEC, student=changed(SPEC.student, name, section))
    values: dict[str, Any] = {"r": 8, "alpha": 16, "targets": ("q_proj",), "export": "adapter"}
    values |= {"teacher": "hub/b", "divergence": "reverse", "weight": 0.25, "temperature": 2.0, "beta": 0.25}
    for field in model.model_fields:
        other = replace(spec, student=changed(spec.student, name, changed(section, field, values[field])))
        assert other.run_id != spec.run_id, field


@pytest.mark.parametrize("field", [field.name for field in fields(RunSpec)])
def test_every_other_field_of_a_specification_changes_the_id(field: str) -> None:
    if field not in ("student", "training"):
        assert replace(SPEC, **{field: OTHERS[field]}).run_id != SPEC.run_id


def test_another_version_of_the_training_code_makes_other_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    before = replace(SPEC).run_id
    monkeypatch.setattr(runs, "VERSION", runs.VERSION + 1)
    assert replace(SPEC).run_id != before


TRAINED = "teacher={kind: local, train: {size: 0.03M}}"
FROM_ONE = "teacher={kind: openai, model: eyes, modality: "
STUDIES = {  # by what annotates the series and who learns from them
    "text": (f"{FROM_ONE}text}}", "students.models=[0.03M]"),
    "plots": (f"{FROM_ONE}image}}", "students.models=[{name: eyes, size: 0.03M, modality: image}]"),
    "bare": (f"{FROM_ONE}both}}", "plots.style=bare", "students.models=[0.03M]"),
    "local": (TRAINED, "students.models=[{name: 0.03M, modality: image}]"),
    "engine": (TRAINED, "teacher.kind=vllm", "students.models=[0.03M]"),
    "rules": ("teacher={kind: rules}", "students.models=[{name: 0.03M, modality: image}]"),
}
VISION_MODELS = ("plots", "local", "rules")
OF_RUNS = ("run", "tokens", "predictions")
ASKED, SHOWN = ("text", "plots", "bare", "engine"), ("plots", "bare", "local", "engine")
# What each version shapes: keys of artefacts, and of requests, by study.
SHAPED: dict[str, set[tuple[str, str]]] = {
    "tsd.generation.blocks": {
        *((study, "series") for study in STUDIES),
        *((study, key) for study in ("local", "engine") for key in ("teacher", "annotations")),
    },
    "tsd.plots.plotter": {(study, key) for study in SHOWN for key in ("plots", "annotations")}
    | {(study, "plots") for study in STUDIES}
    | {(study, "requests") for study in ("plots", "bare", "engine")},
    "tsd.plots.rasterised": {(study, key) for study in VISION_MODELS for key in OF_RUNS}
    | {(study, key) for study in ("bare", "local", "engine") for key in ("plots", "annotations", "requests")}
    | {(study, "teacher") for study in ("local", "engine")},
    "tsd.curation": {(study, "curation") for study in STUDIES},
    "tsd.training.runs": {(study, key) for study in STUDIES for key in (*OF_RUNS, "tokenizer")}
    | {(study, key) for study in ("local", "engine") for key in ("teacher", "annotations", "requests")},
    "tsd.inference": {
        *((study, "predictions") for study in STUDIES),
        ("local", "annotations"),
        ("local", "requests"),
    },
    "tsd.teachers.prompts": {(study, key) for study in ASKED for key in ("annotations", "requests")},
}
OF_FILES = {"tsd.teachers.api.journal_lines", "tsd.teachers.api.batch_registry"}  # versions of formats, in no key


def every_key(series: datasets.Dataset, row: pa.Table) -> dict[tuple[str, str], str]:
    """The keys of all artefacts of the studies, by study and kind. row: one series."""
    found = {}
    for study, changes in STUDIES.items():
        recipe = load("laptop", changes)
        (run, *_) = identity.plan_runs(recipe, "examples")
        here = {
            "series": identity.series_key(recipe),
            "plots": identity.plots_key(recipe, series),
            "annotations": identity.annotations_key(recipe, series),
            "curation": identity.curation_key(recipe, series, series),
            "tokenizer": run.tokenizer,
            "tokens": run.tokens,
            "run": run.run_id,
            "predictions": identity.predictions_key(recipe, run, series),
        }
        teacher = recipe.teacher
        if isinstance(teacher, ModelTeacher) and teacher.train:
            here["teacher"] = identity.teacher_key(recipe)
        if isinstance(teacher, LocalTeacher):
            (here["requests"],) = local.keys(teacher, recipe.asks, row)
        elif isinstance(teacher, ModelTeacher):
            (here["requests"],) = Questions(teacher, recipe.asks, recipe.plots, recipe.seed).keys(row)
        found |= {(study, kind): key for kind, key in here.items()}
    return found


def versions() -> dict[str, ModuleType]:
    """Every module of tsd that defines a version."""
    found = {}
    for path in sorted(Path(tsd.__file__).parent.rglob("*.py")):
        body = ast.parse(path.read_text()).body
        named = [node.target for node in body if isinstance(node, ast.AnnAssign)]
        named += [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
        if any(isinstance(one, ast.Name) and one.id == "VERSION" for one in named):
            module = ".".join(path.relative_to(Path(tsd.__file__).parents[1]).with_suffix("").parts)
            found[module.removesuffix(".__init__")] = importlib.import_module(module.removesuffix(".__init__"))
    return found


def test_every_version_of_the_code_is_known_here() -> None:
    assert versions().keys() == SHAPED.keys() | OF_FILES


@pytest.mark.parametrize("module", SHAPED)
def test_a_version_changes_the_key_of_each_artefact_that_it_shapes_and_of_no_other(
    module: str, series: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = draw_table(SINGLE, SeriesConfig(), 0, 0, 1)
    before = every_key(series, row)
    monkeypatch.setattr(versions()[module], "VERSION", "another")
    after = every_key(series, row)
    assert {each for each in before if before[each] != after[each]} == SHAPED[module]


# Computed by the first version whose tasks have the robust truth.
@pytest.mark.parametrize(
    ("study", "key"),
    [("text", "07409abdf9cc9373"), ("plots", "1891bff8a8f427f3"), ("rules", "3a9671566bd94bc5")],
)
def test_annotations_of_teachers_that_see_no_rasterised_plots_keep_their_keys(
    study: str, key: str, series: datasets.Dataset
) -> None:
    assert identity.annotations_key(load("laptop", STUDIES[study]), series) == key


def test_the_batch_size_of_the_nli_model_may_be_lowered_after_an_error(series: datasets.Dataset) -> None:
    def key(*changes: str) -> str:
        return identity.curation_key(load("laptop", [*BRIEF, "curation.nli={model: m}", *changes]), series, series)

    assert key("curation.nli.batch_size=8") == key() == "9b37d67a7cee13df"
    assert key("curation.nli.threshold=0.6") != key()
    assert "curation.nli.batch_size" not in {
        path for path, _, _ in load("laptop", ["curation.nli={model: m}"]).shaped()
    }


def planned(*changes: str) -> dict[str, RunSpec]:
    """The runs of a study by id."""
    return {run.run_id: run for run in identity.plan_runs(load("laptop", [*BRIEF, *changes]), "examples")}


def test_a_study_that_grows_keeps_its_runs_and_only_adds_some() -> None:
    before = planned("students.models=[0.03M]", "students.train_sizes=[100]", "students.seeds=[0]")
    for change in (
        ("students.models=[0.03M, 0.1M]", "students.train_sizes=[100]", "students.seeds=[0]"),
        ("students.models=[0.03M]", "students.train_sizes=[100, 9000]", "students.seeds=[0]"),
        (
            "students.models=[0.03M, {name: eyes, size: 0.03M, modality: image}]",
            "students.train_sizes=[100]",
            "students.seeds=[0]",
        ),
        ("students.models=[0.03M]", "students.train_sizes=[100]", "students.seeds=[0, 1, 2]"),
    ):
        assert before.keys() < planned(*change).keys()


def test_students_that_see_plots_have_a_vocabulary_of_their_own() -> None:
    text, image = planned(
        "students.models=[0.03M, {name: eyes, size: 0.03M, modality: image}]",
        "students.train_sizes=[100]",
        "students.seeds=[0]",
    ).values()
    assert text.tokenizer != image.tokenizer


def test_gpus_train_in_another_precision_and_make_other_runs() -> None:
    cpu, gpu = planned(), planned("training.gpu=true")
    assert not cpu.keys() & gpu.keys()
    assert {run.precision for run in gpu.values()} == {"bfloat16"}


@pytest.fixture
def series(tmp_path: Path) -> datasets.Dataset:
    """A table of no series."""
    schema = SINGLE.tables.series
    datasets.write_part(str(tmp_path), 0, schema.empty_table(), schema, "key")
    return datasets.commit(str(tmp_path), schema, "key", 1, {})


def test_predictions_of_another_engine_are_others(series: datasets.Dataset) -> None:
    def key(*changes: str, student: Student = SPEC.student) -> str:
        recipe: Recipe = load("laptop", [*BRIEF, *changes])
        return identity.predictions_key(recipe, replace(SPEC, student=student), series)

    assert key() == key("evaluation.workers=1", "training.threads=2")
    assert key() != key("evaluation.vllm=true")
    assert key("evaluation.vllm=true") != key("evaluation.vllm=true", "training.gpu=true")
    scratch = Student(name="0.03M")
    assert key(student=scratch) == key("evaluation.vllm=true", student=scratch)

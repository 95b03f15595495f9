"""Identity of every artefact of a study. A key is a hash of all that shapes an artefact's bytes.

Settings that only concern machines are in no key. A folder whose key differs was made from another recipe, by
another version of the code, or from other data.
"""

import importlib.util
from dataclasses import asdict
from typing import Any, Literal

from tsd import curation, inference
from tsd.generation import blocks
from tsd.plots import rasterised
from tsd.recipe import LocalTeacher, ModelTeacher, Recipe, Student
from tsd.recipe.additions import METRICS, POLICIES
from tsd.series.processes import added
from tsd.storage import datasets, keys
from tsd.storage.schemas import fingerprint
from tsd.training import runs
from tsd.training.runs import Precision, RunSpec

Engine = Literal["greedy", "vllm"]
ASKING = "asking-1"  # version of the prompts that no key of annotations names: earlier tables keep theirs


def series_key(recipe: Recipe) -> str:
    """Key of the series: generator, seed, the recipe's section, and processes of plugins that it names."""
    asked = [recipe.asks.name, recipe.asks.version, fingerprint(recipe.asks.tables.series)]
    shaped = [*asked, recipe.seed, recipe.series.model_dump()]
    processes = {name: process.version for name, process in added(recipe.series.mix).items()}
    return keys.digest(["series", blocks.VERSION, *shaped, *([processes] if processes else [])])


def plots_key(recipe: Recipe, series: datasets.Dataset) -> str:
    """Key of the stored plots."""
    return keys.digest(["plots", *plots_identity(recipe), series.digest])


def plots_identity(recipe: Recipe) -> list[dict[str, Any] | str]:
    """What determines a plot besides its series."""
    from tsd.plots import plotter  # matplotlib is slow to import

    return [recipe.plots.identity, *plotter.versions(recipe.plots)]


def teacher_key(recipe: Recipe) -> str:
    """Key of the local teacher that the study trains: training settings, series, plots and code."""
    assert isinstance(recipe.teacher, ModelTeacher)
    assert recipe.teacher.train
    series = recipe.series.model_dump(exclude={"count", "split", "blocks_per_part"})
    drawn = [blocks.VERSION, rasterised.VERSION, runs.VERSION, recipe.seed, series]
    if processes := {name: process.version for name, process in added(recipe.series.mix).items()}:
        drawn.append(processes)
    shaped = [recipe.asks.name, recipe.asks.version, *drawn, recipe.teacher.train.model_dump()]
    return keys.digest(["own teacher", *shaped])


def annotations_key(recipe: Recipe, series: datasets.Dataset) -> str:
    """Key of the annotations: prompt, teacher, plots and series, and the code that makes the responses."""
    teacher, made = recipe.teacher, []
    if isinstance(teacher, ModelTeacher):
        made = [*(plots_identity(recipe) if teacher.sees_images else []), *_responding(recipe, teacher)]
    shown = [recipe.asks.version, teacher.identity, *made, recipe.seed]
    return keys.digest(["annotations", *shown, series.digest])


def _responding(recipe: Recipe, teacher: ModelTeacher) -> list[str | int]:
    """What determines the responses of a model besides its settings and what it is shown."""
    trained = [teacher_key(recipe)] if teacher.train else []
    if isinstance(teacher, LocalTeacher):
        return [*trained, inference.VERSION]
    from tsd.teachers import prompts  # it imports matplotlib

    return [*trained, *([prompts.VERSION] if prompts.VERSION != ASKING else [])]


def curation_key(recipe: Recipe, series: datasets.Dataset, annotations: datasets.Dataset) -> str:
    """Key of verdicts, examples and rejects. Policies of plugins are part of it if the recipe names any."""
    parents = {"series": series.digest, "annotations": annotations.digest}
    settings = recipe.curation.keyed
    policies = {name: [POLICIES[name].version, each] for name, each in settings.pop("policies").items()}
    shaped = [recipe.asks.version, settings, parents, *([policies] if policies else [])]
    return keys.digest(["curate", curation.VERSION, *shaped])


def added_metrics(recipe: Recipe) -> list[dict[str, str]]:
    """What metrics of plugins add to the key of the runs table: their versions by name, if there are any."""
    metrics = {name: METRICS[name].version for name in recipe.evaluation.metrics}
    return [metrics] if metrics else []


def tokenizer_key(recipe: Recipe, student: Student, examples: str) -> str:
    """Key of a student's tokenizer. examples: digest of the examples table.

    Text and vision students have one each. It does not depend on the train sizes, so a study that grows by one
    keeps its runs. A student with a source brings its own tokenizer.
    """
    if student.source:
        return student.source
    shaped = [runs.VERSION, recipe.asks.version, recipe.training.max_length, student.is_multimodal]
    return keys.digest(["tokenizer", *shaped, examples])


def tokenizer_folder(study_folder: str, run: RunSpec) -> str:
    """Where the tokenizer of a run lies: in the study's folder, or the student's source."""
    return run.student.source or f"{study_folder}/tokenizers/{run.tokenizer}"


def precision(recipe: Recipe) -> Precision:
    """Number format in which a study's students are trained."""
    return "bfloat16" if recipe.training.gpu else "float32"


def plan_runs(recipe: Recipe, examples: str) -> list[RunSpec]:
    """Every run of a study. examples: digest of the examples table."""
    return [_spec(recipe, *cell, examples) for cell in recipe.students.cells()]


def _spec(recipe: Recipe, student: Student, train_size: int, seed: int, examples: str) -> RunSpec:
    """The specification of one run. A distilled run also names the run that teaches it."""
    teacher_run = None
    if (teacher := recipe.students.teacher_of(student)) is not None:
        most = max(recipe.students.train_sizes)
        seeds = recipe.students.seeds_for(most)
        teacher_run = _spec(recipe, teacher, most, seed if seed in seeds else seeds[0], examples).run_id
    return RunSpec(
        student=student,
        examples=train_size,
        seed=seed,
        training=recipe.training,
        validation_examples=recipe.evaluation.validation_examples,
        corpus=examples,
        tokenizer=tokenizer_key(recipe, student, examples),
        precision=precision(recipe),
        teacher_run=teacher_run,
    )


def engine_of(recipe: Recipe, student: Student) -> Engine:
    """The engine that decodes a student.

    vLLM takes full models that were fine-tuned from a source, if the recipe asks for it, or on GPUs where the
    driver has it. Students from scratch are decoded before an engine would be ready.
    """
    if student.source is None or (student.lora and student.lora.export == "adapter"):
        return "greedy"
    default = recipe.training.gpu and vllm_is_installed()
    return "vllm" if (default if recipe.evaluation.vllm is None else recipe.evaluation.vllm) else "greedy"


def vllm_is_installed() -> bool:
    """Whether this process could start a vLLM engine."""
    return importlib.util.find_spec("vllm") is not None


def predictions_key(recipe: Recipe, run: RunSpec, series: datasets.Dataset) -> str:
    """Key of a run's predictions: student, engine, its precision and code, series and maximum response length."""
    engine = engine_of(recipe, run.student)
    computed = precision(recipe) if engine == "vllm" else "float32"
    asked = recipe.evaluation.model_dump(include={"series", "batch_size"})
    shaped = [recipe.asks.version, run.run_id, engine, computed, asked, recipe.max_new_tokens, inference.VERSION]
    return keys.digest(["predictions", *shaped, series.digest])


def origin(recipe: Recipe, teacher: str) -> dict[str, str]:
    """Where a student comes from, for its folder: study, recipe, teacher, and the definitions of its labels."""
    found = {"study": recipe.name, "recipe": keys.digest(recipe.model_dump(mode="json")), "teacher": teacher}
    return found | (asdict(recipe.asks.defined) if recipe.asks.defined else {})

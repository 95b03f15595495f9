"""Runs and fits -> the report: one self-contained HTML page, the scaling figure, and summary lines.

In: a `Study` with everything that is shown. Out: HTML, a matplotlib figure, sentences. Scores and fits are
computed elsewhere; the report only selects the best run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise

import pyarrow as pa

from tsd.curation import Counts, review
from tsd.curation.counts import NOT_STATED
from tsd.evaluation.laws import PARAMETERS, FittedLaw
from tsd.evaluation.paired import Comparison, Difference
from tsd.evaluation.scoring import Beside, Clear
from tsd.plots.figures import Figure
from tsd.reporting.pages import percent, template
from tsd.reporting.runs import Run, in_order, loss_of, mean_curve, students_of, text_counterparts
from tsd.reporting.scaling_figure import BASELINE_NAMES, Baselines, Colours, Fits, draw, inline
from tsd.storage.schemas import ALL_RIGHT, CLOSE, STATED, VALID
from tsd.tasks import Task

MOST_TOLD = 4  # facets in the best student's line; with more, the exact match only
BETTER = "better than"
CERTAIN = 0.05  # significance level of differences


@dataclass(frozen=True)
class Sample:
    """A held-out series with the responses to it."""

    series_id: int
    values: list[int]
    """0–99, oldest first."""
    truth: dict[str, str]
    teacher: str
    """The raw response."""
    student: str
    """The raw response of the best student, see `best`."""
    student_labels: dict[str, str | None]
    teacher_labels: dict[str, str | None]
    seen: str | None = None
    """The teacher's plot, a PNG in base64; None for a teacher without image input."""


@dataclass(frozen=True)
class Study:
    """Everything that a report shows."""

    title: str
    """The study's name, such as laptop."""
    task: Task
    recipe_yaml: str
    runs: pa.Table
    """The task's runs table, at least one row. Scores are null for runs that were not decoded."""
    baselines: dict[str, dict[str, float]]
    """By facet and for the exact match, as returned by `tsd.evaluation.scoring.baselines`."""
    fits: dict[str, FittedLaw | str]
    """The law, or a sentence why there is none, by "loss", "label_loss" or the score whose error rate was fitted.
    N is parameters without embeddings, D is training examples."""
    samples: list[Sample]
    seconds: dict[str, float]
    """Wall-clock seconds by stage, in order."""
    cpu_seconds: dict[str, float]
    """CPU seconds by stage, of all processes that the driver started."""
    useful_share: float
    """Fraction of the wall-clock time spent training or decoding students."""
    clear: dict[str, Clear]
    """The best student's facets without near ties; see `tsd.evaluation.scoring.without_ties`."""
    classes: dict[str, dict[str, float]]
    """Relative frequency of every class of every facet, over all series."""
    teacher: str
    """The teacher's name in tables."""
    counts: Counts
    """Counts of its responses and their curation, as returned by `tsd.curation.about`."""
    beside: dict[str, Beside]
    """The best student compared with the teacher; see `tsd.evaluation.scoring.beside_teacher`."""
    facts: dict[str, str]
    objectives: Sequence[Comparison] = ()
    """SFT-only students and their distilled counterparts; see `tsd.evaluation.paired.compare`."""
    modalities: Sequence[Comparison] = ()
    """Text students and vision students of the same size."""
    modalities_at_flops: Sequence[Comparison] = ()
    """The same at equal training FLOPs, by interpolation between the text students' runs."""


def write(study: Study) -> str:
    """The HTML page. It loads nothing external and holds no credentials of URIs."""
    chosen, runs = best(study.runs), in_order(study.runs)
    colours = Colours(students_of(runs), text_counterparts(runs))
    drawn = {
        name: draw(study.task.names, runs, study.baselines, study.fits, colours, tall=name == "tall")
        for name in ("wide", "tall")
    }
    return template("report").render(
        title=study.title,
        is_law=lambda fitted: isinstance(fitted, FittedLaw),
        study=study,
        runs=runs,
        best=chosen,
        headlines=headlines(study),
        figures={name: inline(figure, name, colours) for name, figure in drawn.items()},
        colours=colours,
        facets=study.task.names,
        definitions=study.task.definitions,
        scores=score_titles(study.task),
        baselines={
            kind: {score: found.get(kind) for score, found in study.baselines.items()} for kind in BASELINE_NAMES
        },
        baseline_names=BASELINE_NAMES,
        sentences=study.task.sentences,
        law_parameters=PARAMETERS,
        review=review,
        not_stated=NOT_STATED,
        comparison=comparison,
        apart=_apart,
        split_loss=any(run["label_loss"] is not None for run in runs),
        both_modalities=len({run["modality"] for run in runs}) > 1,
    )


def headlines(study: Study) -> list[str]:
    """Summary lines: best student, teacher, effect of data, scaling law."""
    return [
        _best_line(study.task, best(study.runs), study.baselines),
        _data_line(in_order(study.runs)),
        _law_line(study.fits.get("loss", "none was fitted.")),
        *teacher_line(study),
        *objective_line(study.objectives),
        *modality_line(study.modalities, study.modalities_at_flops),
    ]


def scaling_figure(task: Task, runs: pa.Table, baselines: Baselines, fits: Fits) -> Figure:
    """Loss and the accuracy of each facet against training examples, one line per student."""
    rows = in_order(runs)
    return draw(task.names, rows, baselines, fits, Colours(students_of(rows), text_counterparts(rows)))


def score_titles(task: Task) -> dict[str, str]:
    """Readable titles of a run's scores."""
    counted = {4: "four"}.get(len(task.names), str(len(task.names)))
    metrics = {name: name.replace("_", " ") for name in task.metrics}
    numbers = {CLOSE: "stated numbers within 5 %", STATED: "with numbers"} if task.numbers else {}
    facets = {name: name for name in task.names}
    return {**facets, ALL_RIGHT: f"all {counted} right", VALID: "valid", **numbers, **metrics}


def best(runs: pa.Table) -> Run:
    """The run with the lowest held-out loss. Selection by a test score would bias that score upwards."""
    if runs.num_rows == 0:
        raise ValueError("a report needs at least one run, got none")
    return min(in_order(runs), key=lambda run: float(run["validation_loss"]))


# ---- Summary lines


def _best_line(task: Task, run: Run, baselines: Baselines) -> str:
    """The best student's accuracies beside the strongest baselines."""
    start = (
        f"Best student: {run['student']} on {run['examples']:,} examples, chosen by the lowest held-out loss "
        f"({run['validation_loss']:.3f})"
    )
    titles = score_titles(task)
    told = (*task.names, ALL_RIGHT) if len(task.names) <= MOST_TOLD else (ALL_RIGHT,)
    scored = [score for score in told if run[score]]
    if not scored:
        return f"{start}; it was not scored."
    said = (
        f"{titles[score]} {percent(run[score]['value'])} %{_beside(baselines.get(score, {}))}" for score in scored
    )
    return f"{start}: {', '.join(said)}."


def _beside(baseline: Mapping[str, float]) -> str:
    """The strongest baseline with its name."""
    if not baseline:
        return ""
    name = max(baseline, key=lambda kind: baseline[kind])
    return f" ({BASELINE_NAMES[name]} {percent(baseline[name])} %)"


def _data_line(runs: Sequence[Run]) -> str:
    """Whether held-out loss falls with the number of training examples, by student."""
    curves = {student: mean_curve(runs, student, loss_of) for student in students_of(runs)}
    curves = {student: curve for student, curve in curves.items() if len(curve) > 1}
    if not curves:
        return "Every student was trained at a single train size, so the runs do not show the effect of more data."
    ends = ", ".join(
        f"{student} from {losses[0]:.3f} to {losses[-1]:.3f}"
        for student, losses in ((student, list(curve.values())) for student, curve in curves.items())
    )
    train_sizes = sorted({examples for curve in curves.values() for examples in curve})
    over = f"from {train_sizes[0]:,} to {train_sizes[-1]:,} examples: {ends}."
    stalled = [
        student
        for student, curve in curves.items()
        if not all(after < before for before, after in pairwise(curve.values()))
    ]
    if not stalled:
        return f"Held-out loss falls with data at every size, {over}"
    return f"Held-out loss does not fall with every step of data for {' and '.join(stalled)}, {over}"


def _law_line(fitted: FittedLaw | str) -> str:
    """The fitted law's exponents, or why there is none."""
    if isinstance(fitted, str):
        return f"No scaling law of the loss: {fitted}"
    if not fitted.determined:
        return f"{fitted.runs} runs do not determine the exponents of the loss: {fitted.note}."
    alpha, beta = (
        f"{getattr(fitted.law, name):.2f} [{fitted.intervals[name][0]:.2f}–{fitted.intervals[name][1]:.2f}]"
        for name in ("alpha", "beta")
    )
    return (
        f"Over {fitted.runs} runs the reducible loss falls with size to the power alpha = {alpha} "
        f"and with data to the power beta = {beta} (95 % bootstrap intervals)."
    )


def teacher_line(study: Study) -> list[str]:
    """The best student compared with its teacher, in one line; none without scores."""
    if ALL_RIGHT not in study.beside:
        return []
    found = study.beside[ALL_RIGHT]
    better = [
        name for name in study.task.names if name in study.beside and comparison(study.beside[name]) == BETTER
    ]
    besides = f", though better on {' and '.join(better)}" if better and comparison(found) != BETTER else ""
    return [
        f"The teacher, {study.teacher}, has {score_titles(study.task)[ALL_RIGHT]} on "
        f"{percent(found.teacher.value)} % of the scored series, the best student on "
        f"{percent(found.student.value)} %: the student is {comparison(found)} its teacher{besides}."
    ]


def objective_line(found: Sequence[Comparison]) -> list[str]:
    """The effect of knowledge distillation, in one line; none without distilled students."""
    if not found:
        return []
    losses, rights = ([getattr(each, name).sign for each in found] for name in ("loss", "right"))
    return [
        f"SFT and knowledge distillation: in {len(found)} comparison{'s' * (len(found) > 1)} of students that "
        f"differ in nothing else, the distilled one has a lower held-out loss {_times(losses.count(-1))} and a "
        f"higher one {_times(losses.count(1))}, more facets right {_times(rights.count(1))} and fewer "
        f"{_times(rights.count(-1))}; the other differences are not significant "
        "(95 % intervals, not corrected for multiple comparisons)."
    ]


def modality_line(found: Sequence[Comparison], at_flops: Sequence[Comparison] = ()) -> list[str]:
    """The effect of the input modality, in one line; none unless both modalities were trained."""
    if not found:
        return []
    losses, rights = ([getattr(each, name).sign for each in found] for name in ("loss", "right"))
    flops = sorted(each.flops for each in found)
    return [
        f"Text and image input: in {len(found)} comparison{'s' * (len(found) > 1)} at equal parameters and "
        f"examples, the vision student has a lower held-out loss {_times(losses.count(-1))} and a higher one "
        f"{_times(losses.count(1))}, more facets right {_times(rights.count(1))} and fewer "
        f"{_times(rights.count(-1))}, for {flops[0]:.2f} to {flops[-1]:.2f} times the FLOPs.{_at_flops(at_flops)}"
    ]


def _at_flops(found: Sequence[Comparison]) -> str:
    """The comparison at equal training FLOPs, as an additional sentence."""
    if not found:
        return ""
    signs = [each.right.sign for each in found]
    return (
        f" At equal FLOPs, in {len(found)} comparison{'s' * (len(found) > 1)}, it has more facets right "
        f"{_times(signs.count(1))} and fewer {_times(signs.count(-1))}."
    )


def _times(count: int) -> str:
    """How often, in words."""
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count} times")


def _apart(found: Difference, scale: float, digits: int) -> str:
    """A signed difference with its interval."""
    ends = [found.second - found.first] if found.apart is None else astuple(found.apart)
    value, *interval = (f"{end * scale:+.{digits}f}".replace("-", "−") for end in ends)
    return f"{value} [{' to '.join(interval) or 'one seed'}]"


def comparison(found: Beside) -> str:
    """Whether the student is significantly better or worse than its teacher."""
    if found.p >= CERTAIN:
        return "not significantly different from"
    return BETTER if found.student_only > found.teacher_only else "worse than"

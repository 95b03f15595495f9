"""Runs and fits -> one self-contained HTML page, its main picture, and the lines that matter.

In: a `Study`, all that a report shows. Out: HTML that loads nothing, a matplotlib figure, plain sentences.
It computes no score and no fit, and chooses only which run to call the best.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import jinja2
import matplotlib
import numpy as np
import pyarrow as pa
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from tsd.language import sentences
from tsd.progress import clock
from tsd.scaling import PARAMETERS, FittedLaw
from tsd.schema import FACETS, SCORES

Run: TypeAlias = dict[str, Any]  # a row of `tsd.schema.RUNS`
Baselines: TypeAlias = Mapping[str, Mapping[str, float]]
Fits: TypeAlias = Mapping[str, FittedLaw | str]

SCORE_NAMES = {**{facet: facet for facet in FACETS}, "all_four": "all four right", "valid": "valid"}
BASELINE_NAMES = {"chance": "chance", "majority": "majority", "place_given_trend": "place given trend"}
MOST_REASONS = 15  # a real teacher fails in hundreds of ways, most of them once

assert set(SCORE_NAMES) == set(SCORES)


@dataclass(frozen=True)
class Sample:
    """One held-out series for people to look at, and what was said of it."""

    series_id: int
    values: list[int]
    """0–99, oldest first."""
    truth: dict[str, str]
    teacher: str
    """The raw reply."""
    student: str
    """The raw reply of the best student, see `best`."""
    student_labels: dict[str, str | None]
    teacher_labels: dict[str, str | None]


@dataclass(frozen=True)
class Study:
    """All that a report shows."""

    title: str
    """The study's name, such as laptop."""
    recipe_yaml: str
    runs: pa.Table
    """Of the schema `RUNS`, at least one row; a score is null where nothing was decoded."""
    baselines: dict[str, dict[str, float]]
    """By facet and for all_four, as `tsd.scoring.baselines` gives them."""
    fits: dict[str, FittedLaw | str]
    """By "loss" or the score whose error rate was fitted: the law, or a sentence on why there is none.
    N is parameters without embeddings, D is training examples."""
    samples: list[Sample]
    seconds: dict[str, float]
    """Wall seconds by stage, in order."""
    useful_share: float
    """Share of the wall time in which students were trained or decoded, 0 to 1."""
    classes: dict[str, dict[str, float]]
    """Share of every class of every facet, over all series."""
    curated: dict[str, int]
    """Annotations that were "kept", and how many were rejected for each reason."""
    facts: dict[str, str]


def write(study: Study) -> str:
    """The page. It holds no address that a browser would load, and no credentials of any URI."""
    chosen, runs = best(study.runs), _sorted(study.runs)
    colours = _Colours(_sizes(runs))
    drawn = {
        name: _draw(runs, study.baselines, study.fits, colours, tall=name == "tall") for name in ("wide", "tall")
    }
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            study=study,
            runs=runs,
            best=chosen,
            headlines=headlines(study),
            figures={name: _inline(figure, name, colours) for name, figure in drawn.items()},
            colours=colours,
            facets=tuple(FACETS),
            scores=SCORE_NAMES,
            baselines={
                kind: {score: found.get(kind) for score, found in study.baselines.items()}
                for kind in BASELINE_NAMES
            },
            baseline_names=BASELINE_NAMES,
            law_parameters=PARAMETERS,
            most_reasons=MOST_REASONS,
        )
    )


def headlines(study: Study) -> list[str]:
    """What a reader in a hurry should know: the best student, what data does, what the law says."""
    return [
        _best_line(best(study.runs), study.baselines),
        _data_line(_sorted(study.runs)),
        _law_line(study.fits.get("loss", "none was fitted.")),
    ]


def scaling_figure(runs: pa.Table, baselines: Baselines, fits: Fits) -> Figure:
    """Loss and the accuracy of each facet against training examples, one line a size."""
    rows = _sorted(runs)
    return _draw(rows, baselines, fits, _Colours(_sizes(rows)))


def best(runs: pa.Table) -> Run:
    """The run with the lowest held-out loss: chosen by a score, its own test score would flatter it."""
    if runs.num_rows == 0:
        raise ValueError("a report needs at least one run, got none")
    return min(_sorted(runs), key=lambda run: float(run["validation_loss"]))


# ---- Runs, in order


def _sorted(runs: pa.Table) -> list[Run]:
    rows: list[Run] = runs.to_pylist()
    return sorted(rows, key=lambda run: (_size(run), run["student"], run["examples"], run["seed"]))


def _size(run: Run) -> int:
    return int(run["parameters_without_embeddings"])


def _sizes(runs: Sequence[Run]) -> list[str]:
    """The students by size."""
    return list(dict.fromkeys(run["student"] for run in runs))


def _curve(runs: Sequence[Run], student: str, value: Callable[[Run], float | None]) -> dict[int, float]:
    """A student's mean over seeds, by volume; a volume without the value is left out."""
    found: dict[int, list[float]] = {}
    for run in runs:
        if run["student"] == student and (measured := value(run)) is not None:
            found.setdefault(run["examples"], []).append(measured)
    return {examples: fmean(values) for examples, values in found.items()}


def _loss(run: Run) -> float:
    return float(run["validation_loss"])


def _accuracy(facet: str) -> Callable[[Run], float | None]:
    return lambda run: run[facet]["value"] if run[facet] else None


# ---- The lines that matter


def _best_line(run: Run, baselines: Baselines) -> str:
    start = (
        f"Best student: {run['student']} on {run['examples']:,} examples, chosen by the lowest held-out loss "
        f"({run['validation_loss']:.3f})"
    )
    scored = [score for score in (*FACETS, "all_four") if run[score]]
    if not scored:
        return f"{start}; it was not scored."
    said = (
        f"{SCORE_NAMES[score]} {_percent(run[score]['value'])} %{_beside(baselines.get(score, {}))}"
        for score in scored
    )
    return f"{start}: {', '.join(said)}."


def _beside(baseline: Mapping[str, float]) -> str:
    """The strongest baseline, named."""
    if not baseline:
        return ""
    name = max(baseline, key=lambda kind: baseline[kind])
    return f" ({BASELINE_NAMES[name]} {_percent(baseline[name])} %)"


def _data_line(runs: Sequence[Run]) -> str:
    curves = {student: _curve(runs, student, _loss) for student in _sizes(runs)}
    curves = {student: curve for student, curve in curves.items() if len(curve) > 1}
    if not curves:
        return "Every student saw a single volume, so the runs say nothing of what more data does."
    ends = ", ".join(
        f"{student} from {losses[0]:.3f} to {losses[-1]:.3f}"
        for student, losses in ((student, list(curve.values())) for student, curve in curves.items())
    )
    volumes = sorted({examples for curve in curves.values() for examples in curve})
    over = f"from {volumes[0]:,} to {volumes[-1]:,} examples: {ends}."
    stalled = [
        student
        for student, curve in curves.items()
        if not all(after < before for before, after in pairwise(curve.values()))
    ]
    if not stalled:
        return f"Held-out loss falls with data at every size, {over}"
    return f"Held-out loss does not fall with every step of data for {' and '.join(stalled)}, {over}"


def _law_line(fitted: FittedLaw | str) -> str:
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


# ---- The main picture

INK, SOFT, RULE = "#1f2329", "#68707a", "#dfe3e8"
CSS_COLOURS = {INK: "--ink", SOFT: "--soft", RULE: "--rule"}

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "legend.frameon": False,
}
BASELINE_STYLES: dict[str, Any] = {"majority": (0, (1, 2)), "place_given_trend": (0, (5, 2.5))}
LAW_STYLE: Any = (0, (4, 2))
DODGE = 0.22  # share of the gap between two volumes over which the runs of one volume are spread


class _Colours:
    """One colour a student, dark to light by size: viridis, which stays in order for colour-blind eyes."""

    def __init__(self, students: Sequence[str]) -> None:
        viridis = matplotlib.colormaps["viridis"]
        steps = np.linspace(0, 1, len(students)) if len(students) > 1 else [0.5]
        places = dict(zip(students, steps, strict=True))
        self.light = {name: to_hex(viridis(0.02 + 0.78 * place)) for name, place in places.items()}
        self.dark = {name: to_hex(viridis(0.35 + 0.60 * place)) for name, place in places.items()}
        self.css = {name: f"--size-{number}" for number, name in enumerate(students)}


def _draw(runs: Sequence[Run], baselines: Baselines, fits: Fits, colours: _Colours, tall: bool = False) -> Figure:
    """tall: the loss above the accuracies, for a narrow page."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.3, 8.4) if tall else (10.6, 4.9), layout="constrained", facecolor="white")
        rows, columns = (2, 1) if tall else (1, 2)
        halves = figure.add_gridspec(
            rows, columns, **({"height_ratios": (1, 1.35)} if tall else {"width_ratios": (1, 1.12)})
        )
        _draw_loss(figure.add_subplot(halves[0]), runs, fits.get("loss"), colours)
        panels = halves[1].subgridspec(2, 2)
        first: Axes | None = None
        for number, facet in enumerate(FACETS):
            axes = figure.add_subplot(panels[number], sharey=first)
            first = first or axes
            _draw_accuracy(axes, runs, facet, baselines.get(facet, {}), colours)
            axes.tick_params(labelbottom=number > 1, labelleft=number % 2 == 0)
        assert first is not None
        first.set_ylim(_floor(runs, baselines), 1.01)
        figure.supxlabel("training examples", fontsize=9)
        figure.legend(
            handles=_legend(colours, with_law=isinstance(fits.get("loss"), FittedLaw)),
            loc="outside upper center",
            ncols=2 if tall else 9,
            fontsize=9,
            handlelength=2.2,
            columnspacing=1.6,
        )
    return figure


def _draw_loss(axes: Axes, runs: Sequence[Run], fitted: FittedLaw | str | None, colours: _Colours) -> None:
    volumes = _volume_axis(axes, runs)
    for student, colour in colours.light.items():
        own = [run for run in runs if run["student"] == student]
        curve = _curve(own, student, _loss)
        axes.plot(list(curve), list(curve.values()), color=colour, linewidth=1.6)
        axes.plot(
            [run["examples"] for run in own],
            [_loss(run) for run in own],
            "o",
            color=colour,
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.7,
        )
        if isinstance(fitted, FittedLaw):
            fine = np.geomspace(volumes[0], volumes[-1], 60)
            law = fitted.law.predict(_size(own[0]), fine)
            axes.plot(fine, law, color=colour, linewidth=0.9, linestyle=LAW_STYLE)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.set_title("Held-out loss")


def _draw_accuracy(
    axes: Axes, runs: Sequence[Run], facet: str, baseline: Mapping[str, float], colours: _Colours
) -> None:
    _volume_axis(axes, runs)
    for kind, style in BASELINE_STYLES.items():
        if kind in baseline:
            axes.axhline(baseline[kind], color=SOFT, linewidth=1.0, linestyle=style, zorder=1.5)
    for student, colour in colours.light.items():
        curve = _curve(runs, student, _accuracy(facet))
        axes.plot(list(curve), list(curve.values()), color=colour, linewidth=1.3)
    for run, shift in zip(runs, _shifts(runs), strict=True):
        if run[facet] is None:
            continue
        at, interval, colour = run["examples"] * shift, run[facet], colours.light[run["student"]]
        axes.plot([at, at], [interval["low"], interval["high"]], color=colour, linewidth=1.0)
        axes.plot(at, interval["value"], "o", color=colour, markersize=3, zorder=3)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.set_title(facet.capitalize() + (", accuracy" if facet == "trend" else ""))


def _volume_axis(axes: Axes, runs: Sequence[Run]) -> list[int]:
    """A logarithmic axis that names the volumes that there are, as far as there is room for them."""
    volumes = sorted({int(run["examples"]) for run in runs})
    axes.set_xscale("log")
    room = 10 ** (0.5 * _gap(volumes))
    axes.set_xlim(volumes[0] / room, volumes[-1] * room)
    axes.xaxis.set_major_locator(FixedLocator(volumes[:: -(-len(volumes) // 5)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _compact(value)))
    return volumes


def _gap(volumes: Sequence[int]) -> float:
    """The smallest distance between two volumes, in powers of ten."""
    return min((float(np.log10(after / before)) for before, after in pairwise(volumes)), default=0.3)


def _shifts(runs: Sequence[Run]) -> list[float]:
    """A factor for each run's volume, so that the runs of one volume stand side by side."""
    gap = _gap(sorted({int(run["examples"]) for run in runs}))
    places = sorted({(_size(run), run["student"], run["seed"]) for run in runs})
    steps = dict(zip(places, np.linspace(-0.5, 0.5, len(places)), strict=True)) if len(places) > 1 else {}
    return [float(10 ** (gap * DODGE * steps.get((_size(run), run["student"], run["seed"]), 0.0))) for run in runs]


def _floor(runs: Sequence[Run], baselines: Baselines) -> float:
    """Where the accuracy axes begin: the tenth below the lowest thing that is drawn."""
    drawn = [run[facet]["low"] for run in runs for facet in FACETS if run[facet]]
    drawn += [
        found for facet in FACETS for kind, found in baselines.get(facet, {}).items() if kind in BASELINE_STYLES
    ]
    return max(0.0, float(np.floor(min(drawn, default=0.0) * 10 - 0.2)) / 10)


def _legend(colours: _Colours, with_law: bool) -> list[Line2D]:
    students = [
        Line2D([], [], color=colour, marker="o", markersize=5, linewidth=1.6, label=student)
        for student, colour in colours.light.items()
    ]
    law = Line2D([], [], color=SOFT, linewidth=0.9, linestyle=LAW_STYLE, label="fitted law")
    baselines = [
        Line2D([], [], color=SOFT, linewidth=1.0, linestyle=style, label=BASELINE_NAMES[kind])
        for kind, style in BASELINE_STYLES.items()
    ]
    return [*students, *([law] if with_law else []), *baselines]


def _inline(figure: Figure, name: str, colours: _Colours) -> Markup:
    """The figure as an SVG element in the page's fonts and colours. name: keeps its ids apart from others."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    drawn = file.getvalue()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    drawn = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", drawn)
    drawn = drawn.replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans'")
    for colour, variable in (
        *CSS_COLOURS.items(),
        *((colours.light[student], variable) for student, variable in colours.css.items()),
        ("#ffffff", "--page"),
    ):
        drawn = drawn.replace(colour, f"var({variable})")
    return Markup(drawn)


# ---- Words and numbers of the page


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        clock=clock,
        count=lambda value: f"{value:,}",
        number=_number,
        percent=_percent,
        polyline=_polyline,
        public=_public,
        sentences=sentences,
    )
    environment.tests["law"] = lambda fitted: isinstance(fitted, FittedLaw)
    return environment


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _number(value: float) -> str:
    """Three digits that a person can read: 0.412, 23.1, 1.20×10¹²."""
    if abs(value) < 1e-6:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    digits, power = f"{value:.2e}".split("e")
    return f"{digits}×10{str(int(power)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def _compact(value: float) -> str:
    """8000 -> 8k: an axis has little room."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


def _polyline(values: Sequence[int], width: float, height: float) -> list[tuple[float, float]]:
    """Where each value lies in a box of 0–99: x to the right, y downwards, as SVG counts."""
    step = width / max(1, len(values) - 1)
    heights = (height * (1 - value / 99) for value in values)
    return [(round(place * step, 1), round(at, 1)) for place, at in enumerate(heights)]


def _public(text: str) -> str:
    """The text without the user and password of any URI in it: a tracking server's may hold both."""
    return re.sub(r"(?<=://)[^/\s@]+@", "…@", text)

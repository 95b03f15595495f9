"""The scaling figure: loss and accuracies against training examples, one line per student."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from markupsafe import Markup

from tsd.evaluation.laws import FittedLaw
from tsd.plots.figures import (
    Axes,
    Figure,
    FixedLocator,
    FuncFormatter,
    Line2D,
    MaxNLocator,
    NullLocator,
    matplotlib,
    style,
    to_hex,
)
from tsd.reporting.runs import Run, accuracy_of, loss_of, mean_curve, runs_of, sees_images, size_of, students_of

Baselines: TypeAlias = Mapping[str, Mapping[str, float]]
Fits: TypeAlias = Mapping[str, FittedLaw | str]

# The conditional baseline is for positions of extrema given the trend: see `tsd.tasks`.
BASELINE_NAMES = {"chance": "chance", "majority": "majority", "given": "majority place given trend"}

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
BASELINE_STYLES: dict[str, Any] = {"majority": (0, (1, 2)), "given": (0, (5, 2.5))}
LAW_STYLE: Any = (0, (4, 2))
VISION_STYLE: Any = (0, (1, 1))
DODGE = 0.22  # fraction of the gap between two training set sizes over which runs are spread


class Colours:
    """One colour per student by size, dark to light: viridis, whose order is visible with colour blindness."""

    def __init__(self, students: Sequence[str], like: Mapping[str, str] | None = None) -> None:
        """like: students that share the colour of another one."""
        like = like or {}
        own = [name for name in students if name not in like]
        viridis = matplotlib.colormaps["viridis"]
        steps = np.linspace(0, 1, len(own)) if len(own) > 1 else [0.5]
        place_of = dict(zip(own, steps, strict=True))
        places = {name: place_of[like.get(name, name)] for name in students}
        self.light = {name: to_hex(viridis(0.02 + 0.78 * place)) for name, place in places.items()}
        self.dark = {name: to_hex(viridis(0.35 + 0.60 * place)) for name, place in places.items()}
        self.css = {name: f"--size-{number}" for number, name in enumerate(students)}


def draw(
    facets: Sequence[str],
    runs: Sequence[Run],
    baselines: Baselines,
    fits: Fits,
    colours: Colours,
    tall: bool = False,
) -> Figure:
    """Plot loss and the accuracy of each facet against training examples, one line per student.

    tall: loss above the accuracies, for narrow pages.
    """
    across = 2 if len(facets) <= 4 or tall else 4
    down = -(-len(facets) // across)
    size = (4.3, 3.6 + 2.4 * down) if tall else (10.6, 0.9 + 2 * down)  # inches
    with style(STYLE):
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        rows, columns = (2, 1) if tall else (1, 2)
        halves = figure.add_gridspec(
            rows,
            columns,
            **({"height_ratios": (1, 1.35)} if tall else {"width_ratios": (1, 1.12 if across == 2 else 2.4)}),
        )
        _draw_loss(figure.add_subplot(halves[0]), runs, fits.get("loss"), colours)
        panels = halves[1].subgridspec(down, across)
        first: Axes | None = None
        for number, facet in enumerate(facets):
            axes = figure.add_subplot(panels[number], sharey=first)
            first = first or axes
            _draw_accuracy(axes, runs, facet, baselines.get(facet, {}), colours)
            few = across == 2
            axes.set_title(
                facet.capitalize() + (", accuracy" if few and number == 0 else ""), fontsize=9.5 if few else 7
            )
            axes.tick_params(labelbottom=number + across >= len(facets), labelleft=number % across == 0)
        assert first is not None
        first.set_ylim(_floor(facets, runs, baselines), 1.01)
        figure.supxlabel("training examples", fontsize=9)
        figure.legend(
            handles=_legend(colours, _marks(runs), with_law=isinstance(fits.get("loss"), FittedLaw)),
            loc="outside upper center",
            ncols=2 if tall else 9,
            fontsize=9,
            handlelength=2.2,
            columnspacing=1.6,
        )
    return figure


def _draw_loss(axes: Axes, runs: Sequence[Run], fitted: FittedLaw | str | None, colours: Colours) -> None:
    """Plot the mean held-out loss per student, its runs, and the fitted law."""
    train_sizes, marks = _train_size_axis(axes, runs), _marks(runs)
    both_modalities = len({sees_images(run) for run in runs}) > 1
    for student, colour in colours.light.items():
        own = runs_of(runs, student)
        curve = mean_curve(own, student, loss_of)
        axes.plot(list(curve), list(curve.values()), color=colour, linewidth=1.6, linestyle=marks[student].line)
        axes.plot(
            [run["examples"] for run in own],
            [loss_of(run) for run in own],
            linestyle="none",
            markersize=5,
            **marks[student].point(colour, edge="white"),
        )
        untold = own[0]["distilled_from"] is not None or (both_modalities and sees_images(own[0]))
        if isinstance(fitted, FittedLaw) and not untold:  # the law is fitted to the other students only
            fine = np.geomspace(train_sizes[0], train_sizes[-1], 60)
            law = fitted.law.predict(size_of(own[0]), fine)
            axes.plot(fine, law, color=colour, linewidth=0.9, linestyle=LAW_STYLE)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.set_title("Held-out loss")


def _draw_accuracy(
    axes: Axes,
    runs: Sequence[Run],
    facet: str,
    baseline: Mapping[str, float],
    colours: Colours,
) -> None:
    """Plot the mean accuracy on a facet per student, its runs with intervals, and the baselines."""
    _train_size_axis(axes, runs)
    marks = _marks(runs)
    for kind, dashes in BASELINE_STYLES.items():
        if kind in baseline:
            axes.axhline(baseline[kind], color=SOFT, linewidth=1.0, linestyle=dashes, zorder=1.5)
    for student, colour in colours.light.items():
        curve = mean_curve(runs, student, accuracy_of(facet))
        axes.plot(list(curve), list(curve.values()), color=colour, linewidth=1.3, linestyle=marks[student].line)
    for run, shift in zip(runs, _shifts(runs), strict=True):
        if run[facet] is None:
            continue
        at, interval, colour = run["examples"] * shift, run[facet], colours.light[run["student"]]
        axes.plot([at, at], [interval["low"], interval["high"]], color=colour, linewidth=1.0)
        point = marks[run["student"]].point(colour, edge=colour)
        axes.plot(at, interval["value"], markersize=3, zorder=3, **point)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))


def _train_size_axis(axes: Axes, runs: Sequence[Run]) -> list[int]:
    """Set up a logarithmic axis with the training set sizes as ticks, thinned to fit. Returns the sizes."""
    train_sizes = sorted({int(run["examples"]) for run in runs})
    axes.set_xscale("log")
    room = 10 ** (0.5 * _gap(train_sizes))
    axes.set_xlim(train_sizes[0] / room, train_sizes[-1] * room)
    axes.xaxis.set_major_locator(FixedLocator(train_sizes[:: -(-len(train_sizes) // 5)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _compact(value)))
    return train_sizes


def _gap(train_sizes: Sequence[int]) -> float:
    """The smallest distance between two training set sizes, in powers of ten."""
    return min((float(np.log10(after / before)) for before, after in pairwise(train_sizes)), default=0.3)


def _shifts(runs: Sequence[Run]) -> list[float]:
    """A factor for each run's position on the axis, so that runs of equal size are side by side."""
    gap = _gap(sorted({int(run["examples"]) for run in runs}))
    places = sorted({(size_of(run), run["student"], run["seed"]) for run in runs})
    steps = dict(zip(places, np.linspace(-0.5, 0.5, len(places)), strict=True)) if len(places) > 1 else {}
    return [
        float(10 ** (gap * DODGE * steps.get((size_of(run), run["student"], run["seed"]), 0.0))) for run in runs
    ]


def _floor(facets: Sequence[str], runs: Sequence[Run], baselines: Baselines) -> float:
    """The lower end of the accuracy axes: the multiple of 0.1 below everything shown."""
    drawn = [run[facet]["low"] for run in runs for facet in facets if run[facet]]
    drawn += [
        baselines[facet][kind] for facet in facets for kind in BASELINE_STYLES if kind in baselines.get(facet, {})
    ]
    return max(0.0, float(np.floor(min(drawn, default=0.0) * 10 - 0.2)) / 10)


@dataclass(frozen=True)
class Mark:
    """Line style and marker of a student's runs."""

    line: Any
    hollow: bool

    def point(self, colour: str, edge: str) -> dict[str, Any]:
        """Marker settings. edge: colour of a filled marker's edge; a hollow marker's is `colour`."""
        if self.hollow:
            return {"marker": "s", "markerfacecolor": "white", "markeredgecolor": colour, "markeredgewidth": 1.0}
        return {"marker": "o", "markerfacecolor": colour, "markeredgecolor": edge, "markeredgewidth": 0.7}


def _marks(runs: Sequence[Run]) -> dict[str, Mark]:
    """Filled markers for text students; beside them, hollow ones and dotted lines for vision students."""
    both_modalities = len({sees_images(run) for run in runs}) > 1
    return {
        student: Mark(VISION_STYLE, True)
        if both_modalities and sees_images(runs_of(runs, student)[0])
        else Mark("-", False)
        for student in students_of(runs)
    }


def _legend(colours: Colours, marks: Mapping[str, Mark], with_law: bool) -> list[Line2D]:
    """Legend entries: students, the fitted law, baselines."""
    students = [
        Line2D(
            [],
            [],
            color=colour,
            markersize=5,
            linewidth=1.6,
            linestyle=marks[student].line,
            label=student,
            **marks[student].point(colour, edge=colour),
        )
        for student, colour in colours.light.items()
    ]
    law = Line2D([], [], color=SOFT, linewidth=0.9, linestyle=LAW_STYLE, label="fitted law")
    baselines = [
        Line2D([], [], color=SOFT, linewidth=1.0, linestyle=style, label=BASELINE_NAMES[kind])
        for kind, style in BASELINE_STYLES.items()
    ]
    return [*students, *([law] if with_law else []), *baselines]


def inline(figure: Figure, name: str, colours: Colours) -> Markup:
    """The figure as an SVG element with the page's fonts and colours. name: a prefix that makes its ids unique."""
    file = io.StringIO()
    with style({"svg.fonttype": "none", "svg.hashsalt": name}):
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


def _compact(value: float) -> str:
    """Abbreviate a number for axis labels: 8000 -> 8k."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"

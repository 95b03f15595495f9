"""Studies with different teachers -> one HTML page that compares teachers and students.

In: a `tsd.reporting.report.Study` each. Out: a self-contained HTML page, sentences, a matplotlib figure.
"""

from collections.abc import Sequence

from markupsafe import Markup

from tsd.curation import review
from tsd.plots.figures import Figure, Line2D, PercentFormatter, style
from tsd.reporting.pages import template
from tsd.reporting.report import Study, best, comparison, score_titles, teacher_line
from tsd.reporting.runs import in_order
from tsd.reporting.scaling_figure import SOFT, STYLE, Colours, inline

MARKS = "osD^vPX*<>"  # one per facet, reused if there are more facets


def write(title: str, studies: Sequence[Study], recipe_yaml: str) -> str:
    """The HTML page. studies: at least one, each named by its teacher."""
    colours = Colours([study.teacher for study in studies])
    return template("comparison").render(
        title=title,
        studies=studies,
        headlines=headlines(studies),
        figure=_inline(draw(studies, colours), colours),
        colours=colours,
        scores=score_titles(studies[0].task),
        best={study.teacher: best(study.runs) for study in studies},
        runs={study.teacher: in_order(study.runs) for study in studies},
        review=review,
        comparison=comparison,
        recipe_yaml=recipe_yaml,
    )


def headlines(studies: Sequence[Study]) -> list[str]:
    """For each teacher, how its best student compares with it."""
    return [line for study in studies for line in teacher_line(study)]


def draw(studies: Sequence[Study], colours: Colours) -> Figure:
    """Accuracy of the best student against its teacher's, by facet. Above the diagonal the student is better."""
    names = studies[0].task.names
    with style({**STYLE, "axes.grid.axis": "both"}):
        figure = Figure(figsize=(6.4, 4.1), layout="constrained", facecolor="white")
        axes = figure.add_subplot()
        axes.axline((0, 0), slope=1, color=SOFT, linewidth=1.0, linestyle=(0, (4, 2)))
        lowest = 1.0
        for study in studies:
            for number, name in enumerate(names):
                if name not in study.beside:
                    continue
                both = study.beside[name]
                x, y = both.teacher, both.student
                axes.errorbar(
                    x.value,
                    y.value,
                    xerr=[[x.value - x.low], [x.high - x.value]],
                    yerr=[[y.value - y.low], [y.high - y.value]],
                    fmt=MARKS[number % len(MARKS)],
                    color=colours.light[study.teacher],
                    markersize=6,
                    elinewidth=0.9,
                )
                lowest = min(lowest, x.low, y.low)
        axes.set_xlim(max(0.0, lowest - 0.03), 1.02)
        axes.set_ylim(max(0.0, lowest - 0.03), 1.02)
        axes.set_aspect("equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("teacher right")
        axes.set_ylabel("best student right")
        axes.legend(handles=_legend(names, colours), loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=9)
    return figure


def _legend(names: Sequence[str], colours: Colours) -> list[Line2D]:
    """Legend entries: a colour per teacher, a marker per facet."""
    teachers = [
        Line2D([], [], color=colour, linewidth=4, label=f"taught by {name}")
        for name, colour in colours.light.items()
    ]
    facets = [
        Line2D([], [], color=SOFT, marker=MARKS[number % len(MARKS)], linestyle="", label=name)
        for number, name in enumerate(names)
    ]
    equal = Line2D([], [], color=SOFT, linewidth=1.0, linestyle=(0, (4, 2)), label="as good as its teacher")
    return [*teachers, *facets, equal]


def _inline(figure: Figure, colours: Colours) -> Markup:
    """The figure as an SVG element for the page."""
    return inline(figure, "teachers", colours)

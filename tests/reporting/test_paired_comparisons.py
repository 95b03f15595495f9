"""A report on students compared in pairs: distilled or not, of images or of numbers."""

from dataclasses import replace
from typing import Any

from support.hand_made_study import BASELINES, FITTED, ROWS, STUDY, read, table

from tsd.evaluation.intervals import Interval
from tsd.evaluation.paired import Comparison, Difference
from tsd.reporting import report, runs
from tsd.tasks import SINGLE

CLOSER = Difference(0.61, 0.58, Interval(-0.03, -0.04, -0.02))
UNSURE = Difference(0.5, 0.52, Interval(0.02, -0.01, 0.05))
WORSE = Difference(0.3, 0.2, Interval(-0.1, -0.15, -0.05))
COMPARED = [
    Comparison("small", "small-taught", 500, 3, CLOSER, UNSURE, WORSE, 1.8),
    Comparison("small", "small-taught", 2000, 1, Difference(0.5, 0.45, None), WORSE, UNSURE, 1.8),
]


def test_a_report_says_what_a_bigger_student_taught_beside_words() -> None:
    page = read(replace(STUDY, objectives=COMPARED)).text
    assert "SFT and knowledge distillation" in page
    for said in ("−0.0300 [−0.0400 to −0.0200]", "+2.0 [−1.0 to +5.0]", "−0.0500 [one seed]", "1.80"):
        assert said in page
    (line,) = report.objective_line(COMPARED)
    assert line in page
    assert "in 2 comparisons" in line
    assert "a lower held-out loss once and a higher one never, more facets right never and fewer once" in line


def test_only_a_difference_whose_interval_leaves_out_nothing_is_in_bold() -> None:
    html = report.write(replace(STUDY, objectives=COMPARED))
    assert "<b>−0.0300 [−0.0400 to −0.0200]</b>" in html
    assert "<b>+2.0 [−1.0" not in html


def test_a_report_says_what_looking_is_worth_beside_reading() -> None:
    page = read(replace(STUDY, modalities=COMPARED)).text
    assert "Text and image input" in page
    assert "−0.0300 [−0.0400 to −0.0200]" in page
    (line,) = report.modality_line(COMPARED)
    assert line in page
    assert "in 2 comparisons" in line
    assert "a lower held-out loss once and a higher one never, more facets right never and fewer once" in line
    assert "At equal FLOPs" not in page
    assert "Text and image input" not in report.write(STUDY)


def test_a_report_sets_the_views_side_by_side_at_equal_flops_where_there_are_runs_on_either_side() -> None:
    page = read(replace(STUDY, modalities=COMPARED, modalities_at_flops=COMPARED[:1])).text
    assert page.count("At equal FLOPs") == 2  # as a headline and above its table
    assert page.count("−0.0300 [−0.0400 to −0.0200]") == 2
    (line,) = report.modality_line(COMPARED, COMPARED[:1])
    assert line.endswith("At equal FLOPs, in 1 comparison, it has more facets right never and fewer never.")


def test_a_student_that_looks_has_the_colour_of_its_size_a_hollow_mark_and_no_law() -> None:
    looking = [{**row, "student": "small-plot", "modality": "image"} for row in ROWS if row["student"] == "small"]
    rows = runs.in_order(table(ROWS + looking))
    assert runs.text_counterparts(rows) == {"small-plot": "small"}
    figure = report.scaling_figure(SINGLE, table(ROWS + looking), BASELINES, {"loss": FITTED})
    drawn = {line.get_label(): line for line in figure.legends[0].legend_handles}
    assert drawn["small-plot"].get_color() == drawn["small"].get_color() != drawn["large"].get_color()
    assert drawn["small-plot"].get_markerfacecolor() == "white"
    assert drawn["small"].get_markerfacecolor() == drawn["small"].get_color()
    assert sum(len(line.get_xdata()) == 60 for line in figure.axes[0].lines) == 2
    alone = report.scaling_figure(SINGLE, table(looking), BASELINES, {})
    assert alone.legends[0].legend_handles[0].get_markerfacecolor() != "white"


def test_a_study_without_distilled_students_says_nothing_of_them() -> None:
    assert "knowledge distillation" not in report.write(STUDY)
    assert report.objective_line([]) == []


def test_no_law_is_drawn_for_a_student_that_was_distilled() -> None:
    def laws(rows: list[dict[str, Any]]) -> int:
        loss = report.scaling_figure(SINGLE, table(rows), BASELINES, {"loss": FITTED}).axes[0]
        return sum(len(line.get_xdata()) == 60 for line in loss.lines)

    taught = [
        {**row, "student": "small-taught", "distilled_from": "large"} for row in ROWS if row["student"] == "small"
    ]
    assert laws(ROWS) == laws(ROWS + taught) == 2

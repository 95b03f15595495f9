"""Studies of several teachers side by side: the page, its picture and its lines."""

from dataclasses import replace

import numpy as np
import pytest
from support.hand_made_study import COUNTS, EIGHTY, NINETY, ROWS, STUDY, Page, table

from tsd.evaluation.scoring import Beside
from tsd.reporting import comparison
from tsd.reporting.report import Study, teacher_line
from tsd.reporting.scaling_figure import Colours
from tsd.tasks import SINGLE

OTHER = replace(
    STUDY,
    teacher="careless",
    runs=table([{**row, "teacher": "careless", "run_id": f"{row['run_id']}-c"} for row in ROWS]),
    beside={"noise": Beside(NINETY, EIGHTY, EIGHTY, 50, 1), "all_right": Beside(EIGHTY, NINETY, EIGHTY, 9, 8)},
)
STUDIES = [STUDY, OTHER]


@pytest.fixture(scope="module")
def page() -> Page:
    """The page of two teachers."""
    return Page(comparison.write("mine", STUDIES, "name: mine\n"))


def test_a_page_of_several_teachers_is_well_formed_and_loads_nothing(page: Page) -> None:
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert not {"script", "link", "iframe", "img"} & {tag for tag, _ in page.tags}
    assert "tsd · mine: 2 teachers" in page.text


def test_each_teacher_stands_beside_its_own_student_with_intervals(page: Page) -> None:
    rows = [row for row in page.cells if len(row) == 8 and row[1] in ("trend", "noise", "all four right")]
    assert [row[:2] + row[4:] for row in rows] == [
        ["pixtral", "trend", "80.0 [75.0–85.0]", "90.0 [85.0–95.0]", "80.0 [75.0–85.0]", "better than it"],
        ["", "all four right", "90.0 [85.0–95.0]", "80.0 [75.0–85.0]", "80.0 [75.0–85.0]", "worse than it"],
        ["careless", "noise", "90.0 [85.0–95.0]", "80.0 [75.0–85.0]", "80.0 [75.0–85.0]", "worse than it"],
        [
            "",
            "all four right",
            "80.0 [75.0–85.0]",
            "90.0 [85.0–95.0]",
            "80.0 [75.0–85.0]",
            "not significantly different from it",
        ],
    ]
    assert rows[0][2:4] == ["80.0 [62.7–90.5]"] * 2


def test_every_run_of_every_teacher_has_a_row_and_one_of_each_is_the_best(page: Page) -> None:
    width = 5 + len(SINGLE.scores)
    rows = [row for row in page.cells if len(row) == width and row[0] in ("pixtral", "careless")]
    assert len(rows) == 2 * len(ROWS)
    assert [row[:3] for row in rows if "★" in row[1]] == [
        [name, "large ★", "2,000"] for name in ("pixtral", "careless")
    ]


def test_the_headlines_say_for_each_teacher_whether_its_student_is_better() -> None:
    first, second = comparison.headlines(STUDIES)
    assert first == teacher_line(STUDY)[0]
    assert second.endswith("the student is not significantly different from its teacher.")
    assert comparison.headlines([replace(STUDY, beside={})]) == []


def drawn(studies: list[Study]) -> set[tuple[float, float]]:
    """The points of the picture that carry an interval."""
    colours = Colours([study.teacher for study in studies])
    (axes,) = comparison.draw(studies, colours).axes
    return {tuple(np.ravel(bars.lines[0].get_xydata()).tolist()) for bars in axes.containers}


def test_the_picture_has_a_point_for_each_facet_of_each_teacher_and_the_line_where_both_are_as_good() -> None:
    assert drawn(STUDIES) == {(0.8, 0.9), (0.9, 0.8)}
    assert drawn([replace(OTHER, beside={})]) == set()


def test_what_a_teacher_is_called_and_said_is_shown_and_never_run() -> None:
    evil = "<script>alert(1)</script>"
    rejects = [{"reason": evil, "rows": 1, "examples": []}]
    study = replace(STUDY, teacher=evil, counts={**COUNTS, "rejects": rejects})
    page = Page(comparison.write(evil, [study], evil))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(evil) >= 4

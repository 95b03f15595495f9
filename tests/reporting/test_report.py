"""Pages, headlines and the picture of hand-made studies, read back as a browser or a person would."""

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from support.hand_made_study import (
    BASELINES,
    COUNTS,
    EIGHTY,
    EXAMPLE,
    LAW,
    LOSSES,
    NINETY,
    NOTHING,
    ROWS,
    SIZES,
    STUDY,
    TRUTH,
    UNDETERMINED,
    Page,
    read,
    run,
    sample,
    table,
)

from tsd.evaluation.scoring import Beside
from tsd.reporting import report
from tsd.tasks import SINGLE


@pytest.fixture(scope="module")
def page() -> Page:
    """The page of the study as it stands above."""
    return read(STUDY)


def attributes(page: Page, name: str) -> list[str]:
    return [found for _, attrs in page.tags if (found := attrs.get(name)) is not None]


def test_a_page_is_well_formed_and_no_id_stands_twice(page: Page) -> None:
    ids = attributes(page, "id")
    assert len(ids) == len(set(ids))
    assert [tag for tag, _ in page.tags].count("h1") == 1
    assert {"main", "svg", "table", "details"} <= {tag for tag, _ in page.tags}


def test_a_page_loads_nothing() -> None:
    html = report.write(replace(STUDY, facts={"MLflow": "https://mlflow.example.org"}))
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "embed", "img", "base"} & {tag for tag, _ in page.tags}
    references = [
        found
        for name in ("src", "href", "xlink:href", "srcset", "action", "data")
        for found in attributes(page, name)
    ]
    assert references  # the figure's own marks, by id
    assert all(found.startswith("#") for found in references)
    assert all(found.startswith("#") for found in re.findall(r"url\(\s*['\"]?([^)]*)", html))
    assert "@import" not in html


def test_every_mark_that_a_figure_refers_to_is_in_the_page() -> None:
    html = report.write(STUDY)
    page = Page(html)
    wanted = {found[1:] for found in attributes(page, "xlink:href")} | set(re.findall(r"url\(#([^)]*)\)", html))
    assert wanted
    assert wanted <= set(attributes(page, "id"))


def test_whatever_a_reply_a_label_or_a_fact_holds_is_shown_and_never_run() -> None:
    evil = "<script>alert('x')</script>"
    study = replace(
        STUDY,
        title=evil,
        recipe_yaml=f"about: {evil}",
        samples=[sample(teacher=evil, student=evil, student_labels={**TRUTH, "trend": evil})],
        teacher=evil,
        counts={**COUNTS, "rejects": [{"reason": evil, "rows": 1, "examples": [{**EXAMPLE, "text": evil}]}]},
        seconds={evil: 1.0},
        cpu_seconds={evil: 1.0},
        facts={evil: evil},
        fits={"loss": evil},
    )
    page = read(study)
    assert "script" not in {tag for tag, _ in page.tags}
    # title twice, recipe, two replies, label, reason, its reply, teacher and its headline, time, a fact's name and
    # value, law, its headline
    assert page.text.count(evil) == 15


def test_a_student_may_be_called_anything() -> None:
    page = read(replace(STUDY, runs=table([{**row, "student": "<b>$x_$&"} for row in ROWS])))
    assert page.text.count("<b>$x_$&") >= len(ROWS)
    assert "<b>" not in {tag for tag, _ in page.tags}


def test_every_run_has_a_row_with_its_numbers_and_they_are_sorted_by_size_train_size_and_seed() -> None:
    page = read(replace(STUDY, runs=table(ROWS[::-1])))
    rows = [row for row in page.cells if len(row) == 21 and row[0].split()[0] in SIZES]
    assert [(row[0].split()[0], row[2], row[3]) for row in rows] == [
        (student, f"{examples:,}", str(seed)) for student, examples in LOSSES for seed in (0, 1)
    ]
    assert rows[0] == [
        "small", "35,000", "500", "0", "0.8100", "1.6200", "0.4050", *["19.0 [17.0–20.0]"] * 8,
        "31", "1.20×10¹²", "20,000", "21.0", "1 min 05 s", "4.2 s",
    ]  # fmt: skip


def test_a_run_that_stopped_early_is_marked_and_the_mark_explained(page: Page) -> None:
    assert "†" not in page.text
    halted = [{**row, "stopped_early": row["examples"] == 500 and row["seed"] == 1} for row in ROWS]
    marked = read(replace(STUDY, runs=table(halted)))
    assert [row[:4] for row in marked.cells if len(row) == 21 and row[15].endswith("†")] == [
        ["small", "35,000", "500", "1"],
        ["large", "305,000", "500", "1"],
    ]
    assert "† a run that stopped early" in marked.text


def test_a_loss_that_was_not_split_is_shown_whole() -> None:
    whole = [{**row, "label_loss": None, "wording_loss": None} for row in ROWS]
    page = read(replace(STUDY, runs=table(whole)))
    assert len([row for row in page.cells if len(row) == 19 and row[0].split()[0] in SIZES]) == len(ROWS)
    assert "of wording" not in page.text


def test_the_run_with_the_lowest_loss_is_the_only_one_marked_best(page: Page) -> None:
    assert report.best(STUDY.runs)["run_id"] == "large-2000-1"
    assert [row[:5] for row in page.cells if "best" in row[0]] == [
        ["large ★ best", "305,000", "2,000", "1", "0.4000"]
    ]
    assert [attrs["id"] for tag, attrs in page.tags if tag == "tr" and "best" in (attrs.get("class") or "")] == [
        "run-large-2000-1"
    ]


def test_baselines_stand_under_the_scores_that_they_are_for(page: Page) -> None:
    rows = {row[0]: row[1:7] for row in page.cells if row[0].startswith("Baseline")}
    assert rows == {
        "Baseline: chance": ["33.3", "33.3", "33.3", "33.3", "1.2", "–"],
        "Baseline: majority": ["41.2", "36.3", "42.0", "43.0", "9.0", "–"],
        "Baseline: majority place given trend": ["–", "–", "61.1", "60.2", "–", "–"],
    }


def test_a_run_that_was_not_decoded_is_shown_without_scores() -> None:
    bare: Mapping[str, None] = dict.fromkeys((*SINGLE.scores, "decode_seconds", "utilisation"))
    study = replace(STUDY, runs=table([{**row, **bare} for row in ROWS]))
    page = read(study)
    assert report.headlines(study)[0].endswith("(0.400); it was not scored.")
    assert [row[7:15] for row in page.cells if "best" in row[0]] == [["–"] * 8]


def test_no_samples_no_fits_and_no_stages_leave_a_page_that_says_so() -> None:
    page = read(
        replace(
            STUDY, samples=[], fits={}, seconds={}, cpu_seconds={}, counts=NOTHING, beside={}, facts={}, classes={}
        )
    )
    assert "No sample was kept." in page.text
    assert "No law was fitted." in page.text
    assert "Nothing was rejected." in page.text
    assert "No scaling law of the loss: none was fitted." in page.text


def test_a_report_of_no_runs_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one run"):
        report.write(replace(STUDY, runs=table([])))


def test_wrong_and_missing_labels_carry_a_sign_and_right_ones_none() -> None:
    labels = {**TRUTH, "noise": "high", "minimum": None}
    page = read(replace(STUDY, samples=[sample(student_labels=labels)]))
    rows = {row[0]: row[1:] for row in page.cells if row[0] in SINGLE.classes and len(row) == 4}
    assert rows == {
        "trend": ["increasing", "increasing", "increasing"],
        "noise": ["medium", "medium", "✗ high"],
        "maximum": ["end", "end", "end"],
        "minimum": ["beginning", "beginning", "✗ not stated"],
    }


def test_a_sample_shows_its_sentences_and_its_values_from_left_to_right_and_bottom_to_top(page: Page) -> None:
    assert page.text.count("The level increases overall. The noise is moderate around the trend.") == 2
    points = [attrs["points"] for tag, attrs in page.tags if tag == "polyline"]
    assert [(points[0] or "").split()] == [["0.0,110.0", "106.7,54.4", "213.3,0.0", "320.0,54.4"]]
    marks = [(attrs["cx"], attrs["cy"]) for tag, attrs in page.tags if tag == "circle"]
    assert marks == [("213.3", "0.0"), ("0.0", "110.0")]  # maximum, minimum


def test_an_empty_reply_is_called_empty() -> None:
    assert read(replace(STUDY, samples=[sample(student="")])).text.count("an empty reply") == 1


def test_laws_stand_with_their_intervals_and_what_their_runs_do_not_determine(page: Page) -> None:
    cells = page.cells
    laws = {row[0]: row[1:] for row in cells if row[0] == "Held-out loss" or row[0].startswith("Error rate")}
    assert laws["Held-out loss"] == [
        "0.3 [0.2–0.4]", "9 [8–10]", "0.36 [0.31–0.44]", "14 [13–15]", "0.55 [0.48–0.59]", "8",
    ]  # fmt: skip
    assert laws["Error rate: valid"] == ["Every reply was valid, so there is no error."]
    assert [row[1] for row in cells if row[-1].startswith("Not determined")] == [
        f"Not determined: {UNDETERMINED.note}."
    ]


def test_time_and_classes_are_shown_as_shares(page: Page) -> None:
    assert "80.0 % of 1 min 30 s was spent on training and decoding students." in page.text
    assert ["Train", "", "1 min 12 s", "80.0 %", "141"] in page.cells
    assert "175 in all" in page.text
    assert ["trend decreasing", "", "30.0 %"] in page.cells


def test_a_teacher_is_shown_with_its_accuracy_its_confusion_and_what_an_example_took(page: Page) -> None:
    assert (
        "The teacher, pixtral, gave 30 replies (28 ok, 2 refused), of which 20 (66.7 %) became examples; 4 of"
        in page.text
    )
    assert "cost 1,500 input tokens, 75 output tokens and $0.003" in page.text
    (trend,) = (row for row in page.cells if row[0] == "trend" and len(row) == 8)
    assert trend == [
        "trend", "96.7", "80.0 [62.7–90.5]", "80.0 [62.7–90.5]",
        "80.0 [75.0–85.0]", "90.0 [85.0–95.0]", "80.0 [75.0–85.0]", "better than it",
    ]  # fmt: skip
    (all_right,) = (row for row in page.cells if row[0] == "all four right" and len(row) == 8)
    assert all_right[-1] == "worse than it"
    assert ["increasing", "8", "1", "0", "1"] in page.cells
    shares = [
        attrs["style"] for tag, attrs in page.tags if tag == "td" and "--share" in (attrs.get("style") or "")
    ]
    assert shares[:4] == ["--share: 80.0%", "--share: 10.0%", "--share: 0.0%", "--share: 10.0%"]


def test_every_reason_is_shown_with_its_rows_and_its_first_replies(page: Page) -> None:
    assert "contradicts the measured noise 3 10.0 %" in page.text
    assert (
        "Series 81, measured: trend increasing, noise medium, maximum end, minimum beginning Hardly any noise."
        in page.text
    )
    assert "5 more for 5 further reasons" in page.text


@pytest.mark.parametrize(
    ("teacher_only", "student_only", "said"),
    [
        (0, 0, "not significantly different from"),
        (10, 12, "not significantly different from"),
        (5, 30, "better than"),
        (30, 5, "worse than"),
    ],
)
def test_a_student_is_better_or_worse_than_its_teacher_only_beyond_chance(
    teacher_only: int, student_only: int, said: str
) -> None:
    assert report.comparison(Beside(EIGHTY, NINETY, EIGHTY, teacher_only, student_only)) == said


def test_credentials_in_an_address_are_not_shown() -> None:
    address = "postgresql://me:hunter2@db.example.org/mlflow"
    html = report.write(replace(STUDY, facts={"MLflow": address}, recipe_yaml=f"tracking:\n  uri: {address}\n"))
    assert "hunter2" not in html
    assert html.count("postgresql://…@db.example.org/mlflow") == 2


def test_the_headlines_name_the_best_student_what_data_does_and_the_exponents() -> None:
    assert report.headlines(STUDY) == [
        "Best student: large on 2,000 examples, chosen by the lowest held-out loss (0.400): "
        "trend 60.0 % (majority 41.2 %), noise 60.0 % (majority 36.3 %), "
        "maximum 60.0 % (majority place given trend 61.1 %), minimum 60.0 % (majority place given trend 60.2 %), "
        "all four right 60.0 % (majority 9.0 %).",
        "Held-out loss falls with data at every size, from 500 to 2,000 examples: "
        "small from 0.820 to 0.600, large from 0.720 to 0.410.",
        "Over 8 runs the reducible loss falls with size to the power alpha = 0.36 [0.31–0.44] "
        "and with data to the power beta = 0.55 [0.48–0.59] (95 % bootstrap intervals).",
        "The teacher, pixtral, has all four right on 90.0 % of the scored series, the best student on 80.0 %: "
        "the student is worse than its teacher, though better on trend.",
    ]


def test_exponents_that_the_runs_do_not_determine_are_not_quoted_in_the_headlines() -> None:
    line = report.headlines(replace(STUDY, fits={"loss": UNDETERMINED}))[2]
    assert line == f"8 runs do not determine the exponents of the loss: {UNDETERMINED.note}."


def test_a_size_whose_loss_stalls_or_rises_with_data_is_named() -> None:
    stalled = [row for row in ROWS if row["student"] == "large"]
    stalled += [run("small", examples, 0, loss) for examples, loss in ((500, 0.8), (1000, 0.6), (2000, 0.6))]
    line = report.headlines(replace(STUDY, runs=table(stalled)))[1]
    assert line.startswith("Held-out loss does not fall with every step of data for small, from 500 to 2,000")
    assert "small from 0.800 to 0.600" in line


def test_a_single_train_size_is_drawn_and_said_to_tell_nothing_of_data() -> None:
    study = replace(STUDY, runs=table([row for row in ROWS if row["examples"] == 500]))
    assert "do not show the effect of more data" in report.headlines(study)[1]
    assert len(read(study).rows) > 0


def test_the_picture_shows_every_run_the_law_of_every_size_and_the_baselines() -> None:
    figure = report.scaling_figure(SINGLE, STUDY.runs, BASELINES, STUDY.fits)
    loss, *panels = figure.axes
    assert [axes.get_title(loc="left").split(",")[0].lower() for axes in panels] == list(SINGLE.classes)
    lines = [np.asarray(line.get_xydata()) for line in loss.lines]
    dots = np.concatenate([xy for line, xy in zip(loss.lines, lines, strict=True) if line.get_marker() == "o"])
    assert {(x, round(y, 6)) for x, y in dots} == {(row["examples"], row["validation_loss"]) for row in ROWS}
    curves = [xy for xy in lines if len(xy) == 60]
    for size, curve in zip(SIZES.values(), curves, strict=True):
        np.testing.assert_allclose(curve[:, 1], LAW.predict(size, curve[:, 0]))
    for facet, axes in zip(SINGLE.classes, panels, strict=True):
        levels = {line.get_ydata()[0] for line in axes.lines if line.get_linestyle() in (":", "--")}  # type: ignore[index]
        assert levels == {found for kind, found in BASELINES[facet].items() if kind != "chance"}
        points = [line for line in axes.lines if line.get_marker() == "o"]
        assert len(points) == len(ROWS)


def test_without_a_law_the_picture_has_neither_its_curves_nor_its_legend() -> None:
    figure = report.scaling_figure(SINGLE, STUDY.runs, BASELINES, {"loss": "Too few runs."})
    assert all(len(np.asarray(line.get_xdata())) < 60 for line in figure.axes[0].lines)
    assert "fitted law" not in [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_same_study_gives_the_same_page() -> None:
    assert report.write(STUDY) == report.write(STUDY)


def test_near_ties_are_set_aside_facet_by_facet() -> None:
    told = (row for row in read(STUDY).cells if row[0] in ("trend", "noise") and len(row) == 4)
    cells = {row[0]: row[1:] for row in told if row[1][0].isdigit()}
    assert cells["trend"][0] == "4.0"
    assert "97.0" in cells["trend"][2]
    assert cells["noise"][2] == "–"

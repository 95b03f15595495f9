"""A study made by hand, and its page read back as a browser or a person would."""

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pyarrow as pa

from tsd.curation.counts import NOT_STATED
from tsd.evaluation.intervals import Interval
from tsd.evaluation.laws import FittedLaw, Law
from tsd.evaluation.scoring import Beside, Clear
from tsd.reporting import report
from tsd.reporting.report import Sample, Study
from tsd.tasks import SINGLE

SIZES = {"small": 30_000, "large": 300_000}
TRUTH = {"trend": "increasing", "noise": "medium", "maximum": "end", "minimum": "beginning"}
VOID = {"meta", "br", "img", "link", "input", "hr"}

LAW = Law(E=0.3, A=9.0, alpha=0.36, B=14.0, beta=0.55, objective=0.0)
FITTED = FittedLaw(
    LAW,
    intervals={"E": (0.2, 0.4), "A": (8, 10), "alpha": (0.31, 0.44), "B": (13, 15), "beta": (0.48, 0.59)},
    runs=8,
    resamples=200,
    note="",
)
UNDETERMINED = replace(FITTED, note="alpha is fitted to two distinct sizes only, so any value fits equally well")

BASELINES = {
    "trend": {"chance": 1 / 3, "majority": 0.412},
    "noise": {"chance": 1 / 3, "majority": 0.363},
    "maximum": {"chance": 1 / 3, "majority": 0.42, "given": 0.611},
    "minimum": {"chance": 1 / 3, "majority": 0.43, "given": 0.602},
    "all_right": {"chance": 1 / 81, "majority": 0.09},
}


def run(student: str, examples: int, seed: int, loss: float, **other: Any) -> dict[str, Any]:
    """A trained student; its accuracies are what is left of its loss, so that no two runs score the same."""
    score = {"value": 1 - loss, "low": 0.98 - loss, "high": 1.01 - loss}
    return {
        "run_id": f"{student}-{examples}-{seed}",
        "teacher": "pixtral",
        "student": student,
        "parameters": SIZES[student] + 5000,
        "parameters_without_embeddings": SIZES[student],
        "examples": examples,
        "tokens": examples * 200,
        "supervised_tokens": examples * 40,
        "flops": 1.2e12,
        "steps": examples // 16,
        "seed": seed,
        "validation_loss": loss,
        "label_loss": 2 * loss,
        "wording_loss": 0.5 * loss,
        **dict.fromkeys(SINGLE.scores, score),
        "train_seconds": 65.0,
        "decode_seconds": 4.2,
        "tokens_per_second": 20_000.0,
        "utilisation": 0.21,
        **other,
    }


LOSSES = {
    ("small", 500): (0.81, 0.83),
    ("small", 2000): (0.61, 0.59),
    ("large", 500): (0.71, 0.73),
    ("large", 2000): (0.42, 0.40),
}
ROWS = [run(*key, seed, loss) for key, losses in LOSSES.items() for seed, loss in enumerate(losses)]


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, SINGLE.tables.runs)


def sample(**other: Any) -> Sample:
    said = '{"trend": "The level increases overall.", "noise": "The noise is moderate around the trend."}'
    plain: dict[str, str | None] = {**TRUTH}
    given: dict[str, Any] = {
        "series_id": 4711,
        "values": [0, 50, 99, 50],
        "truth": TRUTH,
        "teacher": said,
        "student": said,
        "student_labels": plain,
        "teacher_labels": plain,
    }
    return Sample(**{**given, **other})


SAID = {"increasing": 8, "decreasing": 1, "flat": 0, NOT_STATED: 1}
CONFUSION = {
    "increasing": SAID,
    "decreasing": {"increasing": 0, "decreasing": 10, "flat": 0, NOT_STATED: 0},
    "flat": {"increasing": 4, "decreasing": 0, "flat": 6, NOT_STATED: 0},
}
EXAMPLE = {"series_id": 81, "truth": TRUTH, "text": '{"noise": "Hardly any noise."}'}
REJECTED = {
    "reason": "contradicts the measured noise",
    "rows": 3,
    "examples": [EXAMPLE],
}
COUNTS: dict[str, Any] = {
    "replies": 30,
    "statuses": {"refused": 2, "ok": 28},
    "kept": 20,
    "input_tokens": 30_000,
    "output_tokens": 1_500,
    "cost_usd": 0.06,
    "said": {"trend": CONFUSION},
    "taught": {"trend": CONFUSION},
    "corrected": 4,
    "rejects": [REJECTED, {"reason": "refused", "rows": 2, "examples": []}],
    "rare": {"reasons": 5, "rows": 5},
}
NOTHING: dict[str, Any] = {
    **dict.fromkeys(("replies", "kept", "input_tokens", "output_tokens", "cost_usd", "corrected"), 0),
    **{"statuses": {}, "said": {}, "taught": {}, "rejects": [], "rare": {"reasons": 0, "rows": 0}},
}
EIGHTY, NINETY = Interval(0.8, 0.75, 0.85), Interval(0.9, 0.85, 0.95)
BESIDE = {"trend": Beside(EIGHTY, NINETY, EIGHTY, 2, 40), "all_right": Beside(NINETY, EIGHTY, EIGHTY, 30, 4)}

STUDY = Study(
    title="laptop",
    task=SINGLE,
    recipe_yaml="name: laptop\n",
    runs=table(ROWS),
    baselines=BASELINES,
    fits={"loss": FITTED, "trend": UNDETERMINED, "valid": "Every reply was valid, so there is no error."},
    samples=[sample()],
    seconds={"Draw series": 6.0, "Train": 72.0, "Decode": 12.0},
    cpu_seconds={"Draw series": 11.0, "Train": 141.0, "Decode": 23.0},
    useful_share=0.8,
    clear={"trend": Clear(0.04, Interval(0.97, 0.95, 0.98)), "noise": Clear(1.0, None)},
    classes={facet: dict(zip(classes, (0.5, 0.3, 0.2), strict=True)) for facet, classes in SINGLE.classes.items()},
    teacher="pixtral",
    counts=COUNTS,
    beside=BESIDE,
    facts={"Machine": "2 cores"},
)


class Page(HTMLParser):
    """A page as read: every tag must close what was opened last."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open, f"<{tag}/> is not self-closing in HTML"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if not {"style", "svg"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def cells(self) -> list[list[str]]:
        return [[" ".join(cell.split()) for cell in row] for row in self.rows]


def read(study: Study) -> Page:
    return Page(report.write(study))

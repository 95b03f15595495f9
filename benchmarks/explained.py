"""What `tsd explain` says of shapes that everybody knows: a sine, a step, white noise, a ramp and a spike.

Each is written to a CSV file, on a scale of its own, and the command of the user describes it. Draws
docs/explained.png with the sentences below each shape, and holds the labels against what a person would say.
Half a minute.

    python benchmarks/explained.py runs/laptop/students/NAME --check
"""

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from known_series import Signal, ramp, sine, step, white
from matplotlib import pyplot
from measured import ROOT, Bound, finish, parser

POINTS, SCALE, LEVEL = 128, 37.5, 1200.0  # a user's series is not on 0–99
WIDTH = 46  # characters in a line below a plot


def spike(rng: np.random.Generator, count: int, points: int) -> np.ndarray:
    """A single high point on a quiet level."""
    values = 0.02 * rng.standard_normal((count, points))
    values[:, points // 5] += 1
    return values


# What a person would say: the labels of the facets that the shape decides.
SHAPES: dict[str, tuple[Signal, dict[str, str]]] = {
    "sine": (sine(3, 3), {"trend": "flat", "noise": "low"}),
    "step": (step, {"trend": "increasing", "noise": "low"}),
    "white noise": (white, {"trend": "flat", "noise": "high"}),
    "ramp": (ramp, {"trend": "increasing", "noise": "low", "maximum": "end", "minimum": "beginning"}),
    "spike": (spike, {"trend": "flat", "maximum": "beginning"}),
}


def main() -> None:
    """Describe each shape, draw it, hold the labels against what a person would say."""
    options = parser(__doc__)
    options.add_argument("student", nargs="?", help="the folder of a student")
    asked = options.parse_args()
    if asked.student is None:
        options.error("name the folder of a student, such as runs/laptop/students/NAME")
    matplotlib.use("Agg")
    figure, axes = pyplot.subplots(1, len(SHAPES), figsize=(3 * len(SHAPES), 3.6))
    bounds, said = [], {}
    for place, (name, (signal, wanted)) in zip(axes, SHAPES.items(), strict=True):
        values = LEVEL + SCALE * signal(np.random.default_rng(7), 1, POINTS)[0]
        answer = explain(values, asked.student)
        sentences = " ".join(answer["sentences"])
        said[name] = sentences
        print(f"{name}: {sentences}")
        place.plot(values, color="black", linewidth=0.8)
        place.set_title(name, fontsize=9)
        place.set_xlabel(fill(sentences, WIDTH), fontsize=7)
        place.tick_params(labelsize=7)
        bounds += [
            Bound(f"{name}: {facet} {label}", float(answer["labels"][facet] == label), least=1)
            for facet, label in wanted.items()
        ]
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "explained.png", dpi=100)
    finish(__file__, {"said": said}, bounds, asked.check)


def explain(values: np.ndarray, student: str) -> Any:
    """The command's answer on one series, (points,)."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "series.csv"
        with file.open("w", newline="") as opened:
            csv.writer(opened).writerows([("value",), *((f"{value:.4f}",) for value in values)])
        command = [sys.executable, "-m", "tsd", "explain", str(file), "--model", student, "--json"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()

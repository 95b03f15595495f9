"""Draw examples of the definitions in docs/truth.md: series, their labels by either truth, and sentences.

Writes docs/truth.png, and prints the sentences. A second.

    python benchmarks/truth_examples.py
"""

import json

import matplotlib
import numpy as np
from known_series import (
    Signal,
    autoregressive,
    louder,
    noisy,
    ramp,
    saturating,
    scaled,
    sine,
    spiked,
    step,
    step_and_season,
    white,
)
from matplotlib import pyplot
from measured import ROOT, parser

from tsd.tasks import PAPER, RICH, Task, single

POINTS, COLUMNS = 128, 3
EXAMPLES: dict[str, Signal] = {
    "white noise": white,
    "autoregressive, ρ = 0.8": autoregressive(0.8),
    "random walk": autoregressive(1.0),
    "sine of two cycles": sine(2, 2),
    "sine of two cycles, 30 % noise": noisy(sine(2, 2), 0.3),
    "part of a cycle": sine(0.6, 0.6),
    "ramp": ramp,
    "ramp, 30 % noise": noisy(ramp, 0.3),
    "saturation, 10 % noise": noisy(saturating, 0.1),
    "step": step,
    "step, 20 % noise": noisy(step, 0.2),
    "spike in noise": lambda rng, count, points: spiked(rng, count, points, 10).values.astype(float),
    "six cycles, 30 % noise": noisy(sine(6, 6), 0.3),
    "step and season, 10 % noise": noisy(step_and_season, 0.1),
    "noise, three times as large from the middle on": lambda rng, count, points: louder(
        rng, count, points, 3, 0.5
    ).values.astype(float),
}


def main() -> None:
    """Draw each example with its labels, and print what is said of it."""
    parser(__doc__).parse_args()
    matplotlib.use("Agg")
    rows = -(-len(EXAMPLES) // COLUMNS)
    figure, axes = pyplot.subplots(rows, COLUMNS, figsize=(11, 2.3 * rows), sharex=True, sharey=True)
    for place, (name, signal) in zip(axes.flat, EXAMPLES.items(), strict=True):
        values = scaled(signal(np.random.default_rng(7), 1, POINTS)).values
        place.plot(values[0], color="black", linewidth=0.8)
        place.set_title(f"{name}\n{labels(RICH, values)}\npaper: {labels(single(PAPER), values)}", fontsize=8)
        print(f"{name}: {said(values)}")
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "truth.png", dpi=100)


def labels(task: Task, values: np.ndarray) -> str:
    """Trend, noise and structure of one series in words. values: (1, points) uint8."""
    (truth,) = task.truth(task.measure(values), values.shape[1]).to_pylist()
    found = [f"{truth[name]} {name}" for name in task.added if truth[name] not in ("none", "steady")]
    return ", ".join([truth["trend"], f"{truth['noise']} noise", *found])


def said(values: np.ndarray) -> str:
    """Sentences on one series. values: (1, points) uint8."""
    measures = RICH.measure(values)
    (truth,) = RICH.truth(measures, values.shape[1]).to_pylist()
    numbers = {one.name: f"{one.true(measures, values.shape[1])[0]:.{one.digits}f}" for one in RICH.numbers}
    return " ".join(json.loads(RICH.describe(truth, numbers, range(len(RICH.facets)))).values())


if __name__ == "__main__":
    main()

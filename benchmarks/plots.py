"""How fast plots are drawn, on one core, and whether they are still the same pictures.

Times `tsd.plots.plotter.Plotter` on series of the laptop study against the way of the code that accompanies arXiv
2507.07439, a new matplotlib figure and `savefig` for each series. Writes plots.json beside itself. Two minutes.

    python benchmarks/plots.py --check
"""

import io
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import matplotlib
import measured
import numpy as np
import numpy.typing as npt
from matplotlib import pyplot
from PIL import Image
from skimage.metrics import structural_similarity

from tsd.generation.generator import draw_table
from tsd.plots.plotter import Look, Plotter, choose_look, figure
from tsd.plots.rasterised import Curve
from tsd.recipe import PlotConfig, load
from tsd.tasks import SINGLE

COUNT, REPEATS = 256, 9
FIGURES = 48  # that matplotlib draws in a turn: enough for Python to collect their garbage, as in any long loop
STYLES = {
    "paper": PlotConfig(style="paper"),
    "paper, varied": PlotConfig(style="paper", vary=True),
    "compact, grey": PlotConfig(),
    "compact, varied": PlotConfig(vary=True),
}


def main() -> None:
    """Measure every style, print the tables, hold them against the bounds."""
    options = measured.parser(__doc__).parse_args()
    matplotlib.use("Agg")
    recipe = load("laptop")
    series = draw_table(SINGLE, recipe.series, recipe.seed, 0, COUNT)
    curves = [row.values.to_numpy() for row in series["values"]]
    pairs = list(zip(curves[: COUNT // 8], curves[COUNT // 8 : COUNT // 4], strict=True))
    looks = {name: [choose_look(config, 0, i) for i in range(COUNT)] for name, config in STYLES.items()}
    plotter = Plotter()
    works: dict[str, Any] = {
        "the paper's way": lambda: deque(map(papers_way, curves[:FIGURES]), maxlen=0),
        "compact, two series": lambda: plotter(pairs, looks["compact, grey"][: len(pairs)]),
        "paper, two series": lambda: plotter(pairs, looks["paper"][: len(pairs)]),
        **{name: lambda looks=of: plotter(curves, looks) for name, of in looks.items()},
    }
    drawn = dict.fromkeys(works, COUNT) | {"the paper's way": FIGURES}
    drawn |= {name: len(pairs) for name in works if "two" in name}
    seconds = {name: took / drawn[name] for name, took in measured.medians(works, REPEATS).items()}
    slow = seconds["the paper's way"]
    rows = [
        {"style": name, "ms": 1000 * each, "pictures/s": 1 / each, "times the paper's way": slow / each}
        for name, each in seconds.items()
    ]
    measured.show(f"PNG bytes, {COUNT} series of the laptop study, one core", rows)
    likeness = [likeness_of(name, config, plotter) for name, config in STYLES.items()]
    measured.show("Against a matplotlib figure from scratch: the worst picture of each style", likeness)
    measured.finish(
        __file__,
        {"series": COUNT, "speed": rows, "likeness": likeness},
        [
            measured.Bound("paper style, times the paper's way", slow / seconds["paper"], least=150),
            measured.Bound(
                "compact, times as fast as paper", seconds["paper"] / seconds["compact, grey"], least=1
            ),
            measured.Bound("mean difference, of 255", max(row["difference"] for row in likeness), most=0.5),
            measured.Bound("structural similarity", min(row["similarity"] for row in likeness), least=0.99),
        ],
        options.check,
    )


def papers_way(curve: Curve) -> None:
    """One picture as the paper's code makes it: a new figure, saved to a file."""
    pyplot.figure(figsize=(10, 5))
    axes = pyplot.gca()
    axes.set_ylim(0, 100)
    axes.set_aspect("equal", adjustable="box")
    axes.plot(np.arange(len(curve)), curve)
    axes.set(title="Time Series", xlabel="Time", ylabel="X(t)")
    axes.grid(True)
    with tempfile.TemporaryDirectory() as folder:
        pyplot.savefig(Path(folder) / "series.png")
    pyplot.close()


def likeness_of(name: str, config: PlotConfig, plotter: Plotter) -> dict[str, Any]:
    """How far a style's pictures are from matplotlib's: smooth, jagged and constant series of three lengths."""
    differences, similarities = [], []
    for length in (32, 128, 1024):
        rng = np.random.default_rng(length)
        walk = np.clip(50 + np.cumsum(rng.normal(0, 8 / length**0.5, length)), 0, 99)
        hard = [
            walk,
            rng.integers(0, 100, length),
            np.arange(length) % 2 * 99,
            np.zeros(length),
            np.full(length, 50),
        ]
        for i, curve in enumerate(values.astype(np.uint8) for values in hard):
            look = choose_look(config, length, i)
            ours, theirs = pixels(plotter([curve], [look])[0]), from_scratch(curve, look)
            differences.append(float(np.abs(ours.astype(int) - theirs).mean()))
            similarities.append(float(structural_similarity(ours, theirs, channel_axis=2)))
    return {"style": name, "difference": max(differences), "similarity": min(similarities)}


def from_scratch(curve: Curve, look: Look) -> npt.NDArray[np.uint8]:
    """The same plot from a new figure."""
    file = io.BytesIO()
    figure([curve], look).savefig(file, format="png")
    return pixels(file.getvalue())


def pixels(picture: bytes) -> npt.NDArray[np.uint8]:
    """A PNG as (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


if __name__ == "__main__":
    main()

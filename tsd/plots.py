"""Series -> plots, as PNG bytes for a teacher that looks."""

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from tsd.recipe import PlotConfig

DPI = 100


def render(values: Sequence[npt.NDArray[np.uint8]] | npt.NDArray[np.uint8], style: PlotConfig) -> list[bytes]:
    """Draw each series as a line over its index, on axes that are the same for all of its length.

    values: a series a row, (length,) uint8 each, 0–99.
    Returns one PNG a row, `style.width` × `style.height` pixels, 8-bit grey.
    """
    figure = Figure(figsize=(style.width / DPI, style.height / DPI), dpi=DPI, layout="tight")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot(ylim=(0, 100), xlabel="time", ylabel="value")
    axes.grid(color="0.85")
    (line,) = axes.plot([], color="black", linewidth=1.2)
    axes.set_xlim(0, len(values[0]) - 1)
    canvas.draw()  # type: ignore[no-untyped-call]
    figure.set_layout_engine("none")  # laid out once: again for each row, small plots creep from row to row
    pictures = []
    for row in values:
        axes.set_xlim(0, len(row) - 1)
        line.set_data(np.arange(len(row)), row)
        canvas.draw()  # type: ignore[no-untyped-call]
        pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        grey = Image.fromarray(pixels).convert("L")
        file = io.BytesIO()
        grey.save(file, "PNG", compress_level=1)
        pictures.append(file.getvalue())
    return pictures

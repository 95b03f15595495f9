"""matplotlib with its own settings, whatever the environment says: all of tsd takes it from here.

A notebook names a backend that the command cannot load (MPLBACKEND), and a person's matplotlibrc changes fonts and
sizes. Nothing here shows a window: figures are drawn by the canvas of the format in which they are saved.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SETTINGS = ("MPLBACKEND", "MATPLOTLIBRC")


@contextmanager
def _without_settings() -> Iterator[None]:
    """Hide the variables that say how matplotlib starts, and what it logs of a folder that it cannot write to."""
    hidden = {name: os.environ.pop(name) for name in SETTINGS if name in os.environ}
    log = logging.getLogger("matplotlib")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
        os.environ.update(hidden)


with _without_settings():
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import to_hex, to_rgb
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.path import Path
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter
    from matplotlib.transforms import Affine2D


@contextmanager
def style(changes: Any = None) -> Iterator[None]:
    """matplotlib's defaults and these changes, whatever this machine's own settings, inside the context."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(changes or {})
        yield


__all__ = [
    "Affine2D",
    "Axes",
    "Figure",
    "FigureCanvasAgg",
    "FixedLocator",
    "FuncFormatter",
    "Line2D",
    "MaxNLocator",
    "NullLocator",
    "Path",
    "PercentFormatter",
    "matplotlib",
    "style",
    "to_hex",
    "to_rgb",
]

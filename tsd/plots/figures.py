"""matplotlib with fixed settings, whatever the environment says. All of tsd imports it from here.

A notebook may set a backend (MPLBACKEND) that the command line cannot load, and a user's matplotlibrc may change
fonts and sizes. No windows are opened: figures are rendered by the canvas of their output format.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SETTINGS = ("MPLBACKEND", "MATPLOTLIBRC")


@contextmanager
def _without_settings() -> Iterator[None]:
    """Hide matplotlib's environment variables, and its log messages about an unwritable config folder."""
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
    """matplotlib's default settings with these changes, within the context, whatever the user's own settings."""
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

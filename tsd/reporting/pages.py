"""Templates of all HTML pages, and the filters that format their numbers."""

import re
from collections.abc import Sequence
from pathlib import Path

import jinja2

from tsd.progress import clock


def template(name: str) -> jinja2.Template:
    """A page template by name, such as "report", with the shared filters."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        clock=clock,
        count=lambda value: f"{value:,}",
        number=_number,
        percent=percent,
        polyline=_polyline,
        public=_public,
    )
    return environment.get_template(f"{name}.html.j2")


def percent(share: float) -> str:
    """A fraction as a percentage with one decimal."""
    return f"{100 * share:.1f}"


def _number(value: float) -> str:
    """A number with three significant digits: 0.412, 23.1, 1.20×10¹²."""
    if abs(value) < 1e-6:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    digits, power = f"{value:.2e}".split("e")
    return f"{digits}×10{str(int(power)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def _polyline(values: Sequence[int], width: float, height: float) -> list[tuple[float, float]]:
    """SVG coordinates (x to the right, y downwards) of values 0–99 in a box of this size."""
    step = width / max(1, len(values) - 1)
    heights = (height * (1 - value / 99) for value in values)
    return [(round(place * step, 1), round(at, 1)) for place, at in enumerate(heights)]


def _public(text: str) -> str:
    """The text without user names and passwords in URIs, such as a tracking server's."""
    return re.sub(r"(?<=://)[^/\s@]+@", "…@", text)

"""Plots: what a teacher is shown depends on the series and the style, and on nothing else."""

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tsd.plots import render
from tsd.recipe import PlotConfig

SMALLEST = PlotConfig(width=128, height=128)  # matplotlib warns where its words leave no room
USUAL = PlotConfig()


def pixels(picture: bytes) -> npt.NDArray[np.uint8]:
    """A PNG as an array of greys, (height, width)."""
    return np.asarray(Image.open(io.BytesIO(picture)))


@pytest.fixture
def values() -> npt.NDArray[np.uint8]:
    """Five random series and one of them again."""
    drawn = np.random.default_rng(0).integers(0, 100, (5, 128), dtype=np.uint8)
    return np.concatenate([drawn, drawn[:1]])


@pytest.mark.parametrize("style", [SMALLEST, USUAL], ids=["smallest", "usual"])
def test_a_picture_does_not_depend_on_its_company(values: npt.NDArray[np.uint8], style: PlotConfig) -> None:
    together = render(values, style)
    assert together == [render(row[None], style)[0] for row in values]
    assert together[5] == together[0]
    assert len(set(together)) == 5


@pytest.mark.parametrize("style", [SMALLEST, USUAL], ids=["smallest", "usual"])
def test_a_picture_is_a_grey_png_of_the_recipes_size(values: npt.NDArray[np.uint8], style: PlotConfig) -> None:
    image = Image.open(io.BytesIO(render(values[:1], style)[0]))
    assert (image.format, image.mode, image.size) == ("PNG", "L", (style.width, style.height))


def test_a_higher_series_is_drawn_higher_up_on_the_same_axes() -> None:
    low, high, empty = (pixels(p) for p in render(np.array([[10] * 128, [90] * 128, [0] * 128], np.uint8), USUAL))

    def row_of_line(picture: npt.NDArray[np.uint8]) -> int:
        # Where the middle columns are dark in this picture and not in that of a series at the bottom.
        middle = slice(USUAL.width // 2 - 40, USUAL.width // 2 + 40)
        return int((empty[:, middle].astype(int) - picture[:, middle]).sum(axis=1).argmax())

    assert row_of_line(high) < USUAL.height / 3 < row_of_line(low)
    # Everything left of the axes, the words and the ticks, is the same for all.
    assert (low[:, :30] == high[:, :30]).all()

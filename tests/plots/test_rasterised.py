"""The bare picture: line and shadow where they belong, the same in a PNG, and no two series alike by chance."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tsd.plots.rasterised import SIDE, as_png, draw

SHADED = 102.0  # the ink of the shadow
VALUES = st.lists(st.integers(0, 99), min_size=2, max_size=300)


@given(VALUES)
def test_a_png_holds_the_ink_of_the_picture(values: list[int]) -> None:
    (ink,) = draw([[np.array(values, np.uint8)]])
    picture = Image.open(io.BytesIO(as_png(ink)))
    assert (picture.mode, picture.size) == ("L", (SIDE, SIDE))
    assert (np.asarray(picture) == 255 - ink).all()


@given(VALUES)
def test_a_picture_does_not_depend_on_what_was_drawn_before(values: list[int]) -> None:
    curve = np.array(values, np.uint8)
    alone = draw([[curve]])
    together = draw([[99 - curve], [curve], [curve, 99 - curve], [curve]])
    assert (together[1] == alone[0]).all()
    assert (together[3] == alone[0]).all()


def test_each_point_of_128_lies_in_a_column_and_on_the_height_of_its_value() -> None:
    curve = np.arange(128, dtype=np.uint8) % 100
    (ink,) = draw([[curve]])
    heights = 124 - curve * (120 / 99)
    smooth = np.flatnonzero(np.diff(curve.astype(int)) == 1)
    smooth = smooth[(np.abs(smooth - 99) > 2) & (smooth > 1)]  # far from where the line falls, and from its end
    darkest = [
        np.average(np.arange(SIDE), weights=np.maximum(ink[:, column], SHADED) - SHADED + 1e-9)
        for column in smooth
    ]
    # A pixel's centre lies half a pixel below its number.
    assert np.array(darkest) + 0.5 == pytest.approx(heights[smooth], abs=0.5)


def test_a_peak_of_one_point_casts_a_shadow_as_high_as_itself() -> None:
    curve = np.full(128, 20, np.uint8)
    curve[60] = 80
    (ink,) = draw([[curve]])
    top = 124 - 80 * (120 / 99)
    there = np.flatnonzero(ink[round(top)])
    assert there.tolist() == list(range(57, 64))
    assert ink[round(top), 60] == 255
    assert set(ink[round(top), there]) == {255, SHADED}
    assert not ink[round(top) - 3].any()


def test_the_second_of_two_series_has_half_the_ink() -> None:
    low, high = np.full(32, 20, np.uint8), np.full(32, 80, np.uint8)
    (ink,) = draw([[low, high]])
    assert ink[SIDE // 2 :].max() == 255
    assert ink[: SIDE // 2].max() == 127


def test_a_quarter_of_the_time_is_a_quarter_of_the_width() -> None:
    early = np.zeros(64, np.uint8)
    early[:16] = 99
    (ink,) = draw([[early]])
    columns = np.flatnonzero(ink[:8].max(axis=0))
    assert columns.min() == 0
    assert columns.max() == pytest.approx(SIDE / 4, abs=4)

"""Series of any length and scale are fitted to what a student reads, and it is said how."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.ramp import LENGTH

from tsd.inference.explain import _averaged, fit_to_student, fitting_length, units_of
from tsd.series.truth import TOP
from tsd.tasks import RICH

SERIES = arrays(np.float64, st.integers(2, 400), elements=st.floats(0, 99, allow_subnormal=False))


@given(SERIES)
def test_averaging_keeps_the_mean_and_the_range(raw):
    values, changes = fit_to_student(raw, LENGTH)
    assert values.shape == (LENGTH,)
    if len(raw) > LENGTH:
        assert "averaged" in changes[0]
        means = _averaged(raw, LENGTH)
        assert abs(means.mean() - raw.mean()) <= 1e-6
        assert raw.min() <= means.min() <= means.max() <= raw.max()


@given(st.integers(2, 3000), st.booleans())
def test_a_ramp_of_any_length_stays_a_ramp(rows, falling):
    raw = np.linspace(0, 99, rows)
    values, _ = fit_to_student(raw[::-1] if falling else raw, LENGTH)
    steps = np.diff(values[::-1] if falling else values)
    assert (steps >= 2).all()
    assert (steps <= 4).all()


@given(arrays(np.float64, st.integers(2, LENGTH - 1), elements=st.integers(0, 99).map(float)))
def test_a_shorter_series_is_interpolated_and_keeps_its_ends(raw):
    values, changes = fit_to_student(raw, LENGTH)
    if raw.min() < raw.max():
        drawn = np.interp(np.linspace(0, len(raw) - 1, LENGTH), np.arange(len(raw)), raw)
        ends = np.rint((raw[[0, -1]] - drawn.min()) / np.ptp(drawn) * TOP)
        assert (values[[0, -1]] == ends).all()
    assert "interpolated" in changes[0]


@given(arrays(np.float64, LENGTH, elements=st.floats(-1e300, 1e300, allow_subnormal=False)))
def test_any_series_is_mapped_onto_the_students_range_and_it_is_said(raw):
    values, changes = fit_to_student(raw, LENGTH)
    assert 0 <= values.min() <= values.max() <= TOP
    if raw.min() < raw.max():
        assert (values.min(), values.max()) == (0, TOP)
    as_it_was = (raw.min(), raw.max()) == (0, TOP)
    assert any("mapped onto 0–99" in change for change in changes) != as_it_was


@given(arrays(np.int64, LENGTH, elements=st.integers(0, 99)))
def test_whole_values_that_fill_the_range_are_left_alone(raw):
    raw[:2] = 0, TOP
    values, changes = fit_to_student(raw.astype(float), LENGTH)
    assert (values == raw).all()
    assert changes == []


@pytest.mark.parametrize(
    ("points", "length"), [(5, 32), (32, 32), (127, 32), (128, 128), (999, 128), (5000, 1000)]
)
def test_of_several_lengths_the_longest_is_read_that_needs_no_point_made_up(points, length):
    assert fitting_length([1000, 32, 128], points) == length


@pytest.mark.parametrize(
    ("reply", "note"),
    [
        ("It stays flat, around a level of 50.", "numbers in the description are on 0–99"),
        ("It is flat: the change of 2 is within the noise.", "numbers in the description are on 0–99"),
        ("The noise is low, about 3 units.", "numbers in the description are on 0–99"),
        ("The level jumps up by 20.", "numbers in the description are on 0–99"),
        (
            "The peak of 93 lies at the end, at point 120 of 128.",
            "numbers in the description are on 0–99, and points are those of 128",
        ),
        ("The maximum lies at the end, at point 120 of 128.", "points in the description are those of 128"),
        ("The season is strong, with about 7.5 cycles.", None),
        ("The trend is flat.", None),
    ],
)
def test_a_description_with_numbers_says_that_they_are_not_those_of_the_file(reply, note):
    said = json.dumps(dict.fromkeys(RICH.topics, reply))
    numbers = {name: number for name, number in RICH.numbers_in(said).items() if number is not None}
    assert units_of([reply], numbers, RICH, 128) == ([note] if note else [])

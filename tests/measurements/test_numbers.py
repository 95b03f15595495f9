"""Cells as numbers: decimal signs, other kinds of cells, missing values and their codes."""

import re

import numpy as np
import pytest
from support.csv_text import VALUES, by_day, lines

from tsd.errors import InputError
from tsd.measurements import Hints, read

# ---- Numbers


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["996", "998", "999", "1.000", "1.001"], [996, 998, 999, 1000, 1001]),
        (["996", "998", "999", '"1,000"', '"1,001"'], [996, 998, 999, 1000, 1001]),
        (["998,5", "999,0", "1.000", "1.001,5"], [998.5, 999, 1000, 1001.5]),
        (["0.998", "0.999", "1.000", "1.001"], [0.998, 0.999, 1, 1.001]),
        (["1.125", "2.250", "3.375"], [1.125, 2.25, 3.375]),
        (["1 234,5", "1 235,5", "999,5"], [1234.5, 1235.5, 999.5]),
        (["1\u00a0234,5", "1\u202f235,5", "1\u2009236"], [1234.5, 1235.5, 1236]),
        (["1'234.5", "1’235.5", "999.5"], [1234.5, 1235.5, 999.5]),
        (["12,34,567", "1,23,456", "7,654"], [1234567, 123456, 7654]),
        (["\u22121,5", "\u22122,5", "–3,5"], [-1.5, -2.5, -3.5]),
        (["(1.5)", "2.5", "(3.5)"], [-1.5, 2.5, -3.5]),
        (["€ 1,50", "2,50 €", "3,50"], [1.5, 2.5, 3.5]),
        (["$1,234.50", "$2,234.50", "$999.00"], [1234.5, 2234.5, 999]),
        (["10 kg", "11 kg", "12.5 kg"], [10, 11, 12.5]),
        (["1e3", "1.5E+03", "2000"], [1000, 1500, 2000]),
        (["'10", "'11", "'12.5"], [10, 11, 12.5]),
        ([".5", "1.", "+2.5"], [0.5, 1, 2.5]),
    ],
)
def test_a_column_is_read_as_a_whole(write, cells, values):
    cells = [cell.strip('"') for cell in cells]
    for separator in ";\t|":
        file = write(lines(separator.join(("name", "v")), [["x", cell] for cell in cells], separator))
        assert read(file).values.tolist() == values
    assert read(write(lines("v", [f'"{cell}"' for cell in cells]))).values.tolist() == values


@pytest.mark.parametrize("sign", ".,")
def test_a_decimal_sign_that_groups_digits_after_a_jump_is_refused_until_it_is_said(write, sign):
    cells = [cell.replace(".", sign) for cell in ("998.5", "999.5", "1.000", "1.001")]
    file = write(lines("name;v", [["x", cell] for cell in cells], ";"))
    with pytest.raises(InputError, match=rf"line 4, column 'v': '1.000' may be 1 or 1,000: say --decimal {sign}"):
        read(file)
    assert read(file, hints=Hints(decimal=sign)).values.tolist() == [998.5, 999.5, 1, 1.001]
    plain = [1.125, 1.25, 998.523, 998.5, 1.375]
    assert read(write(lines("v", plain))).values.tolist() == plain


@pytest.mark.parametrize(
    "cells",
    [
        ["5", "400", "1.200", "3"],
        ["5", "400", "1,200", "3"],
        ["1500", "1.250", "2"],
        ["1.250", "2", "3.375", "2"],
        ["0", "1", "1,200"],
    ],
)
def test_a_point_or_comma_that_may_be_either_is_refused_until_it_is_said(write, cells):
    file = write(lines("name;v", [["x", cell] for cell in cells], ";"))
    with pytest.raises(InputError, match=r"may be 1\.25? or 1,2[05]0: say --decimal [.,] or --decimal [.,]"):
        read(file)
    with_point, with_comma = (read(file, hints=Hints(decimal=sign)).values for sign in ".,")
    assert {with_point.max() < 1000, with_comma.max() < 1000} <= {True, False}
    assert not np.array_equal(with_point, with_comma)


def test_another_column_of_the_file_shows_the_decimal_sign(write):
    for other, value in (("2,5", 1234.0), ("2.5", 1.234)):
        file = write(lines("v;other", [["1.234", other], ["5.678", other], ["2.345", other]], ";"))
        assert read(file, "v").values[0] == value


@pytest.mark.parametrize(
    ("cells", "named"),
    [
        (["10%", "0.2", "30%"], "'0.2'"),
        (["10 kg", "11 g", "12 kg"], "'11 g'"),
        (["1.5", "2,5", "3.5"], "'2,5'"),
        (["1.5", "<0.5", "3.5"], "'<0.5'"),
        (["1.5", "true", "3.5"], "'true'"),
        (["1.5", "inf", "3.5"], "'inf'"),
        (["1.5", "1e400", "3.5"], "'1e400' is not a finite number below 1e+300"),
        (["1.5", "-1e308", "3.5"], "'-1e308' is not a finite number below 1e+300"),
        (["1.5", "2024-01-01", "3.5"], "'2024-01-01'"),
        (["1.5", "5-", "3.5"], "'5-'"),
    ],
)
def test_a_cell_of_another_kind_is_named_with_its_line(write, cells, named):
    with pytest.raises(InputError, match=r"line 3, column 'v'") as caught:
        read(write(lines("name;v", [["x", cell] for cell in cells], ";")))
    assert named in str(caught.value)


@pytest.mark.parametrize("cell", ["<0.5", ">100", "12*", "0x10", "1.0±0.1", "bad", "OFF"])
@pytest.mark.parametrize("header", ["v", "my value"])
def test_a_first_row_that_is_no_number_is_no_row_of_units(write, cell, header):
    with pytest.raises(
        InputError, match=rf"line 2, column '{header}': '{re.escape(cell)}' is not a finite number"
    ):
        read(write(lines(header, [cell, *VALUES])))
    for unit in ("m/s", "°C", "1/min", "10^6 m3", "USD (2015=100)"):
        assert read(write(lines("v", [unit, *VALUES]))).values.tolist() == VALUES


# ---- Missing values


@pytest.mark.parametrize("word", ["", "NA", "n/a", "NaN", "null", "None", "-", "–", "#N/A", ".", "-999", "1e20"])
def test_one_missing_value_is_filled_in_linearly_and_said(write, word):
    values = [*map(str, VALUES)]
    values[5] = word
    one = read(write(by_day(values)))
    assert one.values[5] == pytest.approx((VALUES[4] + VALUES[6]) / 2)
    assert "1 missing value was filled in linearly" in one.changes
    assert one.rows == len(VALUES) - 1


@pytest.mark.parametrize("code", ["-999", "-9999", "-99.9", "9999", "32767", "1e20", "NaN", ""])
def test_more_missing_values_than_may_be_made_up_are_refused(write, code):
    values = [code if i % 3 == 1 else value for i, value in enumerate(VALUES)]
    with pytest.raises(InputError, match="at most 5% of the rows are filled in"):
        read(write(by_day(values)))


def test_a_code_that_may_be_a_value_is_refused_until_it_is_said(write):
    file = write(lines("v", [-999, -500, 0, 500, 700, 300] * 4))
    with pytest.raises(InputError, match="--missing -999 or --missing none"):
        read(file)
    assert read(file, hints=Hints(missing=("none",))).values.min() == -999
    ordinary = read(write(lines("v", [990, 995, 999, 1001, 1003] * 4)))
    assert 999 in ordinary.values
    assert not any("missing" in change for change in ordinary.changes)


def test_a_value_far_from_the_rest_that_is_no_known_code_is_kept_and_said(write):
    one = read(write(lines("v", [-88.8, *(value / 10 for value in VALUES)] + [value / 10 for value in VALUES])))
    assert one.values.min() == -88.8
    assert any("-88.8 (1 of 25 rows) is far from the rest" in change for change in one.changes)
    named = read(write(lines("v", [*VALUES, -88.8, *VALUES])), hints=Hints(missing=("-88.8",)))
    assert named.values.min() == 10


@pytest.mark.parametrize(
    "code", ["-999.25", "-32767", "-9998", "-888", "-1000", "-1", "0", "1e10", "99999.9", "-555", "-9.99e8"]
)
def test_one_value_that_comes_again_far_from_all_others_is_not_measured_in_silence(write, code):
    values = [str(value + 20) for value in VALUES * 3]
    for row in (4, 11, 20, 30):
        values[row] = code
    file = write(lines("v", values))
    with pytest.raises(
        InputError, match=r"at most 5% of the rows are filled in|--missing -?\d+ or --missing none"
    ):
        read(file)
    assert read(file, hints=Hints(missing=("none",))).rows == 36


def test_two_codes_that_nobody_knows_are_said_and_a_level_of_its_own_is_kept(write):
    values = [{3: -555, 9: -555, 12: -444, 17: -444}.get(row, value) for row, value in enumerate(VALUES * 2)]
    said = "-555 and -444 (4 of 24 rows) are far from the rest"
    assert any(said in change for change in read(write(lines("v", values))).changes)
    step = [0.0] * 12 + [100 + value for value in VALUES]
    assert read(write(lines("v", step))).values.tolist() == step
    counts = [0, 1, 2, 1, 0, -1, 0, 1, 2, 3, 2, 1, 0, -1]
    assert read(write(lines("v", counts))).values.tolist() == counts


def test_empty_cells_at_both_ends_make_the_series_shorter(write):
    one = read(write(by_day(["", "", *map(str, VALUES[2:9]), "", "", ""])))
    assert one.values.tolist() == VALUES[2:9]
    assert "rows without a value were left out: 2 at the beginning, 3 at the end" in one.changes

"""Files as people have them: read to the same series or refused in one line, never to another one in silence."""

import gzip
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.csv_text import DAYS, VALUES, by_day, lines

from tsd.errors import InputError
from tsd.measurements import Hints, read

WILD = Path(__file__).parents[3] / "shared" / "reference" / "wild" / "csv"
# Of each file that is read what it starts and ends with, and what must be said of it.
PLAIN = (10.0, 30.464)
EXPECTED = {
    "rising.csv": ((20.0, 81.53), ["the time is column 'date'"]),
    "newest_first.csv": (PLAIN, ["sorted by 'date', they were newest first"]),
    "shuffled.csv": (PLAIN, ["sorted by 'date', they were in no order"]),
    "irregular.csv": ((1.0, -5.0), ["resampled linearly in time", "gap of 183 days"]),
    "dupts.csv": (PLAIN, ["rows that share a time: 40"]),
    "semicolon.csv": (PLAIN, ["semicolons", "',' is the decimal sign"]),
    "semicolon_int.csv": ((10.0, 30.0), ["semicolons"]),
    "sepline.csv": ((10.0, 30.0), ["semicolons"]),
    "tab.csv": (PLAIN, ["tabs"]),
    "plain.tsv": (PLAIN, ["tabs"]),
    "pipe.csv": (PLAIN, ["bars"]),
    "quoted_dc.csv": (PLAIN, ["',' is the decimal sign"]),
    "single_dc.csv": (PLAIN, ["',' is the decimal sign"]),
    "thou.csv": ((10_000.0, 30_464.0), ["',' separates thousands"]),
    "pct.csv": (PLAIN, ["'%' was taken for the unit"]),
    "units.csv": (PLAIN, ["'s, m/s', was taken for units"]),
    "comment.csv": (PLAIN, ["2 comment lines"]),
    "title.csv": (PLAIN, ["text above the header", "the time is column 'Year'"]),
    "foot.csv": (PLAIN, ["'Total', is the sum of the others"]),
    "m999.csv": (PLAIN, ["-999 (1 row) was taken for missing", "1 missing value was filled in"]),
    "miss.csv": (PLAIN, ["1 missing value was filled in"]),
    "na.csv": (PLAIN, ["1 missing value was filled in"]),
    "blankend.csv": (PLAIN, []),
    "latin1.csv": (PLAIN, ["not UTF-8"]),
    "u16.csv": (PLAIN, ["the time is column 'date'"]),
    "plain.csv.gz": (PLAIN, ["gzip"]),
    "v.parquet": (PLAIN, ["Parquet"]),
    "epoch.csv": (PLAIN, ["the time is column 'timestamp'"]),
    "time_hms.csv": (PLAIN, ["the time is column 'clock'"]),
    "year.csv": (PLAIN, ["the time is column 'Year'"]),
    "wide.csv": (PLAIN, ["columns named with times"]),
    "sci.csv": (PLAIN, []),
}
REFUSED = {
    "long_format_two_sensors.csv": "--where sensor=A",
    "unquoted_dc.csv": "10,0 may be two cells, or one number with a decimal comma",
}


@pytest.mark.skipif(not WILD.is_dir(), reason="the files of public bug reports are not on this machine")
def test_files_of_public_bug_reports_are_read_as_expected_or_refused_with_the_fix():
    files = {path.name for path in WILD.iterdir()}
    assert files == EXPECTED.keys() | REFUSED.keys()
    for name, ((first, last), notes) in EXPECTED.items():
        one = read(str(WILD / name))
        assert (one.values[0], one.values[-1]) == (first, last), name
        said = " | ".join(one.changes)
        assert all(note in said for note in notes), (name, said)
        if name != "irregular.csv":  # it falls after its gap
            assert np.polyfit(np.arange(len(one.values)), one.values, 1)[0] > 0, name
    for name, fix in REFUSED.items():
        with pytest.raises(InputError, match=re.escape(fix)) as caught:
            read(str(WILD / name))
        assert "\n" not in str(caught.value)
    assert read(str(WILD / "long_format_two_sensors.csv"), hints=Hints(where=("sensor=B",))).values[0] == 21.386


# ---- What stands around the table


FRAMES = {
    "a title": "Global means, yearly\n{}",
    "a title and a blank line": "Global means\n\n{}",
    "comments": "# station 42\n# units: K\n{}",
    "comments in between": "{}# end\n",
    "blank lines": "\n\n{}\n\n\n",
    "a total": "{}Total,791.1\n",
    "a mean and a sum": "{}Mean,12.1\nSum,791.1\n",
    "a source": "{}\nSource: an office of statistics\n",
    "a line for a spreadsheet": "sep=,\n{}",
}


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
def test_what_stands_around_the_table_is_left_out(write, frame, end):
    text = FRAMES[frame].format(by_day()).replace("\n", end)
    assert read(write(text)).values.tolist() == VALUES


@pytest.mark.parametrize(
    "text",
    [
        by_day().replace("\n", ",\n"),
        by_day().replace("v\n", "v,\n").replace("\n2", ",\n2"),
        re.sub(r"([^,\n]+)", r'"\1"', by_day()),
        by_day(header="# date,v"),
        by_day(header="date,v\n,m/s"),
        by_day(header="date,v (m/s)"),
        by_day(header="10 cm,v"),
        lines("v", [[f'"{i}"', value] for i, value in enumerate(VALUES, 1)]),
        lines("v", list(enumerate(VALUES, 1)), "\t"),
        lines("#,v", list(enumerate(VALUES, 1))),
        by_day(header="Datum;Temperatur, °C", separator=";"),
        lines("note,v", [[f'"a, {i}"', value] for i, value in enumerate(VALUES)]),
    ],
)
def test_a_table_is_read_however_it_is_ruled(write, text):
    assert read(write(text)).values.tolist() == VALUES


@pytest.mark.parametrize("last", [2, 5])
def test_a_quote_that_swallows_rows_is_refused_and_one_around_a_text_is_said(write, last):
    rows = [["d", value] for value in range(1, 9)]
    rows[0][0], rows[last - 1][0] = '"pipe', 'd"'
    with pytest.raises(InputError, match=rf'line 2: a cell opens with " and ends {last - 1} lines? below'):
        read(write(lines("note,v", rows)))
    with pytest.raises(InputError, match=r'line 3: a cell opens with "'):
        read(write('v\n1\n"2\n3\n4"\n5\n6\n'))
    one = read(write('note,w,v\n"a, long\nnote",x,1\nb,y,2\nc,z,3\n'))
    assert one.values.tolist() == [1, 2, 3]
    assert "cells in quotes hold line breaks: 4 lines were read as 3 rows" in one.changes


@pytest.mark.parametrize(
    ("content", "fix"),
    [
        ("date,v\n2024-01-01,10,5\n2024-01-02,11,5\n2024-01-03,11,5\n", "one number with a decimal comma"),
        ("v\n0,3\n1,2\n2,2\n3,5\n", "one number with a decimal comma or a row number and a value"),
        ("t v\n0 3\n1 2\n2 2\n", "columns separated by spaces"),
        ("v,v\n1,2\n3,4\n", "rename one"),
        ("2024-01-01,10.0\n2024-01-02,11.0\n2024-01-03,12.0\n", "add a header line"),
        ("<html><body>404</body></html>", "HTML"),
        ('[{"a": 1}]', "JSON"),
        ("[0, 3, 6]", "JSON"),
        ('["a",\n "b"]\n', "JSON"),
        (b"PK\x03\x04 a workbook", "save the sheet"),
        (b"\x1f\x8b\x08 cut", "damaged"),
        (b"PAR1 cut", "damaged Parquet file"),
        ("# only\n# comments\n", "nothing but comments"),
        ("a,b\n", "no row of data"),
        ("a,b\n1,2\n", "one row of data"),
        (lines("date,v", [["2024-01-01", 1], ["soon", 2], ["2024-01-03", 3], ["2024-01-04", 4]]), "line 3"),
        (lines("date,v", [["2024-01-01", 1], ["", 2], ["2024-01-03", 3], ["2024-01-04", 4]]), "needs a time"),
        (lines("date,v", [["2024-01-01", i] for i in range(5)]), "all rows have the same time"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_the_fix(write, content, fix):
    with pytest.raises(InputError, match=re.escape(fix)) as caught:
        read(write(content))
    assert "\n" not in str(caught.value)
    assert "mine.csv" in str(caught.value)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]
)
def test_text_in_any_usual_encoding_is_read(write, encoding):
    one = read(write(by_day(header="date,Größe").encode(encoding)))
    assert (one.name, one.values.tolist()) == ("Größe", VALUES)


def test_gzip_and_parquet_are_read(write, tmp_path):
    assert read(write(gzip.compress(by_day().encode()), "mine.csv.gz")).values.tolist() == VALUES
    days = pl.Series(DAYS).str.to_date()
    table = pl.DataFrame({"day": days, "v": VALUES, "on": [True] * 12, "list": [[1]] * 12}).reverse()
    table.write_parquet(tmp_path / "mine.parquet")
    one = read(str(tmp_path / "mine.parquet"))
    assert (one.time, one.values.tolist()) == ("day", VALUES)


def test_a_file_behind_a_uri_is_read(write):
    assert read(Path(write(by_day())).as_uri()).values.tolist() == VALUES
    with pytest.raises(InputError, match="does not exist"):
        read("file:///nowhere/mine.csv")


# ---- Any series in any dialect


@st.composite
def dialects(draw):
    """How a program might write a table: separator, signs, quotes, encoding, ends of lines, order of rows."""
    separator = draw(st.sampled_from([",", ";", "\t", "|"]))
    decimal = draw(st.sampled_from([".", ","]))
    marks = ["", "'", "\u00a0", "\u202f", "." if decimal == "," else ","]
    return {
        "separator": separator,
        "decimal": decimal,
        "thousands": draw(st.sampled_from(marks)),
        "digits": draw(st.integers(0, 4)),
        "quoted": separator == "," or draw(st.booleans()),
        "encoding": draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])),
        "end": draw(st.sampled_from(["\n", "\r\n", "\r"])),
        "unit": draw(st.sampled_from(["", " kg", "%", " €"])),
        "dated": draw(st.booleans()),
        "order": draw(st.sampled_from(["oldest first", "newest first", "mixed"])),
    }


@settings(max_examples=60)
@given(
    st.lists(st.integers(-3_000_000, 3_000_000), min_size=3, max_size=40).filter(lambda x: len(set(x)) > 1),
    st.sampled_from([1, 100, 10_000]),
    dialects(),
)
def test_a_series_written_in_any_dialect_is_read_as_it_was_or_refused(tmp_path_factory, whole, scale, how):
    texts = [f"{value / scale:,.{how['digits']}f}" for value in whole]
    values = [float(text.replace(",", "")) for text in texts]
    cells = [text.translate({44: how["thousands"], 46: how["decimal"]}) + how["unit"] for text in texts]
    cells = [f'"{cell}"' if how["quoted"] else cell for cell in cells]
    rows = [f"2024-{1 + i // 28:02}-{1 + i % 28:02}{how['separator']}{cell}" for i, cell in enumerate(cells)]
    start = f"date{how['separator']}v"
    if how["dated"]:
        rows = {"oldest first": rows, "newest first": rows[::-1], "mixed": rows[::2] + rows[1::2]}[how["order"]]
    else:
        rows, start = cells, "v"
    path = tmp_path_factory.mktemp("dialect") / "mine.csv"
    path.write_bytes(how["end"].join([start, *rows]).encode(how["encoding"]))
    try:
        one = read(str(path), hints=Hints(missing=("none",)))
    except InputError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert "\n" not in refusal
        assert str(path) in refusal
        return
    spans = len(values) > 28 and how["dated"]  # of a month with more than 28 days: resampled
    if spans:
        assert (one.values[0], one.values[-1]) == pytest.approx((values[0], values[-1]))
        return
    assert one.rows == len(values)
    if not np.allclose(one.values, values):
        # Where every cell has three digits behind one mark, the scale is open, and that is said; but not of
        # numbers that all have three digits behind a point.
        assert np.allclose(one.values * 1000, values) or np.allclose(one.values, np.array(values) * 1000)
        said = any("changes only the scale" in change or "semicolons separate" in change for change in one.changes)
        assert said or all(re.fullmatch(r'"?-?\d+\.\d{3}\D*', cell) for cell in cells)

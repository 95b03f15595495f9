"""Files as people have them: read to the same series or refused in one line, never to another one in silence."""

import gzip
import re
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


# ---- The same kinds, rebuilt small

VALUES = [10.0, 11.341, 11.909, 11.641, 11.243, 11.541, 12.721, 14.157, 14.989, 14.912, 14.5, 15.4]
DAYS = [f"2024-01-{day:02}" for day in range(1, 13)]
NAMES = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()  # noqa: SIM905


def lines(header, cells, separator=","):
    """A file's text: cells is a list of rows, each a list of cells or one."""
    rows = [[row] if isinstance(row, (str, float, int)) else row for row in cells]
    return "\n".join([header, *(separator.join(map(str, row)) for row in rows)]) + "\n"


def by_day(values=VALUES, header="date,v", separator=","):
    return lines(header, list(zip(DAYS, values, strict=False)), separator)


def in_time(times, header="date,v"):
    return lines(header, list(zip(times, VALUES, strict=True)))


def backwards(text):
    header, *rows = text.splitlines()
    return "\n".join([header, *rows[::-1]]) + "\n"


TIMES = {
    "ISO dates": DAYS,
    "a clock": [f"{hour:02}:30" for hour in range(12)],
    "a clock that passes midnight": [f"{(20 + hour) % 24:02}:30:00" for hour in range(12)],
    "a clock of twelve hours": [f"1/20/2024 {hour or 12}:00 AM" for hour in range(12)],
    "an offset from UTC that changes": [
        f"2024-03-31T{hour + (hour > 1):02}:00:00+0{1 + (hour > 1)}:00" for hour in range(12)
    ],
    "UTC": [f"2024-03-31T{hour:02}:00:00Z" for hour in range(12)],
    "fractions of a second in some rows": [
        f"2024-03-31 00:00:{i // 2:02}{'.500000' if i % 2 else ''}" for i in range(12)
    ],
    "seconds since 1970": [1_700_000_000 + 60 * i for i in range(12)],
    "thousandths since 1970": [1_700_000_000_000 + 60_000 * i for i in range(12)],
    "days first": [f"{day}/01/2024" for day in range(8, 20)],
    "months first": [f"01/{day}/24" for day in range(8, 20)],
    "days first with dots": [f"{day:02}.02.2024" for day in range(1, 13)],
    "days and months that are one series either way": [f"{day:02}/02/2024" for day in range(1, 13)],
    "years": list(range(1980, 1992)),
    "fractions of years": [f"{1980 + i / 12:.4f}" for i in range(12)],
    "months": [f"2024-{month:02}" for month in range(1, 13)],
    "months by name": [f"{name} 2024" for name in NAMES],
    "months by name, short": [f"{name}-24" for name in NAMES],
    "days with a month's name": [f"{day} January 2024" for day in range(1, 13)],
    "days of an American": [f'"Jan {day}, 2024"' for day in range(1, 13)],
    "quarters": [f"{2020 + i // 4}-Q{i % 4 + 1}" for i in range(12)],
    "weeks": [f"2024-W{week:02}" for week in range(1, 13)],
    "numbers as dates": [f"202401{day:02}" for day in range(1, 13)],
    "numbers as months": [f"2024{month:02}" for month in range(1, 13)],
    "a spreadsheet's days": list(range(45_000, 45_012)),
    "seconds from a start": [f"{i / 10:.1f}" for i in range(12)],
    "months by name, shorter": [f"{name}'24" for name in NAMES],
    "weeks whose year stands last": [f"W{week:02}-2024" for week in range(1, 13)],
    "numbers as weeks": [202350 + i if i < 3 else 202398 + i for i in range(12)],
    "numbers as quarters": [20211 + 10 * (i // 4) + i % 4 for i in range(12)],
    "numbers as days of a year": [2023360 + i if i < 6 else 2023995 + i for i in range(12)],
    "numbers as months of short years": [2307 + i if i < 6 else 2395 + i for i in range(12)],
}


@pytest.fixture
def write(tmp_path):
    def to(content, name="mine.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return to


@pytest.mark.parametrize("kind", TIMES)
def test_rows_in_any_order_are_the_series_in_the_order_of_their_times(write, kind):
    text = in_time(TIMES[kind])
    straight = read(write(text))
    assert straight.values.tolist() == VALUES
    assert straight.time == "date"
    reverse = read(write(backwards(text)))
    assert reverse.values.tolist() == VALUES
    assert any("newest first" in change for change in reverse.changes)
    if "midnight" not in kind:  # a clock in no order says nothing of days
        header, *rows = text.splitlines()
        mixed = read(write("\n".join([header, *rows[1::2], *rows[::2]])))
        assert mixed.values.tolist() == VALUES
        assert any("in no order" in change for change in mixed.changes)


NEW_YEAR = [date(1999, 12, 26) + timedelta(days) for days in range(12)]
WINTER = [date(2024, 1, 25) + timedelta(days) for days in range(12)]


@pytest.mark.parametrize(
    ("times", "said"),
    [
        *(
            ([day.strftime(form) for day in NEW_YEAR], "1999 to 2000")
            for form in ("%d-%b-%y", "%d %b %y", "%d.%m.%y")
        ),
        ([f"Jan-{year % 100:02}" for year in range(1996, 2008)], "1996 to 2007"),
        ([f"31.12.{year}" for year in range(61, 73)], "1961 to 1972"),
        ([f"12/31/{year}" for year in range(61, 73)], "1961 to 1972"),
        ([f"{year % 100:02}" for year in range(1995, 2007)], "1995 to 2006"),
        *(
            ([day.strftime(form) for day in WINTER], "as 2024")
            for form in ("%y.%m.%d", "%y-%b-%d", "%y%m%d", "%d%m%y")
        ),
    ],
)
def test_years_of_two_digits_are_of_the_century_that_puts_the_rows_in_order(write, times, said):
    for text in (in_time(times, "date_of_year,v"), backwards(in_time(times, "date_of_year,v"))):
        one = read(write(text.replace("date_of_year", "year" if len(times[0]) == 2 else "date")))
        assert one.values.tolist() == VALUES
        assert any(said in change for change in one.changes)


UNEVEN = [second**2 for second in range(12)]


@pytest.mark.parametrize(
    "name",
    [
        *(
            "created_at",
            "obs_time",
            "measured_at",
            "log_time",
            "ValidTime",
            "sampletime",
            "recordedAt",
            "SYSTEMTIME",
            "JD",
        )
    ],
)
@pytest.mark.parametrize("measured", [None, "v"])
def test_seconds_since_1970_and_julian_dates_are_times_whatever_their_steps(write, name, measured):
    cells = [2_460_310.5 + step if name == "JD" else 1_704_067_200 + step for step in UNEVEN]
    one = read(write(backwards(in_time(cells, f"{name},v"))), measured)
    assert (one.time, one.values[0], one.values[-1]) == (name, VALUES[0], VALUES[-1])
    assert any("newest first" in change for change in one.changes)


@pytest.mark.parametrize(
    "cells",
    [
        [1_704_067_200 + step for step in UNEVEN],
        [2_460_310.5 + step for step in UNEVEN],
        [1900 + step for step in UNEVEN],
        [f"2024{month:02}" for month in range(1, 13)],
    ],
)
def test_numbers_that_look_like_times_under_another_name_are_refused_until_it_is_said(write, cells):
    file = write(backwards(in_time(cells, "event,v")))
    with pytest.raises(InputError, match=r"'event' looks like .*--time 'event' .* --time rows"):
        read(file, "v")
    assert read(file, "v", Hints(time="event")).values[-1] == VALUES[-1]
    assert read(file, "v", Hints(time="rows")).values.tolist() == VALUES[::-1]


@pytest.mark.parametrize(
    "labels",
    [
        [f"24-{name}" for name in NAMES],
        [f"{2001 + i}/{2 + i:02}" for i in range(10, 22)],
        [f"Day {i}" for i in range(1, 13)],
        [f"T+{i}" for i in range(12)],
        [f"Q{1 + i % 4}/{21 + i // 4}" for i in range(12)],
        [f"FY{2010 + i}" for i in range(12)],
        [f"1/{day}" for day in range(1, 13)],
        ["Januar", "Februar", "März", "April", "Mai", "Juni", "Juli", "August"],
        NAMES[9:] + NAMES[:9],
        [f"{day.day:02}{day:%b%Y}" for day in WINTER],
    ],
)
def test_labels_that_stand_newest_first_are_not_taken_in_the_order_of_the_file_in_silence(write, labels):
    file = write(backwards(lines("label,v", list(zip(labels, VALUES, strict=False)))))
    with pytest.raises(InputError, match=r"'label' (may hold times newest first|looks like a time).*--time rows"):
        read(file)
    assert read(file, hints=Hints(time="rows")).values[-1] == VALUES[0]
    one = read(write(in_time([f"Day {i}" for i in range(12)], "label,v")))
    assert "no column was found to hold times: rows are taken in file order" in one.changes


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        ("year,month,v", [[2020 + i // 12, i % 12 + 1, i] for i in range(24)]),
        ("Year,Month,v", [[2020 + i // 12, NAMES[i % 12], i] for i in range(24)]),
        ("date,time,v", [[f"2024-01-{1 + i // 6:02}", f"{i % 6 * 4:02}:00", i] for i in range(24)]),
        ("year,month,day,hour,v", [[2024, 2, 28 + i // 12, i % 12 * 2, i] for i in range(24)]),
    ],
)
def test_times_that_are_spread_over_columns_are_put_together(write, header, rows):
    assert read(write(lines(header, rows[::-1]))).values.tolist() == list(range(24))


def test_days_and_months_that_can_change_places_are_refused_until_it_is_said(write):
    file = write(lines("date,v", [["05/02/2024", 3], ["04/03/2024", 2], ["03/04/2024", 9], ["02/06/2024", 1]]))
    with pytest.raises(InputError, match="--dates day-first or --dates month-first"):
        read(file)
    assert read(file, hints=Hints(dates="day-first")).values[0] == 3
    assert read(file, hints=Hints(dates="month-first")).values[0] == 1


def test_a_row_whose_day_is_above_twelve_settles_the_order_of_all(write):
    file = write(lines("date,v", [["05/02/2024", 3], ["05/03/2024", 2], ["05/14/2024", 9]]))
    one = read(file)
    assert "dates were read month first" in one.changes
    assert one.values[-1] == 9


def test_uneven_steps_are_resampled_in_time_and_said(write):
    one = read(
        write(lines("date,v", [["2024-01-01", 0], ["2024-01-02", 1], ["2024-01-05", 4], ["2024-01-06", 5]]))
    )
    assert one.values.tolist() == [0, 1, 2, 3, 4, 5]
    assert any("1 day to 3 days: resampled linearly in time" in change for change in one.changes)
    assert one.rows == 4


def test_months_and_quarters_are_even_steps(write):
    one = read(write(in_time([f"2023-{month:02}-01" for month in range(1, 13)])))
    assert one.values.tolist() == VALUES
    assert not any("resampled" in change for change in one.changes)


def test_rows_that_share_a_time_are_one_point(write):
    twice = [[day, value + shift] for day, value in zip(DAYS, VALUES, strict=True) for shift in (0.0, 0.5)]
    one = read(write(lines("date,v", twice)))
    assert np.allclose(one.values, np.array(VALUES) + 0.25)
    assert any("mean" in change for change in one.changes)


def test_several_series_on_top_of_one_another_are_refused_with_or_without_a_column_that_parts_them(write):
    stacked = [[day, kind, value + 100 * (kind == "B")] for kind in "AB" for day, value in zip(DAYS, VALUES)]  # noqa: B905
    for header in ("date,sensor,v", "date,x,v"):
        file = write(lines(header, stacked))
        name = header.split(",")[1]
        with pytest.raises(InputError, match=rf"one for each '{name}' \(A, B\).*--where {name}=A"):
            read(file)
        assert read(file, hints=Hints(where=(f"{name}=B",))).values[0] == 110
        with pytest.raises(InputError, match=r"in no row \(valid: A, B\)"):
            read(file, hints=Hints(where=(f"{name}=C",)))
    with pytest.raises(InputError, match="very different values, as if several series were stacked"):
        read(write(lines("date,v", [[day, value] for day, _, value in stacked])))


def test_sensors_that_take_turns_are_several_series_even_where_no_time_is_doubled(write):
    rows = [[f"2024-01-01T{i:02}:00", "AB"[i % 2], value] for i, value in enumerate(VALUES)]
    with pytest.raises(InputError, match="--where sensor_name=A"):
        read(write(lines("time,sensor_name,v", rows)))
    with pytest.raises(InputError, match="--where sensor=A"):
        read(write(lines("sensor,v", [row[1:] for row in rows])))
    with pytest.raises(InputError, match="--where station_id=1"):
        read(write(lines("time,station_id,v", [[time, 1 + (kind == "B"), value] for time, kind, value in rows])))
    # A column of words that names nobody is none.
    assert read(write(lines("time,weekday,v", rows))).values.tolist() == VALUES


@pytest.mark.parametrize("name", ["who", "group", "x"])
@pytest.mark.parametrize("kinds", ["ABABABABABAB", "AAAAAABBBBBB", "ABBABAABABBA", "121212121212"])
def test_several_series_without_times_are_told_by_their_levels_whatever_the_name_of_their_column(
    write, name, kinds
):
    rows = [[kind, value + 100 * (kind in "B2")] for kind, value in zip(kinds, VALUES, strict=True)]
    file = write(lines(f"{name},v", rows))
    with pytest.raises(InputError, match=rf"--where {name}={kinds[0]}, or say --where {name}=\*"):
        read(file, "v")
    one = read(file, "v", Hints(where=(f"{name}={kinds[0]}",)))
    assert one.values.tolist() == [value for kind, value in rows if kind == kinds[0]]
    assert read(file, "v", Hints(where=(f"{name}=*",))).rows == 12


def test_series_that_are_stacked_at_one_level_are_told_where_they_meet(write):
    with pytest.raises(InputError, match="--where who=A"):
        read(write(lines("who,v", [[kind, value] for kind in "AB" for value in VALUES])))
    # A word now and then, or one that follows a week, parts nothing.
    for kinds in (["ok", "ok", "check", "ok"] * 3, ["Mon", "Tue", "Wed"] * 4):
        assert read(write(lines("x,v", list(zip(kinds, VALUES, strict=True))))).values.tolist() == VALUES


def test_columns_that_are_steps_of_time_ask_which_row(write):
    years = ",".join(map(str, range(1990, 2002)))
    rows = [["DE", "GDP", *VALUES], ["FR", "GDP", *VALUES[::-1]]]
    file = write(lines(f"country,what,{years}", rows))
    with pytest.raises(InputError, match=r"2 rows \(DE, FR\): choose one with --where country=DE"):
        read(file)
    one = read(file, hints=Hints(where=("country=FR",)))
    assert (one.name, one.values.tolist()) == ("FR", VALUES[::-1])
    newest = ",".join(map(str, range(2001, 1989, -1)))
    assert read(write(lines(f"country,what,{newest}", rows[:1]))).values.tolist() == VALUES[::-1]


@pytest.mark.parametrize(
    "header",
    [
        *("timestamp", "epoch", "time", "Zeit"),
    ],
)
def test_a_column_of_times_alone_is_nothing_measured(write, header):
    with pytest.raises(InputError, match="holds times"):
        read(write(lines(header, [1_700_000_000 + 60 * i for i in range(9)])))


def test_a_column_that_counts_the_rows_is_nothing_measured(write):
    for header in (",v", "id,v", "foo,v", "index,v"):
        one = read(write(lines(header, list(enumerate(VALUES)))))
        assert (one.name, one.values.tolist()) == ("v", VALUES)
    with pytest.raises(InputError, match="only counts the rows"):
        read(write(lines("index", list(range(9)))))
    # Under any other name whole numbers may have been measured.
    assert read(write(lines("visitors", list(range(9))))).values.tolist() == list(range(9))
    assert read(write(lines("metres", list(range(1600, 1609))))).rows == 9


def test_what_is_named_like_a_time_and_cannot_be_read_as_one_is_not_passed_over(write):
    for header, times in (
        ("Datum;v", [f"{day}. März 2024" for day in range(12, 0, -1)]),
        ("month;v", NAMES[::-1]),
        ("time;v", ["0.3", "0.1", "0.7", "0.2"] * 3),
    ):
        file = write(lines(header, list(zip(times, VALUES, strict=True)), ";"))
        with pytest.raises(InputError, match=r"named like a time.*--time rows"):
            read(file)
        assert read(file, hints=Hints(time="rows")).values.tolist() == VALUES


def test_two_columns_of_times_that_disagree_are_refused_until_one_is_named(write):
    file = write(lines("start,end,v", [[a, b, v] for a, b, v in zip(DAYS, DAYS[::-1], VALUES, strict=True)]))
    with pytest.raises(InputError, match="--time 'start' or --time 'end'"):
        read(file)
    assert read(file, hints=Hints(time="end")).values.tolist() == VALUES[::-1]


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
        (["1.5", "1e400", "3.5"], "'1e400'"),
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

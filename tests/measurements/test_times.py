"""Columns of times of every kind: the order of the rows, several series in one file, and what is no time."""

from datetime import date, timedelta

import numpy as np
import pytest
from support.csv_text import DAYS, NAMES, VALUES, lines

from tsd.errors import InputError
from tsd.measurements import Hints, read


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

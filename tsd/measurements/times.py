"""Cells that are times: dates with or without a clock, clocks alone, and the columns of numbers that count time.

Times come out as float64 seconds since some start, (rows,), NaN where a cell is missing or is no time. Numbers
that count time keep their own unit. A date that can be read with its day first and with its month first is read
both ways.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from tsd.measurements.numbers import words

DAY = 86_400.0
ORDERS = {
    "day-first": ("%d-%m-%Y", "%d-%m-%y"),
    "month-first": ("%m-%d-%Y", "%m-%d-%y"),
    "year-first": ("", "%y-%m-%d"),
}
CLOCKS = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S%.f", " %I:%M %p", " %I:%M:%S %p")
MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
TIME_LIKE = re.compile(
    r"^([a-z]+,? )?\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}(\D|$)|^\d{1,3}:\d{2}|^\d{8}T\d{4}"
    r"|^\d{4}[-/](0?[1-9]|1[0-2])$|^(0?[1-9]|1[0-2])/\d{4}$"
    r"|^\d{4}[- ]?[QqMW]\d{1,2}$|^\d{4}-W\d{2}$|^[Qq][1-4][- /]?\d{4}$"
    rf"|\b({MONTHS})[a-z]*\b\.?,?[- .,/]*\d{{1,4}}|\d{{1,2}}[-. ]+({MONTHS})[a-z]*\b",
    re.IGNORECASE,
)
# Rewritten one after the other, until a format below fits.
REWRITES = (
    (r"^(?i)(mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,? +", ""),
    (r"\s+", " "),
    (r"^(\d{4})(\d{2})(\d{2})T(\d{2})(\d{2})(\d{2})", "$1-$2-$3 $4:$5:$6"),
    (r"^(\d{4})(\d{2})(\d{2})T(\d{2})(\d{2})", "$1-$2-$3 $4:$5"),
    (r"(\d)[T_](\d)", "$1 $2"),
    (r"(\d),? +(\d{1,2}:\d{2})", "$1 $2"),
    (r" ?(?i)(Z|UTC|GMT)$", "+0000"),
    (r"(:\d{2}(?:[.,]\d+)?) ?([+-]\d{2}):?(\d{2})$", "$1$2$3"),
    (r"(:\d{2}(?:[.,]\d+)?) ?([+-]\d{2})$", "${1}${2}00"),
    (r"(:\d{2}),(\d+)", "$1.$2"),
    (r"(:\d{2}) ?([AaPp])\.?[Mm]\.?$", "$1 ${2}M"),
    (r"^[Qq]([1-4])[- /]?(\d{4})$", "${2}Q$1"),
    (r"^(\d{4})[- ]?[Qq]1$", "$1-01-01"),
    (r"^(\d{4})[- ]?[Qq]2$", "$1-04-01"),
    (r"^(\d{4})[- ]?[Qq]3$", "$1-07-01"),
    (r"^(\d{4})[- ]?[Qq]4$", "$1-10-01"),
    (r"^(\d{4})-?W(\d{2})$", "$1-W$2-1"),
    (r"^(\d{4})[- ]?M(\d{1,2})$", "$1-$2-01"),
    (r"^(\d{4})[-/](\d{1,2})$", "$1-$2-01"),
    (r"^(\d{1,2})/(\d{4})$", "$2-$1-01"),
    (r"^(\d{1,4})[./-](\d{1,2})[./-](\d{1,4})", "$1-$2-$3"),
    (r"^(\d{4}-\d{1,2}-\d{1,2}) (\d{1,2})$", "$1 $2:00"),
    (r"\b(?i)sept\b", "Sep"),
    (r"^([A-Za-z]{3,9})[- .,/]+(\d{4})$", "01 $1 $2"),
    (r"^(\d{4})[- ]([A-Za-z]{3,9})$", "01 $2 $1"),
    (r"^([A-Za-z]{3})-(\d{2})$", "01 $1 $2"),
    (r"^(\d{1,2})[-. ]+([A-Za-z]{3,9})[.,]?[- ]+(\d{2,4})", "$1 $2 $3"),
    (r"^([A-Za-z]{3,9})[. ]+(\d{1,2})(?:st|nd|rd|th)?,? +(\d{4})", "$2 $1 $3"),
)
CLOCK = (
    r"^(?<hours>\d{1,4}):(?<minutes>\d{2})(?::(?<seconds>\d{2}(?:[.,]\d+)?))? ?(?<half>[AaPp])?\.?(?:[Mm]\.?)?$"
)
# The words that a column of times is named with, and those that may stand beside them.
NAMES = words(
    "date dates time times timestamp timestamps datetime datum zeit uhrzeit zeitstempel zeitpunkt jahr year years"
    " yr month months monat quarter quartal week woche kw day days tag hour hours stunde minute minutes"
    " second seconds sec t ts epoch unix unixtime utc elapsed clock when period fecha hora año ano mes heure"
    " année annee mois jour anno mese giorno ora periode tijd jaar maand dag dato tid år"
)
BESIDE = words(
    "s ms us ns µs h min start end begin stamp local gmt utc in since of the at observation measurement measured"
    " recorded sample sampling index number no nr iso decimal d yyyy mm dd hh ss"
)
COUNTS = words(
    "index idx id row rows row_number rownumber nr no num number n i obs observation step steps sample samples #"
)
PARTS = (
    ("year", "jahr", "yr", "yyyy", "año", "année", "annee", "anno"),
    ("month", "monat", "mon", "mo", "mm", "mes", "mois", "mese"),
    ("day", "tag", "dd", "dy", "dom", "dia", "día", "jour", "giorno"),
    ("hour", "stunde", "hr", "hh", "hora", "heure", "ora"),
    ("minute", "minuten", "mi", "minuto"),
    ("second", "sekunde", "sec", "ss", "segundo", "seconde"),
)
BOUNDS = ((1000, 2999), (1, 12), (1, 31), (0, 24), (0, 59), (0, 60))
CYCLES = words("month monat day tag hour stunde minute second week kw weekday dow doy dayofweek dayofyear quarter")


@dataclass(frozen=True)
class Times:
    """One column's cells as times."""

    seconds: npt.NDArray[np.float64]  # (rows,), NaN where there is none
    kind: str  # date, clock, number
    note: str = ""
    """How it was read, where that is not plain."""
    other: npt.NDArray[np.float64] | None = None  # (rows,): another reading that fits as well
    readings: tuple[str, str] = ("", "")
    """The names of the two readings."""


def looks_like_time(cells: Sequence[str]) -> bool:
    """Whether most of some cells have the form of a time."""
    if not cells:
        return False
    return sum(bool(TIME_LIKE.search(cell)) for cell in cells) > 0.6 * len(cells)


def is_named_time(name: str) -> bool:
    """Whether a column's name says that it holds times."""
    found = [word.lower() for word in re.findall(r"[A-Za-zÀ-ÿµ]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name))]
    return any(word in NAMES for word in found) and all(word in NAMES | BESIDE for word in found)


def is_named_count(name: str) -> bool:
    """Whether a column's name, or its lack of one, says that it numbers the rows."""
    return (
        bool(re.fullmatch(r"(column \d+)?", name))
        or name.lower().strip("_ ") in COUNTS
        or name.startswith("Unnamed:")
    )


def read_dates(cells: pl.Series, order: str | None) -> Times | None:
    """Read a column of dates or clocks; None where fewer than half of its cells are such.

    cells: (rows,) String. order: which number of a date comes first, one of ORDERS, where the user says so.
    """
    given = cells.drop_nulls()
    sample = given.gather_every(max(1, len(given) // 50)).to_list()
    if not looks_like_time(sample):
        return None
    if (clock := _clock(cells)) is not None:
        return clock
    separator = "T" if "T" in sample[0] else " "
    if bool(given.str.contains(r"^\d{4}-").all()):  # as programs write times: quick for a million
        plain = _parsed(cells, ("%Y-%m-%d",), [clock.replace(" ", separator) for clock in CLOCKS[:4]])
        if np.isfinite(plain).sum() == len(given):
            return Times(plain, "date")
    text = cells
    for pattern, shorter in REWRITES:
        text = text.str.replace_all(pattern, shorter)
    least = 0.5 * len(given)
    if int(text.str.contains(r"^\d{1,2}-\d{1,2}-\d{2}(\d{2})?( |$)").sum()) > least:
        return _short_dates(cells, text, order, least)
    text = text.set(text.str.contains(r"^\d{1,3}-\d").fill_null(False), None)  # %Y would take two digits, too
    seconds = _parsed(text, ("%Y-%m-%d", "%G-W%V-%u", "%d %B %Y", "%d %b %y"))
    return Times(seconds, "date") if np.isfinite(seconds).sum() > least else None


def _short_dates(cells: pl.Series, text: pl.Series, order: str | None, least: float) -> Times | None:
    """Dates whose year stands last, or is short: which number is the day is for the column to show."""
    long = bool(text.str.contains(r"^\d{1,2}-\d{1,2}-\d{4}").any())
    dotted = bool(cells.str.contains(r"^\d{1,2}\.\d{1,2}\.").any())
    orders = [order] if order else list(ORDERS)
    found = {}
    for name in orders:
        pattern = ORDERS[name][0 if long else 1]
        seconds = _parsed(text, (pattern,)) if pattern else np.full(len(text), np.nan)
        if np.isfinite(seconds).sum() > least:
            found[name] = seconds
    if not found:
        return None
    most = max(np.isfinite(seconds).sum() for seconds in found.values())
    found = {name: seconds for name, seconds in found.items() if np.isfinite(seconds).sum() == most}
    if dotted and "day-first" in found:  # nobody writes a month first with dots
        found = {"day-first": found["day-first"]}
    names = [name for name in found if not _same_order(found[name], next(iter(found.values())))]
    first = next(iter(found))
    note = f"dates were read {first.replace('-', ' ')}"
    if not names:
        return Times(found[first], "date", note)
    return Times(found[first], "date", note, found[names[0]], (first, names[0]))


def _same_order(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> bool:
    """Whether two readings give the same series: the same order, and steps that are even in both."""
    if a is b:
        return True
    if not np.array_equal(np.argsort(a, kind="stable"), np.argsort(b, kind="stable")):
        return False
    return all(is_even(np.unique(one[np.isfinite(one)])) for one in (a, b))


def is_even(times: npt.NDArray[np.float64]) -> bool:
    """Whether sorted times have steps of about one length; months and quarters have, weekdays have not."""
    steps = np.diff(times)
    return len(steps) < 2 or bool(np.abs(steps - np.median(steps)).max() <= 0.1 * np.median(steps))


def _parsed(text: pl.Series, patterns: Sequence[str], clocks: Sequence[str] = CLOCKS) -> npt.NDArray[np.float64]:
    """Seconds of each cell that one of some date formats fits, with any clock behind it; NaN for the rest.

    Cells with an offset from UTC and cells without one are not mixed: only the more frequent kind is read.
    """
    kinds = []
    for zone in ("", "%z"):
        found = pl.Series(np.full(len(text), None), dtype=pl.Float64)
        for pattern in patterns:
            for clock in clocks:
                if zone and ":" not in clock:
                    continue
                left = text.set(found.is_not_null(), None)
                if not left.drop_nulls().len():
                    break
                parsed = left.str.to_datetime(pattern + clock + zone, strict=False, time_unit="us")
                seconds = parsed.dt.replace_time_zone(None).dt.epoch("us").cast(pl.Float64) / 1e6
                found = pl.select(pl.coalesce(found, seconds)).to_series()
        kinds.append(found.fill_null(np.nan).to_numpy())
    return max(kinds, key=lambda one: np.isfinite(one).sum())


def _clock(cells: pl.Series) -> Times | None:
    """Clocks without a date, in seconds, in the order of the rows past midnight."""
    parts = cells.str.extract_groups(CLOCK).struct.unnest()
    hours, minutes = parts["hours"].cast(pl.Float64), parts["minutes"].cast(pl.Float64)
    if 2 * hours.count() <= cells.count():
        return None
    half = parts["half"].str.to_lowercase()
    hours = pl.select(
        pl.when(half == "p").then(hours % 12 + 12).when(half == "a").then(hours % 12).otherwise(hours)
    ).to_series()
    rest: pl.Series = parts["seconds"].str.replace(",", ".").cast(pl.Float64).fill_null(0.0)
    seconds = (hours.to_numpy() * 3600 + minutes.to_numpy() * 60) + rest.to_numpy()
    known = np.isfinite(seconds)
    steps = np.diff(seconds[known])
    if not len(steps) or seconds[known].max() >= DAY:
        return Times(seconds, "clock")
    around = (steps + DAY / 2) % DAY - DAY / 2
    if ((around > 0).all() and (steps < 0).any()) or ((around < 0).all() and (steps > 0).any()):
        seconds = seconds.copy()
        seconds[known] = seconds[known][0] + np.concatenate([[0.0], np.cumsum(around)])
        return Times(seconds, "clock", "the clock passes midnight, later rows are the next day's")
    return Times(seconds, "clock")


def count_of_time(name: str, values: npt.NDArray[np.float64]) -> Times | None:
    """A column of numbers as times: counted in its own unit, in seconds since 1970, years, or dates as 20240131.

    None where neither its name nor its values say that it is one. values: (rows,), NaN where there is none.
    """
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return None
    named, counted = is_named_time(name), is_named_count(name)
    whole = bool((known == np.round(known)).all())
    # A column that is named as a part of a date and goes round is none by itself.
    steps = np.diff(known)
    ordered = bool((steps >= 0).all() or (steps <= 0).all()) and known[0] != known[-1]
    even = is_even(np.unique(known)) and len(np.unique(known)) > 1
    if whole and ((named and ordered) or _is_calendar(known)) and (days := _calendar(values)) is not None:
        return days
    if whole and (named or (ordered and even)) and _is_epoch(known):
        return Times(values, "number", "")
    if whole and ordered and even and known.min() >= 1500 and known.max() <= 2200 and (np.abs(steps) <= 1).all():
        return Times(values, "number")
    if named and (ordered or (even and len(np.unique(known)) == len(known))):
        return Times(values, "number")
    if counted and whole and even and len(np.unique(known)) == len(known):
        return Times(values, "number")
    return None


def numbers_rows(values: npt.NDArray[np.float64]) -> bool:
    """Whether a column of numbers does nothing but count the rows, from 0 or 1."""
    return len(values) >= 3 and values[0] in (0, 1) and bool((np.diff(values) == 1).all())


def is_part_of_date(name: str, values: npt.NDArray[np.float64]) -> bool:
    """Whether a column holds a month, a weekday or the like: whole numbers below 367, and so named."""
    known = values[np.isfinite(values)]
    word = re.sub(r"[^a-z]", "", name.lower())
    return (
        word in CYCLES
        and bool(len(known))
        and bool(((known == np.round(known)) & (known >= 0) & (known < 367)).all())
    )


def from_parts(names: Sequence[str], numbers: Sequence[npt.NDArray[np.float64]]) -> tuple[list[int], Times] | None:
    """A date that is spread over columns named year, month, day and so on: the columns, and the time they make."""
    chosen: list[int] = []
    for forms, (low, high) in zip(PARTS, BOUNDS, strict=True):
        fits = [
            i
            for i, name in enumerate(names)
            if name.strip().lower() in (*forms, *(f"{form}s" for form in forms)) and len(numbers[i])
        ]
        fits = [i for i in fits if bool(((numbers[i] >= low) & (numbers[i] <= high)).all())]
        if len(fits) != 1:
            break
        chosen.append(fits[0])
    if len(chosen) < 2:
        return None
    year, month, *smaller = (numbers[i] for i in chosen)
    day = smaller[0] if smaller else np.ones(len(year))
    months = (year.astype(np.int64) - 1970) * 12 + month.astype(np.int64) - 1
    start = months.astype("datetime64[M]").astype("datetime64[s]").astype(np.int64)
    seconds = start + (day - 1) * DAY
    for part, unit in zip(smaller[1:], (3600.0, 60.0, 1.0), strict=False):
        seconds = seconds + part * unit
    return chosen, Times(seconds, "date")


def _is_epoch(known: npt.NDArray[np.float64]) -> bool:
    """Whether numbers are seconds, or thousandths and so on, from 1990 to 2060."""
    return any(6.3e8 * unit <= known.min() and known.max() <= 2.85e9 * unit for unit in (1, 1e3, 1e6, 1e9))


def _is_calendar(known: npt.NDArray[np.float64]) -> bool:
    return bool(known.min() >= 19_000_101 and known.max() <= 21_001_231) and len(np.unique(known)) > 2


def _calendar(values: npt.NDArray[np.float64]) -> Times | None:
    """Numbers such as 20240131, or 202401 for months, as dates; None where they are no dates."""
    known = values[np.isfinite(values)]
    pattern = {8: "%Y%m%d", 6: "%Y%m%d", 14: "%Y%m%d%H%M%S", 12: "%Y%m%d%H%M"}.get(len(str(int(known.min()))))
    if pattern is None or known.min() < 150_001:
        return None
    text = pl.Series([None if not np.isfinite(value) else f"{int(value)}" for value in values], dtype=pl.String)
    if pattern == "%Y%m%d" and known.max() < 1e6:
        text = text + "01"
    parsed = text.str.to_datetime(pattern, strict=False, time_unit="us")
    if parsed.null_count() != len(values) - len(known):
        return None
    seconds = (parsed.dt.epoch("us").cast(pl.Float64) / 1e6).fill_null(np.nan).to_numpy()
    return Times(seconds, "date", "its numbers were read as dates, year first")

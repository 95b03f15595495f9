"""Cells that are times: dates with or without a clock, clocks alone, and the columns of numbers that count time.

Times come out as float64 seconds since some start, (rows,), NaN where a cell is missing or is no time. Numbers
that count time keep their own unit. A date that can be read with its day first and with its month first is read
both ways.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import numpy.typing as npt
import polars as pl

from tsd.measurements.numbers import words

DAY = 86_400.0
# Each order's format, and where its year of two digits stands: the second group.
YEAR_LAST, YEAR_FIRST = r"^(\d{1,2}-\d{1,2}-)(\d{2})( .*)?$", r"^()(\d{2})(-\d{1,2}-\d{1,2}(?: .*)?)$"
ORDERS = {
    "day-first": ("%d-%m-%Y", YEAR_LAST),
    "month-first": ("%m-%d-%Y", YEAR_LAST),
    "year-first": ("%Y-%m-%d", YEAR_FIRST),
}
YEAR_NAMED = r"^(\d{1,2} [A-Za-z]+ )(\d{2})( .*)?$"
DAY_AND_YEAR = r"^(\d{2})( [A-Za-z]+ )(\d{2})"
SEVERAL = 6  # rows whose order tells two readings apart
LAST_YEAR = 2050  # the latest that two digits stand for, where the column leaves it open
CLOCKS = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S%.f", " %I:%M %p", " %I:%M:%S %p")
MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
TIME_LIKE = re.compile(
    r"^([a-z]+,? )?\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}(\D|$)|^\d{1,3}:\d{2}|^\d{8}T\d{4}"
    r"|^\d{4}[-/](0?[1-9]|1[0-2])$|^(0?[1-9]|1[0-2])/\d{4}$"
    r"|^\d{4}[- ]?[QqMW]\d{1,2}$|^\d{4}-W\d{2}$|^[Qq][1-4][- /]?\d{4}$|^K?W ?\d{1,2}[-/ ]\d{4}$"
    rf"|\b({MONTHS})[a-z]*\b\.?,?[- .,/']*\d{{1,4}}|\d{{1,2}}[-. ]+({MONTHS})[a-z]*\b",
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
    (r"^(?i)K?W ?(\d{2})[-/ ](\d{4})$", "$2-W$1-1"),
    (r"^(?i)K?W ?(\d)[-/ ](\d{4})$", "$2-W0$1-1"),
    (r"^(\d{4})[- ]?M(\d{1,2})$", "$1-$2-01"),
    (r"^(\d{4})[-/](\d{1,2})$", "$1-$2-01"),
    (r"^(\d{1,2})/(\d{4})$", "$2-$1-01"),
    (r"^(\d{1,4})[./-](\d{1,2})[./-](\d{1,4})", "$1-$2-$3"),
    (r"^(\d{4}-\d{1,2}-\d{1,2}) (\d{1,2})$", "$1 $2:00"),
    (r"\b(?i)sept\b", "Sep"),
    (r"^([A-Za-z]{3,9})[- .,/]+(\d{4})$", "01 $1 $2"),
    (r"^(\d{4})[- ]([A-Za-z]{3,9})$", "01 $2 $1"),
    (r"^([A-Za-z]{3})[-'](\d{2})$", "01 $1 $2"),
    (r"^(\d{1,2})[-. ]+([A-Za-z]{3,9})[.,]?[- ]+(\d{4}|\d{2})\b", "$1 $2 $3"),
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
    " année annee mois jour anno mese giorno ora periode tijd jaar maand dag dato tid år jd mjd julian"
)
# What a name may hold that its values confirm: sampletime, ValidTime, recordedAt.
MAY_BE_NAMED = re.compile(r"time|date|zeit|datum|stamp|epoch|julian|(^|_|ed)at$", re.IGNORECASE)
BESIDE = words(
    "s ms us ns µs h min start end begin stamp local gmt utc in since of the at observation measurement measured"
    " recorded sample sampling index number no nr iso decimal d yyyy mm dd hh ss"
)
COUNTS = words(
    "index idx id row rows row_number rownumber nr no num number n i obs observation step steps sample samples #"
)
# Whole numbers as dates: their digits, and how those are written with signs.
YEAR = r"^((?:1[5-9]|2[01])\d\d)"
WHOLE = (
    (5, YEAR + r"([1-4])$", "${1}Q$2"),
    (6, YEAR + r"(0[1-9]|1[0-2])$", "$1-$2-01"),
    (6, YEAR + r"(\d\d)$", "$1-W$2-1"),
    (7, YEAR + r"(\d{3})$", "$1-$2"),
    (8, YEAR + r"(\d\d)(\d\d)$", "$1-$2-$3"),
    (10, YEAR + r"(\d\d)(\d\d)(\d\d)$", "$1-$2-$3 $4:00"),
    (12, YEAR + r"(\d\d)(\d\d)(\d\d)(\d\d)$", "$1-$2-$3 $4:$5"),
    (14, YEAR + r"(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)$", "$1-$2-$3 $4:$5:$6"),
)
DAYS_BEFORE = np.array([0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334])  # each month
MONTH_STARTS = {month: 1 + i for i, month in enumerate(MONTHS.split("|"))} | {
    **{"mär": 3, "mrz": 3, "mai": 5, "okt": 10, "dez": 12}
}
# How words begin that come again in one series: weekdays, months.
CYCLE_STARTS = [*MONTH_STARTS, *words("mon tue wed thu fri sat sun die mit don fre sam son mo di mi do fr sa so")]
TIME_WORD = re.compile(
    r"\b(m|day|week|month|year|hour|quarter|tag|woche|monat|jahr|stunde|quartal|w|kw|q|fy|cw)\b|^\w*(kw|fy)0"
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
    named: bool = True
    """Whether its column's name says that it holds times."""


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
    text = _rewritten(cells)
    least = 0.5 * len(given)
    if int(text.str.contains(r"^\d{1,2}-\d{1,2}-\d{2}(\d{2})?( |$)").sum()) > least:
        return _short_dates(cells, text, order, least)
    text = text.set(text.str.contains(r"^\d{1,3}-\d").fill_null(False), None)  # %Y would take two digits, too
    seconds, said = _read_centuries(text, ("%Y-%m-%d", "%G-W%V-%u", "%d %B %Y"), YEAR_NAMED)
    found = {"day-first": (seconds, said)}
    if said and order in (None, "year-first"):  # 24-Jan-31
        turned, said = _read_centuries(text.str.replace(DAY_AND_YEAR, "$3$2$1"), ("%d %B %Y",), YEAR_NAMED)
        if np.isfinite(turned).sum() == np.isfinite(seconds).sum():
            found["year-first"] = turned, f"dates were read year first, {said}"
    seconds, said = found[order] if order in found else next(iter(_told(found).values()))
    return Times(seconds, "date", said) if np.isfinite(seconds).sum() > least else None


def _rewritten(text: pl.Series) -> pl.Series:
    for pattern, shorter in REWRITES:
        text = text.str.replace_all(pattern, shorter)
    return text


def _short_dates(cells: pl.Series, text: pl.Series, order: str | None, least: float) -> Times | None:
    """Dates whose year stands last, or is short: which number is the day is for the column to show."""
    orders = [order] if order else list(ORDERS)
    found = {}
    for name in orders:
        pattern, year = ORDERS[name]
        seconds, said = _read_centuries(text, (pattern,), year)
        if np.isfinite(seconds).sum() > least:
            found[name] = seconds, ", ".join(filter(None, (f"dates were read {name.replace('-', ' ')}", said)))
    if not found:
        return None
    most = max(np.isfinite(seconds).sum() for seconds, _ in found.values())
    found = {name: one for name, one in found.items() if np.isfinite(one[0]).sum() == most}
    if len(found) > 1 and cells.str.contains(r"^\d{1,2}\.\d{1,2}\.").any():  # hardly a month first with dots
        found.pop("month-first", None)
    if len(told := _told(found)) == 1:
        (((seconds, note)),) = told.values()
        return Times(seconds, "date", note)
    (first, (seconds, note)), (other, (others, _)) = list(told.items())[:2]
    return Times(seconds, "date", note, others, (first, other))


def _told(
    found: dict[str, tuple[npt.NDArray[np.float64], str]],
) -> dict[str, tuple[npt.NDArray[np.float64], str]]:
    """Of several readings of a column the one that its rows tell, or all that differ from the first one.

    No wrong reading puts many rows in order with even steps, and a day read as a year spreads them over decades.
    """
    first, (seconds, _) = next(iter(found.items()))
    differ = {name: one for name, one in found.items() if name == first or not _same_order(one[0], seconds)}
    if len(differ) == 1 or len(seconds) < SEVERAL:
        return differ
    regular = {name: one for name, one in differ.items() if _is_regular(one[0])}
    spans = {name: float(np.nanmax(one[0]) - np.nanmin(one[0])) for name, one in differ.items()}
    short, second = sorted(spans, key=lambda name: spans[name])[:2]
    if len(regular) == 1:
        return regular
    return {short: differ[short]} if 10 * spans[short] < spans[second] else differ


def _read_centuries(text: pl.Series, patterns: Sequence[str], year: str) -> tuple[npt.NDArray[np.float64], str]:
    """Seconds of dates, and how their years of two digits, where there are some, were read.

    One window of a hundred years holds all of them: the one that puts the rows in order, or else the shortest.
    year: a pattern whose second group is a year of two digits.
    """
    short = text.str.extract(year, 2).cast(pl.Float64).fill_null(np.nan).to_numpy()
    seconds = _parsed(text.str.replace(year, "${1}20${2}${3}"), patterns)
    known = np.isfinite(seconds) & np.isfinite(short)
    if not known.any():
        return seconds, ""
    years = short[known].astype(np.int64)  # (known rows,), 0-99
    within = seconds[known] - _new_year(2000 + years)

    def disorder(first: np.int64) -> tuple[bool, int]:
        after = (years - first) % 100
        return not _is_ordered(after * 366 * DAY + within), int(after.max())

    first = min(np.unique(years), key=disorder)
    after = (years - first) % 100
    begin = int(first) + (2000 if 2000 + first + after.max() <= LAST_YEAR else 1900)
    seconds = seconds.copy()
    seconds[known] = _new_year(begin + after) + within
    end = f" to {begin + after.max()}" if after.max() else ""
    return seconds, f"years of two digits were read as {begin}{end}"


def _new_year(years: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Seconds from 1970 to the beginning of each year."""
    starts: npt.NDArray[np.int64] = (years - 1970).astype("datetime64[Y]").astype("datetime64[s]").astype(np.int64)
    return starts


def _is_regular(times: npt.NDArray[np.float64]) -> bool:
    return _is_ordered(times) and is_even(np.unique(times[np.isfinite(times)]))


def _is_ordered(times: npt.NDArray[np.float64]) -> bool:
    steps = np.diff(times[np.isfinite(times)])
    return bool((steps >= 0).all() or (steps <= 0).all())


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


def count_of_time(
    name: str, values: npt.NDArray[np.float64], order: str | None = None, asked: bool = False
) -> Times | None:
    """A column of numbers as times: counted in its own unit, in seconds since 1970, years, or dates as 20240131.

    None where neither its name nor its values say that it is one. values: (rows,), NaN where there is none.
    order: which number of a date comes first, as in `read_dates`. asked: the user says that it holds times.
    """
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return None
    named, counted = asked or is_named_time(name), is_named_count(name)
    whole = bool((known == np.round(known)).all())
    # A column that is named as a part of a date and goes round is none by itself.
    steps = np.diff(known)
    ordered = _is_ordered(known) and known[0] != known[-1]
    distinct = np.unique(known)
    even, once = is_even(distinct) and len(distinct) > 1, len(distinct) == len(known)
    if whole and (named or _is_calendar(known)) and (days := _calendar(name, values, order)) is not None:
        return days
    if _is_epoch(known) and (named or MAY_BE_NAMED.search(name)):
        return Times(values, "number")
    if named and not ordered and re.search(r"year|jahr|yr", name, re.IGNORECASE) and set(known) <= set(range(100)):
        return read_dates(
            pl.Series([f"Jan-{value:02.0f}" if np.isfinite(value) else None for value in values]), None
        )
    if named and not even and (parts := _in_two_parts(values)) is not None:
        return parts
    if whole and ordered and even and _is_epoch(known):
        return Times(values, "number", named=False)
    if whole and ordered and even and known.min() >= 1500 and known.max() <= 2200 and (np.abs(steps) <= 1).all():
        return Times(values, "number", named=named)
    if named and (ordered or (even and once)):
        return Times(values, "number")
    if counted and whole and even and once:
        return Times(values, "number", named=False)
    return None


def resembles(name: str, values: npt.NDArray[np.float64]) -> str | None:
    """What times a column of numbers may hold, by its values, so that the order of the file may be wrong.

    None where it is unlike times, and where it rises evenly, since that is the order of the file.
    """
    known = values[np.isfinite(values)]
    steps = np.diff(known)
    if len(known) < 3 or len(np.unique(known)) < len(known) or ((steps > 0).all() and is_even(known)):
        return None
    if _is_epoch(known):
        return "seconds since 1970"
    if known.min() > 2_415_020 and known.max() < 2_490_000:
        return "Julian dates"
    if not _is_ordered(known):
        return None
    if (known == np.round(known)).all() and _calendar(name, values, None) is not None:
        return "dates"
    if known.min() >= 1700 and known.max() <= 2200:
        return "years"
    return "times" if MAY_BE_NAMED.search(name) else None


def label_order(cells: pl.Series) -> str | None:
    """How rows stand whose text is a label of time, such as Day 12 or 2023/24.

    None where it is no such label, and where the rows are in order.
    """
    if not len(cells) or cells.null_count():
        return None
    rows, forms = [], set()
    for cell in cells.str.to_lowercase():
        parts = re.findall(r"\d+|[^\W\d_]+|[^\w]+|_", cell)
        months = [MONTH_STARTS.get(part[:3]) if len(part) < 10 else None for part in parts]
        rows.append(
            [
                int(p) if p.isdigit() else month
                for p, month in zip(parts, months, strict=True)
                if p.isdigit() or month
            ]
        )
        forms.add("".join("0" if p.isdigit() else "m" if m else p for p, m in zip(parts, months, strict=True)))
        if len(forms) > 1:
            return None
    if not rows[0] or len(rows) < 3:
        return None
    numbers = np.array(rows, np.float64)  # (rows, numbers in a label)
    numbers = numbers[:, (numbers != numbers[0]).any(axis=0)][:, :4]
    if numbers.shape[1] == 1 and "m" in next(iter(forms)):
        steps = np.diff(numbers[:, 0]) % 12
        if (steps == 1).all() or (steps == 11).all():
            return None if steps[0] == 1 else "newest first"
    ranks = [np.lexsort(numbers[:, list(order)].T) for order in permutations(range(numbers.shape[1]))]
    if len(np.unique(numbers, axis=0)) < len(rows) or any((np.diff(rank) == 1).all() for rank in ranks):
        return None
    if any((np.diff(rank) == -1).all() for rank in ranks):
        return "newest first"
    return "in no order" if TIME_WORD.search(next(iter(forms))) else None


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


def _calendar(name: str, values: npt.NDArray[np.float64], order: str | None) -> Times | None:
    """Numbers such as 20240131, 202401, 202452 for weeks or 240131, as dates; None where not all are dates."""
    known = np.isfinite(values)
    digits = len(str(int(values[known].max())))
    if values[known].min() < 0 or not 5 <= digits <= 14:
        return None
    text = pl.Series(
        [f"{value:0{digits}.0f}" if good else None for value, good in zip(values, known, strict=True)]
    )
    for width, pattern, written in WHOLE:
        if width != digits or ("W" not in written and width == 6 and re.search("week|woche|kw", name.lower())):
            continue
        seconds = _parsed(_rewritten(text.str.replace(pattern, written)), ("%Y-%m-%d", "%G-W%V-%u", "%Y-%j"))
        if np.isfinite(seconds).sum() == known.sum():
            what = {5: "quarters", 6: "weeks" if "W" in written else "months"}.get(width, "dates")
            return Times(seconds, "date", f"its numbers were read as {what}, year first")
    if digits not in (6, 7, 8) or not re.search("dat|day|tag", name.lower()):
        return None
    text = text.str.zfill(6 if digits == 6 else 8).str.replace(r"^(\d\d)(\d\d)(\d+)$", "$1-$2-$3")
    found = _short_dates(text, text, order, known.sum() - 0.5)
    return replace(found, note=f"its numbers were read as dates: {found.note}") if found else None


def _in_two_parts(values: npt.NDArray[np.float64]) -> Times | None:
    """Numbers whose last two digits count by themselves, such as 930 or 9.30: only where that makes steps even."""
    known = np.isfinite(values)
    if not known.any():
        return None
    whole = values[known] if (values[known] == np.round(values[known])).all() else np.round(values[known] * 100, 6)
    if (whole != np.round(whole)).any() or whole.min() < 0:
        return None
    a, b = np.divmod(whole, 100)
    months = (b >= 1).all() and (b <= 12).all()
    hours, minutes = np.divmod(a, 100)
    readings = (
        (
            "hours, minutes and seconds",
            "clock",
            whole.max() >= 10_000 and (hours < 25).all() and (minutes < 60).all() and (b < 60).all(),
            hours * 3600 + minutes * 60 + b,
        ),
        ("hours and minutes", "clock", (a < 25).all() and (b < 60).all(), a * 3600 + b * 60),
        ("years and months", "date", months and (a < 2200).all(), (a * 12 + b) * DAY * 30.4375),
        (
            "months and days",
            "date",
            (a >= 1).all() and (a <= 12).all() and (b >= 1).all() and (b <= 31).all(),
            DAYS_BEFORE[np.clip(a, 1, 12).astype(int) - 1] * DAY + b * DAY,
        ),
    )
    for what, kind, fits, seconds in readings:
        if fits and len(np.unique(seconds)) > 2 and is_even(np.unique(seconds)):
            found = np.full(len(values), np.nan)
            found[known] = seconds
            return Times(found, kind, f"its numbers were read as {what}")
    return None

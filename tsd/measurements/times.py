"""Parse cells as times: dates with or without a clock time, clock times, numeric columns that count time.

Times are float64 seconds since some origin, (rows,), NaN for missing and invalid cells. Numeric times keep their
own unit. Dates that are valid with the day first and with the month first are parsed both ways.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from tsd.measurements.numbers import words

DAY = 86_400.0
# The format of each order, and a pattern whose second group is its two-digit year.
YEAR_LAST, YEAR_FIRST = r"^(\d{1,2}-\d{1,2}-)(\d{2})( .*)?$", r"^()(\d{2})(-\d{1,2}-\d{1,2}(?: .*)?)$"
ORDERS = {
    "day-first": ("%d-%m-%Y", YEAR_LAST),
    "month-first": ("%m-%d-%Y", YEAR_LAST),
    "year-first": ("%Y-%m-%d", YEAR_FIRST),
}
YEAR_NAMED = r"^(\d{1,2} [A-Za-z]+ )(\d{2})( .*)?$"
DAY_AND_YEAR = r"^(\d{2})( [A-Za-z]+ )(\d{2})"
SEVERAL = 6  # rows from which their order can decide between two interpretations
LAST_YEAR = 2050  # latest meaning of a two-digit year, if the column does not determine it
CLOCKS = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S%.f", " %I:%M %p", " %I:%M:%S %p")
MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
TIME_LIKE = re.compile(
    r"^([a-z]+,? )?\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}(\D|$)|^\d{1,3}:\d{2}|^\d{8}T\d{4}"
    r"|^\d{4}[-/](0?[1-9]|1[0-2])$|^(0?[1-9]|1[0-2])/\d{4}$"
    r"|^\d{4}[- ]?[QqMW]\d{1,2}$|^\d{4}-W\d{2}$|^[Qq][1-4][- /]?\d{4}$|^K?W ?\d{1,2}[-/ ]\d{4}$"
    rf"|\b({MONTHS})[a-z]*\b\.?,?[- .,/']*\d{{1,4}}|\d{{1,2}}[-. ]+({MONTHS})[a-z]*\b",
    re.IGNORECASE,
)
# Applied in this order, to reach one of the formats below.
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
# Words in the names of time columns, and words that may accompany them.
NAMES = words(
    "date dates time times timestamp timestamps datetime datum zeit uhrzeit zeitstempel zeitpunkt jahr year years"
    " yr month months monat quarter quartal week woche kw day days tag hour hours stunde minute minutes"
    " second seconds sec t ts epoch unix unixtime utc elapsed clock when period fecha hora año ano mes heure"
    " année annee mois jour anno mese giorno ora periode tijd jaar maand dag dato tid år jd mjd julian"
)
# Parts of names that count if the values agree: sampletime, ValidTime, recordedAt.
MAY_BE_NAMED = re.compile(r"time|date|zeit|datum|stamp|epoch|julian|(^|_|ed)at$", re.IGNORECASE)
BESIDE = words(
    "s ms us ns µs h min start end begin stamp local gmt utc in since of the at observation measurement measured"
    " recorded sample sampling index number no nr iso decimal d yyyy mm dd hh ss"
)


@dataclass(frozen=True)
class Times:
    """One column parsed as times."""

    seconds: npt.NDArray[np.float64]  # (rows,), NaN where there is none
    kind: str  # date, clock or number
    note: str = ""
    """How the cells were interpreted, if that is not obvious."""
    other: npt.NDArray[np.float64] | None = None  # (rows,): another valid interpretation
    readings: tuple[str, str] = ("", "")
    """The names of the two interpretations."""
    named: bool = True
    """Whether the column's name indicates times."""


def looks_like_time(cells: Sequence[str]) -> bool:
    """Whether most of some cells have the form of a time."""
    if not cells:
        return False
    return sum(bool(TIME_LIKE.search(cell)) for cell in cells) > 0.6 * len(cells)


def is_named_time(name: str) -> bool:
    """Whether a column's name indicates times."""
    found = [word.lower() for word in re.findall(r"[A-Za-zÀ-ÿµ]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name))]
    return any(word in NAMES for word in found) and all(word in NAMES | BESIDE for word in found)


def read_dates(cells: pl.Series, order: str | None) -> Times | None:
    """Parse a column of dates or clock times; None if fewer than half of its cells are.

    cells: (rows,) String. order: of day, month and year, one of ORDERS, if the user specifies it.
    """
    given = cells.drop_nulls()
    sample = given.gather_every(max(1, len(given) // 50)).to_list()
    if not looks_like_time(sample):
        return None
    if (clock := _clock(cells)) is not None:
        return clock
    separator = "T" if "T" in sample[0] else " "
    if bool(given.str.contains(r"^\d{4}-").all()):  # fast path for times as programs write them
        plain = parsed(cells, ("%Y-%m-%d",), [clock.replace(" ", separator) for clock in CLOCKS[:4]])
        if np.isfinite(plain).sum() == len(given):
            return Times(plain, "date")
    text = rewritten(cells)
    least = 0.5 * len(given)
    if int(text.str.contains(r"^\d{1,2}-\d{1,2}-\d{2}(\d{2})?( |$)").sum()) > least:
        return short_dates(cells, text, order, least)
    text = text.set(text.str.contains(r"^\d{1,3}-\d").fill_null(False), None)  # %Y would accept two digits as well
    seconds, said = _read_centuries(text, ("%Y-%m-%d", "%G-W%V-%u", "%d %B %Y"), YEAR_NAMED)
    found = {"day-first": (seconds, said)}
    if said and order in (None, "year-first"):  # 24-Jan-31
        turned, said = _read_centuries(text.str.replace(DAY_AND_YEAR, "$3$2$1"), ("%d %B %Y",), YEAR_NAMED)
        if np.isfinite(turned).sum() == np.isfinite(seconds).sum():
            found["year-first"] = turned, f"dates were read year first, {said}"
    seconds, said = found[order] if order in found else next(iter(_told(found).values()))
    return Times(seconds, "date", said) if np.isfinite(seconds).sum() > least else None


def rewritten(text: pl.Series) -> pl.Series:
    """Apply REWRITES to all cells."""
    for pattern, shorter in REWRITES:
        text = text.str.replace_all(pattern, shorter)
    return text


def short_dates(cells: pl.Series, text: pl.Series, order: str | None, least: float) -> Times | None:
    """Parse dates with the year last or with a two-digit year. The column's values determine the order.

    None unless more than `least` cells are valid in some order.
    """
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
    if len(found) > 1 and cells.str.contains(r"^\d{1,2}\.\d{1,2}\.").any():  # rarely month first
        found.pop("month-first", None)
    if len(told := _told(found)) == 1:
        (((seconds, note)),) = told.values()
        return Times(seconds, "date", note)
    (first, (seconds, note)), (other, (others, _)) = list(told.items())[:2]
    return Times(seconds, "date", note, others, (first, other))


def _told(
    found: dict[str, tuple[npt.NDArray[np.float64], str]],
) -> dict[str, tuple[npt.NDArray[np.float64], str]]:
    """The interpretation that the row order confirms, or all that differ from the first one.

    A wrong interpretation rarely gives many rows in order with even steps, and a day taken for a year spreads them
    over decades.
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
    """Parse dates with two-digit years, and a note on how the years were interpreted.

    All years fall into one window of a hundred years: the one that puts the rows in order, or else the shortest.
    year: a pattern whose second group is the two-digit year.
    """
    short = text.str.extract(year, 2).cast(pl.Float64).fill_null(np.nan).to_numpy()
    seconds = parsed(text.str.replace(year, "${1}20${2}${3}"), patterns)
    known = np.isfinite(seconds) & np.isfinite(short)
    if not known.any():
        return seconds, ""
    years = short[known].astype(np.int64)  # (known rows,), 0–99
    within = seconds[known] - _new_year(2000 + years)

    def disorder(first: np.int64) -> tuple[bool, int]:
        """Sort key of a window that begins with this year: unordered windows last, then by length."""
        after = (years - first) % 100
        return not is_ordered(after * 366 * DAY + within), int(after.max())

    first = min(np.unique(years), key=disorder)
    after = (years - first) % 100
    begin = int(first) + (2000 if 2000 + first + after.max() <= LAST_YEAR else 1900)
    seconds = seconds.copy()
    seconds[known] = _new_year(begin + after) + within
    end = f" to {begin + after.max()}" if after.max() else ""
    return seconds, f"years of two digits were read as {begin}{end}"


def _new_year(years: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Seconds from 1970 to the beginning of each year. years: any shape, the shape of the result."""
    starts: npt.NDArray[np.int64] = (years - 1970).astype("datetime64[Y]").astype("datetime64[s]").astype(np.int64)
    return starts


def _is_regular(times: npt.NDArray[np.float64]) -> bool:
    """Whether times are sorted and evenly spaced."""
    return is_ordered(times) and is_even(np.unique(times[np.isfinite(times)]))


def is_ordered(times: npt.NDArray[np.float64]) -> bool:
    """Whether times are sorted, ascending or descending. NaN are ignored."""
    steps = np.diff(times[np.isfinite(times)])
    return bool((steps >= 0).all() or (steps <= 0).all())


def _same_order(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> bool:
    """Whether two interpretations give the same series: equal row order, and even steps in both."""
    if a is b:
        return True
    if not np.array_equal(np.argsort(a, kind="stable"), np.argsort(b, kind="stable")):
        return False
    return all(is_even(np.unique(one[np.isfinite(one)])) for one in (a, b))


def is_even(times: npt.NDArray[np.float64]) -> bool:
    """Whether sorted times have steps of similar length. Months and quarters have, weekdays have not."""
    steps = np.diff(times)
    return len(steps) < 2 or bool(np.abs(steps - np.median(steps)).max() <= 0.1 * np.median(steps))


def parsed(text: pl.Series, patterns: Sequence[str], clocks: Sequence[str] = CLOCKS) -> npt.NDArray[np.float64]:
    """Seconds of each cell that fits one of these date formats with any clock time; NaN for the others.

    Cells with and without an offset from UTC are not mixed: only the more frequent kind is parsed.
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
    """Clock times without a date, in seconds, increasing past midnight. None if most cells are not."""
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

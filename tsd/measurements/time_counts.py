"""Columns of numbers that count time: years, days, parts of a date, clocks in two columns."""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np
import numpy.typing as npt
import polars as pl

from tsd.measurements.numbers import words
from tsd.measurements.times import (
    DAY,
    MAY_BE_NAMED,
    MONTHS,
    Times,
    is_even,
    is_named_time,
    is_ordered,
    parsed,
    read_dates,
    rewritten,
    short_dates,
)

COUNTS = words(
    "index idx id row rows row_number rownumber nr no num number n i obs observation step steps sample samples #"
)
# Integers as dates: number of digits, and the equivalent with separators.
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
DAYS_BEFORE = np.array([0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334])  # by month
MONTH_STARTS = {month: 1 + i for i, month in enumerate(MONTHS.split("|"))} | {
    **{"mär": 3, "mrz": 3, "mai": 5, "okt": 10, "dez": 12}
}
# Beginnings of words that repeat within one series: weekdays, months.
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


def is_named_count(name: str) -> bool:
    """Whether a column's name, or a missing name, indicates row numbers."""
    return (
        bool(re.fullmatch(r"(column \d+)?", name))
        or name.lower().strip("_ ") in COUNTS
        or name.startswith("Unnamed:")
    )


def count_of_time(
    name: str, values: npt.NDArray[np.float64], order: str | None = None, asked: bool = False
) -> Times | None:
    """A numeric column as times: in its own unit, seconds since 1970, years, or dates such as 20240131.

    None if neither name nor values indicate times. values: (rows,), NaN for missing ones. order: of day, month and
    year, as in `read_dates`. asked: the user says that the column holds times.
    """
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return None
    named, counted = asked or is_named_time(name), is_named_count(name)
    whole = bool((known == np.round(known)).all())
    # A cyclic column named after a component of a date is not a time by itself.
    steps = np.diff(known)
    ordered = is_ordered(known) and known[0] != known[-1]
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
    """What times a numeric column may hold, by its values, if the file order may then be wrong.

    None if it does not resemble times, and if it rises evenly, as the file order then is the time order.
    """
    known = values[np.isfinite(values)]
    steps = np.diff(known)
    if len(known) < 3 or len(np.unique(known)) < len(known) or ((steps > 0).all() and is_even(known)):
        return None
    if _is_epoch(known):
        return "seconds since 1970"
    if known.min() > 2_415_020 and known.max() < 2_490_000:
        return "Julian dates"
    if not is_ordered(known):
        return None
    if (known == np.round(known)).all() and _calendar(name, values, None) is not None:
        return "dates"
    if known.min() >= 1700 and known.max() <= 2200:
        return "years"
    return "times" if MAY_BE_NAMED.search(name) else None


def label_order(cells: pl.Series) -> str | None:
    """How rows with time labels, such as Day 12 or 2023/24, are ordered, for a message.

    None if the cells are not such labels, or the rows are in order.
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
    """Whether a numeric column only counts the rows, from 0 or 1."""
    return len(values) >= 3 and values[0] in (0, 1) and bool((np.diff(values) == 1).all())


def is_part_of_date(name: str, values: npt.NDArray[np.float64]) -> bool:
    """Whether a column holds a month, weekday or the like: whole numbers below 367, and a matching name."""
    known = values[np.isfinite(values)]
    word = re.sub(r"[^a-z]", "", name.lower())
    return (
        word in CYCLES
        and bool(len(known))
        and bool(((known == np.round(known)) & (known >= 0) & (known < 367)).all())
    )


def from_parts(names: Sequence[str], numbers: Sequence[npt.NDArray[np.float64]]) -> tuple[list[int], Times] | None:
    """A date from columns named year, month, day and so on: the columns and their times. None if there is none."""
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
    """Whether numbers may be seconds (or thousandths, etc.) since 1970, from 1990 to 2060."""
    return any(6.3e8 * unit <= known.min() and known.max() <= 2.85e9 * unit for unit in (1, 1e3, 1e6, 1e9))


def _is_calendar(known: npt.NDArray[np.float64]) -> bool:
    """Whether numbers may be dates such as 20240131."""
    return bool(known.min() >= 19_000_101 and known.max() <= 21_001_231) and len(np.unique(known)) > 2


def _calendar(name: str, values: npt.NDArray[np.float64], order: str | None) -> Times | None:
    """Integers as dates, such as 20240131, 202401, 202452 (weeks) or 240131; None unless all are dates."""
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
        seconds = parsed(rewritten(text.str.replace(pattern, written)), ("%Y-%m-%d", "%G-W%V-%u", "%Y-%j"))
        if np.isfinite(seconds).sum() == known.sum():
            what = {5: "quarters", 6: "weeks" if "W" in written else "months"}.get(width, "dates")
            return Times(seconds, "date", f"its numbers were read as {what}, year first")
    if digits not in (6, 7, 8) or not re.search("dat|day|tag", name.lower()):
        return None
    text = text.str.zfill(6 if digits == 6 else 8).str.replace(r"^(\d\d)(\d\d)(\d+)$", "$1-$2-$3")
    found = short_dates(text, text, order, known.sum() - 0.5)
    return replace(found, note=f"its numbers were read as dates: {found.note}") if found else None


def _in_two_parts(values: npt.NDArray[np.float64]) -> Times | None:
    """Numbers whose last two digits are a smaller unit, such as 930 or 9.30; None unless steps are even then."""
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

"""Parse cells as numbers in any common notation: decimal and thousands separators, units, signs.

A column is parsed as a whole, with a decimal point and with a decimal comma. If both are valid and give different
series, and neither other columns nor neighbouring values decide, the column is ambiguous.
"""

import re
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

POINT, COMMA = ".", ","
LARGEST = 1e300  # sums of a million such values still fit a float64


def words(text: str) -> frozenset[str]:
    """The set of words in a text."""
    return frozenset(text.split())


MISSING = words(
    "na n/a n.a. n.a #n/a #na #value! #div/0! #ref! nan -nan null none nil nat missing empty <na> (null)"
    " - -- --- – — ? . .. … *"
)
NEAR, FAR = 3.0, 10.0  # ratios of neighbouring values: typical of a series; typical of a misread one
# A number in a cell: sign, currency, digits with separators, exponent, unit; parentheses for negative amounts.
PATTERN = (
    r"^(?<open>\()?(?<sign>[+-]?) ?(?<before>US\$|\p{Sc})? ?(?<second>[+-]?)"
    r"(?<digits>\d[\d.,' ]*|[.,]\d+)(?<exponent>[eE][+-]?\d+)?"
    r" ?(?<after>[\p{L}%‰°\p{Sc}][^\d()]{0,14})?(?<close>\))?$"
)
DIGITS = r"(\d+[.,]?\d*|[.,]\d+|[1-9]\d{0,2}([.,' ])\d{3}(\2\d{3})*([.,]\d*)?|[1-9]\d?(,\d\d)+,\d{3}(\.\d*)?)"
BARE = re.compile(rf"[+-]? ?{DIGITS}([eE][+-]?\d+)?")
ONE_CELL = re.compile(
    rf"\(?[+-]? ?(?:US\$|[$€£¥₹])? ?[+-]?{DIGITS}([eE][+-]?\d+)? ?(([^\W\d_]|[%‰°$€£¥₹])[^\d()]{{0,14}})?\)?"
)
SIGNS = {"\u2212": "-", "\ufe63": "-", "\uff0d": "-"}
SPACES = "[\u00a0\u202f\u2009\u2007\u2002\u2003]"
APOSTROPHES = "[\u2019\u02bc\u00b4`]"


@dataclass(frozen=True)
class Numbers:
    """One column parsed as numbers."""

    values: npt.NDArray[np.float64]  # (rows,), NaN for missing and invalid cells
    wrong: npt.NDArray[np.bool_]  # (rows,), not empty and not a finite number
    missing: npt.NDArray[np.bool_]  # (rows,)
    decimal: str | None
    """The decimal sign that the column's own cells determine; None if none or both fit."""
    grouped: bool = False
    """Whether cells have thousands separators."""
    notes: tuple[str, ...] = ()
    ambiguous: str | None = None
    """The reason, if two interpretations are valid and differ."""
    other: "Numbers | None" = None
    """The interpretation with the other decimal sign, if that is valid as well."""
    example: str | None = None
    """The cell with the ambiguity."""
    leaning: str | None = None
    """The decimal sign that neighbouring values suggest, if both fit."""

    @property
    def same_shape(self) -> bool:
        """Whether both decimal signs fit and give the same series, up to a factor of 1,000."""
        return self.other is not None and self.leaning is None and self.ambiguous is None

    @property
    def share(self) -> float:
        """Fraction of the cells that are not missing that are numbers."""
        given = (~self.missing).sum()
        return float(1 - self.wrong.sum() / given) if given else 0.0


def stripped(column: pl.Series) -> pl.Series:
    """Cells with normalised signs and spaces, null for missing values."""
    text = column.cast(pl.String).str.replace_all(SPACES, " ").str.replace_all(APOSTROPHES, "'").str.strip_chars()
    for sign, plain in SIGNS.items():
        text = text.str.replace_all(sign, plain, literal=True)
    text = text.str.replace(r"^[–—] ?([\d.,])", "-$1")
    text = text.str.replace(r"^'(.*?)'?$", "$1").str.strip_chars()  # a spreadsheet's marker for text
    return text.set(text.str.to_lowercase().is_in([*MISSING, ""]), None)


def is_missing(cell: str) -> bool:
    """Whether a cell denotes a missing value."""
    return not cell or cell.lower() in MISSING


def is_number(cell: str) -> bool:
    """Whether a cell may be a number, with either decimal sign."""
    for sign, plain in SIGNS.items():
        cell = cell.replace(sign, plain)
    cell = re.sub(APOSTROPHES, "'", re.sub(SPACES, " ", cell)).strip()
    return bool(ONE_CELL.fullmatch(cell))


def is_too_large(cell: str) -> bool:
    """Whether a cell is a number, as programs write them, of which no sums can be taken."""
    try:
        return abs(float(cell)) >= LARGEST
    except ValueError:
        return False


def is_bare_number(cell: str) -> bool:
    """Whether a cell is a number without a unit."""
    return bool(BARE.fullmatch(cell))


def read(cells: pl.Series, decimal: str | None) -> Numbers:
    """Parse a column, with a given decimal sign or the one that its cells and their neighbours suggest.

    cells: (rows,) String, from `stripped`.
    """
    missing = cells.is_null().to_numpy()
    given = cells.drop_nulls()
    sample = given.gather_every(max(1, len(given) // 100))
    if decimal is None and not any(map(is_number, sample)):
        return Numbers(np.full(len(cells), np.nan), ~missing, missing, None)
    plain = cells.cast(pl.Float64, strict=False)
    if decimal is None and (plain.abs() < LARGEST).sum() == len(
        given
    ):  # fast path for numbers as programs write them
        dotted = bool(given.str.contains(".", literal=True).any())
        if not dotted or bool(given.str.contains(r"\.(\d{0,2}|\d{4,})([eE].*)?$").any()):
            values = plain.fill_null(np.nan).to_numpy()
            column = Numbers(values, np.zeros(len(values), np.bool_), missing, POINT if dotted else None)
            return _without_jump(cells, column)
    parts = cells.str.extract_groups(PATTERN).struct.unnest()
    if decimal is not None:
        return _with(cells, parts, decimal)
    point, comma = _with(cells, parts, POINT), _with(cells, parts, COMMA)
    slips = int(point.wrong.sum()), int(comma.wrong.sum())
    if slips[0] != slips[1]:
        chosen = point if slips[0] < slips[1] else comma
        return _without_jump(cells, replace(chosen, decimal=POINT if chosen is point else COMMA))
    if np.array_equal(point.values, comma.values, equal_nan=True):
        return point
    return _settled(cells, point, comma)


def _without_jump(cells: pl.Series, column: Numbers) -> Numbers:
    """The column, marked as ambiguous if its decimal sign groups digits in cells that are outliers otherwise.

    Example: 998.5, 999.5, 1.000. Beside cells with plain decimals, only the thousandfold value is close.
    """
    if column.decimal is None:
        return column
    grouped = cells.str.contains(rf"^[+-]?[1-9]\d{{0,2}}{re.escape(column.decimal)}\d{{3}}$").fill_null(False)
    signed = cells.str.contains(column.decimal, literal=True).fill_null(False).to_numpy()
    known = signed & np.isfinite(column.values) & (column.values != 0)
    marked, values = grouped.to_numpy()[known], np.abs(column.values[known])
    sides = marked[1:] != marked[:-1]
    if not sides.any():
        return column
    scaled = np.where(marked, values * 1000, values)
    near, far = (np.abs(np.diff(np.log(one)))[sides].max() for one in (scaled, values))
    if near > np.log(NEAR) or far < np.log(FAR):
        return column
    example = str(cells.filter(grouped)[0])
    value = float(column.values[np.flatnonzero(grouped.to_numpy())[0]])
    return replace(
        column,
        ambiguous=f"{example!r} may be {value:,g} or {1000 * value:,g}: say --decimal {column.decimal} if it is "
        f"{value:,g}, or write it without the sign",
        example=example,
    )


def unambiguous(column: Numbers, decimal: str, why: str) -> Numbers:
    """An ambiguous column, decided by a decimal sign known from elsewhere. why: the reason, for a note."""
    if column.other is None:
        return column
    if column.leaning is not None and column.leaning != decimal:
        return replace(
            column, ambiguous=column.ambiguous or "its file's other columns and its own values disagree"
        )
    chosen = column if column.decimal == decimal else column.other
    said = f"{decimal!r} is the decimal sign, {why}"
    return replace(chosen, decimal=decimal, ambiguous=None, other=None, notes=(*_without_sign(chosen.notes), said))


def _without_sign(notes: tuple[str, ...]) -> tuple[str, ...]:
    """The notes except those on the decimal sign."""
    return tuple(note for note in notes if "decimal sign" not in note and "thousands" not in note)


def _with(cells: pl.Series, parts: pl.DataFrame, decimal: str) -> Numbers:
    """Parse the column with one decimal sign. The other sign, spaces and apostrophes group digits."""
    other = COMMA if decimal == POINT else POINT
    d, t = re.escape(decimal), re.escape(other)
    digits = parts["digits"].str.strip_chars()
    plain = digits.str.contains(rf"^(\d+({d}\d*)?|{d}\d+)$")
    groups = "|".join(rf"[1-9]\d{{0,2}}({one}\d{{3}})+" for one in (t, " ", "'"))
    if decimal == POINT:
        groups += rf"|[1-9]\d?({t}\d\d)+{t}\d{{3}}"  # lakh and crore
    grouped = digits.str.contains(rf"^({groups})({d}\d*)?$")
    number = digits.str.replace_all(rf"[{other}' ]", "").str.replace(decimal, ".", literal=True)
    values = (number + parts["exponent"].fill_null("")).cast(pl.Float64, strict=False)
    brackets = parts["open"].is_not_null()
    fits = (
        (plain | grouped)
        & (brackets == parts["close"].is_not_null())
        & ~((parts["sign"].str.len_chars() > 0) & ((parts["second"].str.len_chars() > 0) | brackets))
    )
    minus = (parts["sign"] == "-") | (parts["second"] == "-") | brackets
    values = pl.select(pl.when(minus).then(-values).otherwise(values)).to_series()
    good = (fits.fill_null(False) & (values.abs() < LARGEST).fill_null(False)).to_numpy()
    missing = cells.is_null().to_numpy()
    good, notes = _one_unit(parts, good)
    groups_used = bool((grouped.fill_null(False).to_numpy() & good).any())
    if groups_used:
        used = {sign for sign in (other, " ", "'") if bool(digits.str.contains(sign, literal=True).any())}
        notes.append(f"{' and '.join(repr(sign) for sign in sorted(used))} separates thousands")
    if decimal == COMMA and bool(
        (digits.str.contains(",", literal=True).fill_null(False).to_numpy() & good).any()
    ):
        notes.append("',' is the decimal sign")
    if bool((brackets.fill_null(False).to_numpy() & good).any()):
        notes.append("numbers in brackets are negative")
    found = np.where(good, values.fill_null(np.nan).to_numpy(), np.nan)
    return Numbers(found, ~good & ~missing, missing, None, groups_used, tuple(notes))


def _one_unit(parts: pl.DataFrame, good: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], list[str]]:
    """Which cells have the most frequent unit, and notes. Mixed units are not a column of numbers."""
    before, after = parts["before"].fill_null(""), parts["after"].fill_null("").str.strip_chars()
    behind = after.str.contains(r"^\p{Sc}$")  # a currency sign is equivalent on either side
    before, after = before.set(behind, None), after.set(behind, "")
    before = before.fill_null(parts["after"].str.strip_chars())
    units = pl.DataFrame({"before": before, "after": after}).filter(pl.Series(good))
    if not len(units):
        return good, []
    common = units.group_by("before", "after").len().sort("len", "before", "after", descending=True).row(0)
    # Currency signs may be in some cells only, as in accounts; they change no number.
    signs = [sign for sign in units["before"].unique().to_list() if sign]
    same = (after == common[1]).to_numpy() & (
        before.is_in(["", *signs[:1]]) if len(signs) < 2 else before == common[0]
    ).to_numpy()
    unit = f"{signs[0] if signs else ''} {common[1]}".strip()
    return good & same, [f"{unit!r} was taken for the unit"] if unit else []


def _settled(cells: pl.Series, point: Numbers, comma: Numbers) -> Numbers:
    """Choose between two interpretations that fit equally, by the continuity of the values."""
    with_mark = cells.str.contains(r"[.,]").fill_null(False).to_numpy() & np.isfinite(point.values)
    differ = np.isfinite(point.values) & (point.values != comma.values)
    example = str(cells[int(np.flatnonzero(differ)[0])])
    decimals, thousands = (point, comma) if "." in example else (comma, point)
    sign = "." if "." in example else ","
    grouping = COMMA if sign == POINT else POINT  # the decimal sign of the interpretation in thousands
    decimals = replace(decimals, decimal=sign, leaning=None)
    thousands = replace(thousands, decimal=grouping, leaning=None)
    a, b = decimals.values[with_mark], thousands.values[with_mark]
    bare = np.abs(decimals.values[~with_mark & np.isfinite(decimals.values) & (decimals.values != 0)])
    if not len(bare) and np.allclose(a * 1000, b, rtol=1e-12):
        # Both interpretations are the same series on different scales, which min-max scaling makes equal.
        said = f"{example!r} was read as {{}}; with --decimal {{}} it is {{}}, which changes only the scale"
        chosen, rest = (decimals, thousands) if sign == POINT else (thousands, decimals)
        at = int(np.flatnonzero(differ)[0])
        notes = chosen.notes
        if sign == COMMA or not with_mark[np.isfinite(point.values)].all():
            notes += (said.format(f"{chosen.values[at]:,g}", rest.decimal, f"{rest.values[at]:,g}"),)
        return replace(chosen, notes=notes, other=rest)
    gap_d, gap_t = _gap(np.abs(a), bare), _gap(np.abs(b), bare)
    complete = not len(bare) or bare.max() < 1000
    if complete and gap_t <= NEAR and gap_d >= FAR * gap_t:
        return replace(thousands, other=decimals, leaning=thousands.decimal)
    at = int(np.flatnonzero(differ)[0])
    reason = f"{example!r} may be {decimals.values[at]:,g} or {thousands.values[at]:,g}"
    return replace(
        decimals,
        ambiguous=f"{reason}: say --decimal {sign} or --decimal {grouping}",
        example=example,
        other=thousands,
    )


def _gap(marked: npt.NDArray[np.float64], bare: npt.NDArray[np.float64]) -> float:
    """Distance, as a ratio, between the ranges of two groups of cells; 1 if they overlap."""
    marked = marked[marked > 0]
    if not len(marked) or not len(bare):
        return 1.0
    return float(max(1.0, marked.min() / bare.max(), bare.min() / marked.max()))

"""The text of small CSV files."""

VALUES = [10.0, 11.341, 11.909, 11.641, 11.243, 11.541, 12.721, 14.157, 14.989, 14.912, 14.5, 15.4]
DAYS = [f"2024-01-{day:02}" for day in range(1, 13)]
NAMES = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()  # noqa: SIM905


def lines(header, cells, separator=","):
    """A file's text: cells is a list of rows, each a list of cells or one."""
    rows = [[row] if isinstance(row, (str, float, int)) else row for row in cells]
    return "\n".join([header, *(separator.join(map(str, row)) for row in rows)]) + "\n"


def by_day(values=VALUES, header="date,v", separator=","):
    return lines(header, list(zip(DAYS, values, strict=False)), separator)

"""Check of the latest rows: a stage with mostly unusable replies stops before it has paid for all of them."""

from collections import Counter, deque
from collections.abc import Iterable

from tsd.recipe.teachers import QualityConfig
from tsd.teachers.api.messages import Row


class QualityCheck:
    """Keeps the latest rows, and says when too few of them are usable."""

    def __init__(self, quality: QualityConfig) -> None:
        self._quality = quality
        self._rows: deque[Row] = deque(maxlen=quality.last)

    def add(self, rows: Iterable[Row]) -> str | None:
        """Add finished rows. Returns why the stage must stop, or None if enough of the latest rows are usable."""
        self._rows.extend(rows)
        last = self._quality.last
        usable = sum(row.status == "ok" for row in self._rows)
        if len(self._rows) < last or usable >= self._quality.least_usable * last:
            return None
        bad = [row for row in self._rows if row.status != "ok"]
        reasons = Counter(f"{row.status}: {row.reason}" for row in bad).most_common(2)
        said = " and ".join(f"{count} × {reason}" for reason, count in reasons)
        example = next((row.example for row in reversed(bad) if row.example), "no text")
        return (
            f"only {usable} of the last {last} rows are usable ({said}; one reply: {example!r}): see prompts and "
            "replies with --preview 10, raise teacher.max_tokens or change the model, or lower "
            "teacher.quality.least_usable; the same command goes on from here"
        )

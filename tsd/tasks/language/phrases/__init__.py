"""What people write for the readers' own words: a table of phrases for each facet.

A row of a table is a meaning, in words that the reader of the facet knows, and the patterns with this meaning. A
pattern starts and ends at a word boundary and holds no group of its own. Where several match, the first row wins:
rows of the meaning "" catch what looks like a statement and is none. To teach a reader a phrase, add it to a row
and a cue to the table if it has none yet. A new facet gets a module with its own table.
"""

import re
from collections.abc import Collection, Iterator, Sequence

Row = tuple[str, Sequence[str]]


class Phrases:
    """A table of phrases, compiled to one pattern. Texts are normalised, see `tsd.tasks.language.normal`.

    cues: beginnings of words, one of which is in every phrase. A text without a cue is not searched for phrases,
    which saves most of the time on the replies of models.
    """

    def __init__(self, cues: str, *rows: Row) -> None:
        self._cue = re.compile(rf"\b{one_of(cues)}")
        self._meanings = tuple(meaning for meaning, _ in rows)
        groups = (f"({'|'.join(patterns)})" for _, patterns in rows)
        self._pattern = re.compile(rf"\b(?:{'|'.join(groups)})(?!\w)")

    def plain(self, text: str) -> str:
        """The text with each phrase replaced by its meaning."""
        return self._pattern.sub(self._meaning, text) if self._cue.search(text) else text

    def meanings(self, text: str) -> Iterator[str]:
        """The meanings of the phrases in the text, in order, without those that state nothing."""
        found = self._pattern.finditer(text) if self._cue.search(text) else ()
        return filter(None, map(self._meaning, found))

    def has(self, text: str, among: Collection[str] | None = None) -> bool:
        """Whether the text has a phrase, or one with one of these meanings."""
        return any(among is None or meaning in among for meaning in self.meanings(text))

    def _meaning(self, found: re.Match[str]) -> str:
        return self._meanings[(found.lastindex or 1) - 1]


def one_of(words: str) -> str:
    """A pattern for any of the words, which are separated by blanks."""
    return f"(?:{'|'.join(words.split())})"


NOT = one_of("isn't aren't wasn't weren't doesn't don't didn't hasn't haven't won't can't no not never without")

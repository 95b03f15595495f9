"""Templates of sentences with alternatives, so that one line stands for many wordings.

`[The series|It] rises [overall|on the whole].` has four wordings. Alternatives are not nested. A slot in braces,
`{start}`, is filled afterwards.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import prod

_ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w*)\}")
_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")


@dataclass(frozen=True)
class Wording:
    """A template. `text` chooses among its wordings by their number."""

    template: str

    def __post_init__(self) -> None:
        """Raise ValueError for brackets that do not pair."""
        if set("[]") & set(_ALTERNATIVES.sub("", self.template)):
            raise ValueError(f"the template {self.template!r} has a bracket without its other one, or nested ones")

    @cached_property
    def parts(self) -> tuple[tuple[str, ...], ...]:
        """The template in pieces, each with its alternatives; one for fixed text."""
        pieces = _ALTERNATIVES.split(self.template)
        return tuple(
            tuple(dict.fromkeys(piece.split("|"))) if i % 2 else (piece,)
            for i, piece in enumerate(pieces)
            if piece
        )

    @cached_property
    def count(self) -> int:
        """How many wordings it has."""
        return prod(map(len, self.parts))

    @cached_property
    def slots(self) -> frozenset[str]:
        """The names of its slots, in any wording; "" is that of the class."""
        return frozenset(_SLOT.findall(self.template))

    def text(self, number: int, without: Collection[str] = ()) -> str:
        """One wording, with its slots. number: below `count`, a mixed radix over the alternatives.

        without: slots that are avoided, by the next alternative that has none of them, where there is one.
        """
        said = []
        for alternatives in self.parts:
            number, which = divmod(number, len(alternatives))
            others = (*alternatives[which:], *alternatives[:which])
            free = (one for one in others if not set(_SLOT.findall(one)) & set(without))
            said.append(next(free, alternatives[which]) if without else alternatives[which])
        return "".join(said)


@dataclass(frozen=True)
class Wordings:
    """Several templates. Each is as frequent as the others, whatever their numbers of wordings."""

    templates: tuple[Wording, ...]

    @classmethod
    def of(cls, templates: Sequence[str]) -> "Wordings":
        """Templates from their texts."""
        return cls(tuple(map(Wording, templates)))

    @cached_property
    def count(self) -> int:
        """A number that `text` can choose below: a multiple of the number of templates."""
        return len(self.templates) * max(template.count for template in self.templates)

    def text(self, number: int, without: Collection[str] = ()) -> str:
        """One wording of one template. number: below `count`. without: slots that are avoided."""
        number, which = divmod(number, len(self.templates))
        template = self.templates[which]
        return template.text(number % template.count, without)

    @cached_property
    def words(self) -> frozenset[str]:
        """Every word that they may use, in small letters; slots left out."""
        pieces = (piece for template in self.templates for piece in chain.from_iterable(template.parts))
        return frozenset(word for piece in pieces for word in _WORD.findall(_SLOT.sub(" ", piece).lower()))


def telling_words(facets: Iterable[Mapping[str, Wordings]]) -> frozenset[str]:
    """The words that tell the classes of a facet apart, of facets whose wordings are given by class.

    These are the names of the classes, and the words that some class uses and another one does not, unless all
    classes of another facet use them.
    """
    names, apart, common = set[str](), set[str](), set[str]()
    for by_class in facets:
        said = [wordings.words for wordings in by_class.values()]
        names |= {word for name in by_class for word in _WORD.findall(name.lower())}
        apart |= frozenset().union(*said) - frozenset.intersection(*said)
        common |= frozenset.intersection(*said)
    return frozenset(names | (apart - common))

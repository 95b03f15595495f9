"""Split a text on two series into statements, and combine what they say of each third.

Reading: text -> statements, each of some thirds, of the whole, or of the thirds that are left -> a facet's own
patterns on each of them -> one reading for each third. See the package docstring for the rules.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tsd.tasks.language.phrases.thirds import marked
from tsd.tasks.language.words import NOT_MENTIONED, Reading

THIRDS = {"1": "beginning", "2": "middle", "3": "end"}

_SENTENCE = re.compile(r"[.;](?=\s|$)")
_JOINT = re.compile(  # not in "takes turns with the second"
    r"(,|\s[\u2013\u2014-]\s|\b(?:and|then|but|while|whilst|whereas|although|though|yet|where|before|so"
    r"|with(?! (?:the )?(?:first|second|other)(?: series| one)?\s*(?:@|[.,;]|$)))\b)"
)
_TOKEN = re.compile(r"@(?P<thirds>[123]+)|@(?P<other>[trnxo])")
_LEADS = re.compile(r"[\s:,]*(?:(?:in|at|for|both|n?either) +)*@[123]")
_EXCEPT = r"\b(?:except(?:ing)?(?: for)?|apart from|aside from|other than|save for|but for)"
_APART = re.compile(rf"{_EXCEPT}\s+@([123]+)")
_ASIDE = re.compile(rf"\s*{_EXCEPT}\b")
_ONLY = re.compile(
    r"\b(?:only|solely|exclusively|(?:all|both)(?: of (?:them|these|which))?)"
    r"(?: (?:are|lies?|is|occurs?|cross(?:es)?|meets?|intersects?))?\s+(?=@[123])"
)
_FILLER = re.compile(
    r"[\s:.,;=()-]|\b(?:and|also|again|as well|it|just|too|either|only|both|all|in|at|for|of|on|onwards?|there"
    r"|which|them|these|that|is|are|lies?|located|situated|found|occurs?|occurring|happens?|lying)\b"
)
_SUBJECT = re.compile(r"\s*(?:it|they|there|the|both|no|one|several)\b")


@dataclass(frozen=True)
class Statement:
    """What is said between two separators, without its places."""

    said: str
    joint: str = ""
    """The separator before it: a comma or a word; empty at the start of a sentence."""
    thirds: str = ""
    """Those that it is about, as in "13"; empty if it names none."""
    other: str = ""
    """Letters of what it names beside or instead, see `tsd.tasks.language.phrases.thirds`; "u" if it names no
    place and may be about one that is named before."""
    apart: str = ""
    """Thirds that are excepted: "never, except in the middle"."""
    sentence: int = 0
    leads: bool = False
    """Whether it begins with its place."""
    only: bool = False
    """Whether it holds nowhere else."""
    aside: bool = False
    """Whether it is an exception to what else is said: "except for one crossing in the middle"."""

    @property
    def placed(self) -> bool:
        """Whether it says where it holds."""
        return bool(self.thirds or self.other)

    @property
    def free(self) -> bool:
        """Whether a place beside it may be its own: "in the middle, the first is always above"."""
        return not self.thirds and self.other in ("", "t")

    @property
    def empty(self) -> bool:
        """Whether it names a place and says nothing."""
        return not _FILLER.sub("", self.said)


@dataclass(frozen=True)
class Said:
    """A statement with what it states for a facet. elsewhere: the label that it states for all other thirds."""

    statement: Statement
    reading: Reading
    elsewhere: str | None = None


def statements(text: str) -> list[Statement]:
    """The statements of a text, in order. text: normalised, see `normal`.

    A place at the start of a statement holds for those after it in its sentence that name none; one at the end
    does not. What later sentences say without a place is not clear after a sentence that begins with one.
    """
    found: list[Statement] = []
    led = False
    for number, sentence in enumerate(_SENTENCE.split(marked(text))):
        carried = before = ""
        for one in _joined(list(_pieces(sentence, number))):
            if carried and one.free:
                one = replace(one, thirds=carried, other="")
            elif one.aside or one.thirds == "123":
                carried = before = ""
            elif one.placed:
                carried, before = one.thirds if one.leads else "", one.thirds or one.other.strip("rtn")
            elif before and before != "x" and (one.joint == "with" or one.said.startswith("without")):
                one = replace(one, thirds=before)
            elif led or before or one.joint in ("then", "before"):
                one = replace(one, other="u")
            found.append(one)
        led = led or _LEADS.match(sentence) is not None
    return found


def _pieces(sentence: str, number: int) -> Iterator[Statement]:
    """A sentence in pieces between commas and conjunctions. number: of the sentence."""
    parts = _JOINT.split(sentence)
    before = ""  # thirds of the piece before, to which "where" refers
    for joint, piece in zip(["", *parts[1::2]], parts[::2], strict=True):
        if not piece.strip():
            continue
        apart = "".join(_APART.findall(piece))
        said = _APART.sub(" ", piece)
        tokens = list(_TOKEN.finditer(said))
        thirds = "".join(sorted({third for token in tokens for third in token["thirds"] or ""}))
        one = Statement(
            said=" ".join(_TOKEN.sub(" ", said).split()).strip(" :,()-"),
            joint=joint.strip(),
            thirds=before if joint == "where" and not thirds else thirds,
            other="".join(token["other"] or "" for token in tokens),
            apart=apart,
            sentence=number,
            leads=_LEADS.match(said) is not None,
            only=_ONLY.search(said) is not None,
            aside=_ASIDE.match(said) is not None,
        )
        before = thirds or apart
        yield one


def _joined(pieces: Sequence[Statement]) -> Iterator[Statement]:
    """Pieces, those that are nothing but a place joined with what they are said of: what follows, or precedes."""
    last: Statement | None = None
    waiting: Statement | None = None  # a place for the next piece
    for i, piece in enumerate(pieces):
        if not piece.empty or not (piece.placed or piece.apart):
            if waiting and piece.free:
                piece = replace(piece, thirds=waiting.thirds, other=waiting.other, apart=waiting.apart, leads=True)
            waiting = None
            if last:
                yield last
            last = piece
            continue
        after = pieces[i + 1] if i + 1 < len(pieces) else None
        free = after is not None and after.free
        if last and last.free and not (free and after and _SUBJECT.match(after.said)):
            last = replace(
                last, thirds=piece.thirds, other=piece.other, apart=last.apart + piece.apart, only=piece.only
            )
        elif free:
            waiting = piece
        elif last and last.thirds and piece.thirds:
            last = replace(last, thirds="".join(sorted({*last.thirds, *piece.thirds})))
    if last:
        yield last


def by_third(found: Sequence[Said]) -> dict[str, Reading]:
    """One reading for each third, by name, from what a text says on a facet.

    What is said of a third itself counts before what is said of "the others", and that before what is said of the
    whole. The latter states nothing beside another label for a third, unless that is an exception to it.
    """
    placed: dict[str, list[Reading]] = {third: [] for third in THIRDS}
    others: list[str | None] = []
    whole: list[str | None] = []
    apart = ""
    latest: Statement | None = None  # the last one of a third
    for one in found:
        statement, label = one.statement, one.reading.label
        unclear = bool({"x", "u"} & set(statement.other))
        if unclear:
            whole.append(None)
        thirds = statement.thirds
        if not thirds and "n" in statement.other and latest:
            thirds = "".join(third for third in THIRDS if third > max(latest.thirds))
        for third in thirds:
            placed[third].append(Reading(None, "the place is not clear") if unclear else one.reading)
        if thirds and statement.thirds:
            latest = statement
            others += [one.elsewhere] if one.elsewhere else []
        elif "r" in statement.other:
            others.append(label if latest else None)
        elif not thirds:
            whole.append(None if "n" in statement.other else label)
            apart += statement.apart
    apart += "".join(one.statement.thirds for one in found if one.statement.aside)
    stated = {one.reading.label for one in found if set(one.statement.thirds) - set(apart) and one.reading.label}
    agreed = whole if stated <= set(whole) else [None]
    return {
        name: _of_a_third(placed[third], others, [None] if third in apart else agreed)
        for third, name in THIRDS.items()
    }


def _of_a_third(placed: Sequence[Reading], others: Sequence[str | None], whole: Sequence[str | None]) -> Reading:
    """The reading of one third from what is said of it, of the other thirds and of the whole."""
    if placed:
        labels = {reading.label for reading in placed}
        if len(labels) > 1:
            return Reading(None, "no one thing is said of this third")
        return placed[0]
    for labels in (set(others), set(whole)):
        if len(labels) == 1 and (label := labels.pop()):
            return Reading(label)
        if labels:
            return Reading(None, "what is said need not hold for this third")
    return NOT_MENTIONED

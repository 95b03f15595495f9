"""Places and movements that a text gives in numbers: "index 120 of 128", "at 95 %", "goes from 10 to 90"."""

import re

_DIGIT = re.compile(r"\d")
_ABOUT = r"(?:about |around |roughly |approximately |nearly |almost |some |~ ?)?"
_POINTS = r"(?:(?:data |time )?(?:points?|values?|steps?|samples?|observations?|readings?|measurements?)|days?)"
_INDEX = r"(?:x|t|i|n|index|position|point|step|time ?step|time|sample|observation|reading|day|no\.?|number|#)"
_ORDINAL = r"(?:st|nd|rd|th)"

_LENGTH = re.compile(
    rf"\b(?:(?:of|with|in|over|all|has|the) (?:all |the |a total of )?(?P<points>\d{{2,6}}) {_POINTS}"
    rf"|out of (?P<whole>\d{{2,6}})|(?P<all>\d{{2,6}}) {_POINTS} (?:in total|altogether|long))\b"
)
_AT_INDEX = re.compile(
    rf"\b{_INDEX} ?(?:number |no\. ?|index )?(?:=|≈|~|is|of|:)? ?{_ABOUT}(?P<first>\d{{1,6}})(?: ?[-–]"
    rf" ?(?P<last>\d{{1,6}}))?"
    rf"(?![.\d]*\d| ?%)|\b(?P<ordinal>\d{{1,6}}){_ORDINAL} {_POINTS}"
)
_WHERE = (
    rf"(?:{_INDEX} ?(?:number |no\. ?)?[=≈~:]? ?"
    r"|(?:at|near|around|by|after|on|to) (?:the )?|(?<=[=:] )|(?<=[=:]))"
)
_OF_LENGTH = re.compile(
    rf"\b{_WHERE}{_ABOUT}(?P<index>\d{{1,6}}){_ORDINAL}?(?: {_POINTS})?"
    r"(?: ?/ ?| ?[,(]? ?(?:out of|of) (?:the |all |a total of )?)"
    rf"(?P<length>\d{{2,6}})\b(?: {_POINTS}\b)?"
)

_OF_VALUES = (  # "95 % of the maximum", "90 % lower"
    r"(?! ?(?:of (?:the |its |all )?(?:maximum|max|minimum|values?|peak|range|height|amplitude|variance|points"
    r"|data)"
    r"|higher|lower|more|less|above|below|drop|rise|increase|decrease|confidence|gain|loss)\b)"
)
_OF_THE_WAY = r"(?: ?(?:of (?:the|its) [\w-]+(?: axis)?|along|through|in|into|mark)\b)?"
_PERCENT = re.compile(
    r"\b(?P<where>at|after|around|near|towards?|about|roughly|approximately|to|by|(?:in|within) the (?:first"
    r"|last|final))"
    rf" (?:the )?{_ABOUT}(?P<percent>\d{{1,6}}(?:\.\d+)?) ?(?:%|per ?cent\b){_OF_VALUES}{_OF_THE_WAY}"
)
_PERCENT_OF_WAY = re.compile(
    r"(?:~ ?)?\b(?P<percent>\d{1,6}(?:\.\d+)?) ?(?:%|per ?cent) of (?:the|its)"
    r" (?:way|length|series|period|time axis|time|x-axis|record|run|plot)\b(?: through| along)?"
)
_COUNTS = {"a": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "seven": 7, "nine": 9, "1": 1, "2": 2}
_PARTS = {"third": 3, "quarter": 4, "fifth": 5, "eighth": 8, "tenth": 10}
_FRACTION = re.compile(
    rf"\b(?P<count>{'|'.join(_COUNTS)})[ -](?P<part>{'|'.join(_PARTS)})s? "
    r"(?:of (?:the|its) (?:way|length|series|period|time|plot|x-axis)|(?:way|through|along|into|in)\b)"
    r"(?: (?:through|along|into|in))?"
)
_BORDERS = (0.25, 0.75)  # between the three places, as shares of the length
_NEAR = 0.015  # a share as near to a border as this states no place
_SHORTEST = 10  # points: "1 of 3" is a count

_FROM_TO = re.compile(
    r"(?<!axis )(?<!scale )(?<!range )\b(?:go|goes|going|went|moves?|moved|moving|gets?|changes?|changed"
    r"|evolves?|evolved"
    rf"|develops?|shifts?|shifted|travels?) (?:\w+ly )?from {_ABOUT}(?:a value of |values of"
    rf" )?(?P<from>-?\d{{1,9}}(?:\.\d{{1,9}})?)"
    rf"(?: \w+ly)?(?: down| up)? to {_ABOUT}(?:a value of |values of )?(?P<to>-?\d{{1,9}}(?:\.\d{{1,9}})?)"
)
_NEAR_VALUE = rf"(?:at|near|from|around|with|close to) {_ABOUT}(?:a value of |values of )?"
_START_END = re.compile(
    rf"\b(?:start|begin)(?:s|ed|ing)? (?:off )?{_NEAR_VALUE}(?P<from>-?\d{{1,9}}(?:\.\d{{1,9}})?)(?![\d.]* ?%)"
    rf"[^.;]{{0,40}}? (?:end|finish|close)(?:s|es|ed|ing|d)? (?:up )?{_NEAR_VALUE}"
    r"(?P<to>-?\d{1,9}(?:\.\d{1,9})?)(?![\d.]* ?%)"
)
_LEAST_MOVE = 5.0  # a smaller difference states no direction


def place_numbers(text: str) -> str:
    """The text with places in numbers replaced by "at the beginning", "in the middle" or "at the end".

    An index alone is a place only if the text says the length of the series.
    """
    if not _DIGIT.search(text) and not any(part in text for part in _PARTS):  # as most texts
        return text
    lengths = {found[found.lastgroup or 0] for found in _LENGTH.finditer(text)}
    lengths |= {found["length"] for found in _OF_LENGTH.finditer(text)}
    text = _OF_LENGTH.sub(_of_length, _FRACTION.sub(_fraction, _percents(text)))
    length = int(lengths.pop()) if len(lengths) == 1 else 0
    if length < _SHORTEST:
        return text
    return _AT_INDEX.sub(lambda found: _at_index(found, length), text)


def movements(text: str) -> str:
    """The text with "goes from 10 to 90" and "starts at 10 and ends at 90" replaced by "rises"."""
    if not _DIGIT.search(text):
        return text
    return _START_END.sub(_movement, _FROM_TO.sub(_movement, text))


def _place(share: float) -> str:
    """The place at a share of the length, blank if the share is near a border or not within the series."""
    if not 0 <= share <= 1 or any(abs(share - border) < _NEAR for border in _BORDERS):
        return " "
    return "at the beginning" if share < _BORDERS[0] else "at the end" if share > _BORDERS[1] else "in the middle"


def _percents(text: str) -> str:
    """The text with "at 95 %" and "95 % of the way" replaced by places."""
    text = _PERCENT.sub(_percent, text)
    return _PERCENT_OF_WAY.sub(lambda found: _place(float(found["percent"]) / 100), text)


def _percent(found: re.Match[str]) -> str:
    share, where = float(found["percent"]) / 100, found["where"]
    if where.endswith("first"):
        return "at the beginning" if share <= _BORDERS[0] else " "
    if where.endswith(("last", "final")):
        return "at the end" if share <= _BORDERS[0] else " "
    return _place(share)


def _fraction(found: re.Match[str]) -> str:
    return _place(_COUNTS[found["count"]] / _PARTS[found["part"]])


def _of_length(found: re.Match[str]) -> str:
    index, length = int(found["index"]), int(found["length"])
    return _place(index / length) if _SHORTEST <= length >= index else found[0]


def _at_index(found: re.Match[str], length: int) -> str:
    first = int(found["first"] or found["ordinal"])
    return _place((first + int(found["last"] or first)) / 2 / length)


def _movement(found: re.Match[str]) -> str:
    change = float(found["to"]) - float(found["from"])
    return " " if abs(change) < _LEAST_MOVE else "rises" if change > 0 else "drops"

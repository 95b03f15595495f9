"""Parse the noise level from sentences. See the package docstring for the rules."""

import re
from functools import lru_cache

from tsd.tasks.language.phrases.noise import NOISE, RATIO, SCATTERED
from tsd.tasks.language.words import NEGATION, NOT_MENTIONED, WAVERING, Reading, plain, quote

_LOW = r"low|minimal|little|small|minor|weak|slight|negligible|mild|faint|limited"
_HIGH = r"high|large|strong|heavy|significant|considerable|substantial|severe|intense|pronounced"
_MEDIUM = r"medium|moderate|moderately|intermediate"
_ANY_LEVEL = rf"(?:{_LOW}|{_MEDIUM}|{_HIGH})"
_LEVEL = re.compile(rf"\b(?:(?P<low>low)|(?P<medium>{_MEDIUM})|(?P<high>high))\b")
_AMOUNT = rf"(?:(?P<low>{_LOW})|(?P<medium>{_MEDIUM})|(?P<high>{_HIGH}))"
_OTHER_NOUN = (
    r"(?:change|swing|spike|movement|jump|peak|point|trend|increase|decrease|rise|drop|slope|value|frequen|signal)"
    r"\w*"
)
_BETWEEN = r"(?:(?:and |but |or )?(?!(?:nois|and|but|or|to|with|around|about|in|of|the|is)\w*\b)[\w-]+ ){0,2}?"


def _level_of(noun: str) -> re.Pattern[str]:
    """A pattern for a level that describes the noun: "small but frequent swings", "swings are small"."""
    return re.compile(
        rf"\b{_ANY_LEVEL}(?:[ -](?:to|and|or)[ -]{_ANY_LEVEL})?[ -]{_BETWEEN}{noun}"
        rf"|\b{noun} (?:is|are|being|remains?|appears?) (?:\w+ly )?{_ANY_LEVEL}\b"
    )


_OF_OTHERS = _level_of(_OTHER_NOUN)
_OF_FLUCTUATIONS = _level_of(WAVERING)
_NEGATED_LEVEL = re.compile(
    rf"{NEGATION} (?:(?:a|the|that|very|too|so|as|either|at|\w+ly) )*(?:{_ANY_LEVEL}|noisy|smooth)\b"
    rf"(?: n?or (?:\w+ly )?{_ANY_LEVEL}\b)?"
)
_NO_NOISE = re.compile(
    r"\b(?:no|without|free of|(?:hardly|barely|scarcely) any) "
    r"(?:(?:any|visible|noticeable|significant|apparent|discernible|real) )?noise\b"
    r"|\bnoise(?:-| )?(?:free|less)\b"
    r"|\bnoise (?:is|was) (?:absent|missing|invisible|nowhere(?: to be seen)?"
    r"|not (?:visible|present|noticeable))\b"
)
_SAID_OF_NOISE = re.compile(
    rf"\b{_AMOUNT} (?:(?:amount|level|degree|intensity)s? of )?"
    r"(?:(?:random|background|overall) )?nois(?:e|y)\b"
)
_NOISE_IS = re.compile(
    r"\bnoise (?:(?:intensity|level|amplitude|in|of|the|this|time|series|data) )*"
    r"(?:(?:is|appears|seems|remains|stays|looks|to|be|at|an?|\w+ly|very|quite|rather) )+"
    rf"{_AMOUNT}\b"
)
_BARE_AMOUNT = re.compile(
    rf"(?:^|(?<=[.,;:] ))(?:(?:a|very|quite|rather|\w+ly) )*{_AMOUNT}(?: (?:level|intensity))?\b(?=[.,;]|$)"
)
_HOW_NOISY = re.compile(
    r"\b(?:(?P<low>(?:slightly|barely|hardly) noisy|smooth)"
    r"|(?P<high>(?:very|highly|extremely|strongly) noisy))\b"
)


@lru_cache(maxsize=1024)  # teachers repeat their sentences
def read_noise(text: str) -> Reading:
    """The noise level stated for the noise, or for fluctuations if none is stated for the noise."""
    if not text:
        return NOT_MENTIONED
    whole = RATIO.plain(plain(text))
    text = _NEGATED_LEVEL.sub(" ", _NO_NOISE.sub("noise is low", whole))
    text = _OF_OTHERS.sub(" ", text)
    of_noise = _OF_FLUCTUATIONS.sub(" ", text)
    for patterns, said in (
        ((_LEVEL, _SAID_OF_NOISE, _NOISE_IS), of_noise),
        ((_BARE_AMOUNT,), of_noise),
        ((_LEVEL,), text),
        ((_HOW_NOISY,), text),
    ):
        found = [match for pattern in patterns for match in pattern.finditer(said)]
        if found:
            return _one_level(found, said)
    return _by_phrases(whole)


def _by_phrases(text: str) -> Reading:
    """The level stated in other words, such as "jagged" and "large deviations"."""
    levels = set(NOISE.meanings(text))
    if not levels and "nois" not in text:
        levels = set(SCATTERED.meanings(text))
    if len(levels) > 1:
        return Reading(None, f"{quote(text)} names {'two' if len(levels) == 2 else 'three'} levels")
    return Reading(levels.pop()) if levels else Reading(None, "no level is named", silent=True)


def _one_level(found: list[re.Match[str]], text: str) -> Reading:
    levels = {match.lastgroup for match in found}
    if len(levels) == 1:
        return Reading(levels.pop())
    starts, ends = zip(*(match.span(match.lastgroup or 0) for match in found), strict=True)
    span = text[min(starts) : max(ends)]
    return Reading(None, f"{quote(span)} names {'two' if len(levels) == 2 else 'three'} levels")

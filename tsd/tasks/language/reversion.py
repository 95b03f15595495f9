"""Parse how fast a series returns to its mean from sentences. See the package docstring for the rules."""

import re
from functools import lru_cache

from tsd.tasks.language.words import NEGATION, NOT_MENTIONED, Reading, plain, quote

_MANY = r"(?:several|many|multiple|dozens of|a number of|a long time|long|some time)"
_LASTS = r"(?:persist|last|linger|remain|stay|hold|take|go on|continue)(?:s|ed|ing)?"
_SPEEDS = {
    "fast": r"fast|quick(?:ly)?|rapid(?:ly)?|swift(?:ly)?|prompt(?:ly)?|immediate(?:ly)?|at once|instant(?:ly)?"
    r"|(?:within|after|in) (?:about )?(?:an?|one|a single) (?:point|step)|(?:an?|one) (?:point|step) later"
    r"|half-life of (?:under|less than|below) (?:an?|one|1)\b"
    r"|unrelated|uncorrelated|independent|memoryless|short memory|strong mean reversion"
    r"|strongly mean.revert\w*",
    "slow": rf"slow(?:ly)?|sluggish(?:ly)?|gradual(?:ly)?|{_LASTS} (?:(?!for)\w+ )?(?:for )?{_MANY}"
    rf"|(?:over|after|across) {_MANY}|{_LASTS} (?:on|to) (?:one|the same) side"
    r"|(?:persist|linger|wander)(?:s|ing)?|persisten(?:t|ce)|persistently|(?:auto|serially )?correlated"
    r"|half-life of (?:about )?(?:[2-9]|\d\d+|several|many)(?![.\d])|takes its time"
    r"|(?:strong|high|marked) autocorrelation|long memory|weak mean reversion|weakly mean.revert\w*|takes long",
}
_FILL = (
    r"(?:(?:very|too|so|particularly|really|especially|an?|any|the|its|show|shows|have|has|be|to|mean|returns?|signs?|evidence|of|clear"
    r"|reverts?|die|out|fade|decay) )*"
)
_NO_MEMORY = re.compile(
    rf"{NEGATION} {_FILL}(?:persist(?:s|ence)?|persistent|last(?:s|ing)?|linger(?:s|ing)?|memory|autocorrelation"
    r"|(?:auto|serially )?correlated)\b"
)
_NEGATED = re.compile(rf"{NEGATION} {_FILL}(?:{'|'.join(_SPEEDS.values())})\b")
_THAN = re.compile(rf"\bthan (?:{'|'.join(_SPEEDS.values())})\b")
_SPEED = re.compile("|".join(rf"\b(?P<{name}>{words})\b" for name, words in _SPEEDS.items()))


@lru_cache(maxsize=1024)  # teachers repeat their sentences
def read_reversion(text: str) -> Reading:
    """The speed of the return to the mean that a text states: fast or slow."""
    if not text:
        return NOT_MENTIONED
    rest = _NEGATED.sub(" ", _NO_MEMORY.sub(" memoryless ", _THAN.sub(" ", plain(text))))
    named = list(dict.fromkeys(found.lastgroup or "" for found in _SPEED.finditer(rest)))
    if len(named) == 1:
        return Reading(named[0])
    if named:
        return Reading(None, f"{quote(text)} names {' and '.join(named)}")
    return Reading(None, "no speed of reversion is named", silent=True)

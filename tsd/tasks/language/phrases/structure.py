"""Words by which a piece of prose is about season, level shift, outlier, volatility or reversion."""

import re

_COURSE = (
    r"(?:evenly|becom\w*|gets?|getting|grow\w*|shrink\w*|widen\w*|narrow\w*|keeps?|stays?|are (?:growing|shrinking"
    r"|becoming|getting|steady|constant)|increas\w*|decreas\w*|diminish\w*|die down|fade)"
)
_MEAN = r"(?:its|the|their) (?:long-term )?(?:mean|average)"

STRUCTURE = re.compile(
    r"\b(?:(?P<season>(?:un|non-?)?season\w*|(?:a|non-?)?periodic\w*|cycl(?:es?|ic|ical|icality)"
    r"|(?:repeating|recurring) (?:pattern|wave|cycle)s?)"
    r"|(?P<shift>shift(?:s|ed|ing)?|jump(?:s|ed|ing)?|(?<!time )(?<!\d )step(?:s|ped)?|structural breaks?"
    r"|(?:changes?|rises?|drops?) (?:of|in) (?:the )?level|another level|level (?:rises|drops|falls|changes)"
    r" (?:abruptly|suddenly|sharply))"
    r"|(?P<outlier>outl(?:ier|ying)\w*|anomal\w+|spik(?:es?|ed)|dip(?:s|ped)?"
    r"|(?:stand|stick)(?:s|ing)? out|blips?)"
    r"|(?P<volatility>volatility|(?:more|less) volatile|(?:hetero|homo)scedastic\w*|variance"
    rf"|fluctuat\w* {_COURSE}|(?:growing|shrinking|increasing|decreasing|steady) fluctuations)"
    r"|(?P<reversion>(?:mean[- ])?rever(?:t\w*|sions?)|autocorrelat\w*|half-life"
    rf"|returns? (?:\w+ )?to {_MEAN}|side of {_MEAN}|deviations? from {_MEAN}"
    r"|deviations (?:do not|don't|never|persist|linger|are (?:persistent|short-lived)|die|fade|decay|last)"
    r"|successive deviations))\b",
)
STRUCTURE_TOPICS = frozenset(STRUCTURE.groupindex)
MENTIONED = re.compile(  # and not stated: "after the jump the noise is higher"
    r"\b(?:after|before|until|since|following|by|despite) (?:the|this|that) (?:[\w-]+ ){0,2}?"
    r"(?:shift|jump|step|spike|dip|outlier|anomaly|season|cycle)s?\b"
)

"""Phrases for the thirds of a series, in text on two of them. `marked` replaces them by tokens.

`@13` is the first and the last third, `@t` throughout, `@r` the other thirds, `@n` those that follow, and `@x` a
place that is no third, or a time that is not clear: "until the middle", "the first half", "briefly". `@o` follows
thirds that are joined with "or".
"""

import re

from tsd.tasks.language.words import NEGATION

_WHICH = {
    "1": r"(?:first|1st|initial|opening|beginning|starting)",
    "2": r"(?:second|2nd|middle|central|mid)",
    "3": r"(?:third|3rd|last|final|closing|ending|end)",
}
_ANY = rf"(?:{'|'.join(_WHICH.values())})"
_ALL = (
    r"(?:the|their|its|each|both) (?:(?:two|whole|entire|time) )?"
    r"(?:series|plots?|records?|time|lines|curves|period|range|window|graph|data)"
)
_OF_ALL = rf"(?: of {_ALL})?"
_NOT_EXCEPT = r"(?<!apart )(?<!aside )(?<!other )"  # "apart from", "other than"
_AT = (
    r"(?:(?:right |just |even )?(?:in|at|during|over|within|for|near|throughout|around|about|towards?|through"
    r"|close to|on|of) )?"
)
_THE = r"(?:(?:the|its|their|this|that) )?(?:very )?"
_PART = r"(?:thirds?|parts?|sections?|segments?|portions?|phases?|stages?|stretch(?:es)?)"
_ABOVE_OR_BELOW = r"(?:above|below|beneath|under|underneath|higher|lower|on top|over)"
_LIST_END = (
    r"(?=[.,;:]|$| (?:and|but|while|whereas|with|it|they|the|there|none|no|one|once|several|never|twice"
    r"|above|below|higher|lower|alternating)\b)"
)

Rule = tuple[re.Pattern[str], str]


def _rules(*rules: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple((re.compile(pattern), token) for pattern, token in rules)


# In this order.
_WORDINGS = _rules(
    (r"\b(?:time and )?again and again\b|\btime and again\b|\bover and over(?: again)?\b", "repeatedly"),
    (r"\bback and forth\b", "alternating"),
    (r"\b(times|twice): ", r"\1, "),
    (r" ?/ ", ", "),
    (r" (?:by|per) thirds?(?=:)", ""),
    (r"\bbut for (?=(?:an?|one|the|some|several)\b)", "except for "),
    (
        rf"(?P<at>\bn?either)(?P<in> (?:in|during|over))? the (?P<a>{_ANY}) (?P<j>n?or) (?:(?:in|during|over) )?"
        rf"(?:the )?(?={_ANY} thirds?\b)",
        r"\g<at>\g<in> the \g<a> third \g<j> the ",
    ),
    (r"\b(?:confined|limited|restricted) to (?=the )", "only in "),
    (
        r"\b(everywhere|anywhere|nowhere|always|throughout) (?:but|except|other than|apart from) "
        r"(?=(?:for )?(?:in|at|during|near|for|over) )",
        r"\1 except ",
    ),
    (r"\bnowhere(?! else)\b", "never"),
    (
        r"(?<!than )(?<!above )(?<!below )(?<!under )(?<!beneath )(?<!to )(?<!of )\bthe (first|second)(?: series)?"
        r" (?:and|or|nor) (?:the )?(?!\1)(?:first|second)\b(?! third)",
        "both",
    ),
    (r"\bat no (?:point|time|stage|moment|place)s?\b", "never"),
    (r",? ?\bat any (?:point|time|stage|moment|place)s?\b", ""),
    (
        r"\bpoint(s?) (?:where|at which|in which) (?:they|both|the \w+)(?: \w+)? (?:cross|meet|intersect)\w*",
        r"crossing point\1",
    ),
    (r"\bby the (?=(?:\w+ )?third\b|end\b)", "in the "),
    (rf"\b(?:starts?|begins?|starting|beginning)(?: (?:off|out))? (?=(?:\w+ly )?{_ABOVE_OR_BELOW}\b)", "is @1 "),
    (
        rf"\b(?:ends?|ended|ending|finish(?:es|ed|ing)?)(?: (?:up|off))? (?=(?:\w+ly )?{_ABOVE_OR_BELOW}\b)",
        "is @3 ",
    ),
    # "the first and last third", "the first, second and third thirds": each with its own "third"
    (rf"\b(?P<a>{_ANY}), (?=(?:the )?{_ANY},? (?:and|or|nor) (?:the )?{_ANY} thirds?\b)", r"\g<a> third, "),
    (
        rf"(?P<at>\b(?:in|during|over|for|within|throughout|of|nor|either|neither|thirds?,)) (?P<the>(?:both )?"
        rf"(?:the )?)(?P<a>{_ANY})(?P<j>,? (?:and|or|nor)) (?:the )?(?={_ANY} thirds?\b)",
        r"\g<at> \g<the>\g<a> third\g<j> the ",
    ),
)
_ALL_BUT = (
    r"\b(?:in )?(?:all|every|each)(?: of)?(?: the)?(?: three)? thirds?"
    r" (?:but|except|save)(?: for)?(?: in)? (?:the )?"
)
_WHOLES = _rules(
    *(
        (rf"{_ALL_BUT}{_WHICH[which]}(?: (?:one|third))?\b", f" @{others} ")
        for which, others in (("1", "23"), ("2", "13"), ("3", "12"))
    ),
    (
        r"\b(?:in )?(?:none|neither) of (?:the |its |their )?(?:three )?thirds\b|\b(?:in )?no third\b",
        " never @123 ",
    ),
    (
        r"\bnot (?:in |during )?(?:each|every|all)(?: of)?(?: the)?(?: three)? (?:thirds?|parts?|places?)\b"
        r"|\bnot (?:always|throughout|everywhere|entirely)\b",
        " @x ",
    ),
    (r"\bnowhere else\b|\b(?:not|never) elsewhere\b", " never @r "),
    (
        rf"\b{_AT}(?:each of )?(?:the )?(?:(?:other|remaining)(?: two)? thirds?|(?:two )?others"
        rf"|other two\b(?! (?:series|lines|curves))|rest|remainder)\b{_OF_ALL}"
        r"|\b(?:elsewhere|otherwise|(?:any|every)where else)\b",
        " @r ",
    ),
    (
        rf"\b{_AT}(?:each|every|all|per)(?: one)?(?: of)?(?: the| its| their)?(?: three)? (?:single )?"
        r"(?:thirds?|parts?|sections?|segments?|places?)\b|\bin all three\b|\bper third\b",
        " @123 ",
    ),
    (
        r"\bfrom (?:the )?(?:very )?(?:start|beginning) (?:right )?(?:to|until|till|through) (?:the )?(?:very )?"
        r"(?:end|finish)\b|\bstart to finish\b|\bthroughout(?! (?:the |its )?(?:\w+ )?"
        r"(?:third|end|beginning|middle)\b)"
        rf"(?: (?:of )?{_ALL})?"
        r"|\b(?:over|during|across|for|in|through) (?:the|their|its) (?:whole|entire|full) (?:\w+ )?"
        r"(?:series|time|period|plot|range|record|window|length|span|stretch)\b"
        r"|\b(?:the (?:whole|entire) (?:time|way)|all the (?:time|way)|all along|at all times|always|everywhere"
        r"|entirely|at every point|consistently|invariably|permanently|anywhere(?: (?:in|on) the \w+)?)\b",
        " @t ",
    ),
    (r"\bfrom (?:the )?(?:middle|second)(?: third)? on(?:wards?)?\b", " @23 "),
    (r"\b(?:in|at|during|within) any (?:one )?(?:of the )?(?:three )?(?:thirds?|parts?|places?)\b", " @t "),
    (rf"\b{_AT}{_THE}first two thirds\b{_OF_ALL}", " @12 "),
    (rf"\b{_AT}{_THE}(?:last|final) two thirds\b{_OF_ALL}", " @23 "),
    (rf"\b{_AT}(?:both|either) (?:ends|end)\b{_OF_ALL}|\b{_AT}the outer (?:two )?thirds\b", " @13 "),
)
_LANDMARKS = _rules(
    (
        rf"\b(?:between|from) (?:the )?{_ANY}(?: thirds?)? (?:and|to|until|through) (?:the )?{_ANY}"
        r"(?: thirds?)?\b",
        " @x ",
    ),
    (
        rf"{_NOT_EXCEPT}"
        r"\b(?:until|till|before|after|outside|unlike|between|from|by|than|to|since|past|beyond|into|like"
        r"|up to|as in|compared (?:with|to)|(?:start|beginning|middle|end|half|part|border|boundary|turn) of)"
        rf"(?: (?:in|at|during|of|over|the|its|start|beginning|end))* (?:{_ANY} )(?:third|part|section)s?\b",
        " @x ",
    ),
    (
        rf"{_NOT_EXCEPT}"
        r"\b(?:until|till|before|after|between|from|by|than|to|since|past|beyond|into|through|up to|as (?:in|at))"
        r" (?:(?:in|at) )?(?:the )?(?:very )?(?:beginning|start|middle|cent(?:er|re)|end|finish)\b",
        " @x ",
    ),
    (
        r"\b(?:in |over |during )?(?:the )?(?:(?:first|second|last|other|left|right|latter) )?(?:hal(?:f|ves)"
        r"|quarters?)\b|\b\d+(?:\.\d+)? ?(?:%|per ?cent\b)|\b(?:points?|index|steps?|samples?|position|time|x"
        r"|t) ?=? ?(?:number )?\d+|\b\d+ ?(?:to|and|-|\u2013) ?\d+\b|\b(?:at|near|around) \d+\b",
        " @x ",
    ),
    (
        r"\b(?:later|earlier|afterwards?|eventually|subsequently|soon|thereafter|from (?:then|there) on(?:wards)?"
        r"|after that|before that|until then|at (?:some|one|certain) points?|briefly|in places|at times"
        r"|temporarily|momentarily|for a (?:while|time|bit|moment)|brief(?= ))\b",
        " @x ",
    ),
)
_PLACES = _rules(
    *((rf"\b{_AT}{_THE}{which} thirds?\b{_OF_ALL}", f" @{number} ") for number, which in _WHICH.items()),
    *((rf"\bthird (?:number )?{number}\b", f" @{number} ") for number in _WHICH),
    (rf"\b{_AT}{_THE}(?:first|initial|opening) {_PART}\b{_OF_ALL}", " @1 "),
    (rf"\b{_AT}{_THE}(?:middle|central) {_PART}\b{_OF_ALL}", " @2 "),
    (rf"\b{_AT}{_THE}(?:last|final|closing) {_PART}\b{_OF_ALL}", " @3 "),
    (
        rf"\b{_AT}the (?:very )?(?:beginning|start|outset|left(?:[- ]hand)?(?: side| end)?)\b{_OF_ALL}"
        r"|\b(?:at first|initially|early on|to begin with|at (?:the )?(?:outset|start|beginning))\b"
        r"|\bearly(?: on)? in the (?:series|plot|record|period)\b",
        " @1 ",
    ),
    (
        rf"\b{_AT}the (?:very )?(?:middle|cent(?:er|re)|midst)\b{_OF_ALL}"
        r"|\b(?:midway|halfway)(?: through| along)?\b",
        " @2 ",
    ),
    (
        rf"\b{_AT}the (?:very )?(?:end|finish|close|(?:far )?right(?:[- ]hand)?(?: side| end)?)\b{_OF_ALL}"
        r"|\b(?:finally|at last|late in the (?:series|plot|record|period)|late on|at (?:end|finish))\b",
        " @3 ",
    ),
    *(
        (
            rf"(?:(?<=^)|(?<=[.;,] )){name}(?= ?[:=\u2013-]|(?:,| and) (?:the )?(?:middle|end)\b)"
            rf"|\({name}\)|(?<=and ){name}\b",
            f" @{number} ",
        )
        for number, name in (("1", "(?:beginning|start)"), ("2", "middle"), ("3", "end"))
    ),
)
_OTHER_THIRDS = re.compile(r"\bthirds?\b")  # "two of the three thirds"
_ORDINALS = _rules(  # "in the second", where another one is called a third
    *(
        (rf"\b(?:in|during|over|within) the {which}(?: one)?{_LIST_END}", f" @{number} ")
        for number, which in (("1", "first"), ("2", "second"), ("3", "(?:third|last)"))
    ),
)
_NEGATES = re.compile(NEGATION + r"|\bno\b")
_STOPS = re.compile(
    r"(?:and|or|nor|but|while|whereas|with|either|respectively|though|although|then|after|before|until|which|where"
    r"|so)\b"
)
_NOTHING_BEFORE = re.compile(r"(?:^|[.;,])\s*(?:(?:in|at|both|n?either|for)\s*)*$")
_PIECE_END = re.compile(r"[.,;]|\b(?:and|but|while|whereas|with|though|although|then)\b")
_NOT_AGAIN = re.compile(
    rf"(?P<said>{NEGATION} (?:[a-z]+ ){{0,3}}?)(?:again|any ?more|afterwards?|thereafter|after (?:that|this)"
    r"|from then on)\b"
    r"|\bno (?:more|further|later) (?P<what>\w+)"
)
_NO_OTHER = re.compile(r"\bno other (?=\w+)")
_JOINT = r"(?:\s*,? (?:and|or|nor|as well as|&)(?: also)?\s+|\s*,\s+)"
_GROUP = re.compile(rf"@[123]+(?:{_JOINT}@[123]+)+")
_OR = re.compile(r"\bor\b")
_COUNT = r"(?:none|no|zero|one|once|never|twice|\d+|(?:several|many|two|three|four|five|six)(?: times)?|a few)"
_LIES = r"(?:above|below|higher|lower|alternating)"
_VALUES = "|".join(
    rf"{value}(?:, (?:and )?{value}){{0,2}},? and {value}|{value}(?:, {value}){{1,2}}" for value in (_COUNT, _LIES)
)
_IN_TURN = (
    re.compile(
        rf"\b(?P<values>{_VALUES})(?: (?:crossings?|intersections?))?\s+"
        rf"(?P<thirds>@[123](?:{_JOINT}@[123])*?\s*,? and\s+@[123])\s*(?:,? respectively)?(?=[.;]|$)"
    ),
    re.compile(rf"(?P<thirds>@123)(?P<verb>[a-z ]*?\b(?:is|are|be)) (?P<values>{_VALUES})(?=[.;]|$)"),
)
_THREE = tuple(
    re.compile(
        rf"(?P<lead>(?:^|[.;] )(?:[a-z ]*:)?) ?(?P<one>{value})(?:,| [\u2013\u2014-]) (?P<two>{value})"
        rf"(?:,? and|,| [\u2013\u2014-]) (?P<three>{value})(?=[.;]|$)"
    )
    for value in (_COUNT, _LIES)
)
_BETWEEN = re.compile(r"(?:, (?:and )?|,? and )")


_THREE_COUNTS = rf"(?P<one>{_COUNT}), (?P<two>{_COUNT}),? and (?P<three>{_COUNT})"
_OF_THE_THREE = tuple(
    re.compile(pattern)
    for pattern in (
        rf"\b{_THREE_COUNTS} (?:crossings?|intersections?) in the three thirds\b",
        rf"\b(?:the )?(?:numbers? of )?(?:crossings|intersections) in the three thirds (?:is|are)"
        rf" {_THREE_COUNTS}\b",
    )
)


def marked(text: str) -> str:
    """The text with a token for each place. text: normalised, see `normal`."""
    said = text
    named = "third" in text
    for pattern in _OF_THE_THREE if named else ():
        said = pattern.sub(r"\g<one> @1, \g<two> @2, \g<three> @3", said)
    if _NEGATES.search(text):
        said = _NO_OTHER.sub("no @r ", _NOT_AGAIN.sub(_not_again, said))
    for pattern, token in (*_WORDINGS, *_WHOLES, *_LANDMARKS, *_PLACES, *(_ORDINALS if named else ())):
        said = pattern.sub(token, said)
    said = _OTHER_THIRDS.sub(" @x ", said)
    for pattern in _IN_TURN:
        said = pattern.sub(_in_turn, said)
    for pattern in _THREE:
        said = pattern.sub(r"\g<lead> \g<one> @1, \g<two> @2, \g<three> @3", said)
    return _GROUP.sub(_grouped, said)


def _not_again(said: re.Match[str]) -> str:
    """ "never cross again" as "never cross" of what follows, "no more crossings" as "no crossings" of it."""
    return f"{said['said']} @n " if said["said"] else f"no {said['what']} @n "


def _in_turn(said: re.Match[str]) -> str:
    """ "one, none and one @1, @2 and @3" as "one @1, none @2, one @3", if there are as many values as thirds."""
    values, thirds = _BETWEEN.split(said["values"]), re.findall("[123]", said["thirds"])
    if len(values) != len(thirds):
        return said[0]
    verb = said.groupdict().get("verb") or ""
    return verb + " " + ", ".join(f"{value} @{third}" for value, third in zip(values, thirds, strict=True))


def _grouped(said: re.Match[str]) -> str:
    """ "@1, @2 and @3" as "@123", and "@1 or @3" as "@13 or", unless a new statement begins with the last one."""
    before, after = said.string[: said.start()].rstrip(), said.string[said.end() :].lstrip()
    leads = _NOTHING_BEFORE.search(before) is not None
    if not leads and after[:1] == ",":
        following = _PIECE_END.split(after[1:].lstrip(), maxsplit=1)[0]
        ends = _STOPS.match(after[1:].lstrip()) is not None or "@" in following or not following.strip()
    else:
        ends = not after or after[0] in ".,;:-)" or _STOPS.match(after) is not None
    if not leads and not ends:
        return said[0]
    thirds = "".join(sorted(set(re.findall("[123]", said[0]))))
    return f"@{thirds}" + (" @o" if _OR.search(said[0]) else "")

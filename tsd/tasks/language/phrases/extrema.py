"""Phrases for the extrema ("maximum", "minimum", "extrema") and for the three places."""

from tsd.tasks.language.phrases import Phrases, one_of

_UNIT = (
    r"(?:(?:data |time )?(?:points?|values?|readings?|observations?|samples?|entry|entries|records?|steps?"
    r"|stamps?)"
    r"|days?|weeks?|months?|years?|hours?|minutes?|seconds?|measurements?|ticks?|bars?|ones?|tenths?|fifths?"
    r"|eighths?"
    r"|moments?)"
)
_POINT = r"(?:data )?(?:point|value|reading|observation|sample|step)"
_FEW = r"(?:couple of|handful of|dozen|two|three|four|five|ten)"
_OF_ALL = r"(?! of (?!(?:the |this |its )?(?:series|curve|plot|line|data|chart|graph|signal)))"
_LIES = (
    r"(?= (?:is|was|are|comes?|came|occurs?|sits?|lies?|appears?|falls?|at|in|on|near|towards?|early|late"
    r"|mid\w*|around"
    r"|first|last|right|halfway|and|while|of the (?:series|period|window|sample|year|day|plot))\b|[.,;:]|$| =)"
)
_WHERE = r"(?= (?:is |at|in|on|near|early|late|mid))"
_THINGS = r"(?:values?|numbers?|readings?|observations?|points?|ones?|levels?|measurements?|samples?|figures?)"
_BIGGEST_AT = r"(?= (?:at|in|on|near|towards?|is|are|was|comes|occurs|early|late|of all)\b|[.,;:]|$)"
_MANY = one_of(
    "several many multiple numerous few various two three four five repeated recurring regular periodic similar"
)
_NOT_NEAR = r"(?<!near )(?<!at )(?<!towards )(?<!to )(?<!from )(?<!off )(?<!around )(?<!of )"
_NOT_A_PART = r"(?! (?:half|left|right|panel|edge|part))"
# "on the left", not "left of the middle" and not "right after"
_BORDER = r"(?: (?:end|side|edge|border|boundary|corner|margin|extreme|hand side))?"
_SIDE = (
    r"(?=[.,;:)/]|$| (?:and|while|whereas|but|with)\b"
    r"| of (?:the|this) (?:series|plot|chart|graph|curve|figure|picture|image|axis|x-axis))"
)
_REGION = r"(?:border|boundary|corner|margin|extreme|part|portion|section|region)"

EXTREMA = Phrases(
    r"top summit crest apex zenith pinnacle culminat high\b highs\b tall biggest greatest largest bottom floor"
    r" valley rock low\b lows\b deepest smallest extreme peaks\b maxima minima troughs\b every\b each\b"
    r" again repeated periodic regular once\b start(?:ing|ed) commenc open began ending ended finish"
    r" clos(?:e|es|ed|ing)\b conclu left right first\b initial\b onset"
    r" inception [01]\b half\b mid(?!dle) last\b final latest tail ceiling least\b max(?:es|ed) crest argm second"
    r" third fourth fifth [2-5](?:nd|rd|th) penultimate next",
    # Waves have peaks that are no extremum of the whole
    (
        "",
        (
            rf"{_MANY} (?:[\w-]+ )?(?:peaks|maxima|highs|troughs|minima|lows|valleys)(?: and (?:peaks|troughs"
            rf"|valleys))?",
            r"peaks? (?:every|each|again|repeatedly|periodically|regularly|once per|once a)",
        ),
    ),
    (
        "maximum",
        (
            rf"{_NOT_NEAR}(?:the|its|global|absolute|overall|very) (?:top|summit|crest|apex|zenith|pinnacle"
            rf"|ceiling)"
            rf"{_NOT_A_PART}{_OF_ALL}",
            r"(?:tops?|topped|topping|max(?:es|ed)) out|crest(?:s|ed)|argmax|culminat(?:es|ed|ing|ion)|top"
            r" (?:value"
            r"|point)s?|top(?=:| =)",
            rf"(?:(?<=^)|(?<=[.,;] ))top{_WHERE}",
            r"(?:high|tallest) (?:point|spot|mark)s?",
            rf"(?:biggest|greatest|largest) {_THINGS}|(?:the|its) (?:biggest|greatest|largest){_BIGGEST_AT}",
            r"(?:record|all-time|period|session|global|absolute|overall|series) highs?",
            rf"(?:the|its|their) highs?{_LIES}|highs?(?= ?[:=])",
        ),
    ),
    (
        "minimum",
        (
            rf"{_NOT_NEAR}(?:the|its|global|absolute|overall|very) (?:bottom|floor|valley)"
            rf"{_NOT_A_PART}{_OF_ALL}",
            r"(?:bottoms?|bottomed|bottoming) out|argmin|rock[- ]bottom|bottom (?:value|point)s?|bottom(?=:| =)"
            r"|bottoms(?= (?:at|in|near|around|early|late))",
            rf"(?:(?<=^)|(?<=[.,;] ))bottom{_WHERE}",
            r"(?:low|deepest) (?:point|spot|mark)s?|deepest (?:value|trough|valley|dip)",
            rf"(?:smallest|least) {_THINGS}|(?:the|its) (?:smallest|least){_BIGGEST_AT}",
            r"(?:record|all-time|period|session|global|absolute|overall|series) lows?",
            rf"(?:the|its|their) lows?{_LIES}|lows?(?= ?[:=])",
        ),
    ),
    ("extrema", (r"(?:the |both )?extremes|extreme (?:values|points)",)),
    # "Opens at its low", "closes at its high"
    (
        "starts",
        (r"(?:starting|commences|opens|opened|opening|started|began)(?= (?:off )?(?:at|with|from|near|on) )",),
    ),
    ("ends", (r"(?:ending|finishing|closes|closing|closed|concludes|ended|finished)(?= (?:at|with|near|on) )",)),
    (
        "beginning",
        (
            rf"(?:far|extreme) left(?:-hand)?{_BORDER}|leftmost(?: {_UNIT}| part| end)?",
            rf"left(?:-hand)? {_REGION}",
            rf"(?:on|at|to|in|towards?|near) (?:the )?(?:very )?left(?:-hand)?{_BORDER}{_SIDE}",
            rf"first {_UNIT}|(?:second|third|fourth|fifth|2nd|3rd|4th|5th) {_POINT}|(?:first|initial) {_FEW}"
            rf" {_UNIT}",
            r"the (?:very )?first(?=[.,;]|$)",
            r"onset|inception|commencement|(?:opening|initial|starting) (?:stretch|phase|stages?|days?|moments)",
            r"(?:index|position|x|t|time|step)(?: ?[=:] ?| )[01](?![\d.]| ?[-–/%]| of| out)",
        ),
    ),
    (
        "middle",
        (
            r"half way|midst|mid[- ]?section|mid[- ]?(?:series|sample|period|way|course|plot|range|term|window)",
            r"(?:at|around|near|about|to|after) (?:\w+ly |about )?(?:the )?half(?= of (?:the|its)|[.,;]|$)",
        ),
    ),
    (
        "end",
        (
            rf"(?:far|extreme) right(?:-hand)?{_BORDER}|rightmost(?: {_UNIT}| part| end)?",
            rf"right(?:-hand)? {_REGION}",
            rf"(?:on|at|to|in|towards?|near) the (?:very )?right(?:-hand)?{_BORDER}{_SIDE}|(?:on|at)"
            rf" right(?=[.,;]|$)",
            rf"(?:last|final|latest|penultimate|(?:second|third|next)[- ]to[- ]last) {_UNIT}|(?:last|final)"
            rf" {_FEW} {_UNIT}",
            r"the (?:very )?last(?=[.,;]|$)",
            r"(?:last|final|closing) (?:stretch|phase|moments|part|portion|section|segment|stages?|quarter)",
            r"(?:at|on|near|towards?|by|in|around) (?:the|its) (?:very )?(?:close|finish|final|conclusion|last"
            r"|tail end|tail)"
            r"(?=[.,;]|$| (?:of|and|while|whereas|but)\b)",
        ),
    ),
)
SUBJECTS = frozenset({"maximum", "minimum", "extrema"})

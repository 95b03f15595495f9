"""Phrases for the noise level: "low", "medium", "high". They count where no level of the noise itself is named."""

import re

from tsd.tasks.language.phrases import NOT, Phrases, one_of

ROUGH = one_of(
    "volatile jagged jumpy choppy erratic ragged chaotic spiky shaky bumpy turbulent messy noisy scattered"
    " jittery rough zigzag wild"
)
SMOOTH = one_of("smooth smoothly smoother clean cleanly crisp noiseless quiet calm")
_LITTLE = one_of(
    "low minimal little small minor weak slight negligible mild faint limited tiny minute minuscule marginal"
    " subtle"
    " insignificant imperceptible"
)
_GREAT = one_of(
    "high large strong heavy significant considerable substantial severe intense pronounced big huge massive"
    " extreme"
    " excessive loud great wild enormous violent wide marked"
)
_MEDIUM = one_of("medium moderate intermediate average middling mid-level mid-range")
# What varies from point to point, if it is not called noise
SCATTER = (
    r"(?:scatter(?:ing)?|jitters?|wiggl(?:es?|ing)|deviations?|residuals?|volatility|disturbances?"
    r"|perturbations?|spread"
    r"|(?:random|erratic) (?:variations?|fluctuations?|movements?)"
    r"|(?:point|step|day|week|month|year)-to-(?:point|step|day|week|month|year)"
    r" (?:variations?|variability|fluctuations?|changes?))"
)
_SWINGS = r"(?:fluctuations?|variations?|variability|ups and downs|swings|dispersion)"
_VARIED = rf"(?:{SCATTER}|{_SWINGS})"
_DESCRIBED = r"(?:[\w-]+ ){0,2}?"
_BE = (
    r"(?: (?:level|intensity|around|about|the|it|this|that|trend|mean|line|curve|series|from|of|in|to|point))*"
    r"(?: is| are| was| were| being| remains?| appears?| seems?| looks?|:| =| to be| \w+ly| very| quite| rather)+"
)
_VARIES = one_of("bounce bounces bouncing swing swings swinging vary varies varying fluctuate fluctuates")
_WILDLY = r"(?:a lot|wildly|strongly|heavily|constantly|widely|considerably|violently|sharply|greatly)"
_JUMPS = (
    r"(?:bounces|bouncing|jumps?|jumping|moves?)"
    r" (?:around|about|(?:up and down )?(?:a lot|wildly|constantly))"
)
_LOTS = r"(?:a lot|lots|plenty|loads|tons|a great deal|a large amount|full)"
_VERY = one_of(
    "very quite pretty really so too rather extremely super highly heavily terribly incredibly strongly"
)
_SLIGHTLY = r"(?:slightly|a bit|a little|a tad|barely|hardly|scarcely)"
_HARDLY_ANY = rf"(?:{NOT}|(?:hardly|barely|scarcely) any|almost no|next to no|practically no|virtually no)"
_FAINT = (
    r"(?:tiny|minute|minuscule|marginal|subtle|insignificant"
    r"|(?:barely|hardly) (?:visible|noticeable|perceptible))"
)
_LOUD = r"(?:big|huge|massive|extreme|excessive|loud|great|enormous)"
_FOLLOWS = one_of("stick sticks follow follows following track tracks hug hugs cling clings adhere adheres")
_PART = (  # "volatile at the end" is no level of the whole
    r"(?:(?:\w+ )?(?:at|in|near|towards?|during|until|after|before|from) (?:the|its) (?:very )?"
    r"(?:beginning|start|end|middle|first|second|last|final|early|late)|at first|initially|later|until|afterwards)"
)

NOISE = Phrases(
    "",
    (
        "medium",
        (
            rf"neither (?:\w+ )?(?:{_LITTLE}|{_GREAT}|{ROUGH}|{SMOOTH}) n?or (?:\w+ )?"
            rf"(?:{_LITTLE}|{_GREAT}|{ROUGH}|{SMOOTH})",
            r"(?:noticeable|visible|present|clear|there)(?: noise)?,? but (?:it is |is )?not "
            r"(?:excessive|extreme|overwhelming|dominant|dominating|(?:too|very|overly) \w+|high|large|strong"
            r"|severe)",
        ),
    ),
    (
        "low",
        (
            rf"{NOT} (?:\w+ )?{ROUGH} at all|not at all {ROUGH}",
            r"(?:(?:hardly|barely|scarcely) any|not much)(?=[.,;]|$)",
            rf"{_HARDLY_ANY} (?:(?:any|visible|real|apparent) )?(?:noise|{SCATTER})",
        ),
    ),
    # Negated, compared, or of a part
    (
        "",
        (
            r"(?:low|high|mid)-?(?: )?frequency noise(?: \w+)?",  # a kind of noise, and no level
            rf"(?:{NOT}|far from|anything but) (?:(?:an?|the|that|very|so|too|at all|\w+ly) )*"
            rf"(?:{ROUGH}|{SMOOTH}|much|{_LITTLE}"
            rf"|{_GREAT}|{_MEDIUM})",
            r"(?:more|less|increasingly|become|becomes|became|becoming|gets?|getting|turns?|grows?) (?:\w+ )?"
            rf"(?:{ROUGH}|{SMOOTH})",
            rf"(?:{ROUGH}|{SMOOTH}) {_PART}",
            rf"(?:fairly|relatively) {ROUGH}",
        ),
    ),
    (
        "low",
        (
            rf"{_SLIGHTLY} {ROUGH}|{SMOOTH}|noise-?free",
            r"(?:touch|hint|trace) of noise|(?:little |small |tiny )?bit of noise|a little noise",
            rf"{_FAINT} (?:\w+ )?noise|noise{_BE} {_FAINT}|noise{_BE} (?:small|imperceptible)",
            rf"{_FOLLOWS} (?:the |its |a )?[\w -]{{0,30}}?(?:closely|tightly|close to)|(?:closely|tightly)"
            rf" {_FOLLOWS}",
            r"^very little|^(?:almost|practically|virtually) none|^none(?=[.,;]|$)",
        ),
    ),
    ("medium", (rf"(?:moderately|somewhat|medium) {ROUGH}",)),
    (
        "high",
        (
            rf"(?:{_VERY} )+{ROUGH}|volatile|jagged|jumpy|choppy|erratic|ragged|chaotic|spiky|messy|jittery"
            rf"|zigzag",
            rf"{_LOTS} of {_DESCRIBED}(?:noise|{_VARIED})|much noise",
            rf"{_LOUD} (?:\w+ )?(?:noise|amounts? of noise)|noise{_BE} (?:{_LOUD}|dominant|dominating)",
            r"(?:strongly|heavily|badly|severely|highly) (?:disturbed|affected|contaminated|corrupted|perturbed)",
            rf"{_VARIES} (?:around |about |up and down )?{_WILDLY}|{_JUMPS}",
            r"noise dominates|(?:dominated|swamped|drowned|buried|overwhelmed) (?:by|in) (?:the )?noise|^(?:a"
            r" lot|lots|plenty)(?=[.,;]|$)",
            r"widely scattered|scattered widely|all over the place",
            r"(?:wildly|widely|violently|strongly|heavily) (?:fluctuating|varying|swinging|jumping)",
            rf"(?:wild|huge|violent|massive|enormous) {_DESCRIBED}{_VARIED}",
        ),
    ),
    (
        "medium",
        (r"(?<!on )average(?! of)|mid-?level|mid-?range|middling|in-between", rf"{_MEDIUM} {_DESCRIBED}{_VARIED}"),
    ),
)
# For texts that do not mention noise: "small deviations". In "noise, with small deviations" no level is named.
SCATTERED = Phrases(
    "",
    ("", (rf"{NOT} (?:\w+ ){{0,2}}?(?:{_LITTLE}|{_GREAT}|{_MEDIUM})",)),
    ("low", (rf"{_LITTLE} {_DESCRIBED}{_VARIED}", rf"{_VARIED}{_BE} {_LITTLE}")),
    ("high", (rf"{_GREAT} {_DESCRIBED}{_VARIED}", rf"{_VARIED}{_BE} {_GREAT}")),
    ("medium", (rf"{_MEDIUM} {_DESCRIBED}{_VARIED}", rf"{_VARIED}{_BE} {_MEDIUM}")),
)

# Much signal is little noise.
_RATIO = r"(?:signal[- ]to[- ]noise(?:[- ]ratio)?|s/n(?: ratio)?|snr)"
_IS = (
    r"(?: (?:of|in|for) (?:the|this) \w+(?: \w+)?)?"
    r"(?:(?: is| appears?| seems?| looks?| stays?| remains?| to be| this| that| \w+ly| very| quite)+ |: ?| ?= ?)"
)
_MUCH_SIGNAL = rf"(?:{_GREAT}|good|excellent)"
_LITTLE_SIGNAL = rf"(?:{_LITTLE}|poor|bad)"
RATIO = Phrases(
    "signal s/n snr",
    ("", (rf"{NOT} (?:(?:an?|very|\w+ly) )*(?:{_MUCH_SIGNAL}|{_LITTLE_SIGNAL}|{_MEDIUM}) {_RATIO}",)),
    ("noise is low", (rf"{_MUCH_SIGNAL} (?:\w+ )?{_RATIO}", rf"{_RATIO}{_IS}{_MUCH_SIGNAL}")),
    ("noise is high", (rf"{_LITTLE_SIGNAL} (?:\w+ )?{_RATIO}", rf"{_RATIO}{_IS}{_LITTLE_SIGNAL}")),
    ("noise is medium", (rf"{_MEDIUM} (?:\w+ )?{_RATIO}", rf"{_RATIO}{_IS}{_MEDIUM}")),
    ("", (rf"{_RATIO}[^.,;]*",)),  # no level of the noise itself
)

# Words by which a piece of prose is about noise if it names no other topic
NOISE_HEAD = re.compile(
    rf"\b(?:{ROUGH}|{SMOOTH}|{SCATTER}|snr|s/n|(?:fluctuations?|variations?) (?:around|about) (?:it|the|this|that)"
    rf"|{_VARIES} (?:around |about |up and down )?{_WILDLY}|{_JUMPS}|all over the place"
    rf"|{_FOLLOWS} [\w -]{{0,30}}?(?:close|closely|tightly)|ups and downs from)\b"
)

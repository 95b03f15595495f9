"""Phrases for directions: "rises", "drops", "flat", with "overall" where they compare the ends of the series."""

from tsd.tasks.language.phrases import Phrases, one_of
from tsd.tasks.language.words import DOWN, UP

_GO = one_of(
    "go goes going gone went come comes coming came move moves moved moving head heads headed heading trend trends"
    " trended trending tend tends tending creep creeps creeping crept edge edges edged edging drift drifts drifted"
    " drifting inch inches inching push pushes pushed pushing point points pointed pointing slope slopes sloped"
    " sloping turn turns turned turning tick ticks ticked ticking shoot shoots shooting shot ramp ramps ramped"
    " ramping march marches marched marching slide slides sliding slid slip slips slipped slipping grind grinds"
    " grinding build builds building float floats floating glide glides gliding bend bends bending run runs"
    " running travel travels slant slants slanted swing swings lean leans"
)
_THEN = r"(?: \w+ly| back| in general| always| all the way){0,2}"
_HIGHER = r"(?:up|higher|north(?:wards?)?|uphill)"
_LOWER = r"(?:down|lower|south(?:wards?)?|downhill)"
_LIMIT = r"(?! (?:to|until) (?:about |around |roughly )?(?:\d|the (?:max|limit)))"  # "values are up to 99"
# "up" and "down" alone say a direction only after such words: not in "speeds up" or "is made up of".
_LEADS = (
    "is are was were then first overall generally mostly trend or nor neither back and way clearly steadily net"
)
_BEHIND = "|".join(rf"(?<=\b{lead} )" for lead in _LEADS.split())
_AFTER = rf"(?:(?<=^)|(?<=[:=,;.(/] )|(?<=[:=])|{_BEHIND})"
_IS_SAID = (
    r"(?:slope|trend|drift|gradient|direction|tendency|movement)"
    r"(?: is| was| looks| seems| appears| to be| \w+ly)+"
)

# Comparisons of the ends of the series
_END = one_of(
    "end ends ended ending finish finishes finished finishing close closes closed closing concludes lands"
)
_MUCH = r"(?:(?:\w+ly|well|far|much|a bit|a lot|a little|somewhat|way) ){0,2}"
_ABOVE = one_of("higher above larger greater bigger up")
_BELOW = one_of("lower below beneath under smaller down")
_OUTSET = (
    r"(?:than |from |on )?(?:(?:where|what|when|its|the|at|it|they|in|that of|of|level|value|point|which) ){0,4}"
    r"(?:start\w*|beg[aiu]n\w*|open(?:ed|ing|s)|initial(?:ly)?|first|origin\w*)"
)
_LAST = (
    r"(?:last|final|end|latest|closing|later)(?: (?:values?|points?|readings?|levels?|ones?|part|observations?))?"
    r" (?:is|are|lies?|sits?|was|were|being)"
)
_FIRST = r"than (?:the |at the |in the |its )?(?:first|initial|start|beginning|opening|early|earlier)"
_AT_ITS_END = r"(?:at|near|towards) the end than (?:it (?:is|was) )?(?:at|near|in) the (?:start|beginning)"
_STARTS = r"(?:start|begin)s? (?:off |out )?(?:at an? |at |with |from an? )?(?:\w+ )?"
_AND_ENDS = rf"(?: \w+)?,? (?:and |but |then |and then )?(?:it )?{_END} (?:up )?(?:at an? |at |with )?(?:\w+ )?"
_WHERE_IT_STARTED = r"(?:where|(?:at|on) which)(?: it| they)? (?:had )?(?:start|beg[aiu]n)\w*"
_ABOUT = r"(?:(?:\w+ly|about|almost|more or less|near|close to|at|around|very|pretty much|just|the level|on) )*"

# What goes on around a level: "around a constant mean", not "around a rising mean"
_WAVERS = one_of(
    "fluctuates fluctuating fluctuate oscillates oscillating oscillate varies varying moves moving swings swinging"
    " bounces bouncing wanders wandering wiggles wiggling scattered stays staying remains remaining"
)
_KIND = one_of(
    "constant fixed stable same steady central certain common mean average long-term long-run single"
    " horizontal given middle typical"
)
_LEVEL = (
    rf"(?:an? |the |its |some |one )?(?:{_KIND} ){{0,2}}"
    r"(?:mean|average|level|value|cent(?:er|re)|baseline|zero|\d+)"
)

_EVENT = one_of(
    "surge rally slide slump plunge crash tumble collapse uptick downtick pullback setback correction gain"
    " loss advance"
    " retreat spike jump sell-off recovery"
)
# "steady at the end" says nothing on the whole
_OF_A_PART = (
    r"(?! (?:in|at|for|near|towards?|during|until|till|over|throughout) (?:the |most of the )?(?:very )?"
    r"(?:beginning|start|middle|end|first|last|second|third|latter|final))"
)
_MOVEMENT = rf"(?:{UP}|{DOWN}|gains?|loss(?:es)?|ascent|descent|reduction|erosion|decay|pace|rate)\b"

TREND = Phrases(
    r"up\b ups\b down\b higher lower north south uphill downhill above below beneath under larger greater bigger"
    r" smaller low\b high\b where\b which\b same none\b nothing no\b n/a back\b starting initial\b original"
    r" first\b"
    r" positive negative surg soar skyrocket rall ascent advanc gain augment upswing bullish upside boom plung"
    r" plummet"
    r" slid tumbl slump collaps sank crash loss decay descent ero shr[aiu] bearish downside fall\b steady"
    r" level hover"
    r" range static unvary invariant trend-?free directionless mean average cent[er] baseline zero \d value hardly"
    r" barely scarcely move budge anywhere nowhere spike jump setback correction retreat recovery uptick downtick"
    r" pullback sell sold escalat mount retreat sag flatlin stay remain keep kept",
    # Neither direction: waves, and single events beside a direction ("rises, with a late slump")
    (
        "",
        (
            rf"(?:{_GO} )?(?:up and down|ups and downs|down and up|back and forth)",
            r"(?:with|despite|plus|save for|apart from|besides|after|before|and|but for|except for) (?:only )?"
            rf"(?:an?|one|the|some|two|several|a few) (?:[\w-]+ ){{0,2}}{_EVENT}s?"
            r"(?: (?:up|down)(?:wards?)?)?",
        ),
    ),
    (
        "overall rises",
        (
            rf"{_END} (?:up |off |out )?(?:at an? )?{_MUCH}{_ABOVE} (?:level |value |point )?{_OUTSET}",
            rf"{_LAST} {_MUCH}{_ABOVE} {_FIRST}",
            rf"{_ABOVE} {_AT_ITS_END}",
            rf"(?:is|are|lies|sits) {_MUCH}{_ABOVE} (?:at|by|near|towards) the end(?! of (?!the series))",
            rf"{_STARTS}low{_AND_ENDS}high",
            r"from (?:\w+ )?low(?: values?| levels?| numbers?)? to (?:\w+ )?high",
        ),
    ),
    (
        "overall drops",
        (
            rf"{_END} (?:up |off |out )?(?:at an? )?{_MUCH}{_BELOW} (?:level |value |point )?{_OUTSET}",
            rf"{_LAST} {_MUCH}{_BELOW} {_FIRST}",
            rf"{_BELOW} {_AT_ITS_END}",
            rf"(?:is|are|lies|sits) {_MUCH}{_BELOW} (?:at|by|near|towards) the end(?! of (?!the series))",
            rf"{_STARTS}high{_AND_ENDS}low",
            r"from (?:\w+ )?high(?: values?| levels?| numbers?)? to (?:\w+ )?low",
        ),
    ),
    (
        "overall flat",
        (
            rf"{_END} (?:up )?(?:back )?{_ABOUT}{_WHERE_IT_STARTED}",
            r"(?:returns?|comes back|goes back) to (?:its|the) (?:starting|initial|original|first) (?:level"
            r"|value|point)",
            r"(?:starts?|begins?) and ends? (?:at|around|near|on) (?:about |roughly |nearly )?the same",
            r"trend ?[:=] ?(?:none|nothing|no|n/a)",
        ),
    ),
    (
        "rises",
        (
            rf"{_GO}{_THEN} {_HIGHER}{_LIMIT}|(?:going|goes) to up|up and to the right",
            rf"{_AFTER}up{_LIMIT}",
            one_of("soar soars soared soaring surge surges surged surging skyrocket skyrockets skyrocketed"),
            one_of("rally rallies rallied rallying ascent ascents advance advances advanced advancing"),
            one_of("escalates escalated escalating mounts mounting"),
            one_of("gain gains gained gaining augmentation upswing uphill bullish upside boom booms booming"),
            rf"{_IS_SAID} positive",
        ),
    ),
    (
        "drops",
        (
            rf"{_GO}{_THEN} {_LOWER}",
            rf"{_AFTER}down",
            one_of("plunge plunges plunged plunging plummet plummets plummeted plummeting slides sliding"),
            one_of("tumbles tumbled tumbling slumps slumped slumping collapses collapsed collapsing sank"),
            one_of("crashes crashed crashing losses loss decay decays decayed decaying descent descents"),
            one_of("erosion erodes eroding shrink shrinks shrinking shrank shrunk downhill bearish downside"),
            one_of("retreats retreated retreating sags sagged sagging"),
            r"(?:sells|sold|selling) off",
            r"(?:a|an|the|sharp|steep|slow|gradual|sudden|strong|steady|rapid|clear) fall(?= in\b)",
            rf"{_IS_SAID} negative",
        ),
    ),
    # "steady" also describes a movement ("steady growth", "overall steady, rising"): it counts where it is alone
    (
        "flat",
        (
            rf"steady{_OF_A_PART}(?=[.;)/]|$|, (?:with|without|no|and no|but no|around|hovering)\b"
            r"| (?:and|around|at|over|throughout|overall|for|across|in|during|near|about|values?)"
            rf" (?!{_MOVEMENT}))",
            rf"steady (?:line|series|signal|level|state){_OF_A_PART}|steady (?:throughout|overall)",
            rf"(?:more or less|\w+ly|about|almost|quite|rather|pretty much|pretty) level{_OF_A_PART}"
            r"(?=[.,;]|$| (?:from|over|throughout|with|around|across|all|and|at|for|line)\b)",
            r"hover(?:s|ed|ing)?|flatlin(?:es?|ed|ing)|range-?bound|static|unvarying|invariant|trend-?free"
            r"|directionless",
            rf"{_WAVERS} (?:\w+ly )?(?:around|about|round|near|at|close to) {_LEVEL}",
            r"(?:at|on|around|near|about) (?:\w+ly |about |almost |more or less |much )?the same"
            r" (?:level|height|value|values|range|band)",
            r"(?:stays?|stayed|remains?|remained|keeps?|kept) (?:\w+ly |about |almost |more or less |much"
            r" )?the same",
            r"(?:hardly|barely|scarcely) (?:move|moves|moving|moved|vary|varies|budges?)",
            r"(?:does|do|did)(?:n't| not) (?:\w+ly )?(?:move|budge|go anywhere)|goes nowhere",
        ),
    ),
)

# Weaker words, for texts that name no direction otherwise: "the rise weakens" is still a rise.
TREND_IF_ALONE = Phrases(
    r"augment expan strengthen appreciat upslope bigger larger higher greater pick rise\b positive reduc"
    r" lessen wan taper"
    r" weaken dwindl fad ebb depreciat retreat contract slide slip slump downswing downslope lowering"
    r" shrinkage los"
    r" smaller lower less negative balanced equilibrium mean revert none\b nothing steady level zero near"
    r" slope trend swell"
    r" doubl tripl eas halv deflat",
    (
        "rises",
        (
            one_of("augments augmenting expand expands expanded expanding expansion strengthens strengthening"),
            one_of(
                "appreciates appreciation upslope swells swelling doubles doubled triples tripled strengthened"
            ),
            r"(?:gets?|getting|becomes?|becoming) (?:\w+ly )?(?:bigger|larger|higher|greater)",
            r"(?:bigger|larger|higher|greater) and (?:bigger|larger|higher|greater)",
            r"(?:larger|bigger|higher|greater) (?:numbers |values |ones )?(?:later|towards the end|with time)",
            r"pick(?:s|ed|ing)? up|on the rise",
            r"positive (?:drift|slope|gradient|direction|movement)|slope ?[:=] ?positive",
            r"(?:trend ?[:=] ?|^)positive(?=[.]?$)",
        ),
    ),
    (
        "drops",
        (
            one_of("reduce reduces reduced reducing reduction reductions lessens lessening wanes waning taper"),
            one_of("tapers tapered tapering weaken weakens weakening dwindles dwindling fade fades fading"),
            one_of("ebbs ebbing depreciates depreciation retreat retreats contracts contraction slide slip"),
            one_of("slump downswing downslope lowering shrinkage weakened faded eases easing eased"),
            one_of("halves halved deflates"),
            r"(?:lose|loses|lost|losing) (?:\w+ )?(?:height|ground|value|level)",
            r"(?:gets?|getting|becomes?|becoming) (?:\w+ly )?"
            r"(?:smaller|lower|less(?! (?!and |with |over |towards |until )))",
            r"(?:smaller|lower|less) and (?:smaller|lower|less)",
            r"(?:smaller|lower) (?:numbers |values |ones )?(?:later|towards the end|with time)",
            r"negative (?:drift|slope|gradient|direction|movement)|slope ?[:=] ?negative",
            r"(?:trend ?[:=] ?|^)negative(?=[.]?$)",
        ),
    ),
    (
        "flat",
        (
            r"balanced|equilibrium|mean[- ]revert\w*|reverts? to (?:its|the|an?) (?:mean|average)",
            r"^(?:none|nothing|steady|level)(?=[.,;]|$)|(?:near-?)?zero (?:trend|slope|drift)",
            r"(?:slope|trend)(?: is| of)?(?: \w+ly| very| about| almost| near| close to)* zero",
        ),
    ),
)

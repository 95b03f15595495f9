"""Varied sentences about one series, with numbers: templates by facet and class.

Templates are those of `tsd.tasks.language.wording`. Slots are numbers of the series, see `Number` of
`tsd.tasks.task`. In every wording the reader finds exactly the class, and the numbers that it states.
"""

from collections.abc import Mapping

ABOUT = "[about|around|roughly]"
LEVELS = (f"from {ABOUT} {{start}} to {{end}}", f"from {{start}} to {ABOUT} {{end}}")


def _directed(verbs: str, adverb: str, noun: str) -> tuple[str, ...]:
    """Templates of a direction. verbs: alternatives, third person; adverb: of direction; noun: of the movement."""
    first, second = LEVELS
    return (
        f"The [series|curve|signal|line] [{verbs}][ overall| as a whole|] {first}.",
        f"[Overall, it|On the whole, it|It] [{verbs}] {second}.",
        f"[The overall trend|The trend] is {adverb}, {first}.",
        f"[There is a clear|It shows a clear|It has a steady] {adverb} trend {second}.",
        f"[Over time the values|From start to end the values] [{_plural(verbs)}].",
        f"[The series|It] [{verbs}] [over time|throughout]: it starts near {{start}} and ends near {{end}}.",
        f"A [clear|marked|general] {noun} {first} [runs through the series|sets the trend].",
    )


def _plural(verbs: str) -> str:
    """Alternatives of verbs in the plural: "goes up" becomes "go up"."""
    words = {"rises": "rise", "climbs": "climb", "increases": "increase", "goes": "go"}
    words |= {"falls": "fall", "declines": "decline", "decreases": "decrease"}
    return "|".join(" ".join(words.get(word, word) for word in verb.split()) for verb in verbs.split("|"))


TREND: Mapping[str, tuple[str, ...]] = {
    "increasing": _directed("rises|climbs|increases|goes up", "upward", "increase"),
    "decreasing": _directed("falls|declines|decreases|goes down", "downward", "decrease"),
    "flat": (
        "The [series|curve|signal|line] [stays flat|remains level|holds steady].",
        "[The series|It] [shows|has] no clear trend.",
        "[Overall, it|On the whole, it|It] [neither rises nor falls|stays flat].",
        "[The overall trend|The trend] is flat[: the change of {change} is within the noise|].",
        "[There is|It shows] no [overall|clear] upward or downward trend.",
        "[Over time the values|From start to end the values] [stay level|remain stable].",
        "[The series|It] is [flat|stable] [overall|as a whole][, around a mean of {mean}|].",
    ),
}

SIZE = "[, with a standard deviation of about {noise}|, about {noise} units|]"
NOISE: Mapping[str, tuple[str, ...]] = {
    level: (
        f"The noise [intensity |level |]is {level}{SIZE}.",
        f"[The series|It] has {word} noise{SIZE}.",
        f"[There is|It shows] {word} noise [around the trend|around it]{SIZE}.",
        f"Its noise is {level}[: about {{noise}} units|, a standard deviation of {{noise}}|].",
        f"[The level of noise|The amount of noise] is {level}{SIZE}.",
        f"[Noise is|The noise stays] {level} [throughout|over time]{SIZE}.",
    )
    for level, word in (("low", "low"), ("medium", "[medium|moderate]"), ("high", "[high|strong]"))
}


def _extremum(names: str, adjective: str, value: str, point: str) -> Mapping[str, tuple[str, ...]]:
    """Templates of an extremum by its place. names: alternatives. value, point: names of slots."""
    where = f"[, at point {{{point}}} of {{length}}|, at point {{{point}}}|]"
    return {
        place: (
            f"The [{names}][ of {{{value}}}|] [lies|is|comes] [at|near] the {place}{where}.",
            f"Its [{names}][, {{{value}}},| of {{{value}}}|] [is found|is reached] [near|towards] the {place}"
            f"{where}.",
            f"The series is {adjective} [near|towards|around] the {place}[, at {{{value}}}|]{where}.",
            f"[Near|Towards] the {place} [lies|comes] the [{names}][ of {{{value}}}|]{where}.",
            f"The {place} holds the [{names}][ of {{{value}}}|]{where}.",
        )
        for place in ("beginning", "middle", "end")
    }


MAXIMUM = _extremum("maximum|peak|highest value", "highest", "maximum", "maximum_at")
MINIMUM = _extremum("minimum|lowest value|smallest value", "lowest", "minimum", "minimum_at")

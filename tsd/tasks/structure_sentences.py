"""Varied sentences about season, level shift, outlier and volatility, as those of `tsd.tasks.sentences`."""

from collections.abc import Mapping

CYCLES = "[, with about {cycles} cycles|, over {cycles} cycles|]"


def _season(strength: str) -> tuple[str, ...]:
    """Templates of a season. strength: alternatives of an adjective."""
    return (
        f"There is a [{strength}] season{CYCLES}.",
        f"[The series|It] has a [{strength}] seasonal pattern{CYCLES}.",
        f"The season is [{strength}][: about {{cycles}} cycles|, with {{cycles}} cycles|].",
        f"[The series|It] shows [{strength}] seasonality[ over about {{cycles}} cycles|].",
        f"A [{strength}] [wave|season] goes through [about |]{{cycles}} cycles.",
        f"[Its|The] seasonality is [{strength}]{CYCLES}.",
    )


SEASON: Mapping[str, tuple[str, ...]] = {
    "none": (
        "There is no [clear |visible |][season|seasonality|seasonal pattern].",
        "[The series|It] has no [season|seasonality|repeating pattern].",
        "No [season|seasonal pattern|cycle] [is visible|can be seen|repeats].",
        "[The series|It] is not [seasonal|periodic].",
        "[The series|It] shows no [sign|evidence] of [a season|seasonality].",
        "Seasonality is [absent|missing].",
    ),
    "weak": _season("weak|slight|faint"),
    "strong": _season("strong|pronounced|marked"),
}


def _shift(direction: str, adjective: str, level: str) -> tuple[str, ...]:
    """Templates of a level shift. adjective: with its article; level: to which it goes."""
    by, at = "[ by about {shift_size} units| by {shift_size}|]", "[ at point {shift_at}|]"
    return (
        f"The level [shifts|jumps|steps] {direction}{by}{at}.",
        f"There is {adjective} [level shift|jump of the level][ of about {{shift_size}} units|]{at}.",
        f"At point {{shift_at}}, the level [shifts|jumps|steps] {direction}{by}.",
        f"[The series|It] [shifts|jumps] to a {level} level{at}[, by about {{shift_size}} units|].",
        f"[The series|It] has {adjective} level shift{at}[, of {{shift_size}} units|].",
        f"The level shift is {direction}[, by {{shift_size}} units|]{at}.",
    )


SHIFT: Mapping[str, tuple[str, ...]] = {
    "none": (
        "There is no [level shift|shift of the level|abrupt change of level].",
        "The level [does not shift|does not jump|does not step].",
        "No [shift|jump|step] of the level [is visible|can be seen].",
        "[The series|It] has no [level shift|step in level].",
        "[The series|It] shows no [sudden change|abrupt jump] of level.",
        "[The series|It] [does not shift|never shifts|does not jump] to another level.",
    ),
    "up": _shift("up", "an upward", "higher"),
    "down": _shift("down", "a downward", "lower"),
}


def _outlier(kind: str, direction: str, adjective: str) -> tuple[str, ...]:
    """Templates of an outlier. direction: in which it stands out; adjective: with its article."""
    size, at = "[ of about {outlier_size} units|]", "[ at point {outlier_at}|]"
    return (
        f"There is a {kind}{size}{at}.",
        f"[The series|It] has a [single |clear |]{kind}{size}{at}.",
        f"One point [stands out|sticks out] {direction}{at}[, by about {{outlier_size}} units|].",
        f"A {kind}{size} [stands out|is visible][ at point {{outlier_at}}|].",
        f"At point {{outlier_at}} [there is|comes] a {kind}{size}.",
        f"The outlier is {adjective} {kind}[, of {{outlier_size}} units|]{at}.",
    )


OUTLIER: Mapping[str, tuple[str, ...]] = {
    "none": (
        "There [is no outlier|are no outliers].",
        "[The series|It] has no [outlier|outliers|clear outlier].",
        "No [single |]point [stands out|sticks out].",
        "[There is|It has] neither a spike nor a dip.",
        "[The series|It] is free of outliers.",
        "No [outlier|spike or dip] [is visible|can be seen].",
    ),
    "spike": _outlier("spike", "upwards", "an isolated"),
    "dip": _outlier("dip", "downwards", "an isolated"),
}

VOLATILITY: Mapping[str, tuple[str, ...]] = {
    "steady": (
        "The volatility is [steady|constant|uniform][ throughout| over time|].",
        "[The series|It] fluctuates evenly[ throughout| over time|].",
        "The fluctuations [keep their size|stay equally large][ throughout|].",
        "There is no change [of|in] volatility.",
        "The volatility [does not change|neither grows nor shrinks|stays the same].",
        "[Its|The] volatility [stays|remains] [steady|stable|unchanged].",
    ),
    "growing": (
        "The volatility [grows|increases|rises][ over time| towards the end|].",
        "The fluctuations [become|get] [larger|wider][ over time| towards the end|].",
        "[The series|It] becomes more volatile[ over time| towards the end|].",
        "[Its|The] volatility is [growing|increasing].",
        "[There is|It shows] growing volatility.",
        "The fluctuations [grow|are growing][ over time| towards the end|].",
    ),
    "shrinking": (
        "The volatility [shrinks|decreases|falls][ over time| towards the end|].",
        "The fluctuations [become|get] [smaller|weaker][ over time| towards the end|].",
        "[The series|It] becomes less volatile[ over time| towards the end|].",
        "[Its|The] volatility is [shrinking|decreasing].",
        "[There is|It shows] shrinking volatility.",
        "The fluctuations [shrink|are shrinking][ over time| towards the end|].",
    ),
}

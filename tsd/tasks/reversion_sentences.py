"""Varied sentences about how fast a series returns to its mean, as those of `tsd.tasks.sentences`."""

from collections.abc import Mapping


def _reversion(adverb: str, adjective: str) -> tuple[str, ...]:
    """Templates that state a speed. adverb, adjective: alternatives."""
    return (
        f"[The values|Its values] return to their mean [{adverb}].",
        f"[The series|It] reverts [to its mean |][{adverb}].",
        f"[The mean reversion|The return to the mean|The reversion] is [{adjective}].",
        f"[The series|It] has [{adjective}] [mean reversion|reversion].",
        f"Deviations from the mean [die out|fade|decay] [{adverb}].",
    )


REVERSION: Mapping[str, tuple[str, ...]] = {
    "fast": (
        *_reversion("fast|quickly|rapidly", "fast|quick|rapid"),
        "A deviation from the mean [is gone|has gone] [a point later|after a point].",
        "Deviations [do not persist|do not last][ from point to point|].",
        "Successive deviations are [nearly |]unrelated.",
    ),
    "slow": (
        *_reversion("slowly|only slowly", "slow|sluggish"),
        "A deviation from the mean [lasts for|lasts|persists for] [several|many] points.",
        "Deviations [persist|linger|are persistent].",
        "[The values|Its values] [stay|remain] on one side of the mean for [several|many] points.",
    ),
}

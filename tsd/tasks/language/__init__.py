"""Parse responses of teachers and students: sentences -> labels. Rules only, no model; independent of the task.

A facet that a response does not state plainly gets no label but a reason. The parsers never guess.

Rules
  form       a JSON object, fenced or within prose; complete pairs of a broken one; else free sentences. A piece
             of prose is on the topic that it names first. A facet on which its own pieces say nothing is read
             from the others: the noise in "a smooth climb"
  structure  prose on season, shift, outlier, volatility or reversion says nothing on trend, noise and extrema; a
             piece that names two of them states both where it denies them, and else none
  pairs      prose on two series is read in sentences that name crossings, a position, or one of the series; "it
             rises in the first third" belongs to neither
  length     sentences above 120 words or 1,000 characters are no statements and are left out; a text above 10,000
             characters on one topic is not read. Any text at all is read within seconds
  doubt      not read: what has ceased ("no longer rises"), would or might be, is denied twice or called false,
             and questions that are answered with no
  phrases    what people write for a reader's own words ("heads south", "jagged", "far right"), in a table for
             each facet, `tsd.tasks.language.phrases`. Weaker words count only alone: "the rise weakens" is a rise
  trend      a direction word ("rises", "downward", "stable"); "no clear trend" and "neither rising nor falling"
             are flat; "not increasing", fluctuations, "despite" and brief drops state nothing
  phases     the one direction stated overall wins; else a direction next to a flat phase; else not stated
  thirds     a clause with a third and one direction, or a lead ("in the first third,") with its clause;
             phases without a third are not stated; "until", "after", "except in" a third are landmarks
  noise      the level stated for the noise, "relatively" or not; for fluctuations only if the noise has none
  levels     two of them ("medium to high", "low at first, then high") are not stated; nor is "not high".
             A high signal-to-noise ratio is low noise
  extrema    a place belongs to the extremum of its clause, or the one before it if the clause begins with a
             place; "both" and "maximum and minimum" share it; local extrema and "the end of the rise" are ignored
  places     two for one extremum ("between the beginning and the middle") are not stated; nor are halves, thirds
  numbers    per cent and fractions of the way are places, an index only with the length ("index 120 of 128")
  crossings  of each third: never, once or more; two counts, no count, "at least once", "almost", "once or twice"
             and crossings of anything but the other series are not stated
  position   of each third: which of two series is above the other, or that they alternate; both ways, "not",
             "rarely", "rises above" and "above 50" are not stated
  the whole  "never", "above" and "in every third" hold for each third; a count of the whole, "most of the time"
             and "they alternate" for none. "Nowhere else", "except", "only" and "never again" hold for the others.
             "Until", "before", "between" thirds, halves and numbers of points are no thirds
  season     weak or strong, or denied: "no clear seasonality" is none, "no strong season" states nothing
  shift      the direction of a shift of the level; "neither up nor down" is none, "no upward shift" is not stated
  outlier    a spike or a dip; "no spikes or dips" is none, "no spikes" states nothing; both are not stated
  volatility one course; "no change of volatility" is steady, "not constant" and bursts state nothing
  reversion  one speed; "not fast" states nothing, "no memory" is fast
"""

from tsd.tasks.language.crossings import read_intersections
from tsd.tasks.language.extrema import read_extrema
from tsd.tasks.language.forms import NO_JSON, sentences, topic_of, topics_in, topics_of
from tsd.tasks.language.noise import read_noise
from tsd.tasks.language.position import read_position
from tsd.tasks.language.prose import entangled, named_beside
from tsd.tasks.language.reversion import read_reversion
from tsd.tasks.language.structure import read_outlier, read_season, read_shift, read_volatility
from tsd.tasks.language.trend import read_thirds, read_trend
from tsd.tasks.language.words import Reading, normal

__all__ = [
    "NO_JSON",
    "Reading",
    "entangled",
    "named_beside",
    "normal",
    "read_extrema",
    "read_intersections",
    "read_noise",
    "read_outlier",
    "read_position",
    "read_reversion",
    "read_season",
    "read_shift",
    "read_thirds",
    "read_trend",
    "read_volatility",
    "sentences",
    "topic_of",
    "topics_in",
    "topics_of",
]

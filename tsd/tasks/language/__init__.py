"""Sentences -> labels, for teacher and student alike; nothing here calls a model, nothing knows a task.

A reply that does not say a facet plainly leaves it None with a reason: the readers never guess.

How a reply is read
  form       a JSON object, fenced or amid prose; of a broken one the pairs that are whole; else free sentences
  trend      a direction by its word ("rises", "downward", "stable"); "no clear trend" and "neither rising nor
             falling" are flat, "not increasing" says nothing; nor do fluctuations, "despite" and brief drops
  phases     the one direction said overall wins; else a direction beside a flat phase; else not stated
  thirds     a clause that names the third and one direction, a lead ("in the first third,") with its clause;
             phases without a third named are not stated; "until", "after", "except in" a third are landmarks
  noise      the level said of the noise, "relatively" or not; of fluctuations only where the noise has none
  levels     two of them ("medium to high", "low at first, then high") are not stated; nor is "not high"
  extrema    a place belongs to the extremum of its clause, the one before it if the clause begins with one;
             "both" and "maximum and minimum" share it; local extrema and "the end of the rise" do not count
  places     two of one extremum ("between the beginning and the middle") are not stated; nor are halves, thirds
  crossings  never, once or more; two counts, no count, "at least", "almost", "once or twice" are not stated
  position   which of two series is said to lie above the other, or that they alternate; both ways, "not",
             "rarely", "at first", "rises above" and "above 50" are not stated
"""

from tsd.tasks.language.extrema import read_extrema
from tsd.tasks.language.forms import sentences, topics_in, topics_of
from tsd.tasks.language.noise import read_noise
from tsd.tasks.language.pairs import read_intersections, read_position
from tsd.tasks.language.trend import read_thirds, read_trend
from tsd.tasks.language.words import Reading, normal

__all__ = [
    "Reading",
    "normal",
    "read_extrema",
    "read_intersections",
    "read_noise",
    "read_position",
    "read_thirds",
    "read_trend",
    "sentences",
    "topics_in",
    "topics_of",
]

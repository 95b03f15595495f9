"""What people and models write on two series, third by third: trends, crossings and relative position.

The readers of crossings and position were written with `sentences_pair_dev.jsonl` in view, which grew with them.
`sentences_pair_held_out.jsonl`, by the same author, was written before and only scored: at first 86 % of its
statements were read right and 3 wrongly. `sentences_pair_late.jsonl` was written afterwards: 85 % right and 6
wrongly, and what it showed was then corrected. A reviewer's sentences, half in each of the
first two sets, had been seen before the reader was corrected after them.
"""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsd.tasks import PAIR
from tsd.tasks.language import normal, read_intersections, read_position, read_thirds

HERE = Path(__file__).parent
THIRDS = ("beginning", "middle", "end")
LETTERS = {
    **{"increasing": "i", "decreasing": "d", "flat": "f", "none": "n", "one": "o", "several": "s"},
    **{"above": "a", "below": "b", "alternating": "x", None: "."},
}


def crossings(text: str) -> str:
    """The class read for each third: n none, o one, s several; a dot where none is."""
    return "".join(LETTERS[reading.label] for reading in read_intersections(normal(text)).values())


def position(text: str) -> str:
    """The class read for each third: a above, b below, x alternating; a dot where none is."""
    return "".join(LETTERS[reading.label] for reading in read_position(normal(text)).values())


def score(name: str) -> tuple[int, int, int, int]:
    """Sentences, statements in them, how many of these are read right, and how many labels are read wrongly.

    Wrong is another label than the stated one, and any label of a facet that is not stated.
    """
    rows = [json.loads(line) for line in (HERE / name).read_text().splitlines()]
    statements = right = wrong = 0
    for row in rows:
        found = PAIR.parse(json.dumps({"intersections": row["text"], "position": row["text"]})).labels
        read, labels = {facet: label for facet, label in found.items() if label}, row["labels"]
        statements += len(labels)
        right += sum(read.get(facet) == label for facet, label in labels.items())
        wrong += sum(labels.get(facet) != label for facet, label in read.items())
    return len(rows), statements, right, wrong


@pytest.mark.parametrize(
    ("name", "least", "share", "most"),
    [
        ("sentences_pair_dev.jsonl", 200, 0.92, 0),
        ("sentences_pair_held_out.jsonl", 50, 0.9, 0.01),
        ("sentences_pair_late.jsonl", 40, 0.88, 0.01),
    ],
)
def test_sentences_are_read_or_left_unread_and_hardly_ever_misread(
    name: str, least: int, share: float, most: float
) -> None:
    sentences, statements, right, wrong = score(name)
    assert sentences >= least
    assert right / statements >= share, (right, statements)
    assert wrong / statements <= most, (wrong, statements)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("it rises in the first third, is flat in the middle third and falls in the last third.", "ifd"),
        ("the first third is increasing, the second third is increasing, the final third is stable.", "iif"),
        ("flat in the first third. then a decrease during the middle third.", "fd."),
        ("it rises, then falls.", "..."),  # phases are not thirds
        ("the first third rises or falls.", "..."),
        ("the first third rises and falls.", "..."),
        (
            "in the first third, the series rises. in the middle third, it is flat. in the last third, it falls.",
            "ifd",
        ),
        ("in the first third, rising; in the middle third, flat; in the last third, falling.", "ifd"),
        ("during the first third, it is flat, and over the last third, it climbs.", "f.i"),
        ("unlike the first third, the last third falls.", "..d"),
        ("the first third is flat. the middle third rises. the last third is flat, as in the first third.", "fif"),
        ("it rises only in the last third.", "..i"),
        ("rising until the last third.", "..."),
        ("after the first third it falls.", "..."),
        ("before the last third, it falls.", "..."),
        ("flat except in the last third.", "..."),
        ("flat outside the last third.", "..."),
        ("it rises by the middle third.", "..."),
        ("between the first and the last third it is flat.", "..."),
        ("from the middle third on, it falls.", "..."),
        ("it rises faster than in the first third.", "..."),
        ("at the end of the first third it drops.", "..."),
        ("it rises, in the first third, falls in the middle third.", ".d."),
        ("it rises in the first third and in the middle third, falls in the last third.", "i.d"),
        ("", "..."),
    ],
)
def test_the_direction_of_a_third_is_read_from_the_clause_that_names_it(text: str, said: str) -> None:
    found = read_thirds(text)
    assert "".join(LETTERS[found[third].label] for third in THIRDS) == said


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("they cross once, near the middle", "o"),
        ("they never cross", "n"),
        ("the two series do not intersect", "n"),
        ("there is a single intersection", "o"),
        ("the lines cross each other 4 times", "s"),
        ("there are multiple crossings", "s"),
        ("they intersect twice", "s"),
        ("the series move together", "."),
        ("they cross once or several times", "."),
        ("the two series cross once", "o"),
        ("the two cross three times", "s"),
        ("both two lines cross 0 times", "n"),
        ("they cross each other 12 times", "s"),
        ("the number of crossings is 0", "n"),
        ("number of crossings: 3", "s"),
        ("one", "o"),
        ("7", "s"),
        ("twice", "s"),
        ("they cross at a single point", "o"),
        ("there are two points of intersection", "s"),
        ("there is one clear crossing", "o"),
        ("there is not a single crossing", "n"),
        ("they never once cross", "n"),
        ("they do not cross or touch", "n"),
        ("they cross again and again", "s"),
        ("they cross a few times", "s"),
        ("they cross about five times", "s"),
        ("they cross more than once", "s"),
        ("they cross at least twice", "s"),
        ("the two series cross", "."),
        ("they cross at least once", "."),
        ("they cross once or twice", "."),
        ("there is no more than one crossing", "."),
        ("they almost cross once", "."),
        ("there are fewer than two crossings", "."),
        ("there are one to two crossings", "."),
        ("they cross about once", "."),
        ("they do not cross only once", "."),
        ("there isn't just one crossing", "."),
        ("they do not always cross", "."),
        ("one series crosses the other", "."),
        ("there are few crossings", "."),
        ("they may cross once", "."),
        ("they do not cross very often", "."),
        ("the first crossing is seen", "."),
        ("the first series crosses its mean twice", "."),
    ],
)
def test_the_crossings_of_a_third_are_counted_as_they_are_said(text: str, label: str) -> None:
    assert crossings(f"In the middle third, {text}.") == f".{label}."


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("the first series lies above the second", "a"),
        ("the second series stays below the first", "a"),
        ("the first is lower than the second throughout", "b"),
        ("the second series is always above the first one", "b"),
        ("they alternate", "x"),
        ("the two overlap for most of the time", "x"),
        ("both rise", "."),
        ("the first series is above most of the time", "a"),
        ("relative to the second series, the first is below", "b"),
        ("compared with the first, it is above", "b"),
        ("the first is above and the second below", "a"),
        ("the first series has higher values than the second", "a"),
        ("the second is mostly lower than the other", "a"),
        ("the first lies above the second by about 20", "a"),
        ("the first never falls below the second", "a"),
        ("they intertwine, with neither above for long", "x"),
        ("they take turns being above", "x"),
        ("the first is sometimes above and sometimes below", "x"),
        ("the first series alternates above and below the second", "x"),
        ("the first is not above the second", "."),
        ("the first is never above the second", "."),
        ("the first isn't below the second", "."),
        ("the second is rarely above the first", "."),
        ("the first rises over time, the second stays flat", "."),
        ("the second series is above 50", "."),
        ("the first is below only briefly", "."),
        ("the first is above the second only at its peak", "."),
        ("the first rises above the second", "."),
        ("the first trends lower", "."),
        ("the first crosses the second from below", "."),
        ("the first has a higher maximum than the second", "."),
        ("the first is above the second's minimum", "."),
        ("the noise of the first is higher than that of the second", "."),
        ("the first and the second are higher", "."),
        ("the first is above the second between 20 and 40", "."),
        ("the first may be above the second", "."),
        ("the first is above or below the second", "."),
        ("they do not alternate", "."),
        ("alternatively, both rise", "."),
    ],
)
def test_the_series_that_is_named_before_the_word_is_the_one_that_lies_there(text: str, label: str) -> None:
    assert position(f"In the middle third, {text}.") == f".{label}."


@pytest.mark.parametrize(
    ("text", "counts", "places"),
    [
        ("The two series never cross.", "nnn", "..."),
        ("The first stays above throughout.", "...", "aaa"),
        ("The first is above the second.", "...", "aaa"),
        ("The first is above the second most of the time.", "...", "..."),
        ("They alternate.", "...", "..."),
        ("They alternate in every third.", "...", "xxx"),
        ("They cross once.", "...", "..."),
        ("They cross several times throughout.", "...", "..."),
        ("They cross once in each third.", "ooo", "..."),
        ("They never cross, except in the middle.", "n.n", "..."),
        ("Except for one crossing at the end, they never cross.", "nno", "..."),
        ("They cross once in the middle, and nowhere else.", "non", "..."),
        ("They only cross in the middle.", "n.n", "..."),
        ("Their only crossing is in the middle.", "non", "..."),
        ("The only crossing in the first third is near its end.", "o..", "..."),
        ("Only one crossing in the first third.", "o..", "..."),
        ("They cross twice at the start and never again.", "snn", "..."),
        ("They never cross. At the end they cross once.", "..o", "..."),
        ("The first is above. At the end it is below.", "...", "..b"),
        ("The first is above in the middle; elsewhere it is below.", "...", "bab"),
        ("Elsewhere they never cross.", "...", "..."),
        ("The first is above at the beginning, then below.", "...", "a.."),
        ("In the first third the first is above. They never cross.", "...", "a.."),
        ("The first is above in one of the thirds.", "...", "..."),
        ("None, one and several in the first, middle and last third.", "nos", "..."),
        ("Crossings: none, one, several.", "nos", "..."),
    ],
)
def test_a_statement_on_the_whole_holds_for_each_third_only_where_it_must(
    text: str, counts: str, places: str
) -> None:
    assert (crossings(text), position(text)) == (counts, places)


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("Until the last third they never cross.", "..."),
        ("They cross once between the first and the middle third.", "..."),
        ("They cross once before the last third.", "..."),
        ("They cross twice in the first half.", "..."),
        ("They cross twice near point 60.", "..."),
        ("They cross once at the end of the first third.", "..."),
        ("They cross more often in the middle than at the end.", "..."),
        ("They cross once in the first or the last third.", "..."),
        ("They do not cross in the first or the last third.", "n.n"),
        ("They cross neither at the beginning nor at the end.", "n.n"),
        ("They cross twice in the first two thirds.", "ss."),
        ("They cross once in the first and last third.", "o.o"),
    ],
)
def test_a_place_that_is_no_third_states_nothing(text: str, counts: str) -> None:
    assert crossings(text) == counts


def test_a_reply_may_hold_an_object_of_thirds() -> None:
    reply = {
        "intersections": {"beginning": 0, "middle": "one", "end": 4},
        "position": {"first_third": "above", "middle_third": "alternating", "last_third": "below"},
    }
    labels = PAIR.parse(json.dumps(reply)).labels
    assert [labels[f"intersections {third}"] for third in THIRDS] == ["none", "one", "several"]
    assert [labels[f"position {third}"] for third in THIRDS] == ["above", "alternating", "below"]


# ---- Sentences put together from clauses

PLACES = (
    ("in the first third", "at the beginning", "at the start", "during the opening third", "near the start"),
    ("in the middle third", "in the middle", "during the second third", "around the middle"),
    ("in the last third", "at the end", "towards the end", "in the final third", "near the very end"),
)
CLAUSES = {
    "n": ("they never cross {}", "{}, they do not cross", "there are no crossings {}", "{} there is no crossing"),
    "o": ("they cross once {}", "{}, there is a single intersection", "one crossing lies {}", "they meet once {}"),
    "s": ("they cross several times {}", "{}, there are many crossings", "they intersect 5 times {}"),
    "a": (
        "the first series is above the second {}",
        "{}, the first is higher",
        "{} the second lies below the first",
    ),
    "b": ("the first is below the second {}", "{}, the second line is on top", "the first is usually lower {}"),
    "x": ("they alternate {}", "{}, neither is above for long", "{} the two series overlap"),
}
JOINTS = (". ", "; ", ", and ", ", ", " and ", ", but ", ", while ")


@settings(max_examples=300)
@given(data=st.data(), classes=st.sampled_from(["nos", "abx"]))
def test_clauses_on_the_thirds_are_read_in_any_order_and_however_they_are_joined(
    data: st.DataObject, classes: str
) -> None:
    thirds = data.draw(st.permutations(range(3)))[: data.draw(st.integers(1, 3))]
    stated = ["."] * 3
    text = ""
    for third in thirds:
        stated[third] = data.draw(st.sampled_from(classes))
        clause = data.draw(st.sampled_from(CLAUSES[stated[third]]))
        joint = data.draw(st.sampled_from(JOINTS)) if text else ""
        text += joint + clause.format(data.draw(st.sampled_from(PLACES[third])))
    assert (crossings if classes == "nos" else position)(text) == "".join(stated), text

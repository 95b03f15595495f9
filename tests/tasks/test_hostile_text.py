"""Any text at all is read as labels, without an error and within seconds."""

import importlib
import json
import pkgutil
import re
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tsd.tasks
from tsd.tasks import PAIR, RICH, SINGLE, Task
from tsd.tasks.language.words import LONGEST_TEXT, MOST_CHARACTERS, MOST_WORDS, normal

fragments = st.sampled_from(
    [
        *(
            "trend",
            "noise",
            "maximum",
            "minimum",
            "both",
            "respectively",
            "not",
            "no",
            "and",
            "or",
            "of the",
            "high",
        ),
        *(
            "overall",
            "rises",
            "falls",
            "flat",
            "low",
            "end",
            "middle",
            "start",
            "{",
            "}",
            '"',
            ":",
            ",",
            ". ",
            "\n",
        ),
    ]
)


@given(st.one_of(st.text(), st.lists(fragments, max_size=40).map(" ".join)))
def test_any_text_is_read_without_an_error_and_a_reason_is_given_unless_all_is_stated(text: str) -> None:
    parsed = SINGLE.parse(text)
    assert list(parsed.labels) == list(SINGLE.classes)
    assert all(label is None or label in SINGLE.classes[facet] for facet, label in parsed.labels.items())
    assert (parsed.reason is None) == (None not in parsed.labels.values())
    assert all(sentence.strip() for sentence in SINGLE.sentences(text))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | fragments,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | fragments, inner, max_size=3)
    ),
)


@given(st.dictionaries(st.sampled_from(["trend", "noise", "extrema", "maximum"]), json_values))
def test_any_json_value_under_a_key_is_read_without_an_error(reply: dict[str, object]) -> None:
    parsed = SINGLE.parse(json.dumps(reply))
    assert (parsed.reason is None) == (None not in parsed.labels.values())
    assert isinstance(SINGLE.sentences(json.dumps(reply)), list)


@pytest.mark.parametrize(
    "text",
    [
        '{"trend": ' * 50_000,
        '{"trend": ' + "[" * 900 + '"up"' + "]" * 900 + "}",
        '{"trend": ' + "9" * 5_000 + "}",
        "{" * 50_000,
        '"' * 50_000,
        "not " * 12_000,
        "\\" * 50_000,
        "no clear " * 6_000,
        "maximum and " * 4_000,
        "noise is " * 6_000,
        "increasing or " * 4_000,
        " " * 50_000,
        "end of " * 7_000,
    ],
    ids=lambda text: text[:12],
)
def test_hostile_text_of_50_kilobytes_is_read_within_seconds(text: str) -> None:
    started = time.perf_counter()
    assert set(SINGLE.parse(text).labels) == set(SINGLE.classes)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    "text",
    [
        "none, ",
        "one and ",
        "in the first third ",
        "the first and ",
        "never again ",
        "above the second ",
        "a ",
        "the ",
    ],
)
def test_hostile_text_on_two_series_is_read_within_seconds(text: str) -> None:
    said = text * (50_000 // len(text))
    started = time.perf_counter()
    assert set(PAIR.parse(json.dumps({"intersections": said, "position": said})).labels) == set(PAIR.classes)
    assert time.perf_counter() - started < 5


SEEDS = {  # texts of which readers of the past took minutes, or hours
    "digits": "9",
    "digits with blanks": "1 ",
    "assignments": "x=1 ",
    "articles": "no a an any the ",
    "denied": "no clearly ",
    "denied adverbs": "not really especially clearly ",
    "signs": "no signs of ",
    "denied lists": "not weak or ",
    "neither": "neither strong nor ",
    "free of": "free of ",
    "growing": "gets slowly ",
    "persisting": "persists for ",
    "returning": "does not return ",
    "levels": "small but high or low ",
    "noise": "noise of the level of the ",
    "ratio": "signal to noise ",
    "ends": "ends much lower than ",
    "from to": "goes from 1 to ",
    "starts": "starts at 5 and x ",
    "lengths": "at 1 out of 128 ",
    "maxima": "max, ",
    "thirds": "in the first third, ",
    "crossings": "they cross each other once, ",
    "in turn": "1, 2 and 3 ",
    "except": "never again except in the ",
    "structure": "no spike nor dip nor level shift nor cycle ",
    "dots": ". ",
    "commas": ",",
    "dashes": "-",
    "quotes": '"a": ',
    "escapes": '\\"',
    "minus": "\u2212",
    "blanks": "\u00a0",
    "accents": "e\u0301",
    "sentences": "they cross in third 1. No clearly strong season, or not really: max at 5 of 128. ",
}
LONG = 100_000  # characters
SECONDS = 3  # of processor time, for the longest of all texts


def forms(task: Task, text: str) -> tuple[str, str]:
    """A text as prose, and as JSON with the text on each topic."""
    return text, json.dumps(dict.fromkeys(task.topics, text))


def sentences_of(seed: str) -> str:
    """As much of a seed as is read: sentences of almost the most words and characters, in the longest text."""
    words = (seed * (LONG // len(seed) // 20)).split()
    sentence = " ".join(words[: MOST_WORDS - 1])[: MOST_CHARACTERS - 10] + ". "
    return sentence * (LONGEST_TEXT // len(sentence) - 1)


def seconds_to_read(task: Task, text: str) -> float:
    started = time.process_time()
    assert set(task.parse(text).labels) == set(task.names)
    assert isinstance(task.numbers_in(text), dict)
    assert isinstance(task.sentences(text), list)
    return time.process_time() - started


@pytest.mark.parametrize("task", [SINGLE, RICH, PAIR], ids=lambda task: task.name)
@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_hostile_text_of_100_kilobytes_is_read_within_seconds_by_each_task_as_prose_and_as_json(
    task: Task, seed: str
) -> None:
    for text in (seed * (LONG // len(seed)), "no " + seed * (LONG // len(seed)), sentences_of(seed)):
        for form in forms(task, text):
            assert seconds_to_read(task, form) < SECONDS


@pytest.mark.parametrize("adverb", ["really", "especially", "clearly", "slowly"])
def test_many_adverbs_between_a_negation_and_a_class_take_no_time(adverb: str) -> None:
    for topic in RICH.topics:
        said = f"It is not {adverb} {' '.join([adverb] * (MOST_WORDS - 10))} clear."
        assert seconds_to_read(RICH, json.dumps({topic: said})) < SECONDS


def patterns() -> Iterator[tuple[str, re.Pattern[str]]]:
    """Every compiled pattern of the readers, with the module and the name that hold it."""
    for module in pkgutil.walk_packages(tsd.tasks.__path__, "tsd.tasks."):
        for name, held in vars(importlib.import_module(module.name)).items():
            yield from ((f"{module.name}.{name}", pattern) for pattern in _patterns(held))


def _patterns(held: object, depth: int = 0) -> Iterator[re.Pattern[str]]:
    if isinstance(held, re.Pattern):
        yield held
    elif isinstance(held, dict) and depth < 4:
        yield from (pattern for value in held.values() for pattern in _patterns(value, depth + 1))
    elif isinstance(held, tuple | list) and depth < 4:
        yield from (pattern for value in held for pattern in _patterns(value, depth + 1))
    elif hasattr(held, "_pattern"):
        yield from _patterns(held._pattern, depth)


def test_every_pattern_passes_the_longest_sentence_of_any_of_its_own_words_within_a_second() -> None:
    seen = {pattern.pattern: (name, pattern) for name, pattern in patterns()}
    assert len(seen) > 150
    for name, pattern in seen.values():
        words = [*sorted(set(re.findall(r"[a-z]{2,}", re.sub(r"\\[a-zA-Z]", " ", pattern.pattern)))), "clearly"]
        for word in words:
            for lead, unit in (("", f"{word} "), ("no ", f"{word} "), ("", f"not {word} "), ("", f"{word}, ")):
                text = lead + unit * (MOST_CHARACTERS // len(unit))
                started = time.process_time()
                pattern.sub(" ", text)
                assert time.process_time() - started < 1, (name, text[:40])


def test_a_sentence_that_is_too_long_states_nothing_and_the_others_are_read() -> None:
    long = "It falls " + "and falls " * MOST_WORDS + "."
    assert SINGLE.parse(f"It rises. {long}").labels["trend"] == "increasing"
    assert SINGLE.parse(json.dumps({"trend": f"It rises. {long}"})).labels["trend"] == "increasing"
    assert SINGLE.parse(long).labels["trend"] is None
    assert normal("x" * (MOST_CHARACTERS + 1)) == ""
    assert normal("It rises. " * LONGEST_TEXT) == ""

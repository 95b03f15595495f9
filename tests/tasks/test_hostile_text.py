"""Any text at all is read as labels, without an error and within seconds."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsd.tasks import PAIR, SINGLE

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

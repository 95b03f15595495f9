"""Replies as labels and back: the round trip, the forms of a reply, and the reading rules one by one."""

import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsd.errors import DataError
from tsd.tasks import SINGLE, variants

UP, DOWN, FLAT = SINGLE.classes["trend"]
START, MID, END = SINGLE.classes["maximum"]
Choice = tuple[int, int, int]

every_label = st.fixed_dictionaries({facet: st.sampled_from(labels) for facet, labels in SINGLE.classes.items()})
every_choice = st.tuples(*(st.integers(0, count - 1) for count in SINGLE.phrasing_counts))


def trend_of(sentence: str) -> str | None:
    return SINGLE.parse(json.dumps({"trend": sentence})).labels["trend"]


def noise_of(sentence: str) -> str | None:
    return SINGLE.parse(json.dumps({"noise": sentence})).labels["noise"]


def extrema_of(sentence: str) -> tuple[str | None, str | None]:
    labels = SINGLE.parse(json.dumps({"extrema": sentence})).labels
    return labels["maximum"], labels["minimum"]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


# ---- Writing


def test_every_phrasing_of_every_label_reads_back_as_exactly_its_labels() -> None:
    for values in itertools.product(*SINGLE.classes.values()):
        labels = dict(zip(SINGLE.classes, values, strict=True))
        for choice in itertools.product(*map(range, SINGLE.phrasing_counts)):
            parsed = SINGLE.parse(SINGLE.reply(labels, choice))
            assert (parsed.labels, parsed.reason) == (labels, None), (labels, choice)


@given(every_label, every_choice)
def test_a_reply_reads_the_same_as_prose_as_it_does_as_json(labels: dict[str, str], choice: Choice) -> None:
    reply = SINGLE.reply(labels, choice)
    assert SINGLE.parse(" ".join(json.loads(reply).values())).labels == labels


def test_every_label_has_as_many_phrasings_as_the_counts_say_and_none_is_repeated() -> None:
    for task in variants():
        for facet in task.facets:
            assert len(set(facet.phrasings)) == task.phrasing_counts[task.topics.index(facet.topic)] >= 2


def test_two_labels_of_a_facet_differ_in_the_labels_own_word_alone() -> None:
    for choice in itertools.product(*map(range, SINGLE.phrasing_counts)):
        for facet, classes in SINGLE.classes.items():
            base = {name: others[0] for name, others in SINGLE.classes.items()}
            said = [words(SINGLE.reply(base | {facet: label}, choice)) for label in classes]
            assert len({len(one) for one in said}) == 1
            differing = [set(position) for position in zip(*said, strict=True) if len(set(position)) > 1]
            assert differing == [set(classes)]


def test_what_students_learn_to_write_is_short_and_of_few_words() -> None:
    replies = [
        SINGLE.reply({"trend": trend, "noise": noise, "maximum": place, "minimum": place}, (a % 4, a % 4, a % 4))
        for (trend, noise, place) in itertools.product(
            SINGLE.classes["trend"], SINGLE.classes["noise"], SINGLE.classes["maximum"]
        )
        for a in range(20)
    ]
    said = [sentence for reply in replies for sentence in SINGLE.sentences(reply)]
    assert len({word for sentence in said for word in words(sentence)}) <= 80
    assert max(len(words(sentence)) for sentence in said) <= 12
    assert sum(len(words(sentence)) for sentence in said) / len(said) <= 8


def test_a_reply_cannot_be_written_from_a_label_that_is_not_stated() -> None:
    with pytest.raises(DataError, match="noise is None, expected one of low, medium, high"):
        SINGLE.reply({"trend": UP, "noise": None, "maximum": START, "minimum": END}, (0, 0, 0))


def test_the_student_prompt_is_the_values_and_ends_with_the_last_of_them() -> None:
    assert SINGLE.student_prompt([12, 0, 99]) == "Describe the series: 12 0 99"
    assert SINGLE.student_prompt(np.array([7, 8], dtype=np.uint8)) == "Describe the series: 7 8"


def test_the_teacher_prompt_names_the_length_each_key_and_every_label() -> None:
    prompt = SINGLE.teacher_prompt(128)
    assert "128 integers" in prompt
    for word in ('"trend"', '"noise"', '"extrema"', *itertools.chain(*SINGLE.classes.values())):
        assert word in prompt


# ---- The form of a reply


REPLY = {
    "trend": "The series rises.",
    "noise": "Noise is low.",
    "extrema": "Maximum at the end, minimum at the start.",
}
STATED = {"trend": UP, "noise": "low", "maximum": END, "minimum": START}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(REPLY),
        json.dumps(REPLY, indent=2),
        f"```json\n{json.dumps(REPLY)}\n```",
        f"Here is my reading {{of the plot}}:\n{json.dumps(REPLY)}\nNoise is high in other plots.",
        json.dumps([REPLY]),
        json.dumps({"answer": REPLY}),
        json.dumps({key.title(): value for key, value in REPLY.items()}),
        json.dumps(REPLY | {"extrema": {"maximum": "end", "minimum": "beginning"}}),
        json.dumps(REPLY | {"extrema": {"global_maximum": {"position": "the end", "value": 99}, "min": "start"}}),
        json.dumps(REPLY | {"extrema": ["maximum: end", "minimum: start"]}),
        '{"trend": "increasing", "noise_intensity": "low", "maximum": "end", "minimum": "beginning"}',
        '{"trend": "The series\nrises.", "noise": "Noise\tis low.", "extrema": "max: end\nmin: start"}',
        '{"trend": "It rises.", "noise": "low", "extrema": "max at the end, min at the start",}',
        '{"trend": "It rises.", "noise": "low", "extrema": "max at the end, min at the start", "x": "It f',
        "The series rises. Noise is low. The maximum is at the end. The minimum is at the start.",
        "**Trend:** increasing\n**Noise:** low\n**Extrema:**\n- Maximum: end\n- Minimum: beginning",
        "Upward trend, low noise, maximum at the end and minimum at the start.",
        "It shows an increasing trend with low noise; its peak is at the end, its lowest point at the start",
        "Overall, it climbs, while the noise stays low. It starts at its minimum and ends at its maximum.",
    ],
)
def test_the_same_reply_is_read_from_any_form(text: str) -> None:
    parsed = SINGLE.parse(text)
    assert (parsed.labels, parsed.reason) == (STATED, None)


def test_a_missing_key_leaves_its_facets_not_mentioned_and_the_others_stated() -> None:
    parsed = SINGLE.parse(json.dumps({"trend": "flat", "noise": "high"}))
    assert parsed.labels == {"trend": FLAT, "noise": "high", "maximum": None, "minimum": None}
    assert parsed.reason == "maximum: not mentioned; minimum: not mentioned"


def test_a_reply_cut_off_amid_a_sentence_says_nothing_on_that_topic() -> None:
    parsed = SINGLE.parse('{"trend": "It falls.", "noise": "medium to')
    assert parsed.labels["trend"] == DOWN
    assert parsed.labels["noise"] is None
    assert parsed.reason is not None
    assert parsed.reason.startswith("not a whole JSON object; noise: not mention")


@pytest.mark.parametrize("text", ["", "I cannot see a plot.", "[1, 2]", "null", "{}", '{"answer": 42}'])
def test_text_without_a_description_states_nothing_and_says_so(text: str) -> None:
    parsed = SINGLE.parse(text)
    assert set(parsed.labels.values()) == {None}
    assert parsed.reason == "not a JSON object; " + "; ".join(
        f"{facet}: not mentioned" for facet in SINGLE.classes
    )


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ({"noise": "It is medium to high."}, "noise: 'medium to high' names two levels"),
        ({"noise": "There is some noise."}, "noise: no level is named"),
        (
            {"trend": "It rises, then falls."},
            "trend: increasing and decreasing phases, neither said of the whole",
        ),
        ({"trend": "It fluctuates."}, "trend: no direction is named"),
        ({"trend": "flat or increasing"}, "trend: 'flat or increasing' is no one direction"),
        ({"maximum": "between the start and the middle"}, "maximum: beginning and middle are named"),
        ({"minimum": "unclear"}, "minimum: no place is named"),
    ],
)
def test_the_reason_says_which_facet_is_not_stated_and_why(reply: dict[str, str], reason: str) -> None:
    full = {"trend": "flat", "noise": "low", "maximum": "end", "minimum": "end"} | reply
    assert SINGLE.parse(json.dumps(full)).reason == reason


def test_a_reply_becomes_plain_sentences_in_the_order_of_its_topics() -> None:
    reply = {"noise": "Noise is low", "trend": "It rises.\nSlowly.", "extrema": {"maximum": "end"}}
    assert SINGLE.sentences(json.dumps(reply)) == ["It rises.", "Slowly.", "Noise is low.", "maximum: end."]
    assert SINGLE.sentences("It rises.  Noise is low!\n- no more") == ["It rises.", "Noise is low!", "- no more."]
    assert SINGLE.sentences("  ") == []


# ---- The rules, each by its sentences


@pytest.mark.parametrize(
    ("sentence", "label"),
    [
        ("increasing", UP),
        ("Upward", UP),
        ("downtrend", DOWN),
        ("The series is rising steadily.", UP),
        ("The values climb from 3 to 97.", UP),
        ("There is steady growth over the period.", UP),
        ("A constant decline from start to end.", DOWN),
        ("Values drop sharply and keep falling.", DOWN),
        ("The series has a negative slope.", DOWN),
        ("Values fall within 40 and 60.", None),
        ("The series is stationary.", FLAT),
        ("It stays level around 50.", FLAT),
        ("There isn't a clear trend.", FLAT),
        ("No clear overall increasing or decreasing trend, with significant fluctuations.", FLAT),
        ("The series neither rises nor falls.", FLAT),
        ("It does not increase or decrease significantly.", FLAT),
        ("There is no clear trend, but it rises towards the end.", FLAT),
        ("No clear trend at first, then an increase.", UP),
        ("The series is not increasing.", None),
        ("It isn\u2019t stable.", None),
        ("Not flat but increasing.", UP),
        ("An increasing trend without any decrease.", UP),
        ("It increases initially, then stabilizes with fluctuations.", UP),
        ("Flat at first, then falling.", DOWN),
        ("Increasing at first, then decreasing.", None),
        ("It decreases and then recovers.", None),
        ("Rising until the middle, falling afterwards.", None),
        ("A generally increasing trend, followed by a slight decrease.", UP),
        ("It initially decreases sharply, then fluctuates with a general upward trend.", UP),
        ("Increasing overall, then decreasing overall.", None),
        ("Overall, the series rises, with a slight decrease at the end.", UP),
        ("Overall, the series first rises, then falls.", None),
        ("An increasing trend overall, despite some drops.", UP),
        ("Despite an increase at the start, the series declines.", DOWN),
        ("A decreasing trend with occasional rises and dips.", DOWN),
        ("The series is flat with increasing variability.", FLAT),
        ("It grows at a decreasing rate.", UP),
        ("It fluctuates with constant oscillations.", None),
        ("Slightly increasing or flat.", None),
        ("It rises before a reversal.", None),
        ("The series is non-stationary.", None),
        ("Far from flat.", None),
    ],
)
def test_a_trend_is_the_direction_said_of_the_whole_series(sentence: str, label: str | None) -> None:
    assert trend_of(sentence) == label


@pytest.mark.parametrize(
    ("sentence", "label"),
    [
        ("low", "low"),
        ("Moderate.", "medium"),
        ("Quite strong.", "high"),
        ("The noise intensity is relatively low.", "low"),
        ("The noise intensity is relatively medium, with noticeable fluctuations.", "medium"),
        ("Noise is high, with small fluctuations.", "high"),
        ("The noise is low, with significant, high-frequency variations.", "low"),
        ("There is high-frequency noise of low intensity.", "low"),
        ("Medium, with fluctuations being large at times.", "medium"),
        ("The noise is low around a strong upward trend.", "low"),
        ("The noise is low compared to the high values.", "low"),
        ("A small amount of noise is visible.", "low"),
        ("There is little noise.", "low"),
        ("There is no visible noise.", "low"),
        ("The noise level appears to be considerable.", "high"),
        ("The series is very noisy.", "high"),
        ("The series is moderately noisy.", "medium"),
        ("The line is rather smooth.", "low"),
        ("The series shows high variability.", "high"),
        ("Medium, slightly higher towards the end.", "medium"),
        ("Neither low nor high but medium.", "medium"),
        ("The noise is not high.", None),
        ("The series is not very noisy.", None),
        ("The noise is medium to high, showing significant variability.", None),
        ("Low-to-moderate noise.", None),
        ("Medium, as there are both high and low fluctuations.", "medium"),
        ("Smooth with high jumps.", "low"),
        ("There is low to moderate variability.", None),
        ("The noise is anything but low.", None),
        ("The noise is low at first, but high towards the end.", None),
        ("The noise is noticeable, with small, frequent fluctuations.", None),
        ("The series is noisy with significant fluctuations.", None),
    ],
)
def test_noise_is_the_one_level_said_of_the_noise(sentence: str, label: str | None) -> None:
    assert noise_of(sentence) == label


@pytest.mark.parametrize(
    ("sentence", "maximum", "minimum"),
    [
        ("The global maximum is at the beginning and the global minimum at the end.", START, END),
        ("The minimum at the beginning, the maximum at the end", END, START),
        ("Max: end / min: beginning", END, START),
        ("Both the maximum and the minimum are in the middle.", MID, MID),
        ("The maximum and minimum are both near the start of the series.", START, START),
        ("The maximum and minimum are at the end and the beginning, respectively.", END, START),
        ("The series peaks around the center and reaches its lowest point towards the end.", MID, END),
        ("At the beginning lies the maximum, and at the end the minimum.", START, END),
        ("In the middle, the maximum is reached; the minimum is at the outset.", MID, START),
        ("The series starts low, reaches its maximum in the middle and its minimum at the end.", MID, END),
        ("It starts at its highest value and ends near its lowest.", START, END),
        (
            "The maximum is found at the end of the time series, while the trough is in its middle part.",
            END,
            MID,
        ),
        ("The maximum, which is located at the end, follows the minimum in the first quarter.", END, START),
        ("The minimum is around the beginning part of the time series; the peak is late.", END, START),
        ("The global maximum is at the end, with a local peak in the middle. Minimum: start.", END, START),
        ("The minimum is in the middle, just before the peak. The maximum is at the end.", END, MID),
        ("The maximum lies between the beginning and the middle, the minimum at the end.", None, END),
        ("The maximum is towards the end of the middle part, the minimum at the start.", None, START),
        ("The maximum is at the end of the rise, the minimum at the beginning of the series.", None, START),
        ("The maximum is at the end of the first half; the minimum is in the last third.", None, None),
        (
            "The maximum is in the second half, towards the end, the minimum shortly after the middle.",
            END,
            MID,
        ),
        ("The maximum is well after the middle, the minimum in the middle or at the end.", None, None),
        ("The maximum is not at the end but in the middle; the minimum isn't at the start.", MID, None),
        ("The maximum is 99 and the minimum is at the end.", None, END),
        ("The maximum is 99. It is at the end. The minimum is 0.", END, None),
        ("Located at the end.", None, None),
    ],
)
def test_a_place_belongs_to_the_extremum_it_is_said_of(
    sentence: str, maximum: str | None, minimum: str | None
) -> None:
    assert extrema_of(sentence) == (maximum, minimum)


@pytest.mark.parametrize("facet", SINGLE.classes)
def test_a_bare_label_is_a_statement(facet: str) -> None:
    for label in SINGLE.classes[facet]:
        assert SINGLE.parse(json.dumps({facet: label})).labels[facet] == label


@settings(max_examples=50)
@given(every_label, every_choice, st.text(max_size=30))
def test_a_key_that_is_not_asked_for_changes_nothing(labels: dict[str, str], choice: Choice, note: str) -> None:
    reply = json.loads(SINGLE.reply(labels, choice))
    assert SINGLE.parse(json.dumps({"note": note, **reply})).labels == labels

"""The task `rich`: what each facet measures, that every wording reads back, and free sentences."""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from tsd.errors import InputError
from tsd.evaluation.scoring import answers, score
from tsd.series import robust
from tsd.storage.schemas import CLOSE
from tsd.tasks import PAPER, RICH, SINGLE, Definitions, rich, variants
from tsd.tasks.language import (
    normal,
    read_outlier,
    read_reversion,
    read_season,
    read_shift,
    read_volatility,
)
from tsd.tasks.usable import require_measurable, require_usable

OWN = RICH.facets[len(SINGLE.facets) :]
NUMBERS = {
    **{"start": "20", "end": "71", "change": "3", "mean": "50", "noise": "5.2", "maximum": "93", "minimum": "4"},
    **{"maximum_at": "40", "minimum_at": "90", "length": "128"},
    **{"cycles": "4.3", "shift_at": "64", "shift_size": "23", "outlier_at": "7", "outlier_size": "41"},
}
TIME = np.arange(128)


def wordings() -> Iterator[tuple[str, str, str, str]]:
    """Facet, topic, class and text of every wording of the five facets, with its slots."""
    for facet in OWN:
        for name, found in RICH.wordings[facet.name].items():
            for template in found.templates:
                for number in range(template.count):
                    yield facet.name, facet.topic, name, template.text(number)


def labels_of(values: npt.NDArray[np.floating]) -> dict[str, str]:
    """The labels of one series."""
    series = np.clip(np.rint(values), 0, 99).astype(np.uint8)[None]
    (labels,) = RICH.truth(RICH.measure(series), series.shape[1]).to_pylist()
    return dict(labels)


# ---- Measured


def noisy(size: float, seed: int = 0) -> npt.NDArray[np.float64]:
    return 50 + size * np.random.default_rng(seed).standard_normal(128)


def test_the_facets_of_the_task_single_come_first_and_are_the_same() -> None:
    values = np.clip(np.array([noisy(5, seed) + 0.2 * TIME for seed in range(50)]), 0, 99).astype(np.uint8)
    mine, single = RICH.truth(RICH.measure(values), 128), SINGLE.truth(SINGLE.measure(values), 128)
    assert RICH.names[:4] == SINGLE.names
    assert [{name: row[name] for name in SINGLE.names} for row in mine.to_pylist()] == single.to_pylist()


def test_structure_of_each_kind_is_labelled_and_noise_alone_has_none() -> None:
    plain = {"season": "none", "shift": "none", "outlier": "none", "volatility": "steady"}
    found = labels_of(noisy(4))
    assert {name: found[name] for name in plain} == plain
    wave = 20 * np.cos(2 * np.pi * 6 * TIME / 128)
    assert labels_of(noisy(2) + wave)["season"] == "strong"
    assert labels_of(noisy(9.5) + 0.5 * wave)["season"] == "weak"
    step = 30 * (TIME >= 70)
    assert labels_of(noisy(3) + step - 15)["shift"] == "up"
    assert labels_of(noisy(3) - step + 15)["shift"] == "down"
    spike = 40 * (TIME == 33)
    assert labels_of(noisy(3) + spike)["outlier"] == "spike"
    assert labels_of(noisy(3) - spike)["outlier"] == "dip"
    loud = 1 + 3 * (TIME >= 64)
    assert labels_of(50 + (noisy(3) - 50) * loud)["volatility"] == "growing"
    assert labels_of(50 + (noisy(3) - 50) * loud[::-1])["volatility"] == "shrinking"
    assert labels_of(50 + (noisy(3) - 50) * (1 + 4 * (abs(TIME - 60) < 14)))["volatility"] == "steady"
    assert labels_of(noisy(4))["reversion"] == "fast"
    slow = np.convolve(noisy(4, 1) - 50, 0.8 ** np.arange(40))[:128]
    assert labels_of(50 + slow)["reversion"] == "slow"
    assert labels_of(30 + slow + step)["reversion"] == "slow"


def test_numbers_are_those_of_the_structure() -> None:
    values = noisy(2) - 10 + 30 * (TIME >= 70) + 14 * np.cos(2 * np.pi * 6 * TIME / 128) - 45 * (TIME == 99)
    series = np.clip(np.rint(values), 0, 99).astype(np.uint8)[None]
    measures = RICH.measure(series)
    true = {number.name: float(number.true(measures, 128)[0]) for number in RICH.numbers}
    assert true["cycles"] == pytest.approx(6, abs=0.2)
    assert (true["shift_at"], true["outlier_at"]) == (71, 100)
    assert true["shift_size"] == pytest.approx(30, abs=3)
    assert true["outlier_size"] == pytest.approx(45, abs=6)


def test_the_codes_of_the_robust_truth_are_the_indices_of_the_classes() -> None:
    season, volatility, reversion = OWN[0], OWN[3], OWN[4]
    codes = robust.season.NONE, robust.season.WEAK, robust.season.STRONG
    assert [season.classes[code] for code in codes] == ["none", "weak", "strong"]
    named = {name: getattr(robust.volatility, name.upper()) for name in volatility.classes}
    assert [reversion.classes[code] for code in (robust.reversion.FAST, robust.reversion.SLOW)] == ["fast", "slow"]
    assert {name: volatility.classes[code] for name, code in named.items()} == {name: name for name in named}


def test_the_task_can_be_used_and_has_no_variant_by_the_paper_s_truth() -> None:
    require_usable(RICH)
    require_measurable(RICH, robust.SHORTEST)
    assert [task.version for task in variants() if task.name == "rich"] == [
        "rich-3-robust-quarters",
        "rich-3-robust-thirds",
    ]
    with pytest.raises(InputError, match="the task rich has no paper truth"):
        rich(PAPER)


# ---- Said and read


def test_every_wording_reads_back_as_its_class_and_its_numbers() -> None:
    count = 0
    for facet, topic, name, text in wordings():
        said = re.sub(r"\{(\w+)\}", lambda slot: NUMBERS[slot[1]], text)
        reply = json.dumps({topic: said})
        assert RICH.parse(reply).labels[facet] == name, said
        found = {key: value for key, value in RICH.numbers_in(reply).items() if value is not None}
        assert found == {key: float(NUMBERS[key]) for key in re.findall(r"\{(\w+)\}", text)}, said
        count += 1
    assert count > 500


def test_no_wording_is_said_twice_and_every_class_has_many() -> None:
    texts = [text for *_, text in wordings()]
    assert len(texts) == len(set(texts))
    for facet in OWN:
        for name, found in RICH.wordings[facet.name].items():
            assert len(found.templates) >= 6, (facet.name, name)


@pytest.mark.parametrize("places", ["quarters", "thirds"])
def test_whole_replies_read_back_whatever_their_labels_and_wording(places: str) -> None:
    task = rich(Definitions(places="thirds") if places == "thirds" else Definitions())
    rng = random.Random(2)
    numbers = NUMBERS | {"maximum_at": "64", "minimum_at": "64"}
    for _ in range(400):
        labels = {facet.name: rng.choice(facet.classes) for facet in task.facets}
        labels |= {"maximum": "middle", "minimum": "middle", "noise": "medium"}
        known = numbers | ({"start": "71", "end": "20"} if labels["trend"] == "decreasing" else {})
        reply = task.describe(labels, known, [rng.randrange(10**6) for _ in task.facets])
        parsed = task.parse(reply)
        assert (parsed.labels, parsed.reason) == (labels, None), reply
        stated = {name: number for name, number in task.numbers_in(reply).items() if number is not None}
        assert stated == {name: float(known[name]) for name in stated}, reply
        assert len(re.findall(r"\w+|[^\w\s]", reply)) <= task.reply_tokens


@pytest.mark.parametrize(
    ("sentence", "label"),
    [
        ("No clear seasonality.", "none"),
        ("The series doesn't show any seasonality.", "none"),
        ("There isn't a repeating pattern.", "none"),
        ("It lacks a seasonal pattern.", "none"),
        ("No season, only a strong upward trend.", "none"),
        ("No seasonality is present; the noise is strong.", "none"),
        ("Seasonality: none", "none"),
        ("It is aperiodic.", "none"),
        ("Strong periodic oscillation with 5 cycles.", "strong"),
        ("It is strongly seasonal with about 6 cycles.", "strong"),
        ("A faint cycle repeats.", "weak"),
        ("The seasonal component is not very strong, but weak.", "weak"),
        ("There is no strong seasonality.", None),
        ("Seasonality is not pronounced.", None),
        ("There is neither a weak nor a strong season.", None),
        ("There is a season.", None),  # how strong?
        ("Weak to strong seasonality.", None),
        ("Weak at first, then strong.", None),
        ("", None),
    ],
)
def test_a_season_is_read_where_its_strength_is_stated(sentence: str, label: str | None) -> None:
    assert read_season(normal(sentence)).label == label


@pytest.mark.parametrize(
    ("sentence", "label"),
    [
        ("There is no level shift.", "none"),
        ("There isn't any abrupt change in level.", "none"),
        ("It does not shift.", "none"),
        ("Neither an upward nor a downward shift.", "none"),
        ("The mean stays constant.", "none"),
        ("The level increases gradually, there is no shift.", "none"),
        ("The level shifts upward near the middle.", "up"),
        ("The level rises abruptly.", "up"),
        ("No downward shift, but one upwards.", "up"),
        ("A sudden drop in level occurs at point 40.", "down"),
        ("It falls suddenly to a lower level.", "down"),
        ("The level shift is not up but down.", "down"),
        ("No upward shift.", None),
        ("There is no large shift.", None),
        ("The level jumps up and later drops down.", None),
        ("There is a shift.", None),
        ("", None),
    ],
)
def test_a_level_shift_is_read_where_its_direction_is_stated(sentence: str, label: str | None) -> None:
    assert read_shift(normal(sentence)).label == label


@pytest.mark.parametrize(
    ("sentence", "label"),
    [
        ("There are no outliers.", "none"),
        ("No obvious outliers are visible.", "none"),
        ("No spikes or dips.", "none"),
        ("No anomalies.", "none"),
        ("No point stands out.", "none"),
        ("A single spike near the end.", "spike"),
        ("There is a spike, no dips.", "spike"),
        ("An unusually high value at point 4.", "spike"),
        ("A positive anomaly.", "spike"),
        ("A sharp dip at point 30.", "dip"),
        ("A downward outlier at 40.", "dip"),
        ("No spikes.", None),
        ("One dip and one spike.", None),
        ("It could be a spike or a dip.", None),
        ("There is an outlier.", None),
        ("", None),
    ],
)
def test_an_outlier_is_read_where_its_kind_is_stated(sentence: str, label: str | None) -> None:
    assert read_outlier(normal(sentence)).label == label


@pytest.mark.parametrize(
    ("sentence", "label"),
    [
        ("The volatility is constant.", "steady"),
        ("No change in volatility.", "steady"),
        ("The variance doesn't change.", "steady"),
        ("Neither growing nor shrinking.", "steady"),
        ("It does not grow or shrink.", "steady"),
        ("It is steady, without bursts.", "steady"),
        ("There are no bursts; the fluctuations grow.", "growing"),
        ("Volatility increases over time.", "growing"),
        ("The volatility steadily increases.", "growing"),
        ("The size of the fluctuations grows.", "growing"),
        ("It becomes more volatile.", "growing"),
        ("The fluctuations get smaller over time.", "shrinking"),
        ("The noise calms down.", "shrinking"),
        ("It is less volatile at the end.", "shrinking"),
        ("There are bursts of volatility.", None),
        ("Volatility clusters.", None),
        ("It grows in bursts.", None),
        ("The volatility is not constant.", None),
        ("The volatility does not increase.", None),
        ("No bursts.", None),
        ("Growing at first, then shrinking.", None),
        ("Steady with bursts.", None),
        ("It is unsteady.", None),
        ("The volatility is low.", None),
        ("", None),
    ],
)
def test_volatility_is_read_where_its_course_is_stated(sentence: str, label: str | None) -> None:
    assert read_volatility(normal(sentence)).label == label


@pytest.mark.parametrize(
    ("sentence", "label"),
    [
        ("Mean reversion: fast", "fast"),
        ("It quickly returns to its mean.", "fast"),
        ("Each shock is gone within one point.", "fast"),
        ("Successive values around the trend are uncorrelated.", "fast"),
        ("The deviations have no memory.", "fast"),
        ("Deviations do not persist.", "fast"),
        ("The series isn't persistent.", "fast"),
        ("It reverts to the mean immediately.", "fast"),
        ("Not slow but fast.", "fast"),
        ("It reverts slowly to the mean.", "slow"),
        ("The reversion is very sluggish.", "slow"),
        ("Deviations persist for many points.", "slow"),
        ("The series wanders around its mean.", "slow"),
        ("It is strongly autocorrelated.", "slow"),
        ("The series stays above its mean for several points at a time; the reversion is slow.", "slow"),
        ("The reversion is gradual.", "slow"),
        ("It does not return quickly.", None),
        ("Reversion is not slow.", None),
        ("It is neither fast nor slow.", None),
        ("Fast at first, then slow.", None),
        ("The series returns to its mean.", None),  # how fast?
        ("", None),
    ],
)
def test_reversion_is_read_where_its_speed_is_stated(sentence: str, label: str | None) -> None:
    assert read_reversion(normal(sentence)).label == label


def test_numbers_of_steps_and_cycles_are_read_and_those_of_other_things_are_not() -> None:
    said = {
        "season": "A strong season of 7 cycles, 3 units high.",
        "shift": "The level shifts up at point 40 of 128, by roughly 25 units.",
        "outlier": "A spike at index 9.",
        "volatility": "It grows by 30 %.",
    }
    found = {name: number for name, number in RICH.numbers_in(json.dumps(said)).items() if number is not None}
    assert found == {"cycles": 7, "shift_at": 40, "shift_size": 25, "outlier_at": 9}


# ---- Scored


def test_cycles_are_close_within_a_twentieth_of_their_number_and_never_where_there_is_no_season() -> None:
    rng = np.random.default_rng(0)
    wave = 25 * np.cos(2 * np.pi * 10 * TIME / 128)
    values = np.rint(50 + wave * np.array([[1], [1], [0]]) + rng.standard_normal((3, 128))).astype(np.uint8)
    measures = RICH.measure(values)
    columns = {name: pa.array(measures[name], kind) for name, kind in RICH.measures.items()}
    series = pa.table(
        {
            "values": pa.array(values.tolist(), pa.list_(pa.uint8())),
            "truth": RICH.truth(measures, 128),
            "measures": pa.StructArray.from_arrays(list(columns.values()), names=list(columns)),
        }
    )
    texts = [json.dumps({"season": f"A strong season of {count} cycles."}) for count in (10.3, 10.7, 10.0)]
    assert score(pa.table(answers(RICH, series, texts)), RICH)[CLOSE].value == pytest.approx(1 / 3)


def test_a_task_can_only_ask_for_structure_that_there_is() -> None:
    with pytest.raises(ValueError, match=r"added names \['holidays'\]: name some of season, shift"):
        replace(RICH, added=("season", "holidays"))

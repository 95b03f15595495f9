"""What a plugin returns or raises: a wrong result is one line that names the addition."""

from pathlib import Path

import pyarrow as pa
import pytest
from support.plugins import RULES, TEACHER, process, written

from tsd.cli import main
from tsd.curation import curate
from tsd.errors import TRACEBACK, InputError, PluginError, RecipeError
from tsd.evaluation import metrics
from tsd.generation.generator import draw_table
from tsd.recipe import additions, load
from tsd.tasks import SINGLE
from tsd.teachers import in_process

# ---- What a plugin returns, and raises


RETURNING = {
    "a_series_table": ("series.slice(1)", "returned no table of annotations"),
    "nothing": ("None", "returned NoneType"),
    "too_few": ("self.whole(series).slice(1)", "returned 1,023 rows for 1,024 series: return one row per series"),
    "another_order": ("self.whole(series.take(list(range(len(series)))[::-1]))", "in their order"),
    "a_reply_too_few": (
        "to_annotations(self.settings, self.task, self.seed, series, [Reply('{}')] * (len(series) - 1))",
        r"failed in .*plugin\.py line \d+, in annotate: ValueError: 1,023 replies for 1,024 series: give one",
    ),
    "replies_that_are_texts": (
        "to_annotations(self.settings, self.task, self.seed, series, ['{}'] * len(series))",
        r"in annotate: TypeError: reply 0 is '\{\}': give Reply\(text\)",
    ),
    "an_exception": ("series['nowhere']", r"failed in .*plugin\.py line \d+, in annotate: KeyError"),
}
WHOLE = """    def whole(self, series):
        first = [0] * len(self.task.topics)
        said = [Reply(self.task.reply(truth, first)) for truth in series["truth"].to_pylist()]
        return to_annotations(self.settings, self.task, self.seed, series, said)
"""


@pytest.fixture(scope="module")
def returning(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a plugin with policies and teachers that are all wrong in what they return."""
    teachers = "".join(
        TEACHER.format(name=name).replace("pass", "self.settings, self.task, self.seed = settings, task, seed")
        + WHOLE
        + f"    def annotate(self, series):\n        return {value}\n"
        for name, (value, _) in RETURNING.items()
    )
    return written(
        tmp_path_factory.mktemp("returning"),
        "@add_policy('number', version='1')\ndef p(task, case, settings):\n    return 3\n"
        "@add_policy('empty', version='1')\ndef p(task, case, settings):\n    return ''\n"
        "@add_policy('blank', version='1')\ndef p(task, case, settings):\n    return ' '\n"
        "@add_policy('raising', version='1')\ndef p(task, case, settings):\n    return case.truth['nowhere']\n"
        + teachers,
    )


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("number", r"the policy number, in .*plugin\.py, returned 3: return the reason"),
        ("empty", r"the policy empty, in .*plugin\.py, returned '': return .* or None to keep the response"),
        ("blank", r"the policy blank, in .*plugin\.py, returned ' ': return the reason"),
        (
            "raising",
            rf"the policy raising failed in .*plugin\.py line 14, in p: KeyError: 'nowhere'; {TRACEBACK}=1",
        ),
    ],
)
def test_a_policy_that_fails_or_returns_no_text_is_named(
    returning: str, policy: str, said: str, annotations: pa.Table, series: pa.Table
) -> None:
    recipe = load("laptop", [RULES, f"plugins=[{returning}]", f"curation.policies={{{policy}: null}}"])
    with pytest.raises(PluginError, match=said) as caught:
        curate(SINGLE, annotations, series, recipe.curation)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("kind", "said"), [(kind, said) for kind, (_, said) in RETURNING.items()], ids=RETURNING)
def test_a_teacher_that_fails_or_returns_no_annotations_is_named(
    returning: str, kind: str, said: str, series: pa.Table
) -> None:
    recipe = load("laptop", [f"plugins=[{returning}]", f"teacher.kind={kind}"])
    with pytest.raises(PluginError, match=f"the teacher {kind}.*{said}") as caught:
        in_process.annotate(recipe, series)
    assert len(str(caught.value).splitlines()) == 1


DRAWN = {
    "nan": (
        "np.where(own['{q}'] > 5.5, np.float32(np.nan), time)",
        r"returned nan for 128 points, {q} \d\.\d+ \(",
    ),
    "infinity": ("np.where(own['{q}'] > 5.5, np.float32(np.inf), time)", r"returned inf for 128 points, {q} \d"),
    "too_big": ("np.where(own['{q}'] > 5.5, np.float64(1e300), time)", r"returned inf for 128 points, {q} \d"),
    "a_number": (
        "time if own['{q}'].max() < 5.5 else np.float32(0)",
        r"float32 of shape \(\).*{q} from \d.*to \d",
    ),
    "integers": ("time if own['{q}'].max() < 5.5 else (time > 0).astype(int)", r"int64 of shape \(128, 1\)"),
    "complex": ("time if own['{q}'].max() < 5.5 else time + 1j * time", r"complex64 of shape"),
    "shocks": ("(own['{q}'].max() > 5.5 and shocks.fill(np.nan)) or time", "left shocks with nan"),
    "raises": ("time if own['{q}'].max() < 5.5 else own['x']", r"failed in .* line 5, in curve: KeyError: 'x'"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_process_that_is_wrong_only_in_some_of_its_range_stops_generation(name: str, tmp_path: Path) -> None:
    value, said = (text.replace("{q}", f"q_{name}") for text in DRAWN[name])
    plugin = written(tmp_path, process(f"wrong_{name}", value, f"ranges={{'q_{name}': Span(1, 9, 0, 10)}}"))
    recipe = load("laptop", [RULES, f"plugins=[{plugin}]", f"series.mix={{linear: 1, wrong_{name}: 1}}"])
    with pytest.raises(PluginError, match=f"the process wrong_{name}.*{said}") as caught:
        draw_table(recipe.asks, recipe.series, recipe.seed, 0, 8)
    assert plugin in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_settings_whose_validator_fails_are_named(tmp_path: Path) -> None:
    plugin = written(
        tmp_path,
        "from pydantic import field_validator\n"
        "class S(AddedTeacher):\n    @field_validator('kind')\n    def v(cls, value):\n        return {}[value]\n"
        + TEACHER.format(name="invalid").replace("'1'", "'1', settings=S")
        + "    def annotate(self, series): return series\n",
    )
    with pytest.raises(RecipeError, match=r"the settings of invalid failed in .*line 7, in v: KeyError") as caught:
        load("laptop", [f"plugins=[{plugin}]", "teacher={kind: invalid}"])
    assert len(str(caught.value).splitlines()) == 1


def test_whatever_else_a_plugin_raises_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "class S(AddedTeacher):\n    @property\n    def name(self):\n        return {}['x']\n"
    text += TEACHER.format(name="nameless").replace("'1'", "'1', settings=S")
    plugin = written(tmp_path, text + "    def annotate(self, series): return series\n")
    sets = ["--set", f"plugins=[{plugin}]", "--set", "teacher={kind: nameless}"]
    with pytest.raises(SystemExit) as left:
        main(["annotate", "laptop", "--dry-run", "--out", str(tmp_path), *sets])
    assert left.value.code == 2
    said = f"tsd: {plugin} line 6, in name, failed: KeyError: 'x'; {TRACEBACK}=1 prints the traceback\n"
    assert capsys.readouterr().err == said


def test_a_traceback_is_printed_where_the_environment_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = written(tmp_path, "def deep():\n    raise KeyError('x')\ndeep()\n")

    def said() -> list[str]:
        with pytest.raises(SystemExit) as left:
            main(["recipes", "show", "laptop", "--set", f"plugins=[{plugin}]"])
        assert left.value.code == 2
        return capsys.readouterr().err.splitlines()

    monkeypatch.delenv(TRACEBACK, raising=False)
    (line,) = said()
    monkeypatch.setenv(TRACEBACK, "1")
    *before, last = said()
    assert last == line
    assert "Traceback" in before[0]
    assert any("raise KeyError('x')" in each for each in before)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (
            lambda predictions, truth: 3,
            r"the metric mine, in .*test_returned\.py, returned 3: return a number from 0",
        ),
        (
            lambda predictions, truth: None,
            r"mine, in .*test_returned\.py, returned None: return a number from 0 to 1",
        ),
        (
            lambda predictions, truth: "0.5",
            r"mine, in .*test_returned\.py, returned '0\.5': return a number from 0",
        ),
        (
            lambda predictions, truth: truth,
            r"mine, in .*test_returned\.py, returned .{1,70}: return a number from 0",
        ),
        (lambda predictions, truth: float("nan"), "the metric mine, .* returned nan"),
        (
            lambda predictions, truth: 1 / 0,
            r"the metric mine, given 5 predictions, failed in .*test_returned\.py line \d+, in <lambda>: Zero",
        ),
    ],
)
def test_a_metric_that_returns_no_fraction_is_named(
    metric: additions.Metric, said: str, annotations: pa.Table, series: pa.Table
) -> None:
    table = pa.table({"labels": annotations["labels"], "truth": series["truth"]}).slice(0, 5)
    with pytest.raises(InputError, match=said) as caught:
        metrics.measure("mine", metric, table)
    assert len(str(caught.value).splitlines()) == 1


def test_a_metrics_interval_covers_its_value_and_shrinks_with_more_rows(
    annotations: pa.Table, series: pa.Table
) -> None:
    def right(predictions: pa.Table, truth: pa.ChunkedArray) -> float:
        pairs = zip(predictions["labels"].to_pylist(), truth.to_pylist(), strict=True)
        return sum(said == known for said, known in pairs) / len(truth)

    whole = pa.table({"labels": annotations["labels"], "truth": series["truth"]})
    many, few = (metrics.measure("right", right, whole.slice(0, rows)) for rows in (1024, 64))
    assert many == metrics.measure("right", right, whole)
    for found in (many, few):
        assert found.low < found.value < found.high
    assert many.high - many.low < (few.high - few.low) / 2

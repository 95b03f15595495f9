"""Token parts: what workers map from them is what tokenising the examples in one piece gives."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from transformers import PreTrainedTokenizerBase

from tsd.curation import curate
from tsd.errors import DataError, InputError
from tsd.generation.generator import draw_table
from tsd.models.tokenizer import build_tokenizer
from tsd.recipe import Recipe, TrainingConfig, load
from tsd.storage import datasets
from tsd.storage.schemas import TOKENS
from tsd.tasks import PAIR, SINGLE, Task
from tsd.teachers.rules import Rules
from tsd.training.corpus import Batches, Corpus, collate, pack, select, tokenise
from tsd.training.token_parts import corpora, summary, token_table

KEY, LONGEST = "0123456789abcdef", 2048
COUNTS = {"train": 300, "validation": 20}


def pairs() -> pa.Table:
    """Examples of the task with two series each."""
    recipe = load("laptop", ["teacher={kind: rules}", "task=pair"])
    series = draw_table(PAIR, recipe.series, recipe.seed, 0, 1024)
    return curate(PAIR, Rules(recipe.teacher, PAIR, recipe.seed).annotate(series), series, recipe.curation)[0]


@pytest.fixture(scope="module", params=["text", "image", "text pairs", "image pairs"])
def case(
    request: pytest.FixtureRequest, examples: pa.Table
) -> tuple[pa.Table, PreTrainedTokenizerBase, Task, bool]:
    """Examples, their tokenizer, the task, and whether a vision student is trained on them."""
    table, task = (pairs(), PAIR) if "pairs" in request.param else (examples, SINGLE)
    looks = "image" in request.param
    return table, build_tokenizer(table["completion"].to_pylist() * 2, LONGEST, looks), task, looks


def written(
    folder: Path, examples: pa.Table, tokenizer: PreTrainedTokenizerBase, task: Task | None, parts: int = 5
) -> datasets.Dataset:
    """The token parts of examples that lie in so many parts."""
    cuts, made = np.linspace(0, len(examples), parts + 1).astype(int), {}
    for part in range(parts):
        some = examples.slice(cuts[part], cuts[part + 1] - cuts[part])
        table, note = token_table(some, tokenizer, task)
        made[part] = datasets.write_part(str(folder), part, table, TOKENS, KEY, note)
    about = summary([made[part].note for part in range(parts)])
    return datasets.commit(str(folder), TOKENS, KEY, parts, {}, made, about)


def test_what_is_mapped_equals_what_is_tokenised_in_one_piece(
    case: tuple[pa.Table, PreTrainedTokenizerBase, Task, bool], tmp_path: Path
) -> None:
    examples, tokenizer, task, looks = case
    tokens = written(tmp_path / "tokens", examples, tokenizer, task if looks else None)
    with corpora(tokens, COUNTS, LONGEST, task.curves) as found:
        for split, count in COUNTS.items():
            one = tokenise(select([examples], split, count), tokenizer, LONGEST, task if looks else None)
            assert_same(found[split], one)
            config = TrainingConfig(batch_size=16)
            for step in (0, 3):
                mine, theirs = (Batches(each.lengths, config, 7).rows(step) for each in (found[split], one))
                assert mine.tolist() == theirs.tolist()


def assert_same(mapped: Corpus, one: Corpus) -> None:
    """Two corpora have the same examples, and batches of the same arrays and types."""
    assert [row.tolist() for row in mapped.tokens] == [row.tolist() for row in one.tokens]
    assert mapped.answers.tolist() == one.answers.tolist()
    assert mapped.lengths.tolist() == one.lengths.tolist()
    assert mapped.pad == one.pad
    rows = np.array([5, 0, len(one) - 1, 5])
    for make in (collate, pack):
        for mine, theirs in zip(vars(make(mapped, rows)).values(), vars(make(one, rows)).values(), strict=True):
            assert np.array_equal(mine, theirs)
            assert getattr(mine, "dtype", None) == getattr(theirs, "dtype", None)
    assert (mapped.pictures is None) == (one.pictures is None)
    if mapped.pictures and one.pictures:
        assert mapped.pictures.first == one.pictures.first
        assert np.array_equal(mapped.pictures.draw(rows), one.pictures.draw(rows))
        assert np.array_equal(mapped.take(rows).pictures.draw([1]), one.pictures.draw([0]))  # type: ignore[union-attr]


def test_the_test_split_is_not_tokenised(examples: pa.Table, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(examples["completion"].to_pylist(), LONGEST)
    tokens = written(tmp_path / "tokens", examples, tokenizer, None)
    kept = examples.filter(pc.not_equal(examples["split"], "test"))
    assert 0 < len(kept) < len(examples)
    assert tokens.read(["series_id"])["series_id"].to_pylist() == kept["series_id"].to_pylist()
    assert sum(tokens.about["train"]) + sum(tokens.about["validation"]) == len(kept)


def test_parts_without_any_example_are_read_over(recipe: Recipe, examples: pa.Table, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(examples["completion"].to_pylist(), LONGEST)
    made = {}
    for part, some in enumerate(
        [examples.slice(0, 0), examples.slice(0, 40), examples.slice(0, 0), examples.slice(40)]
    ):
        table, note = token_table(some, tokenizer)
        made[part] = datasets.write_part(str(tmp_path / "tokens"), part, table, TOKENS, KEY, note)
    tokens = datasets.commit(
        str(tmp_path / "tokens"), TOKENS, KEY, 4, {}, made, summary([made[part].note for part in range(4)])
    )
    with corpora(tokens, COUNTS, LONGEST, 1) as found:
        assert_same(found["train"], tokenise(select([examples], "train", 300), tokenizer, LONGEST))


def test_only_the_examples_that_are_trained_on_must_fit(examples: pa.Table, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(examples["completion"].to_pylist(), LONGEST)
    train = pc.equal(examples["split"], "train").to_pylist()
    last = max(row for row, is_train in enumerate(train) if is_train)
    long = [
        text + " very" * (LONGEST if row == last else 0)
        for row, text in enumerate(examples["completion"].to_pylist())
    ]
    tokens = written(
        tmp_path / "tokens", examples.set_column(4, examples.field("completion"), pa.array(long)), tokenizer, None
    )
    with corpora(tokens, COUNTS, LONGEST, 1) as found:
        assert len(found["train"]) == 300
    everything = {**COUNTS, "train": sum(train)}
    with (
        pytest.raises(DataError, match=r"an example has \d+ tokens and training.max_length is 2048"),
        corpora(tokens, everything, LONGEST, 1),
    ):
        pass


def test_an_empty_answer_and_too_few_examples_are_named(examples: pa.Table, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(examples["completion"].to_pylist(), LONGEST)
    mute = examples.set_column(4, examples.field("completion"), pa.array([""] * len(examples)))
    with (
        pytest.raises(DataError, match="an empty answer"),
        corpora(written(tmp_path / "mute", mute, tokenizer, None), COUNTS, LONGEST, 1),
    ):
        pass
    tokens = written(tmp_path / "tokens", examples, tokenizer, None)
    said = re.escape("9,999 train examples are asked for and ") + r"\d+ were kept: raise series.count"
    with pytest.raises(InputError, match=said), corpora(tokens, {**COUNTS, "train": 9999}, LONGEST, 1):
        pass

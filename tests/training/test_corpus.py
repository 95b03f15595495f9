"""The corpus: a mask that hides exactly the prompt, and batches that are a function of the step."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from tsd.errors import DataError, InputError
from tsd.models.chat import chat_prompts
from tsd.models.tokenizer import build_tokenizer
from tsd.recipe import TrainingConfig
from tsd.training.corpus import Batches, Corpus, collate, pack, portions, select, share, tokenise


@pytest.fixture(scope="module")
def tokenizer(examples: pa.Table) -> PreTrainedTokenizerBase:
    """A tokenizer built on the examples' own words."""
    return build_tokenizer(examples["completion"].to_pylist(), 2048)


@pytest.fixture(scope="module")
def corpus(examples: pa.Table, tokenizer: PreTrainedTokenizerBase) -> Corpus:
    """A hundred tokenised examples."""
    return tokenise(examples.slice(0, 100), tokenizer, 2048)


# ---- The mask


def test_the_mask_hides_exactly_the_prompt(
    corpus: Corpus, examples: pa.Table, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = chat_prompts(examples["prompt"].to_pylist()[:100], tokenizer)
    for i, completion in enumerate(examples["completion"].to_pylist()[:100]):
        start = corpus.answers[i]
        assert tokenizer.decode(corpus.tokens[i][start:]) == completion + tokenizer.eos_token
        assert tokenizer.decode(corpus.tokens[i][:start]) == prompts[i]


@settings(max_examples=30)
@given(st.lists(st.integers(0, 99), min_size=1, max_size=12))
def test_a_batch_supervises_each_answer_token_once_and_nothing_else(corpus: Corpus, rows: list[int]) -> None:
    batch = collate(corpus, rows)
    for i, row in enumerate(rows):
        supervised = batch.targets[i][batch.targets[i] != -100]
        assert supervised.tolist() == corpus.tokens[row][corpus.answers[row] :].tolist()
        # Each target is what follows the input in its column.
        (columns,) = np.nonzero(batch.targets[i] != -100)
        assert corpus.tokens[row][columns + 1].tolist() == supervised.tolist()
        assert batch.inputs[i][: len(corpus.tokens[row]) - 1].tolist() == corpus.tokens[row][:-1].tolist()
        assert set(batch.inputs[i][len(corpus.tokens[row]) - 1 :].tolist()) <= {corpus.pad}
    assert batch.positions.tolist() == np.flatnonzero((batch.targets != -100).any(axis=0)).tolist()


def test_every_row_has_supervised_tokens_that_end_with_the_end_of_turn(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert (corpus.answers < corpus.lengths).all()
    assert {int(row[-1]) for row in corpus.tokens} == {tokenizer.eos_token_id}


def test_a_row_without_supervised_tokens_is_an_error(corpus: Corpus) -> None:
    mute = Corpus(corpus.tokens, corpus.lengths, corpus.pad)
    with pytest.raises(DataError, match="no supervised token"):
        collate(mute, [0, 1])


def test_an_empty_answer_is_an_error(examples: pa.Table, tokenizer: PreTrainedTokenizerBase) -> None:
    empty = examples.slice(0, 2).set_column(4, examples.field("completion"), pa.array(["", "words"]))
    with pytest.raises(DataError, match="empty answer"):
        tokenise(empty, tokenizer, 2048)


def test_an_example_that_is_too_long_is_an_error_and_nothing_is_cut(
    corpus: Corpus, examples: pa.Table, tokenizer: PreTrainedTokenizerBase
) -> None:
    longest = int(corpus.lengths.max())
    assert tokenise(examples.slice(0, 100), tokenizer, longest).lengths.tolist() == corpus.lengths.tolist()
    with pytest.raises(DataError) as caught:
        tokenise(examples.slice(0, 100), tokenizer, longest - 1)
    assert str(longest) in str(caught.value)
    assert "training.max_length" in str(caught.value)


# ---- Batches are a function of (corpus, seed, step, rank)

shapes = st.tuples(st.integers(1, 300), st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**40))
some_lengths = st.lists(st.integers(1, 60), min_size=1, max_size=200).map(np.array)


def batches(size: int, batch: int, seed: int, epochs: int = 1) -> Batches:
    """Batches of so many examples."""
    return Batches(np.full(size, 10), TrainingConfig(batch_size=batch, epochs=epochs), seed)


def by_tokens(lengths: np.ndarray, budget: int, seed: int, epochs: int = 1) -> Batches:
    """Batches of so many tokens."""
    return Batches(lengths, TrainingConfig(tokens_per_batch=budget, epochs=epochs), seed)


@given(shapes, st.integers(0, 500))
def test_the_workers_of_a_step_share_the_batch_that_one_worker_would_have(
    shape: tuple[int, int, int, int], step: int
) -> None:
    size, workers, each, seed = shape
    alone = batches(size, workers * each, seed).rows(step)
    shares = [share(alone, rank, workers) for rank in range(workers)]
    assert all(len(one) == each for one in shares)
    assert Counter(np.concatenate(shares).tolist()) == Counter(alone.tolist())


@given(shapes, st.integers(1, 3))
def test_every_epoch_sees_each_example_once(shape: tuple[int, int, int, int], epochs: int) -> None:
    size, workers, each, seed = shape
    batch = workers * each
    steps = -(-size * epochs // batch)
    seen = np.concatenate([batches(size, batch, seed).rows(step) for step in range(steps)])
    for epoch in range(epochs):
        assert sorted(seen[epoch * size : (epoch + 1) * size].tolist()) == list(range(size))


@given(shapes, st.lists(st.integers(0, 200), min_size=1, max_size=8))
def test_a_step_has_the_same_rows_whatever_was_asked_before(
    shape: tuple[int, int, int, int], steps: list[int]
) -> None:
    size, workers, each, seed = shape
    asked = batches(size, workers * each, seed)
    first = {step: asked.rows(step).tolist() for step in steps}
    for step in reversed(steps):
        assert asked.rows(step).tolist() == first[step]
        assert batches(size, workers * each, seed).rows(step).tolist() == first[step]


def test_the_rows_of_a_step_are_those_that_they_always_were() -> None:
    rows = [batches(20, 4, 7).rows(step).tolist() for step in (0, 4, 5)]  # another order changes every study
    assert rows == [[8, 1, 0, 10], [2, 4, 5, 12], [9, 13, 3, 11]]


def test_another_seed_and_another_epoch_have_another_order() -> None:
    orders = [batches(500, 500, seed).rows(epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize(
    ("examples_", "batch", "epochs", "steps"), [(100, 8, 1, 12), (100, 8, 2, 25), (8, 8, 1, 1), (3, 8, 1, 1)]
)
def test_a_run_has_as_many_steps_as_its_examples_fill(examples_: int, batch: int, epochs: int, steps: int) -> None:
    assert batches(examples_, batch, 0, epochs).steps == steps


@given(some_lengths, st.integers(60, 400), st.integers(1, 3), st.integers(0, 9))
def test_batches_of_tokens_hold_whole_examples_and_each_epoch_every_one_once(
    lengths: np.ndarray, budget: int, epochs: int, seed: int
) -> None:
    made = by_tokens(lengths, budget, seed, epochs)
    steps = [made.rows(step) for step in range(made.steps)]
    assert all(0 < lengths[rows].sum() <= budget for rows in steps)
    seen = np.concatenate(steps)
    assert len(seen) == epochs * len(lengths)
    for epoch in range(epochs):
        assert sorted(seen[epoch * len(lengths) : (epoch + 1) * len(lengths)]) == list(range(len(lengths)))


@given(some_lengths, st.integers(60, 400), st.integers(0, 9))
def test_a_batch_of_tokens_has_no_room_for_the_next_one_to_come(
    lengths: np.ndarray, budget: int, seed: int
) -> None:
    made = by_tokens(lengths, budget, seed)
    for step in range(made.steps - 1):
        assert lengths[made.rows(step)].sum() + lengths.max() > budget


@given(some_lengths, st.integers(120, 400), st.integers(1, 4))
def test_the_workers_of_a_batch_of_tokens_have_like_numbers_of_them(
    lengths: np.ndarray, budget: int, workers: int
) -> None:
    made = by_tokens(lengths, budget, 0)
    for step in range(made.steps):
        rows = made.rows(step)
        tokens = [int(lengths[share(rows, rank, workers)].sum()) for rank in range(workers)]
        assert sum(tokens) == lengths[rows].sum()
        assert max(tokens) - min(tokens) <= lengths[rows].max()


def test_an_example_longer_than_a_batch_of_tokens_is_an_error() -> None:
    with pytest.raises(DataError, match=r"40 tokens and training\.tokens_per_batch is 39"):
        by_tokens(np.array([10, 40]), 39, 0)


# ---- Packing


@given(rows=st.lists(st.integers(0, 99), min_size=1, max_size=12))
def test_packed_rows_are_the_examples_one_after_the_other(corpus: Corpus, rows: list[int]) -> None:
    packed = pack(corpus, rows)
    lengths = [length for count, length, _ in packed.segments for _ in range(count)]
    assert lengths == sorted(len(corpus.tokens[row]) - 1 for row in rows)
    inputs = np.split(packed.inputs, np.cumsum(lengths)[:-1])
    places = np.split(packed.places, np.cumsum(lengths)[:-1])
    expected = Counter(tuple(corpus.tokens[row][:-1].tolist()) for row in rows)
    assert Counter(tuple(one.tolist()) for one in inputs) == expected
    assert all((one == np.arange(len(one))).all() for one in places)  # positions start anew
    for _, length, answered in packed.segments:
        alike = [row for row in rows if len(corpus.tokens[row]) == length + 1]
        assert answered == max(len(corpus.tokens[row]) - corpus.answers[row] for row in alike)


@given(rows=st.lists(st.integers(0, 99), min_size=1, max_size=12))
def test_packed_and_padded_rows_bear_loss_on_the_same_tokens(corpus: Corpus, rows: list[int]) -> None:
    packed, padded = pack(corpus, rows), collate(corpus, rows)
    supervised = padded.targets != -100
    pairs = zip(padded.inputs[supervised].tolist(), padded.targets[supervised].tolist(), strict=True)
    assert Counter(pairs) == Counter(
        zip(packed.inputs[packed.positions].tolist(), packed.targets.tolist(), strict=True)
    )
    assert len(packed.targets) == sum(len(corpus.tokens[row]) - corpus.answers[row] for row in rows)


def test_a_packed_example_without_supervised_tokens_is_an_error(corpus: Corpus) -> None:
    answers = corpus.answers.copy()
    answers[1] = len(corpus.tokens[1])
    with pytest.raises(DataError, match="no supervised token"):
        pack(Corpus(corpus.tokens, answers, corpus.pad), [0, 1, 2])


# ---- Train sizes


def test_a_train_size_holds_every_smaller_one_and_only_its_split(examples: pa.Table) -> None:
    large, small = select([examples], "train", 300), select([examples], "train", 100)
    assert large.slice(0, 100).equals(small)
    assert set(large["split"].to_pylist()) == {"train"}


def test_no_part_is_read_beyond_those_that_a_train_size_needs(examples: pa.Table) -> None:
    def parts() -> Iterator[pa.Table]:
        yield examples.slice(0, 200)
        yield examples.slice(200)
        raise AssertionError("a third part was asked for")

    assert select(parts(), "train", 300).equals(select([examples], "train", 300))


def test_too_few_examples_say_how_many_there_are_and_what_to_change(examples: pa.Table) -> None:
    kept = examples["split"].to_pylist().count("test")
    with pytest.raises(InputError) as caught:
        select([examples], "test", 5000)
    assert "5,000 test examples" in str(caught.value)
    assert f"{kept:,} were kept" in str(caught.value)
    assert "series.count" in str(caught.value)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 99), max_size=20, unique=True), st.none() | st.integers(1, 3000))
def test_portions_of_a_batch_hold_each_example_once_and_no_more_tokens_than_asked_for(
    corpus: Corpus, rows: list[int], most: int | None
) -> None:
    parts = portions(corpus, np.array(rows, np.int64), most)
    assert sorted(int(row) for part in parts for row in part) == sorted(rows)
    assert all(len(part) for part in parts)
    if most is not None:
        assert all(len(part) == 1 or len(part) * corpus.lengths_of(part).max() <= most for part in parts)
        # No two neighbours would have fitted into one.
        joined = [np.concatenate(pair) for pair in pairwise(parts)]
        assert all(len(pair) * corpus.lengths_of(pair).max() > most for pair in joined)

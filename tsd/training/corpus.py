"""Tokenised examples, and their order in batches.

A batch is a function of (corpus, seed, step, rank). A resumed run therefore trains on the same batches as an
uninterrupted one, on any number of workers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tsd.errors import DataError, InputError
from tsd.models.chat import chat_tokens, encode, picture_place, styled_prompt_tokens
from tsd.plots.rasterised import Curve, Pixels, draw
from tsd.recipe import TrainingConfig
from tsd.rng import BATCHES, generator
from tsd.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Ragged(Sequence[npt.NDArray[Any]]):
    """Rows of different lengths within one flat array, which may be memory-mapped.

    flat: (values,). starts, lengths: (rows,) int64, where each row begins and how many values it has.
    """

    def __init__(
        self, flat: npt.NDArray[Any], starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
    ) -> None:
        self.flat, self.starts, self.lengths = flat, starts, lengths

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, row: int) -> npt.NDArray[Any]: ...

    @overload
    def __getitem__(self, row: slice) -> list[npt.NDArray[Any]]: ...

    def __getitem__(self, row: int | slice) -> npt.NDArray[Any] | list[npt.NDArray[Any]]:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        return self.flat[self.starts[row] : self.starts[row] + self.lengths[row]]


@dataclass(frozen=True)
class Curves(Sequence[Sequence[Curve]]):
    """The series of each example: as many arrays, (length,) uint8, as an item of the task has curves."""

    values: Ragged
    """The curves of an example one after the other."""
    curves: int

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, row: int) -> Sequence[Curve]: ...

    @overload
    def __getitem__(self, row: slice) -> Sequence[Sequence[Curve]]: ...

    def __getitem__(self, row: int | slice) -> Sequence[Curve] | Sequence[Sequence[Curve]]:
        if isinstance(row, slice):
            return [np.split(values, self.curves) for values in self.values[row]]
        return np.split(self.values[row], self.curves)


@dataclass(frozen=True)
class Pictures:
    """The images of examples, rendered on demand. One million would take 16 GB: 128 × 128 bytes each."""

    items: Sequence[Sequence[Curve]]
    first: int
    """Position of the first image token, the same in every example."""

    def draw(self, rows: Iterable[int]) -> Pixels:
        """The rasterised plots of these examples, (rows, SIDE, SIDE) uint8."""
        return draw([self.items[row] for row in rows])


@dataclass(frozen=True)
class Corpus:
    """Tokenised examples: their tokens and the position where the response begins."""

    tokens: Sequence[npt.NDArray[Any]]
    """One array, (tokens,) int32 or int64, for each example."""
    answers: npt.NDArray[np.int64]  # (examples,) index of the first supervised token
    pad: int
    pictures: Pictures | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: npt.NDArray[np.int64]) -> "Corpus":
        """A corpus of these examples, in this order. An example may occur more than once."""
        shown = self.pictures and Pictures([self.pictures.items[row] for row in rows], self.pictures.first)
        return Corpus([self.tokens[row] for row in rows], self.answers[rows], self.pad, shown)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens in each example, (examples,) int64. Computed once, and therefore read-only."""
        if isinstance(self.tokens, Ragged):
            lengths = self.tokens.lengths.view()
        else:
            lengths = np.fromiter(map(len, self.tokens), np.int64, len(self))
        lengths.flags.writeable = False
        return lengths

    def lengths_of(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Tokens in each of these examples, (rows,) int64."""
        return self.lengths[np.asarray(rows, np.int64)]

    def supervised_in(self, rows: npt.NDArray[np.int64]) -> int:
        """Total number of supervised tokens in these examples."""
        return int((self.lengths[rows] - self.answers[rows]).sum())

    def require_usable(self, max_length: int) -> None:
        """Raise DataError for an example that is longer than max_length or has an empty response."""
        longest = int(self.lengths.max(initial=0))
        if longest > max_length:
            raise DataError(f"an example has {longest} tokens and training.max_length is {max_length}")
        if (self.lengths - self.answers < 2).any():  # the end-of-turn token alone
            raise DataError("an example has an empty answer: it would teach nothing and hide that it does")


@dataclass(frozen=True)
class Batch:
    """Padded examples.

    inputs: (rows, length) int64, padded on the right.
    targets: (rows, length) int64, the next token where it is supervised, −100 elsewhere.
    positions: (positions,) int64, the columns in which any row is supervised.
    """

    inputs: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Packed:
    """Examples packed one after the other into a single row, without padding, sorted by length.

    inputs: (tokens,) int64.
    places: (tokens,) int64, position ids within each example.
    segments: sequence boundaries, as (examples, length, most supervised tokens at the end) per run of equal
    length.
    positions: (supervised,) int64, indices of the tokens whose next token is supervised (logits_to_keep).
    targets: (supervised,) int64, those next tokens.
    """

    inputs: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    segments: list[tuple[int, int, int]]
    positions: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]


def select(parts: Iterable[pa.Table], split: str, count: int, or_all: bool = False) -> pa.Table:
    """The first `count` examples of a split, by id. A larger training set therefore contains every smaller one.

    parts: tables of examples in the order of their ids, read only as far as needed. Raises InputError if there are
    fewer than `count`. or_all: takes all of them then, if there is one at all.
    """
    found: list[pa.Table] = []
    for part in parts:
        found.append(part.filter(pc.equal(part["split"], split)))
        if sum(map(len, found)) >= count:
            return pa.concat_tables(found).slice(0, count)
    if or_all and any(len(part) for part in found):
        return pa.concat_tables(found)
    raise InputError(lacking(split, count, sum(map(len, found))))


def lacking(split: str, count: int, kept: int) -> str:
    """The message for a split with fewer examples than the recipe asks for."""
    return (
        f"{count:,} {split} examples are asked for and {kept:,} were kept: "
        "raise series.count, or lower students.train_sizes or evaluation.validation_examples"
    )


def tokenise(
    examples: pa.Table, tokenizer: "PreTrainedTokenizerBase", max_length: int, task: Task | None = None
) -> Corpus:
    """Apply the chat template to each example. The response, with its end-of-turn token, is supervised.

    task: given for a vision student, which gets a plot of the values in the prompt instead of the values.
    Raises DataError for an example that is longer than max_length or has an empty response. Nothing is truncated.
    """
    prompts, completions = examples["prompt"].to_pylist(), examples["completion"].to_pylist()
    if task is not None:
        items = [task.curves_in(prompt) for prompt in prompts]
        return image_corpus(task, items, completions, tokenizer, max_length)
    tokens, answers = joined(chat_tokens(prompts, tokenizer), completions, tokenizer)
    corpus = Corpus(tokens, answers, tokenizer.pad_token_id)
    corpus.require_usable(max_length)
    return corpus


def image_corpus(
    task: Task,
    items: Sequence[Sequence[Curve]],
    completions: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    styles: Sequence[Sequence[int]] | None = None,
) -> Corpus:
    """`tokenise` for a vision student, from series and responses.

    items: one or two series, (length,) uint8, per example. styles: of the responses, for a locally trained
    teacher. Raises DataError as `tokenise` does.
    """
    styled = [()] * len(items) if styles is None else styles
    shown = styled_prompt_tokens(task, tokenizer, styled)
    tokens, answers = joined(shown, completions, tokenizer)
    corpus = Corpus(tokens, answers, tokenizer.pad_token_id, Pictures(items, picture_place(shown[0], tokenizer)))
    corpus.require_usable(max_length)
    return corpus


def joined(
    prompts: Sequence[Sequence[int]], completions: Sequence[str], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[Ragged, npt.NDArray[np.int64]]:
    """Tokenised prompts, each with its response: the tokens of each example, int64, and where its response begins.

    prompts: token ids. completions: the responses' texts; each ends with the end-of-turn token.
    """
    distinct = list(dict.fromkeys(completions))  # few where phrasings do not vary
    texts = [text + tokenizer.eos_token for text in distinct]
    encoded = dict(zip(distinct, encode(texts, tokenizer), strict=True))
    answers = np.fromiter(map(len, prompts), np.int64, len(prompts))
    lengths = answers + np.fromiter((len(encoded[text]) for text in completions), np.int64, len(prompts))
    starts = np.cumsum(lengths) - lengths
    flat = np.empty(int(lengths.sum()), np.int64)
    for start, prompt, text in zip(starts, prompts, completions, strict=True):
        flat[start : start + len(prompt)] = prompt
        flat[start + len(prompt) : start + len(prompt) + len(encoded[text])] = encoded[text]
    return Ragged(flat, starts, lengths), answers


class Batches:
    """The examples of each step of a run: a function of (corpus, seed, step) alone.

    A batch has `config.batch_size` examples; the last one of an epoch is filled up from the next epoch. With
    `config.tokens_per_batch`, a batch has as many examples as fit, and the last one of an epoch may be smaller.
    Each epoch visits every example once.
    """

    def __init__(self, lengths: npt.NDArray[np.int64], config: TrainingConfig, seed: int) -> None:
        """lengths: tokens in each example, (examples,). Raises DataError if one is longer than a batch."""
        self.lengths, self.config, self.seed = lengths, config, seed
        self._order = lru_cache(maxsize=2)(self._permutation)  # the permutation of an epoch is generated once
        budget = config.tokens_per_batch
        if budget is None:
            self.steps = max(1, len(lengths) * config.epochs // config.batch_size)
            return
        if lengths.max() > budget:
            raise DataError(f"an example has {lengths.max()} tokens and training.tokens_per_batch is {budget}")
        self.cuts = [
            (epoch, first, last)
            for epoch in range(config.epochs)
            for first, last in pairwise(_cuts(lengths[self._order(epoch)], budget))
        ]
        self.steps = len(self.cuts)

    def rows(self, step: int) -> npt.NDArray[np.int64]:
        """The examples of a step for all workers, (examples,) int64 indices. Each worker takes its `share`."""
        if self.config.tokens_per_batch is not None:
            epoch, start, end = self.cuts[step]
            rows = self._order(epoch)[start:end]
            # Longest first, so that the workers' shares have similar numbers of tokens.
            return rows[np.argsort(-self.lengths[rows], kind="stable")]
        first, size = step * self.config.batch_size, len(self.lengths)
        wanted = np.arange(first, first + self.config.batch_size)  # (batch_size,) in all epochs
        orders = [
            self._order(int(epoch))[wanted[wanted // size == epoch] % size] for epoch in np.unique(wanted // size)
        ]
        return np.concatenate(orders)

    def epochs_done(self, steps: int) -> int:
        """Epochs completed after so many steps."""
        if self.config.tokens_per_batch is None:
            return min(self.config.epochs, steps * self.config.batch_size // len(self.lengths))
        return self.cuts[steps][0] if steps < self.steps else self.config.epochs

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        return generator(self.seed, BATCHES, epoch).permutation(len(self.lengths))


def share(rows: npt.NDArray[np.int64], rank: int, workers: int) -> npt.NDArray[np.int64]:
    """One worker's share of a batch: every `workers`-th example."""
    return rows[rank::workers]


def portions(corpus: Corpus, rows: npt.NDArray[np.int64], most: int | None) -> list[npt.NDArray[np.int64]]:
    """Split a share of a batch into micro-batches of at most `most` tokens, padding included.

    Sorted by length, longest first. An example longer than `most` gets a micro-batch of its own. Returns index
    arrays, none for an empty share.
    """
    if most is None or not len(rows):
        return [rows] if len(rows) else []
    lengths = corpus.lengths_of(rows)
    order = np.argsort(-lengths, kind="stable")
    rows, lengths = rows[order], lengths[order]
    cuts = [0]
    while cuts[-1] < len(rows):
        cuts.append(cuts[-1] + max(1, most // int(lengths[cuts[-1]])))
    return np.split(rows, cuts[1:-1])


def wasted(lengths: npt.NDArray[np.int64]) -> float:
    """The padding fraction of rows padded to the longest of these lengths."""
    return 1 - float(lengths.mean() / lengths.max())


def collate(corpus: Corpus, rows: Sequence[int] | npt.NDArray[np.int64]) -> Batch:
    """Pad the examples on the right to one length and build the targets.

    Raises DataError if an example has no supervised token.
    """
    longest = corpus.lengths_of(rows).max()
    # Inputs are tokens[:-1], targets tokens[1:].
    inputs = np.full((len(rows), longest - 1), corpus.pad, np.int64)
    targets = np.full((len(rows), longest - 1), -100, np.int64)
    for i, row in enumerate(rows):
        tokens, answer = corpus.tokens[row], corpus.answers[row]
        inputs[i, : len(tokens) - 1] = tokens[:-1]
        targets[i, answer - 1 : len(tokens) - 1] = tokens[answer:]
    supervised = targets != -100
    if not supervised.any(axis=1).all():
        raise DataError("a row of a batch bears no supervised token")
    return Batch(inputs, targets, np.flatnonzero(supervised.any(axis=0)))


def pack(corpus: Corpus, rows: Sequence[int] | npt.NDArray[np.int64]) -> Packed:
    """Pack the examples into one row, sorted by length.

    Raises DataError if an example has no supervised token.
    """
    chosen = np.asarray(rows)
    lengths = corpus.lengths_of(chosen) - 1  # the last token is a target only
    order = np.argsort(lengths, kind="stable")
    chosen, lengths = chosen[order], lengths[order]
    answers = corpus.answers[chosen] - 1  # index of the token that predicts the response's first token
    if (answers >= lengths).any():
        raise DataError("a row of a batch bears no supervised token")
    tokens = [corpus.tokens[row] for row in chosen]
    starts = np.cumsum(lengths) - lengths  # (examples,) first token of each
    places = np.arange(lengths.sum()) - np.repeat(starts, lengths)
    each, first, count = np.unique(lengths, return_index=True, return_counts=True)  # per distinct length
    answered = np.maximum.reduceat(lengths - answers, first)
    return Packed(
        inputs=np.concatenate([row[:-1] for row in tokens], dtype=np.int64),
        places=places,
        segments=list(zip(count.tolist(), each.tolist(), answered.tolist(), strict=True)),
        positions=np.flatnonzero(places >= np.repeat(answers, lengths)),
        targets=np.concatenate(
            [row[answer + 1 :] for row, answer in zip(tokens, answers, strict=True)], dtype=np.int64
        ),
    )


def _cuts(lengths: npt.NDArray[np.int64], budget: int) -> list[int]:
    """Boundaries of batches of at most `budget` tokens. Each takes as many of the next examples as fit."""
    ends = np.cumsum(lengths)
    cuts = [0]
    while cuts[-1] < len(lengths):
        before = ends[cuts[-1] - 1] if cuts[-1] else 0
        cuts.append(int(np.searchsorted(ends, before + budget, side="right")))
    return cuts

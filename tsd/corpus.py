"""Examples -> token batches: chat template, loss mask, and which rows make up which batch.

A batch is a function of (corpus, seed, step, rank): a resumed run sees exactly the batches that it would have
seen, on any number of workers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

from tsd.draws import BATCHES, generator
from tsd.errors import DataError, InputError


@dataclass(frozen=True)
class Corpus:
    """Tokenised examples: tokens and where the answer starts, one entry an example."""

    tokens: list[npt.NDArray[np.int64]]
    answers: npt.NDArray[np.int64]  # (examples,) index of the first supervised token
    pad: int

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens in each example, (examples,)."""
        return np.array([len(row) for row in self.tokens])


@dataclass(frozen=True)
class Batch:
    """inputs: (rows, length) int64, padded on the right; targets: (rows, length) int64, the next token where
    it is part of an answer and −100 elsewhere; positions: the columns in which any row is supervised."""

    inputs: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]


def select(parts: Iterable[pa.Table], split: str, count: int) -> pa.Table:
    """The first `count` examples of a split, by id: a volume holds all smaller ones.

    parts: the examples in the order of their ids; no more of them are asked for than it takes.
    """
    found: list[pa.Table] = []
    for part in parts:
        found.append(part.filter(pc.equal(part["split"], split)))
        if sum(map(len, found)) >= count:
            return pa.concat_tables(found).slice(0, count)
    raise InputError(
        f"{count:,} {split} examples are asked for and {sum(map(len, found)):,} were kept: "
        "raise series.count, or lower students.volumes or evaluation.validation_examples"
    )


def tokenise(examples: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Corpus:
    """Put each pair into the chat template and mark the answer, which ends with the end-of-turn token.

    Raises DataError for an example that is longer than max_length or has no answer: nothing is cut silently.
    """
    prompts = chat_prompts(examples["prompt"].to_pylist(), tokenizer)
    completions = [text + tokenizer.eos_token for text in examples["completion"].to_pylist()]
    asked = _encode(prompts, tokenizer)
    answered = _encode(completions, tokenizer)
    tokens = [np.array(a + b, np.int64) for a, b in zip(asked, answered, strict=True)]
    longest = max((len(row) for row in tokens), default=0)
    if longest > max_length:
        raise DataError(f"an example has {longest} tokens and training.max_length is {max_length}")
    if any(len(row) < 2 for row in answered):
        raise DataError("an example has an empty answer: it would teach nothing and hide that it does")
    return Corpus(tokens, np.array([len(row) for row in asked]), tokenizer.pad_token_id)


def chat_prompts(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Each prompt as one user turn, ready for the assistant's answer."""
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    rendered: list[str] = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return rendered


def steps_in(examples: int, batch_size: int, epochs: int) -> int:
    """Steps of a whole run; an epoch's last batch is filled up from the next epoch's order."""
    return max(1, examples * epochs // batch_size)


def rows_of(
    corpus_size: int, batch_size: int, seed: int, step: int, rank: int, workers: int
) -> npt.NDArray[np.int64]:
    """The examples that one worker trains on in one step, (batch_size / workers,) indices.

    The global batch does not depend on the number of workers; each takes its share of it.
    """
    first = step * batch_size
    wanted = np.arange(first, first + batch_size)
    epochs = wanted // corpus_size
    rows = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        rows[chosen] = generator(seed, BATCHES, int(epoch)).permutation(corpus_size)[wanted[chosen] % corpus_size]
    return rows[rank::workers]


def collate(corpus: Corpus, rows: Sequence[int] | npt.NDArray[np.int64]) -> Batch:
    """Pad the rows to one length on the right and lay out the targets.

    Raises DataError where a row bears no supervised token.
    """
    longest = max(len(corpus.tokens[row]) for row in rows)
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


def _encode(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return encoded

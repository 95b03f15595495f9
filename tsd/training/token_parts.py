"""Token parts: examples as tokens, made once for each tokenizer and modality, and read by training workers.

A part of the examples becomes a part of tokens. Workers map the tokens that they train on from a copy on their
machine's disk, so their memory does not grow with the corpus.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tsd.errors import InputError
from tsd.models.chat import chat_tokens, image_prompt_tokens, picture_place
from tsd.storage import node_copy
from tsd.storage.datasets import Dataset
from tsd.tasks import Task
from tsd.training.corpus import Corpus, Curves, Pictures, Ragged, joined, lacking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPLITS = ("train", "validation")  # that training reads


def token_table(
    examples: pa.Table, tokenizer: "PreTrainedTokenizerBase", task: Task | None = None
) -> tuple[pa.Table, dict[str, int | None]]:
    """Tokenise one part of the examples, without those of the test split.

    task: given for a vision student, whose prompt has an image in place of the values.
    Returns a table of the `TOKENS` schema and its metadata: the examples of each split, the padding token, and the
    position of the first image token, None for a text student.
    """
    examples = examples.filter(pc.is_in(examples["split"], pa.array(SPLITS)))
    prompts, first, curves = examples["prompt"].to_pylist(), None, pa.nulls(len(examples), pa.list_(pa.uint8()))
    if task is None:
        asked = chat_tokens(prompts, tokenizer)
    else:
        shown = image_prompt_tokens(task, tokenizer)
        asked, first = [shown] * len(prompts), picture_place(shown, tokenizer)
        values = [np.concatenate(task.curves_in(prompt)) for prompt in prompts]
        curves = pa.array(values, pa.list_(pa.uint8()))
    tokens, answers = joined(asked, examples["completion"].to_pylist(), tokenizer)
    offsets = np.append(tokens.starts, len(tokens.flat)).astype(np.int32)
    table = pa.table(
        {
            "series_id": examples["series_id"],
            "split": examples["split"],
            "tokens": pa.ListArray.from_arrays(offsets, tokens.flat.astype(np.int32)),
            "prompt_length": answers.astype(np.int32),
            "length": tokens.lengths.astype(np.int32),
            "curves": curves,
        }
    )
    counts = {split: pc.sum(pc.equal(table["split"], split)).as_py() or 0 for split in SPLITS}
    return table, {**counts, "pad": tokenizer.pad_token_id, "first": first}


def summary(notes: list[Mapping[str, int | None]]) -> dict[str, list[int | None] | int | None]:
    """The metadata of all parts, from that of each: examples of each split by part, and the tokenizer's ids."""
    counts = {split: [note[split] for note in notes] for split in SPLITS}
    return {**counts, "pad": notes[0]["pad"], "first": notes[0]["first"]}


@contextmanager
def corpora(
    tokens: Dataset, counts: Mapping[str, int], max_length: int, curves: int
) -> Iterator[dict[str, Corpus]]:
    """Open the first examples of each split, by id, for training. Their tokens are memory-mapped.

    counts: examples by split. curves: series of an example, for vision students.
    Raises InputError if a split has fewer examples, DataError if one of them is longer than max_length or has an
    empty response, or a part is damaged.
    """
    parts = max(_parts_needed(tokens, split, count) for split, count in counts.items())
    with node_copy.mapped(tokens, parts, _arrays) as arrays:
        found = {split: _corpus(tokens, arrays, split, count, curves) for split, count in counts.items()}
        for corpus in found.values():
            corpus.require_usable(max_length)
        yield found


def _parts_needed(tokens: Dataset, split: str, count: int) -> int:
    """Number of parts, from the first, that hold so many examples of a split."""
    there = np.cumsum(tokens.about[split])
    if not len(there) or there[-1] < count:
        raise InputError(lacking(split, count, int(there[-1]) if len(there) else 0))
    return int(np.searchsorted(there, count)) + 1


def _arrays(table: pa.Table) -> dict[str, npt.NDArray[Any]]:
    """The columns of a part that training needs, as flat arrays."""
    flat = {name: table[name].combine_chunks() for name in ("tokens", "curves")}
    return {
        **{name: column.flatten().to_numpy() for name, column in flat.items()},
        "curve_lengths": pc.fill_null(pc.list_value_length(flat["curves"]), 0).to_numpy().astype(np.int32),
        "length": table["length"].to_numpy(),
        "prompt_length": table["prompt_length"].to_numpy(),
        "split": pc.index_in(table["split"], pa.array(SPLITS)).to_numpy().astype(np.int8),
    }


def _corpus(
    tokens: Dataset, arrays: Mapping[str, npt.NDArray[Any]], split: str, count: int, curves: int
) -> Corpus:
    """The first `count` examples of a split."""
    rows = np.flatnonzero(arrays["split"] == SPLITS.index(split))[:count]  # (count,)
    answers = arrays["prompt_length"][rows].astype(np.int64)
    ids = Ragged(arrays["tokens"], *_places(arrays["length"], rows))
    first, pictures = tokens.about["first"], None
    if first is not None:
        values = Ragged(arrays["curves"], *_places(arrays["curve_lengths"], rows))
        pictures = Pictures(Curves(values, curves), first)
    return Corpus(ids, answers, tokens.about["pad"], pictures)


def _places(
    lengths: npt.NDArray[np.int32], rows: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where these rows begin in a flat array, and their lengths: (rows,) int64 each. lengths: of all its rows."""
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    return starts[rows], lengths[rows].astype(np.int64)

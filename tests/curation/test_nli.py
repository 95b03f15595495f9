"""Contradictions by inference: which sentences are compared, and a small random model as a real one would be."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from support.cross_encoder import WORDS, save_cross_encoder
from transformers import BertConfig

from tsd.curation import curate
from tsd.curation.nli import Inference, require_contradiction
from tsd.errors import InputError
from tsd.recipe import CurationConfig, NliConfig
from tsd.tasks import SINGLE
from tsd.teachers import Reply, annotations

TRUTH = {"trend": "flat", "noise": "low", "maximum": "end", "minimum": "middle"}
REPLY = {"trend": "It is rising.", "noise": "Low noise.", "extrema": "Maximum at the end, minimum in the middle."}
KEEP = CurationConfig.model_validate({"against_truth": "keep"})
PAIRS = [
    (f"the noise is {one}", f"the series is {other}" + " flat" * n)
    for one in WORDS
    for n, other in enumerate(WORDS)
]


class Listed:
    """Remembers what it is asked; a sentence with this word contradicts."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.asked: list[tuple[str, str]] = []

    def find(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        self.asked += pairs
        return [self.word in hypothesis for _, hypothesis in pairs]


def tables(*replies: Reply) -> tuple[pa.Table, pa.Table]:
    rows = len(replies)
    series = pa.table(
        {
            "series_id": pa.array(range(rows), pa.int64()),
            "split": ["train"] * rows,
            "values": pa.array([[number] for number in range(rows)], pa.list_(pa.uint8())),
            "truth": pa.array([TRUTH] * rows, SINGLE.tables.labels),
        }
    )
    return annotations(SINGLE, "someone", series, ["0"] * rows, replies), series


def test_each_sentence_is_compared_with_one_that_states_the_truth_and_a_contradicted_reply_goes() -> None:
    listed = Listed("rising")
    good = {**REPLY, "trend": "It is flat."}
    replies = tables(Reply(json.dumps(REPLY)), Reply(json.dumps(good)), Reply("?", "error", "server"))
    examples, rejects, _ = curate(SINGLE, *replies, KEEP, listed)
    assert examples["series_id"].to_pylist() == [1]
    assert rejects["reason"].to_pylist() == ["contradicts the truth on trend by NLI", "error: server"]
    assert listed.asked[:3] == [
        ("The series shows a clear flat trend.", "It is rising."),
        ("The noise intensity is low.", "Low noise."),
        ("The maximum lies at the end. The minimum lies at the middle.", REPLY["extrema"]),
    ]
    assert len(listed.asked) == 6  # a reply that was rejected before is not compared


def test_what_is_compared_is_what_would_be_learned() -> None:
    config = CurationConfig.model_validate({"against_truth": "correct"})
    examples, _, _ = curate(SINGLE, *tables(Reply(json.dumps(REPLY))), config, Listed("rising"))
    assert len(examples) == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cross-encoder of a real architecture, small and random."""
    return save_cross_encoder(tmp_path_factory.mktemp("nli"))


def test_a_contradiction_is_the_most_probable_label_and_probable_enough(folder: str) -> None:
    model = Inference(NliConfig(model=folder, threshold=0.5, batch_size=7))
    alone = torch.cat([model._probabilities([pair]) for pair in PAIRS])
    assert torch.allclose(alone.sum(1), torch.ones(len(PAIRS)))
    first = alone.argmax(1) == 2
    assert 0 < int(first.sum()) < len(PAIRS)
    least = float(alone[first, 2].median())
    wanted = (first & (alone[:, 2] >= least)).tolist()
    strict = Inference(NliConfig(model=folder, threshold=least - 1e-6, batch_size=7))
    assert strict.find(PAIRS) == wanted  # batches of any size, padded to their longest
    assert sum(wanted) < int(first.sum())
    assert Inference(NliConfig(model=folder, threshold=0.0)).find(PAIRS) == first.tolist()
    assert Inference(NliConfig(model=folder, threshold=1.0)).find([]) == []


def test_a_model_that_is_not_there_or_knows_no_contradiction_is_named(folder: str, tmp_path: Path) -> None:
    assert require_contradiction(folder) == 2
    with pytest.raises(InputError, match=r"curation\.nli\.model .*nowhere cannot be loaded"):
        require_contradiction(str(tmp_path / "nowhere"))
    BertConfig(id2label={0: "positive", 1: "negative"}, label2id={"positive": 0, "negative": 1}).save_pretrained(
        tmp_path
    )
    with pytest.raises(InputError, match="no label for a contradiction, only positive, negative"):
        require_contradiction(str(tmp_path))

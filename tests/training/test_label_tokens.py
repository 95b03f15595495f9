"""Which tokens carry a label or a number, and the loss over them."""

from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_qwen import qwen_tokenizer
from support.training_runs import PLAIN, student
from torch.nn.functional import cross_entropy

from tsd.tasks import SINGLE
from tsd.tasks.language.wording import Wordings, telling_words
from tsd.training.corpus import Corpus
from tsd.training.label_tokens import label_tokens
from tsd.training.loop import evaluate


def test_words_tell_classes_apart_where_not_every_class_uses_them() -> None:
    up = Wordings.of(["The series [rises|climbs] to {end}.", "It has a clear upward trend."])
    down = Wordings.of(["The series falls to {end}.", "It has a [clear|marked] downward trend."])
    trend = {"up": up, "down": down}
    assert telling_words([trend]) == {"up", "rises", "climbs", "upward", "down", "falls", "downward", "marked"}


def test_words_that_another_facet_always_uses_tell_nothing_unless_they_name_a_class() -> None:
    trend = {name: Wordings.of([text]) for name, text in (("up", "It rises to the end."), ("flat", "Only noise."))}
    noise = {name: Wordings.of([f"The noise is {name} to the end."]) for name in ("low", "high")}
    place = {name: Wordings.of([f"The peak is at the {name}."]) for name in ("beginning", "end")}
    told = {"up", "it", "rises", "flat", "only", "low", "high", "beginning", "end"}
    assert telling_words([trend, noise, place]) == told


def test_words_of_the_task_are_its_classes_and_their_synonyms() -> None:
    telling, others = SINGLE.words
    assert {"rises", "falls", "flat", "upward", "low", "medium", "high", "beginning", "middle", "end"} <= telling
    assert {"series", "noise", "maximum", "lowest", "point", "of"} <= others
    assert not telling & others


def said(tokenizer: Any, labels: Any, text: str) -> list[str]:
    """The pieces of a text that carry a label or number."""
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [tokenizer.decode([token]).strip() for token in tokens if labels[token]]


TEXT = "The series rises from about 12 to 80. The noise is medium. The maximum lies near the end, at 117 of 128."


def test_tokens_of_a_vocabulary_of_words_are_whole_words_and_numbers(tokenizer: Any) -> None:
    labels = label_tokens(tokenizer, *SINGLE.words)
    found = said(tokenizer, labels, TEXT)
    assert {"12", "80", "medium", "end"} <= set(found)
    assert not {"The", "series", "noise", "maximum", "point"} & set(found)
    assert labels.shape == (len(tokenizer),)
    assert not labels[tokenizer.all_special_ids].any()


def test_tokens_of_a_vocabulary_of_pieces_do_too() -> None:
    qwen = qwen_tokenizer()
    found = said(qwen, label_tokens(qwen, *SINGLE.words), TEXT)
    assert "".join(found) == "rises1280mediumend117128"


def test_the_loss_is_that_of_its_two_kinds_of_tokens_weighted_by_their_counts(
    corpus: Corpus, tokenizer: Any
) -> None:
    model, labels = student(tokenizer), label_tokens(tokenizer, *SINGLE.words)
    found = evaluate(model, corpus, 16, PLAIN, labels)
    sums, counts = np.zeros(2), np.zeros(2)
    for row in range(160):
        tokens, first = torch.tensor(corpus.tokens[row]).long(), int(corpus.answers[row])
        with torch.no_grad():
            logits = model(input_ids=tokens[None]).logits[0, first - 1 : -1].float()
        losses = cross_entropy(logits, tokens[first:], reduction="none").double().numpy()
        carries = labels[tokens[first:].numpy()]
        for kind, which in enumerate((carries, ~carries)):
            sums[kind] += losses[which].sum()
            counts[kind] += which.sum()
    assert counts.min() > 160
    assert (found.labels, found.wording) == pytest.approx(tuple(sums / counts), rel=1e-4)
    assert found.loss == pytest.approx(sums.sum() / counts.sum(), rel=1e-4)


def test_without_the_tokens_or_with_none_of_them_there_is_one_loss(corpus: Corpus, tokenizer: Any) -> None:
    model = student(tokenizer)
    plain = evaluate(model, corpus, 16, PLAIN)
    assert (plain.labels, plain.wording) == (None, None)
    assert evaluate(model, corpus, 16, PLAIN, np.zeros(len(tokenizer), bool)) == plain

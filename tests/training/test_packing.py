"""Packed examples: logits, losses and gradients are those of each example alone."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.training_runs import CONFIG, PLAIN, as_it_was, losses_of, olmo, run, student
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from tsd.errors import TrainingError
from tsd.models.forward import lean
from tsd.training.corpus import Corpus, pack
from tsd.training.loop import Progress, evaluate, summed_loss


def qwen2(tokenizer: Any) -> PreTrainedModel:
    """A small Qwen2, whose queries share keys and values and whose second layer sees 50 tokens back."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        use_sliding_window=True,
        sliding_window=50,
        max_window_layers=1,
    )
    return Qwen2ForCausalLM(config)


@settings(max_examples=10)
@given(rows=st.lists(st.integers(0, 159), min_size=2, max_size=6))
def test_packed_examples_and_padded_ones_have_the_same_loss_and_gradients(
    corpus: Corpus, tokenizer: Any, rows: list[int]
) -> None:
    def loss_and_gradient(packing: bool) -> tuple[float, torch.Tensor]:
        model = student(tokenizer)
        loss = summed_loss(model, corpus, rows, "cpu", packing)
        loss.backward()
        return float(loss.detach()), torch.cat([p.grad.flatten() for p in model.parameters()])

    (padded, expected), (packed, found) = loss_and_gradient(False), loss_and_gradient(True)
    assert packed == pytest.approx(padded, rel=1e-5)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def packed_logits(model: PreTrainedModel, corpus: Corpus, rows: list[int], answers: bool) -> list[torch.Tensor]:
    """The logits of each packed example, shortest first: of all its tokens, or where an answer is asked for."""
    batch = pack(corpus, rows)
    whole = [(count, length, length) for count, length, _ in batch.segments]
    with torch.no_grad(), lean(model) as logits_of:
        logits = logits_of(
            input_ids=torch.from_numpy(batch.inputs)[None],
            position_ids=torch.from_numpy(batch.places)[None],
            segments=batch.segments if answers else whole,
            wanted=torch.from_numpy(batch.positions) if answers else torch.arange(len(batch.inputs)),
        )[0]
    ordered = in_order(corpus, rows)
    return list(logits.split([len(corpus.tokens[row]) - 1 - first(corpus, row, answers) for row in ordered]))


def in_order(corpus: Corpus, rows: list[int]) -> list[int]:
    """The rows as they are packed."""
    return sorted(rows, key=lambda row: len(corpus.tokens[row]))


def first(corpus: Corpus, row: int, answers: bool) -> int:
    """The first token whose logits `packed_logits` gives."""
    return int(corpus.answers[row]) - 1 if answers else 0


@pytest.mark.parametrize("answers", [False, True], ids=["all tokens", "answers"])
@pytest.mark.parametrize("family", ["qwen3", "qwen2"])
@settings(max_examples=15)
@given(data=st.data())
def test_changing_a_token_of_one_packed_example_changes_no_logit_of_another(
    corpus: Corpus, tokenizer: Any, family: str, answers: bool, data: st.DataObject
) -> None:
    model = student(tokenizer) if family == "qwen3" else qwen2(tokenizer)
    rows = data.draw(st.lists(st.integers(0, 159), min_size=2, max_size=5, unique=True))
    row = data.draw(st.sampled_from(rows))
    changed = corpus.tokens[row].copy()
    at = data.draw(st.integers(0, len(changed) - 2))
    changed[at] = (changed[at] + data.draw(st.integers(1, len(tokenizer) - 1))) % len(tokenizer)
    tokens = list(corpus.tokens)
    tokens[row] = changed
    before = packed_logits(model, corpus, rows, answers)
    after = packed_logits(model, Corpus(tokens, corpus.answers, corpus.pad), rows, answers)
    for one, was, now in zip(in_order(corpus, rows), before, after, strict=True):
        if one != row:
            assert torch.equal(was, now)
        else:
            sees = max(0, at - first(corpus, row, answers))
            assert torch.equal(was[:sees], now[:sees])
            assert answers or not torch.equal(was[sees:], now[sees:])


@pytest.mark.parametrize("answers", [False, True], ids=["all tokens", "answers"])
@pytest.mark.parametrize("family", ["qwen3", "qwen2"])
def test_a_packed_example_has_the_logits_that_transformers_gives_it_alone(
    corpus: Corpus, tokenizer: Any, family: str, answers: bool
) -> None:
    model = student(tokenizer) if family == "qwen3" else qwen2(tokenizer)
    rows = in_order(corpus, [3, 40, 79, 120, 43, 83])
    for row, packed in zip(rows, packed_logits(model, corpus, rows, answers), strict=True):
        with torch.no_grad():
            alone = model(input_ids=torch.from_numpy(corpus.tokens[row][:-1])[None]).logits[0]
        assert torch.allclose(packed, alone[first(corpus, row, answers) :], atol=1e-4)


def test_gradients_are_those_that_transformers_own_forward_gives(corpus: Corpus, tokenizer: Any) -> None:
    rows = [0, 39, 80, 17]
    ours, theirs = student(tokenizer), student(tokenizer)
    summed_loss(ours, corpus, rows, "cpu").backward()
    for row in rows:
        tokens = torch.from_numpy(corpus.tokens[row])[None]
        labels = tokens.clone()
        labels[:, : corpus.answers[row]] = -100
        answered = tokens.shape[1] - int(corpus.answers[row])
        (theirs(input_ids=tokens, labels=labels).loss * answered).backward()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-5 * float(other.grad.abs().max())), name


def test_a_model_of_unknown_layers_has_the_loss_of_its_own_forward_and_is_not_packed(
    corpus: Corpus, tokenizer: Any
) -> None:
    model = olmo(tokenizer)
    expected = 0.0
    for row in (0, 39, 80):
        tokens = torch.from_numpy(corpus.tokens[row])[None]
        labels = tokens.clone()
        labels[:, : corpus.answers[row]] = -100
        answered = tokens.shape[1] - int(corpus.answers[row])
        expected += float(model(input_ids=tokens, labels=labels).loss.detach()) * answered
    assert float(summed_loss(model, corpus, [0, 39, 80], "cpu").detach()) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(TrainingError, match=r"Olmo2ForCausalLM cannot be packed.*training\.packing"):
        summed_loss(model, corpus, [0, 39], "cpu", True)


def test_a_model_is_what_it_was_when_a_loss_is_made(corpus: Corpus, tokenizer: Any) -> None:
    model = student(tokenizer)
    summed_loss(model, corpus, [0, 39], "cpu", True)
    assert as_it_was(model)


@pytest.mark.parametrize("ends", ["well", "by an error"])
def test_a_model_is_prepared_once_for_a_run_and_is_what_it_was_at_its_end(
    corpus: Corpus, tokenizer: Any, ends: str
) -> None:
    model = student(tokenizer)
    walks: list[None] = []
    modules = model.modules
    model.modules = lambda: walks.append(None) or modules()  # type: ignore[method-assign,func-returns-value]
    asked: list[int] = []  # how often the model's modules were looked through, at each report

    def report(now: Progress) -> None:
        assert not as_it_was(model)
        asked.append(len(walks))
        walks.clear()
        if ends == "by an error" and now.step == 3:
            raise InterruptedError

    with nullcontext() if ends == "well" else pytest.raises(InterruptedError):
        run(model, corpus, report=report)
    del model.modules
    assert as_it_was(model)
    assert max(asked[1:]) < asked[0]


def test_a_run_packed_and_one_padded_have_the_same_losses(corpus: Corpus, tokenizer: Any) -> None:
    def losses(packing: bool | None) -> list[float]:
        return losses_of(student(tokenizer), corpus, CONFIG.model_copy(update={"packing": packing}), PLAIN)

    padded = losses(False)
    assert losses(True) == pytest.approx(padded, rel=1e-4)
    assert losses(None) == pytest.approx(padded, rel=1e-4)


def test_a_run_by_tokens_sees_every_token_once_and_learns(corpus: Corpus, tokenizer: Any) -> None:
    model = student(tokenizer)
    before = evaluate(model, corpus, 16, PLAIN).loss
    config = CONFIG.model_copy(update={"tokens_per_batch": 1000, "epochs": 3})
    end = run(model, corpus, config)
    assert end.tokens == 3 * int(corpus.lengths.sum())
    assert end.tokens / 1000 <= end.step < 1.5 * end.tokens / 1000
    assert evaluate(model, corpus, 16, PLAIN).loss < 0.7 * before

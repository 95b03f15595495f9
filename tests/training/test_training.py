"""Training: a loss that falls, the learning rate, and a run that continues where it stopped."""

import copy
import dataclasses
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.training_runs import CONFIG, PLAIN, run, student

from tsd.errors import TrainingError
from tsd.training.corpus import Corpus
from tsd.training.loop import Progress, evaluate, make_optimizer, schedule, summed_loss

# ---- Learning


def test_the_loss_starts_near_that_of_guessing_and_falls(corpus: Corpus, tokenizer: Any) -> None:
    model = student(tokenizer)
    before = evaluate(model, corpus, 16, PLAIN).loss
    assert before > math.log(len(tokenizer)) - 0.5
    run(model, corpus, CONFIG.model_copy(update={"epochs": 3}))
    assert evaluate(model, corpus, 16, PLAIN).loss < 0.7 * before


def test_the_loss_of_held_out_examples_does_not_depend_on_the_batch(corpus: Corpus, tokenizer: Any) -> None:
    model = student(tokenizer)
    losses = [evaluate(model, corpus, size, PLAIN).loss for size in (1, 7, 160)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


@settings(max_examples=10)
@given(rows=st.lists(st.integers(0, 159), min_size=1, max_size=6))
def test_the_loss_of_a_padded_batch_is_the_sum_over_its_rows_by_hand(
    corpus: Corpus, tokenizer: Any, rows: list[int]
) -> None:
    model = student(tokenizer).eval()
    with torch.no_grad():
        total = 0.0
        for row in rows:
            tokens = torch.from_numpy(corpus.tokens[row])
            logits = model(input_ids=tokens[None]).logits[0].double().log_softmax(-1)
            answer = range(int(corpus.answers[row]), len(tokens))
            total -= sum(float(logits[i - 1, tokens[i]]) for i in answer)
        assert float(summed_loss(model, corpus, rows, "cpu")) == pytest.approx(total, rel=1e-5)


def test_the_gradient_of_a_padded_batch_is_the_sum_of_its_rows_gradients(corpus: Corpus, tokenizer: Any) -> None:
    def gradient(*batches: list[int]) -> torch.Tensor:
        model = student(tokenizer)
        for rows in batches:
            summed_loss(model, corpus, rows, "cpu").backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    together, apart = gradient([0, 39, 80, 17]), gradient([0], [39], [80], [17])
    assert torch.allclose(together, apart, rtol=1e-3, atol=1e-5 * float(apart.abs().max()))


# ---- Counting


def test_every_step_is_counted_with_its_tokens_and_its_loss(corpus: Corpus, tokenizer: Any) -> None:
    seen: list[Progress] = []
    end = run(student(tokenizer), corpus, report=lambda now: seen.append(copy.copy(now)))
    assert [now.step for now in seen] == list(range(1, 21))
    assert end.tokens == int(corpus.lengths.sum())  # one epoch sees every token once
    assert end.supervised == int((corpus.lengths - corpus.answers).sum())
    assert all(0 < now.loss < 10 for now in seen)
    assert [now.seconds for now in seen] == sorted(now.seconds for now in seen)


def test_the_reported_loss_is_the_mean_over_the_steps_supervised_tokens(corpus: Corpus, tokenizer: Any) -> None:
    one = Corpus(corpus.tokens[:8], corpus.answers[:8], corpus.pad)
    expected = evaluate(student(tokenizer), one, 8, PLAIN).loss
    assert run(student(tokenizer), one).loss == pytest.approx(expected, rel=1e-5)


def test_a_loss_that_is_not_a_number_ends_the_run_and_names_the_step(corpus: Corpus, tokenizer: Any) -> None:
    model = student(tokenizer)
    progress = Progress()

    def poison(now: Progress) -> None:
        if now.step == 5:
            with torch.no_grad():
                next(model.parameters()).fill_(math.nan)

    with pytest.raises(TrainingError, match="step 5") as caught:
        run(model, corpus, progress=progress, report=poison)
    assert "learning rate" in str(caught.value)


def test_a_gradient_that_is_no_number_changes_no_weight(corpus: Corpus, tokenizer: Any) -> None:
    model = student(tokenizer)
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    next(model.parameters()).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match=r"the gradient's norm is (inf|nan) at step 0"):
        run(model, corpus)
    assert all(torch.equal(*pair) for pair in zip(weights, model.parameters(), strict=True))


# ---- The learning rate


def test_the_learning_rate_rises_to_its_peak_and_falls_to_nothing() -> None:
    shares = [schedule(step, 200, 0.05) for step in range(200)]
    assert shares[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert all(a > b for a, b in pairwise(shares[10:]))
    assert shares[10] == 1.0
    assert shares[105] == pytest.approx(0.5)  # half way down the cosine
    assert 0 < shares[-1] < 1e-3


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_the_learning_rate_is_never_negative_nor_above_its_peak(steps: int, warmup: float) -> None:
    ends = {0, steps // 3, steps // 2, steps - 1}
    assert all(0 <= schedule(step, steps, warmup) <= 1 for step in ends)
    assert schedule(0, steps, warmup) > 0


def test_gains_are_not_decayed_and_matrices_are(tokenizer: Any) -> None:
    model = student(tokenizer)
    by_id = {
        id(p): group["weight_decay"]
        for group in make_optimizer(model, CONFIG).param_groups
        for p in group["params"]
    }
    assert len(by_id) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert by_id[id(parameter)] == (0.0 if "norm" in name else CONFIG.weight_decay), name


# ---- Going on


@pytest.mark.parametrize("stop", [1, 7, 19])
def test_a_run_that_was_stopped_goes_on_to_the_same_weights_bit_for_bit(
    corpus: Corpus, tokenizer: Any, stop: int
) -> None:
    undisturbed = student(tokenizer)
    end = run(undisturbed, corpus)

    config = CONFIG.model_copy(update={"checkpoint_every": stop})
    first = student(tokenizer)
    optimizer = make_optimizer(first, config)
    kept: dict[str, Any] = {}

    class KilledError(Exception):
        pass

    def save(now: Progress) -> None:
        kept.update(
            model=copy.deepcopy(first.state_dict()),
            optimizer=copy.deepcopy(optimizer.state_dict()),
            progress=dataclasses.asdict(now),
        )
        raise KilledError

    with pytest.raises(KilledError):
        run(first, corpus, config, optimizer=optimizer, save=save)
    assert kept["progress"]["step"] == stop

    again = student(tokenizer, seed=99)  # whatever it starts from is overwritten
    again.load_state_dict(kept["model"])
    optimizer = make_optimizer(again, CONFIG)
    optimizer.load_state_dict(kept["optimizer"])
    resumed = run(again, corpus, optimizer=optimizer, progress=Progress(**kept["progress"]))
    for name, weight in undisturbed.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert (resumed.step, resumed.tokens, resumed.loss) == (end.step, end.tokens, end.loss)
    assert resumed.seconds > kept["progress"]["seconds"]


def test_a_checkpoint_is_saved_every_so_many_steps_and_not_at_the_end(corpus: Corpus, tokenizer: Any) -> None:
    saved: list[int] = []
    reported: list[int] = []
    config = CONFIG.model_copy(update={"checkpoint_every": 5})
    run(
        student(tokenizer),
        corpus,
        config,
        save=lambda now: saved.append(now.step),
        report=lambda now: reported.append(now.step),
    )
    assert saved == [5, 10, 15]
    assert reported == list(range(1, 21))  # the steps of a checkpoint, too

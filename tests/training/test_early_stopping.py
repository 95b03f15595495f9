"""Early stopping: when a run gives up, that a restart changes nothing, that laws are fitted without such runs."""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from tsd.cluster.laws import fit_laws
from tsd.models.students import build
from tsd.models.tokenizer import build_tokenizer
from tsd.recipe import Student, TrainingConfig
from tsd.training.corpus import Batches, Corpus, tokenise
from tsd.training.loop import Progress, WorkerContext, evaluate, make_optimizer, train

PLAIN = WorkerContext()
EPOCHS, STEPS = 8, 3  # steps an epoch


@pytest.fixture(scope="module")
def tokenizer(examples: pa.Table) -> Any:
    """A tokenizer built on the examples' own words."""
    return build_tokenizer(examples["completion"].to_pylist(), 2048)


@pytest.fixture(scope="module")
def corpus(examples: pa.Table, tokenizer: Any) -> Corpus:
    """An epoch of 24 examples."""
    return tokenise(examples.slice(0, 24), tokenizer, 2048)


def config(**other: Any) -> TrainingConfig:
    """Eight epochs of three steps."""
    return TrainingConfig(batch_size=8, epochs=EPOCHS, **other)


def trained(
    corpus: Corpus,
    tokenizer: Any,
    settings: TrainingConfig,
    held_out: Callable[[Any], float],
    save: Callable[[Any, Any, Progress], None] = lambda *_: None,
    start: tuple[Any, Any, Progress] | None = None,
) -> tuple[dict[str, Tensor], Progress]:
    """Weights and progress at the end, from the beginning or from what was saved before."""
    model = build(Student(name="0.03M"), tokenizer, 0, 2048)
    optimizer, progress = make_optimizer(model, settings), Progress()
    if start:
        weights, moments, progress = copy.deepcopy(start)
        model.load_state_dict(weights)
        optimizer.load_state_dict(moments)
    train(
        model,
        corpus,
        settings,
        learning_rate=4e-3,
        seed=3,
        place=PLAIN,
        optimizer=optimizer,
        progress=progress,
        save=lambda now: save(model, optimizer, now),
        held_out=partial(held_out, model),
    )
    return model.state_dict(), progress


def saying(losses: Sequence[float]) -> Callable[[Any], float]:
    """Held-out losses that are given."""
    left = iter(losses)
    return lambda _: next(left)


# ---- When


@given(losses=st.lists(st.integers(0, 9), min_size=1, max_size=20), patience=st.integers(1, 5))
def test_a_run_stops_when_the_lowest_loss_lies_as_many_epochs_back_as_it_has_patience(
    losses: list[int], patience: int
) -> None:
    progress = Progress(step=0, steps=len(losses) + 1)
    for epoch, loss in enumerate(losses):
        progress.step += 1
        progress.judge(loss, patience)
        assert progress.stopped == (epoch - losses.index(min(losses[: epoch + 1])) >= patience)
        if progress.stopped:
            break


@pytest.mark.parametrize(
    ("losses", "epochs"),
    [
        ([5, 4, 4.5, 4.2], 4),
        ([5, 6, 7], 3),
        ([5, math.nan, math.nan], 3),
        ([5, 6, 4, 4, 3, 3, 2, 1], 8),
        ([8, 7, 6, 5, 4, 3, 9, 9], 8),
    ],
)
def test_it_stops_at_the_end_of_that_epoch(
    corpus: Corpus, tokenizer: Any, losses: list[float], epochs: int
) -> None:
    _, progress = trained(corpus, tokenizer, config(early_stopping_patience=2), saying(losses))
    assert progress.step == epochs * STEPS
    assert progress.stopped == (epochs < EPOCHS)


def test_without_patience_a_run_goes_to_its_end_and_asks_for_no_held_out_loss(
    corpus: Corpus, tokenizer: Any
) -> None:
    _, progress = trained(corpus, tokenizer, config(), saying([]))
    assert (progress.step, progress.stopped) == (EPOCHS * STEPS, False)


def test_a_run_that_learns_its_few_examples_by_heart_stops_before_its_end(
    examples: pa.Table, corpus: Corpus, tokenizer: Any
) -> None:
    others = tokenise(examples.slice(100, 60), tokenizer, 2048)
    settings = TrainingConfig(batch_size=8, epochs=200, early_stopping_patience=3)
    _, progress = trained(corpus, tokenizer, settings, lambda model: evaluate(model, others, 30, PLAIN).loss)
    assert progress.stopped
    assert 10 * STEPS < progress.step < 150 * STEPS
    assert progress.loss < progress.lowest


@given(
    budget=st.none() | st.integers(1000, 3000),
    lengths=st.lists(st.integers(50, 1000), min_size=3, max_size=40),
    epochs=st.integers(1, 4),
)
def test_every_epoch_ends_once_and_the_last_one_with_the_run(
    budget: int | None, lengths: list[int], epochs: int
) -> None:
    settings = TrainingConfig(batch_size=3, tokens_per_batch=budget, epochs=epochs)
    batches = Batches(np.array(lengths), settings, 0)
    done = [batches.epochs_done(step) for step in range(batches.steps + 1)]
    assert done == sorted(done)
    seen = np.cumsum([0] + [len(batches.rows(step)) for step in range(batches.steps)])
    assert done[:-1] == [min(epochs, int(count) // len(lengths)) for count in seen[:-1]]
    assert done[0] == 0
    # What is left of the last epoch may be less than a batch, where batches are counted in examples.
    assert done[-1] >= (epochs if budget else int(seen[-1]) // len(lengths))


def test_patience_that_cannot_run_out_is_refused() -> None:
    with pytest.raises(ValidationError, match="early_stopping_patience 8 never stops a run of 8 epochs"):
        config(early_stopping_patience=8)


# ---- And a restart


def test_a_run_gone_on_with_stops_at_the_same_step_with_the_same_weights(corpus: Corpus, tokenizer: Any) -> None:
    losses = [5.0, 4.0, 4.5, 4.2, 1.0, 1.0, 1.0, 1.0]
    kept: list[tuple[Any, Any, Progress]] = []

    def save(model: Any, optimizer: Any, now: Progress) -> None:
        kept.append(copy.deepcopy((model.state_dict(), optimizer.state_dict(), now)))

    settings = config(early_stopping_patience=2, checkpoint_every=4)
    expected, whole = trained(corpus, tokenizer, settings, saying(losses), save)
    assert [now.step for _, _, now in kept] == [4, 8, 12]
    for start in kept:
        found, progress = trained(
            corpus, tokenizer, settings, saying(losses[start[2].step // STEPS :]), start=start
        )
        assert (progress.step, progress.stopped) == (whole.step, whole.stopped) == (12, True)
        assert all(weights.equal(expected[name]) for name, weights in found.items())


# ---- Laws


def test_laws_are_fitted_without_runs_that_stopped_early() -> None:
    whole = {"parameters_without_embeddings": 30_000, "examples": 500, "validation_loss": 0.5}
    rows = [{**whole, "examples": 500 * factor, "stopped_early": factor > 2} for factor in range(1, 10)]
    schema = pa.schema(
        {
            **{name: pa.int64() for name in ("parameters_without_embeddings", "examples")},
            "validation_loss": pa.float64(),
            "label_loss": pa.float64(),
            "distilled_from": pa.string(),
            "stopped_early": pa.bool_(),
            "modality": pa.string(),
        }
    )
    said = fit_laws(pa.Table.from_pylist([*rows, {**rows[0], "stopped_early": None}], schema), [], 100)["loss"]
    assert str(said).endswith("needs 5 runs, got 3")


def test_one_law_is_not_fitted_to_students_that_read_and_students_that_look() -> None:
    run = {
        "parameters_without_embeddings": 30_000,
        "validation_loss": 0.5,
        "label_loss": None,
        "distilled_from": None,
    }
    modalities = ("text", "text", None, "image", "image", "image", "image")
    rows = [
        {**run, "examples": 500 * i, "stopped_early": False, "modality": modality}
        for i, modality in enumerate(modalities, 1)
    ]
    assert str(fit_laws(pa.Table.from_pylist(rows), [], 100)["loss"]).endswith("needs 5 runs, got 3")
    looking = pa.Table.from_pylist(rows[3:])
    assert str(fit_laws(looking, [], 100)["loss"]).endswith("needs 5 runs, got 4")

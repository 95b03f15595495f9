"""Steps in several passes, and layers that run forward a second time: the same step with less memory."""

import dataclasses
from typing import Any
from weakref import WeakValueDictionary

import pytest
import torch
from support.training_runs import CONFIG, adapted, as_it_was, olmo, run, student

from tsd.models.students import build
from tsd.recipe import Student, TrainingConfig
from tsd.training.corpus import Corpus


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that are kept for the backward pass, now and at most; shared memory counts once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.storages: WeakValueDictionary[int, Any] = WeakValueDictionary()
        super().__init__(self.pack, lambda kept: kept.tensor)

    def pack(self, tensor: torch.Tensor) -> "Holder":
        """Note a tensor that is kept."""
        storage = tensor.untyped_storage()
        held = self.storages.get(storage.data_ptr())
        if held is None:
            held = self.storages[storage.data_ptr()] = Counted(self, storage.nbytes())
        return Holder(tensor, held)


class Counted:
    """Bytes that count for as long as it lives."""

    def __init__(self, kept: Kept, size: int) -> None:
        self.kept, self.size = kept, size
        kept.now += size
        kept.most = max(kept.most, kept.now)

    def __del__(self) -> None:
        self.kept.now -= self.size


@dataclasses.dataclass(frozen=True)
class Holder:
    """A tensor that is kept, and its count."""

    tensor: torch.Tensor
    counted: Counted


# ---- Accumulation


def after_a_step(tokenizer: Any, corpus: Corpus, config: TrainingConfig) -> tuple[float, torch.Tensor]:
    """The loss of one step of plain descent, and the weights that it leads to."""
    model = student(tokenizer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loss = run(model, corpus, config, optimizer=optimizer, rate=1.0).loss
    return loss, torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_a_step_in_several_passes_has_the_loss_and_the_gradient_of_one(
    corpus: Corpus, tokenizer: Any, packing: bool
) -> None:
    eight = Corpus(corpus.tokens[30:38], corpus.answers[30:38], corpus.pad)
    config = CONFIG.model_copy(update={"packing": packing, "max_grad_norm": 1e9})
    loss, weights = after_a_step(tokenizer, eight, config)
    for most in (1, 400, 700):
        again, found = after_a_step(tokenizer, eight, config.model_copy(update={"micro_batch_tokens": most}))
        assert again == pytest.approx(loss, rel=1e-6)
        assert torch.allclose(found, weights, rtol=1e-4, atol=1e-5)


def test_a_pass_of_fewer_tokens_keeps_less_for_its_backward(corpus: Corpus, tokenizer: Any) -> None:
    def most_kept(at_once: int | None) -> int:
        kept = Kept()
        with kept:
            run(student(tokenizer), eight, CONFIG.model_copy(update={"micro_batch_tokens": at_once}))
        return kept.most

    eight = Corpus(corpus.tokens[:8], corpus.answers[:8], corpus.pad)
    assert most_kept(400) < 0.4 * most_kept(None)


# ---- Layers that run forward a second time


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("kind", ["full", "adapters", "unknown layers"])
def test_layers_that_run_a_second_time_keep_less_and_learn_the_same(
    corpus: Corpus, tokenizer: Any, students: dict[str, Student], kind: str, packing: bool
) -> None:
    def trained(again: bool) -> tuple[int, float, torch.Tensor]:
        model = olmo(tokenizer) if kind == "unknown layers" else adapted(build(students[kind], tokenizer, 0, 2048))
        layout = {"packing": packing and kind != "unknown layers", "activation_checkpointing": again}
        kept = Kept()
        with kept:
            end = run(model, eight, CONFIG.model_copy(update=layout))
        assert as_it_was(model)
        return kept.most, end.loss, torch.cat([p.detach().flatten() for p in model.parameters()])

    eight = Corpus(corpus.tokens[:8], corpus.answers[:8], corpus.pad)
    (much, expected, weights), (little, loss, found) = trained(False), trained(True)
    assert little < 0.6 * much
    assert loss == expected
    assert torch.equal(found, weights)

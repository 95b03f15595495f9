"""Small students, and training them to the end."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import Olmo2Config, Olmo2ForCausalLM, PreTrainedModel

from tsd.models.students import build
from tsd.recipe import Student, TrainingConfig
from tsd.training.corpus import Corpus
from tsd.training.loop import Progress, WorkerContext, evaluate, make_optimizer, train

PLAIN = WorkerContext()
CONFIG = TrainingConfig(batch_size=8, checkpoint_every=10_000)
RATE = 4e-3


def student(tokenizer: Any, seed: int = 0) -> PreTrainedModel:
    """A small student."""
    return build(Student(name="0.03M"), tokenizer, seed, 2048)


def olmo(tokenizer: Any) -> PreTrainedModel:
    """A small model whose layers are made another way."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    padding = tokenizer.pad_token_id
    return Olmo2ForCausalLM(
        Olmo2Config(vocab_size=len(tokenizer), pad_token_id=padding, initializer_range=0.2, **shape)
    )


def run(
    model: PreTrainedModel,
    corpus: Corpus,
    config: TrainingConfig = CONFIG,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    progress: Progress | None = None,
    place: WorkerContext = PLAIN,
    rate: float = RATE,
    report: Callable[[Progress], None] = lambda _: None,
    save: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Train to the end and return how far that is."""
    progress = progress or Progress()
    train(
        model,
        corpus,
        config,
        learning_rate=rate,
        seed=3,
        place=place,
        optimizer=optimizer or make_optimizer(model, config),
        progress=progress,
        report=report,
        save=save,
    )
    return progress


def as_it_was(model: PreTrainedModel) -> bool:
    """Whether a model runs forward as transformers made it."""
    patched = any("forward" in vars(module) for module in model.modules())
    return model.config._attn_implementation == "sdpa" and not patched


def adapted(model: Any) -> Any:
    """The model; adapters start at B = 0, where A has no gradient, so B is moved away from it."""
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def losses_of(model: Any, corpus: Corpus, config: TrainingConfig, place: WorkerContext) -> list[float]:
    """Train to the end: the loss of each step, and last that of the whole corpus."""
    losses: list[float] = []
    run(model, corpus, config, place=place, report=lambda now: losses.append(now.loss))
    return [*losses, evaluate(model, corpus, 8, place).loss]

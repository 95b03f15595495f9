"""What large models take: counted on models that are there, and arithmetic that a person can follow."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from support.workers import WORKERS, joined, together
from transformers import Qwen2Config, Qwen2ForCausalLM

from tsd.models.memory import HOPPER, QWEN, Load, Shape, memory, moving, states
from tsd.models.students import parameter_counts
from tsd.recipe import TrainingConfig
from tsd.training.loop import make_optimizer, shard

TINY = Shape(layers=3, hidden=32, mlp=80, heads=4, key_heads=2, head=8, vocabulary=1000, tied=True)
LOAD = Load(tokens=16_384, supervised=2_048, length=512)


def qwen(shape: Shape) -> Qwen2ForCausalLM:
    """A model of transformers with these dimensions."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.mlp,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_heads,
            tie_word_embeddings=shape.tied,
        )
    )


@pytest.mark.parametrize("size", QWEN)
def test_parameters_are_those_of_transformers_own_model(size: str) -> None:
    shape = QWEN[size]
    with init_empty_weights():
        model = qwen(shape)
    model.tie_weights()
    total, body = parameter_counts(model)
    assert (shape.parameters, shape.body) == (total, body)


def work(rank: int, out: Path) -> None:
    """One of two workers: a step, and the bytes that it keeps."""
    with joined(rank, out) as place:
        model: Any = shard(qwen(TINY), place)
        optimizer = make_optimizer(model, TrainingConfig())
        model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
        optimizer.step()
        mine = [
            *(tensor.to_local() for p in model.parameters() for tensor in (p, p.grad)),
            *(tensor.to_local() for s in optimizer.state.values() for name, tensor in s.items() if name != "step"),
        ]
        (out / f"{rank}.json").write_text(json.dumps(sum(tensor.nbytes for tensor in mine)))


def test_what_two_workers_keep_of_a_shared_model_is_what_the_formula_says(tmp_path: Path) -> None:
    together(work, tmp_path)
    kept = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(WORKERS)]
    assert sum(kept) == states(TINY.parameters, 1)
    assert all(one == pytest.approx(states(TINY.parameters, WORKERS), rel=0.01) for one in kept)


def test_more_gpus_take_less_each_down_to_what_is_not_shared() -> None:
    for shape in QWEN.values():
        needed = [sum(memory(shape, gpus, LOAD, checkpointing=True).values()) for gpus in (2, 4, 8, 64)]
        assert needed == sorted(needed, reverse=True)
        assert needed[-1] > sum(memory(shape, 2, LOAD, checkpointing=True).values()) - states(shape.parameters, 2)


def test_computing_activations_again_saves_memory() -> None:
    for shape in QWEN.values():
        kept, again = (memory(shape, 8, LOAD, checkpointing=way) for way in (False, True))
        assert again["activations"] < kept["activations"] / 5
        assert again["states"] == kept["states"]


def test_one_gpu_moves_nothing_and_a_second_node_moves_at_the_networks_rate() -> None:
    shape = QWEN["7B"]
    assert moving(shape, 1, HOPPER) == 0.0
    within, between = moving(shape, 8, HOPPER), moving(shape, 16, HOPPER)
    assert within == pytest.approx(8 * shape.parameters * 7 / 8 / 450e9)
    assert between == pytest.approx(8 * shape.parameters * 15 / 16 / 50e9)


@pytest.mark.parametrize(("script", "rows"), [("large", 4 * 7), ("gpu", 12)])
def test_the_tables_in_the_document_are_what_the_scripts_print(script: str, rows: int) -> None:
    root = Path(__file__).parents[2]
    printed = subprocess.run(
        [sys.executable, f"benchmarks/{script}.py", "--table"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert len(printed.stdout.splitlines()) == 2 + rows
    assert printed.stdout in (root / "docs" / "large.md").read_text()

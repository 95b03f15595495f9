"""Distilling: divergences against sums written out by hand, and runs that learn from another model."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.workers import WORKERS, joined, together
from torch import Tensor
from torch.autograd import gradcheck
from transformers import Olmo2Config, Olmo2ForCausalLM, PreTrainedModel

from tsd.errors import InputError
from tsd.models.students import build, forward_flops, parameter_counts, training_flops
from tsd.models.tokenizer import build_tokenizer
from tsd.recipe import Distil, Student, TrainingConfig
from tsd.training.corpus import Corpus, tokenise
from tsd.training.distillation import Distillation, divergence, require_same_tokens
from tsd.training.loop import Progress, WorkerContext, make_optimizer, shard, summed_loss, train

KINDS = ("forward", "reverse", "jensen_shannon")
CONFIG = TrainingConfig(batch_size=8, checkpoint_every=10_000)
RATE = 4e-3
LOG2 = math.log(2)


def settings(kind: str, **other: Any) -> Distil:
    """Distilling by one divergence."""
    return Distil(teacher="large", divergence=kind, **other)


# ---- The divergences


def softmax(logits: Sequence[float], temperature: float) -> list[float]:
    """In Python's own double precision."""
    top = max(logits)
    powers = [math.exp((value - top) / temperature) for value in logits]
    return [power / sum(powers) for power in powers]


def by_hand(kind: str, student: Any, teacher: Any, temperature: float, beta: float) -> float:
    """The definitions, term by term: sums of p log(p / q), times temperature²."""
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        q, p = softmax(ours, temperature), softmax(theirs, temperature)
        for pi, qi in zip(p, q, strict=True):
            mixed = beta * pi + (1 - beta) * qi
            total += {
                "forward": lambda pi=pi, qi=qi: pi * math.log(pi / qi),
                "reverse": lambda pi=pi, qi=qi: qi * math.log(qi / pi),
                "jensen_shannon": lambda pi=pi, qi=qi, m=mixed: (
                    beta * pi * math.log(pi / m) + (1 - beta) * qi * math.log(qi / m)
                ),
            }[kind]()
    return temperature**2 * total


def logits(tokens: int = 3, vocabulary: int = 5, widest: float = 20.0) -> st.SearchStrategy[Any]:
    """Two models' logits over the same tokens, (2, tokens, vocabulary)."""
    return arrays(np.float64, (2, tokens, vocabulary), elements=st.floats(-widest, widest))


@given(logits(), st.sampled_from(KINDS), st.floats(0.5, 4), st.floats(0.05, 0.95))
def test_a_divergence_is_the_sum_written_out_by_hand_in_double_precision(
    drawn: Any, kind: str, temperature: float, beta: float
) -> None:
    ours = divergence(*torch.from_numpy(drawn), settings(kind, temperature=temperature, beta=beta))
    assert float(ours) == pytest.approx(by_hand(kind, *drawn.tolist(), temperature, beta), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_in_single_precision_it_stays_within_a_few_parts_in_a_hundred_thousand(kind: str) -> None:
    drawn = np.random.default_rng(0).normal(0, 4, (2, 40, 600))
    ours = divergence(*torch.from_numpy(drawn).float(), settings(kind, temperature=2.0))
    assert float(ours) == pytest.approx(by_hand(kind, *drawn.tolist(), 2.0, 0.5), rel=3e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_for_the_student_is_that_of_finite_differences(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 7, generator=generator, dtype=torch.float64)
    asked = settings(kind, temperature=1.7, beta=0.3)
    assert gradcheck(lambda x: divergence(x, teacher, asked), student.requires_grad_())


def test_the_gradient_of_the_forward_divergence_is_the_difference_of_the_distributions() -> None:
    student, teacher = torch.randn(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    student.requires_grad_()
    divergence(student, teacher, settings("forward", temperature=3.0)).backward()
    expected = 3.0 * (torch.softmax(student / 3.0, -1) - torch.softmax(teacher / 3.0, -1))
    assert torch.allclose(student.grad, expected.detach())


@given(logits(), st.sampled_from(KINDS), st.floats(0.5, 4), st.floats(0.05, 0.95))
def test_a_divergence_is_never_negative_and_nothing_between_equals(
    drawn: Any, kind: str, temperature: float, beta: float
) -> None:
    student, teacher = torch.from_numpy(drawn)
    asked = settings(kind, temperature=temperature, beta=beta)
    assert float(divergence(student, teacher, asked)) >= -1e-12
    assert float(divergence(teacher + 3.0, teacher, asked)) == pytest.approx(0.0, abs=1e-9)


@given(logits(tokens=1, widest=500.0), st.floats(0.5, 4), st.floats(0.05, 0.95))
def test_jensen_shannon_is_symmetric_at_one_half_and_bounded_by_the_entropy_of_its_mixture(
    drawn: Any, temperature: float, beta: float
) -> None:
    one, other = torch.from_numpy(drawn)
    asked = settings("jensen_shannon", temperature=temperature)
    there, back = (float(divergence(*pair, asked)) for pair in ((one, other), (other, one)))
    assert there == pytest.approx(back, rel=1e-9, abs=1e-12)
    assert there <= LOG2 * temperature**2 * (1 + 1e-9)
    skewed = float(divergence(one, other, settings("jensen_shannon", temperature=temperature, beta=beta)))
    entropy = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert skewed <= entropy * temperature**2 * (1 + 1e-9)


def test_jensen_shannon_reaches_log_2_where_the_two_have_nothing_in_common() -> None:
    apart = torch.tensor([[[200.0, 0.0]], [[0.0, 200.0]]])
    assert float(divergence(*apart, settings("jensen_shannon"))) == pytest.approx(LOG2, rel=1e-6)


@pytest.mark.parametrize(("beta", "kind"), [(1e-6, "forward"), (1 - 1e-6, "reverse")])
def test_jensen_shannon_tends_to_the_forward_divergence_at_one_end_and_to_the_reverse_at_the_other(
    beta: float, kind: str
) -> None:
    student, teacher = torch.randn(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    skewed = divergence(student, teacher, settings("jensen_shannon", beta=beta)) / min(beta, 1 - beta)
    assert float(skewed) == pytest.approx(float(divergence(student, teacher, settings(kind))), rel=1e-4)


def test_forward_punishes_what_the_student_leaves_out_and_reverse_what_it_makes_up() -> None:
    both, one = torch.tensor([[10.0, 10.0, 0.0]]), torch.tensor([[10.0, 0.0, 0.0]])
    misses = {kind: float(divergence(one, both, settings(kind))) for kind in ("forward", "reverse")}
    invents = {kind: float(divergence(both, one, settings(kind))) for kind in ("forward", "reverse")}
    assert misses["forward"] > 4 > 1 > misses["reverse"]
    assert invents["reverse"] > 4 > 1 > invents["forward"]


@given(logits(), st.sampled_from(KINDS))
def test_at_high_temperature_every_divergence_compares_logits_in_the_same_way(drawn: Any, kind: str) -> None:
    """Hinton et al. 2015, section 2.1: half the variance of the differences, over a uniform distribution."""
    student, teacher = torch.from_numpy(drawn)
    half = (student - teacher).var(-1, correction=0).sum() / 2
    expected = half * (0.25 if kind == "jensen_shannon" else 1.0)  # β (1 − β)
    found = divergence(student, teacher, settings(kind, temperature=1e4))
    assert float(found) == pytest.approx(float(expected), rel=2e-2, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_pad_one_vocabulary_change_nothing(kind: str) -> None:
    student, teacher = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(3))
    padded = torch.cat([teacher, torch.full((3, 2), 5.0)], -1)
    expected = float(divergence(student, teacher, settings(kind)))
    assert float(divergence(student, padded, settings(kind))) == pytest.approx(expected)
    assert float(divergence(padded, student, settings(kind))) == pytest.approx(
        float(divergence(teacher, student, settings(kind)))
    )


# ---- Tokens


def test_tokenizers_of_other_texts_are_refused_with_both_sizes() -> None:
    one, other = build_tokenizer(["a hill a hill"], 99), build_tokenizer(["a vale a vale of tears of tears"], 99)
    require_same_tokens("small", one, "large", build_tokenizer(["a hill a hill"], 99))
    with pytest.raises(InputError) as caught:
        require_same_tokens("small", one, "large", other)
    assert f"{len(one):,} and {len(other):,} tokens" in str(caught.value)
    assert len(one) != len(other)


def test_tokenizers_of_one_size_whose_ids_differ_are_refused() -> None:
    one, other = build_tokenizer(["a hill a hill"], 99), build_tokenizer(["a vale a vale"], 99)
    assert len(one) == len(other)
    with pytest.raises(InputError, match=r"differ in 2;"):
        require_same_tokens("small", one, "large", other)


# ---- Training


@pytest.fixture(scope="module")
def tokenizer(examples: pa.Table) -> Any:
    """A tokenizer built on the examples' own words."""
    return build_tokenizer(examples["completion"].to_pylist(), 2048)


@pytest.fixture(scope="module")
def corpus(examples: pa.Table, tokenizer: Any) -> Corpus:
    """64 examples of differing length: 8 steps of 8."""
    table = examples.slice(0, 64)
    prompts = [p.rsplit(" ", i % 40)[0] for i, p in enumerate(table["prompt"].to_pylist())]
    return tokenise(table.set_column(3, table.field("prompt"), pa.array(prompts)), tokenizer, 2048)


def model(tokenizer: Any, size: str = "0.03M", seed: int = 0) -> PreTrainedModel:
    """A small model."""
    return build(Student(name=size), tokenizer, seed, 2048)


def losses(
    student: PreTrainedModel, corpus: Corpus, distil: Distillation | None, place: WorkerContext
) -> list[float]:
    """What a run minimises, step by step."""
    found: list[float] = []
    train(
        student,
        corpus,
        CONFIG,
        learning_rate=RATE,
        seed=0,
        place=place,
        optimizer=make_optimizer(student, CONFIG),
        progress=Progress(),
        report=lambda now: found.append(now.loss),
        distil=distil,
    )
    return found


def one_row(model: PreTrainedModel, corpus: Corpus, row: int) -> Tensor:
    """The logits that transformers itself gives for an example's supervised tokens."""
    tokens = torch.from_numpy(corpus.tokens[row])
    with torch.no_grad():
        return model(input_ids=tokens[None, :-1]).logits[0, corpus.answers[row] - 1 :].double()


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_batch_mixes_words_and_divergence_over_the_supervised_tokens_alone(
    corpus: Corpus, tokenizer: Any, kind: str, packing: bool
) -> None:
    student, teacher, rows = model(tokenizer), model(tokenizer, "0.1M", seed=5), [0, 17, 39]
    assert len({len(corpus.tokens[row]) for row in rows}) == 3
    distil = Distillation(teacher, settings(kind, weight=0.3, temperature=2.0, beta=0.2))
    apart = sum(
        by_hand(kind, one_row(student, corpus, row).tolist(), one_row(teacher, corpus, row).tolist(), 2.0, 0.2)
        for row in rows
    )
    words = float(summed_loss(student, corpus, rows, "cpu", packing).detach())
    mixed = float(summed_loss(student, corpus, rows, "cpu", packing, distil).detach())
    assert mixed == pytest.approx(0.7 * words + 0.3 * apart, rel=1e-5)


def test_a_teacher_of_unknown_layers_teaches_in_padded_rows(corpus: Corpus, tokenizer: Any) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    teacher = Olmo2ForCausalLM(Olmo2Config(vocab_size=len(tokenizer), initializer_range=0.2, **sizes))
    student, rows = model(tokenizer), [0, 39]
    distil = Distillation(teacher, settings("forward", weight=1.0))
    expected = sum(
        by_hand(
            "forward", one_row(student, corpus, row).tolist(), one_row(teacher, corpus, row).tolist(), 1.0, 0.5
        )
        for row in rows
    )
    assert float(summed_loss(student, corpus, rows, "cpu", None, distil).detach()) == pytest.approx(
        expected, rel=1e-5
    )


def test_a_run_changes_the_student_and_never_its_teacher(corpus: Corpus, tokenizer: Any) -> None:
    student, teacher = model(tokenizer), model(tokenizer, "0.1M")
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    losses(student, corpus, Distillation(teacher, settings("forward")), WorkerContext())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not all(
        torch.equal(value, fresh)
        for value, fresh in zip(student.state_dict().values(), model(tokenizer).state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_comes_nearer_to_its_teacher(corpus: Corpus, tokenizer: Any, kind: str) -> None:
    teacher = model(tokenizer, seed=1)
    losses(teacher, corpus, None, WorkerContext())
    student = model(tokenizer)
    found = losses(student, corpus, Distillation(teacher, settings(kind, weight=1.0)), WorkerContext())
    assert found[-1] < 0.7 * found[0]


def test_a_teachers_forward_pass_costs_a_third_of_its_training_step(tokenizer: Any) -> None:
    teacher = model(tokenizer, "0.1M")
    body = parameter_counts(teacher)[1]
    whole = training_flops(teacher, body, 1000, 200, 100.0)
    assert forward_flops(teacher, 1000, 200, 100.0) == pytest.approx(whole / 3)
    assert forward_flops(teacher, 1, 0, 0.0) == 2 * body


def work(rank: int, folder: Path, corpus: Corpus, tokenizer: Any) -> None:
    """One of two processes: both models sharded over them."""
    with joined(rank, folder) as place:
        teacher = shard(model(tokenizer, "0.1M", seed=5), place)
        whole = sum(parameter.numel() for parameter in teacher.parameters())
        mine = sum(parameter.to_local().numel() for parameter in teacher.parameters())
        found = losses(shard(model(tokenizer), place), corpus, Distillation(teacher, settings("reverse")), place)
        (folder / f"{rank}.json").write_text(json.dumps({"losses": found, "held": mine / whole}))


def test_on_two_workers_each_holds_half_the_teacher_and_the_losses_are_those_of_one(
    corpus: Corpus, tokenizer: Any, tmp_path: Path
) -> None:
    together(work, tmp_path, corpus, tokenizer)
    teacher = model(tokenizer, "0.1M", seed=5)
    expected = losses(model(tokenizer), corpus, Distillation(teacher, settings("reverse")), WorkerContext())
    assert len(expected) == 8
    for rank in range(WORKERS):
        said = json.loads((tmp_path / f"{rank}.json").read_text())
        assert said["losses"] == pytest.approx(expected, rel=1e-4)
        assert 0.45 < said["held"] < 0.55

"""On a real GPU: training in bfloat16 over NCCL, checkpoints, export, decoding, and a whole study by Ray."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
from support.commands import command, run
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from tsd.inference.decoding import decode
from tsd.models.chat import chat_prompts
from tsd.models.forward import lean
from tsd.models.students import build, export, load_model
from tsd.models.tokenizer import build_tokenizer
from tsd.recipe import Student, TrainingConfig
from tsd.storage import datasets, folders
from tsd.tasks import SINGLE
from tsd.training.checkpoints import Checkpoints, restore
from tsd.training.corpus import Corpus, pack, tokenise
from tsd.training.loop import (
    Progress,
    WorkerContext,
    evaluate,
    make_optimizer,
    matmul_peak,
    shard,
    summed_loss,
    train,
)

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"), pytest.mark.timeout(600)]

GPU = WorkerContext(device="cuda")
CONFIG = TrainingConfig(batch_size=16, checkpoint_every=10)
STUDENT = Student(name="0.3M")


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this process alone, as Ray Train gives every worker one."""
    meet = tmp_path_factory.mktemp("group") / "meet"
    dist.init_process_group("nccl", init_method=f"file://{meet}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def tokenizer(examples: pa.Table) -> PreTrainedTokenizerBase:
    """The vocabulary of the examples."""
    return build_tokenizer([*examples["prompt"].to_pylist(), *examples["completion"].to_pylist()], 2048)


@pytest.fixture(scope="module")
def few(examples: pa.Table, tokenizer: PreTrainedTokenizerBase) -> Corpus:
    """640 examples, 40 steps."""
    return tokenise(examples.slice(0, 640), tokenizer, 2048)


def student(tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedModel, torch.optim.Optimizer]:
    """A student from scratch on the GPU, sharded as a worker does, and its optimizer."""
    model = build(STUDENT, tokenizer, 0, 2048, partial(shard, place=GPU), "cuda")
    return model, make_optimizer(model, CONFIG)


def trained(
    model: PreTrainedModel, optimizer: Any, corpus: Corpus, place: WorkerContext, **other: Any
) -> list[float]:
    """Take all steps from where the progress is; the losses."""
    losses: list[float] = []
    settings = {"progress": Progress(), "report": lambda now: losses.append(now.loss), **other}
    train(model, corpus, CONFIG, learning_rate=2e-3, seed=0, place=place, optimizer=optimizer, **settings)
    return losses


@pytest.fixture(scope="module")
def done(group: None, few: Corpus, tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedModel, list[float]]:
    """A student that has learned on the GPU, and its losses."""
    model, optimizer = student(tokenizer)
    return model, trained(model, optimizer, few, GPU)


def test_what_is_learned_in_bfloat16_is_what_a_cpu_learns_in_float32(
    done: tuple[PreTrainedModel, list[float]], few: Corpus, tokenizer: PreTrainedTokenizerBase
) -> None:
    model, losses = done
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}  # the master weights
    own = build(STUDENT, tokenizer, 0, 2048)
    expected = trained(own, make_optimizer(own, CONFIG), few, WorkerContext())
    assert losses[-1] < 0.5 * losses[0]
    assert losses == pytest.approx(expected, rel=0.03)
    assert evaluate(model, few, 16, GPU) == pytest.approx(evaluate(own, few, 16, WorkerContext()), rel=0.03)


def test_a_run_that_is_stopped_on_a_gpu_goes_on_from_its_checkpoint(
    done: tuple[PreTrainedModel, list[float]], few: Corpus, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    class StoppedError(Exception):
        """The worker dies."""

    def stop(now: Progress) -> None:
        if now.step > 25:
            raise StoppedError

    def keep(part: Path, now: Progress) -> None:
        folders.add_files(str(part), str(tmp_path / f"step-{now.step}"))

    model, optimizer = student(tokenizer)
    with (
        pytest.raises(StoppedError),
        Checkpoints(model, optimizer, GPU, keep, lambda _: None) as kept,
    ):
        trained(model, optimizer, few, GPU, save=kept.save, report=stop)
    model, optimizer = student(tokenizer)
    progress = restore(tmp_path / "step-20", model, optimizer, GPU)
    losses = trained(model, optimizer, few, GPU, progress=progress)
    assert losses == pytest.approx(done[1][-len(losses) :], rel=0.02)


def test_a_student_of_a_gpu_is_exported_and_answers_there_as_transformers_has_it_answer(
    done: tuple[PreTrainedModel, list[float]], tokenizer: PreTrainedTokenizerBase, series: pa.Table, tmp_path: Path
) -> None:
    export(done[0], tokenizer, tmp_path, {})
    model = load_model(str(tmp_path)).to("cuda")
    prompts = [SINGLE.student_prompt(values) for values in series["values"].to_pylist()[:64]]
    replies = decode(model, tokenizer, prompts, 60)
    for prompt, reply in zip(prompts, replies, strict=True):
        asked = tokenizer(chat_prompts([prompt], tokenizer), return_tensors="pt", add_special_tokens=False)
        said = model.generate(
            **asked.to("cuda"), max_new_tokens=60, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        assert reply == tokenizer.decode(said[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)


def packed_logits(model: PreTrainedModel, corpus: Corpus) -> list[torch.Tensor]:
    """The logits of every token of each example, shortest example first."""
    rows = range(len(corpus))
    batch = pack(corpus, rows)
    inputs, places = (torch.from_numpy(array).to("cuda")[None] for array in (batch.inputs, batch.places))
    with torch.no_grad(), lean(model) as logits_of:
        everything = torch.arange(inputs.shape[1], device="cuda")
        logits = logits_of(input_ids=inputs, position_ids=places, segments=batch.segments, wanted=everything)
    return list(torch.split(logits[0].float(), sorted((corpus.lengths - 1).tolist())))


@pytest.mark.parametrize("key_heads", [1, 4])
def test_packed_examples_do_not_see_each_other_on_a_gpu(key_heads: int) -> None:
    config = Qwen3Config(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=key_heads,
        head_dim=64,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).to("cuda", torch.bfloat16).eval()
    tokens = [torch.randint(512, (length,)).numpy() for length in (10, 18, 41, 41, 65, 130)]
    answers = np.array([1, 4, 9, 1, 30, 3])
    before = packed_logits(model, Corpus(tokens, answers, 0))
    for logits, row in zip(before, tokens, strict=True):
        with torch.no_grad():
            alone = model(torch.from_numpy(row[None, :-1]).to("cuda")).logits[0].float()
        # Twice rounded otherwise, a logit moves by some hundredths of their spread.
        assert (logits - alone).abs().max() < 0.1 * alone.std()
    changed = [*tokens[:2], (tokens[2] + 1) % 512, *tokens[3:]]
    after = packed_logits(model, Corpus(changed, answers, 0))
    assert [torch.equal(was, now) for was, now in zip(before, after, strict=True)] == [True] * 2 + [False] + [
        True
    ] * 3


def test_packed_and_padded_examples_have_the_same_loss_on_a_gpu(
    done: tuple[PreTrainedModel, list[float]], few: Corpus
) -> None:
    short = Corpus([row[i:] for i, row in enumerate(few.tokens[:24])], few.answers[:24] - np.arange(24), few.pad)
    packed, padded = (float(summed_loss(done[0], short, range(24), "cuda", way)) for way in (True, False))
    assert packed == pytest.approx(padded, rel=0.01)


def test_a_gpus_peak_is_that_of_bfloat16() -> None:
    a = torch.randn(4096, 4096, device="cuda")
    torch.backends.cuda.matmul.allow_tf32 = False
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    a @ a
    started.record()
    a @ a
    ended.record()
    torch.cuda.synchronize()
    in_float32 = 2 * 4096**3 / started.elapsed_time(ended) * 1000
    assert matmul_peak("cuda") > 3 * in_float32


@pytest.mark.ray
def test_a_study_trains_several_students_on_one_gpu_and_ends_with_its_report(tmp_path: Path) -> None:
    sizes = "students.models=[{name: 0.03M, gpus: 0.5}, {name: 0.3M, gpus: 0.5}]"
    run(command(tmp_path, "training.gpu=true", sizes))
    runs = datasets.open_dataset(str(tmp_path / "tiny" / "runs"), SINGLE.tables.runs).read()
    assert runs.num_rows == 4
    assert max(runs["utilisation"].to_pylist()) < 0.1  # of the peak in bfloat16: these are small students
    assert (tmp_path / "tiny" / "report.html").exists()

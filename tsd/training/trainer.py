"""One run: build a student, train it, evaluate its loss, export it. In a Ray Train worker or without Ray."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tsd.models import card, students
from tsd.recipe import Student, TrainingConfig
from tsd.training.checkpoints import Checkpoints
from tsd.training.corpus import Corpus
from tsd.training.distillation import Distillation
from tsd.training.loop import (
    HeldOut,
    Progress,
    WorkerContext,
    evaluate,
    make_optimizer,
    matmul_peak,
    shard,
    train,
)
from tsd.training.runs import RunRecord, RunSpec


def learn(
    run: RunSpec,
    tokenizer: PreTrainedTokenizerBase,
    corpora: Mapping[str, Corpus],
    settings: TrainingConfig,
    place: WorkerContext,
    *,
    started: float,
    resume: Callable[[PreTrainedModel, torch.optim.Optimizer], Progress],
    keep: Callable[[Path, Progress], None],
    tell: Callable[[Progress], None],
    report: Callable[[Progress], None],
    teacher: Distillation | None = None,
    labels: npt.NDArray[np.bool_] | None = None,
) -> tuple[PreTrainedModel, RunRecord, Progress]:
    """Train the student of a run and evaluate its held-out loss. Needs a process group.

    corpora: by split, `train` and `validation`.
    started: start time of the run, from `time.perf_counter`.
    resume: loads the last checkpoint if there is one, and returns its progress.
    keep, tell: see `Checkpoints`. report: see `train`. teacher: for knowledge distillation.
    labels: which tokens carry a label or a number, (vocabulary,), whose held-out loss is also kept apart.
    Returns the model, the record of the run (a row of the runs table without scores) and its final progress.
    """
    student = run.student
    divide = partial(shard, place=place)
    model = students.build(student, tokenizer, run.seed, settings.max_length, divide, place.device)
    peak = matmul_peak(place.device)
    optimizer = make_optimizer(model, settings)
    progress = resume(model, optimizer)
    held_out = partial(evaluate, model, corpora["validation"], settings.batch_size, place, labels)
    ready = time.perf_counter() - started
    checkpoints: AbstractContextManager[Checkpoints] = Checkpoints(model, optimizer, place, keep, tell)
    with checkpoints as kept:
        train(
            model,
            corpora["train"],
            settings,
            learning_rate=students.learning_rate(student),
            seed=run.seed,
            place=place,
            optimizer=optimizer,
            progress=progress,
            report=report,
            save=kept.save,
            distil=teacher,
            held_out=lambda: held_out().loss,
        )
    ends = _Ends(held_out(), float(corpora["train"].lengths.mean()), ready, peak * place.workers)
    return model, _record(run, model, progress, ends, teacher), progress


@dataclass(frozen=True)
class _Ends:
    """What is known of a run besides its progress."""

    held_out: HeldOut
    length: float
    """Mean tokens of a training example."""
    ready: float
    """Seconds until the first step."""
    peak: float
    """FLOP per second that all devices reach together."""


def _record(
    run: RunSpec, model: PreTrainedModel, progress: Progress, ends: _Ends, teacher: Distillation | None
) -> RunRecord:
    """The record of a run that has been trained."""
    student, (parameters, without_embeddings) = run.student, students.parameter_counts(model)
    seen = progress.tokens, progress.supervised, ends.length
    own = students.training_flops(model, without_embeddings, *seen)
    taught = students.forward_flops(teacher.teacher, *seen) if teacher else None
    return RunRecord(
        run_id=run.run_id,
        student=student.name,
        modality=student.modality,
        precision=run.precision,
        parameters=parameters,
        parameters_without_embeddings=without_embeddings,
        examples=run.examples,
        tokens=progress.tokens,
        supervised_tokens=progress.supervised,
        flops=own,
        flops_6nd=6.0 * without_embeddings * progress.tokens,
        distilled_from=student.distil.teacher if student.distil else None,
        teacher_flops=taught,
        steps=progress.step,
        stopped_early=progress.stopped,
        seed=run.seed,
        validation_loss=ends.held_out.loss,
        label_loss=ends.held_out.labels,
        wording_loss=ends.held_out.wording,
        train_seconds=progress.seconds,
        tokens_per_second=progress.tokens / progress.seconds,
        utilisation=(own + (taught or 0.0)) / progress.seconds / ends.peak,
        ready_seconds=ends.ready,
    )


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path | None,
    student: Student,
    record: RunRecord,
    *,
    task: str,
    length: int | Sequence[int],
    about: Mapping[str, str],
) -> None:
    """Write a student's folder with its metadata and model card. Collective; one worker passes a folder.

    task, length: what it was trained on, and points per series. about: the study, its recipe's digest and the
    teacher.
    """
    alone = student.lora is not None and student.lora.export == "adapter"
    whence = {**about, "source": student.source, "adapters": student.lora is not None, "alone": alone}
    learnt = {name: value for name, value in record.as_dict().items() if name != "ready_seconds"}
    said = {"run": learnt, "length": length, "task": task, "modality": student.modality, "about": whence}
    students.export(model, tokenizer, folder, said, alone)
    if folder is not None:
        (folder / card.README).write_text(card.render(said), encoding="utf-8")


def metrics(progress: Progress) -> dict[str, float]:
    """The metrics reported during a run."""
    return {
        "step": progress.step,
        "share": 1.0 if progress.stopped else progress.step / progress.steps,
        "loss": progress.loss,
        "seconds": progress.seconds,
    }

"""How fast students train, and beside it `trl.SFTTrainer` and `transformers.Trainer` on the same examples.

Each trainer lives in a process of its own with one thread; they take turns at one epoch of the same tokenised
examples: same weights to start from, batches of 32, AdamW, float32, loss on the answer alone, nothing saved,
logged or evaluated. At first each says its loss on one batch, and these must agree. Rates are supervised tokens a
second of the training loop alone, medians of the turns. The matmul peak is measured between the turns.

trl runs as it does by default, which is padded rows in random order; on mixed lengths also with batches of like
length, and at 0.1M with its packing, whose mask over all tokens of a batch is slow on a CPU. The bounds hold
against the fastest of these. trl lives in an environment of its own, which is made once (.venv-trl, half a
minute). Writes training.json. Eight minutes on two quiet cores.

    python benchmarks/training.py --check
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from statistics import median
from typing import Any

import measured

TRL = (
    *("trl==1.16.0", "accelerate==1.15.0", "datasets==5.2.0"),
    *("dill==0.4.1", "multiprocess==0.70.19", "xxhash==4.1.0"),
)
ROOT = Path(__file__).parents[1]
BATCH = 32
POINTS = {"fixed": [128], "mixed": list(range(32, 257))}
STEPS = {"0.1M": 12, "1M": 6, "10M": 1}  # in an epoch
TURNS = {"0.1M": 5, "1M": 3, "10M": 2}
TSD, TRAINER, DEFAULT, GROUPED, PACKED = "tsd", "transformers", "trl", "trl, grouped by length", "trl, packed"
LEAST = {
    ("0.1M", "fixed"): 1.6,
    ("1M", "fixed"): 1.25,
    ("10M", "fixed"): 1.0,
    ("0.1M", "mixed"): 1.8,
    ("1M", "mixed"): 1.6,
    ("10M", "mixed"): 1.5,
}
UTILISATION = 0.55  # of the matmul peak, at 10M
SAME = 1e-4  # how far the trainers' first losses may lie apart, relatively


def main() -> None:
    """Let all train in turns, print the rates, hold them against the bounds."""
    parser = measured.parser(__doc__)
    parser.add_argument("--serve", help=argparse.SUPPRESS)  # of the processes that this one starts
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    python = measured.environment(".venv-trl", TRL)
    workers = {kind: Worker(python, kind) for kind in (TSD, TRAINER, DEFAULT, GROUPED, PACKED)}
    rows = [row for points in POINTS for size in STEPS for row in compare(workers, size, points)]
    for worker in workers.values():
        worker.end()
    measured.show("One thread, batches of 32 examples", rows)
    rates = {(row["size"], row["points"], row["who"]): row for row in rows}
    bounds = [
        measured.Bound(f"{size}, {points} lengths: times trl", rates[size, points, TSD]["times trl"], least=least)
        for (size, points), least in LEAST.items()
    ]
    used = rates["10M", "fixed", TSD]["share of peak"]
    bounds.append(measured.Bound("model FLOPs at 10M, share of the matmul peak", used, least=UTILISATION))
    measured.finish(
        __file__, {"batch": BATCH, "steps": STEPS, "turns": TURNS, "results": rows}, bounds, options.check
    )


def compare(workers: dict[str, "Worker"], size: str, points: str) -> list[dict[str, Any]]:
    """One row of the table for each trainer at one size."""
    kinds = [TSD, TRAINER, DEFAULT, *([GROUPED] if points == "mixed" else [])]
    first = {kind: workers[kind].epoch(size, points, 1)["loss"] for kind in kinds}
    assert all(abs(loss / first[TSD] - 1) < SAME for loss in first.values()), first
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for _ in range(TURNS[size]):
        for kind in kinds:
            found[kind].append(workers[kind].epoch(size, points, STEPS[size]))
    if (size, points) == ("0.1M", "mixed"):
        found[PACKED] = [workers[PACKED].epoch(size, points, 1)]
    peak = median(one["peak"] for one in found[TSD])
    rates = {kind: median(one["supervised"] / one["seconds"] for one in each) for kind, each in found.items()}
    fastest = max(rates[kind] for kind in (DEFAULT, GROUPED, PACKED) if kind in rates)
    return [
        {
            "size": size,
            "points": points,
            "who": kind,
            "supervised tokens/s": rates[kind],
            "times trl": rates[kind] / fastest,
            "ms a step": median(1000 * one["seconds"] / one["steps"] for one in each),
            "share of peak": median(one["flops"] / one["seconds"] for one in each) / peak,
            "peak GFLOP/s": peak / 1e9,
        }
        for kind, each in found.items()
    ]


class Worker:
    """A process in which one trainer waits for its turns."""

    def __init__(self, python: Path, kind: str) -> None:
        """Start it."""
        self.process = subprocess.Popen(
            [python, __file__, "--serve", kind],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def epoch(self, size: str, points: str, steps: int) -> dict[str, float]:
        """Have it train for one epoch of so many batches of examples."""
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps([size, points, steps]), file=self.process.stdin, flush=True)
        result: dict[str, float] = json.loads(self.process.stdout.readline())
        assert "error" not in result, result["error"]
        return result

    def end(self) -> None:
        """Let it go."""
        self.process.communicate(timeout=60)


# ---- In a trainer's process


def serve(kind: str) -> None:
    """Answer each line with size, points and steps by what an epoch took."""
    import torch

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what trainers print is not an answer
    torch.set_num_threads(1)
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = train(kind, *json.loads(line))
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


def train(kind: str, size: str, points: str, steps: int) -> dict[str, float]:
    """One epoch from the same start. Returns its seconds, steps, supervised tokens, last or mean loss, FLOPs and,
    in tsd's process, the matmul peak."""
    from lessons import lessons

    from tsd.models import students
    from tsd.recipe import Student, load
    from tsd.training import corpus, loop

    changes = [f"series.length={POINTS[points]}", f"training.batch_size={BATCH}", "training.optimizer=adamw"]
    recipe = load("laptop", ["teacher={kind: rules}", *changes])
    _, examples, tokenizer = lessons(recipe, 512)
    few = corpus.tokenise(examples.slice(0, steps * BATCH), tokenizer, 2048)
    model = students.build(Student(name=size), tokenizer, 0, 2048)
    _, body = students.parameter_counts(model)
    tokens, supervised = int(few.lengths.sum()), int((few.lengths - few.answers).sum())
    flops = students.training_flops(model, body, tokens, supervised, float(few.lengths.mean()))
    result = {"supervised": supervised, "flops": flops}
    if kind != TSD:
        return result | _by_trainer(
            kind, model, few, tokenizer, recipe.training, students.SCRATCH[size].learning_rate
        )
    progress = loop.Progress()
    loop.train(
        model,
        few,
        recipe.training,
        learning_rate=students.SCRATCH[size].learning_rate,
        seed=0,
        place=loop.WorkerContext(),
        optimizer=loop.make_optimizer(model, recipe.training),
        progress=progress,
    )
    took = {"seconds": progress.seconds, "steps": progress.step, "loss": progress.loss}
    return result | took | {"peak": loop.matmul_peak()}


def _by_trainer(kind: str, model: Any, few: Any, tokenizer: Any, settings: Any, rate: float) -> dict[str, float]:
    """An epoch by transformers' or trl's trainer."""
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Of the loop alone."""

        started = seconds = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.seconds = time.perf_counter() - self.started

    rows = [
        {"input_ids": tokens.tolist(), "labels": [-100] * int(answer) + tokens[answer:].tolist()}
        for tokens, answer in zip(few.tokens, few.answers, strict=True)
    ]
    clock, longest = Clock(), int(few.lengths.max())
    with tempfile.TemporaryDirectory() as folder:
        same: dict[str, Any] = {
            "output_dir": folder,
            "use_cpu": True,
            "bf16": False,
            "per_device_train_batch_size": settings.batch_size,
            "num_train_epochs": settings.epochs,
            "learning_rate": rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": settings.warmup_ratio,
            "weight_decay": settings.weight_decay,
            "adam_beta1": settings.betas[0],
            "adam_beta2": settings.betas[1],
            "max_grad_norm": settings.max_grad_norm,
            "logging_strategy": "no",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }
        trainer: Any
        made: dict[str, Any] = {"model": model, "train_dataset": Dataset.from_list(rows), "callbacks": [clock]}
        if kind == TRAINER:
            arguments = TrainingArguments(**same)
            trainer = Trainer(args=arguments, data_collator=DataCollatorForSeq2Seq(tokenizer), **made)
        else:
            from trl import SFTConfig, SFTTrainer

            same |= {"max_length": longest, "gradient_checkpointing": False}
            if kind == GROUPED:
                same["train_sampling_strategy"] = "group_by_length"
            if kind == PACKED:  # into rows of the longest example's length, as many as hold a batch's tokens
                rows_a_batch = round(settings.batch_size * float(few.lengths.mean()) / longest)
                same |= {"packing": True, "per_device_train_batch_size": rows_a_batch}
            trainer = SFTTrainer(args=SFTConfig(**same), processing_class=tokenizer, **made)
        loss = trainer.train().training_loss
        return {"seconds": clock.seconds, "steps": trainer.state.global_step, "loss": loss}


if __name__ == "__main__":
    main()

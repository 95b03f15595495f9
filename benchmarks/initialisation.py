"""The effect of a student's initialisation: transformers' default, unit gain, and unit gain with ordered values.

Trains the same student on the same examples from each initialisation, one after another on one thread, and prints
held-out loss and label accuracy. Writes initialisation.json beside itself. About six minutes.

    python benchmarks/initialisation.py
"""

import json
import os
import platform
from datetime import date
from pathlib import Path

import numpy as np
import torch
from lessons import lessons
from measured import parser

from tsd.inference.decoding import decode
from tsd.models import students
from tsd.recipe import Student, TrainingConfig, load
from tsd.tasks import SINGLE
from tsd.training import corpus, loop

STUDENT, EXAMPLES, HELD_OUT = "0.1M", 8000, 500
STARTS = ("transformers' own", "unit gain", "unit gain, values in order")


def main() -> None:
    """Train from each start and write the table."""
    parser(__doc__).parse_args()
    torch.set_num_threads(1)
    recipe = load("laptop", ["truth=paper", "teacher={kind: rules}", "series.count=13000"])
    series, examples, tokenizer = lessons(recipe, recipe.series.count)
    rows = {
        split: corpus.tokenise(corpus.select([examples], split, count), tokenizer, 2048)
        for split, count in (("train", EXAMPLES), ("validation", HELD_OUT))
    }
    tests = [row for row in series.to_pylist() if row["split"] == "test"][:HELD_OUT]
    results = []
    for start in STARTS:
        model = students.build(Student(name=STUDENT), tokenizer, 0, 2048)
        _restart(model, start)
        settings = TrainingConfig()
        loop.train(
            model,
            rows["train"],
            settings,
            learning_rate=students.learning_rate(Student(name=STUDENT)),
            seed=0,
            place=loop.WorkerContext(),
            optimizer=loop.make_optimizer(model, settings),
            progress=loop.Progress(),
        )
        loss = loop.evaluate(model, rows["validation"], 50, loop.WorkerContext()).loss
        replies = decode(model, tokenizer, [SINGLE.student_prompt(row["values"]) for row in tests], 80)
        labels = [SINGLE.parse(reply).labels for reply in replies]
        right = {
            facet: float(
                np.mean([said[facet] == row["truth"][facet] for said, row in zip(labels, tests, strict=True)])
            )
            for facet in SINGLE.classes
        }
        results.append({"start": start, "validation_loss": loss, **right})
        print(
            f"{start:<28} loss {loss:.4f}  " + "  ".join(f"{facet} {value:.3f}" for facet, value in right.items())
        )
    machine = f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()}"
    record = {"student": STUDENT, "examples": EXAMPLES, "held_out": HELD_OUT, "machine": machine}
    place = Path(__file__).with_suffix(".json")
    place.write_text(json.dumps({**record, "date": date.today().isoformat(), "results": results}, indent=1) + "\n")


def _restart(model: torch.nn.Module, start: str) -> None:
    """Undo what `students.build` does beyond the named start."""
    if start == STARTS[2]:
        return
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            spread = 0.02 if start == STARTS[0] else parameter.shape[1] ** -0.5
            torch.nn.init.normal_(parameter, std=spread)


if __name__ == "__main__":
    main()

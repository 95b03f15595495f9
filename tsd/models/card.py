"""The model card (`README.md`) of a student, rendered from its metadata file (`tsd.json`) and its test scores."""

import json
from collections.abc import Mapping
from typing import Any

from tsd.plots.rasterised import SIDE
from tsd.tasks import Definitions, Task, named, trust

CARD, README = "tsd.json", "README.md"
USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # the folder of this file
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
turns = [{{"role": "user", "content": {prompt}}}]
asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
reply = model.generate(**asked, max_new_tokens={tokens})[0, asked["input_ids"].shape[1]:]
print(tokenizer.decode(reply, skip_special_tokens=True))
```"""

USE_VISION = """```python
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "."  # the folder of this file
processor, model = AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder)
shown = [{{"type": "text", "text": {prompt}}}, {{"type": "image", "path": "plot.png"}}]
turns = [{{"role": "user", "content": shown}}]
asked = processor.apply_chat_template(
    turns, add_generation_prompt=True, tokenize=True, return_tensors="pt", return_dict=True
)
reply = model.generate(**asked, max_new_tokens={tokens})[0, asked["input_ids"].shape[1]:]
print(processor.decode(reply, skip_special_tokens=True))
```"""


def render(
    card: Mapping[str, Any], scores: Mapping[str, Mapping[str, float]] | None = None, task: Task | None = None
) -> str:
    """Render the model card as Markdown, with the YAML front matter that a model hub reads.

    card: the content of `tsd.json`, perhaps with old names. scores: by name, the `value`, `low` and `high` of each
    score; None before evaluation. task: the student's; by default the one that the content names, whose module is
    run. Raises KeyError for a missing entry, InputError for an unknown task.
    """
    run, about = card["run"], card["about"]
    task = task or named(card["task"], defined=Definitions.of(about))
    consent = f" {trust.OPTION}" if ":" in card["task"] else ""  # the folder names a module, which is run
    source, adapters = about["source"], about["adapters"]
    lengths = card["length"] if isinstance(card["length"], list | tuple) else [card["length"]]
    shown = "time series" if task.curves == 1 else "pairs of time series"
    points = " or ".join(map(str, lengths))
    started = f"started from {_named(source)}" if source else "was trained from scratch"
    if adapters:
        stored = "which are stored here without the base model" if about["alone"] else "merged into it"
        started += f" and trained with low-rank adapters, {stored}"
    example = task.asked.format(*["37 41 40"] * task.curves)
    how = USE.format(prompt=json.dumps(example), tokens=task.reply_tokens)
    kind, given = (
        "causal ",
        f"Series are given as whole numbers from 0 to 99, {points} of them, as in the examples;",
    )
    image = card["modality"] == "image"
    if image:
        how = USE_VISION.format(prompt=json.dumps(task.image_prompt), tokens=task.reply_tokens)
        kind, given = (
            "vision-",
            f"Plots are {SIDE} × {SIDE} pixels, a black line and its grey shadow on white, 0 to 99 upwards;",
        )
    paragraphs = [
        _front(source, about["alone"], image),
        f"# {run['run_id']}",
        f"A {kind}language model of {run['parameters']:,} parameters that describes {shown} in words"
        f"{', from their plots' if image else ''}. It {started}.",
        "## Training data",
        f"{run['examples']:,} descriptions by the teacher {about['teacher']} of synthetic {shown} of {points} "
        f"points, whole numbers from 0 to 99: {run['tokens']:,} tokens in {run['steps']:,} steps, "
        f"{run['flops']:.3g} FLOPs. Seed {run['seed']}.",
        *_definitions(task),
        "## Evaluation",
        *_measured(run, scores),
        "## Usage",
        f"{given} `tsd explain FILE --model FOLDER{consent}` converts a series from your own file to this form.",
        how,
        "## Provenance",
        f"tsd, study {about['study']}, recipe {about['recipe']} (digest), run {run['run_id']}.",
    ]
    return "\n\n".join(paragraphs) + "\n"


def _definitions(task: Task) -> list[str]:
    """What the classes of the task mean, if it says so."""
    if not task.definitions:
        return []
    return ["## Labels", "\n".join(f"- *{name}*: {text}." for name, text in task.definitions.items())]


def _front(source: str | None, alone: bool, image: bool) -> str:
    """The YAML front matter.

    alone: the folder holds adapters only. image: the model is a vision-language model.
    """
    lines = [
        "---",
        f"library_name: {'peft' if alone else 'transformers'}",
        *([f"base_model: {source}"] if source and _from_hub(source) else []),
        f"pipeline_tag: {'image-text-to-text' if image else 'text-generation'}",
        "tags: [time-series, distillation, tsd]",
        "---",
    ]
    return "\n".join(lines)


def _measured(run: Mapping[str, Any], scores: Mapping[str, Mapping[str, float]] | None) -> list[str]:
    """The held-out loss and, after evaluation, a table of the scores with their intervals."""
    loss = f"Loss on held-out examples: {run['validation_loss']:.4f} nats a token"
    if run.get("label_loss") is not None:
        loss += f", {run['label_loss']:.4f} on those that carry a label or a number"
    loss += "."
    if scores is None:
        return [loss]
    rows = [f"| {name} | {at['value']:.3f} | {at['low']:.3f}–{at['high']:.3f} |" for name, at in scores.items()]
    table = "\n".join(["| score | share right | 95 % interval |", "|---|---|---|", *rows])
    return [loss, "On test series that were not used for training:", table]


def _named(source: str) -> str:
    """How the card names the base model: a hub name as it is, a path by its last folder only."""
    return source if _from_hub(source) else f"the model folder {source.rstrip('/').rsplit('/', 1)[-1]}"


def _from_hub(source: str) -> bool:
    """Whether a source has the form OWNER/NAME of a hub."""
    return source.count("/") == 1 and not source.startswith((".", "/"))

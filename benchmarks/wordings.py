"""What varied sentences and numbers cost a student: one wording, varied wordings, varied wordings with numbers.

Students of two sizes are trained from scratch on the truth of the same series, in each of the three ways, from
three seeds, one after another on one thread. The varied ways have the same sentences; in one of them the numbers
are left out, together with the words around them. Prints label accuracies on other series, and the held-out loss
of labels and numbers and of wording; differences from one wording are paired by seed and test series, with 95 %
intervals over both. Writes wordings.json beside itself. A quarter of an hour.

    OMP_NUM_THREADS=1 python benchmarks/wordings.py
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from measured import finish, parser, show

from tsd.evaluation import scoring
from tsd.evaluation.intervals import crossed_mean
from tsd.generation.generator import draw_table
from tsd.inference.decoding import decode
from tsd.models import students
from tsd.models.tokenizer import build_tokenizer
from tsd.recipe import Student, load
from tsd.tasks import SINGLE, Labels, wording_of
from tsd.training import corpus, loop
from tsd.training.label_tokens import label_tokens

SIZES, SEEDS = ("0.1M", "0.3M"), (0, 1, 2)
EXAMPLES, HELD_OUT, TESTS = 8000, 500, 1000
ENOUGH = 4000  # examples from whose texts the tokenizer is built
ONE, VARIED, NUMBERS = "one wording", "varied", "varied, with numbers"
# A phrase around numbers, from the sign or word that joins it to the sentence.
_PHRASE = re.compile(
    r":? it starts near \{start\} and ends near \{end\}"
    r"|,? from (?:\w+ )?\{start\} to (?:\w+ )?\{end\}"
    r"|: the change of \{change\} is within the noise"
    r"|, (?:at|around a level of|with a standard deviation of about|a standard deviation of|about)"
    r" (?:point )?\{\w+\}(?: of \{length\}| units)?"
    r"|: about \{noise\} units"
    r"| of \{\w+\}"
    r"|, \{\w+\},"
)


def main() -> None:
    """Train, print accuracies and losses, keep them."""
    options = parser(__doc__).parse_args()
    recipe = load("laptop", ["teacher={kind: rules, error_rate: 0}"])
    series = draw_table(SINGLE, recipe.series, recipe.seed, 0, EXAMPLES + HELD_OUT + TESTS)
    tests = series.slice(EXAMPLES + HELD_OUT)
    rows, hits = [], {}
    for way, say in WAYS.items():
        texts = replies(series.slice(0, EXAMPLES + HELD_OUT), say)
        for size in SIZES:
            for seed in SEEDS:
                found, right = learn(series, texts, tests, Student(name=size), seed)
                rows.append({"wording": way, "student": size, "seed": seed, **found})
                hits[way, size, seed] = right
                print(json.dumps(rows[-1]), flush=True)
        print(f"{way}: {len(set(texts)):,} distinct texts of {len(texts):,}; such as {texts[0]}", flush=True)
    names = list(rows[0])[3:]
    show(
        "Means over seeds",
        [
            {"wording": way, "student": size}
            | {name: float(np.mean([row[name] for row in _of(rows, way, size)])) for name in names}
            for size in SIZES
            for way in WAYS
        ],
    )
    costs = [
        {"student": size, "wording": way, "facet": facet, **asdict(apart)}
        for size in SIZES
        for way in (VARIED, NUMBERS)
        for i, facet in enumerate(SINGLE.names)
        if (apart := crossed_mean(np.stack([hits[way, size, s][:, i] - hits[ONE, size, s][:, i] for s in SEEDS])))
    ]
    show("Accuracy beyond that of one wording", costs)
    finish(__file__, {"examples": EXAMPLES, "tests": TESTS, "runs": rows, "costs": costs}, [], options.check)


def _of(rows: Sequence[dict[str, Any]], way: str, size: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["wording"] == way and row["student"] == size]


def _one(labels: Labels, stated: dict[str, str], choice: Sequence[int]) -> str:
    """The labels in each facet's first phrasing."""
    return SINGLE.reply(labels, [0] * len(SINGLE.phrasing_counts))


def _varied(labels: Labels, stated: dict[str, str], choice: Sequence[int]) -> str:
    """The sentences of `describe` without their numbers."""
    slots = {name: f"{{{name}}}" for name in stated}
    said = _PHRASE.sub("", SINGLE.describe(labels, slots, choice))
    assert not re.search(r"\{\w", said), said
    assert SINGLE.parse(said).labels == labels, said
    return said


WAYS: dict[str, Callable[[Labels, dict[str, str], Sequence[int]], str]] = {
    ONE: _one,
    VARIED: _varied,
    NUMBERS: SINGLE.describe,
}


def replies(series: pa.Table, say: Callable[[Labels, dict[str, str], Sequence[int]], str]) -> list[str]:
    """What is said of each series."""
    choices = [list(map(wording_of, SINGLE.style(f"wordings {i}"))) for i in range(len(series))]
    return list(map(say, series["truth"].to_pylist(), SINGLE.stated(series), choices))


def learn(
    series: pa.Table, texts: Sequence[str], tests: pa.Table, student: Student, seed: int
) -> tuple[dict[str, float], npt.NDArray[np.float64]]:
    """Scores and losses of a student, and which facets of which tests it has right, (tests, facets) 0 or 1.

    texts: of the first series, those that are trained on and those that are held out.
    """
    settings = load("laptop").training
    prompts = list(map(SINGLE.student_prompt, series["values"].to_pylist()))
    tokenizer = build_tokenizer([*prompts[:ENOUGH], *texts[:ENOUGH]], settings.max_length)
    examples = pa.table({"prompt": prompts[: len(texts)], "completion": texts})
    taught, held_out = (
        corpus.tokenise(part, tokenizer, settings.max_length)
        for part in (examples.slice(0, EXAMPLES), examples.slice(EXAMPLES))
    )
    model = students.build(student, tokenizer, seed, settings.max_length)
    loop.train(
        model,
        taught,
        settings,
        learning_rate=students.learning_rate(student),
        seed=seed,
        place=loop.WorkerContext(),
        optimizer=loop.make_optimizer(model, settings),
        progress=loop.Progress(),
    )
    carrying = label_tokens(tokenizer, *SINGLE.words)
    loss = loop.evaluate(model, held_out, settings.batch_size, loop.WorkerContext(), carrying)
    said = decode(model, tokenizer, prompts[-len(tests) :], SINGLE.reply_tokens)
    answers = scoring.answers(SINGLE, tests, said)
    truth, labels = answers["truth"].to_pylist(), answers["labels"].to_pylist()
    right = np.array(
        [[was[name] == is_[name] for name in SINGLE.names] for was, is_ in zip(labels, truth, strict=True)], float
    )
    accuracies = dict(zip(SINGLE.names, right.mean(0).tolist(), strict=True))
    return {
        **accuracies,
        "all": float(right.all(1).mean()),
        "label loss": loss.labels,
        "wording loss": loss.wording,
    }, right


if __name__ == "__main__":
    main()

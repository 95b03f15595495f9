"""AdamW or Muon for the teacher that looks: what it has learned of the same pictures, and what a picture takes.

Trains the laptop recipe's teacher with either, from two seeds, one after the other on one thread, at the same
learning rate; then times a step of either and of torch's own Muon with AdamW beside it, in turns. Writes
optimisers.json beside itself. About six minutes.

    OMP_NUM_THREADS=1 python benchmarks/optimisers.py --check
"""

from collections.abc import Callable
from statistics import mean
from typing import Any

import pyarrow as pa
import torch
from measured import Bound, finish, medians, show

from tsd import bare, scoring, students, training
from tsd.decoding import describe
from tsd.recipe import Recipe, load
from tsd.teachers import own

PICTURES, SEEDS = 30_000, (0, 1)
OPTIMISERS = ("adamw", "muon")
FEW, REPEATS = 1280, 5  # pictures that are timed together, and how often


def main() -> None:
    """Train, time, and write the tables."""
    torch.set_num_threads(1)
    learnt = [_learnt(_asked(name, PICTURES, seed)) for name in OPTIMISERS for seed in SEEDS]
    show(f"After {PICTURES:,} pictures", learnt)
    times = medians(
        {
            **{name: _steps(_asked(name, FEW)) for name in OPTIMISERS},
            "torch's Muon and AdamW": _steps(_asked("muon", FEW), _torch_muon),
        },
        REPEATS,
    )
    each = [
        {"optimiser": name, "ms a picture": 1e3 * seconds / FEW, "of AdamW's": seconds / times["adamw"]}
        for name, seconds in times.items()
    ]
    show("What a picture takes", each)
    loss = {name: mean(row["held-out loss"] for row in learnt if row["optimiser"] == name) for name in OPTIMISERS}
    bounds = [
        Bound("Muon's held-out loss, of AdamW's", loss["muon"] / loss["adamw"], most=0.85),
        Bound("a step with Muon, of AdamW's", times["muon"] / times["adamw"], most=1.3),
        Bound("a step with Muon, of torch's", times["muon"] / times["torch's Muon and AdamW"], most=0.95),
    ]
    finish(__file__, {"pictures": PICTURES, "learnt": learnt, "steps": each}, bounds)


def _asked(optimiser: str, pictures: int, seed: int = 0) -> Recipe:
    settings = [f"optimiser={optimiser}", f"pictures={pictures}", f"seed={seed}"]
    return load("laptop", [f"teacher.train.{setting}" for setting in settings])


def _learnt(recipe: Recipe) -> dict[str, Any]:
    """What a teacher has learned: its loss on held-out answers, and how many test series it has right."""
    series, settings, student = own.draw(recipe), own.settings(recipe), own.as_student(recipe)
    tokenizer, corpora = own.told(recipe, series)
    seed = recipe.teacher.train.seed  # type: ignore[union-attr]
    model = students.build(student, tokenizer, seed, settings.max_length)
    progress = training.Progress()
    training.train(
        model,
        corpora["train"],
        settings,
        learning_rate=students.learning_rate(student),
        seed=seed,
        place=training.Place(),
        optimiser=training.make_optimiser(model, settings),
        progress=progress,
    )
    loss = training.evaluate(model, corpora["validation"], settings.batch_size, training.Place())
    model.eval()
    ink = bare.draw(recipe.asks.items(series["test"]))
    texts = describe(model, tokenizer, recipe.asks, ink, recipe.asks.reply_tokens)
    labels = pa.array([recipe.asks.parse(text).labels for text in texts], recipe.asks.tables.labels)
    found = scoring.score(series["test"].select(["series_id", "truth"]).append_column("labels", labels))
    return {
        "optimiser": settings.optimiser,
        "seed": seed,
        "held-out loss": loss,
        **{facet: found[facet].value for facet in recipe.asks.names},
    }


def _steps(
    recipe: Recipe, make: Callable[..., torch.optim.Optimizer] = training.make_optimiser
) -> Callable[[], None]:
    """An epoch of a recipe's pictures."""
    settings, student = own.settings(recipe), own.as_student(recipe)
    tokenizer, corpora = own.told(recipe, own.draw(recipe))
    model = students.build(student, tokenizer, 0, settings.max_length)
    optimiser = make(model, settings)
    return lambda: training.train(
        model,
        corpora["train"],
        settings,
        learning_rate=1e-4,
        seed=0,
        place=training.Place(),
        optimiser=optimiser,
        progress=training.Progress(),
    )


class _TorchMuon(torch.optim.AdamW):
    """Ours with torch's own Muon for the matrices."""

    def __init__(self, groups: list[dict[str, Any]], **settings: Any) -> None:
        rest = [group for group in groups if not group.get("matrices")]
        super().__init__(rest, **settings)
        (matrices,) = (group["params"] for group in groups if group.get("matrices"))
        self.muon = torch.optim.Muon(matrices, lr=0.0, weight_decay=0.01, momentum=0.9, ns_steps=3)

    def step(self, closure: Any = None) -> Any:
        """Take a step of both."""
        for group in self.muon.param_groups:
            group["lr"] = self.param_groups[0]["lr"]
        self.muon.step()
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Of both."""
        self.muon.zero_grad(set_to_none)
        super().zero_grad(set_to_none)


def _torch_muon(model: Any, settings: Any) -> torch.optim.Optimizer:
    return _TorchMuon(
        training.make_optimiser(model, settings).param_groups, lr=0.0, betas=settings.betas, fused=True
    )


if __name__ == "__main__":
    main()

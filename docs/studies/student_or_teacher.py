"""The table of `docs/experiments.md` on students and teachers with systematic errors, from the finished studies.

python docs/studies/student_or_teacher.py
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tsd.evaluation import scoring
from tsd.evaluation.intervals import crossed_mean
from tsd.recipe import Recipe, load
from tsd.reporting.runs import Run, in_order
from tsd.storage import datasets

RECIPES = ("student_or_teacher.yaml", "student_or_teacher_curated.yaml")


def main() -> None:
    """Print a line for each teacher, curation, student and train size."""
    print("| teacher | curation | student | examples | all four right, %, teacher → student | difference |")
    print("|---|---|---|---|---|---|")
    for name in RECIPES:
        recipe = load(str(Path(__file__).parent / name), [])
        for teacher, one in recipe.by_teacher.items():
            runs = in_order(datasets.open_dataset(f"{one.folder}/runs", one.asks.tables.runs).read())
            for student, examples in dict.fromkeys((run["student"], run["examples"]) for run in runs):
                own = [run for run in runs if (run["student"], run["examples"]) == (student, examples)]
                policy = recipe.curation.policy("trend")  # that of all facets here
                print(f"| {teacher} | {policy} | {student} | {examples:,} | {beside(one, own)} |")


def beside(recipe: Recipe, runs: list[Run]) -> str:
    """One student's runs, a seed each, beside their teacher on the same test series."""
    students, teachers = zip(*(all_right(recipe, run) for run in runs), strict=True)
    apart = crossed_mean(np.stack(students) - np.stack(teachers))
    ends = [f"{100 * end:+.1f}".replace("-", "−") for end in (apart.value, apart.low, apart.high)]
    told = f"{ends[0]} [{ends[1]} to {ends[2]}]"
    if apart.low > 0 or apart.high < 0:
        told = f"**{told}**"
    return f"{100 * np.mean(teachers):.1f} → {100 * np.mean(students):.1f} | {told}"


def all_right(recipe: Recipe, run: Run) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Whether all facets are right, (series,) each: as the student says, and as its teacher does."""
    tables = recipe.asks.tables
    said = datasets.open_dataset(f"{recipe.folder}/predictions/{run['run_id']}", tables.predictions).read()
    parts = datasets.open_dataset(f"{recipe.folder}/annotations", tables.annotations).each_part(
        ["series_id", "labels"]
    )
    taught = pa.concat_tables(part.filter(pc.is_in(part["series_id"], said["series_id"])) for part in parts)
    truth = said.select(["series_id", "truth"]).sort_by("series_id")["truth"]
    both = taught.sort_by("series_id").append_column("truth", truth)
    student, teacher = (scoring.right(table).all(1).astype(np.float64) for table in (said, both))
    return student, teacher


if __name__ == "__main__":
    main()

"""What came of a study's runs, as it stands on disk: records of those that are finished, why others failed.

Ray's trainer is not needed to read it, nor the seconds that it takes to load.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tsd.cluster.trials import Run
from tsd.recipe import Recipe
from tsd.storage import datasets

FAILURES = "failures.json"  # of training
SILENT = "undecoded.json"  # why students could not reply


def finished(recipe: Recipe, runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """The records of the runs that are finished, by run id."""
    folder = f"{recipe.folder}/records"
    records = {run["run_id"]: datasets.read_fields(folder, f"{run['run_id']}.json") for run in runs}
    return {run_id: record for run_id, record in records.items() if record is not None}


def forget_checkpoints(recipe: Recipe) -> None:
    """Delete the checkpoints of a study all of whose runs are finished."""
    datasets.delete_folder(f"{recipe.folder}/trials")


def note_failures(recipe: Recipe, failures: Mapping[str, str]) -> None:
    """Keep why runs failed in the last start that trained, for evaluation and report; they may be none."""
    datasets.write_json(recipe.folder, FAILURES, dict(failures))


def untrained(recipe: Recipe, runs: Sequence[Run]) -> dict[str, str]:
    """Why some of these runs failed in the last start that trained, by run id."""
    failed, done = datasets.read_fields(recipe.folder, FAILURES) or {}, finished(recipe, runs)
    ids = [run["run_id"] for run in runs]
    return {run_id: failed[run_id] for run_id in ids if run_id in failed and run_id not in done}


def note_undecoded(recipe: Recipe, failures: Mapping[str, str]) -> None:
    """Keep why students could not reply in the last start that decoded; they may be none."""
    if failures or datasets.read_fields(recipe.folder, SILENT):
        datasets.write_json(recipe.folder, SILENT, dict(failures))


def undecoded(recipe: Recipe, runs: Sequence[Run]) -> dict[str, str]:
    """Why some of these students could not reply in the last start that decoded, by run id."""
    failed = datasets.read_fields(recipe.folder, SILENT) or {}
    return {run["run_id"]: failed[run["run_id"]] for run in runs if run["run_id"] in failed}


def failures(recipe: Recipe, runs: Sequence[Run]) -> dict[str, str]:
    """Why some of these runs have no scores: they could not be trained, or their student could not reply."""
    return untrained(recipe, runs) | undecoded(recipe, runs)

"""Results of a study's runs on disk: records of finished runs, and reasons of failed ones.

Reading them does not require Ray's trainer, which takes seconds to import.
"""

from collections.abc import Mapping, Sequence

from tsd.errors import DataError
from tsd.recipe import Recipe
from tsd.storage import folders
from tsd.training.runs import RunRecord, RunSpec

FAILURES = "failures.json"  # of training
SILENT = "undecoded.json"  # why students could not be decoded


def finished(recipe: Recipe, runs: Sequence[RunSpec]) -> dict[str, RunRecord]:
    """Return the records of finished runs, by run id. Raises DataError if one is damaged."""
    folder, records = f"{recipe.folder}/records", dict[str, RunRecord]()
    for run in runs:
        name = f"{run.run_id}.json"
        fields = folders.read_fields(folder, name)
        if fields is None:
            continue
        try:
            records[run.run_id] = RunRecord(**fields)
        except TypeError as error:
            why = str(error).partition(" ")[2]
            raise DataError(folders.damaged(f"{folder}/{name}", f"it is not a record ({why})", folder)) from None
    return records


def forget_checkpoints(recipe: Recipe) -> None:
    """Delete the checkpoints of a study whose runs are all finished."""
    folders.delete_folder(f"{recipe.folder}/trials")


def note_failures(recipe: Recipe, failures: Mapping[str, str]) -> None:
    """Store why runs failed in the last training, for evaluation and report. failures: by run id, may be empty."""
    folders.write_json(recipe.folder, FAILURES, dict(failures))


def untrained(recipe: Recipe, runs: Sequence[RunSpec]) -> dict[str, str]:
    """Return why runs failed in the last training, by run id."""
    failed, done = folders.read_fields(recipe.folder, FAILURES) or {}, finished(recipe, runs)
    ids = [run.run_id for run in runs]
    return {run_id: failed[run_id] for run_id in ids if run_id in failed and run_id not in done}


def note_undecoded(recipe: Recipe, failures: Mapping[str, str]) -> None:
    """Store why students could not be decoded in the last decoding. failures: by run id, may be empty."""
    if failures or folders.read_fields(recipe.folder, SILENT):
        folders.write_json(recipe.folder, SILENT, dict(failures))


def undecoded(recipe: Recipe, runs: Sequence[RunSpec]) -> dict[str, str]:
    """Return why students could not be decoded in the last decoding, by run id."""
    failed = folders.read_fields(recipe.folder, SILENT) or {}
    return {run.run_id: failed[run.run_id] for run in runs if run.run_id in failed}


def failures(recipe: Recipe, runs: Sequence[RunSpec]) -> dict[str, str]:
    """Return why runs have no scores, by run id: training or decoding failed."""
    return untrained(recipe, runs) | undecoded(recipe, runs)

"""Restore a study's students whose records or folders were deleted, truncated or changed on disk.

A record is rewritten from its student's model metadata. A student with an incomplete folder is trained again. The
run is deterministic given the same examples, so its weights are compared with the previous digests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.markup import escape

from tsd.errors import DataError
from tsd.models import card
from tsd.progress import Reporter
from tsd.recipe import Recipe
from tsd.storage import datasets, folders
from tsd.training.runs import RunSpec


@dataclass(frozen=True)
class LostStudent:
    """A student that must be trained again: the problems of its files, and their digests where known."""

    wrong: Mapping[str, str]
    before: Mapping[str, folders.Seal]


def restore_records(recipe: Recipe, runs: Sequence[RunSpec], reporter: Reporter) -> dict[str, LostStudent]:
    """Rewrite damaged records, and delete those of incomplete students. Returns the latter, by run id."""
    lost: dict[str, LostStudent] = {}
    records = f"{recipe.folder}/records"
    for run_id in (run.run_id for run in runs):
        folder, name = f"{recipe.folder}/students/{run_id}", f"{run_id}.json"
        if folders.read_bytes(records, name) is None:
            continue
        wrong = folders.damage(folder) if folders.exists(folder) else {"its folder": "it is missing"}
        if wrong:
            lost[run_id] = LostStudent(wrong, folders.seals(folder))
            folders.delete_file(records, name)
            reporter.say(escape(f"  students/{run_id} is damaged ({_first(wrong)}): it is trained again"))
            continue
        try:
            whole = folders.read_fields(records, name) or {}
        except DataError:
            whole = {}
        if whole.get("run_id") != run_id:
            record = {**folders.read_json(folder, card.CARD)["run"], **_decode_seconds(recipe, run_id)}
            folders.write_json(records, name, record)
            reporter.say(escape(f"  records/{name} was damaged: rewritten from students/{run_id}/{card.CARD}"))
    return lost


def hold_against(recipe: Recipe, lost: Mapping[str, LostStudent], reporter: Reporter) -> None:
    """Report whether students that were trained again have the same files as before.

    If not, their predictions are deleted, since they were made with the previous weights.
    """
    for run_id, one in lost.items():
        folder = f"{recipe.folder}/students/{run_id}"
        if not folders.exists(folder):
            continue  # its training failed, which is reported elsewhere
        if one.before and _weights(folders.seals(folder)) != _weights(one.before):
            folders.delete_folder(f"{recipe.folder}/predictions/{run_id}")
            reporter.say(escape(f"  students/{run_id} was trained again, with other weights: it is decoded again"))
        else:
            same = " with the same bytes" if one.before else ""
            reporter.say(escape(f"  remade students/{run_id}{same} ({_first(one.wrong)})"))


def require_same(
    folder: str, wrong: Mapping[str, str], before: Mapping[str, folders.Seal], reporter: Reporter
) -> None:
    """Report that a sealed folder was rebuilt. Raises DataError if its files differ from the previous ones."""
    name, now = folder.removeprefix(folders.study_of(folder)).lstrip("/"), folders.seals(folder)
    if before and before != now:
        changed = sorted(file for file in {*before, *now} if before.get(file) != now.get(file))
        raise DataError(
            f"{folder} came out with other bytes than before ({', '.join(changed[:3])}): install the versions "
            "that wrote it, or name another folder with --out"
        )
    reporter.say(escape(f"  remade {name}{' with the same bytes' if before else ''} ({_first(wrong)})"))


def delete_unfinished(run: str) -> None:
    """Delete what killed commands left of folders that they stored. The study's lock must be held."""
    for place in (run, *(f"{run}/teachers/{name}" for name in folders.subfolders(f"{run}/teachers"))):
        for folder in (place, f"{place}/students", f"{place}/tokenizers"):
            folders.delete_unfinished(folder)


def _decode_seconds(recipe: Recipe, run_id: str) -> dict[str, float]:
    """Return the record field that the model metadata lacks, if the runs table has it."""
    runs = datasets.peek(f"{recipe.folder}/runs", recipe.asks.tables.runs)
    try:
        rows = runs.read(["run_id", "decode_seconds"]).to_pylist() if runs else []
    except DataError:
        return {}
    seconds = {row["run_id"]: row["decode_seconds"] for row in rows}.get(run_id)
    return {} if seconds is None else {"decode_seconds": seconds}


def _weights(seals: Mapping[str, folders.Seal]) -> dict[str, folders.Seal]:
    """Select the files that determine predictions: the metadata contains timings, which differ each time."""
    return {name: seal for name, seal in seals.items() if name != card.CARD}


def _first(wrong: Mapping[str, str]) -> str:
    name, what = next(iter(wrong.items()), ("its files", "they are missing"))
    return f"{name}: {what}" + (f", and {len(wrong) - 1} more" if len(wrong) > 1 else "")

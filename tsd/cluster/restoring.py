"""What was lost of a study's students: records and folders that were deleted, cut or changed on disk.

A record is written anew from its student's model card. A student whose folder is not whole is trained again: its
run is the same function of the same examples, and its weights are held against the digests that lay beside them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape

from tsd.cluster.trials import Run
from tsd.errors import DataError
from tsd.models import card
from tsd.progress import Reporter
from tsd.recipe import Recipe
from tsd.storage import datasets


@dataclass(frozen=True)
class LostStudent:
    """A student that has to be trained again: what is wrong with its files, and their digests, as far as known."""

    wrong: Mapping[str, str]
    before: Mapping[str, Mapping[str, Any]]


def restore_records(recipe: Recipe, runs: Sequence[Run], reporter: Reporter) -> dict[str, LostStudent]:
    """Write damaged records anew, and forget those of students that are not whole. Returns these, by run id."""
    lost: dict[str, LostStudent] = {}
    records = f"{recipe.folder}/records"
    for run_id in (run["run_id"] for run in runs):
        folder, name = f"{recipe.folder}/students/{run_id}", f"{run_id}.json"
        if datasets.read_bytes(records, name) is None:
            continue
        wrong = datasets.damage(folder) if datasets.exists(folder) else {"its folder": "it is missing"}
        if wrong:
            lost[run_id] = LostStudent(wrong, datasets.seals(folder))
            datasets.delete_file(records, name)
            reporter.say(escape(f"  students/{run_id} is damaged ({_first(wrong)}): it is trained again"))
            continue
        try:
            whole = datasets.read_fields(records, name) or {}
        except DataError:
            whole = {}
        if whole.get("run_id") != run_id:
            record = {**datasets.read_json(folder, card.CARD)["run"], **_decode_seconds(recipe, run_id)}
            datasets.write_json(records, name, record)
            reporter.say(escape(f"  records/{name} was damaged: written anew from students/{run_id}/{card.CARD}"))
    return lost


def hold_against(recipe: Recipe, lost: Mapping[str, LostStudent], reporter: Reporter) -> None:
    """Say whether students that were trained again have the files that they had. Those that have not lose what
    was decoded with the old ones."""
    for run_id, one in lost.items():
        folder = f"{recipe.folder}/students/{run_id}"
        if not datasets.exists(folder):
            continue  # its training failed, which is told elsewhere
        if one.before and _weights(datasets.seals(folder)) != _weights(one.before):
            datasets.delete_folder(f"{recipe.folder}/predictions/{run_id}")
            reporter.say(escape(f"  students/{run_id} was trained again, with other weights: it is decoded again"))
        else:
            same = " with the same bytes" if one.before else ""
            reporter.say(escape(f"  remade students/{run_id}{same} ({_first(one.wrong)})"))


def require_same(
    folder: str, wrong: Mapping[str, str], before: Mapping[str, Mapping[str, Any]], reporter: Reporter
) -> None:
    """Say that a sealed folder was made again. Raises DataError where its files are not those that were there."""
    name, now = folder.rpartition("/")[2], datasets.seals(folder)
    if before and before != now:
        changed = sorted(file for file in {*before, *now} if before.get(file) != now.get(file))
        raise DataError(
            f"{folder} came out with other bytes than before ({', '.join(changed[:3])}): install the versions "
            "that wrote it, or name another folder with --out"
        )
    reporter.say(escape(f"  remade {name}{' with the same bytes' if before else ''} ({_first(wrong)})"))


def _decode_seconds(recipe: Recipe, run_id: str) -> dict[str, float]:
    """What a record has besides its student's card, as far as the runs table knows it."""
    runs = datasets.peek(f"{recipe.folder}/runs", recipe.asks.tables.runs)
    try:
        rows = runs.read(["run_id", "decode_seconds"]).to_pylist() if runs else []
    except DataError:
        return {}
    seconds = {row["run_id"]: row["decode_seconds"] for row in rows}.get(run_id)
    return {} if seconds is None else {"decode_seconds": seconds}


def _weights(seals: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Of a student's files those that it replies by: the card holds seconds, which differ each time."""
    return {name: seal for name, seal in seals.items() if name != card.CARD}


def _first(wrong: Mapping[str, str]) -> str:
    name, what = next(iter(wrong.items()), ("its files", "they are missing"))
    return f"{name}: {what}" + (f", and {len(wrong) - 1} more" if len(wrong) > 1 else "")

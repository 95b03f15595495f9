"""Records of earlier starts: their cost, their server addresses, and rows to request again."""

import asyncio
from collections.abc import Callable, Collection

from pyarrow import fs

from tsd.errors import InputError, StorageError
from tsd.recipe import ApiTeacher, Recipe
from tsd.storage import datasets, folders, manifests
from tsd.teachers.api.account import Cost, Earlier
from tsd.teachers.api.connection import serves
from tsd.teachers.api.journal import ADDRESSES, FOLDER, Journal, parts_with_journals, read_all
from tsd.teachers.api.messages import DOLLARS, INPUT, OUTPUT, STATUS, UNCONFIRMED, UNCONFIRMED_TOKENS

PREVIEW = "preview"  # subfolder of a study's folder

Say = Callable[[str], None]


def require_journals(
    teacher: ApiTeacher,
    folder: str,
    lost: Collection[int],
    found: dict[int, datasets.Part],
    series: datasets.Dataset,
) -> None:
    """Raise StorageError if finished parts and their journals are both missing: they would be paid for again.

    lost: indices of missing parts. found: the existing parts, used to estimate the cost.
    """
    gone = sorted(set(lost) - set(parts_with_journals(folder)))
    if not gone:
        return
    notes = [part.note for part in found.values() if part.note]
    rows = sum(part.rows for part in found.values())
    spent = sum(note[DOLLARS] for note in notes)
    again = sum(series.manifest["parts"][index]["rows"] for index in gone)
    price = f"about ${again * spent / rows:,.2f}" if rows and spent else f"{again:,} requests"
    first = datasets.part_name(gone[0])
    raise StorageError(
        f"{folder} lacks {len(gone)} finished parts (the first is {first}), and their journal is gone: restore "
        f"them, or delete {folder}/{manifests.MANIFEST} to ask {teacher.model} again for {price}"
    )


def keep_address(teacher: ApiTeacher, folder: str, say: Say) -> None:
    """Record the server address of the replies. A new address is accepted if it lists the model.

    say: called with a message about replies that are reused from another address.
    Raises InputError if the new address does not list the model and replies of another address exist.
    """
    place = f"{folder}/{FOLDER}"
    known: list[str] = folders.read_json(place, ADDRESSES) or []
    if teacher.base_url in known[-1:]:
        return
    there = sum(len(one.replies) for one in read_all(folder, parts_with_journals(folder)).values())
    if known and there:
        if not asyncio.run(serves(teacher)):
            raise InputError(
                f"{teacher.base_url} does not list the model {teacher.model}, of which {there:,} replies from "
                f"{known[-1]} are kept: check teacher.base_url and teacher.model, or name another --out"
            )
        say(
            f"  {there:,} replies of {teacher.model} from {known[-1]} are kept, "
            f"{teacher.base_url} is asked the rest"
        )
    folders.write_json(place, ADDRESSES, [*(one for one in known if one != teacher.base_url), teacher.base_url])


def earlier_requests(folder: str, key: str) -> Earlier:
    """Return the billing of all requests and batches of a run, from finished parts and journals."""
    account = Earlier()
    finished = datasets.finished_parts(folder, key)
    for note in (part.note for part in finished.values()):
        if note:
            account.billed += Cost(int(note[INPUT]), int(note[OUTPUT]), note[DOLLARS])
            account.replies += sum(int(count) for name, count in note.items() if name.startswith(STATUS))
    for index, part in finished.items():
        if part.note and part.note.get(UNCONFIRMED_TOKENS):
            lost = Cost(0, int(part.note[UNCONFIRMED_TOKENS]), part.note.get(UNCONFIRMED, 0.0))
            account.open[f"part {index}"] = lost
    under_way = [part for part in parts_with_journals(folder) if part not in finished]
    for history in read_all(folder, under_way).values():
        account.add(history.account)
    account.add(Journal(preview_folder(folder), 0).read().account)
    return account


def preview_folder(annotations: str) -> str:
    """Return the folder of a preview's journal: a sibling of the annotations folder."""
    return f"{annotations.rpartition('/')[0]}/{PREVIEW}"


def adopt_preview(annotations: str) -> None:
    """Copy the replies and bills of a preview into the journal of the first part."""
    found, wanted = Journal(preview_folder(annotations), 0).folder, Journal(annotations, 0).folder
    files, root = folders.filesystem(found)
    if files.get_file_info(root).type != fs.FileType.Directory:
        return
    there, place = folders.filesystem(wanted)
    with folders.storage_errors(wanted):
        there.create_dir(place, recursive=True)
        fs.copy_files(root, place, source_filesystem=files, destination_filesystem=there)
    folders.delete_folder(preview_folder(annotations))  # lines that exist twice after a crash count once


def reopen_errors(recipe: Recipe, folder: str, key: str) -> int:
    """Mark the rows with status `error` for another request by the next start. Returns their number.

    Their parts become unfinished. All other rows stay in the parts' journals.
    """
    with_errors = [
        index
        for index, part in datasets.finished_parts(folder, key).items()
        if part.note and part.note.get(STATUS + "error")
    ]
    if not with_errors:
        return 0
    schema, rows = recipe.asks.tables.annotations, 0
    for index in with_errors:
        journal = Journal(folder, index)
        if not journal.read().replies and not journal.read().failed:
            journal.archive.restore(datasets.read_part(folder, index, schema))
        rows += journal.archive.reopen()
    folders.delete_file(folder, manifests.MANIFEST)
    for index in with_errors:
        folders.delete_file(folder, datasets.part_name(index))
    return rows

"""Parts of a dataset that were there before and are missing or damaged now."""

from collections.abc import Mapping
from dataclasses import dataclass

from rich.markup import escape

from tsd.progress import Reporter
from tsd.storage import datasets, folders, manifests

SHOWN = 3  # lost parts that a message lists


@dataclass(frozen=True)
class Lost:
    """Parts of a table that existed before, and the problem of each; their files are set aside."""

    folder: str
    parts: Mapping[int, str]

    def say(self, reporter: Reporter) -> None:
        """Report which parts were rebuilt and why."""
        if self.parts:
            table, count = self.folder.removeprefix(folders.study_of(self.folder)).lstrip("/"), len(self.parts)
            whys = ", ".join(
                f"{datasets.part_name(part)}: {why}" for part, why in list(self.parts.items())[:SHOWN]
            )
            more = f", and {count - SHOWN} more" if count > SHOWN else ""
            noun = "part" if count == 1 else "parts"
            reporter.say(escape(f"  remade {count:,} {noun} of {table} with the same bytes ({whys}{more})"))


def find_lost(folder: str, key: str, parts: int) -> Lost:
    """Find the lost parts and set their files aside.

    If the manifest is damaged, all missing parts count as lost, since they may have existed.
    """
    lost = datasets.lost_parts(folder, key)
    if manifests.has_damaged_manifest(folder):
        lost |= datasets.unreadable_parts(folder)
        there = datasets.finished_parts(folder, key)
        lost |= {part: "it is missing, as is a whole manifest" for part in range(parts) if part not in there}
    for part in lost:
        datasets.set_aside(folder, part)
    return Lost(folder, lost)

"""What a check of a study's folder found: one line per table, one per problem."""

from dataclasses import dataclass

from tsd.storage import datasets


@dataclass(frozen=True)
class Finding:
    """A problem. folder: of the table or the student. part: index in the table, if it concerns a part."""

    folder: str
    what: str
    part: int | None = None
    name: str | None = None
    """File name, if it is not a part."""
    remove: bool = False
    """Whether `set_aside` deletes the file, or the unfinished folder. Stages handle all others."""

    def __str__(self) -> str:
        file = datasets.part_name(self.part) if self.part is not None else self.name
        return f"{file + ' ' if file else ''}{self.what}"


@dataclass(frozen=True)
class Checked:
    """Result of checking a table or a folder of plain files."""

    name: str
    said: str
    findings: tuple[Finding, ...] = ()
    finished: bool = True
    """Whether it is complete, as far as is known."""
    changed: bool = False
    """Whether it is a module with another content than when the study was started, which damages nothing."""

    @property
    def lines(self) -> list[str]:
        """Format the result: one line, and one more per finding."""
        state = "damaged" if self.findings else "ok" if self.finished else "unfinished"
        state = "changed" if self.changed and state == "ok" else state
        said = f": {self.said}" if self.said else ""
        return [f"{state:<10} {self.name}{said}", *(f"           {finding}" for finding in self.findings)]

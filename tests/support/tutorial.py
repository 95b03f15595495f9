"""The files of the tutorial `docs/extending.md`, as printed there."""

import re
from pathlib import Path

from support.commands import ROOT

BLOCK = re.compile(r"```(?:python|yaml)\n# ([\w.]+)\n(.*?)```", re.DOTALL)


def write_files(folder: Path) -> None:
    """Write each block of the page into a folder, under the name in its first line."""
    for name, text in BLOCK.findall((ROOT / "docs" / "extending.md").read_text()):
        (folder / name).write_text(text)

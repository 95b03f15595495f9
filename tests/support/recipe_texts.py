"""Recipe files and overrides, and the line that a wrong one ends with."""

from pathlib import Path

import pytest

from tsd.errors import RecipeError
from tsd.recipe import load

RULES = "teacher={kind: rules}"


def written(folder: Path, text: str, name: str = "mine.yaml") -> str:
    """The path of a recipe file with this text."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def complaint(source: str, *overrides: str) -> str:
    """The one line that loading a wrong recipe ends with."""
    with pytest.raises(RecipeError) as caught:
        load(source, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def students(*sizes: str) -> str:
    """An override that names the students."""
    return f"students.models=[{', '.join(sizes)}]"

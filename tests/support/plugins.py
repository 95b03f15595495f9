"""Plugins as tests write them: modules with a fault, and what a recipe that names one is told."""

from pathlib import Path

import pytest

from tsd.errors import RecipeError
from tsd.recipe import load

RULES = "teacher={kind: rules}"
HEAD = "import numpy as np\nfrom tsd.plugins import *\n"
PROCESS = "@add_process('{name}', version='1'{more})\ndef curve(own, time, shocks, rng):\n    return {value}\n"
TEACHER = "@add_teacher('{name}', version='1')\nclass One:\n    def __init__(self, settings, task, seed): pass\n"


def written(folder: Path, text: str, name: str = "plugin.py") -> str:
    """The path of a plugin with this text."""
    path = folder / name
    path.write_text(HEAD + text)
    return str(path)


def process(name: str, value: str = "time", more: str = "") -> str:
    """The text of a process."""
    return PROCESS.format(name=name, value=value, more=f", {more}" if more else "")


def complaint(*overrides: str) -> str:
    """The one line that loading a wrong recipe ends with."""
    with pytest.raises(RecipeError) as caught:
        load("laptop", [RULES, *overrides])
    message = str(caught.value)
    assert "\n" not in message
    return message

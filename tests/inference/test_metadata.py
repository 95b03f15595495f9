"""The metadata of a student's folder: one length or several, and one line for what cannot be right."""

import json
from pathlib import Path

import pytest

from tsd.errors import InputError
from tsd.inference.metadata import read_metadata


def test_a_card_names_one_length_or_several(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for said, read in ((128, [128]), ([64, 256], [64, 256])):
        (tmp_path / "tsd.json").write_text(json.dumps({"length": said, "task": "single"}))
        assert read_metadata(str(tmp_path)).length == read


def test_an_empty_name_is_no_folder() -> None:
    with pytest.raises(InputError, match="--model is empty"):
        read_metadata("")


@pytest.mark.parametrize(
    ("card", "named"),
    [
        ("[]", "its content is []: an object is expected"),
        ("[" * 100_000, "not JSON"),
        ('{"length": 32}', "task is missing"),
        ('{"length": "32", "task": "single"}', 'length.0 is "32"'),
        ('{"length": 1000000000000, "task": "single"}', "length.0 is 1000000000000"),
        ('{"length": 32, "task": ["single"]}', 'task is ["single"]'),
        ('{"length": 32, "task": "double"}', "task is 'double': name one of single, pair, rich"),
        ('{"length": 32, "task": "single", "about": null}', "about is null: an object is expected"),
        ('{"length": 32, "task": "single", "about": "robust"}', 'about is "robust": an object'),
        ('{"length": 32, "task": "single", "about": {"places": "fifths"}}', 'about.places is "fifths"'),
        ('{"length": 32, "task": "single", "about": {"truth": 1}}', "about.truth is 1"),
        ('{"length": 32, "task": "rich", "about": {"truth": "paper"}}', "about.truth is 'paper'"),
    ],
)
def test_a_wrong_entry_is_named_with_its_file_and_what_is_allowed(tmp_path: Path, card: str, named: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tsd.json").write_text(card)
    with pytest.raises(InputError) as caught:
        read_metadata(str(tmp_path), "mine")
    said = str(caught.value)
    assert said.startswith("mine/tsd.json is damaged, train or copy the student again: ")
    assert named in said
    assert "\n" not in said

"""A finished study that grows, on a real Ray: another size, modality and train size; only new runs are trained."""

import json
from pathlib import Path

import pytest
from support.commands import command, run

from tsd.storage import datasets
from tsd.storage.schemas import TOKENS

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]

SMALL = ("series.count=3000", "students.models=[0.03M]", "students.train_sizes=[100]")
GROWN = (
    "series.count=3000",
    "students.models=[0.03M, 0.1M, {name: sees, size: 0.03M, modality: image}]",
    "students.train_sizes=[100,200]",
)


def born(folder: Path, pattern: str) -> dict[str, int]:
    """When each file was written, in ns."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.glob(pattern)}


def test_a_study_that_grows_trains_what_is_new_alone_each_modality_with_its_own_vocabulary(tmp_path: Path) -> None:
    study = tmp_path / "tiny"
    run(command(tmp_path, *SMALL), cpus=2)
    kept = ("students/*/model.safetensors", "tokens/*/*", "tokenizers/*/*", "predictions/*/part-*", "examples/*")
    before = {pattern: born(study, pattern) for pattern in kept}
    assert [len(before[pattern]) for pattern in kept[:1]] == [1]
    run(command(tmp_path, *GROWN), cpus=2)
    for pattern in kept:
        after = born(study, pattern)
        assert {name: after[name] for name in before[pattern]} == before[pattern], pattern
    records = [json.loads(path.read_text()) for path in (study / "records").glob("*.json")]
    assert sorted((record["student"], record["examples"]) for record in records) == [
        *(("0.03M", 100), ("0.03M", 200), ("0.1M", 100), ("0.1M", 200), ("sees", 100), ("sees", 200)),
    ]
    words = [
        frozenset(json.loads(path.read_text())["model"]["vocab"][i][0] for i in range(4))
        | {token["content"] for token in json.loads(path.read_text())["added_tokens"]}
        for path in (study / "tokenizers").glob("*/tokenizer.json")
    ]
    assert len(words) == len(set(words)) == 2, "text and vision students have a vocabulary each"
    sets = [datasets.open_dataset(str(path), TOKENS) for path in sorted((study / "tokens").iterdir())]
    assert sorted(one.about["first"] is None for one in sets) == [False, True]
    trained = born(study, kept[0])
    run(command(tmp_path, *GROWN), cpus=2)  # nothing is left to do
    assert born(study, kept[0]) == trained

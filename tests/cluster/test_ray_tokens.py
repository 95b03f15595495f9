"""The stage that tokenises, on a real Ray: tokens of a source whose tokenizer changes between two starts."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from support.commands import SHARED, command, ended, run

from tsd.models.tokenizer import build_tokenizer

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

TOKENISED = """
import json, sys
from pathlib import Path
from rich.console import Console
from tsd.cluster import token_stage
from tsd.cluster.session import session
from tsd.cluster.study import Study
from tsd.progress import Reporter
from tsd.recipe import load
from tsd.storage import datasets
from tsd.storage.schemas import TOKENS
from tsd.study.identity import plan_runs

recipe, source = load("laptop", json.loads(sys.argv[1])), Path(sys.argv[2])


def tokenised(missing):
    failed = token_stage.tokenise(study, runs, missing)
    table = datasets.open_dataset(f"{recipe.folder}/tokens/{runs[0].tokens}", TOKENS).read(["tokens"])
    return {"failed": failed, "tokens": table["tokens"][0].as_py()}


def change(role, other):
    template = source / "chat_template.jinja"
    template.write_text(template.read_text().replace(role, other))


with session():
    study = Study(recipe, Reporter(Console(file=sys.stderr, width=300)))
    runs = plan_runs(recipe, study.open("examples").digest)
    found = [tokenised(runs), tokenised(runs)]
    change("assistant", "system")
    found += [tokenised(runs)]
    change("system", "user")
    found += [tokenised(runs[1:])]
print(json.dumps({"ids": [run.run_id for run in runs], "found": found}))
"""


def test_tokens_of_a_source_that_has_changed_are_made_again_unless_students_were_trained_on_them(
    tmp_path: Path,
) -> None:
    source = tmp_path / "source"
    build_tokenizer(["trend noise minimum maximum"] * 2, 512).save_pretrained(source)
    for stage in ("generate", "annotate", "curate"):
        run(command(tmp_path, "series.count=2000", stage=stage), cpus=2)
    student = f"{{name: a, source: {source}, learning_rate: 1.0e-3}}"
    words = command(tmp_path, "series.count=2000", f"students.models=[{student}]", "students.train_sizes=[40,80]")
    overrides = [value for flag, value in pairwise(words) if flag == "--set"]
    overrides.append(f"out={tmp_path}")
    result = ended([sys.executable, "-c", TOKENISED, json.dumps(overrides), str(source)], SHARED, 600)
    assert result.returncode == 0, result.stderr[-3000:]
    said = json.loads(result.stdout.splitlines()[-1])
    first, again, changed, refused = said["found"]
    assert first["failed"] == again["failed"] == changed["failed"] == {}
    assert first["tokens"] == again["tokens"] != changed["tokens"] == refused["tokens"]
    assert result.stderr.count("is made again") == 1
    trained, missing = said["ids"]
    assert list(refused["failed"]) == [missing]
    assert f"{trained} was trained with that one: set the source back" in refused["failed"][missing]

"""What tests of training share: a tokenizer, a corpus, and students to train."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.training_runs import RATE, student

from tsd.models.students import export
from tsd.models.tokenizer import build_tokenizer
from tsd.recipe import Lora, Student
from tsd.training.corpus import Corpus, tokenise


@pytest.fixture(scope="module")
def tokenizer(examples: pa.Table) -> Any:
    """A tokenizer built on the examples' own words."""
    return build_tokenizer(examples["completion"].to_pylist(), 2048)


@pytest.fixture(scope="module")
def corpus(examples: pa.Table, tokenizer: Any) -> Corpus:
    """160 examples of differing length: 20 steps of 8."""
    table = examples.slice(0, 160)
    prompts = [p.rsplit(" ", i % 40)[0] for i, p in enumerate(table["prompt"].to_pylist())]
    return tokenise(table.set_column(3, table.field("prompt"), pa.array(prompts)), tokenizer, 2048)


@pytest.fixture(scope="module")
def source(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random model to adapt."""
    folder = tmp_path_factory.mktemp("source") / "model"
    model = student(tokenizer, seed=8)
    export(model, tokenizer, folder, {})
    return folder


@pytest.fixture(scope="module")
def students(source: Path) -> dict[str, Student]:
    """One student to train whole and one by its adapters."""
    adapters = Student(name="lora", source=str(source), lora=Lora(), learning_rate=RATE)
    return {"full": Student(name="0.03M"), "adapters": adapters}

"""What several test modules share: the laptop recipe and a small corpus made by it, once a session."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pyarrow as pa
import pytest
from hypothesis import settings

from tsd.curation import curate
from tsd.drawing import draw_table
from tsd.recipe import Recipe, load
from tsd.tasks import SINGLE
from tsd.teachers.rules import Rules

# How long an example takes says more of what else the machine does than of the code.
settings.register_profile("tsd", deadline=None)
settings.load_profile("tsd")


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """The laptop recipe."""
    return load("laptop")


@pytest.fixture(scope="session")
def series(recipe: Recipe) -> pa.Table:
    """The first 1,024 series of the laptop study."""
    return draw_table(SINGLE, recipe.series, recipe.seed, 0, 1024)


@pytest.fixture(scope="session")
def annotations(recipe: Recipe, series: pa.Table) -> pa.Table:
    """What the rules teacher says of them."""
    return Rules(recipe.teacher, recipe.asks, recipe.seed).annotate(series)


@pytest.fixture(scope="session")
def examples(recipe: Recipe, series: pa.Table, annotations: pa.Table) -> pa.Table:
    """What curation keeps."""
    return curate(SINGLE, annotations, series, recipe.curation)[0]

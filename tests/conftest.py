"""What several test modules share: the laptop recipe and a small corpus made by it, once a session."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import settings
from support.api_server import Server, serving
from support.asked import KEY, SECRET, Asked, api, in_batches
from support.batch_server import BatchServer, serving_batches
from support.s3_server import S3, serving_s3
from support.vllm_engines import FEW

from tsd.curation import curate
from tsd.generation.generator import draw_table
from tsd.recipe import Recipe, load
from tsd.tasks import SINGLE
from tsd.teachers.rules import Rules

# How long an example takes says more of what else the machine does than of the code.
settings.register_profile("tsd", deadline=None)
settings.load_profile("tsd")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--long`, of `make test-long`."""
    parser.addoption("--long", action="store_true", help="also long tests; more kills and rows")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is marked as long, unless it is asked for."""
    for item in items:
        mark = item.get_closest_marker("long")
        if mark and not config.getoption("long"):
            item.add_marker(pytest.mark.skip(reason=f"make test-long runs it; {mark.args[0]}"))


@pytest.fixture(scope="session")
def long(pytestconfig: pytest.Config) -> bool:
    """Whether tests that kill take as many kills and rows as they are able to, and minutes more."""
    return bool(pytestconfig.getoption("long"))


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests work in an empty folder: a study that a user has made in the checkout's `runs/` is none of theirs."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)


@pytest.fixture(scope="module")
def small_engines() -> Iterator[None]:
    """vLLM engines that stay small."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in FEW.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """The laptop recipe with the rules teacher."""
    return load("laptop", ["teacher={kind: rules}"])


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


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A local API, and a key for it in the environment."""
    monkeypatch.setenv(KEY, SECRET)
    with serving() as state:
        yield state


@pytest.fixture
def batch_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchServer]:
    """A local API with batches, and a key for it in the environment."""
    monkeypatch.setenv(KEY, SECRET)
    with serving_batches() as state:
        yield state


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between attempts are hundredths of a second."""
    for module in ("live", "batch_calls"):
        monkeypatch.setattr(f"tsd.teachers.api.{module}.FIRST_WAIT", 0.01)
        monkeypatch.setattr(f"tsd.teachers.api.{module}.LONGEST_WAIT", 0.05)
    monkeypatch.setattr("tsd.teachers.api.live_outages.FIRST_WAIT", 0.01)
    monkeypatch.setattr("tsd.teachers.api.live_outages.PING_SECONDS", 1.0)


@pytest.fixture
def ask(server: Server, tmp_path: Path) -> Any:
    """Ask the API about series; every call without a folder has one of its own."""
    numbers = iter(range(1000))

    def work(series: pa.Table, folder: Path | None = None, **changes: Any) -> Asked:
        return Asked(api(server.url, **changes), series, folder or tmp_path / str(next(numbers)))

    return work


@pytest.fixture
def ask_in_batches(batch_server: BatchServer, tmp_path: Path) -> Any:
    """The same in batches."""
    numbers = iter(range(1000))

    def work(series: pa.Table, folder: Path | None = None, **changes: Any) -> Asked:
        teacher = in_batches(changes.pop("url", batch_server.url), **changes)
        return Asked(teacher, series, folder or tmp_path / str(next(numbers)))

    return work


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    """A real S3 server process, for the whole session; tests use folders of their own in its bucket."""
    with serving_s3() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The same, with what reaches it in the environment."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server

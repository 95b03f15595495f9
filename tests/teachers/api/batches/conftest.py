"""Here the API is asked in batches."""

from typing import Any

import pytest
from support.batch_server import BatchServer


@pytest.fixture
def server(batch_server: BatchServer) -> BatchServer:
    """The API that all these tests ask."""
    return batch_server


@pytest.fixture
def ask(ask_in_batches: Any) -> Any:
    """How they ask it."""
    return ask_in_batches

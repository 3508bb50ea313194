from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.postgresql import PostgresServer


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with PostgresServer(tmp_path_factory.mktemp("pg") / "data") as server:
        yield server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PostgresServer]:
    """A server of the test's own, to be treated badly."""
    with PostgresServer(tmp_path / "data") as server:
        yield server

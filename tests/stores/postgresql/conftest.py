import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from dolmen.stores.postgresql.store import PostgresStore, open_url

from engines.postgresql import PostgresServer

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with PostgresServer(tmp_path_factory.mktemp("postgresql") / "data") as server:
        yield server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PostgresServer]:
    """A server of the test's own, to be treated badly."""
    with PostgresServer(tmp_path / "data") as server:
        yield server


@pytest.fixture
def schema(postgres_server: PostgresServer) -> Iterator[str]:
    """A schema of the test's own on the server that tests share."""
    name = f"t{next(_numbers)}"
    postgres_server.schema(name)
    yield name
    postgres_server.drop(name)


@pytest.fixture
def url(postgres_server: PostgresServer, schema: str) -> str:
    return postgres_server.url(schema)


@pytest.fixture
async def opened(url: str) -> AsyncIterator[Callable[[], Awaitable[PostgresStore]]]:
    """Opens the store of the schema, as often as it is called."""
    async with AsyncExitStack() as stack:

        async def open_one() -> PostgresStore:
            store = await open_url(url)
            stack.push_async_callback(store.aclose)
            return store

        yield open_one


@pytest.fixture
async def store(opened: Callable[[], Awaitable[PostgresStore]]) -> PostgresStore:
    return await opened()

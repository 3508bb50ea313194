from collections.abc import Iterator

import pytest

from engines.memcached import Memcached


@pytest.fixture(scope="session")
def memcached() -> Iterator[Memcached]:
    server = Memcached("-m", "1024")
    yield server
    server.kill()


@pytest.fixture
def own_memcached(request) -> Iterator[Memcached]:
    """One for a test that does things to it; options by `parametrize(..., indirect=True)`."""
    server = Memcached(*getattr(request, "param", ()))
    yield server
    server.go_on()
    server.kill()

"""An API server over stores in memory, which can be made to misbehave."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from dolmen.cluster.cluster import Cluster
from dolmen.cluster.groups import Member, make_group
from dolmen.cluster.objects import Objects
from dolmen.http import Request, Response, start_server
from dolmen.http.messages import Streamed
from dolmen.servers.api import ApiServer
from dolmen.stores.memory import MemoryStore
from dolmen.testing.faulty import FaultyStore


class Api:
    """The server at `url`; `spoil` changes a byte of what it sends, `shift` of its ids."""

    def __init__(self, digest: str) -> None:
        self.stores = [FaultyStore(MemoryStore()) for _ in range(2)]
        members = [Member(name, store) for name, store in zip("ab", self.stores, strict=True)]
        cluster = Cluster([make_group("all", members, volatile=True)])
        self.server = ApiServer(Objects(cluster, digest=digest))
        self.url = ""
        self.spoil = False
        self.shift = False

    async def __call__(self, request: Request) -> Response:
        response = await self.server.handle(request)
        if self.spoil and request.method == "GET" and response.status == 200:
            body = response.body
            pieces = _one(body) if isinstance(body, bytes | bytearray | memoryview) else aiter(body)
            response.body = Streamed(_spoiled(pieces), getattr(body, "length", None))
        if self.shift and request.method in ("POST", "PUT") and response.status == 200:
            assert isinstance(response.body, bytes)
            at = response.body.index(b'"id": "') + 7
            other = b"1" if response.body[at : at + 1] == b"0" else b"0"
            response.body = response.body[:at] + other + response.body[at + 1 :]
        return response


async def _one(body: bytes | bytearray | memoryview) -> AsyncIterator[bytes]:
    yield bytes(body)


async def _spoiled(pieces: AsyncIterator[bytes | bytearray | memoryview]) -> AsyncIterator[bytes]:
    async for piece in pieces:
        yield bytes((piece[0] ^ 1,)) + bytes(piece[1:])


@pytest.fixture(params=["sha256"])
async def api(request: pytest.FixtureRequest) -> AsyncIterator[Api]:
    api = Api(request.param)
    server = await start_server(api)
    assert server.addresses[0] is not None
    host, port = server.addresses[0]
    api.url = f"http://{host}:{port}"
    yield api
    await server.close()
    await api.server.aclose()

"""An API server small enough to be looked through: the routes of the wire over a dictionary."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import pytest

from dolmen.errors import BadContent, NotFound, Unavailable
from dolmen.http import Request, Response, start_server
from dolmen.http.messages import Streamed
from dolmen.servers.answers import answer
from dolmen.servers.routes import Routes

PAGE = 3


class Api:
    """Objects in `objects` (id to metadata and data); `spoil` and `away` make it misbehave."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[list[tuple[bytes, bytes]], bytes]] = {}
        self.spoil = False
        self.away = False
        self.algorithm = "sha256"
        self.url = ""
        routes = self.routes = Routes()
        routes.add("POST PUT", "/upload", self.upload)
        routes.add("PUT", "/objects/{id}", self.upload)
        routes.add("GET", "/fetch/{id}", self.fetch)
        routes.add("GET", "/objects/{id}", self.stat)
        routes.add("DELETE", "/objects/{id}", self.delete)
        routes.add("GET", "/objects", self.list)
        routes.add("GET", "/cluster", self.cluster)

    async def upload(self, request: Request, expected: str) -> Response:
        data = await request.body.read(1 << 30)
        if self.spoil:
            data = b"!" + data[1:]
        name = hashlib.new(self.algorithm, data).hexdigest()
        if expected and expected != name:
            raise BadContent(f"the content has the digest {name}")
        kept = [(key, value) for key, value in request.headers if key.startswith(b"x-")]
        self.objects[name] = (kept, data)
        return answer({"id": name, "status": "OK", "size": len(data), "copies": 2})

    def found(self, name: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
        if self.away:
            raise Unavailable("two of three servers were asked and had nothing")
        if name not in self.objects:
            raise NotFound(f"{name} is not here")
        return self.objects[name]

    async def fetch(self, request: Request, name: str) -> Response:
        meta, data = self.found(name)
        if self.spoil:
            data = b"!" + data[1:]
        if wanted := request.headers.get(b"range"):
            first, last = map(int, wanted.removeprefix(b"bytes=").split(b"-"))
            return Response(206, meta, data[first : last + 1])

        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(data), 50_000):
                yield data[at : at + 50_000]

        return Response(200, meta, Streamed(pieces(), len(data)))

    async def stat(self, _request: Request, name: str) -> Response:
        meta, data = self.found(name)
        said = {key.decode(): value.decode() for key, value in meta}
        copies = [{"server": "a", "stamp": "01"}]
        return answer({"size": len(data), "metadata": said, "copies": copies, "degraded": True})

    async def delete(self, _request: Request, name: str) -> Response:
        if self.away:
            raise Unavailable("a server could not be asked")
        self.objects.pop(name, None)
        return Response(204)

    async def list(self, request: Request, _: str) -> Response:
        after = request.query.get("cursor", "")
        names = sorted(name for name in self.objects if name > after)
        lines = [b'{"id": "%s", "size": %d}\n' % (n.encode(), len(self.objects[n][1]))
                 for n in names[:PAGE]]  # fmt: skip
        if len(names) > PAGE:
            lines.append(b'{"next": "%s"}\n' % names[PAGE - 1].encode())
        return Response(200, [], b"".join(lines))

    async def cluster(self, _request: Request, _: str) -> Response:
        return answer({"groups": [{"name": "all", "servers": [{"name": "a", "free_bytes": 2048}]}]})


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    api = Api()
    server = await start_server(api.routes)
    host, port = server.addresses[0][:2]
    api.url = f"http://{host}:{port}"
    yield api
    await server.close()

"""The API server: uploads, downloads and deletes over a cluster of blob servers.

It has two listeners: one for everything, one that only reads and can be opened to
the world. It holds no state; any number may run over the same blob servers.
`docs/wire-api.md` lists the routes.

Read first: `dolmen.servers.routes`, `dolmen.cluster.objects`.
"""

from __future__ import annotations

import json
import mimetypes
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

import dolmen
from dolmen import config
from dolmen.cluster.budget import Budget
from dolmen.cluster.cluster import Cluster
from dolmen.cluster.objects import Objects
from dolmen.cluster.status import cluster_status
from dolmen.config.opening import open_groups
from dolmen.errors import BadSetting, InvalidName
from dolmen.http import HTTPError, Request, Response
from dolmen.http.conditional import refuse_conditions, selects
from dolmen.names import check_name, is_object_id
from dolmen.repeating import Repeating
from dolmen.servers.answers import JSON, answer, body_of, selected
from dolmen.servers.bulk import PAGE, limit_of
from dolmen.servers.fields import describe
from dolmen.servers.incoming import Checked, announced
from dolmen.servers.metrics import Figure
from dolmen.servers.routes import Application, Routes

_HEED = 1.0
"""Seconds between two looks at what the repair says."""
_FORM = b"multipart/form-data"
_BINARY = b"application/octet-stream"
_SAFE = (
    b"X-Content-Type-Options: nosniff\r\nContent-Security-Policy: sandbox\r\n"
    b"Cache-Control: public, max-age=31536000, immutable\r\n"
)
"""What a browser is told: believe the type, run nothing, and never ask again."""


class ApiServer(Application):
    """The routes over the objects of a cluster."""

    name = "api"

    def __init__(self, objects: Objects, *, repair: Callable[[], str] | None = None) -> None:
        """`repair` gives what the companion that repairs said last, where there is one."""
        self._objects = objects
        self._repair = repair
        self._heeding = repair and Repeating(partial(self._heed_repair, repair))
        self._heeded = ""
        self._started = time.time()
        everything, reading = Routes(), Routes()
        everything.add("POST PUT", "/upload", self.upload)
        everything.add("PUT", "/objects/{id}", self.upload_known)
        everything.add("GET", "/objects/{id}", self.locate)
        everything.add("DELETE", "/objects/{id}", self.delete)
        everything.add("GET", "/objects", self.list)
        everything.add("GET", "/cluster", self.cluster)
        for routes in (everything, reading):
            routes.add("GET", "/fetch/{id}", self.fetch)
        stores = tuple(member.store for member in objects.cluster.members)
        super().__init__(objects.cluster, stores, (everything, reading))

    def figures(self) -> Iterable[Figure]:
        """Which servers are asked last, or not at all."""
        breaker = self._objects.cluster.breaker
        for member in self._objects.cluster.members:
            for state in ("failing", "behind", "full", "stale"):
                yield Figure(
                    "gauge",
                    f"dolmen_server_{state}",
                    f"Worker processes that ask this server last because it is {state}.",
                    "blob_server",
                    member.name,
                    breaker.state(member) == state,
                )

    def heed(self, said: str) -> None:
        """Take in what the repair said last: who is stale, and how many rounds ended well."""
        report = json.loads(said)
        cluster = self._objects.cluster
        cluster.breaker.rounds = report.get("complete_rounds", 0)
        for member in cluster.members:
            member.stale = report.get("stale", {}).get(member.name)

    async def _heed_repair(self, repair: Callable[[], str]) -> float:
        said = repair()
        if said != self._heeded:
            self.heed(said)
            self._heeded = said
        return _HEED

    async def aclose(self) -> None:
        """Close every store of the cluster."""
        if self._heeding is not None:
            await self._heeding.aclose()
        await super().aclose()

    def upload(self, request: Request, _: str) -> Awaitable[Response]:
        """Store the body; the answer has its id."""
        return self._store(request, None)

    def upload_known(self, request: Request, name: str) -> Awaitable[Response]:
        """Store the body if it has this id; nothing is read when it is stored already."""
        return self._store(request, _checked(name))

    async def _store(self, request: Request, expected: str | None) -> Response:
        told = announced(request)
        if request.headers.get(b"content-type", b"").startswith(_FORM):
            raise HTTPError(
                415,
                "This is a form's envelope around a file, not the file. Send the file itself: "
                "curl -T FILE http://…/upload, or curl --data-binary @FILE http://…/upload",
            )
        objects = self._objects
        stored = await objects.renew(expected, told.metadata) if expected is not None else None
        if stored is None:
            body = Checked(request) if told.digested else request.body
            stored = await objects.upload(
                body, whole=body.whole, meta=told.metadata, expected_id=expected
            )
        # An id needs no quoting.
        text = b'{"id": "%b", "status": "OK", "size": %d, "copies": %d}\n'
        return Response(200, JSON, text % (stored.id.encode(), stored.size, stored.copies))

    async def fetch(self, request: Request, name: str) -> Response:
        """Send an object, or a range of it. An extension is for the reader, and guesses a type."""
        object_id, dot, extension = name.partition(".")
        _checked(object_id)
        guess = _type_of(extension) if dot else _BINARY
        tag = b'"%b"' % object_id.encode()
        objects = self._objects
        if request.method == "HEAD" or selects(request.headers):
            return await selected(
                request,
                lambda: objects.stat(object_id),
                lambda part: objects.download(object_id, byte_range=part),
                lambda _: tag,
                lambda info, part: describe(info, tag=tag, part=part, more=_SAFE, guess=guess),
            )
        blob = await objects.download(object_id)
        return Response(200, describe(blob.info, tag=tag, more=_SAFE, guess=guess), body_of(blob))

    async def delete(self, request: Request, name: str) -> Response:
        """Delete an object everywhere."""
        refuse_conditions(request.headers)
        await self._objects.delete(_checked(name))
        return Response(204)

    async def list(self, request: Request, _: str) -> Response:
        """List ids in pages: `{"ids": […], "next": cursor or null}`.

        `"incomplete"` says why some ids may lack, where they may.
        """
        cursor = request.query.get("cursor")
        limit = limit_of(request.query.get("limit", PAGE))
        after = check_name(cursor) if cursor else None
        page = await self._objects.page(after=after, limit=limit)
        said: dict[str, object] = {"ids": page.ids, "next": page.following}
        if page.incomplete is not None:
            said["incomplete"] = page.incomplete
        return answer(said)

    async def locate(self, _request: Request, name: str) -> Response:
        """Tell where the copies of an object are."""
        return answer(await self._objects.locate(_checked(name)))

    async def cluster(self, _request: Request, _: str) -> Response:
        """Tell of every group and server."""
        told: dict[str, object] = {
            "version": dolmen.__version__,
            "uptime_seconds": round(time.time() - self._started),
            "groups": await cluster_status(self._objects.cluster),
        }
        if self._repair is not None:
            told["repair"] = json.loads(self._repair() or "null")
        return answer(told)


async def open_api(
    groups: Sequence[config.Group],
    settings: config.Settings,
    *,
    repair: Callable[[], str] | None = None,
) -> ApiServer:
    """Open every store of these groups and serve them.

    Raises `BadSetting` for numbers of copies that can't be kept, and what opening raises.
    """
    ready = await open_groups(groups)
    budget = Budget(settings.limits.upload_memory)
    cluster = Cluster(ready, budget=budget, epoch=settings.epoch)
    if twins := await cluster.twins():
        await cluster.aclose()
        pairs = ", ".join(f"{one} and {other}" for one, other in twins)
        raise BadSetting(f"one store is configured as two servers ({pairs}); remove one of them")
    return ApiServer(Objects(cluster, digest=settings.digest), repair=repair)


def _checked(name: str) -> str:
    """An object's id; raises `InvalidName` for what is none."""
    if not is_object_id(name):
        raise InvalidName(
            f"{name[:100]!r} is no object's id: an id is 64 (or 40) lower-case hex digits, "
            "as POST /upload answered it"
        )
    return name


def _type_of(extension: str) -> bytes:
    guessed, _ = mimetypes.guess_type(f"file.{extension}", strict=False)
    return guessed.encode() if guessed else _BINARY

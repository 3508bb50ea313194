"""Routes, from method and path to a handler; and what both servers are made of.

A route is an exact path (`/blobs`), or a path whose last part is a name
(`/blob/{name}`). An unknown path is 404 and says which there are; a known one with
another method is 405 and says which it takes. Errors of the contract become their
status here, for every handler alike.

Read first: `dolmen.http.messages`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from urllib.parse import unquote_to_bytes

from dolmen.errors import DolmenError
from dolmen.http import EncodedHeaders, HTTPError, Request, Response, problem
from dolmen.servers.answers import answer, refusal
from dolmen.servers.metrics import Figure
from dolmen.store import BlobStore

_ALIVE = Response(200, EncodedHeaders.of([(b"Content-Type", b"text/plain")]), b"alive")
Handler = Callable[[Request, str], Response | Awaitable[Response]]


class Routes:
    """A table of routes; calling it with a request gives the response.

    The route a request took is left in `request.state`, for metrics.
    """

    def __init__(self) -> None:
        self._exact: dict[bytes, tuple[str, dict[str, Handler]]] = {}
        self._named: dict[bytes, tuple[str, dict[str, Handler]]] = {}

    def add(self, methods: str, path: str, handler: Handler) -> None:
        """Add a route for the methods (separated by spaces). `HEAD` comes with `GET`."""
        fixed, brace, _ = path.partition("{")
        routes = self._named if brace else self._exact
        _, table = routes.setdefault(fixed.encode(), (path, {}))
        for method in methods.split():
            table[method] = handler
            if method == "GET":
                table["HEAD"] = handler

    @property
    def paths(self) -> list[str]:
        """Every path, as it is told to those who ask for another."""
        return sorted(path for path, _ in (*self._exact.values(), *self._named.values()))

    def __call__(self, request: Request) -> Response | Awaitable[Response]:
        """Answer a request."""
        path = request.raw_path
        if b"%" in path:
            path = unquote_to_bytes(path)
        cut = path.rfind(b"/") + 1
        name = path[cut:]
        found = self._named.get(path[:cut]) if name else None
        if found is None:
            found, name = self._exact.get(path), b""
        if found is None:
            request.state = "unknown"
            return problem(404, f"There is no {_shown(path)} here, only {', '.join(self.paths)}.")
        request.state, table = found
        handler = table.get(request.method)
        if handler is None:
            allowed = ", ".join(sorted(table))
            return problem(
                405,
                f"{request.method} is not for {_shown(path)}; it takes {allowed}.",
                headers=[(b"Allow", allowed.encode())],
            )
        try:
            response = handler(request, name.decode("utf-8", "replace"))
        except HTTPError:
            raise
        except DolmenError as error:
            return refusal(error)
        return response if isinstance(response, Response) else _awaited(response)


async def _awaited(response: Awaitable[Response]) -> Response:
    try:
        return await response
    except HTTPError:
        raise
    except DolmenError as error:
        return refusal(error)


def _shown(path: bytes) -> str:
    return path[:200].decode("utf-8", "replace")


class Application:
    """What a process serves: a store, by one table of routes for each address.

    `stores` are those it has open; the volumes among them are maintained. Every address says
    whether the process lives and takes writes.
    """

    name: str

    def __init__(
        self, store: BlobStore, stores: Sequence[BlobStore], listeners: Sequence[Routes]
    ) -> None:
        self.store, self.stores, self.listeners = store, stores, listeners
        self.handle = listeners[0]
        for routes in listeners:
            routes.add("GET", "/alive", lambda _request, _: _ALIVE)
            routes.add("GET", "/healthz", lambda _request, _: answer({"status": "OK"}))
            routes.add("GET", "/readyz", self._ready)

    async def _ready(self, _request: Request, _: str) -> Response:
        try:
            condition = await self.store.condition()
            ready, reasons = condition.writable, condition.reasons
        except DolmenError as error:
            ready, reasons = False, [str(error)]
        return answer({"ready": ready, "reasons": reasons}, 200 if ready else 503)

    def figures(self) -> Iterable[Figure]:
        """What this process counted beyond requests, or sees, at this moment."""
        return ()

    async def aclose(self) -> None:
        """Finish what is under way and let go of the stores."""
        await self.store.aclose()

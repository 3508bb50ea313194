"""Routes: from method and path to a handler.

A route is an exact path (`/blobs`), or a path whose last part is a name
(`/blob/{name}`). An unknown path is 404 and says which there are; a known one with
another method is 405 and says which it takes. Errors of the contract become their
status here, for every handler alike.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from dolmen.errors import DolmenError
from dolmen.http.messages import Request, Response
from dolmen.http.problems import HTTPError, problem
from dolmen.servers.answers import refusal

Handler = Callable[[Request, str], Awaitable[Response]]


class Routes:
    """A table of routes; calling it with a request gives the response."""

    def __init__(self) -> None:
        self._exact: dict[str, dict[str, Handler]] = {}
        self._named: dict[str, dict[str, Handler]] = {}

    def add(self, methods: str, path: str, handler: Handler) -> None:
        """Add a route for the methods (separated by spaces). `HEAD` comes with `GET`."""
        if path.endswith("}"):
            table = self._named.setdefault(path[: path.index("{")], {})
        else:
            table = self._exact.setdefault(path, {})
        for method in methods.split():
            table[method] = handler
            if method == "GET":
                table["HEAD"] = handler

    @property
    def paths(self) -> list[str]:
        """Every path, as it is told to those who ask for another."""
        return sorted([*self._exact, *(path + "…" for path in self._named)])

    def route_of(self, path: str) -> str:
        """The route a path belongs to, or "unknown"."""
        cut = path.rfind("/") + 1
        if path[:cut] in self._named and cut < len(path):
            return path[:cut] + "{}"
        return path if path in self._exact else "unknown"

    async def __call__(self, request: Request) -> Response:
        """Answer a request."""
        path = request.path
        cut = path.rfind("/") + 1
        name = path[cut:]
        table = self._named.get(path[:cut]) if name else None
        if table is None:
            table, name = self._exact.get(path), ""
        if table is None:
            return problem(404, f"There is no {path[:200]} here, only {', '.join(self.paths)}.")
        handler = table.get(request.method)
        if handler is None:
            allowed = ", ".join(sorted(table))
            return problem(
                405,
                f"{request.method} is not for {path[:200]}; it takes {allowed}.",
                headers=[(b"Allow", allowed.encode())],
            )
        try:
            return await handler(request, name)
        except HTTPError:
            raise
        except DolmenError as error:
            return refusal(error)

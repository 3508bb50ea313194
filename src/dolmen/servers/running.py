"""Running servers: a process, or several, from opening the store to the last drained request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.context import ForkProcess

import uvloop

from dolmen import config
from dolmen.companion import Companion
from dolmen.errors import Unavailable
from dolmen.http.limits import Limits
from dolmen.http.messages import Request, Response
from dolmen.http.origins import SitePolicy
from dolmen.http.server import Server, start_server
from dolmen.http.workers import run_workers
from dolmen.servers.maintenance import Maintenance
from dolmen.servers.metrics import Board, Figure, Tally
from dolmen.servers.repairing import Repairing
from dolmen.servers.routes import Application
from dolmen.stores.volume import Volume

Address = tuple[str, int]
log = logging.getLogger("dolmen.servers")
_FILES = 1024
"""Descriptors a process keeps for its store: open segments, uploads, connections to others."""
_METRICS = [(b"Content-Type", b"text/plain; version=0.0.4; charset=utf-8")]


def run(
    opened: Callable[[], Awaitable[Application]],
    addresses: Sequence[Address],
    *,
    settings: config.Settings,
    ready: Callable[[list[Address]], None],
    repairing: Repairing | None = None,
    board: Board | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status.

    `opened` is called in every worker process, on its event loop, and gives the
    application. `ready` is told the real addresses once they are served (with several
    workers: once the application could be opened, and the addresses be had). One worker has
    the companion that repairs; what it said is on the `board`, made for so many workers.
    Raises `BadSetting`, `BadVolume` and what else opening raises.
    """
    workers = settings.workers
    chosen = settings.limits.model_dump(exclude={"upload_memory"})
    limits = shared_out(Limits(**chosen), len(addresses))
    policy = SitePolicy(frozenset(settings.hosts))
    board = board or Board(workers)
    ending = contextlib.AsyncExitStack()

    def told() -> Iterable[Figure]:
        return repairing.figures(board.said()) if repairing is not None else ()

    async def start(sockets: Sequence[socket.socket]) -> Sequence[Server]:
        application = await opened()
        ending.push_async_callback(application.aclose)
        maintained = [
            Maintenance(store, settings)
            for store in application.stores
            if isinstance(store, Volume) and store.log is not None
        ]
        for each in maintained:
            ending.push_async_callback(each.aclose)

        def figures() -> Iterator[Figure]:
            yield from application.figures()
            for each in maintained:
                yield from each.figures()

        tally = Tally(application.name, board, figures, told)
        if repairing is not None and board.first:
            companion = Companion(repairing.module, repairing.order, heard=board.tell)
            ending.push_async_callback(companion.close)

        async def metrics(_request: Request, _: str) -> Response:
            return Response(200, _METRICS, tally.text())

        # The first listener alone: another may be open to the world.
        application.listeners[0].add("GET", "/metrics", metrics)
        servers = [
            await start_server(
                routes, sockets=[sock], limits=limits, policy=policy, observe=tally.observe
            )
            for routes, sock in zip(application.listeners, sockets, strict=True)
        ]
        sharing = asyncio.create_task(_share(tally))
        ending.callback(sharing.cancel)
        if workers == 1:
            ready([sock.getsockname()[:2] for sock in sockets])
        return servers

    if workers == 1:
        return run_workers(1, addresses, start, stop=ending.aclose)
    _try(opened)
    return run_workers(workers, addresses, start, stop=ending.aclose, ready=ready)


def shared_out(limits: Limits, listeners: int) -> Limits:
    """The limits of each listener: the process's connections, shared out evenly.

    They are fewer than was set where the store could otherwise find no descriptor left for a
    segment or a connection of its own. This process's limit on descriptors is first raised as far
    as it may be.
    """
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.connections * 9 // 8 + _FILES  # an eighth more linger while they are refused
    if allowed != resource.RLIM_INFINITY and allowed < wanted:
        allowed = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
    connections = limits.connections
    if allowed != resource.RLIM_INFINITY and allowed < wanted:
        connections = min(connections, max(allowed - _FILES, allowed // 2) * 8 // 9)
        log.warning(
            "at most %d connections, not %d: this process may open only %d files; "
            "raise that to %d (ulimit -n, LimitNOFILE)",
            connections, limits.connections, allowed, wanted,
        )  # fmt: skip
    return replace(limits, connections=max(1, connections // listeners))


def _try(opened: Callable[[], Awaitable[Application]]) -> None:
    """Open the application and close it, once, or every worker would fail at it again and again.

    In a process of its own: threads that a driver leaves behind in this one would not be
    there in the workers forked from it, which would wait for them for ever.
    """

    async def trial() -> None:
        await (await opened()).aclose()

    def attempt() -> None:
        failed: Exception | None = None
        try:
            uvloop.run(trial())
        except Exception as error:  # noqa: BLE001 - raised in the process that asked
            failed = error
        outcome.send(failed)

    awaited, outcome = Pipe(duplex=False)
    process = ForkProcess(target=attempt)
    process.start()
    outcome.close()
    try:
        failed = awaited.recv()
    except EOFError:
        raise Unavailable("the process that tried to open the store was ended") from None
    finally:
        process.kill()  # its threads may never end
        process.join()
    if failed is not None:
        raise failed


async def _share(tally: Tally) -> None:
    while True:
        await asyncio.sleep(1)
        tally.share()

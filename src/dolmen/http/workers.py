"""Several processes serving the same ports, and the small parent that restarts those that die.

Every process binds the addresses with SO_REUSEPORT. A worker ends when it gets SIGTERM, or when
its end of a pipe tells it that the parent is gone.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from multiprocessing.context import ForkProcess
from typing import Any

import uvloop

from dolmen.http.server import Server, bind

Start = Callable[[Sequence[socket.socket]], Awaitable[Sequence[Server]]]
"""Makes a process's servers, given a bound socket for each address, in order. Called in a
running loop; what must be closed after the servers is done by `stop`."""
Stop = Callable[[], Awaitable[None]]

log = logging.getLogger("dolmen.http")
_SIGNALS = {signal.SIGTERM, signal.SIGINT}
_WATCHED = {*_SIGNALS, signal.SIGCHLD}
_STOPPING = 30.0  # seconds that workers get to close their stores after the drain
_STEADY = 10.0  # a worker that lived this long did not fail at starting
_LONGEST_PAUSE = 8.0


def run_workers(
    workers: int,
    addresses: Sequence[tuple[str, int]],
    start: Start,
    *,
    stop: Stop | None = None,
    drain: float = 30.0,
    ready: Callable[[list[tuple[str, int]]], None] | None = None,
) -> int:
    """Serve `addresses` with so many processes until SIGTERM or SIGINT; returns the exit status.

    On the signal requests under way get `drain` seconds to end; a second signal cuts them off
    (it kills workers). One worker is this process itself. With more, this one binds the ports,
    forks, and starts a worker that died again, after a pause that grows while workers die young.
    Port 0 is chosen once for all. `ready` gets the real addresses before the first worker starts.

    Call it from a program's main thread with no event loop or other threads
    running. Raises BadSetting when an address can't be had.
    """
    # Without SO_REUSEPORT first: with it, a port that another dolmen serves could be had.
    sockets = [bind(host, port) for host, port in addresses]
    names = [sock.getsockname()[:2] for sock in sockets]
    if ready is not None:
        ready(names)
    if workers == 1:
        return uvloop.run(_serve(sockets, start, stop, drain))
    for sock in sockets:
        sock.close()
    held = [bind(*name, reuse_port=True) for name in names]  # never listening, they keep the ports
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)

    def work() -> None:
        own = [bind(*name, reuse_port=True) for name in names]
        uvloop.run(_serve(own, start, stop, drain, mask))

    try:
        _look_after(workers, partial(ForkProcess, target=work), drain)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for sock in held:
            sock.close()
    return 0


def _look_after(workers: int, new: Callable[[], ForkProcess], drain: float) -> None:
    """Keep so many workers running until a signal, then end them."""
    running: dict[ForkProcess, float] = {}  # since when
    pause = due = 0.0
    try:
        while True:
            while len(running) < workers and time.monotonic() >= due:
                process = new()
                process.start()
                running[process] = time.monotonic()
            if _told_to_end(max(0.0, due - time.monotonic()) if len(running) < workers else 3600.0):
                break
            if dead := [process for process in running if not process.is_alive()]:
                lived = min(time.monotonic() - running.pop(each) for each in dead)
                pause = min(_LONGEST_PAUSE, max(0.1, pause * 2)) if lived < _STEADY else 0.0
                due = time.monotonic() + pause
            for process in dead:
                code = process.exitcode or 0
                how = f"by signal {-code}" if code < 0 else f"with status {code}"
                log.error("worker %d ended %s; another starts in %.1f s", process.pid, how, pause)
        for process in running:
            process.terminate()
        deadline = time.monotonic() + drain + _STOPPING
        while any(process.is_alive() for process in running):
            if _told_to_end(max(0.0, deadline - time.monotonic())) or time.monotonic() > deadline:
                break
    finally:
        for process in running:
            process.kill()
            process.join()


def _told_to_end(wait: float) -> bool:
    """Whether a signal to end came within `wait` seconds, or before a worker ended."""
    got = signal.sigtimedwait(_WATCHED, wait)
    return got is not None and got.si_signo in _SIGNALS


async def _serve(
    sockets: list[socket.socket],
    start: Start,
    stop: Stop | None,
    drain: float,
    mask: set[Any] | None = None,
) -> int:
    """Run one process's servers until a signal, or until the parent is gone.

    `mask` is for workers: the signals that were blocked before their parent forked them.
    """
    loop = asyncio.get_running_loop()
    ending, cut = asyncio.Event(), asyncio.Event()

    def end() -> None:
        (cut if ending.is_set() else ending).set()

    def parent_gone(descriptor: int) -> None:
        loop.remove_reader(descriptor)
        ending.set()

    parent = multiprocessing.parent_process() if mask is not None else None
    for number in _SIGNALS:
        # A terminal or a service manager signals the whole group, and the parent signals too:
        # in a worker, hearing the same thing twice must not count as impatience.
        loop.add_signal_handler(number, end if parent is None else ending.set)
    if parent is not None and mask is not None:
        loop.add_reader(parent.sentinel, parent_gone, parent.sentinel)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        servers = await start(sockets)
        try:
            await ending.wait()
            drained = asyncio.gather(*(server.drain(drain) for server in servers))
            impatient = asyncio.ensure_future(cut.wait())
            waits: list[asyncio.Future[Any]] = [drained, impatient]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        finally:
            for server in servers:
                await server.close()
    finally:
        if stop is not None:
            await stop()
        if parent is not None:
            loop.remove_reader(parent.sentinel)
    return 0

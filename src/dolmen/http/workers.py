"""Several processes serving the same ports, and the small parent that restarts those that die.

Every process binds the addresses with SO_REUSEPORT. A worker ends when it gets SIGTERM, or when
its end of a pipe tells it that the parent is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import uvloop

from dolmen.http.server import Server, bind

Start = Callable[[Sequence[socket.socket]], Awaitable[Sequence[Server]]]
"""Makes a process's servers, given a bound socket for each address, in order. Called in a
running loop; what must be closed after the servers is done by `stop`."""
Stop = Callable[[], Awaitable[None]]
_Mask = set[signal.Signals | int]

log = logging.getLogger("dolmen.http")
_SIGNALS = {signal.SIGTERM, signal.SIGINT}
_CUT = signal.SIGUSR1  # from parent to worker: wait for running requests no longer
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

    On the signal requests under way get `drain` seconds to end; a second
    signal cuts them off. One worker is this process itself. With more, this one
    binds the ports, forks, and starts a worker that died again, after a pause that
    grows while workers die young. Port 0 is chosen once for all. `ready` gets
    the real addresses before the first worker starts.

    Call it from a program's main thread with no event loop or other threads
    running. Raises BadSetting when an address can't be had.
    """
    # Without SO_REUSEPORT first: with it, a port that another dolmen serves could be had.
    sockets = [bind(host, port) for host, port in addresses]
    names = [sock.getsockname()[:2] for sock in sockets]
    if ready is not None:
        ready(names)
    if workers == 1:
        return uvloop.run(_serve(sockets, start, stop, drain, None))
    with contextlib.ExitStack() as held:  # never listening, they keep the ports ours
        for sock in sockets:
            sock.close()
        for host, port in names:
            held.enter_context(bind(host, port, reuse_port=True))
        return _look_after(workers, names, start, stop, drain)


def _look_after(
    workers: int,
    names: list[tuple[str, int]],
    start: Start,
    stop: Stop | None,
    drain: float,
) -> int:
    """Keep so many workers running until a signal, then end them."""
    lifeline, grip = os.pipe()
    watched = {*_SIGNALS, signal.SIGCHLD}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    running: dict[int, float] = {}  # pid: since when
    pause = due = 0.0
    ending = False
    try:
        while not ending:
            while len(running) < workers and time.monotonic() >= due:
                pid = os.fork()
                if not pid:
                    os.close(grip)
                    _be_worker(names, start, stop, drain, (lifeline, mask))
                running[pid] = time.monotonic()
            missing = len(running) < workers
            wait = max(0.0, due - time.monotonic()) if missing else 3600.0
            got = signal.sigtimedwait(watched, wait)
            ending = got is not None and got.si_signo in _SIGNALS
            for pid, how in _ended(running):
                young = time.monotonic() - running.pop(pid) < _STEADY
                pause = min(_LONGEST_PAUSE, max(0.1, pause * 2)) if young else 0.0
                due = time.monotonic() + pause
                log.error("worker %d ended %s; another starts in %.1f s", pid, how, pause)
        _signal(running, signal.SIGTERM)
        deadline = time.monotonic() + drain + _STOPPING
        while running and (left := deadline - time.monotonic()) > 0:
            for pid, _ in _ended(running):
                del running[pid]
            if running:
                got = signal.sigtimedwait(watched, left)
                if got is not None and got.si_signo in _SIGNALS:
                    _signal(running, _CUT)
    finally:
        _signal(running, signal.SIGKILL)
        os.close(grip)
        os.close(lifeline)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return 0


def _ended(running: dict[int, float]) -> list[tuple[int, str]]:
    """The workers that have ended, and how."""
    ended = []
    for pid in running:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            ended.append((pid, f"by signal {-code}" if code < 0 else f"with status {code}"))
    return ended


def _signal(running: dict[int, float], number: int) -> None:
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _be_worker(
    names: list[tuple[str, int]],
    start: Start,
    stop: Stop | None,
    drain: float,
    parent: tuple[int, _Mask],
) -> None:
    """Serve in a forked process; never returns."""
    status = 1
    try:
        sockets = [bind(host, port, reuse_port=True) for host, port in names]
        status = uvloop.run(_serve(sockets, start, stop, drain, parent))
    except BaseException:
        log.exception("worker %d failed", os.getpid())
    finally:
        logging.shutdown()
        os._exit(status)


async def _serve(
    sockets: list[socket.socket],
    start: Start,
    stop: Stop | None,
    drain: float,
    parent: tuple[int, _Mask] | None,
) -> int:
    """Run one process's servers until a signal, or until the parent is gone.

    `parent` is for workers: the pipe that ends with it, and the signals that were blocked before
    it forked, which no others are from here on.
    """
    loop = asyncio.get_running_loop()
    ending, cut = asyncio.Event(), asyncio.Event()

    def end() -> None:
        (cut if ending.is_set() and parent is None else ending).set()

    def parent_gone(descriptor: int) -> None:
        loop.remove_reader(descriptor)
        ending.set()

    for number in _SIGNALS:
        # A terminal or a service manager signals the whole group, and the parent signals too:
        # in a worker, hearing the same thing twice must not count as impatience.
        loop.add_signal_handler(number, end)
    if parent is not None:
        loop.add_signal_handler(_CUT, cut.set)
        loop.add_reader(parent[0], parent_gone, parent[0])
        signal.pthread_sigmask(signal.SIG_SETMASK, parent[1])
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
            loop.remove_reader(parent[0])
    return 0

"""Several processes serving the same ports, and the small parent that looks after them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

import uvloop

from dolmen.http.server import Server, bind

Start = Callable[[Sequence[socket.socket]], Awaitable[Sequence[Server]]]
"""Makes a process's servers, given a bound socket for each address, in order. Called in a
running loop; what must be closed after the servers is done by `stop`."""
Stop = Callable[[], Awaitable[None]]

log = logging.getLogger("dolmen.http")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_CUT = signal.SIGUSR1  # from parent to worker: wait for running requests no longer
_STOPPING = 30.0  # what workers get to close their stores after the drain
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
    grows while workers die young. Port 0 is chosen once for all. `ready` is
    told the real addresses before the first worker starts.

    Call it from a program's main thread with no event loop or other threads
    running. Raises BadSetting when an address can't be had.
    """
    if workers == 1:
        sockets = [bind(host, port) for host, port in addresses]
        if ready is not None:
            ready([sock.getsockname()[:2] for sock in sockets])
        return uvloop.run(_serve(sockets, start, stop, drain, None))
    # Without SO_REUSEPORT first: with it, a port that another dolmen serves could be had.
    exclusive = [bind(host, port) for host, port in addresses]
    names = [sock.getsockname()[:2] for sock in exclusive]
    for sock in exclusive:
        sock.close()
    # Bound but never listening, these keep the ports ours while no worker lives.
    held = [bind(host, port, reuse_port=True) for host, port in names]
    if ready is not None:
        ready(names)
    try:
        return _Parent(workers, names, start, stop, drain).run()
    finally:
        for sock in held:
            sock.close()


class _Parent:
    """Starts workers, starts them again, and ends them."""

    def __init__(
        self,
        workers: int,
        names: list[tuple[str, int]],
        start: Start,
        stop: Stop | None,
        drain: float,
    ) -> None:
        self._names = names
        self._start = start
        self._stop = stop
        self._drain = drain
        self._due = [0.0] * workers  # when each is to be started
        self._pause = 0.0
        self._running: dict[int, tuple[int, float]] = {}  # pid: its number, since when
        # Workers see the end of this pipe when the parent is gone, however it went.
        self._lifeline, self._grip = os.pipe()

    def run(self) -> int:
        """Look after the workers until told to end, and all have ended."""
        watched = {*_SIGNALS, signal.SIGCHLD}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
        try:
            ending = None
            while ending is None:
                self._start_due(before)
                got = signal.sigtimedwait(watched, self._until_due())
                self._reap()
                if got is not None and got.si_signo in _SIGNALS:
                    ending = got.si_signo
            self._end(watched)
        finally:
            for pid in self._running:
                os.kill(pid, signal.SIGKILL)
            os.close(self._grip)
            os.close(self._lifeline)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return 0

    def _start_due(self, mask: set[signal.Signals | int]) -> None:
        alive = {number for number, _ in self._running.values()}
        for number, due in enumerate(self._due):
            if number not in alive and due <= time.monotonic():
                pid = os.fork()
                if not pid:
                    self._be_worker(mask)
                self._running[pid] = (number, time.monotonic())

    def _until_due(self) -> float:
        alive = {number for number, _ in self._running.values()}
        waiting = [due for number, due in enumerate(self._due) if number not in alive]
        return max(0.0, min(waiting) - time.monotonic()) if waiting else 3600.0

    def _reap(self) -> None:
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            if pid not in self._running:
                continue
            number, since = self._running.pop(pid)
            young = time.monotonic() - since < _STEADY
            self._pause = min(_LONGEST_PAUSE, max(0.1, self._pause * 2)) if young else 0.0
            self._due[number] = time.monotonic() + self._pause
            code = os.waitstatus_to_exitcode(status)
            how = f"by signal {-code}" if code < 0 else f"with status {code}"
            log.error("worker %d ended %s; another starts in %.1f s", pid, how, self._pause)

    def _end(self, watched: set[signal.Signals]) -> None:
        """Pass the signal on; workers drain by themselves, a second signal cuts them off."""
        deadline = time.monotonic() + self._drain + _STOPPING
        logged, self._due = self._due, []
        self._signal(signal.SIGTERM)
        while self._running and (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(ChildProcessError):
                pid, _ = os.waitpid(-1, os.WNOHANG)
                if pid:
                    self._running.pop(pid, None)
                    continue
            got = signal.sigtimedwait(watched, left)
            if got is not None and got.si_signo in _SIGNALS:
                self._signal(_CUT)
        self._due = logged

    def _signal(self, number: int) -> None:
        for pid in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _be_worker(self, mask: set[signal.Signals | int]) -> None:
        """Serve in a forked process; never returns."""
        status = 1
        try:
            os.close(self._grip)
            sockets = [bind(host, port, reuse_port=True) for host, port in self._names]
            serving = _serve(sockets, self._start, self._stop, self._drain, (self._lifeline, mask))
            status = uvloop.run(serving)
        except BaseException:
            log.exception("worker %d failed", os.getpid())
        finally:
            logging.shutdown()
            os._exit(status)


async def _drain(servers: Sequence[Server], timeout: float) -> Literal[True]:
    await asyncio.gather(*(server.drain(timeout) for server in servers))
    return True


async def _serve(
    sockets: list[socket.socket],
    start: Start,
    stop: Stop | None,
    drain: float,
    parent: tuple[int, set[signal.Signals | int]] | None,
) -> int:
    """Run one process's servers until a signal, or until the parent is gone.

    `parent` is for workers: the pipe whose end tells that it is gone, and the
    signals that were blocked before it forked, which no others are from here on.
    """
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    again = asyncio.Event()

    def tell() -> None:
        (again if told.is_set() else told).set()

    def parent_gone(descriptor: int) -> None:
        loop.remove_reader(descriptor)
        told.set()

    if parent is None:
        for number in _SIGNALS:
            loop.add_signal_handler(number, tell)
    else:
        # A terminal or a service manager signals the whole group, and the parent signals too:
        # hearing the same thing twice must not count as impatience.
        loop.add_signal_handler(signal.SIGTERM, told.set)
        loop.add_signal_handler(signal.SIGINT, told.set)
        loop.add_signal_handler(_CUT, again.set)
        loop.add_reader(parent[0], parent_gone, parent[0])
        signal.pthread_sigmask(signal.SIG_SETMASK, parent[1])
    try:
        servers = await start(sockets)
        try:
            await told.wait()
            draining = loop.create_task(_drain(servers, drain))
            impatient = loop.create_task(again.wait())
            await asyncio.wait({draining, impatient}, return_when=asyncio.FIRST_COMPLETED)
            impatient.cancel()
            draining.cancel()
        finally:
            for server in servers:
                await server.close()
    finally:
        if stop is not None:
            await stop()
        if parent is not None:
            loop.remove_reader(parent[0])
    return 0

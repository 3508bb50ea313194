"""Worker processes: one port, one dies, all end when told."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from dolmen.errors import BadSetting
from dolmen.http import run_workers

PROGRAM = """
import asyncio, logging, os, sys
from dolmen.http import Response, run_workers, start_server
logging.basicConfig()
async def handler(request):
    if request.target == b"/slow":
        print("begun", flush=True)
        await asyncio.sleep(0.5)
    if request.target == b"/endless":
        print("begun", flush=True)
        await asyncio.Event().wait()
    return Response(200, [], b"%d" % os.getpid())
async def start(sockets):
    if len(sys.argv) > 2 and os.path.exists(sys.argv[2]):
        raise RuntimeError("can't start")
    return [await start_server(handler, sockets=[sock]) for sock in sockets]
async def stop():
    print("stopped", flush=True)
def ready(addresses):
    print(addresses[0][1], flush=True)
sys.exit(run_workers(int(sys.argv[1]), [("127.0.0.1", 0)], start, stop=stop, ready=ready))
"""


def ask(port: int, target: str = "/") -> int:
    """The pid of the worker that answers; waits until one does."""
    for _ in range(1000):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
                sock.sendall(b"GET %b HTTP/1.0\r\n\r\n" % target.encode())
                data = b""
                while piece := sock.recv(65536):
                    data += piece
            if data:
                return int(data.rpartition(b"\r\n\r\n")[2])
        except (ConnectionRefusedError, ConnectionResetError):
            pass
        time.sleep(0.01)  # another process's start has nothing to wait on
    raise AssertionError("no worker answers")


@pytest.fixture
def run():
    running = []

    def run(workers: int, *args: str):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(workers), *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        running.append(process)
        return process, int(process.stdout.readline())

    yield run
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def all_pids(port: int, count: int) -> set[int]:
    pids: set[int] = set()
    end = time.monotonic() + 20
    while time.monotonic() < end:
        pids.add(ask(port))
        if len(pids) == count:
            return pids
    raise AssertionError(f"only {pids} answer")


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_serve_and_all_end_when_told(run, workers, number) -> None:
    process, port = run(workers)
    pids = all_pids(port, workers)
    assert (pids == {process.pid}) == (workers == 1)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert out.count("stopped") == workers
    assert err == ""


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_running_request_ends_first(run, workers, number) -> None:
    process, port = run(workers)
    ask(port)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(b"GET /slow HTTP/1.0\r\n\r\n")
        assert process.stdout.readline() == "begun\n"
        os.killpg(process.pid, number)  # as a terminal and a service manager do
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
    process.communicate(timeout=20)
    assert process.returncode == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_signal_cuts_running_requests_off(run, workers) -> None:
    process, port = run(workers)
    ask(port)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(b"GET /endless HTTP/1.0\r\n\r\n")
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)
        while True:  # until the first signal has been heard
            try:
                socket.create_connection(("127.0.0.1", port), timeout=10).close()
            except ConnectionRefusedError:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(65536) == b""
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert workers > 1 or "stopped" in out


def test_a_killed_worker_comes_back(run) -> None:
    process, port = run(2)
    before = all_pids(port, 2)
    victim = before.pop()
    os.kill(victim, signal.SIGKILL)
    after: set[int] = set()
    end = time.monotonic() + 20
    while time.monotonic() < end:
        after.add(ask(port))
        if len(after - {victim}) == 2:
            break
    assert before < after
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert f"worker {victim} ended by signal 9" in err
    assert process.returncode == 0


def test_workers_that_end_as_they_were_told_are_no_trouble(run) -> None:
    """A service manager signals the whole group: a worker may be gone before the parent looks."""
    process, port = run(3)
    for pid in all_pids(port, 3):
        os.kill(process.pid, signal.SIGSTOP)
        os.kill(pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.5)  # the workers end; the parent is halted
    os.kill(process.pid, signal.SIGCONT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")


def test_workers_end_when_their_parent_is_killed(run) -> None:
    process, port = run(2)
    all_pids(port, 2)
    process.kill()
    process.wait()
    for _ in range(1000):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=10).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.01)
    raise AssertionError("a worker outlived its parent")


def test_workers_that_can_not_start_are_not_started_in_a_spin(run, tmp_path) -> None:
    flag = tmp_path / "broken"
    flag.touch()
    process, port = run(2, str(flag))
    time.sleep(0.6)  # long enough for a spin to show
    flag.unlink()
    all_pids(port, 2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert 2 <= err.count("another starts in") <= 16
    assert "can't start" in err


@pytest.mark.parametrize("workers", [1, 2])
def test_an_occupied_port_is_a_setting_to_mend(workers) -> None:
    async def start(sockets):
        raise AssertionError

    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(BadSetting, match=f"port {port} on 127.0.0.1 is in use"):
            run_workers(workers, [("127.0.0.1", port)], start)


def test_a_port_served_by_other_workers_is_occupied_too(run) -> None:
    async def start(sockets):
        raise AssertionError

    _, port = run(2)
    ask(port)
    with pytest.raises(BadSetting, match="in use"):
        run_workers(2, [("127.0.0.1", port)], start)

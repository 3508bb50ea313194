"""`python -m bench.calls`: how many calls one small PUT and GET of a server take.

First those of a blob server, then those of an API server over two. The server runs with
`sys.setprofile` on its event loop's thread while some requests come one after the other; printed
are the Python and C functions called for one request, and how many modules of dolmen they are in.
The C ones include every method of a built-in type.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

REQUESTS = 200
SIZE = 1024
_STARTED = re.compile(r"http://127\.0\.0\.1:(\d+)")


def serve() -> None:
    """Run `dolmen` with the arguments given; SIGUSR1 begins to count, SIGUSR2 prints."""
    from dolmen.cli import main

    python: Counter[str] = Counter()
    native: Counter[str] = Counter()

    def count(frame: FrameType, event: str, arg: object) -> None:
        if event == "call":
            python[f"{frame.f_code.co_filename}:{frame.f_code.co_qualname}"] += 1
        elif event == "c_call":
            native[getattr(arg, "__qualname__", str(arg))] += 1

    def begin(*_: object) -> None:
        python.clear()
        native.clear()
        sys.setprofile(count)

    def end(*_: object) -> None:
        sys.setprofile(None)
        print(json.dumps([python, native]), flush=True)

    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, end)
    main()


def _ask(sock: socket.socket, method: str, target: str, body: bytes = b"") -> bytes:
    head = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
    sock.sendall(head.encode() + b"\r\n" + body)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += sock.recv(65_536)
    top, _, rest = answer.partition(b"\r\n\r\n")
    if not top.startswith(b"HTTP/1.1 20"):
        raise SystemExit(f"{method} was answered {top.decode()}")
    found = re.search(rb"(?i)content-length: (\d+)", top)
    while found and len(rest) < int(found[1]):
        rest += sock.recv(65_536)
    return rest


def _print(what: str, python: dict[str, int], native: dict[str, int], shown: int) -> None:
    ours = {key.rpartition(":")[0] for key in python if "/dolmen/" in key}
    calls = sum(python.values()) / REQUESTS
    print(
        f"{what}: {calls:.0f} Python calls in {len(ours)} modules, "
        f"{sum(native.values()) / REQUESTS:.0f} native ones"
    )
    for key, count in Counter(python).most_common(shown):
        print(f"    {count / REQUESTS:6.2f}  {key.rpartition('/dolmen/')[2]}")


@contextmanager
def _running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server, and its port."""
    command = [sys.executable, "-c", "from bench.calls import serve; serve()", *arguments]
    root = Path(__file__).parents[1]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
    try:
        assert server.stdout is not None
        while not (found := _STARTED.search(server.stdout.readline())):
            pass
        yield server, int(found[1])
    finally:
        server.terminate()
        server.wait()


def _count(server: subprocess.Popen[str], port: int, put: str, get: str, shown: int) -> None:
    """Count for one server; `put` and `get` have a place for the blob's name."""
    names = [f"blob-{number}" for number in range(2 * REQUESTS)]
    assert server.stdout is not None
    with socket.create_connection(("127.0.0.1", port)) as sock:
        for method, target in (("PUT", put), ("GET", get)):
            for number, name in enumerate(names):
                if number == REQUESTS:
                    os.kill(server.pid, signal.SIGUSR1)
                body = os.urandom(SIZE) if method == "PUT" else b""
                said = _ask(sock, method, target.format(name), body)
                if method == "PUT":
                    names[number] = json.loads(said)["id"]
            os.kill(server.pid, signal.SIGUSR2)
            _ask(sock, "GET", "/alive")  # a signal is handled when Python runs
            line = server.stdout.readline()
            while not line.startswith("["):
                line = server.stdout.readline()
            _print(f"{method} {target}", *json.loads(line), shown)


def main() -> None:
    """Print the figures; with a number, so many of the functions called most as well."""
    shown = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    listen = "--listen", "127.0.0.1:0"
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        blobs = [
            running.enter_context(
                _running("blob-server", "--store", f"volume:{folder}/{number}", *listen)
            )
            for number in range(2)
        ]
        _count(*blobs[0], "/blob/{}", "/blob/{}", shown)
        urls = ",".join(f"http://127.0.0.1:{port}" for _, port in blobs)
        api = "api-server", "--blob-server", urls, "--no-repair", "--download-listen", "127.0.0.1:0"
        _count(*running.enter_context(_running(*api, *listen)), "/upload", "/fetch/{}", shown)


if __name__ == "__main__":
    main()

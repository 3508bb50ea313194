"""The servers that are measured, as processes of their own, ended with the block that uses them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.figures import NotMeasured

DOLMEN = str(Path(sys.executable).with_name("dolmen"))
_PATIENCE = 30
"""Seconds a server may take to start or to end."""
_NGINX = """
worker_processes 1; worker_rlimit_nofile 30000; daemon off; %(user)s
pid %(folder)s/pid; error_log %(folder)s/log;
events { worker_connections 4096; }
http {
    access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000;
    client_body_temp_path %(folder)s/body; proxy_temp_path %(folder)s/proxy;
    fastcgi_temp_path %(folder)s/fastcgi; uwsgi_temp_path %(folder)s/uwsgi;
    scgi_temp_path %(folder)s/scgi;
    open_file_cache max=20000 inactive=600s; open_file_cache_valid 600s;
    server {
        listen 127.0.0.1:%(port)d; root %(root)s;
        location /discard/ { return 204; }
    }
}
"""


@dataclass
class Server:
    """A running server. `base` is where it is reached."""

    base: str
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        """The port of `base`."""
        return int(self.base.rpartition(":")[2])

    def family(self) -> list[int]:
        """Its process and all that descend from it."""
        family = [self.process.pid]
        for pid in family:
            with contextlib.suppress(OSError):
                for tasks in Path(f"/proc/{pid}/task").iterdir():
                    family += map(int, (tasks / "children").read_text().split())
        return family

    def anonymous(self) -> int:
        """Anonymous memory of the whole family that is in RAM, in bytes."""
        total = 0
        for pid in self.family():
            with contextlib.suppress(OSError):  # it may end while we look
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += sum(map(int, re.findall(r"^Anonymous: +(\d+) kB", text, re.MULTILINE)))
        return total * 1024

    def busy(self) -> float:
        """Seconds of processor time the whole family has used."""
        ticks = 0
        for pid in self.family():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """End the whole family with SIGKILL, as if the power of its programs were cut."""
        family = self.family()
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for pid in family[1:]:
            until = time.monotonic() + _PATIENCE
            while os.path.exists(f"/proc/{pid}") and time.monotonic() < until:
                time.sleep(0.01)


@contextlib.contextmanager
def blob_server(volume: Path) -> Iterator[Server]:
    """A dolmen blob server on a volume."""
    with _dolmen("blob-server", "--store", f"volume:{volume}", "--listen", "127.0.0.1:0") as server:
        yield server


@contextlib.contextmanager
def api_server(blob_servers: list[Server]) -> Iterator[Server]:
    """A dolmen API server over blob servers; it writes up to two copies before it answers."""
    over = [word for server in blob_servers for word in ("--blob-server", server.base)]
    listen = ("--listen", "127.0.0.1:0", "--download-listen", "127.0.0.1:0")
    with _dolmen("api-server", *over, *listen) as server:
        yield server


@contextlib.contextmanager
def nginx(root: Path) -> Iterator[Server | None]:
    """An nginx with one worker that serves the files in `root`; None where there is no nginx."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="nginx-", dir=root.parent) as folder:
        port = _free_port()
        user = "user root;" if os.geteuid() == 0 else ""
        config = Path(folder, "nginx.conf")
        config.write_text(_NGINX % {"folder": folder, "root": root, "port": port, "user": user})
        with _running([program, "-e", f"{folder}/log", "-c", str(config)]) as process:
            server = Server(f"http://127.0.0.1:{port}", process)
            if not _listens(server):
                raise NotMeasured(f"nginx did not start: {Path(folder, 'log').read_text()[-300:]}")
            yield server


@contextlib.contextmanager
def _dolmen(*arguments: str) -> Iterator[Server]:
    with _running([DOLMEN, *arguments]) as process:
        assert process.stdout is not None
        found = re.search(r"http://[\d.]+:\d+", process.stdout.readline())
        server = Server(found[0] if found else "", process)
        if found is None or not _listens(server):
            raise NotMeasured(f"dolmen {arguments[0]} did not start: {_said(process)}")
        _settle(server)
        yield server


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process, with its standard error in a temporary file."""
    environment = {key: value for key, value in os.environ.items() if "DOLMEN" not in key}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            process_group=0,  # a Ctrl-C is for us, and we end it
        )
        process.stderr = errors
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _said(process: subprocess.Popen[str]) -> str:
    """The last line of a process's standard error."""
    assert process.stderr is not None
    process.stderr.seek(0)
    return (process.stderr.read().splitlines() or ["it said nothing"])[-1]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _settle(server: Server) -> None:
    """Wait until a server's companions have started too: that is not what is measured."""
    until, before = time.monotonic() + _PATIENCE, -1.0
    while time.monotonic() < until and (busy := server.busy()) > before:
        before = busy
        time.sleep(0.25)


def _listens(server: Server) -> bool:
    """Wait until a server takes connections; False when it ended or it takes too long."""
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until and server.process.poll() is None:
        with (
            contextlib.suppress(ConnectionError),
            socket.create_connection(("127.0.0.1", server.port)),
        ):
            return True
        time.sleep(0.02)
    return False

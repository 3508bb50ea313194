"""The servers that are measured, each one process of its own, ended with the block that uses it."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.figures import NotMeasured

DOLMEN = str(Path(sys.executable).with_name("dolmen"))
_PATIENCE = 30
"""Seconds a server may take to start or to end."""
_STALLED = 120
"""Seconds without a byte after which a request has failed."""
_NGINX = """
worker_processes 1; worker_rlimit_nofile 30000; daemon off; master_process off;
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

    def anonymous(self) -> int:
        """Its anonymous memory that is in RAM, in bytes."""
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        found = re.search(r"^Anonymous: +(\d+) kB", text, re.MULTILINE)
        return int(found[1]) * 1024 if found else 0

    def busy(self) -> float:
        """Seconds of processor time it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @contextlib.contextmanager
    def asked(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes | memoryview] | None = None,
        size: int | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        """Its response to a request on a connection of its own; `size` is that of the body."""
        headers = {"Content-Length": str(size)} if size is not None else {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_STALLED)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            if response.status not in (200, 201):
                said = response.read(300)
                raise NotMeasured(f"{method} {path} was answered {response.status}: {said!r}")
            yield response


@contextlib.contextmanager
def blob_server(volume: Path, **settings: str) -> Iterator[Server]:
    """A dolmen blob server on a volume; settings are given as variables of the environment."""
    arguments = ("--store", f"volume:{volume}", "--listen", "127.0.0.1:0")
    with _dolmen("blob-server", *arguments, **settings) as server:
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
    """An nginx of one process that serves the files in `root`; None where there is no nginx."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="nginx-", dir=root.parent) as folder:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = int(listener.getsockname()[1])
        config = Path(folder, "nginx.conf")
        config.write_text(_NGINX % {"folder": folder, "root": root, "port": port})
        with _running([program, "-e", f"{folder}/log", "-c", str(config)], {}) as process:
            until = time.monotonic() + _PATIENCE
            while process.poll() is None and time.monotonic() < until:
                with (
                    contextlib.suppress(ConnectionError),
                    socket.create_connection(("127.0.0.1", port)),
                ):
                    break
                time.sleep(0.02)
            else:
                raise NotMeasured(f"nginx did not start: {Path(folder, 'log').read_text()[-300:]}")
            yield Server(f"http://127.0.0.1:{port}", process)


@contextlib.contextmanager
def _dolmen(*arguments: str, **settings: str) -> Iterator[Server]:
    with _running([DOLMEN, *arguments], settings) as process:
        assert process.stdout is not None
        found = re.search(r"http://[\d.]+:\d+", process.stdout.readline())  # it listens by then
        if found is None:
            process.wait(_PATIENCE)
            assert process.stderr is not None
            process.stderr.seek(0)
            said = (process.stderr.read().splitlines() or ["it said nothing"])[-1]
            raise NotMeasured(f"dolmen {arguments[0]} did not start: {said}")
        yield Server(found[0], process)


@contextlib.contextmanager
def _running(command: list[str], settings: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process, with its standard error in a temporary file."""
    environment = {key: value for key, value in os.environ.items() if "DOLMEN" not in key}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment | settings,
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

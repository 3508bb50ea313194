"""Redis servers of a test's own: started on free ports of this machine, ended by their ids."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction")
_PATIENCE = 20.0


def program(name: str) -> str:
    """The path of a program; fails where `tests/engines/install` could not install it."""
    found = shutil.which(name)
    assert found, f"{name} is missing: run tests/engines/install"
    return found


def free_port() -> int:
    """A port nobody listens on, nor on the one 10,000 above it, which a cluster talks on."""
    while True:
        with socket.socket() as near, socket.socket() as far:
            near.bind(("127.0.0.1", 0))
            port = near.getsockname()[1]
            if port + 10_000 < 65_536:
                try:
                    far.bind(("127.0.0.1", port + 10_000))
                except OSError:
                    continue
                return port


class RedisServer:
    """One redis-server with its data in `folder`. Used as a context; may be started again."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options = folder, options
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, on the port it had before if it had one, and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for _ in range(5):  # another may take the port before the server does
            self.port = self.port or free_port()
            ports = ("--port", str(self.port)) if "--tls-port" not in self.options else ()
            with (self.folder / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    [
                        program("redis-server"),
                        *("--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""),
                        *ports,
                        *self.options,
                    ],
                    stdout=log,
                    stderr=log,
                )
            if self._answers():
                return
            self.kill()
            self.port = 0
        raise AssertionError((self.folder / "log").read_text())

    def _answers(self) -> bool:
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                    connection.settimeout(1)
                    connection.sendall(b"PING\r\n")
                    # With a password it says so, and loading says so as well.
                    if connection.recv(7)[:7] in (b"+PONG\r\n", b"-NOAUTH"):
                        return True
            except OSError:
                pass
            time.sleep(0.01)
        return False

    def cli(self, *words: str) -> str:
        """What redis-cli prints for a command."""
        command = [program("redis-cli"), "-p", str(self.port), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def set(self, setting: str, value: str) -> None:
        """Change a setting while it runs."""
        assert self.cli("CONFIG", "SET", setting, value) == "OK"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it in the middle of whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class RedisCluster:
    """Three servers that share the slots. Used as a context."""

    def __init__(self, folder: Path, *options: str) -> None:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", *options)
        self.servers = [RedisServer(folder / str(number), *options) for number in range(3)]
        self._running = ExitStack()

    @property
    def addresses(self) -> str:
        return ",".join(server.address for server in self.servers)

    def __enter__(self) -> RedisCluster:
        with ExitStack() as starting:
            for server in self.servers:
                starting.enter_context(server)
            self.servers[0].cli(
                "--cluster",
                "create",
                *(server.address for server in self.servers),
                "--cluster-yes",
            )
            deadline = time.monotonic() + _PATIENCE
            while not all("cluster_state:ok" in s.cli("CLUSTER", "INFO") for s in self.servers):
                assert time.monotonic() < deadline, "the cluster did not come up"
                time.sleep(0.02)
            self._running = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

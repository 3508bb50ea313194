"""Redis servers of a test's own: started on free ports of this machine, ended by their ids."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from .programs import TIED, program

DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction")
_PATIENCE = 20.0


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


def until(what: Callable[[], object]) -> None:
    """Wait until it is so; fails after a while."""
    deadline = time.monotonic() + _PATIENCE
    while not what():
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.01)


async def eventually(what: Callable[[], object]) -> None:
    """Wait like `until`, while the loop of the test goes on."""
    deadline = time.monotonic() + _PATIENCE
    while not what():
        assert time.monotonic() < deadline, "it does not come to that"
        await asyncio.sleep(0.01)


class RedisServer:
    """One redis-server with its data in `folder`. Used as a context; may be started again."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options = folder, options
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, *options: str, loaded: bool = True) -> None:
        """Start it, and wait until it answers, with its data unless `loaded` is false."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for _ in range(5):  # another may take the port before the server does
            with (self.folder / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    [
                        *(*TIED, program("redis-server")),
                        *("--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""),
                        *("--port", str(self.port), *self.options, *options),
                    ],
                    stdout=log,
                    stderr=log,
                )
            if self._answers(b"+PONG", b"-NOAUTH", *(() if loaded else (b"-LOADING",))):
                return
            self.kill()
            self.port = free_port()
        raise AssertionError((self.folder / "log").read_text())

    def _answers(self, *wanted: bytes) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                    connection.settimeout(1)
                    connection.sendall(b"PING\r\n")
                    if connection.recv(100).startswith(wanted):
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

    def held(self, pattern: str = "*") -> list[str]:
        """The keys it holds, sorted."""
        return sorted(self.cli("KEYS", pattern).split())

    def info(self, field: str) -> str:
        """A field of INFO."""
        lines = (line.partition(":") for line in self.cli("INFO").splitlines())
        return next(value for key, _, value in lines if key == field)

    def pause(self) -> None:
        """Let it answer nothing until `go_on`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it answer again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

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
        self._folder = folder
        self._options = (
            *("--cluster-enabled", "yes", "--cluster-node-timeout", "1000"),
            *("--repl-diskless-sync-delay", "0", *options),
        )
        self.servers = [self._server() for _ in range(3)]
        self._running = ExitStack()

    def _server(self) -> RedisServer:
        port = free_port()
        server = RedisServer(self._folder / str(port), *self._options)
        server.port = port
        return server

    @property
    def addresses(self) -> str:
        return ",".join(server.address for server in self.servers)

    def __enter__(self) -> RedisCluster:
        with ExitStack() as starting:
            for server in self.servers:
                starting.enter_context(server)
            places = [server.address for server in self.servers]
            self.servers[0].cli("--cluster", "create", *places, "--cluster-yes")
            until(self.sound)
            self._running = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def sound(self) -> bool:
        """Whether every server says that all is well."""
        return all("cluster_state:ok" in each.cli("CLUSTER", "INFO") for each in self.servers)

    def holder(self, slot: int) -> RedisServer:
        """The server that holds a slot."""
        for server in self.servers:
            for line in server.cli("CLUSTER", "NODES").splitlines():
                words = line.split()
                if "myself" in words[2]:
                    for first, _, last in (each.partition("-") for each in words[8:]):
                        if first.isdigit() and int(first) <= slot <= int(last or first):
                            return server
        raise AssertionError(f"nobody holds slot {slot}")

    def add_replica(self, master: RedisServer) -> RedisServer:
        """One more server, that follows this one and has caught up with it."""
        replica = self._running.enter_context(self._server())
        replica.cli("CLUSTER", "MEET", *master.address.split(":"))
        name = master.cli("CLUSTER", "MYID")
        until(lambda: name in replica.cli("CLUSTER", "NODES"))
        until(lambda: replica.cli("CLUSTER", "REPLICATE", name) == "OK")
        until(lambda: replica.info("master_link_status") == "up")
        own = replica.cli("CLUSTER", "MYID")
        for server in self.servers:  # they elect it, and its master has to agree
            until(lambda server=server: own in server.cli("CLUSTER", "REPLICAS", name))
        return replica

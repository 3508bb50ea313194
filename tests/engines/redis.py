"""Redis servers of a test's own: started on free ports of this machine, ended by their ids."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from .programs import program
from .served import Served

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


class RedisServer(Served):
    """One redis-server with its data in `folder`."""

    loads = False
    """Whether one that still loads its data counts as up."""

    def command(self) -> list[str]:
        return [
            *(program("redis-server"), "--port", str(self.port), "--bind", "127.0.0.1"),
            *("--dir", str(self.folder), "--save", ""),
        ]

    def free_port(self) -> int:
        return free_port()

    def is_up(self, connection: socket.socket) -> bool:
        connection.sendall(b"PING\r\n")
        loading = (b"-LOADING",) if self.loads else ()
        return connection.recv(100).startswith((b"+PONG", b"-NOAUTH", *loading))

    def url(self) -> str:
        """A store's URL."""
        return f"redis://{self.address}"

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
        server = RedisServer(self._folder, *self._options)
        server.folder = self._folder / str(server.port)
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

"""PostgreSQL servers of a test's own: on a free loopback port, ended by their ids."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from .programs import TIED, program, until_stopped
from .served import Served

_USER = "postgres"
# It refuses to run as root. Another user may not enter the folders of the tests, but it may
# with this one of root's capabilities.
_AS_USER = (
    *("setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups"),
    *("--inh-caps=+dac_override", "--ambient-caps=+dac_override"),
)


class PostgresServer(Served):
    """One server with its data in `folder`, superuser `dolmen`, database `dolmen`.

    Used as a context; may be started again. `file_limit` is in bytes: no file grows beyond.
    """

    def __init__(self, folder: Path, **settings: str) -> None:
        super().__init__(folder)
        self.settings = settings
        self.file_limit: int | None = None

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "lc_messages": "C",
            **self.settings,
        }
        limit = ("prlimit", f"--fsize={self.file_limit}") if self.file_limit else ()
        words = [word for setting in settings.items() for word in ("-c", "=".join(setting))]
        # Changing the user ends being tied.
        return [*_prefix(), *limit, *TIED, _program("postgres"), "-D", str(self.folder), *words]

    def is_up(self, connection: socket.socket) -> bool:
        lines = (self.folder / "postmaster.pid").read_text().splitlines()
        assert self._process is not None
        return lines[0:1] == [str(self._process.pid)] and "ready" in "".join(lines[7:8])

    @property
    def pids(self) -> list[int]:
        """The server's process, and those it started."""
        if self._process is None:
            return []
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def url(self, schema: str = "public", *, user: str = "dolmen", database: str = "dolmen") -> str:
        """The URL of a store in a schema, whether it is there or not."""
        return f"postgresql://{user}@{self.address}/{database}?search_path={schema}"

    def sql(self, *statements: str, database: str = "dolmen") -> str:
        """What psql prints for these statements."""
        words = [word for statement in statements for word in ("-c", statement)]
        return self.client("psql", "-d", database, "-qAtX", *words)

    def schema(self, name: str) -> str:
        """Make a schema if it is not there: the URL of a store in it."""
        self.sql("SET client_min_messages = error", f"CREATE SCHEMA IF NOT EXISTS {name}")
        return self.url(name)

    def drop(self, name: str) -> None:
        """Drop a schema and what is in it."""
        self.sql("SET client_min_messages = error", f"DROP SCHEMA {name} CASCADE")

    def client(self, name: str, *words: str) -> str:
        """What one of PostgreSQL's programs prints that connects to it."""
        return _run(name, "-h", "127.0.0.1", "-p", str(self.port), "-U", "dolmen", *words)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all of its processes."""
        _send(self.pids, number)

    def pause(self) -> None:
        self.signal(signal.SIGSTOP)
        for pid in self.pids:
            until_stopped(pid)

    def kill(self) -> None:
        """End all of its processes in the middle of whatever they do, and wait until they have."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGSTOP)  # it starts no more
            pids = self.pids
            _send(pids, signal.SIGKILL)
            self._process.wait()
            deadline = time.monotonic() + 30
            while any(map(_runs, pids)):
                assert time.monotonic() < deadline, f"some of {pids} do not end"
                time.sleep(0.005)
        self._process = None

    def __enter__(self) -> PostgresServer:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", str(_template()), str(self.folder)], check=True)
        self.start()
        return self


@cache
def _template() -> Path:
    """A data folder with the database in it, made once a process: that takes seconds."""
    above = Path(tempfile.mkdtemp(prefix="pg-"))
    atexit.register(shutil.rmtree, above)
    above.chmod(0o755)
    folder = above / "data"
    folder.mkdir()
    if os.geteuid() == 0:
        shutil.chown(folder, _USER, _USER)
    _run("initdb", "-D", str(folder), "-U", "dolmen", "-A", "trust", "--no-sync")
    _run("postgres", "--single", "-D", str(folder), "postgres", said="CREATE DATABASE dolmen\n")
    return folder


def _program(name: str) -> str:
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name)
    return program(name, *map(str, reversed(folders)))


def _run(name: str, *words: str, said: str = "") -> str:
    ran = subprocess.run(
        [*_prefix(), _program(name), *words],
        check=False,
        input=said,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/",
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout.strip()


def _prefix() -> Sequence[str]:
    return _AS_USER if os.geteuid() == 0 else ()


def _runs(pid: int) -> bool:
    """Whether a process has not ended; one that nobody has asked about since has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _send(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # it ended by itself
            os.kill(pid, number)

"""A server that tests start for themselves, on a free loopback port, and end by its id."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from .programs import TIED, free_port, until_stopped

_PATIENCE = 60


def script(name: str) -> str:
    """A program that pip installed beside this Python."""
    path = Path(sys.executable).parent / name
    assert path.exists(), f"{name} is missing: pip install -e '.[dev]'"
    return str(path)


class Served:
    """One server with its data in `folder`, and these options. Used as a context."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options = folder, options
        self.port = self.free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        """What starts it on `port`."""
        raise NotImplementedError

    def free_port(self) -> int:
        """A port it can have."""
        return free_port()

    def is_up(self, connection: socket.socket) -> bool:
        """Whether it does more than listen."""
        return connection is not None

    def start(self, *options: str) -> None:
        """Start it, on the port it had before, and wait until it is up."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for _ in range(5):  # another may take the port before the server does
            with (self.folder / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    [*TIED, *self.command(), *self.options, *options],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            if self._comes_up():
                return
            self.kill()
            self.port = self.free_port()
        raise AssertionError((self.folder / "log").read_text())

    def _comes_up(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                    connection.settimeout(1)
                    if self.is_up(connection):
                        return True
            except OSError:
                pass
            time.sleep(0.01)
        return False

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it, if it runs."""
        if self._process is not None:
            self._process.send_signal(number)

    def pause(self) -> None:
        """Let it answer nothing until `go_on`."""
        self.signal(signal.SIGSTOP)
        if self._process is not None:
            until_stopped(self._process.pid)

    def go_on(self) -> None:
        """Let it answer again."""
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it in the middle of whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

"""A server that tests start for themselves."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from .programs import TIED, free_port

_PATIENCE = 60


def script(name: str) -> str:
    """A program that pip installed beside this Python."""
    path = Path(sys.executable).parent / name
    assert path.exists(), f"{name} is missing: pip install -e '.[dev]'"
    return str(path)


class Served:
    """One server on a free loopback port with its data in `folder`. Used as a context."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """What starts it on `port`."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it, on the port it had before if it had one, and wait until it listens."""
        for _ in range(5):  # another may take the port before the server does
            self.port = self.port or free_port()
            with (self.folder / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    [*TIED, *self.command()], stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            if self._listens():
                return
            self.kill()
            self.port = 0
        raise AssertionError((self.folder / "log").read_text())

    def _listens(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return True
        return False

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

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

"""A memcached of the tests' own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time

from .programs import TIED, free_port, program


class Memcached:
    """A server on a free loopback port. `url(prefix)` names a store in it."""

    def __init__(self, *options: str) -> None:
        self._options = options
        self.port = free_port()
        self.start()

    def start(self) -> None:
        """Start it, or start it again, and wait until it answers."""
        user = ["-u", "root"] if os.geteuid() == 0 else []
        command = [program("memcached"), "-l", "127.0.0.1", "-p", str(self.port), "-U", "0"]
        self.process = subprocess.Popen([*TIED, *command, *user, *self._options])
        for _ in range(500):
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                assert self.process.poll() is None, "memcached ended at once"
                time.sleep(0.02)
            else:
                return
        raise AssertionError("memcached did not come up")

    def url(self, prefix: str = "dolmen") -> str:
        """A store's URL."""
        return f"memcached://127.0.0.1:{self.port}/{prefix}"

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """Let it answer nothing until `go_on`."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it answer again."""
        self.process.send_signal(signal.SIGCONT)

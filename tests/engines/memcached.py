"""A memcached of the tests' own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time


class Memcached:
    """A server on a free loopback port. `url(prefix)` names a store in it."""

    def __init__(self, *options: str) -> None:
        self._options = options
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.start()

    def start(self) -> None:
        """Start it, or start it again, and wait until it answers."""
        program = shutil.which("memcached")
        assert program, "memcached is not installed: run tests/engines/install"
        user = ["-u", "root"] if os.geteuid() == 0 else []
        self.process = subprocess.Popen(
            [program, "-l", "127.0.0.1", "-p", str(self.port), "-U", "0", *user, *self._options]
        )
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

"""A memcached of the tests' own."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from .programs import program
from .served import Served


class Memcached(Served):
    """A server that runs at once. `url(prefix)` names a store in it."""

    def __init__(self, *options: str) -> None:
        super().__init__(Path(tempfile.mkdtemp(prefix="memcached-")), *options)
        atexit.register(shutil.rmtree, self.folder)
        self.start()

    def command(self) -> list[str]:
        user = ["-u", "root"] if os.geteuid() == 0 else []
        return [program("memcached"), "-l", "127.0.0.1", "-p", str(self.port), "-U", "0", *user]

    def url(self, prefix: str = "dolmen") -> str:
        """A store's URL."""
        return f"memcached://{self.address}/{prefix}"

"""Where the programs of the engines are, and how tests start them."""

from __future__ import annotations

import os
import shutil
import socket
import time
from contextlib import suppress
from pathlib import Path

# In front of a command: it is killed with the process (its thread, to be exact) that starts it,
# so that a test run that is killed leaves nothing behind.
TIED = ("setpriv", "--pdeathsig", "KILL")


def program(name: str, *folders: str) -> str:
    """The path of a program; fails where `tests/engines/install` could not install it."""
    found = shutil.which(name, path=os.pathsep.join([*folders, os.environ["PATH"]]))
    assert found, f"{name} is missing: run tests/engines/install"
    return found


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def until_stopped(pid: int) -> None:
    """Return when every thread of a process that was sent SIGSTOP has stopped."""
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        deadline = time.monotonic() + 30
        with suppress(OSError):  # it has ended
            while path.read_text().rpartition(")")[2].split()[0] not in "TZ":
                assert time.monotonic() < deadline, f"{path} goes on"
                time.sleep(0.001)  # the kernel tells nobody else of it

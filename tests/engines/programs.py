"""Where the programs of the engines are, and how tests start them."""

from __future__ import annotations

import os
import shutil
import socket

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

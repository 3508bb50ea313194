"""A process of its own that works beside a server, and ends with it.

Work in the background is thousands of small steps in Python, each of which would hold up
the event loop of the server for a moment. The companion is a function called in a new
process. It gets its order as the first line of its standard input, and has to end when that
input does, so it never outlives the one it works for. It says lines on its
standard output: what begins with `!` tells what is wrong, anything else that all is well,
and how far it is. Should it die, it is started again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

_log = logging.getLogger("dolmen.companion")
_LOOK = 1.0
"""Seconds between two looks at it."""


class Companion:
    """Runs `main` of a module, beside this process. Made on an event loop.

    `order` is one line of text; `heard` is called with every line of how far it is.
    """

    def __init__(
        self, module: str, order: str, *, heard: Callable[[str], None] | None = None
    ) -> None:
        self._module, self._order = module, order
        self._heard = heard or (lambda _: None)
        self._rest = b""
        self.failing: str | None = None
        """What is wrong, as far as it said or can be seen."""
        self._loop = asyncio.get_running_loop()
        self.process = self._started()
        self._timer = self._loop.call_later(_LOOK, self._look)

    def _started(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(  # noqa: S603 - this interpreter, this package
            [sys.executable, "-c", f"from {self._module} import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            # A Ctrl-C in the terminal is for the server alone. No session of its own: Linux
            # shares processors out among sessions first, where giving way means little (sched(7)).
            process_group=0,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(self._order.encode() + b"\n")
        os.set_blocking(process.stdout.fileno(), False)
        return process

    def _look(self) -> None:
        status = self.process.poll()
        self._listen()
        if status is not None:
            self.failing = self.failing or f"it ended with status {status}"
            _log.error("%s died: %s; it is started again", self._module, self.failing)
            self._rest = b""
            try:
                died, self.process = self.process, self._started()
            except OSError as error:
                self.failing = f"it can't be started: {error}"
            else:
                _end(died)
        self._timer = self._loop.call_later(_LOOK, self._look)

    def _listen(self) -> None:
        assert self.process.stdout is not None
        *lines, self._rest = (self._rest + (self.process.stdout.read() or b"")).split(b"\n")
        for line in lines:
            text = line.decode("utf-8", "replace")
            if text.startswith("!"):
                self.failing = text[1:]
            else:
                self.failing = None
                self._heard(text)

    async def close(self) -> None:
        """End it after the step it is at."""
        self._timer.cancel()
        await self._loop.run_in_executor(None, _end, self.process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a process that ends with its standard input."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.wait()
    process.stdout.close()


# In the companion


def order() -> str:
    """The line it was started with."""
    line = b""
    while not line.endswith(b"\n"):  # nothing of what follows may be read with it
        byte = os.read(0, 1)
        if not byte:
            sys.exit()
        line += byte
    return line.decode().rstrip("\n")


def say(line: str) -> None:
    """Tell how far it is; what begins with `!` is what is wrong."""
    with suppress(BrokenPipeError):  # nobody is left to hear it
        os.write(1, line.replace("\n", " ").encode() + b"\n")

"""A process of its own that works beside a server, and ends with it.

Work in the background is thousands of small steps in Python, each of which would hold up
the event loop of the server for a moment. The companion is a function called in a new
process. It gets its order as the first line of its standard input, and has to end when that
input does, so it never outlives the one it works for. It says on its standard output, line by
line, how far it is. Should it die, it is started again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from contextlib import suppress

_log = logging.getLogger("dolmen.companion")
_AGAIN = 1.0
"""Seconds until one that died is started again."""
_LINE_MAX = 1 << 20


class Companion:
    """Runs `main` of a module, beside this process. Made on an event loop.

    `order` is one line of text; `heard` is called with every line of how far it is.
    """

    def __init__(self, module: str, order: str, *, heard: Callable[[str], None]) -> None:
        # A Ctrl-C in the terminal is for the server alone. No session of its own: Linux shares
        # processors out among sessions first, where giving way means little (sched(7)).
        self._program = f"import os; os.setpgid(0, 0); from {module} import main; main()"
        self._module, self._order, self._heard = module, order, heard
        self._process: Process | None = None
        self._closed = False
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while not self._closed:
            try:
                status = await self._once()
            except OSError as error:
                _log.error("%s can't be started: %s", self._module, error)
            else:
                if self._closed:
                    return
                _log.error("%s ended with status %d; it is started again", self._module, status)
            await asyncio.sleep(_AGAIN)

    async def _once(self) -> int:
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", self._program, stdin=PIPE, stdout=PIPE, limit=_LINE_MAX
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(self._order.encode() + b"\n")
        if self._closed:  # while it was started
            process.stdin.close()
        async for line in process.stdout:
            self._heard(line.decode("utf-8", "replace").rstrip("\n"))
        return await process.wait()

    async def close(self) -> None:
        """End it after the step it is at."""
        self._closed = True
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        await self._task


# In the companion


def order() -> str:
    """The line it was started with."""
    line = sys.stdin.readline()
    if not line.endswith("\n"):
        sys.exit()
    return line.rstrip("\n")


def say(line: str) -> None:
    """Tell how far it is."""
    with suppress(BrokenPipeError):  # nobody is left to hear it
        os.write(1, line.replace("\n", " ").encode() + b"\n")

"""Running the program as its users do: a process with arguments, pipes, and an exit status."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from client.conftest import api
from dolmen.client import AsyncClient
from dolmen.errors import NotFound, Unavailable

__all__ = ["api"]
PROGRAM = (sys.executable, "-W", "error", "-c", "from dolmen.cli import main; main()")


@dataclass
class Ended:
    """What a run left behind."""

    status: int | None
    out: str
    err: str


@dataclass
class Runner:
    """Runs the program in `folder`, with a home and an environment of its own."""

    folder: Path
    environment: dict[str, str]
    started: list[Process]

    async def start(self, *arguments: str, **pipes: int) -> Process:
        process = await asyncio.create_subprocess_exec(
            *PROGRAM,
            *arguments,
            cwd=self.folder,
            env=self.environment,
            **({"stdin": PIPE, "stdout": PIPE, "stderr": PIPE} | pipes),
        )
        self.started.append(process)
        return process

    async def __call__(self, *arguments: str, given: bytes = b"") -> Ended:
        process = await self.start(*arguments)
        out, err = await process.communicate(given)
        return Ended(process.returncode, out.decode(), err.decode())


@pytest.fixture
async def dolmen(tmp_path: Path) -> AsyncIterator[Runner]:
    folder = tmp_path / "work"
    home = tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    kept = {key: os.environ[key] for key in ("PATH", "PYTHONPATH") if key in os.environ}
    runner = Runner(folder, {**kept, "HOME": str(home), "TERM": "dumb"}, [])
    yield runner
    for process in runner.started:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def answering(url: str) -> None:
    """Wait until a server answers: its line comes when the port is taken, a moment before."""
    async with AsyncClient(url) as client:
        while True:
            try:
                await client.cluster()
            except Unavailable:
                await asyncio.sleep(0.01)
            except NotFound:  # a blob server
                return
            else:
                return


@pytest.fixture(name="answering")
def answering_fixture() -> Callable[[str], Awaitable[None]]:
    """See `answering`."""
    return answering


Serving = Callable[[str], Awaitable[tuple[str, Process]]]


@pytest.fixture
def blob_server(dolmen: Runner) -> Serving:
    """Start `dolmen blob-server` on a store URL; gives its address when it serves."""

    async def start(store: str) -> tuple[str, Process]:
        process = await dolmen.start("blob-server", "--store", store, "--listen", "127.0.0.1:0")
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        assert " on http://" in line, line
        url = line.split(" on ")[1].strip()
        await answering(url)
        return url, process

    return start

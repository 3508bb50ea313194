"""The program itself: how it begins and how it ends, whatever the command."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

from dolmen.stores import open_store

BROKEN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
class Finder:
    def find_spec(self, name, *_):
        if name == "typer":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder())
from dolmen.cli import main
main()
"""


async def test_interrupted_while_it_is_loaded_it_is_quiet(dolmen: Any) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        BROKEN,
        "--version",
        env=dolmen.environment,
        stderr=asyncio.subprocess.PIPE,
    )
    dolmen.started.append(process)
    _, err = await process.communicate()
    assert (process.returncode, err) == (128 + signal.SIGINT, b"")


async def test_it_works_without_standard_streams(dolmen: Any) -> None:
    await (await open_store(f"volume:{dolmen.folder}/data")).aclose()
    script = "import os, sys; os.closerange(0, 3); os.execv(sys.executable, sys.argv[1:])"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, sys.executable, "-c"),
        *("from dolmen.cli import main; main()", "status", f"volume:{dolmen.folder}/data"),
        env=dolmen.environment,
    )
    dolmen.started.append(process)
    assert await process.wait() == 0


async def test_help_says_all_that_it_should_in_lines_of_the_terminal(dolmen: Any) -> None:
    told = (await dolmen("scrub", "--help")).out
    assert "by themselves ([scrub] in the settings)" in " ".join(told.split())
    assert " scrub [OPTIONS] {STORE}" in told
    paragraph = told[told.index("Replication then") : told.index("dolmen scrub volume:")]
    assert all(len(line.strip()) > 60 for line in paragraph.splitlines()[:2]), paragraph

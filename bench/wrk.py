"""Rates by wrk: one thread, so many connections, each sending again when it has its answer."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from pathlib import Path

from bench.figures import NotMeasured

_HERE = Path(__file__).parent
_runs = itertools.count()


def get(base: str, paths: Path, *, connections: int = 32, seconds: int) -> float:
    """GETs a second of the paths in a file, one a line."""
    return _wrk("get.lua", base, [str(paths)], connections, seconds)


def put(base: str, path: str, *, connections: int = 32, seconds: int) -> float:
    """POSTs a second of 1 KiB, all different. `*` in the path stands for a name of its own."""
    word = f"{os.getpid():08x}{next(_runs):08x}"
    return _wrk("put.lua", base, [word, path], connections, seconds)


def p99(base: str, paths: Path, *, connections: int = 32, seconds: int) -> float:
    """The 99th percentile of GETs' milliseconds at full speed."""
    said = _said("get.lua", base, [str(paths)], connections, seconds)
    found = re.search(r"^ *99% +([\d.]+)(us|ms|s)$", said, re.MULTILINE)
    if not found:
        raise NotMeasured(f"wrk told no percentiles: {said[-300:]}")
    return float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found[2]]


def _wrk(script: str, base: str, arguments: list[str], connections: int, seconds: int) -> float:
    said = _said(script, base, arguments, connections, seconds)
    rate = re.search(r"^Requests/sec: +([\d.]+)", said, re.MULTILINE)
    if not rate:
        raise NotMeasured(f"wrk failed: {said.strip()[-300:]}")
    return float(rate[1])


def _said(script: str, base: str, arguments: list[str], connections: int, seconds: int) -> str:
    """What wrk prints at its end."""
    program = shutil.which("wrk")
    if program is None:
        raise NotMeasured("wrk is not installed: run bench/install")
    command = [program, "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s"]
    command.append(str(_HERE / script))
    ran = subprocess.run(
        [*command, base, "--", *arguments], capture_output=True, text=True, check=False
    )
    wrong = re.search(r"^ *(Non-2xx.*|Socket errors.*)", ran.stdout, re.MULTILINE)
    if wrong:
        raise NotMeasured(f"{script} on {base}: {wrong[1]}")
    if ran.returncode:
        raise NotMeasured(f"wrk failed: {(ran.stderr or ran.stdout).strip()[-300:]}")
    return ran.stdout

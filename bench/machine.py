"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from pathlib import Path
from statistics import median
from typing import Any


def machine(folder: Path) -> dict[str, Any]:
    """Processor, file system and flush latency (ms) of `folder`, versions, commit, time."""
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    where = ["findmnt", "--noheadings", "--output", "FSTYPE,SOURCE", "--target", str(folder)]
    return {
        "commit": commit(),
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "processors": os.cpu_count(),
        "processor": processor[1] if processor else platform.machine(),
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "file_system": " on ".join(said(*where).split()) or "unknown file system",
        "flush_ms": round(flush_latency(folder) * 1000, 3),
    }


def commit() -> str:
    """The commit the code is at, with a plus sign where it was changed since."""
    found = said("git", "rev-parse", "--short=12", "HEAD")
    changed = said("git", "status", "--porcelain", "--untracked-files=no", "--", "../src")
    return (found or "unknown") + ("+" if changed else "")


def said(*command: str) -> str:
    """What a command prints, run beside this file; nothing where it fails."""
    here = Path(__file__).parent
    try:
        ran = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return ran.stdout.strip()


def flush_latency(folder: Path) -> float:
    """Seconds that `fdatasync` after an append of 4 KiB takes, median of 200."""
    path, block, times = folder / "flush", bytes(4096), []
    with path.open("wb", buffering=0) as file:
        for _ in range(200):
            file.write(block)
            before = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - before)
    path.unlink()
    return median(times)

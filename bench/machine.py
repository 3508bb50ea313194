"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from statistics import median
from typing import Any


def machine(folder: Path) -> dict[str, Any]:
    """Processor, file system and flush latency (ms) of `folder`, versions, commit, time."""
    return {
        "commit": commit(),
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "processors": os.cpu_count(),
        "processor": _processor(),
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "file_system": file_system(folder),
        "flush_ms": round(flush_latency(folder) * 1000, 3),
    }


def commit() -> str:
    """The commit the code is at, with a plus sign where it was changed since."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        ran = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=False)
        return ran.stdout.strip()

    found = git("rev-parse", "--short=12", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "../src")
    return (found or "unknown") + ("+" if changed else "")


def file_system(folder: Path) -> str:
    """Type and device of the file system a folder lies on."""
    path = folder.resolve()
    best = ("", "unknown")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        device, mount, kind = line.split()[:3]
        if path.is_relative_to(mount) and len(mount) >= len(best[0]):
            best = (mount, f"{kind} on {device}")
    return best[1]


def flush_latency(folder: Path) -> float:
    """Seconds that `fdatasync` after an append of 4 KiB takes, median of 200."""
    path, block, times = folder / "flush", bytes(4096), []
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for _ in range(200):
            os.write(fd, block)
            before = time.perf_counter()
            os.fdatasync(fd)
            times.append(time.perf_counter() - before)
    finally:
        os.close(fd)
        path.unlink()
    return median(times)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

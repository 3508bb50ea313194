"""A volume in a folder, opened again as often as a test wants."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dolmen.errors import DolmenError
from dolmen.payload import Bytes, read_whole
from dolmen.store import Failed, Put, Write
from dolmen.stores.volume import Volume, open_volume
from dolmen.stores.volume.folder import BLOB, SEGMENT

Opener = Callable[..., Awaitable[Volume]]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opener]:
    """Opens the volume in `tmp_path / "v"`; what is open at the end is closed."""
    volumes: list[Volume] = []

    async def open_it(path: Path | None = None, **options: Any) -> Volume:
        volumes.append(await open_volume(str(path or tmp_path / "v"), **options))
        return volumes[-1]

    yield open_it
    for volume in volumes:
        await volume.aclose()


async def put(store: Volume, name: str, data: bytes = b"data", stamp: int | None = None) -> Put:
    return await store.write(Write(name, Bytes(data), stamp=stamp))


async def data_of(store: Volume, name: str) -> bytes:
    return bytes(await read_whole((await store.get(name)).payload))


async def failure(store: Volume, name: str) -> DolmenError | None:
    """What `verify_many` says against a copy."""
    (answer,) = [answer async for answer in store.verify_many([name])]
    return answer.error if isinstance(answer, Failed) else None


def files(store: Volume, suffix: str = SEGMENT) -> list[int]:
    """The numbers of the files of a volume that end so."""
    return [number for number, found in store.folder.numbers() if found == suffix]


def place_of(volume: Volume, name: str) -> tuple[str, int]:
    """The path of the file with a blob's data, and where the data begins in it."""
    entry = volume._live(name)
    path = volume.folder.file(entry.data[0], BLOB if entry.alone else SEGMENT)
    return path, entry.data_at(name.encode())


def flip(path: str, offset: int, mask: int = 1) -> None:
    """Change a byte of a file."""
    fd = os.open(path, os.O_RDWR)
    try:
        byte = os.pread(fd, 1, offset)[0]
        os.pwrite(fd, bytes([byte ^ mask]), offset)
    finally:
        os.close(fd)


def tree(path: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder with its size and time of change."""
    return {
        str(file.relative_to(path)): (file.stat().st_size, file.stat().st_mtime_ns)
        for file in path.rglob("*")
        if file.is_file()
    }

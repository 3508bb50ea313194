"""Files up and down, never half: what is downloaded is checked before it gets its name."""

from __future__ import annotations

import asyncio
import contextlib
import mimetypes
import os
import secrets
import stat
from collections.abc import AsyncIterator, Callable
from typing import IO, BinaryIO

from dolmen.client.asynchronous import AsyncClient, Download
from dolmen.client.objects import Uploaded
from dolmen.errors import BadContent, BadSetting

PIECE = 1 << 20

Progress = Callable[[int, int | None], None]
"""Called with the bytes moved so far, and how many there are, where that is known."""


async def upload_file(
    client: AsyncClient, path: str, *, progress: Progress | None = None
) -> Uploaded:
    """Upload a file; its name and the type its name tells are kept. Raises `OSError` as well."""
    with _opened(path) as file:
        name = os.path.basename(path)
        return await upload_stream(client, file, file_name=name, progress=progress)


def _opened(path: str) -> BinaryIO:
    return open(path, "rb")


async def upload_stream(
    client: AsyncClient,
    file: BinaryIO,
    *,
    file_name: str | None = None,
    progress: Progress | None = None,
) -> Uploaded:
    """Upload what is read from an open file or pipe, from where it is to its end."""
    about, size = os.fstat(file.fileno()), None
    if stat.S_ISREG(about.st_mode):
        size = max(0, about.st_size - file.tell())

    async def pieces() -> AsyncIterator[bytes]:
        sent = 0
        while piece := await asyncio.to_thread(file.read, PIECE):
            yield piece
            sent += len(piece)
            if progress:
                progress(sent, size)
        if size is not None and sent != size:
            raise BadContent(f"{file_name} had {size} bytes, but {sent} while it was read")

    mime_type = mimetypes.guess_type(file_name, strict=False)[0] if file_name else None
    return await client.upload(pieces(), size=size, file_name=file_name, mime_type=mime_type)


async def download_file(
    client: AsyncClient,
    object_id: str,
    path: str | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> str:
    """Download an object to a file; returns its path.

    Without `path` it is called as when it was uploaded, else by its id, in the
    current folder; a folder may be given as well. It is written beside its place
    and gets its name when it is complete and its digest right, so that nothing is
    left of a failed download. With `force` a file that is there is replaced, but no
    device or pipe. Raises `BadSetting` for what is there, `OSError` from the disk.
    """
    async with client.download(object_id) as download:
        path = _place(path, download.info.file_name or object_id, force=force)
        beside = os.path.join(os.path.dirname(path), f".dolmen-{secrets.token_hex(8)}")
        try:
            with _created(beside) as file:
                await copy_to(download, file, progress=progress)
            _name(beside, path, force=force)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside)
    return path


def _created(path: str) -> BinaryIO:
    return open(path, "xb")


def _place(path: str | None, name: str, *, force: bool) -> str:
    if path is None or os.path.isdir(path):
        path = os.path.join(path or "", name)
    if not force and os.path.lexists(path):
        raise _taken(path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise BadSetting(f"{path} is no file that could be replaced; -o - writes to a pipe")
    return path


async def copy_to(download: Download, file: IO[bytes], *, progress: Progress | None = None) -> None:
    """Write what comes to an open file; raises `Corrupt` at its end when the digest is wrong."""
    got = 0
    async for piece in download:
        await asyncio.to_thread(file.write, piece)
        got += len(piece)
        if progress:
            progress(got, download.size)


def _name(beside: str, path: str, *, force: bool) -> None:
    if not force:
        try:
            os.link(beside, path)  # unlike a rename it never replaces a file that came meanwhile
        except FileExistsError:
            raise _taken(path) from None
        except OSError:
            if os.path.lexists(path):  # a file system without links
                raise _taken(path) from None
        else:
            return
    os.replace(beside, path)


def _taken(path: str) -> BadSetting:
    return BadSetting(f"{path} is there already; --force replaces it, -o names another file")

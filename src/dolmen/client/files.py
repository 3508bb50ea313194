"""Files up and down, never half: what is downloaded is checked before it gets its name."""

from __future__ import annotations

import asyncio
import contextlib
import mimetypes
import os
import tempfile
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
        return await upload_stream(
            client,
            file,
            size=os.fstat(file.fileno()).st_size,
            file_name=os.path.basename(path),
            mime_type=mimetypes.guess_type(path, strict=False)[0],
            progress=progress,
        )


async def upload_stream(
    client: AsyncClient,
    file: BinaryIO,
    *,
    size: int | None = None,
    file_name: str | None = None,
    mime_type: str | None = None,
    progress: Progress | None = None,
) -> Uploaded:
    """Upload what is read from an open file or pipe, from where it stands to its end."""

    async def pieces() -> AsyncIterator[bytes]:
        sent = 0
        while piece := await asyncio.to_thread(file.read, PIECE):
            yield piece
            sent += len(piece)
            if progress:
                progress(sent, size)
        if size is not None and sent != size:
            raise BadContent(f"{file_name} had {size} bytes, but {sent} while it was read")

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
        file = tempfile.NamedTemporaryFile(  # noqa: SIM115 - closed below, before it is named
            prefix=".dolmen-", dir=os.path.dirname(path) or ".", delete=False
        )
        try:
            with file:
                await copy_to(download, file, progress=progress)
                os.fchmod(file.fileno(), 0o666 & ~_umask())
            _name(file.name, path, force=force)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file.name)
    return path


def _opened(path: str) -> BinaryIO:
    return open(path, "rb")


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


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask

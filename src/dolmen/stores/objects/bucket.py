"""One bucket (or folder), as little of it as the store needs, and its errors in dolmen's words."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

from dolmen.errors import DolmenError, Full, OutcomeUnknown, Unavailable

_AT_ONCE = 128
"""Requests, and so connections; the rest wait here, where no timeout counts."""
PAGE = 1000
"""Objects of a page of a listing: what S3 gives in one answer."""

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_FULL = re.compile(r"status code: 507|QuotaExceeded|StorageFull|os error (27|28|122)\b")
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|specified (bucket|container) does not")
_BEYOND = re.compile(r"status code: 416|Wanted range starting at")
_NO_KEYS = re.compile(r"169\.254\.169\.254|metadata\.google\.internal")
"""Where the driver asks for credentials when it was given none. It exists in the clouds only."""
_AGAIN = re.compile(r"status code: 50[03]|kind: (Request|Interrupted),")
_PAUSES = (0.05, 0.2, 0.8)
_NO_RANGES = "Received non-partial response"
_NOT_SENT = re.compile(r"kind: Connect\b")


class Refused(Unavailable):
    """The bucket is not there, or not for these credentials: somebody has to mend a setting."""


class Bucket:
    """Objects by their paths. `url` is without secrets; `ordered`: listings come sorted.

    `reading` and `writing` are the same bucket; the second never sends anything twice.
    Everything raises `Unavailable`; what writes also `OutcomeUnknown` and `Full`.
    """

    def __init__(
        self, obstore: ModuleType, reading: Any, writing: Any, url: str, *, ordered: bool
    ) -> None:
        self._obstore, self._reading, self._writing = obstore, reading, writing
        self.faults = (obstore.exceptions.BaseError, OSError, ValueError)
        self._ranges, self._closed = True, False
        self.free = asyncio.Semaphore(_AT_ONCE)
        self.url, self.ordered = url, ordered

    def list(self, folder: str, after: str | None = None) -> Pages:
        """Paths of all objects in a folder and those below it; those above `after`."""
        if self._closed:
            raise Unavailable("the store is closed")
        stream = self._obstore.list(self._reading, folder, offset=after, chunk_size=PAGE)
        return Pages(self, stream)

    async def all(self, folder: str) -> Sequence[str]:
        """Paths of all objects in a folder that holds few."""
        return [path async for page in self.list(folder) for path in page]

    async def folders(self, folder: str) -> set[str]:
        """Names of the folders in a folder."""
        try:
            async with self.free:
                found = await self._obstore.list_with_delimiter_async(self._reading, folder)
        except self.faults as error:
            raise self.told(error) from error
        return {path.rpartition("/")[2] for path in found["common_prefixes"]}

    async def get(self, path: str, start: int = 0, stop: int | None = None) -> memoryview | None:
        """The bytes of an object, or of a range as far as there are any; None where none is."""
        try:
            async with self.free:
                if stop is not None and self._ranges:
                    part = self._obstore.get_range_async(self._reading, path, start=start, end=stop)
                    return memoryview(await part)
                found = await self._obstore.get_async(self._reading, path)
                return memoryview(await found.bytes_async())[start:stop]
        except self.faults as error:
            if isinstance(error, FileNotFoundError) and not _NO_BUCKET.search(str(error)):
                return None
            if _BEYOND.search(str(error)):
                return memoryview(b"")
            if _NO_RANGES not in str(error):
                raise self.told(error) from error
        # Some servers (rclone's is one) answer a range in a way the driver does not take.
        self._ranges = False
        return await self.get(path, start, stop)

    async def put(self, path: str, data: bytes | memoryview) -> None:
        """Store an object in one piece. Not more than one content is ever put under a path."""
        await self._write(self._put(path, data))

    async def replace(self, path: str, data: bytes) -> None:
        """Store an object in the place of another."""
        await self._write(self._put(path, data), times=1)

    async def delete(self, paths: Sequence[str]) -> None:
        """Delete objects, in any order. What is not there is fine."""
        for first in range(0, len(paths), PAGE):
            page = paths[first : first + PAGE]
            try:
                await self._write(partial(self._obstore.delete_async, self._writing, page))
            except FileNotFoundError:
                if len(page) > 1:  # the others may not have been tried
                    for path in page:
                        await self.delete([path])

    def _put(self, path: str, data: bytes | memoryview) -> Callable[[], Awaitable[object]]:
        return partial(self._obstore.put_async, self._writing, path, data, use_multipart=False)

    async def _write(
        self, write: Callable[[], Awaitable[object]], times: int = 1 + len(_PAUSES)
    ) -> None:
        """Write, and again where the bucket answers that it failed or is busy, or hangs up.

        That is nothing unusual of it, and harmless: a write done twice is as if done once. Raises
        `FileNotFoundError` too.
        """
        unknown: OutcomeUnknown | None = None
        for pause in (*_PAUSES[: times - 1], None):
            try:
                async with self.free:
                    await write()
            except self.faults as error:
                if isinstance(error, FileNotFoundError) and not _NO_BUCKET.search(str(error)):
                    raise
                told = self.told(error, wrote=True)
                if isinstance(told, OutcomeUnknown):
                    unknown = told
                if pause is None or not _AGAIN.search(str(error)):
                    raise (unknown or told) from error
                await asyncio.sleep(pause)
            else:
                return

    def close(self) -> None:
        """Let nobody begin anything."""
        self._closed = True

    def told(self, error: Exception, *, wrote: bool = False) -> DolmenError:
        """What went wrong, for whoever asked. The driver's messages have pages of detail."""
        whole = str(error)
        said = (_CODE.findall(whole) or _STATUS.findall(whole) or [whole.partition("\n")[0]])[0]
        if _FULL.search(whole):
            return Full(f"{self.url} has no room left ({said})")
        if _NO_BUCKET.search(whole):
            return Refused(
                f"{self.url} is not there ({said}): create it, or mend the name or the endpoint"
                " in the store's URL"
            )
        status = int((_STATUS.findall(whole) or [0])[0])
        exceptions = self._obstore.exceptions
        denied = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
        if isinstance(error, denied) or status in (401, 403):
            return Refused(
                f"{self.url} refuses who is asking ({said}): check the credentials in the"
                " environment (docs/engines.md), and what they are allowed to do"
            )
        if _NO_KEYS.search(whole):
            return Refused(f"{self.url}: no credentials are in the environment (docs/engines.md)")
        if _NOT_SENT.search(whole):
            return Unavailable(f"{self.url} can't be reached: nobody answers at its endpoint")
        if wrote and not (400 <= status < 500 or status == 503 or "(os error" in whole):
            return OutcomeUnknown(f"{self.url} did not say whether it wrote: {said}")
        return Unavailable(f"{self.url} could not be asked: {said}")


class Pages:
    """The pages of a listing, each asked for when it is wanted."""

    def __init__(self, bucket: Bucket, stream: Any) -> None:
        self._bucket, self._stream = bucket, stream

    def __aiter__(self) -> Pages:
        return self

    async def __anext__(self) -> Sequence[str]:
        try:
            async with self._bucket.free:
                return [found["path"] for found in await anext(self._stream)]
        except self._bucket.faults as error:
            raise self._bucket.told(error) from error

"""`cache:?fast=URL&slow=URL&size=BYTES` a fast store in front of a slow one, for reading.

The slow store is the one that counts: writes, lists and digests are its own, and what it
promises holds here. Every read asks it what stands (a `stat`), and only the bytes come out of
the fast store, when it has those of that checksum. So nothing stale is ever given: not what
somebody else deleted or replaced, and no copy that the fast store damaged.

Blobs of up to `LARGEST` bytes are kept, chunks of large objects among them. What was used last
stays: beyond `size` bytes (default 1 GiB) the others are removed, deleted ones among them. A fast
store may forget or fail whenever it likes; the slow one is read then.

Special characters in the two URLs are percent-encoded:
`cache:?fast=memory:&slow=http://10.0.0.1:3001&size=256M`.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from contextlib import suppress
from urllib.parse import parse_qs, urlsplit

from dolmen.errors import BadSetting, DolmenError
from dolmen.names import checksum_of
from dolmen.payload import Bytes, read_whole
from dolmen.store import Blob, BlobInfo, BlobStore, Range, Remove, Write
from dolmen.stores.base import Delegating

LARGEST = 4 << 20
"""The largest blob that is kept, in bytes."""
SIZE = 1 << 30
_SIZE = re.compile(r"([0-9]+)([KMGT]?)")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class CacheStore(Delegating):
    """The store `slow`, whose bytes are read from `fast` where it has them."""

    def __init__(self, fast: BlobStore, slow: BlobStore, *, size: int = SIZE) -> None:
        super().__init__(slow)
        self._fast, self._size = fast, size
        self._kept: OrderedDict[str, BlobInfo] = OrderedDict()
        """What the fast store holds, the last used last."""
        self._bytes = 0

    async def recall(self) -> None:
        """Learn what the fast store holds from before; done once, when it was opened."""
        async for info in self._fast.list():
            self._note(info)
        await self._make_room()

    async def get(self, name: str, *, byte_range: Range | None = None) -> Blob:
        info = await self.store.stat(name)
        data = await self._kept_data(info)
        if data is not None:
            return Blob(info, Bytes(memoryview(data)[slice(*byte_range)] if byte_range else data))
        blob = await self.store.get(name, byte_range=byte_range)
        if byte_range is not None or blob.info.size > min(LARGEST, self._size):
            return blob
        data = await read_whole(blob.payload)
        await self._keep(blob.info, data)
        return Blob(blob.info, Bytes(data))

    async def _kept_data(self, info: BlobInfo) -> bytes | memoryview | None:
        kept = self._kept.get(info.name)
        if kept is None:
            return None
        try:
            data = await read_whole((await self._fast.get(info.name)).payload)
        except DolmenError:
            data = b""
        if len(data) != info.size or checksum_of(data) != info.checksum:
            await self._forget(kept)
            return None
        with suppress(KeyError):  # it may have been dropped meanwhile
            self._kept.move_to_end(info.name)
        return data

    async def _keep(self, info: BlobInfo, data: bytes | memoryview) -> None:
        try:
            kept = Write(info.name, Bytes(data), info.kind, b"", info.stamp, info.checksum)
            await self._fast.write(kept)
        except DolmenError:
            return
        self._note(info)
        await self._make_room()

    def _note(self, info: BlobInfo) -> None:
        known = self._kept.pop(info.name, None)
        self._bytes += info.size - (known.size if known else 0)
        self._kept[info.name] = info

    async def _make_room(self) -> None:
        while self._bytes > self._size and self._kept:
            await self._forget(next(iter(self._kept.values())))

    async def _forget(self, info: BlobInfo) -> None:
        if self._kept.get(info.name) is info:
            del self._kept[info.name]
            self._bytes -= info.size
        with suppress(DolmenError):
            await self._fast.remove_many([Remove(info.name, info.stamp)])

    async def aclose(self) -> None:
        try:
            await self._fast.aclose()
        finally:
            await self.store.aclose()


async def open_url(url: str) -> CacheStore:
    """The cache a URL describes; raises `BadSetting`, and what opening the two stores raises."""
    from dolmen.stores import open_store

    given = parse_qs(urlsplit(url).query)
    size = _SIZE.fullmatch(given.pop("size", ["1G"])[0])
    parts = [given.pop(name, [""])[0] for name in ("fast", "slow")]
    if given or size is None or not all(parts):
        raise BadSetting(
            f"{url!r} is no cache: write cache:?fast=URL&slow=URL&size=1G, with & and % inside "
            "the two URLs percent-encoded; the size takes K, M, G or T"
        )
    slow = await open_store(parts[1])
    try:
        fast = await open_store(parts[0])
    except BaseException:
        await slow.aclose()
        raise
    store = CacheStore(fast, slow, size=int(size[1]) * _UNITS[size[2]])
    try:
        await store.recall()
    except BaseException:
        await store.aclose()
        raise
    return store

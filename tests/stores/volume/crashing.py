"""A volume that is written, crashed and opened again on a simulated disk, with what it may hold.

`Trial` keeps for every name the last write that was answered, and the one that was under way
when the power went. After each crash a name holds one or the other, whole; lists, digests,
accounts and a reindex agree; and nothing that was visible before is gone.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dolmen.digests import Slot
from dolmen.errors import DolmenError, NotFound
from dolmen.names import checksum_of, partition_of
from dolmen.payload import Bytes, Stream, read_whole
from dolmen.record import Kind
from dolmen.stamps import Clock
from dolmen.store import BlobInfo, Failed, Listing, Outcome, Remove, Write
from dolmen.stores.volume import Volume, commit, compaction, open_volume, pending, volume
from dolmen.stores.volume.catalog import SLOT
from dolmen.stores.volume.compaction import Compactor
from dolmen.stores.volume.entry import NOWHERE, key_of, name_of, unpack
from dolmen.stores.volume.recovery import reindex
from dolmen.testing.crash import InlineExecutor, PowerCut, SimulatedDisk

PATH = "/volume"
NAMES = [f"name{n}" for n in range(5)]
KINDS = ["put"] * 3 + ["again", "touch", "delete", "remove", "remove"]
SIZES = [0, 200, 500, 2_000, 4_500]
State = tuple[int, int, bytes, bytes] | None
"""Kind, stamp, data and metadata; None: nothing."""


@contextmanager
def small_sizes() -> Iterator[None]:
    """Every way of storing, and every rolling over, within a few kilobytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(volume, "CHUNK", 3_000)
        patch.setattr(volume, "SMALL", 600)
        patch.setattr(pending, "SMALL", 600)
        patch.setattr(commit, "_FLUSH_WRITES", 60)
        patch.setattr(compaction, "THRESHOLD", 0.4)
        yield


class Trial:
    """One seed's history. `crash` raises AssertionError where a promise is broken."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.disk = SimulatedDisk(rng=self.rng)
        self.acked: dict[str, State] = {}
        self.maybe: dict[str, State] = {}
        self.stamp = 1 << 50
        self.second = 1_000_000_000

    def run(self, crashes: int = 3) -> None:
        logging.disable(logging.CRITICAL)
        try:
            for _ in range(crashes):
                self.crash()
        finally:
            logging.disable(logging.NOTSET)

    def crash(self) -> None:
        """Write until the power goes, or the process is killed; look at what is there then."""
        self.disk.cut_after(self.rng.randint(1, 150))
        opened: list[Volume] = []
        with pytest.raises((PowerCut, DolmenError, OSError)) as ended:
            asyncio.run(self._live(opened))
        assert ended.type is PowerCut or self.disk.fail_flush or self.disk.dead, ended.value
        for name in NAMES if opened else ():
            seen = self._visible(opened[0], name)
            if seen is not None and seen == self.maybe.get(name):
                self.acked[name] = seen  # somebody may have read it
        self._restart()
        while self.rng.random() < 0.3:  # again, while it recovers
            self.disk.cut_after(self.rng.randint(1, 30))
            try:
                asyncio.run(self._open_and_close())
            except PowerCut:
                self._restart()
        self.disk.cut_after(1 << 60)
        before = asyncio.run(self._check())
        if self.rng.random() < 0.5:
            reindex(PATH, disk=self.disk)
        else:
            self.disk.remove_index(PATH + "/index")
        assert asyncio.run(self._check()) == before

    def _restart(self) -> None:
        cut = self.rng.random() < 0.7
        self.disk = self.disk.power_cut() if cut else self.disk.killed()

    async def _opened(self) -> Volume:
        return await open_volume(
            PATH,
            disk=self.disk,
            clock=Clock(),
            now=lambda: self.second,
            segment_size=8_000,
            threads=InlineExecutor(),
        )

    async def _open_and_close(self) -> None:
        await (await self._opened()).aclose()

    async def _live(self, opened: list[Volume]) -> None:
        store = await self._opened()
        opened.append(store)
        while True:
            self.second += 1
            if self.rng.random() < 0.02:
                self.disk.fail_flush = True
            if self.rng.random() < 0.2:
                await Compactor(store).compact()
            elif self.rng.random() < 0.05:
                await store.aclose()
                store = opened[0] = await self._opened()
            else:
                names = self.rng.sample(NAMES, self.rng.randint(1, 3))
                results = await asyncio.gather(
                    *(self._write(store, name) for name in names), return_exceptions=True
                )
                for result in results:
                    if isinstance(result, BaseException):
                        raise result

    async def _write(self, store: Volume, name: str) -> None:
        """One write, noted as possible before and as answered after."""
        now = self.acked.get(name)
        stamp = self.stamp = self.stamp + (1 << 16)
        kind = self.rng.choice(KINDS)
        live = now is not None and now[0] == Kind.BLOB
        if kind in ("touch", "again") and not live:
            kind = "put"
        metadata = self.rng.choice([b"", b"\1\1\0ab"])
        if kind == "remove":
            if now is None:
                return
            self.maybe[name] = None
            assert await store.remove_many([Remove(name, now[1])]) == [True]
        elif kind == "delete":
            self.maybe[name] = (Kind.TOMBSTONE, stamp, b"", b"")
            await store.write(Write.tombstone(name, stamp=stamp))
        else:
            data = self.rng.randbytes(self.rng.choice(SIZES))
            if kind != "put":
                assert now is not None
                data = now[2]
            self.maybe[name] = (Kind.BLOB, stamp, data, metadata)
            if kind == "touch":
                write = Write.touch(
                    name, stamp=stamp, checksum=checksum_of(data), metadata=metadata
                )
            else:
                write = Write(name, Bytes(data), metadata=metadata, stamp=stamp)
                if self.rng.random() < 0.5:

                    async def pieces(data: bytes = data):
                        for at in range(0, len(data), 1_000):
                            yield data[at : at + 1_000]

                    write.payload = Stream(len(data), pieces)
            put = await store.write(write)
            assert put.stamp == stamp
            assert put.outcome is Outcome.CREATED or kind != "put" or data == b"" or now is not None
        self.acked[name] = self.maybe.pop(name)

    def _visible(self, store: Volume, name: str) -> State:
        entry = store.catalog.get(key_of(name))
        if entry is None:
            return None
        maybe = self.maybe.get(name)
        data = maybe[2] if maybe else b""
        return (entry.kind, entry.stamp, data, entry.metadata)

    async def _check(self) -> list[BlobInfo]:
        """Hold what is there against what may be; the same of whatever else says so."""
        store = await self._opened()
        assert not store._opened.recovered.damaged
        for name in NAMES:
            found = await self._state(store, name)
            possible = [self.acked.get(name)]
            if name in self.maybe:
                possible.append(self.maybe[name])
            assert found in possible, f"{name}: {found} is none of {possible}"
            self.acked[name] = found
        self.maybe.clear()
        infos = [info async for info in store.list(Listing(tombstones=True))]
        assert {info.name for info in infos} == {n for n in NAMES if self.acked.get(n)}
        async for answer in store.verify_many([info.name for info in infos]):
            assert not isinstance(answer, Failed), answer
        slots: dict[int, Slot] = {}
        live: dict[int, int] = defaultdict(int)
        for key, value in store.catalog.entries():
            name, entry = name_of(key), unpack(value)
            slot = slots.setdefault(partition_of(name), Slot())
            slot.add(entry.length, entry.hash(name.encode()))
            assert entry.data != NOWHERE
            for number, used in entry.usage(name.encode()):
                live[number] += used
        partitions = {partition_of(name) for name in NAMES}
        for partition in partitions:
            packed = store.catalog.slots
            count, size, low, high = SLOT.unpack_from(packed, partition * SLOT.size)
            assert Slot(count, size, low | high << 64) == slots.get(partition, Slot())
        assert {n: size for n, size in store.catalog.live.items() if size} == dict(live)
        blobs = [n for n, suffix in store.folder.numbers() if suffix == ".blob"]
        alone = [
            unpack(value).data[0] for _, value in store.catalog.entries() if unpack(value).alone
        ]
        assert sorted(blobs) == sorted(alone), "files of large blobs were left behind"
        await store.aclose()
        return infos

    async def _state(self, store: Volume, name: str) -> State:
        try:
            blob = await store.get(name)
        except NotFound as absent:
            return (Kind.TOMBSTONE, absent.stamp, b"", b"") if absent.stamp else None
        data = bytes(await read_whole(blob.payload))
        return (blob.info.kind, blob.info.stamp, data, blob.info.metadata)

"""A blob store that fails on demand, for testing whatever stands on top of one.

`FaultyStore(store)` passes everything on to `store`, except where a test asks it to fail:

- `faulty.script("put", Fault.UNHEARD, None, Full("no room"))`: the next puts meet
  these one after the other; None goes well, an error is raised in place of asking.
- `faulty.at_random(random.Random(7), 0.2)`: every operation fails with this chance.
- `faulty.down = True`: the store can't be reached; what is under way breaks off.
- `faulty.pause = waits`: `await waits(method, name)` comes before every operation, so
  that a test holds operations back and lets them go as it likes.

`faulty.calls` lists the operations that were asked for, as (method, name). Bulk
operations go blob by blob through `get` and `write` of the faulty
store, so that single blobs of them can fail as well.

`damage(store, name)` changes what a `MemoryStore` keeps, as a disk does.
"""

from __future__ import annotations

import enum
import random
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from dolmen.digests import Digests
from dolmen.errors import Corrupt, DolmenError, OutcomeUnknown, Unavailable
from dolmen.names import partition_of
from dolmen.payload import Bytes, Payload, Piece, Stream
from dolmen.record import Kind
from dolmen.store import (
    EVERYTHING,
    Blob,
    BlobInfo,
    BlobStore,
    Condition,
    Failed,
    Listing,
    Put,
    Range,
    Remove,
    Write,
)
from dolmen.stores.base import OneByOne
from dolmen.stores.memory import MemoryStore

T = TypeVar("T")
Calls = list[tuple[str, str]]
CUT_AFTER = 2
"""So many entries or answers come before a stream of them is cut."""


class Fault(enum.Enum):
    """What can go wrong."""

    UNAVAILABLE = enum.auto()
    """`Unavailable`, and nothing happened."""
    LOST = enum.auto()
    """`OutcomeUnknown`: the payload was read, but the write did not happen."""
    UNHEARD = enum.auto()
    """`OutcomeUnknown`: the write happened, but its answer got lost."""
    CORRUPT = enum.auto()
    """`Corrupt`, as of a quarantined copy."""
    ROTTEN = enum.auto()
    """Half of the payload, and then `Corrupt`."""
    CUT = enum.auto()
    """Half of the payload, or `CUT_AFTER` entries or answers, and then the connection
    breaks: `Unavailable`, or `OutcomeUnknown` where it was writing."""
    WRONG = enum.auto()
    """One bit of the payload is flipped and nothing says so. No store may do that: it is
    there to see who checks. A payload of no bytes stays as it is."""


_READ = (Fault.UNAVAILABLE,)
_WRITE = (Fault.UNAVAILABLE, Fault.LOST, Fault.UNHEARD)
FITTING: dict[str, tuple[Fault, ...]] = {
    "put": _WRITE,
    "get": (*_READ, Fault.CORRUPT, Fault.ROTTEN, Fault.CUT, Fault.WRONG),
    "stat": (*_READ, Fault.CORRUPT),
    "touch": _WRITE,
    "list": (*_READ, Fault.CUT),
    "delete": _WRITE,
    "remove_many": _WRITE,
    "quarantined": _READ,
    "digests": _READ,
    "get_many": (*_READ, Fault.CUT),
    "write_many": (*_READ, Fault.CUT),
    "note": _WRITE,
    "notes": _READ,
    "condition": _READ,
}
"""The faults each method can meet."""


_METHODS: dict[int, str] = {
    Kind.BLOB: "put",
    Kind.MANIFEST: "put",
    Kind.TOMBSTONE: "delete",
    Kind.TOUCH: "touch",
}
"""What a write is called here, by its kind."""


class FaultyStore(OneByOne):
    """A blob store in front of `store`, with faults. What fails is said above."""

    def __init__(self, store: BlobStore) -> None:
        self.store = store
        self.capabilities = store.capabilities
        self.down = False
        self.pause: Callable[[str, str], Awaitable[None]] | None = None
        self.calls: Calls = []
        self._script: dict[str, deque[Fault | DolmenError | None]] = defaultdict(deque)
        self._rng = random.Random(0)  # noqa: S311 - nothing secret
        self._rate = 0.0
        self._among: frozenset[Fault] = frozenset()

    def script(self, method: str, *faults: Fault | DolmenError | None) -> None:
        """Let the next calls of a method meet these; None is a call that goes well."""
        for fault in faults:
            if isinstance(fault, Fault) and fault not in FITTING[method]:
                raise ValueError(f"{method} can't meet {fault.name}")
        self._script[method].extend(faults)

    def at_random(
        self,
        rng: random.Random,
        rate: float,
        *,
        among: Iterable[Fault] = set(Fault) - {Fault.WRONG},
    ) -> None:
        """Let every operation not scripted fail with this chance (0 to 1), by one `among` these."""
        self._rng, self._rate, self._among = rng, rate, frozenset(among)

    async def _meet(self, method: str, name: str = "") -> Fault | None:
        """Note the call and draw its fault; those that come before the effect are raised here."""
        self.calls.append((method, name))
        if self.pause is not None:
            await self.pause(method, name)
        if self.down:
            raise Unavailable("the store can't be reached")
        fault: Fault | DolmenError | None = None
        if self._script[method]:
            fault = self._script[method].popleft()
        elif self._rate and self._rng.random() < self._rate:
            fitting = [fault for fault in FITTING[method] if fault in self._among]
            fault = self._rng.choice(fitting) if fitting else None
        if isinstance(fault, DolmenError):
            raise fault
        if fault is Fault.UNAVAILABLE:
            raise Unavailable("the store can't be reached")
        if fault is Fault.CORRUPT:
            raise Corrupt(f"this copy of {name} is damaged and quarantined")
        return fault

    async def _read(self, reading: Awaitable[T]) -> T:
        result = await reading
        self._reached()
        return result

    async def _write(self, fault: Fault | None, act: Callable[[], Awaitable[T]]) -> T:
        if fault is Fault.LOST:
            raise OutcomeUnknown("the connection broke before the answer")
        result = await act()
        if self.down or fault is Fault.UNHEARD:
            raise OutcomeUnknown("the connection broke before the answer")
        return result

    def _reached(self) -> None:
        if self.down:
            raise Unavailable("the connection broke")

    async def write(self, write: Write) -> Put:
        """See `BlobStore.write`."""
        fault = await self._meet(_METHODS.get(write.kind, "put"), write.name)
        if fault is Fault.LOST:
            async for _ in write.payload:
                pass
        return await self._write(fault, lambda: self.store.write(write))

    async def get(self, name: str, *, byte_range: Range | None = None) -> Blob:
        """See `BlobStore.get`."""
        fault = await self._meet("get", name)
        blob = await self._read(self.store.get(name, byte_range=byte_range))
        return Blob(blob.info, self._spoiled(blob.payload, fault))

    def _spoiled(self, payload: Payload, fault: Fault | None) -> Payload:
        if fault is Fault.WRONG and payload.whole:
            return Bytes(_flipped(payload.whole))
        if fault is None and payload.whole is not None:
            return payload  # it has arrived already
        return Stream(
            payload.size, lambda: self._pieces(payload, fault), rereadable=payload.rereadable
        )

    async def _pieces(self, payload: Payload, fault: Fault | None) -> AsyncIterator[Piece]:
        left = payload.size // 2
        async for piece in payload:
            self._reached()
            if fault is Fault.WRONG:
                piece, fault = _flipped(piece), None
            if fault in (Fault.CUT, Fault.ROTTEN):
                piece = piece[:left]
                left -= len(piece)
            yield piece
            if not left and fault in (Fault.CUT, Fault.ROTTEN):
                break
        if fault is Fault.ROTTEN:
            raise Corrupt("a block of the blob fails its checksum")
        if fault is Fault.CUT:
            raise Unavailable("the connection broke")

    async def stat(self, name: str) -> BlobInfo:
        """See `BlobStore.stat`."""
        await self._meet("stat", name)
        return await self._read(self.store.stat(name))

    async def list(self, listing: Listing = EVERYTHING) -> AsyncIterator[BlobInfo]:
        """See `BlobStore.list`."""
        fault = await self._meet("quarantined" if listing.quarantined else "list")
        async for info in self._cut(self.store.list(listing), fault, Unavailable):
            yield info

    async def remove_many(
        self, removes: Sequence[Remove], *, min_age: float = 0, epoch: int | None = None
    ) -> Sequence[bool]:
        """See `BlobStore.remove_many`."""
        fault = await self._meet("remove_many")
        return await self._write(
            fault, lambda: self.store.remove_many(removes, min_age=min_age, epoch=epoch)
        )

    async def digests(self) -> Digests:
        """See `BlobStore.digests`."""
        await self._meet("digests")
        return await self._read(self.store.digests())

    async def get_many(self, names: Sequence[str]) -> AsyncIterator[Blob | Failed]:
        """See `BlobStore.get_many`."""
        fault = await self._meet("get_many")
        async for answer in self._cut(super().get_many(names), fault, Unavailable):
            yield answer

    async def write_many(self, writes: AsyncIterator[Write]) -> AsyncIterator[Put | Failed]:
        """See `BlobStore.write_many`."""
        fault = await self._meet("write_many")
        async for answer in self._cut(super().write_many(writes), fault, OutcomeUnknown):
            yield answer

    async def _cut(
        self, stream: AsyncIterator[T], fault: Fault | None, error: type[DolmenError]
    ) -> AsyncIterator[T]:
        count = 0
        try:
            async for item in stream:
                if self.down or (fault is Fault.CUT and count == CUT_AFTER):
                    raise error("the connection broke")
                count += 1
                yield item
            if fault is Fault.CUT:
                raise error("the connection broke")
        finally:
            if isinstance(stream, AsyncGenerator):
                await stream.aclose()

    async def note(self, key: str, value: bytes) -> None:
        """See `BlobStore.note`."""
        fault = await self._meet("note", key)
        await self._write(fault, lambda: self.store.note(key, value))

    async def notes(self) -> dict[str, bytes]:
        """See `BlobStore.notes`."""
        await self._meet("notes")
        return await self._read(self.store.notes())

    async def condition(self) -> Condition:
        """See `BlobStore.condition`."""
        await self._meet("condition")
        return await self._read(self.store.condition())

    async def aclose(self) -> None:
        """Close the store behind it, whatever is scripted."""
        await self.store.aclose()


def _flipped(data: Piece) -> bytes:
    return bytes((data[0] ^ 1,)) + bytes(data[1:])


def damage(store: MemoryStore, name: str) -> None:
    """Flip a bit of what a store in memory keeps under a name."""
    kept = store._partitions[partition_of(name)]  # noqa: SLF001 - behind its back
    info, data = kept[name]
    kept[name] = info, _flipped(data)

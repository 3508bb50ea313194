"""The contract every blob store keeps.

A store holds at most one blob, or the tombstone of one, under a name. What is written
here binds a dictionary in memory, a volume on disk, a database, another blob server and
a set of stores alike, and `dolmen.testing.conformance` checks it. Which of two writes of
a name wins is decided in `dolmen.resolve`.

**List order** is (partition, name): by `names.partition_of(name)`, names of one
partition in byte order.

Read first: `dolmen.names`, `dolmen.stamps`, `dolmen.record` (the kinds), `dolmen.payload`.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from dolmen import metadata
from dolmen.digests import Digests
from dolmen.errors import DolmenError
from dolmen.payload import EMPTY, Payload
from dolmen.record import Kind

NO_CHECKSUM = bytes(16)
"""The checksum of a tombstone, and of a blob on a store that keeps none."""
IDENTITY = "identity"
"""The note that tells stores apart: 32 hex digits, chosen when the store is made."""
ALL_PARTITIONS = range(65_536)
Range = tuple[int, int]
"""First byte and the one after the last, counted from the start of the blob."""


class Rank(NamedTuple):
    """Decides between two writes of one name; the higher one wins."""

    stamp: int
    kind: int
    checksum: bytes
    metadata_hash: bytes


@dataclass(slots=True)
class BlobInfo:
    """What a store knows of a blob without its bytes.

    `size` is in bytes; `kind` one of BLOB, MANIFEST, TOMBSTONE; `checksum` 16 bytes;
    `metadata` in the encoding of `dolmen.metadata`; `arrived` the second since 1970 in
    which this store took it or it was last touched, by this store's own clock.
    """

    name: str
    size: int
    kind: int
    stamp: int
    checksum: bytes
    metadata: bytes = b""
    arrived: int = 0

    @property
    def rank(self) -> Rank:
        """The rank of the write that left this."""
        return Rank(self.stamp, self.kind, self.checksum, metadata.hash_of(self.metadata))


@dataclass(slots=True)
class Blob:
    """A blob as it is read: what is known of it, and its bytes or the range asked for."""

    info: BlobInfo
    payload: Payload


@dataclass(slots=True)
class Write:
    """One write of one name.

    `kind` says what it does:

    - BLOB, MANIFEST: store the payload under the name. `checksum`, where the caller knows
      it, is compared with the data.
    - TOMBSTONE: delete the name, everywhere and also where it is absent. It has neither
      payload nor metadata.
    - TOUCH: raise stamp and metadata of the live blob of this `checksum`, without its
      body. It has a stamp.

    Without a `stamp` (a plain client) the store chooses one above the current one.
    """

    name: str
    payload: Payload = EMPTY
    kind: int = Kind.BLOB
    metadata: bytes = b""
    stamp: int | None = None
    checksum: bytes | None = None

    @classmethod
    def tombstone(cls, name: str, *, stamp: int | None = None) -> Write:
        """The delete of a name."""
        return cls(name, EMPTY, Kind.TOMBSTONE, b"", stamp)

    @classmethod
    def touch(cls, name: str, *, stamp: int, checksum: bytes, metadata: bytes = b"") -> Write:
        """A new stamp and metadata for the blob of this checksum."""
        return cls(name, EMPTY, Kind.TOUCH, metadata, stamp, checksum)

    @classmethod
    def copy(cls, blob: Blob) -> Write:
        """A blob, manifest or tombstone exactly as another store has it; or a touch."""
        info = blob.info
        unknown = info.checksum == NO_CHECKSUM and info.kind != Kind.TOUCH
        checksum = None if unknown else info.checksum
        return cls(info.name, blob.payload, info.kind, info.metadata, info.stamp, checksum)


class Outcome(enum.StrEnum):
    """What became of a write."""

    CREATED = "created"
    """It is current; what was there before, if anything, was something else or damaged."""
    UNCHANGED = "unchanged"
    """The same content was there already, and is sound; stamp and metadata are this write's."""
    SUPERSEDED = "superseded"
    """A write of a higher rank is current; nothing was changed."""


class Put(NamedTuple):
    """The answer to a write: what became of it, and the stamp that is now current."""

    outcome: Outcome
    stamp: int


@dataclass(slots=True)
class Failed:
    """One name of a bulk operation that did not work, and why."""

    name: str
    error: DolmenError


@dataclass(slots=True)
class Listing:
    """What to list: everything by default.

    `partitions` ascend. `after` begins behind that name's place in list order.
    `quarantined` lists the copies known to be damaged in place of the sound ones: they
    answer as `Corrupt` until a sound copy replaces them. A store that finds damage anew
    with every read knows of none.
    """

    partitions: Sequence[int] = ALL_PARTITIONS
    after: str | None = None
    prefix: str = ""
    tombstones: bool = False
    quarantined: bool = False


EVERYTHING = Listing()


class Remove(NamedTuple):
    """A copy to be dropped, if its stamp still is this one."""

    name: str
    if_stamp: int


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a kind of store promises. Pinned by a test for every engine."""

    durable: bool
    """A write that was answered survives a power cut. Others never count as a copy."""
    largest: int
    """The largest blob it keeps, in bytes."""
    digests: bool
    """It keeps digests itself; otherwise `digests()` lists everything."""
    ordered: bool
    """It lists in order by itself, without sorting."""
    conflicts: bool
    """Two plain puts of differing content under one name: exactly one gets `Conflict`.
    Otherwise the newer stamp wins and both may be answered as successful."""
    stamps: bool = True
    """It keeps stamps and tombstones. A plain sos blob server does not."""


@dataclass(slots=True)
class Condition:
    """How a store is doing. Sizes in bytes, None where the engine can't tell."""

    free: int | None = None
    total: int | None = None
    writable: bool = True
    reasons: list[str] = field(default_factory=list)
    """A sentence for every problem."""
    remarks: list[str] = field(default_factory=list)
    """A sentence for what is as configured, and good to know: what would not survive."""


class BlobStore(Protocol):
    """A blob store. Every method may raise `Unavailable` and, where it writes, `OutcomeUnknown`."""

    @property
    def capabilities(self) -> Capabilities:
        """What this store promises; a remote one may learn better."""
        ...

    def write(self, write: Write) -> Awaitable[Put]:
        """Carry out a write.

        When it returns, the write is as durable as `capabilities` promises and visible to
        every reader of the store. Nothing of a failed or cancelled write is ever visible.

        With a stamp, the rank decides (`dolmen.resolve`): higher than the current one, the
        write replaces whatever is there; lower, the answer is SUPERSEDED, and a writer who
        wants to be sure moves its clock past the stamp in the answer and writes again.
        Without a stamp, other content that is live under the name is a `Conflict`.

        UNCHANGED says that the same content was there and is sound: it was read back and
        checked, or was written again. Stamp and metadata were raised to this write's,
        durably: an identical put is a write, or a delete this store missed would later
        beat it. A tombstone that was there already is UNCHANGED too. Anything but
        SUPERSEDED sets the time of arrival of a blob to now.

        A touch raises `NotFound` when the blob is absent, deleted, damaged or of another
        checksum.

        Raises `InvalidName`, `Conflict`, `TooLarge`, `Full`, `ReadOnly`, `BadContent` (the
        payload was not what was announced, or not what the name says).
        """
        ...

    def get(self, name: str, *, byte_range: Range | None = None) -> Awaitable[Blob]:
        """Read a blob, or the bytes of a range that lies within it.

        Bytes are checked before they are handed out: the payload yields right bytes or
        raises `Corrupt`, never wrong or too few ones. A range is clipped to the blob's
        end. Raises `NotFound` (with the tombstone's stamp where there is one), `Corrupt`,
        `InvalidName`.
        """
        ...

    def stat(self, name: str) -> Awaitable[BlobInfo]:
        """What is known of a live blob.

        Raises `NotFound` (with the tombstone's stamp where there is one), `Corrupt` (this
        copy is quarantined), `InvalidName`.
        """
        ...

    def list(self, listing: Listing = EVERYTHING) -> AsyncIterator[BlobInfo]:
        """What is there, in list order, in constant memory.

        A name present throughout the listing appears exactly once; damaged copies appear
        only where the listing asks for them.
        """
        ...

    def get_many(self, names: Sequence[str]) -> AsyncIterator[Blob | Failed]:
        """Read many blobs, tombstones included, in the order asked, one answer a name."""
        ...

    def verify_many(self, names: Sequence[str]) -> AsyncIterator[BlobInfo | Failed]:
        """Read many blobs where they lie, each to its end; one answer a name, in the order asked.

        A sound one comes as what is known of it, tombstones included. One that is not the
        content of its checksum, or of a name that is a digest, fails with `Corrupt`.
        """
        ...

    def write_many(self, writes: AsyncIterator[Write]) -> AsyncIterator[Put | Failed]:
        """Carry out many writes; one answer a write, in order. Many are under way at once."""
        ...

    async def remove_many(
        self, removes: Sequence[Remove], *, min_age: float = 0, epoch: int | None = None
    ) -> Sequence[bool]:
        """Drop this store's own copies, without tombstones: whether each was, in the order asked.

        One goes only if its stamp still is `if_stamp` and it, or its last touch, arrived at
        least `min_age` seconds ago. Tombstones and damaged copies go as well. `epoch` is
        that of the configuration by which they are to go: `Outdated` when the store was
        given a higher one (`dolmen.stores.epoch`). A call that raises may have removed
        some; the rest can be asked for again.
        """
        ...

    async def digests(self) -> Digests:
        """Per partition what is there, tombstones included. Exact, the same in every engine."""
        ...

    async def note(self, key: str, value: bytes) -> None:
        """Keep a small fact about the store itself; neither listed nor replicated."""
        ...

    async def notes(self) -> dict[str, bytes]:
        """Every fact noted. `IDENTITY` is always among them and never changes."""
        ...

    async def condition(self) -> Condition:
        """How the store is doing; raises `Unavailable` when it can't be asked.

        `writable` says whether a write made now would be refused, and `reasons` why.
        """
        ...

    async def aclose(self) -> None:
        """Finish what is under way and let go of everything. May be called twice."""
        ...

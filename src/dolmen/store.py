"""The contract every blob store keeps.

A store holds at most one blob (or the tombstone of one) under a name. What is
written here binds a dictionary in memory, a volume on disk, a database, another
blob server and a set of stores alike, and `dolmen.testing.conformance` checks it.

**The newer stamp wins.** Every write carries a stamp (`dolmen.stamps`). For one
name the write with the highest *rank* stands everywhere, in whatever order the
writes arrive: rank is (stamp, kind, checksum, hash of the metadata), compared in
that order. So copies converge.

**List order** is (partition, name): by `names.partition_of(name)`, names of one
partition in byte order.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from dolmen import metadata
from dolmen.digests import Digests
from dolmen.errors import DolmenError
from dolmen.payload import Payload
from dolmen.record import Kind


class Outcome(enum.StrEnum):
    """What became of a write."""

    CREATED = "created"
    """It stands, and what stood before (if anything) was something else."""
    UNCHANGED = "unchanged"
    """The same content stood already; stamp and metadata are now at least this write's."""
    SUPERSEDED = "superseded"
    """A write of a higher rank stands; nothing was changed."""


class Put(NamedTuple):
    """The answer to a write: what became of it, and the stamp that now stands."""

    outcome: Outcome
    stamp: int


class Rank(NamedTuple):
    """Decides between two writes of one name; the higher one stands."""

    stamp: int
    kind: int
    checksum: bytes
    metadata_hash: bytes


@dataclass(slots=True)
class BlobInfo:
    """What a store knows of a blob without its bytes.

    `size` is in bytes; `kind` one of BLOB, MANIFEST, TOMBSTONE; `checksum` 16
    bytes; `metadata` in the encoding of `dolmen.metadata`; `arrived` the second
    since 1970 in which this store took it or was last touched.
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
        """The rank of the write that stands."""
        return rank(self.stamp, self.kind, self.checksum, self.metadata)


def rank(stamp: int, kind: int, checksum: bytes, meta: bytes) -> Rank:
    """The rank of a write, from its parts."""
    return Rank(stamp, kind, checksum, metadata.hash_of(meta))


@dataclass(slots=True)
class Blob:
    """A blob as it is read: what is known of it, and its bytes or the range asked for."""

    info: BlobInfo
    payload: Payload


@dataclass(slots=True)
class Failed:
    """One name of a bulk operation that did not work, and why."""

    name: str
    error: DolmenError


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a kind of store promises. Pinned by a test for every engine."""

    durable: bool
    """What a put answered for survives a power cut. Others never count as a copy."""
    largest: int
    """The largest blob it keeps, in bytes."""
    digests: bool
    """It keeps digests itself; otherwise `digests()` lists everything."""
    ordered: bool
    """It lists in order by itself, without sorting."""
    conflicts: bool
    """Two plain puts of differing content under one name: exactly one gets `Conflict`.
    Otherwise the newer stamp wins and both may be told they succeeded."""
    stamps: bool = True
    """It keeps stamps and tombstones. A plain sos blob server does not."""


@dataclass(slots=True)
class Condition:
    """How a store is doing. Sizes in bytes, None where the engine can't tell."""

    free: int | None = None
    total: int | None = None
    writable: bool = True
    reasons: list[str] = field(default_factory=list)
    """A sentence for everything that is not as it should be."""
    remarks: list[str] = field(default_factory=list)
    """A sentence for what is as it was set up, and good to know: what would not survive."""


class Remove(NamedTuple):
    """A copy to be dropped, if its stamp still is this one."""

    name: str
    if_stamp: int


ALL_PARTITIONS = range(65_536)
Range = tuple[int, int]
"""First byte and the one after the last, counted from the start of the blob."""


class BlobStore(Protocol):
    """A blob store. Every method may raise `Unavailable` and, where it writes, `OutcomeUnknown`."""

    capabilities: Capabilities

    async def put(
        self,
        name: str,
        payload: Payload,
        *,
        meta: bytes = b"",
        stamp: int | None = None,
        kind: Kind = Kind.BLOB,
        checksum: bytes | None = None,
    ) -> Put:
        """Keep a blob. `kind` is BLOB or MANIFEST.

        When it returns, the blob is as durable as `capabilities` promises and
        visible to every reader of the store. Nothing of a failed or cancelled put
        is ever visible.

        With a stamp, the rank decides: higher than what stands, it replaces
        whatever that is; lower, the answer is SUPERSEDED, and a writer who wants
        to be sure moves its clock past the stamp in the answer and writes again.
        Where the content stands already at a lower rank the answer is UNCHANGED,
        and its stamp and metadata are raised to this write's, durably: an
        identical put is a write, or a delete this store missed would later beat it.

        Without a stamp (a plain client) other content that is live under the name
        is a `Conflict`; otherwise the put gets a stamp above what stands.

        `checksum`, where the caller knows it, is compared with the data.

        Raises `InvalidName`, `Conflict`, `TooLarge`, `Full`, `ReadOnly`,
        `BadContent` (the payload was not what was announced).
        """
        ...

    async def get(self, name: str, *, byte_range: Range | None = None) -> Blob:
        """Read a blob, or the bytes of a range that lies within it.

        Bytes are checked before they are handed out: the payload yields right
        bytes or raises `Corrupt`, never wrong or too few ones. A range is clipped
        to the blob's end. Raises `NotFound` (with the tombstone's stamp where
        there is one), `Corrupt`, `InvalidName`.
        """
        ...

    async def stat(self, name: str, *, tombstones: bool = False) -> BlobInfo:
        """What is known of a blob; with `tombstones` also of a deleted one.

        Raises `NotFound`, `Corrupt` (this copy is quarantined), `InvalidName`.
        """
        ...

    async def touch(self, name: str, *, stamp: int, checksum: bytes, meta: bytes) -> Put:
        """Raise stamp and metadata of the live blob with this checksum, durably, without its body.

        UNCHANGED when they stand as given, SUPERSEDED when a higher rank does. Unless
        superseded, its time of arrival is now.
        Raises `NotFound` when the blob is absent, deleted, damaged or of another
        checksum.
        """
        ...

    def list(
        self,
        *,
        partitions: Iterable[int] = ALL_PARTITIONS,
        after: str | None = None,
        prefix: str = "",
        tombstones: bool = False,
    ) -> AsyncIterator[BlobInfo]:
        """What stands, in list order, in constant memory.

        `partitions` ascend. `after` begins behind that name's place in list order.
        A name present throughout the listing appears exactly once; damaged
        copies do not appear.
        """
        ...

    def quarantined(self) -> AsyncIterator[str]:
        """The names of copies that are known to be damaged, in list order.

        They answer as `Corrupt` until a sound copy replaces them. A store that finds
        damage anew with every read knows of none.
        """
        ...

    async def delete(self, name: str, *, stamp: int | None = None) -> Put:
        """Leave a tombstone: deleted everywhere. Absent names get one too.

        CREATED; UNCHANGED when that tombstone stood; SUPERSEDED when something of
        a higher rank stands (with its stamp, for the caller to repeat above it).
        Raises `InvalidName`, also for the stamp 0.
        """
        ...

    async def remove(self, name: str, *, if_stamp: int, min_age: float = 0) -> bool:
        """Drop this store's own copy, without a tombstone.

        Only if its stamp still is `if_stamp` and it, or its last touch, arrived
        at least `min_age` seconds ago; returns whether it did. Tombstones can be
        removed this way as well.
        """
        ...

    async def remove_many(
        self, removes: Sequence[Remove], *, min_age: float = 0, epoch: int | None = None
    ) -> Sequence[bool]:
        """`remove` for many names at once: whether each was, in the order asked.

        `epoch` is that of the configuration by which they are to go: `Outdated` when the
        store has been told of a higher one (`dolmen.stores.epoch`). What raises may have
        removed some; the rest can be asked for again.
        """
        ...

    async def digests(self) -> Digests:
        """Per partition what stands, tombstones included. Exact, the same in every engine."""
        ...

    def get_many(self, names: Sequence[str]) -> AsyncIterator[Blob | Failed]:
        """Read many blobs, tombstones included, in the order asked, one answer a name."""
        ...

    def verify_many(self, names: Sequence[str]) -> AsyncIterator[BlobInfo | Failed]:
        """Read many blobs where they lie, each to its end; one answer a name, in the order asked.

        What is sound comes as what is known of it, tombstones included. What is not the
        content of its checksum, or of a name that is a digest, fails with `Corrupt`.
        """
        ...

    def put_many(self, blobs: AsyncIterator[Blob]) -> AsyncIterator[Put | Failed]:
        """Write many blobs as they are: stamps, kinds (also TOMBSTONE) and metadata kept.

        One answer a blob, in order. Many are under way at once. A tombstone has a
        stamp above 0 and neither data nor metadata, or fails with `BadContent`.
        """
        ...

    async def note(self, key: str, value: bytes) -> None:
        """Keep a small fact about the store itself; neither listed nor replicated."""
        ...

    async def notes(self) -> dict[str, bytes]:
        """Every fact noted."""
        ...

    async def condition(self) -> Condition:
        """How the store is doing; raises `Unavailable` when it can't be asked."""
        ...

    async def aclose(self) -> None:
        """Finish what is under way and let go of everything. May be called twice."""
        ...

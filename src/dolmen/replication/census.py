"""Which chunks the manifests of a cluster name: read from all of them, in bounded memory.

Every live manifest on any server counts, also one that a newer write on another server
overrules: what it names is let go of when it is gone. The names of the chunks go to
temporary files, one for every 256 partitions, and come back a file at a time.

While that goes on, repair may move a manifest from a server that should not hold it to
those that should. It removes the one after it verified the others. So what stands where it
should not is read first and what stands where it should after that, of all servers: whatever is
moved is seen by one of the two readings.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from dolmen.closing import closing
from dolmen.cluster.groups import Member
from dolmen.cluster.manifest import decode
from dolmen.cluster.placement import Placement
from dolmen.errors import Corrupt, DolmenError, NotFound, Unavailable
from dolmen.names import CHUNK_PREFIX, is_chunk_name, partition_of
from dolmen.payload import read_whole
from dolmen.record import Kind
from dolmen.replication.patience import Pause, Stopped, ask
from dolmen.replication.side_by_side import naming, side_by_side
from dolmen.store import ALL_PARTITIONS, BlobInfo, BlobStore, Listing

BUCKETS = 256
WIDTH = len(ALL_PARTITIONS) // BUCKETS
"""Partitions of a bucket."""
_DIGEST = 32


class Unread(NamedTuple):
    """A manifest of which no copy can be read: nobody knows what it names."""

    name: str
    error: DolmenError


class Census(ExitStack):
    """The chunks named by manifests, by bucket. A context, at whose end the files go."""

    def __init__(self) -> None:
        super().__init__()
        self._files = [
            self.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - as long as the context
            for _ in range(BUCKETS)
        ]
        self.manifests = 0
        """How many manifests were read."""

    def add(self, chunks: Sequence[str]) -> None:
        """Take in what a manifest names."""
        self.manifests += 1
        for name in chunks:
            digest = bytes.fromhex(name.removeprefix(CHUNK_PREFIX))
            self._files[partition_of(name) // WIDTH].write(digest)

    def named(self, bucket: int) -> set[str]:
        """The names of the chunks in a bucket."""
        file = self._files[bucket]
        file.seek(0)
        data = file.read()
        return {CHUNK_PREFIX + data[at : at + _DIGEST].hex() for at in range(0, len(data), _DIGEST)}


def partitions_of_bucket(bucket: int) -> range:
    """The partitions whose chunks are in a bucket."""
    return range(bucket * WIDTH, (bucket + 1) * WIDTH)


async def take(
    census: Census, members: Mapping[str, Member], placement: Placement, pause: Pause
) -> Sequence[Unread]:
    """Read every manifest of every server; returns those that can't be read.

    Raises `Stopped`, which says who failed: what can't be listed in full can't be counted.
    """
    unread: dict[str, DolmenError] = {}
    async with closing(manifests(members, placement, pause)) as found:
        async for info, holders in found:
            try:
                census.add(await chunks_of(info, holders))
            except DolmenError as error:
                unread[info.name] = error
    for name, member in members.items():
        for damaged in await quarantined(name, member.store, pause):
            unread.setdefault(damaged, Corrupt(f"the copy on {name} is quarantined"))
    return [
        Unread(name, error)
        for name, error in unread.items()
        if not await _made_up_for(name, census, members, pause)
    ]


async def manifests(
    members: Mapping[str, Member], placement: Placement, pause: Pause
) -> AsyncIterator[tuple[BlobInfo, Sequence[Member]]]:
    """Every live manifest with the servers that hold it: misplaced ones first, then the others."""
    stores = {name: member.store for name, member in members.items()}
    misplaced: dict[str, list[int]] = {name: [] for name in members}
    rightful: dict[str, list[int]] = {name: [] for name in members}
    for at in ALL_PARTITIONS:
        should = placement.of(at).rightful
        for name, member in members.items():
            (rightful if member in should else misplaced)[name].append(at)
    for partitions in (misplaced, rightful):
        async with closing(side_by_side(stores, partitions=partitions, pause=pause)) as names:
            async for held in names:
                versions: dict[bytes, tuple[BlobInfo, list[Member]]] = {}
                for which, info in held.items():
                    if info.kind == Kind.MANIFEST:
                        versions.setdefault(info.checksum, (info, []))[1].append(members[which])
                for version in versions.values():
                    yield version


async def chunks_of(info: BlobInfo, holders: Sequence[Member]) -> Sequence[str]:
    """The chunks that a manifest names, from whichever of its holders has it sound.

    None where it was replaced meanwhile: what took its place has chunks of its own, which are
    younger than any grace time. Raises what the last of them answered.
    """
    failed: DolmenError | None = None
    for member in holders:
        try:
            blob = await member.store.get(info.name)
            if blob.info.kind != Kind.MANIFEST:
                return ()
            return decode(await read_whole(blob.payload)).chunks
        except NotFound:
            continue
        except DolmenError as error:
            failed = error
    if failed is not None:
        raise failed
    return ()


async def quarantined(which: str, store: BlobStore, pause: Pause) -> Sequence[str]:
    """The names of a server's copies that are known to be damaged."""

    async def names() -> Sequence[str]:
        async with closing(store.list(Listing(quarantined=True))) as found:
            return [info.name async for info in found]

    with naming(which):
        return await ask(names, side="source", pause=pause)


async def _made_up_for(
    name: str, census: Census, members: Mapping[str, Member], pause: Pause
) -> bool:
    """Whether the object of a damaged copy can be had from another, whose chunks count then.

    A tombstone elsewhere does not do: the damaged copy may be the newer one. Repair puts the
    tombstone in its place where it is not.
    """
    if is_chunk_name(name):
        return True
    sound = False
    for which, member in members.items():
        try:
            with naming(which):
                stat = partial(member.store.stat, name)
                info = await ask(stat, side="source", pause=pause)
        except Stopped as stopped:
            if isinstance(stopped.error, NotFound | Corrupt):
                continue
            raise
        if info.kind != Kind.MANIFEST:
            sound = sound or info.kind == Kind.BLOB
            continue
        try:
            census.add(await chunks_of(info, [member]))
        except (Corrupt, Unavailable):
            continue
        sound = True
    return sound

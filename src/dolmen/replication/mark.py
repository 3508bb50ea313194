"""Marking: which chunks the manifests of a cluster name, read from all of them in bounded memory.

Every live manifest on any server counts, also one that a newer write on another server
overrules: what it names is let go of when it is gone. The names of the chunks go to temporary
files, one for every 256 partitions, and come back a file at a time.

While that goes on, repair may move a manifest from a server that should not hold it to those
that should. It removes the one after it verified the others. So misplaced manifests are read
first and rightful ones after that, of all servers: whatever is moved is seen by one of the two
readings.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from dolmen.closing import closing
from dolmen.cluster.groups import Group
from dolmen.cluster.manifest import decode
from dolmen.cluster.placement import Placement
from dolmen.errors import Corrupt, DolmenError, NotFound, Unavailable
from dolmen.names import CHUNK_PREFIX, is_chunk_name, partition_of
from dolmen.payload import read_whole
from dolmen.record import Kind
from dolmen.replication.compare import listed
from dolmen.store import ALL_PARTITIONS, BlobInfo, BlobStore, Listing
from dolmen.stores.retrying import Pause, Retrying, ServerFailed

BUCKETS = 256
_WIDTH = len(ALL_PARTITIONS) // BUCKETS
_DIGEST = 32


class Unread(NamedTuple):
    """A manifest of which no copy can be read: nobody knows what it names."""

    name: str
    error: DolmenError


class Marks(ExitStack):
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
            self._files[partition_of(name) // _WIDTH].write(digest)

    def named(self, bucket: int) -> set[str]:
        """The names of the chunks in a bucket."""
        file = self._files[bucket]
        file.seek(0)
        data = file.read()
        return {CHUNK_PREFIX + data[at : at + _DIGEST].hex() for at in range(0, len(data), _DIGEST)}


def partitions_of_bucket(bucket: int) -> range:
    """The partitions whose chunks are in a bucket."""
    return range(bucket * _WIDTH, (bucket + 1) * _WIDTH)


class Servers:
    """All servers of a cluster, asked until they answer (`stores`), and who should hold what."""

    def __init__(self, groups: Sequence[Group], pause: Pause) -> None:
        self.members = {member.name: member for group in groups for member in group.members}
        self.stores = {n: Retrying(m.store, n, pause=pause) for n, m in self.members.items()}
        self.placement = Placement(groups)

    async def mark(self, marks: Marks) -> Sequence[Unread]:
        """Read every manifest of every server; returns those that can't be read.

        Raises `ServerFailed`: what can't be listed in full can't be counted.
        """
        unread: dict[str, DolmenError] = {}
        async with closing(self.manifests()) as found:
            async for info, holders in found:
                try:
                    marks.add(await chunks_of(info, holders))
                except DolmenError as error:
                    unread[info.name] = error
        for name, store in self.stores.items():
            async with closing(store.list(Listing(quarantined=True))) as infos:
                async for info in infos:
                    damaged = Corrupt(f"the copy on {name} is quarantined")
                    unread.setdefault(info.name, damaged)
        return [
            Unread(name, error)
            for name, error in unread.items()
            if not (is_chunk_name(name) or await self._made_up_for(name, marks))
        ]

    async def manifests(self) -> AsyncIterator[tuple[BlobInfo, Sequence[BlobStore]]]:
        """Every live manifest with the stores that hold it: misplaced ones first."""
        stray = {name: await self._stray(name) for name in self.stores}
        first = {name: sorted(partitions) for name, partitions in stray.items()}
        async with closing(listed(self.stores, first)) as names:
            async for held in names:
                for version in _versions(held, self.stores):
                    yield version
        async with closing(listed(self.stores)) as names:
            async for held in names:
                at = partition_of(next(iter(held.values())).name)
                rest = {which: info for which, info in held.items() if at not in stray[which]}
                for version in _versions(rest, self.stores):
                    yield version

    async def _stray(self, name: str) -> frozenset[int]:
        """The partitions of which a server holds something and should not."""
        member, held = self.members[name], (await self.stores[name].digests()).counts
        return frozenset(at for at in held if member not in self.placement.of(at).rightful)

    async def _made_up_for(self, name: str, marks: Marks) -> bool:
        """Whether the object of a damaged copy can be had from another, whose chunks count then.

        A tombstone elsewhere does not do: the damaged copy may be the newer one. Repair puts
        the tombstone in its place where it is not.
        """
        sound = False
        for store in self.stores.values():
            try:
                info = await store.stat(name)
                if info.kind == Kind.MANIFEST:
                    marks.add(await chunks_of(info, [store]))
                sound = True
            except ServerFailed:
                raise
            except (NotFound, Corrupt, Unavailable):
                continue
        return sound


def _versions(
    held: Mapping[str, BlobInfo], stores: Mapping[str, BlobStore]
) -> Sequence[tuple[BlobInfo, Sequence[BlobStore]]]:
    """The differing manifests under a name, each with its holders."""
    versions: dict[bytes, tuple[BlobInfo, list[BlobStore]]] = {}
    for which, info in held.items():
        if info.kind == Kind.MANIFEST:
            versions.setdefault(info.checksum, (info, []))[1].append(stores[which])
    return [*versions.values()]


async def chunks_of(info: BlobInfo, holders: Sequence[BlobStore]) -> Sequence[str]:
    """The chunks that a manifest names, from whichever of its holders has it sound.

    None where it was replaced meanwhile: what took its place has chunks of its own, which are
    younger than any grace time. Raises what the last of them answered.
    """
    failed: DolmenError | None = None
    for store in holders:
        try:
            blob = await store.get(info.name)
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

"""Reading from a cluster: members are asked in placement order until one answers.

What is handed out has been checked against its name. "Not there" is said only when every
member said so, and those that should have it said so again, since repair moves copies meanwhile;
a tombstone is a "no" that also overrules older copies on others. A member that could not be asked,
or whose copy is damaged, makes the answer `Unavailable`, never `NotFound`. Members that rest are
asked last, or not at all (`dolmen.cluster.breaker`); behind those that are often late the next one
is asked as well (`dolmen.cluster.hedging`). What a member should have had is made up for behind
the answer (`dolmen.cluster.mending`).
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace

from dolmen.cluster.asking import Failures, told
from dolmen.cluster.groups import Member
from dolmen.cluster.hedging import SMALL
from dolmen.cluster.manifest import CHUNK
from dolmen.cluster.members import Members
from dolmen.cluster.mending import Lack
from dolmen.cluster.placement import Place
from dolmen.cluster.verify import verified
from dolmen.digests import Digests, Slot, entry_hash
from dolmen.errors import Corrupt, DolmenError, NotFound, Unavailable
from dolmen.names import check_name, is_chunk_name, partition_of
from dolmen.record import Kind
from dolmen.store import EVERYTHING, Blob, BlobInfo, Listing, Range


class Reading(Members):
    """The reads of the contract."""

    async def get(self, name: str, *, byte_range: Range | None = None) -> Blob:
        """See `BlobStore.get`."""
        check_name(name)
        place = self.placement.of(partition_of(name))
        breaker = self.breaker
        deleted = 0
        failures: Failures = []
        lacks: list[Lack] = []
        hedging = self.hedging
        if hedging.gray and byte_range is None and self._is_hedged(name, place.order):
            raced = await hedging.race(place.order[0], place.order[1], name)
            if raced is not None:
                return raced
        for member in self._to_ask(place, failures):
            began = hedging.now()
            try:
                blob = await member.store.get(name, byte_range=byte_range)
                if deleted and blob.info.stamp <= deleted:
                    continue
                if byte_range is not None and blob.info.size <= CHUNK:
                    # Only the whole can be checked against its name.
                    blob = await member.store.get(name)
                good = await verified(blob, byte_range)
            except NotFound as absent:
                deleted = max(deleted, absent.stamp)
                lacks.append(Lack(member, absent))
                breaker.failed(member, absent)
            except DolmenError as error:
                failures.append((member.name, error))
                breaker.failed(member, error, began)
                if isinstance(error, Corrupt):
                    lacks.append(Lack(member, error))
            else:
                if breaker.troubles:
                    breaker.answered(member)
                if good is not None:
                    if lacks:
                        self.mending.offer(name, member, lacks, place)
                    if blob.info.size <= SMALL:
                        hedging.took(member, hedging.now() - began)
                    return good
                wrong = Corrupt(f"its copy of {name} has other content than the name says")
                failures.append((member.name, wrong))
                lacks.append(Lack(member, blob.info))
        raise _absent(name, deleted, failures)

    def _to_ask(self, place: Place, failures: Failures) -> Iterator[Member]:
        """Whom to ask for a blob until one has it; `failures` are those met meanwhile."""
        breaker = self.breaker
        yield from breaker.reading(place.order, failures) if breaker.troubles else place.order
        if not failures:
            yield from place.again

    def _is_hedged(self, name: str, order: Sequence[Member]) -> bool:
        if self.breaker.troubles or len(order) < 2 or is_chunk_name(name):
            return False
        return order[0].name in self.hedging.gray

    async def stat(self, name: str) -> BlobInfo:
        """See `BlobStore.stat`."""
        check_name(name)
        place = self.placement.of(partition_of(name))
        breaker = self.breaker
        deleted = 0
        failures: Failures = []
        for member in self._to_ask(place, failures):
            began = self.hedging.now()
            try:
                info = await member.store.stat(name)
            except NotFound as absent:
                breaker.failed(member, absent, began)
                deleted = max(deleted, absent.stamp)
                continue
            except DolmenError as error:
                breaker.failed(member, error, began)
                failures.append((member.name, error))
                continue
            if breaker.troubles:
                breaker.answered(member)
            if info.stamp > deleted:
                return info
        raise _absent(name, deleted, failures)

    async def list(self, listing: Listing = EVERYTHING) -> AsyncIterator[BlobInfo]:
        """See `BlobStore.list`: merged over all members, of each name what ranks highest.

        Raises `Unavailable` when a member can't be asked, since names might be missing.
        """
        asked = replace(listing, tombstones=True)
        listings = [member.store.list(asked) for member in self.members]
        heap: list[tuple[int, str, int, BlobInfo]] = []

        async def advance(which: int) -> None:
            info = await anext(listings[which], None)
            if info is not None:
                heapq.heappush(heap, (partition_of(info.name), info.name, which, info))

        for which in range(len(listings)):
            await advance(which)
        while heap:
            _, name, which, best = heapq.heappop(heap)
            await advance(which)
            while heap and heap[0][1] == name:
                _, _, which, info = heapq.heappop(heap)
                best = max(best, info, key=lambda found: found.rank)
                await advance(which)
            if listing.tombstones or best.kind != Kind.TOMBSTONE:
                yield best

    async def digests(self) -> Digests:
        """See `BlobStore.digests`: worked out from a listing of everything."""
        slots: dict[int, Slot] = {}
        async for info in self.list(Listing(tombstones=True)):
            entry = entry_hash(
                info.name.encode(), info.stamp, info.kind, info.checksum, info.metadata
            )
            slots.setdefault(partition_of(info.name), Slot()).add(info.size, entry)
        return Digests(slots)


def _absent(name: str, deleted: int, failures: Failures) -> DolmenError:
    if not failures:
        return NotFound(f"{name} is on none of the servers", stamp=deleted)
    return Unavailable(f"{name} may exist, but not every server could be asked ({told(failures)})")

"""What a server that an archive is brought to lacks of it, and gets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from dolmen.closing import closing
from dolmen.cluster.groups import Member
from dolmen.cluster.placement import Placement
from dolmen.errors import Corrupt
from dolmen.names import partition_of
from dolmen.pace import Pace
from dolmen.replication.compare import Difference, Followed, difference
from dolmen.replication.copy import Copier
from dolmen.replication.horizon import DOUBTFUL
from dolmen.replication.manifests import AT_ONCE, renewed, stat_all
from dolmen.replication.patience import Pause, ask, listing
from dolmen.replication.report import Report
from dolmen.replication.side_by_side import naming
from dolmen.stamps import format_stamp
from dolmen.store import ALL_PARTITIONS, Blob, BlobInfo, Capabilities, Failed, Listing
from dolmen.stores.horizon import HORIZON, NO_HORIZONS, Horizons, horizon_in

T = TypeVar("T")


class Held:
    """The blobs of a batch, as a store to copy from."""

    capabilities = Capabilities(
        durable=False, largest=0, digests=False, ordered=False, conflicts=False
    )

    def __init__(self) -> None:
        self.blobs: Mapping[str, Blob] = {}

    async def get_many(self, names: Sequence[str]) -> AsyncIterator[Blob | Failed]:
        """Those of these names, each as often as it is asked for."""
        for name in names:
            blob = self.blobs[name]
            yield Blob(blob.info, blob.payload)


class Receiver:
    """One server, and what it got so far."""

    def __init__(
        self, member: Member, placement: Placement, held: Held, pace: Pace, pause: Pause
    ) -> None:
        self.name = member.name
        self.report = Report()
        self.waiting: Sequence[Difference] = []
        """What is to be written to it of the current batch."""
        self.listing = listing(member.store, ALL_PARTITIONS, side="destination", pause=pause)
        self._member, self._store, self._placement = member, member.store, placement
        self._followed = Followed(self.listing)
        self._copier = Copier(held, member.store, self.report, pace, pause)
        self._pause = pause
        self._horizons = NO_HORIZONS

    async def begin(self, horizon: int, *, rejoin: bool) -> None:
        """Learn what was forgotten here. `horizon` is the archive's."""
        if not self._store.capabilities.stamps:
            return
        with naming(self.name):
            own = horizon_in(await self._ask(self._store.notes))
            if horizon > own and await self._ask(self._is_empty):
                noted = format_stamp(horizon).encode()
                await self._ask(lambda: self._store.note(HORIZON, noted))
                own = horizon
        self._horizons = Horizons(horizon, own, rejoin)

    async def compare(self, infos: Sequence[BlobInfo]) -> None:
        """Find out which of these it should hold and lacks, or has at a lower rank."""
        mine = [info for info in infos if self._rightful(info.name)]
        with naming(self.name):
            standing = await self._standing(mine)
        stamped = self._store.capabilities.stamps
        found = [
            difference(
                info, standing.get(info.name), self._horizons, stamped=stamped, ranked=stamped
            )
            for info in mine
        ]
        self.report.compared += len(mine)
        self.waiting = [each for each in found if each and not each.doubtful]
        for each in found:
            if each and each.doubtful:
                self.report.refuse(each.info.name, DOUBTFUL, reason="MayBeDeleted")

    async def renew(self, chunks: Iterable[str], stand: set[str]) -> None:
        """Make those chunks young that it has and should hold, and add them to what stands."""
        mine = [chunk for chunk in chunks if self._rightful(chunk)]
        with naming(self.name):
            for at in range(0, len(mine), AT_ONCE):
                some = mine[at : at + AT_ONCE]
                for info in await stat_all(self._store, some, "destination", self._pause):
                    if info is not None and await renewed(self._store, info, self._pause):
                        stand.add(info.name)

    def refuse(self, lacking: Mapping[str, str]) -> None:
        """Leave out what waits and names a chunk that is nowhere: these, with the chunk."""
        for each in self.waiting:
            if chunk := lacking.get(each.info.name):
                why = Corrupt(f"no server has its chunk {chunk}: import the archive again")
                self.report.refuse(each.info.name, why, reason="ChunkMissing")
        self.waiting = [each for each in self.waiting if each.info.name not in lacking]

    async def bring(self) -> None:
        """Write what is waiting."""
        with naming(self.name):
            await self._copier.bring(self.waiting)

    def _rightful(self, name: str) -> bool:
        return self._member in self._placement.of(partition_of(name)).rightful

    async def _standing(self, infos: Sequence[BlobInfo]) -> Mapping[str, BlobInfo | None]:
        """What stands: from the listing as long as names come in its order, else asked for."""
        standing: dict[str, BlobInfo | None] = {}
        passed = []
        for info in infos:
            if self._followed.behind(info.name):
                passed.append(info.name)
            else:
                standing[info.name] = await self._followed.find(info.name)
        for at in range(0, len(passed), AT_ONCE):
            some = passed[at : at + AT_ONCE]
            found = await stat_all(self._store, some, "destination", self._pause)
            standing |= zip(some, found, strict=True)
        return standing

    async def _is_empty(self) -> bool:
        async with closing(self._store.list(Listing(tombstones=True))) as infos:
            return await anext(infos, None) is None

    async def _ask(self, question: Callable[[], Awaitable[T]]) -> T:
        return await ask(question, side="destination", pause=self._pause)

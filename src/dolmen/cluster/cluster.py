"""A set of stores that is a store.

- `dolmen.cluster.writing`: writes go to several members, until enough have taken them.
- `dolmen.cluster.reading`: reads ask the members in turn; what is handed out is checked, and
  what could not be asked is never taken for "not there".
- `dolmen.cluster.breaker`: whom to ask last.
- `dolmen.cluster.hedging`: when a second member is asked for a read.
- `dolmen.cluster.mending`: copies that a read missed are made behind the answer.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from dolmen.cluster.asking import each, fail
from dolmen.cluster.groups import Group, Member
from dolmen.cluster.manifest import MANIFEST_MAX
from dolmen.cluster.reading import Reading
from dolmen.cluster.writing import Writing
from dolmen.errors import DolmenError, NotFound
from dolmen.names import partition_of
from dolmen.record import Kind
from dolmen.resolve import check_key
from dolmen.stamps import Clock
from dolmen.store import NO_CHECKSUM, BlobInfo, Capabilities, Condition
from dolmen.stores.base import OneByOne


class Cluster(Writing, Reading, OneByOne):
    """Groups of stores as one store for blobs of up to 16 MiB."""

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        clock: Clock | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(groups, clock=clock, now=now)
        self.capabilities = Capabilities(
            durable=all(member.store.capabilities.durable for member in self.members),
            largest=MANIFEST_MAX,
            digests=False,
            ordered=True,
            conflicts=False,
        )

    async def copies_of(self, name: str) -> Sequence[tuple[Member, BlobInfo | DolmenError]]:
        """What each member says of a name, in placement order."""
        found: deque[tuple[Member, BlobInfo | DolmenError]] = deque()
        for member in self.placement.of(partition_of(name)).order:
            try:
                found.append((member, await member.store.stat(name)))
            except NotFound as absent:
                deleted = BlobInfo(name, 0, Kind.TOMBSTONE, absent.stamp, NO_CHECKSUM)
                found.append((member, deleted if absent.stamp else absent))
            except DolmenError as error:
                found.append((member, error))
        return found

    async def note(self, key: str, value: bytes) -> None:
        """See `BlobStore.note`: on every member."""
        check_key(key)
        _, failures = await each(self.members, lambda member: member.store.note(key, value))
        if failures:
            fail("the note could not be kept everywhere", failures)

    async def notes(self) -> dict[str, bytes]:
        """See `BlobStore.notes`: those of all members together."""
        answers, failures = await each(self.members, lambda member: member.store.notes())
        if failures:
            fail("the notes could not be read everywhere", failures)
        return {key: value for notes in answers for key, value in notes.items()}

    async def condition(self) -> Condition:
        """See `BlobStore.condition`: of all members together."""

        async def ask(member: Member) -> Condition:
            condition = await member.store.condition()
            self.breaker.told(member, condition)
            return condition

        answers, failures = await each(self.members, ask)
        return Condition(
            sum(answer.free or 0 for answer in answers) or None,
            sum(answer.total or 0 for answer in answers) or None,
            writable=any(answer.writable for answer in answers),
            reasons=[f"{name}: {error}" for name, error in failures]
            + [reason for answer in answers for reason in answer.reasons],
            remarks=[remark for answer in answers for remark in answer.remarks],
        )

    async def aclose(self) -> None:
        """See `BlobStore.aclose`. Copies that were still to be made are left to repair."""
        await self.mending.aclose()
        for member in self.members:
            await member.store.aclose()

"""The ledger: the heads in a bucket, which of them there are and what they hold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from dolmen import metadata
from dolmen.errors import Corrupt, DolmenError, InvalidName, Unavailable
from dolmen.names import check_name, checksum_of, partition_of
from dolmen.store import BlobInfo
from dolmen.stores.objects.bucket import PAGE, Bucket
from dolmen.stores.objects.head import Head, folder_of, head_of, heads_of

ROUNDS = 5
"""How often to look again where what was seen is gone before it was read."""
_WORTH_A_PAGE = 64
"""Names; so many small listings at once take the time of a large one, but cost as many times."""


class Ledger:
    """Heads, looked up and added. `now` returns seconds since 1970."""

    def __init__(self, bucket: Bucket, now: Callable[[], float]) -> None:
        self._bucket, self._now = bucket, now

    async def look(self, name: str) -> list[Head]:
        """The heads of a name, the one that stands last."""
        return heads_of(await self._bucket.all(folder_of("heads", name))).get(name, [])

    async def look_up(self, names: Iterable[str]) -> dict[str, list[Head]]:
        """The heads of names that are about to be read or written.

        A page of the listing tells of all names between its first key and its last: of
        names that come in list order, of many. Those for which it is not worth it, and those
        that could not be asked for, are left out.
        """
        found: dict[str, list[Head]] = {}
        places = sorted({(partition_of(name), name) for name in names if _is_name(name)})
        while self._bucket.ordered and len(places) >= _WORTH_A_PAGE:
            folders = [folder_of("heads", name) for _, name in places]
            try:
                page: Sequence[str] = await anext(self._bucket.list("heads", folders[0]), [])
            except DolmenError:
                break
            told = heads_of(page)
            # The last name of a full page may have more heads on the next.
            end = page[-1].rpartition("/")[0] if len(page) == PAGE else "heads0"
            count = sum(folder < end for folder in folders)
            found |= {name: told.get(name, []) for _, name in places[:count]}
            places = places[count:]
            if count < _WORTH_A_PAGE:
                break
        return found

    async def stored(self, head: Head) -> tuple[bytes, memoryview] | None:
        """The metadata of a head and the data in its object, checked; None where it is gone."""
        inside = 0 if head.data else head.size
        if head.metadata is not None and not inside:
            return head.metadata, memoryview(b"")
        body = await self._bucket.get(head.path)
        if body is None:
            return None
        split = len(body) - inside
        meta, data = bytes(body[: max(split, 0)]), body[max(split, 0) :]
        whole = split >= 0 if head.metadata is None else split == 0
        told = meta if head.metadata is None else head.metadata
        if (
            not whole
            or metadata.hash_of(told) != head.metadata_hash
            or (inside and checksum_of(data) != head.checksum)
        ):
            raise await self.quarantined(head)
        return told, data

    async def info(self, head: Head) -> BlobInfo | None:
        """What a head tells; None where it is gone."""
        if head.metadata is not None or head.damaged:
            return head.info(head.metadata or b"")
        stored = await self.stored(head)
        return None if stored is None else head.info(stored[0])

    async def standing(
        self, name: str, heads: Sequence[Head] | None = None
    ) -> tuple[Sequence[Head], BlobInfo | None]:
        """The heads of a name (`heads`, where they were just looked up), and what stands."""
        for _ in range(ROUNDS):
            if heads is None:
                heads = await self.look(name)
            if not heads:
                return heads, None
            try:
                if (info := await self.info(heads[-1])) is not None:
                    return heads, info
            except Corrupt:
                pass  # from now on it is known to be
            heads = None
        raise restless(name)

    async def quarantined(self, head: Head) -> DolmenError:
        """What to raise for a head whose data is not what was stored. Marks it."""
        heads = [one for one in await self.look(head.name) if one.id == head.id]
        if not heads:
            return Unavailable(f"{head.name} was replaced while it was read; read it again")
        for one in heads:
            await self._bucket.put(one.mark, b"")
        return Corrupt(f"{head.name} is damaged in {self._bucket.url}")

    async def add(self, info: BlobInfo, id_: str, data: bytes | memoryview = b"") -> None:
        """Let a write stand. Whoever gives it up waits until it is known whether it does."""
        info.arrived = int(self._now())
        head = head_of(info, id_)
        body = data if head.metadata is not None else info.metadata + bytes(data)
        putting = asyncio.ensure_future(self._bucket.put(head.path, body))
        try:
            await asyncio.shield(putting)
        except asyncio.CancelledError:
            await asyncio.gather(putting, return_exceptions=True)
            raise


def restless(name: str) -> Unavailable:
    """What to raise where it never comes to rest."""
    return Unavailable(f"{name} is being written by others all the time; try again")


def _is_name(name: str) -> bool:
    try:
        return bool(check_name(name))
    except InvalidName:
        return False

"""Objects deleted and uploaded again while servers were away, replicated in every order."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections.abc import AsyncIterator
from itertools import combinations, permutations, product
from pathlib import Path

from dolmen.cluster.cluster import Cluster
from dolmen.cluster.groups import Member, make_group
from dolmen.cluster.objects import Objects
from dolmen.errors import NotFound, Unavailable
from dolmen.http import start_server
from dolmen.payload import read_whole
from dolmen.replication import replicate
from dolmen.servers.blob import BlobServer
from dolmen.store import BlobStore
from dolmen.stores import open_store
from dolmen.stores.memory import MemoryStore
from dolmen.stores.volume import open_volume

PAIRS = list(permutations(range(3), 2))
AWAY = [(), *combinations(range(3), 1)]
"""Which of the three servers may be away at each step."""
STORIES = [
    (steps, away)
    for steps in (("delete", "upload"), ("delete", "upload", "delete"), ("delete",))
    for away in product(AWAY, repeat=len(steps))
]


class Reached:
    """A store that can be away: then nothing reaches it."""

    def __init__(self, store: BlobStore) -> None:
        self.store, self.away = store, False

    def __getattr__(self, name: str) -> object:
        if self.away and name != "capabilities":
            raise Unavailable("away")
        return getattr(self.store, name)


async def happen(
    stores: list[Reached], objects: Objects, rng: random.Random
) -> list[tuple[str, bytes | None]]:
    """Every story on an object of its own; returns what must stand of each in the end.

    What goes on while the same servers are away goes on at once: objects know nothing of
    each other.
    """
    contents = [rng.randbytes(rng.choice((0, 100, 5_000))) + rng.randbytes(8) for _ in STORIES]
    ids = [hashlib.sha256(data).hexdigest() for data in contents]

    async def upload(story: int) -> None:
        await objects.upload(None, whole=contents[story])  # type: ignore[arg-type]

    await asyncio.gather(*map(upload, range(len(STORIES))))
    for step, gone in product(range(3), AWAY):
        for number in gone:
            stores[number].away = True
        await asyncio.gather(
            *(
                objects.delete(ids[story]) if steps[step] == "delete" else upload(story)
                for story, (steps, away) in enumerate(STORIES)
                if away[step : step + 1] == (gone,)
            )
        )
        for store in stores:
            store.away = False
    return [
        (object_id, data if steps[-1] == "upload" else None)
        for object_id, data, (steps, _) in zip(ids, contents, STORIES, strict=True)
    ]


async def standing(store: BlobStore, object_id: str) -> bytes | None:
    """What the store holds; None when it knows of the delete."""
    try:
        return bytes(await read_whole((await store.get(object_id)).payload))
    except NotFound as absent:
        if not absent.stamp:
            raise
        return None


async def check(stores: list[Reached], ends: list[tuple[str, bytes | None]]) -> None:
    """Each server alone gives what must stand, and all three hold the same."""
    for store in stores:
        assert [(each, await standing(store.store, each)) for each, _ in ends] == ends
    digests = [(await store.store.digests()).root for store in stores]
    assert digests == digests[:1] * 3


async def trial(stores: list[Reached], order: tuple[tuple[int, int], ...], seed: int) -> None:
    members = [Member(f"m{number}", store) for number, store in enumerate(stores)]  # type: ignore[arg-type]
    group = make_group("g", members, volatile=True, copies=3, write_copies=3, min_copies=2)
    ends = await happen(stores, Objects(Cluster([group])), random.Random(seed))
    for source, destination in order:
        report = await replicate(stores[source].store, stores[destination].store)
        assert report.complete
    await check(stores, ends)


async def test_what_was_last_asked_for_stands_whatever_the_order_of_replication() -> None:
    """All orders but for the names of servers: any other one is one of these with others' names,
    and for the stories all servers are alike.
    """
    for seed, others in enumerate(permutations(PAIRS[1:])):
        order = (PAIRS[0], *others)
        await trial([Reached(MemoryStore()) for _ in range(3)], order, seed)


@contextlib.asynccontextmanager
async def blob_server(folder: Path) -> AsyncIterator[Reached]:
    async with contextlib.AsyncExitStack() as leaving:
        volume = await open_volume(str(folder))
        leaving.push_async_callback(volume.aclose)
        server = await start_server(BlobServer(volume, describes="volume:test").handle)
        leaving.push_async_callback(server.close)
        store = await open_store(f"http://127.0.0.1:{server.addresses[0][1]}")
        leaving.push_async_callback(store.aclose)
        yield Reached(store)


async def test_the_same_between_blob_servers_on_volumes(tmp_path: Path) -> None:
    rng = random.Random(5)
    async with contextlib.AsyncExitStack() as leaving:
        stores = [
            await leaving.enter_async_context(blob_server(tmp_path / str(number)))
            for number in range(3)
        ]
        for seed in range(5):
            await trial(stores, tuple(rng.sample(PAIRS, len(PAIRS))), seed)

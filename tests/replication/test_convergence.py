"""Whatever was written where, and whatever failed on the way, replication ends in equality."""

from __future__ import annotations

import asyncio
import contextlib
import random
from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from dolmen.errors import Conflict, Unavailable
from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.replication import replicate, replicate_group
from dolmen.stamps import COUNTER_BITS, Clock
from dolmen.store import BlobStore
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls
from dolmen.testing.faulty import Fault, FaultyStore
from replication.setting import no_time

DAY_MS = 86_400_000
NAMES = [f"n{number}" for number in range(8)]
CONTENT = [b"", b"one", b"two", b"x" * 3_000]
META = [b"", b"\x01\x01\x00ab"]

operations = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["put", "put", "delete", "remove"]),
        st.sampled_from(NAMES),
        st.sampled_from(CONTENT),
        st.sampled_from(META),
        st.sampled_from([Kind.BLOB, Kind.MANIFEST]),
        st.one_of(st.none(), st.integers(0, 4)),
    ),
    max_size=40,
)
Operations = list[tuple[int, str, str, bytes, bytes, Kind, int | None]]


def clocks() -> list[MemoryStore]:
    """Three stores whose clocks are days apart."""
    walls = [(20_000 + days) * DAY_MS for days in (0, 3, -5)]
    return [MemoryStore(clock=Clock(lambda wall=wall: wall)) for wall in walls]


async def act(stores: list[MemoryStore], todo: Operations) -> None:
    for which, what, name, data, meta, kind, ticks in todo:
        store = stores[which]
        # Few distinct stamps, so that equal ones meet.
        stamp = None if ticks is None else (20_000 * DAY_MS + ticks) << COUNTER_BITS
        with contextlib.suppress(Conflict, Unavailable):
            if what == "put":
                await calls.put(store, name, Bytes(data), meta=meta, stamp=stamp, kind=kind)
            elif what == "delete":
                await calls.delete(store, name, stamp=stamp)
            else:
                standing = [info async for info in calls.listing(store, tombstones=True)]
                for info in standing:
                    if info.name == name:
                        await calls.remove(store, name, if_stamp=info.stamp)


async def highest(stores: list[MemoryStore]) -> dict[str, tuple[object, bytes]]:
    """What the rank says should stand, computed without replication."""
    found: dict[str, tuple[object, bytes]] = {}
    for store in stores:
        async for info in calls.listing(store, tombstones=True):
            if info.name not in found or info.rank > found[info.name][0]:
                found[info.name] = (info.rank, info.metadata)
    return found


async def standing(store: BlobStore) -> dict[str, tuple[object, bytes]]:
    return {
        info.name: (info.rank, info.metadata)
        async for info in calls.listing(store, tombstones=True)
    }


@given(operations, st.permutations(list(permutations(range(3), 2))))
def test_pairs_in_any_order_until_quiet_hold_the_highest_rank_of_everything(
    todo: Operations, order: list[tuple[int, int]]
) -> None:
    async def run() -> None:
        stores = clocks()
        await act(stores, todo)
        wanted = await highest(stores)
        for _ in range(3):
            for origin, target in order:
                report = await replicate(stores[origin], stores[target], pause=no_time)
                assert report.complete
                assert report.compared == report.total == (await stores[origin].digests()).count
        roots = {(await store.digests()).root for store in stores}
        assert len(roots) == 1
        for store in stores:
            assert await standing(store) == wanted
            async for info in store.list():
                data = (await store.get(info.name)).payload.whole
                assert data is not None
                assert bytes(data) in CONTENT

    asyncio.run(run())


@given(operations)
def test_one_round_brings_a_group_to_equality_and_a_second_finds_nothing(todo: Operations) -> None:
    async def run() -> None:
        stores = clocks()
        await act(stores, todo)
        wanted = await highest(stores)
        named = dict(zip("abc", stores, strict=True))
        assert (await replicate_group(named, pause=no_time)).complete
        for store in stores:
            assert await standing(store) == wanted
        again = await replicate_group(named, pause=no_time)
        assert again.complete
        assert all(run.copied == run.touched == run.tombstones == 0 for run in again.runs.values())

    asyncio.run(run())


@given(operations, st.integers(0, 2**32), st.sampled_from([0.05, 0.2, 0.5]))
def test_after_any_failures_running_again_gives_the_same_end(
    todo: Operations, seed: int, rate: float
) -> None:
    async def run() -> None:
        stores = clocks()
        await act(stores, todo)
        wanted = await highest(stores[:2])
        before = await standing(stores[0])
        source, destination = FaultyStore(stores[0]), FaultyStore(stores[1])
        rng = random.Random(seed)
        for faulty in (source, destination):
            faulty.at_random(rng, rate, among=set(Fault) - {Fault.WRONG})
        for _ in range(3):
            report = await replicate(source, destination, pause=no_time)
            if report.complete:
                assert await standing(stores[1]) == wanted
        for faulty in (source, destination):
            faulty.at_random(rng, 0)
        assert (await replicate(source, destination, pause=no_time)).complete
        assert await standing(stores[1]) == wanted
        assert await standing(stores[0]) == before

    asyncio.run(run())


@given(operations, st.integers(1, 60))
def test_cancelled_anywhere_and_run_again_gives_the_same_end(todo: Operations, step: int) -> None:
    async def run() -> None:
        stores = clocks()
        await act(stores, todo)
        wanted = await highest(stores[:2])
        source, destination = FaultyStore(stores[0]), FaultyStore(stores[1])
        steps = 0
        reached = asyncio.Event()

        async def count(_method: str, _name: str) -> None:
            nonlocal steps
            steps += 1
            if steps == step:
                reached.set()
                await asyncio.Event().wait()

        source.pause = destination.pause = count
        task = asyncio.create_task(replicate(source, destination, pause=no_time))
        held = asyncio.create_task(reached.wait())
        await asyncio.wait({task, held}, return_when=asyncio.FIRST_COMPLETED)
        task.cancel()
        held.cancel()
        await asyncio.gather(task, held, return_exceptions=True)
        assert not [left for left in asyncio.all_tasks() if left is not asyncio.current_task()]
        source.pause = destination.pause = None
        assert (await replicate(source, destination, pause=no_time)).complete
        assert await standing(stores[1]) == wanted

    asyncio.run(run())

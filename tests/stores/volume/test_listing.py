"""Lists of a volume: in order and whole, whatever is merged, written and damaged meanwhile."""

import asyncio
import random

import pytest

from dolmen.errors import Unavailable
from dolmen.names import partition_of
from dolmen.payload import Bytes
from dolmen.stores.volume import listing, open_volume


def in_order(names) -> list[str]:
    return sorted(names, key=lambda name: (partition_of(name), name))


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch):
    monkeypatch.setattr(listing, "PAGE", 7)


async def test_names_that_stay_appear_once_while_others_come_and_go(tmp_path):
    store = await open_volume(str(tmp_path / "v"), segment_size=1 << 20)
    rng = random.Random(1)
    staying = [f"stays{number}" for number in range(200)]
    await asyncio.gather(*(store.put(name, Bytes(b"data")) for name in staying))

    async def change() -> None:
        for _ in range(400):
            name = f"goes{rng.randrange(40)}"
            if rng.random() < 0.5:
                await store.put(name, Bytes(b"data"))
            else:
                put = await store.delete(name)
                await store.remove(name, if_stamp=put.stamp)
            kept = rng.choice(staying)
            info = await store.stat(kept)
            await store.touch(kept, stamp=info.stamp + 1, checksum=info.checksum, meta=b"")

    changing = asyncio.ensure_future(change())
    rounds = 0
    while not changing.done():
        listed = [info.name async for info in store.list()]
        assert listed == in_order(listed)
        assert [name for name in listed if name.startswith("stays")] == in_order(staying)
        rounds += 1
    await changing
    assert rounds > 1
    await store.aclose()


async def test_what_was_answered_before_is_listed_at_once(tmp_path):
    store = await open_volume(str(tmp_path / "v"), apart=True)
    for number in range(60):
        await store.put(f"n{number}", Bytes(b"data"))
        if number % 3 == 0:
            await store.delete(f"n{number}")
        listed = [info.name async for info in store.list()]
        assert listed == in_order(f"n{n}" for n in range(number + 1) if n % 3)
        assert (await store.digests()).count == number + 1
    await store.aclose()


@pytest.mark.parametrize("after", ["n5", "absent", None])
@pytest.mark.parametrize("partitions", [range(65_536), range(100, 40_000), [1, 2, 5, 60_000]])
async def test_a_part_of_the_list_is_that_part_of_the_whole(tmp_path, after, partitions):
    store = await open_volume(str(tmp_path / "v"))
    names = [f"n{number}" for number in range(50)]
    if not isinstance(partitions, range):
        partitions = sorted({partition_of(name) for name in names[::3]})
    for name in names:
        await store.put(name, Bytes(b"data"))
    beyond = (partition_of(after), after) if after else (-1, "")
    wanted = [
        name
        for name in in_order(names)
        if partition_of(name) in partitions and (partition_of(name), name) > beyond
    ]
    listed = [info.name async for info in store.list(partitions=partitions, after=after)]
    assert listed == wanted
    await store.aclose()


async def test_a_list_under_which_the_volume_is_closed_says_so(tmp_path):
    store = await open_volume(str(tmp_path / "v"))
    for number in range(50):
        await store.put(f"n{number}", Bytes(b"data"))
    listing = store.list()
    await anext(listing)
    await store.aclose()
    with pytest.raises(Unavailable):
        [info async for info in listing]


async def test_many_scattered_partitions_cost_few_ways_to_the_index(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "PAGE", 100)
    store = await open_volume(str(tmp_path / "v"))
    names = [f"n{number}" for number in range(300)]
    await asyncio.gather(*(store.put(name, Bytes(b"data")) for name in names))
    wanted = sorted({partition_of(name) for name in names[::2]})
    pages = []
    page = store._index.page
    monkeypatch.setattr(store._index, "page", lambda *args: pages.append(1) or page(*args))
    listed = [info.name async for info in store.list(partitions=wanted)]
    assert listed == in_order(name for name in names if partition_of(name) in wanted)
    assert len(pages) == 2
    await store.aclose()

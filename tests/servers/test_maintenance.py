"""A server keeps up the volume it has open: space comes back, damage is found, and it says so."""

import asyncio
import random

from dolmen.config import Settings
from dolmen.payload import Bytes, read_whole
from dolmen.servers.maintenance import Maintenance
from dolmen.store import Listing, Write
from dolmen.stores.scrub import scrub_in
from dolmen.stores.volume import open_volume
from dolmen.stores.volume.compaction import compaction_in


async def test_a_volume_is_compacted_and_scrubbed_beside_its_requests(tmp_path):
    rng = random.Random(1)
    store = await open_volume(str(tmp_path / "v"), segment_size=1 << 20)
    held = {f"n{number}": rng.randbytes(100_000) for number in range(60)}
    for name, data in held.items():
        await store.write(Write(name, Bytes(data)))
    for number in range(60):
        if number % 5:
            await store.write(Write.tombstone(f"n{number}"))
            del held[f"n{number}"]
    entry = store._live("n0")
    with open(store.folder.file(entry.data[0], ".seg"), "r+b") as file:
        file.seek(entry.data_at(b"n0"))
        file.write(b"damaged")
    upkeep = Maintenance(store, Settings())
    async with asyncio.timeout(60):
        while True:
            notes = await store.notes()
            compacted, scrubbed = compaction_in(notes), scrub_in(notes)
            if compacted and compacted.reclaimed and scrubbed and scrubbed.ended:
                break
            await asyncio.sleep(0.01)
    del held["n0"]
    for name, data in held.items():
        assert bytes(await read_whole((await store.get(name)).payload)) == data
    assert [info.name async for info in store.list(Listing(quarantined=True))] == ["n0"]
    await upkeep.aclose()
    figures = {figure.name: figure.value for figure in upkeep.figures()}
    assert figures["dolmen_compaction_reclaimed_bytes"] > 3_500_000
    assert figures["dolmen_compaction_failing"] == 0
    assert figures["dolmen_scrub_checked"] == 11 or figures["dolmen_scrub_checked"] == 12
    await store.aclose()


async def test_scrubbing_can_be_switched_off(tmp_path):
    store = await open_volume(str(tmp_path / "v"))
    off = Settings.model_validate({"scrub": {"every_days": 0.0}})
    upkeep = Maintenance(store, off)
    await asyncio.sleep(0)
    assert len(upkeep._repeating) == 1
    await upkeep.aclose()
    await store.aclose()

"""Replicators and servers killed anywhere, two replicators at once: everything ends in equality."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

from dolmen.cluster.manifest import CHUNK, Manifest
from dolmen.errors import NotFound
from dolmen.names import checksum_of, chunk_name
from dolmen.payload import Bytes, read_whole
from dolmen.record import Kind
from dolmen.stamps import wall_ms
from dolmen.store import NO_CHECKSUM, BlobInfo, BlobStore, Rank
from dolmen.stores import open_store
from dolmen.testing import calls

NAMES = 120
DAY = wall_ms() - 3_600_000 << 16  # deletes of long ago would be forgotten

Written = dict[str, tuple[Rank, bytes | None]]
"""Rank and content (None: deleted) of the highest write of each name."""


async def write(
    store: BlobStore, told: Written, name: str, stamp: int, data: bytes | None, kind: Kind
) -> None:
    if data is None:
        await calls.delete(store, name, stamp=stamp)
        placed = BlobInfo(name, 0, Kind.TOMBSTONE, stamp, NO_CHECKSUM).rank
    else:
        await calls.put(store, name, Bytes(data), stamp=stamp, kind=kind)
        placed = BlobInfo(name, len(data), kind, stamp, checksum_of(data)).rank
    if name not in told or placed > told[name][0]:
        told[name] = placed, data


async def scatter(stores: list[BlobStore], rng: random.Random) -> Written:
    """Puts, deletes and uploads again of every name, each on one server or two."""
    told: Written = {}
    for number in range(NAMES):
        versions = [rng.randbytes(rng.choice((0, 10, 3_000))) for _ in range(2)]
        for _ in range(rng.randint(1, 5)):
            data = rng.choice((*versions, None))
            stamp = DAY + rng.randint(1, 4)
            for store in rng.sample(stores, rng.randint(1, 2)):
                await write(store, told, f"n{number}", stamp, data, Kind.BLOB)
    for number in range(3):
        chunks = [rng.randbytes(CHUNK), rng.randbytes(1_000_000)]
        names = [chunk_name(chunk) for chunk in chunks]
        for name, chunk in zip(names, chunks, strict=True):
            await write(rng.choice(stores), told, name, DAY + 1, chunk, Kind.BLOB)
        manifest = Manifest(sum(map(len, chunks)), names).encode()
        await write(stores[number], told, f"large-{number}", DAY + 2, manifest, Kind.MANIFEST)
        await write(stores[number], told, f"whole-{number}", DAY, rng.randbytes(6 << 20), Kind.BLOB)
    return told


async def entries(stores: list[BlobStore]) -> int:
    return sum([(await store.digests()).count for store in stores])


async def check(store: BlobStore, told: Written) -> None:
    for name, (placed, data) in told.items():
        info = await calls.current(store, name)
        assert info.rank == placed, name
        try:
            found = bytes(await read_whole((await store.get(name)).payload))
        except NotFound:
            assert data is None
        else:
            assert found == data, name


async def test_killed_anywhere_and_run_again_everything_converges(
    dolmen: Any, blob_server: Any, answering: Any
) -> None:
    rng = random.Random(11)
    servers = [await blob_server(f"volume:{name}") for name in "abc"]
    urls = [url for url, _ in servers]
    processes = [process for _, process in servers]
    (dolmen.folder / "sos.conf").write_text("\n".join(urls))
    async with contextlib.AsyncExitStack() as leaving:
        stores: list[BlobStore] = []
        for url in urls:
            stores.append(await open_store(url))
            leaving.push_async_callback(stores[-1].aclose)
        told = await scatter(stores, rng)
        for _ in range(3):
            runs = [await dolmen.start("replicate", "--config", "sos.conf") for _ in range(2)]
            victim = rng.randrange(3)
            goal = await entries(stores) + rng.randint(1, 40)
            while None in (run.returncode for run in runs) and await entries(stores) < goal:
                await asyncio.sleep(0)
            processes[victim].kill()
            with contextlib.suppress(ProcessLookupError):  # it was through
                runs[0].kill()
            await processes[victim].wait()
            for run in runs:
                await run.communicate()
            listen = urls[victim].removeprefix("http://")
            processes[victim] = await dolmen.start(
                "blob-server", "--store", f"volume:{'abc'[victim]}", "--listen", listen
            )
            await answering(urls[victim])
        both = [await dolmen.start("replicate", "--config", "sos.conf") for _ in range(2)]
        for run in both:
            out, err = await run.communicate()
            assert run.returncode == 0, (out, err)
        roots = {(await store.digests()).root for store in stores}
        assert len(roots) == 1
        for store in stores:
            await check(store, told)

"""A plain sos blob server is used by what it has: a list, HEAD, GET and POST.

A dolmen blob server speaks all of that as well, so it stands in for one.
"""

import asyncio
import contextlib

import pytest

from dolmen.errors import NotFound, ReadOnly, Unavailable
from dolmen.http import Client, start_server
from dolmen.names import partition_of
from dolmen.payload import Bytes, Stream, read_whole
from dolmen.record import Kind
from dolmen.servers.blob import BlobServer
from dolmen.store import Listing, Outcome
from dolmen.stores.memory import MemoryStore
from dolmen.stores.sos import SosStore
from dolmen.testing import calls
from dolmen.testing.conformance.material import content, names


@pytest.fixture
async def both():
    """The store of a server, and the server as a plain sos one."""
    memory = MemoryStore()
    async with contextlib.AsyncExitStack() as leaving:
        server = await start_server(BlobServer(memory, describes="memory:").handle)
        leaving.push_async_callback(server.close)
        port = server.addresses[0][1]
        sos = SosStore(f"127.0.0.1:{port}", Client("127.0.0.1", port))
        leaving.push_async_callback(sos.aclose)
        yield memory, sos


async def test_what_is_put_is_there(both):
    memory, sos = both
    assert (await calls.put(sos, "a", Bytes(b"abcdef"))).outcome is Outcome.CREATED
    assert (await calls.put(sos, "a", Bytes(b"abcdef"))).outcome is Outcome.UNCHANGED
    assert await content(memory, "a") == await content(sos, "a") == b"abcdef"
    assert await read_whole((await sos.get("a", byte_range=(2, 4))).payload) == b"cd"
    info = await sos.stat("a")
    assert (info.size, info.stamp, info.kind) == (6, 0, Kind.BLOB)
    for read in (sos.get, sos.stat):
        with pytest.raises(NotFound):
            await read("b")


async def test_names_are_listed_in_order_behind_a_cursor(both):
    memory, sos = both
    for number in range(30):
        await calls.put(memory, f"n{number}", Bytes(b"x"))
    ordered = sorted((f"n{number}" for number in range(30)), key=lambda n: (partition_of(n), n))
    assert await names(sos.list()) == ordered
    behind = [info.name async for info in sos.list(Listing(after=ordered[9], prefix="n1"))]
    assert behind == [name for name in ordered[10:] if name.startswith("n1")]


async def test_a_payload_that_fails_after_its_last_byte_is_not_stored(both):
    memory, sos = both

    async def pieces():
        yield b"abc"
        yield b"def"
        for _ in range(1000):  # turns of the loop in which the server would take what it has
            await asyncio.sleep(0)
        raise Unavailable("its source is gone")

    with pytest.raises(Unavailable, match="its source is gone"):
        await calls.put(sos, "a", Stream(6, pieces))
    with pytest.raises(NotFound):
        await memory.stat("a")


async def test_what_it_can_not_do_is_refused(both):
    memory, sos = both
    await calls.put(memory, "a", Bytes(b"x"))
    for refused in (
        calls.put(sos, "m", Bytes(b"x"), kind=Kind.MANIFEST),
        calls.delete(sos, "a"),
        calls.touch(sos, "a", stamp=1, checksum=bytes(16)),
        calls.remove(sos, "a", if_stamp=1),
        sos.digests(),
        sos.notes(),
        sos.note("key", b"value"),
    ):
        with pytest.raises(ReadOnly, match="plain sos blob server"):
            await refused
    assert await content(memory, "a") == b"x"

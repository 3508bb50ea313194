"""Buckets that are not there, refuse, stall, die, come back, are full, or give back rubbish."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Self

import pytest

from dolmen.errors import BadSetting, Corrupt, Full, NotFound, OutcomeUnknown, Unavailable
from dolmen.metadata import encode
from dolmen.names import checksum_of
from dolmen.payload import Bytes, Piece, Stream
from dolmen.store import BlobStore, Outcome
from dolmen.stores import open_store
from dolmen.stores.objects import ObjectsStore
from dolmen.stores.objects.parts import PART
from dolmen.testing.conformance import Time
from dolmen.testing.conformance.material import at, content, names, noise
from engines.azurite import Azurite
from engines.buckets import everything, opened
from engines.moto import Moto
from engines.programs import free_port
from engines.rclone import Rclone

SHORT, LONG = encode([(b"a", b"b")]), encode([(b"a", bytes(200))])  # in the key, in the object


@pytest.fixture
def own_rclone(tmp_path: Path) -> Iterator[Rclone]:
    """One for a test that does things to it."""
    with Rclone(tmp_path / "rclone") as server:
        yield server


def calls(store: BlobStore) -> dict[str, Callable[[], Awaitable[object]]]:
    async def listed() -> list[str]:
        return await names(store.list())

    return {
        "get": lambda: store.get("name"),
        "stat": lambda: store.stat("name"),
        "list": listed,
        "digests": store.digests,
        "notes": store.notes,
        "condition": store.condition,
        "put": lambda: store.put("name", Bytes(b"data")),
        "put large": lambda: store.put("name", Bytes(bytes(100_000))),
        "touch": lambda: store.touch("name", stamp=at(2), checksum=bytes(16), meta=b""),
        "delete": lambda: store.delete("name"),
        "remove": lambda: store.remove("name", if_stamp=at(1)),
        "note": lambda: store.note("key", b"value"),
    }


async def refused(store: BlobStore, match: str) -> None:
    """Every call says the same of it."""
    for call in calls(store).values():
        with pytest.raises(Unavailable, match=match):
            await call()


async def test_a_wrong_bucket_is_told_at_once(rclone: Rclone, moto: Moto, azurite: Azurite) -> None:
    urls = [
        rclone.url("x", bucket="nowhere"),
        moto.absent("nowhere"),
        azurite.url("x", container="nowhere"),
    ]
    for url in urls:
        with pytest.raises(BadSetting, match=r"nowhere.* is not there .*: create it, or mend"):
            await open_store(url)
        await refused(opened(url, Time()), "is not there")


async def test_a_wrong_key_is_told_at_once_and_never_shown(
    rclone: Rclone, azurite: Azurite
) -> None:
    for url in (rclone.url("x", secret="d3Jvbmc="), azurite.url("x", key="d3Jvbmc=")):
        with pytest.raises(BadSetting, match="refuses who is asking") as caught:
            await open_store(url)
        assert "d3Jvbmc" not in str(caught.value)
        await refused(opened(url, Time()), "refuses who is asking")


async def test_nobody_listening_is_unavailable_until_somebody_does(tmp_path: Path) -> None:
    server = Rclone(tmp_path)
    server.port = free_port()
    store = await open_store(server.url("x"))
    await refused(store, "can't be reached")
    with server:
        assert (await store.put("name", Bytes(b"data"))).outcome is Outcome.CREATED
        assert await content(store, "name") == b"data"
    await refused(store, "can't be reached")
    await store.aclose()


async def test_a_server_killed_in_mid_put_shows_no_half_of_it(own_rclone: Rclone) -> None:
    data = noise(3 * PART + 7)
    store = opened(own_rclone.url("x"), Time())
    await store.put("before", Bytes(b"before"), stamp=at(1))

    async def opened_() -> AsyncIterator[Piece]:
        yield data[: PART + 1]
        while not await everything(store._bucket) or len(await everything(store._bucket)) < 2:
            await asyncio.sleep(0)  # a part is on its way
        own_rclone.kill()
        yield data[PART + 1 :]

    with pytest.raises(Unavailable):
        await store.put("name", Stream(len(data), opened_))
    own_rclone.start()
    assert await names(store.list(tombstones=True)) == ["before"]
    with pytest.raises(NotFound):
        await store.get("name")
    assert (await store.put("name", Bytes(data))).outcome is Outcome.CREATED
    assert await content(store, "name") == data
    await store.aclose()


async def test_a_server_that_stalls_is_given_up(own_rclone: Rclone) -> None:
    store = opened(own_rclone.url("x") + "&timeout=500ms", Time())
    await store.put("name", Bytes(b"data"), stamp=at(1))
    heads, standing = await store._ledger.standing("name")
    assert standing is not None
    own_rclone.signal(signal.SIGSTOP)
    for what in ("get", "put", "put large"):
        with pytest.raises(Unavailable):
            await calls(store)[what]()
    standing.stamp = at(2)
    with pytest.raises(OutcomeUnknown):  # the head was sent
        await store._ledger.add(standing, heads[-1].id, b"data")
    own_rclone.signal(signal.SIGCONT)
    assert await content(store, "name") == b"data"
    await store.aclose()


async def test_closing_waits_for_what_is_being_written(own_rclone: Rclone) -> None:
    store = opened(own_rclone.url("x"), Time())
    await store.put("warm", Bytes(b"x"))
    put = asyncio.ensure_future(store.put("name", Bytes(noise(PART))))
    await asyncio.sleep(0)
    await store.aclose()
    assert put.done()
    assert (await put).outcome is Outcome.CREATED
    for call in calls(store).values():
        with pytest.raises(Unavailable, match="closed"):
            await call()


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "lose", "grow"])
@pytest.mark.parametrize("meta", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("size", [10, 100_000, 3_000_000])
async def test_damage_is_told_and_healed_by_a_put(
    tmp_path: Path, size: int, meta: bytes, harm: str
) -> None:
    store = opened(f"file://{tmp_path}", Time())
    data = noise(size)
    await store.put("name", Bytes(data), stamp=at(1), meta=meta)
    await store.put("other", Bytes(b"other"), stamp=at(1))
    kept = "heads" if size <= 65_536 else "data"
    (path,) = [
        path
        for path in await everything(store._bucket)
        if path.startswith(kept) and "/name!/" in path
    ]
    file = tmp_path / path
    whole = file.read_bytes()
    changed = {
        "flip": whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:],
        "cut": whole[:-1],
        "empty": b"",
        "grow": whole + b"x",
    }
    if harm != "lose":
        file.write_bytes(changed[harm])
    elif kept == "data":
        file.unlink()
    else:
        return  # a head that is lost is not there
    with pytest.raises(Corrupt):
        await content(store, "name")
    again = opened(f"file://{tmp_path}", Time())
    for call in (again.get, again.stat):
        with pytest.raises(Corrupt):
            await call("name")
    with pytest.raises(NotFound):
        await again.touch("name", stamp=at(2), checksum=checksum_of(data), meta=b"")
    assert await names(again.list()) == ["other"]
    assert (await again.digests()).count == 1
    answer = await again.put("name", Bytes(data), stamp=at(1), meta=meta)
    assert answer == (Outcome.CREATED, at(1))
    assert await content(again, "name") == data
    assert sorted(await names(again.list())) == ["name", "other"]


async def test_a_bucket_that_lists_in_no_order_is_told_of(tmp_path: Path) -> None:
    """A folder does not; here it says that it does."""
    store = opened(f"file://{tmp_path}", Time())
    for number in range(100):
        await store.put(f"n{number}", Bytes(b""))
    store._bucket.ordered = True
    with pytest.raises(Unavailable, match="does not list in order"):
        await names(store.list())


async def test_a_range_past_a_damaged_block_reads_well(tmp_path: Path) -> None:
    store = opened(f"file://{tmp_path}", Time())
    data = noise(3_000_000)
    await store.put("name", Bytes(data))
    (path,) = [path for path in await everything(store._bucket) if path.startswith("data")]
    whole = (tmp_path / path).read_bytes()
    (tmp_path / path).write_bytes(b"x" + whole[1:])
    blob = await store.get("name", byte_range=(1_000_000, 1_000_010))
    assert blob.payload.whole == data[1_000_000:1_000_010]
    with pytest.raises(Corrupt):
        await store.get("name", byte_range=(0, 10))


async def test_a_full_disk_takes_no_puts_and_gives_what_it_has(tmp_path: Path) -> None:
    """In a process that may write no more than 1 MB to a file, which takes no privilege."""
    code = f"""
import asyncio, resource, signal
from engines.buckets import opened
from dolmen.errors import Full
from dolmen.payload import Bytes
from dolmen.testing.conformance import Time

async def main():
    store = opened("file://{tmp_path}", Time())
    await store.put("before", Bytes(bytes(500_000)))
    try:
        await store.put("name", Bytes(bytes(2_000_000)))
    except Full as error:
        print("full:", error)
    assert [info.name async for info in store.list()] == ["before"]
    assert len((await store.get("before")).payload.whole) == 500_000

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
asyncio.run(main())
"""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code),
        env={**os.environ, "PYTHONPATH": path},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    assert out.startswith(b"full:"), out


class Scripted(ThreadingHTTPServer):
    """A bucket without objects that answers puts with what it is told, one after the other."""

    def __init__(self, *statuses: int) -> None:
        self.statuses, self.seen = list(statuses), list[str]()
        super().__init__(("127.0.0.1", 0), Answer)

    def __enter__(self) -> Self:
        self._thread = Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def store(self) -> ObjectsStore:
        endpoint = f"http://127.0.0.1:{self.server_port}"
        key = "access_key_id=a&secret_access_key=b"
        return opened(f"s3://b?endpoint={endpoint}&region=x&{key}", Time())


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.seen.append("GET")
        self._answer(200, b"<ListBucketResult></ListBucketResult>")

    def do_PUT(self) -> None:
        self.server.seen.append("PUT")
        self.rfile.read(int(self.headers["Content-Length"]))
        if status := self.server.statuses.pop(0):
            self._answer(status, b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("ETag", "x")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


HANGS_UP = 0


async def test_a_server_that_failed_is_busy_or_hung_up_is_asked_again() -> None:
    """As servers do in ordinary operation, the last where a connection was long idle."""
    with Scripted(500, 503, HANGS_UP, 200) as server:
        assert (await server.store().put("name", Bytes(b"data"))).outcome is Outcome.CREATED
        assert server.seen == ["GET", "PUT", "PUT", "PUT", "PUT"]


@pytest.mark.parametrize(
    ("statuses", "error"),
    [
        ([500] * 4, OutcomeUnknown),
        ([HANGS_UP] * 4, OutcomeUnknown),
        ([HANGS_UP, 400], OutcomeUnknown),
        ([502], OutcomeUnknown),
        ([503] * 4, Unavailable),
        ([400], Unavailable),
        ([507], Full),
    ],
)
async def test_what_a_failed_put_is_told_as(statuses: list[int], error: type[Exception]) -> None:
    with Scripted(*statuses) as server:
        with pytest.raises(error):
            await server.store().put("name", Bytes(b"data"))
        assert server.statuses == []


async def test_a_note_is_not_sent_twice() -> None:
    """A late copy of it could come after another."""
    with Scripted(500, 200) as server:
        with pytest.raises(OutcomeUnknown):
            await server.store().note("key", b"value")
        assert server.statuses == [200]

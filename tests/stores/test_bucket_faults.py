"""Buckets that are not there, refuse, stall, die, come back, are full, or give back damage."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import cast

import pytest

from dolmen.errors import BadSetting, Corrupt, Full, OutcomeUnknown, Unavailable
from dolmen.metadata import encode
from dolmen.payload import Bytes, Stream
from dolmen.store import IDENTITY, Outcome
from dolmen.stores import open_store
from dolmen.stores.bucket_client import Client
from dolmen.stores.bucket_layout import PART
from dolmen.testing import calls
from dolmen.testing.conformance.material import at, content, names, noise
from engines.buckets import everything, opened
from engines.rclone import KEY, SECRET, Rclone

SHORT, LONG = encode([(b"a", b"b")]), encode([(b"a", bytes(200))])  # in the key, in the object


@pytest.fixture
def own_rclone(tmp_path):
    """One for a test that does things to it."""
    with Rclone(tmp_path / "rclone") as server:
        yield server


@pytest.fixture
async def store(rclone):
    """An empty store."""
    store = opened(rclone.url(os.urandom(8).hex()))
    yield store
    await store.aclose()


def every_call(store):
    return {
        "get": lambda: store.get("name"),
        "stat": lambda: store.stat("name"),
        "list": lambda: names(store.list()),
        "digests": store.digests,
        "notes": store.notes,
        "condition": store.condition,
        "put": lambda: calls.put(store, "name", Bytes(b"data")),
        "put large": lambda: calls.put(store, "name", Bytes(bytes(100_000))),
        "touch": lambda: calls.touch(store, "name", stamp=at(2), checksum=bytes(16)),
        "delete": lambda: calls.delete(store, "name"),
        "remove": lambda: calls.remove(store, "name", if_stamp=at(1)),
        "note": lambda: store.note("key", b"value"),
    }


async def assert_refused(store, match):
    """Every call gives the same reason."""
    for call in every_call(store).values():
        with pytest.raises(Unavailable, match=match):
            await call()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://", "names no bucket"),
        ("s3:///path", "names no bucket"),
        ("s3://bucket?colour=blue", "'colour' is not valid"),
        ("s3://bucket?timeout=long", "failed to parse"),
        ("s3://user:hidden@bucket/path", "names no bucket"),
        ("az://container", "Account must be specified"),
        ("az://container?account_name=x&account_key=hidden", "Invalid Access Key"),
        ("gs://bucket?service_account_key=hidden", "can't be used"),
    ],
)
async def test_a_url_that_cannot_be_used_is_refused_in_a_line_without_secrets(url, reason):
    with pytest.raises(BadSetting) as caught:
        await open_store(url)
    assert reason in str(caught.value)
    assert "hidden" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_wrong_bucket_or_key_is_refused_at_once_and_no_key_is_shown(
    rclone, moto, google, azurite
):
    absent = "nowhere.* is not there: create it, or correct"
    for url, reason in (
        (rclone.url("x", bucket="nowhere"), absent),
        (moto.absent("nowhere"), absent),
        (google.absent("nowhere"), absent),
        (azurite.url("x", container="nowhere"), absent),
        (rclone.url("x", secret="d3Jvbmc="), "refuses access"),
        (azurite.url("x", key="d3Jvbmc="), "refuses access"),
    ):
        with pytest.raises(BadSetting, match=reason) as caught:
            await open_store(url)
        assert "d3Jvbmc" not in str(caught.value)
        await assert_refused(opened(url), reason)


async def test_nobody_listening_is_unavailable_until_somebody_does(tmp_path):
    server = Rclone(tmp_path)
    store = await open_store(server.url("x"))
    await assert_refused(store, "can't be reached")
    with server:
        assert (await calls.put(store, "name", Bytes(b"data"))).outcome is Outcome.CREATED
        assert await content(store, "name") == b"data"
    with pytest.raises(Unavailable, match="can't be reached"):
        await store.get("name")
    await store.aclose()
    await assert_refused(store, "closed")


async def test_credentials_and_settings_come_from_the_environment_too(rclone, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{rclone.port}")
    store = await open_store("s3://bucket/environment")
    await calls.put(store, "name", Bytes(b"data"))
    assert await content(store, "name") == b"data"
    await store.aclose()


async def test_a_server_killed_during_a_put_shows_no_half_of_it(own_rclone):
    data = noise(3 * PART + 7)
    store = opened(own_rclone.url("x"))
    await calls.put(store, "before", Bytes(b"before"), stamp=at(1))

    async def opened_():
        yield data[: PART + 1]
        while not (await everything(store._client))[1]:
            await asyncio.sleep(0)  # a part is on its way
        own_rclone.kill()
        yield data[PART + 1 :]

    with pytest.raises(Unavailable):
        await calls.put(store, "name", Stream(len(data), opened_))
    own_rclone.start()
    assert await names(calls.listing(store, tombstones=True)) == ["before"]
    assert (await calls.put(store, "name", Bytes(data))).outcome is Outcome.CREATED
    assert await content(store, "name") == data
    await store.aclose()


async def test_a_server_that_stalls_is_given_up(own_rclone):
    store, impatient = opened(own_rclone.url("x")), opened(own_rclone.url("x") + "&timeout=20ms")
    await calls.put(store, "name", Bytes(b"data"), stamp=at(1))
    own_rclone.pause()
    for call in ("get", "put", "put large"):
        with pytest.raises(Unavailable):
            await every_call(impatient)[call]()
    with pytest.raises(OutcomeUnknown):  # what makes a write current was sent
        await impatient._client.put("blobs/0000/x!/x", b"")
    own_rclone.go_on()
    assert await content(store, "name") == b"data"
    await store.aclose()


@pytest.mark.parametrize(
    ("size", "meta", "harm"),
    [
        *((10, SHORT, harm) for harm in ("cut", "empty", "grow")),
        *((10, LONG, harm) for harm in ("first", "cut", "empty", "grow")),
        (100_000, SHORT, "cut"),
        (100_000, LONG, "first head"),
        *((100_000, LONG, harm) for harm in ("first", "cut", "empty", "grow", "lose")),
    ],
)
async def test_damage_is_noticed_and_healed_by_a_put(store, size, meta, harm):
    """The suite flips a bit of the data; what else may be wrong is here."""
    data = noise(size)
    await calls.put(store, "name", Bytes(b"overruled"), stamp=at(4))
    await calls.put(store, "name", Bytes(data), stamp=at(5), meta=meta)
    heads, parts = await everything(store._client)
    found = parts if parts and "head" not in harm else heads
    whole = bytes(await store._client.get(found[-1]) or b"")
    if harm == "lose":
        await store._client.delete(found[-1:])
    else:
        first = bytes([whole[0] ^ 1]) + whole[1:]
        harmed = {"cut": whole[:-1], "empty": b"", "grow": whole + b"x"}.get(harm, first)
        await store._client.put(found[-1], harmed)
    for call in (lambda: content(store, "name"), lambda: store.stat("name")):
        with pytest.raises(Corrupt):
            await call()
    assert await names(store.list()) == []
    assert [name async for name in calls.quarantined(store)] == ["name"]
    answer = await calls.put(store, "name", Bytes(data), stamp=at(3), meta=meta)
    assert answer == (Outcome.CREATED, at(3)), "the same content, whatever its stamp"
    assert await content(store, "name") == data


async def test_a_bucket_that_lists_in_no_order_is_refused(store, monkeypatch):
    for number in range(3):
        await calls.put(store, f"n{number}", Bytes(b""))
    pages = Client.pages

    async def backwards(self, folder, after=None):
        async for page in pages(self, folder, after):
            yield page[::-1]

    monkeypatch.setattr(Client, "pages", backwards)
    for call in (lambda: names(store.list()), store.digests):
        with pytest.raises(Unavailable, match="does not list in the order"):
            await call()


async def test_stores_opened_at_once_agree_on_one_identity(moto, azurite):
    for url in (moto.url("identity"), azurite.url("identity")):
        stores = [opened(url) for _ in range(8)]
        noted = await asyncio.gather(*(store.notes() for store in stores))
        assert len({notes[IDENTITY] for notes in noted}) == 1
        assert not await stores[0]._client.put(IDENTITY, b"other", mode="create")
        assert (await stores[0].notes())[IDENTITY] == noted[0][IDENTITY]


def test_a_process_ends_well_right_after_its_last_answer(rclone):
    """The driver alone makes some of these abort."""
    code = f"""
import asyncio
from dolmen.payload import Bytes
from dolmen.store import Write
from dolmen.stores import open_store

async def main():
    store = await open_store({rclone.url("ends")!r})
    await store.write(Write("name", Bytes(bytes(500_000))))
    print([info.name async for info in store.list()])

asyncio.run(main())
"""
    for _ in range(3):
        ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        assert ended.stdout == b"['name']\n"


class Scripted(ThreadingHTTPServer):
    """A bucket without objects that answers puts with these statuses, one after the other."""

    def __init__(self, *statuses):
        self.statuses, self.seen = list(statuses), []
        super().__init__(("127.0.0.1", 0), Answer)

    def __enter__(self):
        self._thread = Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self._thread.join()
        self.server_close()

    def store(self):
        endpoint = f"http://127.0.0.1:{self.server_port}"
        key = "access_key_id=a&secret_access_key=b"
        return opened(f"s3://b?endpoint={endpoint}&region=x&{key}")


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self._answer(200, b"<ListBucketResult></ListBucketResult>")

    def do_PUT(self):
        server = cast("Scripted", self.server)
        server.seen.append("PUT")
        self.rfile.read(int(self.headers["Content-Length"]))
        if status := server.statuses.pop(0):
            self._answer(status, b"")

    def _answer(self, status, body):
        self.send_response(status)
        self.send_header("ETag", "x")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


HANGS_UP = 0


async def test_a_server_that_failed_is_busy_or_hung_up_is_asked_again():
    """As servers do in ordinary operation, the last where a connection was long idle."""
    with Scripted(500, 503, HANGS_UP, 200) as server:
        answer = await calls.put(server.store(), "name", Bytes(b"data"))
        assert answer.outcome is Outcome.CREATED
        assert server.seen == ["PUT"] * 4


@pytest.mark.parametrize(
    ("statuses", "error"),
    [
        ([500] * 4, OutcomeUnknown),
        ([HANGS_UP] * 4, OutcomeUnknown),
        ([HANGS_UP, 400], OutcomeUnknown),
        ([503] * 4, OutcomeUnknown),
        ([400], Unavailable),
        ([507], Full),
    ],
)
async def test_how_a_failed_put_is_reported(statuses, error):
    statuses = [*statuses, *[507] * 3] if statuses == [507] else statuses
    with Scripted(*statuses) as server:
        with pytest.raises(error):
            await calls.put(server.store(), "name", Bytes(b"data"))
        assert server.statuses == []


async def test_a_note_is_not_sent_twice():
    """A late copy of it could come after another."""
    with Scripted(500, 200) as server:
        with pytest.raises(OutcomeUnknown):
            await server.store().note("key", b"value")
        assert server.statuses == [200]


async def test_a_bucket_that_takes_no_writes_says_so():
    for status, reason in ((507, "no room"), (403, "refuses access")):
        with Scripted(*[status] * 4) as server:
            condition = await server.store().condition()
            assert not condition.writable
            assert reason in condition.reasons[0]

"""The blob server over a volume, asked as a stranger's script would ask it."""

import base64
import hashlib
import json
import os
import resource

import pytest
from crc32c import crc32c

from dolmen import metadata
from dolmen.digests import Digests
from dolmen.http import Client, Streamed, start_server
from dolmen.names import checksum_of
from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.servers.blob import BlobServer
from dolmen.store import Blob, BlobInfo
from dolmen.stores.memory import MemoryStore
from dolmen.stores.records import frame
from dolmen.stores.volume import open_volume
from dolmen.testing import calls


@pytest.fixture
async def server(tmp_path):
    store = await open_volume(str(tmp_path / "volume"))
    blob_server = BlobServer(store, describes="volume:test", spool_folder=str(tmp_path))
    server = await start_server(blob_server.handle)
    client = Client("127.0.0.1", server.addresses[0][1])

    async def ask(method, target, body=None, **headers):
        pairs = [
            (name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()
        ]
        response = await client.request(method, target, pairs, body)
        return response.status, response.headers, await response.body.read(1 << 30)

    yield ask
    await client.close()
    await server.close()
    await store.aclose()


async def test_a_blob_comes_back_as_it_was_stored(server):
    for size in (0, 1, 65_536, 65_537, 5_000_000):
        data = os.urandom(size)
        status, _, body = await server("POST", f"/blob/b{size}", data)
        assert status == 201
        said = json.loads(body)
        assert (said["id"], said["status"], said["size"]) == (f"b{size}", "OK", size)
        status, headers, body = await server("GET", f"/blob/b{size}")
        assert (status, body) == (200, data)
        assert headers.get(b"content-length") == str(size).encode()
        status, headers, body = await server("HEAD", f"/blob/b{size}")
        assert (status, body, headers.get(b"content-length")) == (200, b"", str(size).encode())


async def test_what_becomes_of_a_name(server):
    for method, body, wanted, says in (
        ("PUT", b"one", 201, b"OK"),
        ("PUT", b"one", 200, b"OK"),
        ("PUT", b"two", 409, b"delete it first"),
        ("GET", None, 200, b"one"),
        ("DELETE", None, 204, b""),
        ("GET", None, 404, b"was deleted"),
        ("POST", b"two", 201, b"OK"),
        ("GET", None, 200, b"two"),
    ):
        status, headers, said = await server(method, "/blob/a", body)
        assert status == wanted
        assert says in said
        assert (headers.get(b"x-dolmen-kind") == b"tombstone") is (status == 404)


async def test_x_headers_come_back_and_the_mime_type_counts(server):
    for name, sent, back in (
        (
            "a",
            {"X_Colour": "Grün", "X_Mime_Type": "image/png", "X_Forwarded_For": "1.2.3.4"},
            {"x-colour": "Grün", "content-type": "image/png", "x-forwarded-for": None},
        ),
        ("b", {"X_Accel_Redirect": "/etc"}, {"x-accel-redirect": None}),
        ("c", {"Content_Type": "text/css"}, {"content-type": "text/css"}),
        (
            "d",
            {"Content_Type": "application/x-www-form-urlencoded"},
            {"content-type": "application/octet-stream"},
        ),
    ):
        await server("POST", f"/blob/{name}", b"x", **sent)
        headers = (await server("GET", f"/blob/{name}"))[1]
        for field, value in back.items():
            assert headers.get(field.encode()) == (value and value.encode())


async def test_ranges_and_conditions(server):
    data = os.urandom(300_000)
    await server("POST", "/blob/a", data)
    for asked, start, stop in (
        ("bytes=0-0", 0, 1),
        ("bytes=65535-65536", 65_535, 65_537),
        ("bytes=-5", 299_995, 300_000),
        ("bytes=299999-", 299_999, 300_000),
        ("bytes=10-9999999", 10, 300_000),
    ):
        status, headers, body = await server("GET", "/blob/a", Range=asked)
        assert (status, body) == (206, data[start:stop])
        assert headers.get(b"content-range") == b"bytes %d-%d/300000" % (start, stop - 1)
    status, headers, _ = await server("GET", "/blob/a", Range="bytes=300000-")
    assert (status, headers.get(b"content-range")) == (416, b"bytes */300000")
    tag = (await server("GET", "/blob/a"))[1].get(b"etag").decode()
    for method in ("GET", "HEAD"):
        assert (await server(method, "/blob/a", If_None_Match=tag))[0] == 304
    assert (await server("GET", "/blob/a", Range="bytes=0-0", If_Range='"other"'))[0] == 200


@pytest.mark.parametrize("condition", [{"If_Match": '"a"'}, {"If_Unmodified_Since": "now"}])
async def test_a_write_under_a_condition_is_refused_and_changes_nothing(server, condition):
    assert (await server("PUT", "/blob/a", b"data"))[0] == 201
    for method, name, body in (("PUT", "b", b"data"), ("POST", "b", b""), ("DELETE", "a", None)):
        status, _, said = await server(method, f"/blob/{name}", body, **condition)
        assert status == 412
        assert b"Leave the header out" in said
    assert json.loads((await server("GET", "/blobs"))[2]) == ["a"]


@pytest.mark.parametrize(
    ("method", "target", "status", "says"),
    [
        ("GET", "/blob/.hidden", 400, "begins with a letter"),
        ("POST", "/blob/" + "a" * 129, 400, "1 to 128"),
        ("POST", "/blob/a%2Fb", 404, "There is no"),
        ("GET", "/blob/..%00", 400, "is not a valid blob name"),
        ("GET", "/blob/absent", 404, "is not here"),
        ("GET", "/nothing", 404, "/blobs"),
        ("PATCH", "/blob/a", 405, "takes DELETE, GET, HEAD, POST, PUT"),
        ("DELETE", "/alive", 405, "takes GET"),
    ],
)
async def test_each_wrong_request_has_its_own_answer(server, method, target, status, says):
    found, headers, body = await server(method, target)
    assert found == status
    assert headers.get(b"content-type") == b"application/problem+json"
    assert says in json.loads(body)["detail"]


async def test_a_body_that_is_not_what_its_digest_says_is_refused_and_not_stored(server):
    good = base64.b64encode(hashlib.sha256(b"right").digest()).decode()
    crc = base64.b64encode(crc32c(b"right").to_bytes(4, "big")).decode()
    for digest in (f"sha-256=:{good}:", f"crc32c=:{crc}:"):
        status, _, body = await server("POST", "/blob/a", b"wrong", Content_Digest=digest)
        assert status == 422
        assert "nothing was stored" in json.loads(body)["detail"]
        big = os.urandom(200_000)
        assert (await server("POST", "/blob/a", big, Content_Digest=digest))[0] == 422
        assert (await server("GET", "/blob/a"))[0] == 404
    both = f"sha-256=:{good}:, crc32c=:{crc}:"
    assert (await server("POST", "/blob/a", b"right", Content_Digest=both))[0] == 201
    for wrong in ("sha-256=:?:", "sha-256=:ä:", "sha-256=:YQ==:", "crc32c=YQ=="):
        status, _, body = await server("POST", "/blob/b", b"x", Content_Digest=wrong)
        assert status == 400
        assert "is no digest" in json.loads(body)["detail"]


async def test_dolmens_own_headers_are_checked(server):
    for name, value in (
        ("secret", "1"),
        ("stamp", "soon"),
        ("kind", "tombstone"),
        ("checksum", "00"),
        ("metadata", "?"),
    ):
        wrong = {f"X_Dolmen_{name}": value}
        assert (await server("POST", "/blob/a", b"x", **wrong))[0] == 400
    stamp = f"{1 << 50:016x}"
    assert (await server("POST", "/blob/a", b"x", X_Dolmen_Stamp=stamp))[0] == 201
    status, _, body = await server("POST", "/blob/a", b"y", X_Dolmen_Stamp=f"{1 << 49:016x}")
    said = json.loads(body)
    assert (status, said["status"], said["stamp"]) == (200, "superseded", stamp)


async def test_lists(server):
    names = {f"name{number}" for number in range(25)}
    for name in names:
        await server("POST", f"/blob/{name}", name.encode())
    await server("DELETE", "/blob/name3")
    names.remove("name3")
    assert set(json.loads((await server("GET", "/blobs"))[2])) == names
    assert json.loads((await server("GET", "/blobs?prefix=none"))[2]) == []
    found, cursor = [], ""
    while cursor is not None:
        query = f"/blobs?limit=7&tombstones=1{cursor}"
        lines = (await server("GET", query, Accept="application/x-ndjson"))[2].splitlines()
        *entries, last = map(json.loads, lines)
        cursor = f"&cursor={last['next']}" if "next" in last else None
        found += entries if cursor else [*entries, last]
    assert {entry["name"] for entry in found} == names | {"name3"}
    assert len(found) == 25
    assert next(e for e in found if e["name"] == "name3")["kind"] == "tombstone"
    assert (await server("GET", "/blobs?limit=0"))[0] == 400


async def test_digests_answer_304_to_who_is_in_step(server):
    await server("POST", "/blob/a", b"x")
    status, headers, body = await server("GET", "/digests")
    assert (status, Digests.decode(body).count) == (200, 1)
    tag = headers.get(b"etag").decode()
    assert (await server("GET", "/digests", If_None_Match=tag))[0] == 304
    await server("POST", "/blob/b", b"x")
    assert (await server("GET", "/digests", If_None_Match=tag))[0] == 200


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/records/list", b"{"),
        ("/records/list", b"[" * 100_000),
        ("/records/list", b'{"wrong": 1}'),
        ("/records/list", b'{"limit": "x"}'),
        ("/records/list", b'{"partitions": [70000]}'),
        ("/records/list", b'{"after": [1]}'),
        ("/records/list", b'{"after": "."}'),
        ("/records/list", b'{"prefix": "\\ud800"}'),
        ("/records/verify", b'{"names": [1]}'),
        ("/records/remove", b'{"removes": [], "min_age": -1}'),
        ("/records/remove", b'{"removes": [], "min_age": NaN}'),
        ("/records/remove", b'{"removes": [["a", 1]]}'),
        ("/records/read", b'{"names": 7}'),
        ("/records/read", b'{"names": [], "most": -1}'),
        ("/records/read", b'{"names": [], "most": 10000000}'),
        ("/records/read", b'{"names": ["\\ud800"]}'),
        ("/notes", b'{"key": "\\ud800", "value": ""}'),
        ("/notes", b'{"key": "", "value": ""}'),
        ("/notes", b'{"key": "a", "value": "\\u00e4"}'),
    ],
)
async def test_orders_that_make_no_sense_are_the_senders_fault(server, target, body):
    assert (await server("POST", target, body))[0] == 400


async def test_records_that_are_none_are_refused(server):
    status, _, body = await server("POST", "/records", b"no record at all" * 100)
    assert status == 422
    assert "record 1" in json.loads(body)["detail"]


async def test_of_a_small_stream_with_a_damaged_record_nothing_is_stored(server):
    good = b"".join(b"".join(frame(_blob(f"n{number}"))) for number in range(300))
    status, _, body = await server("POST", "/records", good[:-1] + b"?")
    assert status == 422
    assert "record 300" in json.loads(body)["detail"]
    assert json.loads((await server("GET", "/blobs"))[2]) == []
    assert (await server("POST", "/records", good))[2].count(b"created") == 300


def _blob(name: str) -> Blob:
    data = name.encode()
    return Blob(BlobInfo(name, len(data), Kind.BLOB, 1 << 40, checksum_of(data)), Bytes(data))


async def test_what_tells_of_the_server_itself(server):
    assert (await server("GET", "/alive"))[2] == b"alive"
    assert json.loads((await server("GET", "/healthz"))[2]) == {"status": "OK"}
    assert json.loads((await server("GET", "/readyz"))[2]) == {"ready": True, "reasons": []}
    status = json.loads((await server("GET", "/status"))[2])
    assert (status["store"], status["entries"], status["writable"]) == ("volume:test", 0, True)


async def test_metadata_can_not_speak_to_proxies_nor_for_dolmen(server):
    """However it came in: `X-Dolmen-Metadata` takes any pairs, as a copy must be exact."""
    pairs = [(b"x-accel-redirect", b"/secret"), (b"x-dolmen-stamp", b"z"), (b"x-mine", b"1")]
    exact = base64.b64encode(metadata.encode(pairs)).decode()
    await server("PUT", "/blob/a", b"x", X_Dolmen_Metadata=exact)
    for method in ("GET", "HEAD"):
        headers = (await server(method, "/blob/a"))[1]
        assert b"x-accel-redirect" not in headers
        assert len(headers.get(b"x-dolmen-stamp")) == 16
        assert headers.get(b"x-mine") == b"1"
        assert headers.get(b"x-dolmen-metadata") == exact.encode()


async def test_a_blob_replaced_between_look_and_read_is_answered_as_what_it_is_now():
    """A range or an If-Range was about what stood before."""

    class Replaced(MemoryStore):
        async def stat(self, name):
            info = await super().stat(name)
            if info.size == 10:
                await calls.put(self, name, Bytes(b"new"), stamp=info.stamp + 1)
            return info

    store = Replaced()
    async with (
        await start_server(BlobServer(store, describes="memory:").handle) as server,
        Client(*server.addresses[0]) as client,
    ):
        old = b'"%b"' % checksum_of(b"0123456789").hex().encode()
        for turn, (headers, status, body) in enumerate(
            (
                ([(b"Range", b"bytes=1-8")], 206, b"ew"),
                ([(b"Range", b"bytes=5-8")], 416, None),
                ([(b"Range", b"bytes=1-8"), (b"If-Range", old)], 200, b"new"),
            )
        ):
            await calls.put(store, "a", Bytes(b"0123456789"), stamp=10 * turn + 1)
            answer = await client.request("GET", "/blob/a", headers)
            assert answer.status == status
            assert body is None or await answer.body.read(100) == body
            if status == 206:
                assert answer.headers.get(b"content-range") == b"bytes 1-2/3"


async def test_bodies_of_unknown_length(server, tmp_path):
    async def pieces(size):
        for at in range(0, size, 100_000):
            yield data[at : min(size, at + 100_000)]

    data = os.urandom(3_000_000)
    for size in (0, 1, 70_000, 3_000_000):
        assert (await server("PUT", f"/blob/c{size}", Streamed(pieces(size))))[0] == 201
        assert (await server("GET", f"/blob/c{size}"))[2] == data[:size]
    assert [each.name for each in tmp_path.iterdir()] == ["volume"]


async def test_a_body_of_unknown_length_without_room_for_it_is_507(tmp_path):
    async def pieces():
        for _ in range(30):
            yield bytes(100_000)

    blob_server = BlobServer(MemoryStore(), describes="memory:", spool_folder=str(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with (
        await start_server(blob_server.handle) as server,
        Client(*server.addresses[0]) as client,
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
        try:
            answer = await client.request("PUT", "/blob/a", body=Streamed(pieces()))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert answer.status == 507
        assert (await client.request("GET", "/blob/a")).status == 404

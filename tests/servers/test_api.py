"""The API server over blob servers, in the words users of sos know."""

import asyncio
import base64
import hashlib
import json
import random

import pytest

from dolmen.cluster.breaker import FAILURES
from dolmen.cluster.cluster import Cluster
from dolmen.cluster.groups import Member, make_group
from dolmen.cluster.objects import Objects
from dolmen.http import Client, start_server
from dolmen.names import partition_of
from dolmen.servers.api import ApiServer
from dolmen.servers.blob import BlobServer
from dolmen.stores import open_store


class Setting:
    """Three blob servers on volumes and an API server, over real sockets."""

    async def start(self, folder):
        self.volumes, self.servers, members = [], [], []
        for number in range(3):
            volume = await open_store(f"volume:{folder / str(number)}")
            server = await start_server(BlobServer(volume, describes="test").handle)
            store = await open_store(f"http://127.0.0.1:{server.addresses[0][1]}")
            self.volumes.append(volume)
            self.servers.append(server)
            members.append(Member(f"server{number}", store))
        self.objects = Objects(Cluster([make_group("group", members)]))
        self.folder = folder
        self.api = ApiServer(self.objects)
        self.fronts = [await start_server(routes) for routes in self.api.listeners]
        self.clients = [Client("127.0.0.1", front.addresses[0][1]) for front in self.fronts]

    def in_order(self, name):
        """The volumes, in the order in which a name is placed."""
        place = self.objects.cluster.placement.of(partition_of(name))
        return [self.volumes[int(member.name[-1])] for member in place.order]

    async def ask(self, method, target, body=None, *, reading=False, **headers):
        pairs = [(n.replace("_", "-").encode(), v.encode()) for n, v in headers.items()]
        response = await self.clients[reading].request(method, target, pairs, body)
        return response.status, response.headers, await response.body.read(1 << 30)

    async def upload(self, data, **headers):
        status, _, body = await self.ask("POST", "/upload", data, **headers)
        assert status == 200, body
        return json.loads(body)

    async def end(self):
        for client in self.clients:
            await client.close()
        for front in self.fronts:
            await front.close()
        await self.objects.aclose()
        for server in self.servers:
            await server.close()
        for volume in self.volumes:
            await volume.aclose()


@pytest.fixture
async def api(tmp_path):
    setting = Setting()
    await setting.start(tmp_path)
    yield setting
    await setting.end()


DATA = random.Random(1).randbytes(100_000)
LARGE = random.Random(2).randbytes(9_000_000)


@pytest.mark.parametrize("data", [b"", b"x", DATA, LARGE], ids=len)
async def test_an_upload_is_answered_with_its_digest_and_comes_back(api, data):
    said = await api.upload(data)
    object_id = hashlib.sha256(data).hexdigest()
    assert said == {"id": object_id, "status": "OK", "size": len(data), "copies": 2}
    for reading in (False, True):
        for target in (f"/fetch/{object_id}", f"/fetch/{object_id}.jpg"):
            status, headers, body = await api.ask("GET", target, reading=reading)
            assert (status, body) == (200, data)
            assert headers.get(b"etag") == f'"{object_id}"'.encode()
        status, headers, body = await api.ask("HEAD", f"/fetch/{object_id}", reading=reading)
        assert (status, body) == (200, b"")
        assert headers.get(b"content-length") == str(len(data)).encode()


async def test_metadata_comes_back_and_types_are_told(api):
    said = await api.upload(DATA, X_File_Name="a.jpg", X_Mime_Type="image/jpeg")
    _, headers, _ = await api.ask("GET", f"/fetch/{said['id']}")
    assert headers.get(b"x-file-name") == b"a.jpg"
    assert headers.get(b"content-type") == b"image/jpeg"
    plain = await api.upload(b"plain")
    _, headers, _ = await api.ask("GET", f"/fetch/{plain['id']}.png")
    assert headers.get(b"content-type") == b"image/png"
    assert headers.get(b"x-content-type-options") == b"nosniff"
    assert headers.get(b"content-security-policy") == b"sandbox"
    assert b"immutable" in headers.get(b"cache-control")


@pytest.mark.parametrize("data", [DATA, LARGE], ids=len)
async def test_ranges(api, data):
    object_id = (await api.upload(data))["id"]
    size = len(data)
    for asked, start, stop in (
        ("bytes=0-0", 0, 1),
        (f"bytes={size // 2}-{size // 2 + 5}", size // 2, size // 2 + 6),
        ("bytes=-7", size - 7, size),
        (f"bytes={size - 1}-", size - 1, size),
    ):
        status, headers, body = await api.ask("GET", f"/fetch/{object_id}", Range=asked)
        assert (status, body) == (206, data[start:stop])
        assert headers.get(b"content-range") == f"bytes {start}-{stop - 1}/{size}".encode()
    status, headers, _ = await api.ask("GET", f"/fetch/{object_id}", Range=f"bytes={size}-")
    assert (status, headers.get(b"content-range")) == (416, f"bytes */{size}".encode())
    tag = f'"{object_id}"'
    for method in ("GET", "HEAD"):
        assert (await api.ask(method, f"/fetch/{object_id}", If_None_Match=tag))[0] == 304


async def test_an_unknown_id_is_404_only_while_every_server_can_say_so(api):
    unknown = "0" * 64
    assert (await api.ask("GET", f"/fetch/{unknown}"))[0] == 404
    await api.servers[0].close()
    status, headers, body = await api.ask("GET", f"/fetch/{unknown}")
    assert (status, headers.get(b"retry-after")) == (503, b"5")
    assert "server0" in json.loads(body)["detail"]


async def test_uploads_go_on_without_a_server_and_fail_with_500_without_any(api):
    await api.servers[1].close()
    said = await api.upload(DATA)
    assert said["copies"] == 2
    assert (await api.ask("GET", f"/fetch/{said['id']}"))[2] == DATA
    await api.servers[0].close()
    await api.servers[2].close()
    for data in (DATA, LARGE):
        status, _, body = await api.ask("POST", "/upload", data)
        told = json.loads(body)
        assert status == 500
        assert sorted(line.split(":")[0] for line in told["servers"]) == [
            "server0",
            "server1",
            "server2",
        ]


async def test_an_upload_under_its_id(api):
    object_id = hashlib.sha256(DATA).hexdigest()
    assert (await api.ask("PUT", f"/objects/{object_id}", DATA))[0] == 200
    assert (await api.ask("PUT", f"/objects/{object_id}", DATA))[0] == 200
    wrong = "1" * 64
    status, _, body = await api.ask("PUT", f"/objects/{wrong}", DATA)
    assert status == 422
    assert "nothing was stored" in json.loads(body)["detail"]
    assert (await api.ask("GET", f"/fetch/{wrong}"))[0] == 404


@pytest.mark.parametrize("data", [DATA, LARGE], ids=len)
async def test_a_wrong_content_digest_is_refused(api, data):
    wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    right = base64.b64encode(hashlib.sha256(data).digest()).decode()
    status, _, _ = await api.ask("POST", "/upload", data, Content_Digest=f"sha-256=:{wrong}:")
    assert status == 422
    assert (await api.ask("GET", f"/fetch/{hashlib.sha256(data).hexdigest()}"))[0] == 404
    assert (await api.upload(data, Content_Digest=f"sha-256=:{right}:"))["status"] == "OK"


async def test_a_delete_is_for_everywhere_and_an_upload_after_it_counts(api):
    object_id = (await api.upload(LARGE))["id"]
    assert (await api.ask("DELETE", f"/objects/{object_id}"))[0] == 204
    assert (await api.ask("GET", f"/fetch/{object_id}"))[0] == 404
    assert json.loads((await api.ask("GET", "/objects"))[2])["ids"] == []
    await api.upload(LARGE)
    assert (await api.ask("GET", f"/fetch/{object_id}"))[2] == LARGE
    await api.servers[2].close()
    assert (await api.ask("DELETE", f"/objects/{object_id}"))[0] == 204


async def test_ids_are_listed_once_each_in_pages_and_those_that_may_be_missing_are_told_of(api):
    await api.servers[0].close()
    ids = set()
    for number in range(13):
        data = b"%d" % number
        object_id = hashlib.sha256(data).hexdigest()
        assert (await api.ask("PUT", f"/objects/{object_id}", data))[0] == 200
        ids.add(object_id)
    found, cursor = [], ""
    while cursor is not None:
        page = json.loads((await api.ask("GET", f"/objects?limit=5{cursor}"))[2])
        assert "incomplete" not in page
        found += page["ids"]
        cursor = f"&cursor={page['next']}" if page["next"] else None
    assert (len(found), set(found)) == (13, ids)
    await api.servers[1].close()
    page = json.loads((await api.ask("GET", "/objects"))[2])
    assert "server0" in page["incomplete"]
    assert set(page["ids"]) <= ids


async def test_where_an_object_is_and_how_the_cluster_is(api):
    object_id = (await api.upload(DATA, X_Owner="Zoë"))["id"]
    told = json.loads((await api.ask("GET", f"/objects/{object_id}"))[2])
    assert told["metadata"] == {"x-owner": "Zoë"}
    assert (told["size"], told["copies"], told["wanted"], told["degraded"]) == (100_000, 2, 3, True)
    assert sorted(server["state"] for server in told["servers"]) == ["absent", "blob", "blob"]
    await api.servers[0].close()
    groups = json.loads((await api.ask("GET", "/cluster"))[2])["groups"]
    assert [server["reachable"] for server in groups[0]["servers"]] == [False, True, True]


@pytest.mark.parametrize(
    ("method", "target", "status", "says"),
    [
        ("GET", "/fetch/short", 400, "no object's id"),
        ("GET", f"/fetch/{'A' * 64}", 400, "no object's id"),
        ("GET", "/fetch/", 404, "/fetch/{id}"),
        ("DELETE", "/objects/x", 400, "no object's id"),
        ("GET", "/upload", 405, "POST, PUT"),
        ("GET", "/objects?limit=many", 400, "limit"),
    ],
)
async def test_each_wrong_request_has_its_own_answer(api, method, target, status, says):
    found, _, body = await api.ask(method, target)
    assert found == status
    assert says in json.loads(body)["detail"]


async def test_a_forms_envelope_is_refused_with_the_right_command(api):
    form = "multipart/form-data; boundary=x"
    status, _, body = await api.ask("POST", "/upload", b"--x", Content_Type=form)
    assert status == 415
    assert "curl -T FILE" in json.loads(body)["detail"]


async def test_the_reading_side_only_reads(api):
    object_id = (await api.upload(DATA))["id"]
    for method, target, body in (
        ("POST", "/upload", b""),
        ("DELETE", f"/objects/{object_id}", None),
        ("GET", "/objects", None),
        ("GET", "/cluster", None),
        ("GET", "/metrics", None),
    ):
        assert (await api.ask(method, target, body, reading=True))[0] == 404
    assert (await api.ask("GET", "/alive", reading=True))[2] == b"alive"


async def test_a_copy_that_rots_on_disk_is_passed_over(api):
    data = random.Random(5).randbytes(100_000)
    object_id = (await api.upload(data))["id"]
    first, _, _ = api.in_order(object_id)
    [number] = [n for n, volume in enumerate(api.volumes) if volume is first]
    [segment] = (api.folder / str(number)).rglob("*.seg")
    rotten = segment.read_bytes().replace(data[5000:5016], bytes(16))
    with open(segment, "r+b") as file:
        file.write(rotten)
    assert (await api.ask("GET", f"/fetch/{object_id}"))[2] == data


async def test_a_server_that_is_asked_last_is_told_of(api):
    await api.servers[0].close()
    for number in range(2 * FAILURES):
        await api.ask("GET", f"/fetch/{number:064x}")
    _, _, body = await api.ask("GET", "/cluster")
    [group] = json.loads(body)["groups"]
    assert [server["state"] for server in group["servers"]] == ["failing", "ok", "ok"]
    failing = [f.value_of_label for f in api.api.figures() if f.kind == "gauge" and f.value]
    assert failing == ["server0"]


async def test_what_repair_says_is_heeded(api):
    said = ['{"complete_rounds": 3, "stale": {"server1": "it missed a purge"}}']
    server = ApiServer(api.objects, repair=lambda: said[0])
    async with asyncio.timeout(10):
        while api.objects.cluster.members[1].stale is None:
            await asyncio.sleep(0)
    assert api.objects.cluster.breaker.rounds == 3
    _, _, body = await api.ask("GET", "/cluster")
    [group] = json.loads(body)["groups"]
    assert [each["state"] for each in group["servers"]] == ["ok", "stale", "ok"]
    assert (await api.ask("GET", f"/fetch/{'0' * 64}"))[0] == 503
    server.heed("{}")
    assert (await api.ask("GET", f"/fetch/{'0' * 64}"))[0] == 404

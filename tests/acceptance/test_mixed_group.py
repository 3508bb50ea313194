"""A volume, a Redis, a PostgreSQL and an S3 behind one API server: any one may go.

The volume and the S3 have a blob server in front, Redis and PostgreSQL are given to the API
server directly. Each is killed while objects are read and written, and comes back.
"""

import asyncio
import hashlib
import json
import random
import subprocess
from contextlib import ExitStack

import pytest

from acceptance.processes import COMMAND, Process, ask, check_all, free_ports, until_alive
from dolmen.payload import Bytes, read_whole
from dolmen.replication import replicate
from dolmen.stores import open_store
from dolmen.testing import calls
from engines.postgresql import PostgresServer
from engines.rclone import Rclone
from engines.redis import DURABLE, RedisServer

SIZES = (0, 1, 100, 10_000, 70_000, 1 << 20, 5 << 20)


class Mixed:
    """The four engines, two blob servers, an API server, and what was uploaded."""

    def __init__(self, folder, leaving):
        volume_port, s3_port, self.uploads, self.downloads = free_ports(4)
        redis = leaving.enter_context(RedisServer(folder / "redis", *DURABLE))
        postgresql = leaving.enter_context(PostgresServer(folder / "postgresql"))
        rclone = leaving.enter_context(Rclone(folder / "rclone"))
        volume = self.blob_server(f"volume:{folder}/volume", volume_port, leaving)
        self.blob_server(rclone.url("mixed"), s3_port, leaving)
        self.engines = {"volume": volume, "redis": redis, "postgresql": postgresql, "s3": rclone}
        self.urls = {
            "volume": f"http://127.0.0.1:{volume_port}",
            "redis": f"redis://{redis.address}",
            "postgresql": postgresql.schema("mixed"),
            "s3": f"http://127.0.0.1:{s3_port}",
        }
        self.settings = folder / "mixed.toml"
        servers = [f'  {{ name = "{name}", url = "{url}" }},\n' for name, url in self.urls.items()]
        self.settings.write_text(f'[[groups]]\nname = "mixed"\nservers = [\n{"".join(servers)}]\n')
        ports = [f"127.0.0.1:{port}" for port in (self.uploads, self.downloads)]
        api = Process(
            *("api-server", "--config", self.settings),
            *("--listen", ports[0], "--download-listen", ports[1]),
        )
        leaving.callback(api.end)
        until_alive(self.uploads)
        self.volume_port = volume_port
        self.wanted = {}
        self.rng = random.Random(7)

    @staticmethod
    def blob_server(url, port, leaving):
        process = Process("blob-server", "--store", url, "--listen", f"127.0.0.1:{port}")
        leaving.callback(process.end)
        until_alive(port)
        return process

    def start(self, name):
        self.engines[name].start()
        if name == "volume":
            until_alive(self.volume_port)

    def upload(self, count):
        for _ in range(count):
            data = self.rng.randbytes(self.rng.choice(SIZES))
            status, _, body = ask(self.uploads, "POST", "/upload", data)
            said = json.loads(body)
            assert status == 200, said
            assert said["copies"] == 2
            assert said["id"] == hashlib.sha256(data).hexdigest()
            self.wanted[said["id"]] = len(data)

    def replicate(self):
        command = [*COMMAND, "replicate", "--config", str(self.settings)]
        ended = subprocess.run(command, check=False, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr

    async def listed(self, *, tombstones=False):
        """What each store lists: name, stamp and checksum."""
        found = {}
        for name, url in self.urls.items():
            store = await open_store(url)
            found[name] = [
                (info.name, info.stamp, info.checksum)
                async for info in calls.listing(store, tombstones=tombstones)
            ]
            await store.aclose()
        return found


@pytest.fixture
def mixed(tmp_path):
    with ExitStack() as leaving:
        yield Mixed(tmp_path, leaving)


def test_any_one_may_go_and_everything_is_served(mixed):
    mixed.upload(60)
    mixed.replicate()
    for name, engine in mixed.engines.items():
        engine.kill()
        check_all(mixed.downloads, mixed.wanted)
        mixed.upload(6)
        check_all(mixed.downloads, mixed.wanted)
        mixed.start(name)
        mixed.replicate()
    found = asyncio.run(mixed.listed())
    assert all(listed == found["volume"] for listed in found.values())
    names = {name for name, _, _ in found["volume"]}
    assert set(mixed.wanted) <= names

    gone = sorted(mixed.wanted)[:20]
    for object_id in gone:
        assert ask(mixed.uploads, "DELETE", f"/objects/{object_id}")[0] == 204
        assert ask(mixed.downloads, "GET", f"/fetch/{object_id}")[0] == 404
    mixed.replicate()
    found = asyncio.run(mixed.listed(tombstones=True))
    assert all(listed == found["volume"] for listed in found.values())
    for listed in asyncio.run(mixed.listed()).values():
        assert not {name for name, _, _ in listed} & set(gone)


def test_they_replicate_in_all_directions(mixed):
    async def in_all_directions():
        stores = {name: await open_store(url) for name, url in mixed.urls.items()}
        for source, ours in stores.items():
            for destination, theirs in stores.items():
                if source == destination:
                    continue
                data = {
                    f"{source}-{destination}-{size}": mixed.rng.randbytes(size) for size in SIZES
                }
                for name, body in data.items():
                    await calls.put(ours, name, Bytes(body), meta=b"")
                await calls.delete(ours, f"{source}-{destination}-1")
                report = await replicate(ours, theirs)
                assert report.complete, report
                for name, body in data.items():
                    if name.endswith("-1"):
                        info = await calls.current(theirs, name)
                        assert info.size == 0
                    else:
                        assert await read_whole((await theirs.get(name)).payload) == body
                again = await replicate(ours, theirs)
                assert (again.copied, again.touched, again.tombstones) == (0, 0, 0)
        for store in stores.values():
            await store.aclose()

    asyncio.run(in_all_directions())


def test_an_export_goes_to_every_engine_and_comes_back(mixed, tmp_path):
    async def fill(url):
        store = await open_store(url)
        for number in range(200):
            await calls.put(store, f"name-{number}", Bytes(mixed.rng.randbytes(SIZES[number % 4])))
        for number in range(10):
            await calls.delete(store, f"name-{number}")
        await calls.put(store, "large", Bytes(mixed.rng.randbytes(6 << 20)))
        await store.aclose()

    def run(*words):
        ended = subprocess.run([*COMMAND, *words], check=False, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr

    mixed.urls["source"] = source = f"volume:{tmp_path}/source"
    asyncio.run(fill(source))
    run("export", str(tmp_path / "first"), source)
    before = "first"
    for name, url in mixed.urls.items():  # from each to the next
        if name != "source":
            run("import", str(tmp_path / before), url)
            run("export", str(tmp_path / f"{name}.export"), url)
            before = f"{name}.export"
    found = asyncio.run(mixed.listed(tombstones=True))
    assert len(found["source"]) == 201
    assert all(listed == found["source"] for listed in found.values())

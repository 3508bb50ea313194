"""What no manifest names goes, and nothing that is in use, whatever goes on meanwhile."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dolmen.cluster.cluster import Cluster
from dolmen.cluster.groups import Group, Member, make_group
from dolmen.cluster.manifest import CHUNK, Manifest
from dolmen.cluster.objects import Objects
from dolmen.errors import Corrupt, Outdated, Unavailable
from dolmen.names import chunk_name, is_chunk_name, partition_of
from dolmen.payload import Bytes, read_whole
from dolmen.record import Kind
from dolmen.replication.gc import Collected, collect
from dolmen.replication.manifests import GRACE
from dolmen.replication.repair import Repair
from dolmen.stamps import Clock
from dolmen.store import EVERYTHING, BlobInfo, Condition
from dolmen.stores.epoch import Seen, tell
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls
from dolmen.testing.faulty import Fault, FaultyStore
from replication.setting import broken_off, no_time


class Servers:
    """Some servers with one clock, and objects of chunks on them. Chunks here are small."""

    def __init__(self, names: str = "abc", copies: int = 2) -> None:
        self.seconds = 1_800_000_000.0
        self.clock = Clock(lambda: int(self.seconds * 1_000))
        self.stores = {
            name: FaultyStore(MemoryStore(clock=self.clock, now=self.now)) for name in names
        }
        self.groups = self.grouped(names, copies)

    def grouped(self, names: str, copies: int) -> list[Group]:
        members = [Member(name, self.stores[name]) for name in names]
        return [make_group("all", members, copies=copies, volatile=True)]

    def now(self) -> float:
        return self.seconds

    @property
    def cluster(self) -> Cluster:
        return Cluster(self.groups, clock=self.clock)

    async def upload(self, name: str, contents: Sequence[bytes]) -> None:
        """As an upload does it: every chunk, touched where it is, then the manifest."""
        names = [chunk_name(content) for content in contents]
        cluster = self.cluster
        for chunk, content in zip(names, contents, strict=True):
            await calls.put(cluster, chunk, Bytes(content))
        size = (len(names) - 1) * CHUNK + 1
        manifest = Bytes(Manifest(size, names).encode())
        await calls.put(cluster, name, manifest, kind=Kind.MANIFEST)

    async def collect(self, **how: object) -> Collected:
        return await collect(self.groups, now=self.now, pause=no_time, **how)

    async def chunks(self) -> set[str]:
        return {
            info.name
            for store in self.stores.values()
            async for info in calls.listing(store.store, prefix="chunk")
            if is_chunk_name(info.name)
        }


ONE, TWO, THREE = b"one", b"two", b"three"


async def test_chunks_of_deleted_objects_go_and_shared_ones_stay():
    servers = Servers()
    await servers.upload("first", [ONE, TWO])
    await servers.upload("second", [TWO, THREE])
    await calls.delete(servers.cluster, "first")
    for name in ("a" * 64, "chunkshort", "chunk" + "x" * 64, "anything"):
        await calls.put(servers.cluster, name, Bytes(b"no garbage"))
    # The age is that on the server's own clock.
    done = await collect(servers.groups, now=lambda: servers.seconds + 2 * GRACE, pause=no_time)
    assert (done.removed, done.young) == (0, 2)
    servers.seconds += GRACE - 1
    done = await servers.collect()
    assert (done.removed, done.young, done.manifests) == (0, 2, 1)
    servers.seconds += 1
    assert (await servers.collect(dry_run=True)).removed == 2
    assert await servers.chunks() == {chunk_name(each) for each in (ONE, TWO, THREE)}
    done = await servers.collect()
    assert (done.removed, done.bytes, done.chunks) == (2, 6, 6)
    assert await servers.chunks() == {chunk_name(each) for each in (TWO, THREE)}
    assert (await servers.collect()).removed == 0
    assert (await servers.cluster.stat("chunkshort")).size == 10


async def test_nothing_goes_from_a_server_whose_clock_jumped():
    class Jumped(MemoryStore):
        async def condition(self):
            return Condition(remarks=["the clock was set back by 2 days since this began"])

    servers = Servers("a", copies=1)
    servers.stores["a"].store = Jumped(clock=servers.clock, now=servers.now)
    await calls.put(servers.cluster, chunk_name(ONE), Bytes(ONE))
    servers.seconds += 2 * GRACE
    done = await servers.collect()
    assert done.removed == 0
    assert "clock" in done.passed_over["a"]


async def test_a_manifest_on_any_server_counts_also_where_it_should_not_be():
    servers = Servers("abcd", copies=1)
    for name in servers.stores:
        manifest = Bytes(Manifest(1, [chunk_name(name.encode())]).encode())
        await calls.put(servers.stores[name].store, f"on-{name}", manifest, kind=Kind.MANIFEST)
        await calls.put(servers.cluster, chunk_name(name.encode()), Bytes(name.encode()))
    servers.seconds += 2 * GRACE
    assert (await servers.collect()).removed == 0


@pytest.mark.parametrize("method", ["list", "get", "quarantined"])
async def test_a_server_that_can_not_be_read_in_full_stops_it(method):
    servers = Servers()
    await servers.upload("object", [ONE])
    await calls.delete(servers.cluster, "object")
    await servers.upload("other", [TWO])
    servers.seconds += 2 * GRACE
    for store in servers.stores.values():
        store.script(method, *[Fault.UNAVAILABLE] * 50)
    with pytest.raises(Unavailable, match=r"[abc]: "):
        await servers.collect()
    assert chunk_name(ONE) in await servers.chunks()


@pytest.mark.parametrize("how", ["damaged", "nonsense", "quarantined"])
async def test_a_manifest_without_a_sound_copy_stops_it(how):
    servers = Servers("a", copies=1)
    store = servers.stores["a"]
    await servers.upload("object", [ONE])
    await calls.put(servers.cluster, chunk_name(TWO), Bytes(TWO))
    servers.seconds += 2 * GRACE
    if how == "damaged":
        store.script("get", *[Corrupt("rotten")] * 9)
    elif how == "nonsense":
        await calls.put(servers.cluster, "other", Bytes(b"no manifest"), kind=Kind.MANIFEST)
    else:
        await calls.remove(store.store, "object", if_stamp=(await store.stat("object")).stamp)
        store.store = Quarantining(store.store)
    done = await servers.collect()
    assert [name for name, _ in done.unread] == ["other" if how == "nonsense" else "object"]
    assert done.removed == 0
    assert await servers.chunks() == {chunk_name(ONE), chunk_name(TWO)}


class Quarantining(MemoryStore):
    """A store whose copy of `object` is quarantined."""

    def __init__(self, store: MemoryStore) -> None:
        self.__dict__ = store.__dict__

    async def list(self, listing=EVERYTHING):
        if listing.quarantined:
            yield BlobInfo("object", 1, Kind.MANIFEST, 1, bytes(16))
            return
        async for info in super().list(listing):
            yield info

    async def stat(self, name):
        if name == "object":
            raise Corrupt("it is quarantined")
        return await super().stat(name)


@pytest.mark.parametrize("other", ["copy", "tombstone"])
async def test_another_copy_makes_up_for_a_quarantined_one_and_a_tombstone_does_not(other):
    servers = Servers("ab", copies=2)
    await servers.upload("object", [ONE])
    await calls.put(servers.cluster, chunk_name(TWO), Bytes(TWO))
    one, two = (store.store for store in servers.stores.values())
    stamp = (await one.stat("object")).stamp
    await calls.remove(one, "object", if_stamp=stamp)
    if other == "tombstone":  # of an older delete
        await calls.remove(two, "object", if_stamp=stamp)
        await calls.delete(two, "object", stamp=1)
    servers.stores["a"].store = Quarantining(one)
    servers.seconds += 2 * GRACE
    done = await servers.collect()
    assert [name for name, _ in done.unread] == (["object"] if other == "tombstone" else [])
    left = {chunk_name(ONE)} | ({chunk_name(TWO)} if done.unread else set())
    assert await servers.chunks() == left


class Moving(FaultyStore):
    """A store whose misplaced manifest moves to where it belongs when it is to be listed."""

    rightful: FaultyStore
    moved = False

    async def list(self, listing=EVERYTHING):
        wanted = partition_of("object") in listing.partitions and not listing.prefix
        if wanted and not self.moved:
            self.moved = True
            blob = await self.store.get("object")
            payload = Bytes(await read_whole(blob.payload))
            at = blob.info.stamp
            await calls.put(self.rightful.store, "object", payload, stamp=at, kind=Kind.MANIFEST)
            await calls.remove(self.store, "object", if_stamp=at)
        async for info in super().list(listing):
            yield info


async def test_a_manifest_that_is_moved_meanwhile_is_seen():
    servers = Servers("ab", copies=1)
    await calls.put(servers.cluster, chunk_name(ONE), Bytes(ONE))
    (rightful,) = servers.cluster.placement.of(partition_of("object")).rightful
    (other,) = {"a", "b"} - {rightful.name}
    moving = servers.stores[other] = Moving(servers.stores[other].store)
    moving.rightful = servers.stores[rightful.name]
    manifest = Bytes(Manifest(1, [chunk_name(ONE)]).encode())
    await calls.put(moving.store, "object", manifest, kind=Kind.MANIFEST)
    servers.groups = servers.grouped("ab", 1)
    servers.seconds += 2 * GRACE
    assert (await servers.collect()).manifests == 1
    assert await servers.chunks() == {chunk_name(ONE)}


async def test_an_older_configuration_removes_nothing():
    servers = Servers()
    await calls.put(servers.cluster, chunk_name(ONE), Bytes(ONE))
    servers.seconds += 2 * GRACE
    for store in servers.stores.values():
        await tell(store, Seen(3, "x"))
    with pytest.raises(Outdated):
        await servers.collect(seen=Seen(2, "x"))
    assert await servers.chunks() == {chunk_name(ONE)}
    for other in (Seen(3, "y"), Seen(0, "")):
        with pytest.raises(Outdated, match="--config"):
            await servers.collect(seen=other)
    told = False

    async def newer(method: str, _name: str) -> None:
        nonlocal told
        if method == "condition" and not told:  # the manifests have been read
            told = True
            for store in servers.stores.values():
                await tell(store.store, Seen(4, "y"))

    for store in servers.stores.values():
        store.pause = newer
    with pytest.raises(Outdated, match="epoch 4"):
        await servers.collect(seen=Seen(3, "x"))
    assert await servers.chunks() == {chunk_name(ONE)}
    assert (await servers.collect(seen=Seen(4, "y"))).removed == 2


async def test_broken_off_anywhere_it_is_made_good_by_the_next():
    for stop in range(0, 6_000, 397):
        servers = Servers()
        await servers.upload("kept", [ONE, TWO])
        for number in range(5):
            await calls.put(servers.cluster, chunk_name(b"%d" % number), Bytes(b"%d" % number))
        servers.seconds += 2 * GRACE
        work = servers.collect()
        interrupted = await broken_off(work, servers.stores.values(), after=stop)
        await servers.collect()
        assert await servers.chunks() == {chunk_name(ONE), chunk_name(TWO)}
        if not interrupted:
            return
    raise AssertionError("it never came to its end")


CONTENTS = [b"%d" % number for number in range(4)]
ACTS = st.lists(
    st.tuples(
        st.sampled_from(["upload", "delete", "repair", "wait"]),
        st.sampled_from(["one", "two", "three"]),
        st.lists(st.sampled_from(CONTENTS), min_size=1, max_size=3),
    ),
    max_size=8,
)


@settings(max_examples=settings.default.max_examples // 25)
@given(ACTS, ACTS, st.integers(0, 1_000_000))
async def test_whatever_goes_on_meanwhile_every_object_stays_whole(before, meanwhile, seed):
    """Uploads, deletes and repairs at any of the calls a collection makes."""
    servers = Servers("abcd", copies=2)
    rng = random.Random(seed)
    objects: dict[str, Sequence[bytes]] = {}

    async def act(what: str, name: str, contents: Sequence[bytes]) -> None:
        if what == "upload":
            objects.pop(name, None)  # until it is acknowledged nobody may rely on it
            await servers.upload(name, contents)
            objects[name] = contents
        elif what == "delete":
            objects.pop(name, None)
            await calls.delete(servers.cluster, name)
        elif what == "repair":
            await repair.round()
        else:
            servers.seconds += GRACE / 3

    seen = Seen(1, "x")
    repair = Repair(servers.groups, seen, now=servers.now, pause=no_time)
    for each in before:
        await act(*each)
    left = list(meanwhile)
    quiet = False

    async def butt_in(_method: str, _name: str) -> None:
        nonlocal quiet
        if left and not quiet and rng.random() < 0.02:
            quiet = True
            await act(*left.pop())
            quiet = False

    for store in servers.stores.values():
        store.pause = butt_in
    await servers.collect(seen=seen)
    for store in servers.stores.values():
        store.pause = None
    for contents in objects.values():
        for content in contents:
            blob = await servers.cluster.get(chunk_name(content))
            assert await read_whole(blob.payload) == content
    for each in left:
        await act(*each)
    servers.seconds += 2 * GRACE
    await repair.round()
    await servers.collect(seen=seen)
    named = {chunk_name(content) for contents in objects.values() for content in contents}
    assert await servers.chunks() == named


async def test_a_real_upload_is_read_back_after_a_collection():
    servers = Servers()
    objects = Objects(servers.cluster)
    data = random.Random(5).randbytes(CHUNK + 1_000)

    class Source:
        length = len(data)
        at = 0

        async def receive_into(self, buffer: memoryview) -> int:
            got = min(len(buffer), len(data) - self.at)
            buffer[:got] = data[self.at : self.at + got]
            self.at += got
            return got

    stored = await objects.upload(Source())
    await calls.put(servers.cluster, chunk_name(ONE), Bytes(ONE))
    servers.seconds += 2 * GRACE
    assert (await servers.collect()).removed == 2
    assert await read_whole((await objects.download(stored.id)).payload) == data
    await objects.delete(stored.id)
    assert (await servers.collect()).removed == 4
    assert await servers.chunks() == set()

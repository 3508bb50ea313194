"""A check finds each thing that is wrong, by its kind, and nothing when all is well."""

from __future__ import annotations

import pytest

from dolmen.cluster.cluster import Cluster
from dolmen.cluster.groups import Member, make_group
from dolmen.cluster.manifest import CHUNK, Manifest
from dolmen.cluster.placement import Placement
from dolmen.errors import Corrupt, Unavailable
from dolmen.names import chunk_name, partition_of
from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.replication.check import Findings, check
from dolmen.replication.report import EXAMPLES
from dolmen.stores.epoch import Seen, tell
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls
from dolmen.testing.faulty import FaultyStore
from replication.setting import no_time

OBJECT, CHUNKS = "f" * 64, [b"one", b"two"]


class Servers:
    """Three servers with two copies of everything, and one large object on them."""

    def __init__(self) -> None:
        self.stores = {name: FaultyStore(MemoryStore()) for name in "abc"}
        members = [Member(name, store) for name, store in self.stores.items()]
        self.groups = [make_group("all", members, copies=2, volatile=True)]
        self.cluster = Cluster(self.groups)

    async def fill(self) -> None:
        for number in range(30):
            await calls.put(self.cluster, f"name-{number}", Bytes(b"data"))
        await calls.delete(self.cluster, "name-0")
        names = [chunk_name(content) for content in CHUNKS]
        for name, content in zip(names, CHUNKS, strict=True):
            await calls.put(self.cluster, name, Bytes(content))
        manifest = Manifest(CHUNK + 1, names).encode()
        await calls.put(self.cluster, OBJECT, Bytes(manifest), kind=Kind.MANIFEST)

    def home_of(self, name: str) -> list[str]:
        place = Placement(self.groups).of(partition_of(name))
        return [member.name for member in place.rightful]

    def away_from(self, name: str) -> list[str]:
        return [each for each in self.stores if each not in self.home_of(name)]

    async def drop(self, name: str, *servers: str) -> None:
        for each in servers:
            stamp = (await self.stores[each].stat(name)).stamp
            await calls.remove(self.stores[each], name, if_stamp=stamp)

    async def check(self, *, data: bool = False) -> Findings:
        return await check(self.groups, data=data, pause=no_time)


@pytest.fixture
async def servers() -> Servers:
    made = Servers()
    await made.fill()
    return made


def kinds(found: Findings) -> dict[str, int]:
    return {kind: each.count for kind, each in found.wrong.items()}


async def test_nothing_where_all_is_well(servers):
    found = await servers.check(data=True)
    assert found.well
    assert (found.names, found.copies, found.manifests, found.read) == (33, 66, 1, 66)
    assert found.unnamed == 0


async def test_a_missing_copy(servers):
    home = servers.home_of("name-3")[1]
    await servers.drop("name-3", home)
    found = await servers.check()
    assert kinds(found) == {"lacking": 1}
    assert found.wrong["lacking"].examples == [("name-3", f"{home} should hold it")]


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("a newer copy", "outdated"),
        ("a delete the other missed", "outdated"),
        ("a copy elsewhere", "misplaced"),
        ("no manifest", "unreadable"),
    ],
)
async def test_a_copy_that_is_wrong(servers, what, kind):
    home = servers.stores[servers.home_of("name-3")[0]]
    (away,) = servers.away_from("name-3")
    stamp = (await servers.cluster.stat("name-3")).stamp
    if what == "a newer copy":
        await calls.put(home, "name-3", Bytes(b"new"), stamp=1 << 62)
    elif what == "a delete the other missed":
        await calls.delete(home, "name-3")
    elif what == "a copy elsewhere":
        await calls.put(servers.stores[away], "name-3", Bytes(b"data"), stamp=stamp)
    else:
        await calls.put(servers.cluster, "e" * 64, Bytes(b"no manifest"), kind=Kind.MANIFEST)
    assert kinds(await servers.check()) == {kind: 1}


async def test_an_object_that_lacks_a_chunk_everywhere(servers):
    lost = chunk_name(CHUNKS[1])
    await servers.drop(lost, *servers.home_of(lost))
    assert kinds(await servers.check()) == {"broken": 1}
    await calls.put(servers.cluster, "e" * 64, Bytes(b"no manifest"), kind=Kind.MANIFEST)
    found = await servers.check()
    assert kinds(found) == {"unreadable": 1, "broken": 1}
    ((name, why),) = found.wrong["broken"].examples
    assert name == OBJECT
    assert lost in why


async def test_nothing_is_said_of_the_chunks_on_a_server_of_a_larger_cluster(servers):
    store = servers.stores[servers.away_from(chunk_name(CHUNKS[0]))[0]]
    await tell(store, Seen(1, "of all"), "a")
    alone = [make_group("all", [Member("alone", store)], volatile=True)]
    found = await check(alone, pause=no_time)
    assert found.well
    assert "use --config" in str(found.partial)
    assert (await check(alone, seen=Seen(1, "of all"), pause=no_time)).partial is None


async def test_chunks_of_no_object_are_counted_and_no_fault(servers):
    await calls.put(servers.cluster, chunk_name(b"three"), Bytes(b"three"))
    found = await servers.check()
    assert found.well
    assert (found.unnamed, found.unnamed_bytes) == (2, 10)


async def test_damage_is_found_by_reading(servers):
    store = servers.stores[servers.home_of("name-3")[0]]
    get = store.get

    async def rotten(name, *, byte_range=None):
        if name == "name-3":
            raise Corrupt("rotten")
        return await get(name, byte_range=byte_range)

    store.get = rotten
    assert (await servers.check()).well
    found = await servers.check(data=True)
    assert kinds(found) == {"damaged": 1}
    assert found.wrong["damaged"].examples[0][0] == "name-3"


async def test_a_server_that_can_not_be_asked_is_named(servers):
    servers.stores["b"].down = True
    with pytest.raises(Unavailable, match="b: "):
        await servers.check()


async def test_a_few_examples_stand_for_many(servers):
    servers.stores["a"].store = MemoryStore()
    found = await servers.check()
    assert found.wrong["lacking"].count > EXAMPLES == len(found.wrong["lacking"].examples)

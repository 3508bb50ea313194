"""How many requests each call takes: users wait for them, and pay for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest

from dolmen.metadata import encode
from dolmen.names import checksum_of, partition_of
from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.store import Blob
from dolmen.stores.objects import ObjectsStore
from dolmen.stores.objects.bucket import Bucket, Pages
from dolmen.stores.objects.parts import PART
from dolmen.testing.conformance import Time
from dolmen.testing.conformance.material import at, info_of, names, noise
from engines.buckets import opened
from engines.moto import Moto

SMALL, LARGE = noise(1000), noise(100_000)


class Counted:
    """The requests to a bucket, while it is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: Counter[str] = Counter()
        for method in ("get", "put", "delete"):
            monkeypatch.setattr(Bucket, method, self._counting(method, getattr(Bucket, method)))
        monkeypatch.setattr(Pages, "__anext__", self._counting("list", Pages.__anext__))

    def _counting(self, what: str, method: Callable[..., Awaitable[object]]) -> object:
        async def counting(*arguments: object) -> object:
            if what != "delete" or arguments[1]:
                self.requests[what] += 1
            return await method(*arguments)

        return counting

    async def of(self, call: Awaitable[object]) -> dict[str, int]:
        self.requests.clear()
        await call
        return dict(self.requests)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


@pytest.fixture
async def store(moto: Moto, request: pytest.FixtureRequest) -> AsyncIterator[ObjectsStore]:
    store = opened(moto.url(request.node.name[5:50].replace("_", "-")), Time())
    yield store
    await store.aclose()


# A listing that is read to its end is asked once more whether there is a page after the last:
# the driver knows there is none, and sends nothing.
LIST = {"list": 2}
NONE = {"list": 1}


async def test_a_put_of_little_is_a_list_and_a_put(store: ObjectsStore, counted: Counted) -> None:
    assert await counted.of(store.put("name", Bytes(SMALL))) == NONE | {"put": 1}
    assert await counted.of(store.put("name", Bytes(SMALL))) == LIST | {"put": 1}
    long = encode([(b"a", bytes(2000))])
    assert await counted.of(store.put("long", Bytes(SMALL), meta=long)) == NONE | {"put": 1}


async def test_a_put_of_more_is_a_put_for_each_part_besides(
    store: ObjectsStore, counted: Counted
) -> None:
    assert await counted.of(store.put("name", Bytes(LARGE))) == NONE | {"put": 2}
    assert await counted.of(store.put("big", Bytes(bytes(PART + 1)))) == NONE | {"put": 3}


async def test_a_get_is_a_list_and_a_get(store: ObjectsStore, counted: Counted) -> None:
    await store.put("small", Bytes(SMALL))
    await store.put("large", Bytes(LARGE))
    await store.put("empty", Bytes(b""))
    assert await counted.of(store.get("small")) == LIST | {"get": 1}
    assert await counted.of(store.get("large")) == LIST | {"get": 1}
    assert await counted.of(store.get("large", byte_range=(5, 6))) == LIST | {"get": 1}
    assert await counted.of(store.get("empty")) == LIST


async def test_what_asks_and_what_changes_without_data(
    store: ObjectsStore, counted: Counted
) -> None:
    await store.put("name", Bytes(LARGE), stamp=at(1))
    assert await counted.of(store.stat("name")) == LIST
    touch = store.touch("name", stamp=at(2), checksum=checksum_of(LARGE), meta=b"")
    assert await counted.of(touch) == LIST | {"put": 1}
    assert await counted.of(store.delete("name", stamp=at(3))) == LIST | {"put": 1}
    assert await counted.of(store.remove("name", if_stamp=at(2))) == LIST


async def test_a_thousand_in_list_order_take_hardly_more_requests_than_there_are(
    store: ObjectsStore, counted: Counted
) -> None:
    chosen = sorted((f"n{number}" for number in range(1000)), key=lambda n: (partition_of(n), n))

    async def put_all(chosen: Sequence[str]) -> None:
        async def blobs() -> AsyncIterator[Blob]:
            for name in chosen:
                yield Blob(info_of(name, name.encode(), stamp=at(1)), Bytes(name.encode()))

        async for _ in store.put_many(blobs()):
            pass

    async def get_all(chosen: Sequence[str]) -> None:
        async for _ in store.get_many(chosen):
            pass

    wrote = await counted.of(put_all(chosen))
    assert (wrote["put"], wrote["list"]) == (1000, 2)
    read = await counted.of(get_all(chosen))
    assert (read["get"], read["list"]) == (1000, 2)
    # One after the other where they lie far apart.
    few = await counted.of(get_all(chosen[::100]))
    assert (few["get"], few["list"]) == (10, 20)


async def test_a_listing_is_a_request_for_a_thousand_and_leaps_over_what_is_not_wanted(
    store: ObjectsStore, counted: Counted
) -> None:
    chosen = sorted((f"n{number}" for number in range(2500)), key=lambda n: (partition_of(n), n))

    async def deleted() -> AsyncIterator[Blob]:
        for name in chosen:
            yield Blob(info_of(name, b"", stamp=at(1), kind=Kind.TOMBSTONE), Bytes(b""))

    async for _ in store.put_many(deleted()):
        pass
    found: list[str] = []

    async def listed(**narrowed: object) -> None:
        found[:] = await names(store.list(tombstones=True, **narrowed))

    assert await counted.of(listed()) == {"list": 4}
    assert found == chosen
    assert await counted.of(listed(after=chosen[1600])) == NONE | {"list": 2}
    assert found == chosen[1601:]
    held = partition_of(chosen[2200])
    assert await counted.of(listed(partitions=[held])) == LIST
    assert chosen[2200] in found
    ends = [0, 1, held]
    assert (await counted.of(listed(partitions=ends)))["list"] == 2
    assert found == [name for name in chosen if partition_of(name) in ends]
    assert await counted.of(store.digests()) == {"list": 4}

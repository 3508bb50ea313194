"""Suites for stores above a driver: the contract, damaged alike, and a server that fails."""

import asyncio
import random
from typing import cast

import pytest

from dolmen.errors import Conflict, NotFound, OutcomeUnknown, Unavailable
from dolmen.names import partition_of
from dolmen.payload import Bytes
from dolmen.record import NOBODY
from dolmen.store import BlobStore
from dolmen.stores import open_store
from dolmen.stores.keyed import KeyedStore
from dolmen.stores.keyed_entries import decode, entry_key
from dolmen.stores.keyed_parts import part_key
from dolmen.testing import calls
from dolmen.testing.conformance import Conformance, Place
from dolmen.testing.conformance.material import at, content, noise, recomputed


async def put(store, name, data, **options):
    return await calls.put(store, name, Bytes(data), **options)


async def answered(ask):
    """The answer, once it is no `Unavailable` any more."""
    for _ in range(500):
        try:
            return await ask()
        except Unavailable:
            await asyncio.sleep(0.02)
    return await ask()


class Keyed(Conformance):
    model_examples = 2  # what lies above the driver has more with SQLite

    async def damage(self, store: BlobStore, place: Place, name: str) -> None:
        """Flip the last bit of its entry, or of its first part."""
        driver, partition = cast("KeyedStore", store)._driver, partition_of(name)
        key = entry_key(name)
        [value] = await driver.get([key])
        assert value is not None
        upload = decode(key, value).upload
        if upload != NOBODY:
            key = part_key(partition, upload, 0)
            [value] = await driver.get([key])
            assert value is not None
        await driver.set(key, value[:-1] + bytes([value[-1] ^ 1]))


class Faults:
    """Killed, paused, not there. `server` and `store` are fixtures of the engine's test."""

    forgets = False
    """It holds nothing after it was killed."""

    async def test_killed_amid_writes_it_holds_all_that_was_answered(self, store, server):
        rng = random.Random(1)
        told, unsure, failed = {}, set(), []

        async def write(number):
            name = f"n{number % 40}"
            data = noise(rng.choice((0, 100, 5_000, 100_000)), number)
            try:
                if rng.random() < 0.2:
                    data = None
                    answer = await calls.delete(store, name)
                else:
                    answer = await put(store, name, data, stamp=at(number))
                if answer.outcome != "superseded":
                    told[name] = max(told.get(name, (0, None)), (answer.stamp, data))
            except OutcomeUnknown:
                unsure.add(name)
            except (Unavailable, Conflict) as error:
                failed.append(error)

        async def kill():
            while len(told) < 20:
                await asyncio.sleep(0)
            server.kill()

        await asyncio.gather(kill(), *(write(number) for number in range(600)))
        assert unsure or failed
        with pytest.raises(Unavailable, match=" at "):
            await store.get("n0")
        server.start()
        await answered(store.digests)
        if self.forgets:
            with pytest.raises(NotFound):
                await store.get("n0")
            return
        for name, (stamp, data) in told.items():
            info = await calls.current(store, name)
            assert info.stamp >= stamp
            if name not in unsure:
                assert info.stamp == stamp
                assert data is None or await content(store, name) == data
        assert await store.digests() == await recomputed(store)

    async def test_one_that_does_not_answer_is_given_up_and_asked_again(self, store, server):
        await put(store, "name", b"x", stamp=at(1))
        await put(store, "large", noise(2 << 20))
        server.pause()
        with pytest.raises(OutcomeUnknown):  # it was sent
            await put(store, "name", b"y", stamp=at(2))
        asked = (
            *(store.get("name"), store.stat("name"), store.digests(), store.condition()),
            *(content(store, "large"), put(store, "new", b"x"), put(store, "new", noise(2 << 20))),
        )
        failed = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(error, Unavailable | OutcomeUnknown) for error in failed), failed
        server.go_on()
        assert await answered(lambda: content(store, "name")) in (b"x", b"y")
        assert await answered(lambda: content(store, "large")) == noise(2 << 20)
        assert (await put(store, "other", b"y")).outcome == "created"
        for _ in range(100):  # what was sent before may still arrive
            if await store.digests() == await recomputed(store):
                break
        else:
            raise AssertionError("digests differ from what is there")

    async def test_one_that_is_not_there_is_waited_for(self, server):
        server.kill()
        store = await open_store(server.url())
        for ask in (store.get("a"), put(store, "a", b"a"), store.condition(), store.digests()):
            with pytest.raises(Unavailable):
                await ask
        server.start()
        await put(store, "a", b"a")
        assert await content(store, "a") == b"a"
        server.kill()
        with pytest.raises(Unavailable):
            await store.get("a")
        await store.aclose()
        with pytest.raises(Unavailable, match="closed"):
            await store.get("a")

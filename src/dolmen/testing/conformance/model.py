"""Any sequence of calls: the store answers as the store in memory does.

Hypothesis makes up the calls and shortens those that find a difference. The model
is `MemoryStore`, whose rules are `dolmen.stores.verdict`; so that the two need not
agree on the time of day, the model is told which stamp the store gave a plain write.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from dolmen.errors import BadContent, Conflict, DolmenError, NotFound
from dolmen.names import checksum_of, partition_of
from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.stamps import Clock
from dolmen.store import ALL_PARTITIONS, Blob, BlobInfo, BlobStore, Put
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls
from dolmen.testing.conformance.material import at, read, standing, streamed
from dolmen.testing.conformance.rivals import Rival
from dolmen.testing.conformance.setting import Place, Suite, Time
from dolmen.testing.conformance.strategies import (
    NAMES,
    contents,
    examples,
    kinds,
    metas,
    names_,
    steps,
    writes,
)

T = TypeVar("T")


class Told(Clock):
    """A clock that gives the stamp it was told, and minds that it is high enough."""

    told = 0

    def next(self, above: int = 0) -> int:
        """The stamp told."""
        assert self.told > above, "a stamp was given that is not above what stands"
        return self.told


async def answer_of(call: Awaitable[T]) -> T | tuple[type[DolmenError], int]:
    """What a call answers: its value, or what it raises."""
    try:
        return await call
    except DolmenError as error:
        return type(error), error.stamp if isinstance(error, NotFound) else 0


class Compared(RuleBasedStateMachine):
    """A store and its model, called alike."""

    def __init__(self, suite: Suite, place: Place) -> None:
        super().__init__()
        self.suite, self.place = suite, place
        self.clock = Told()
        self.model = MemoryStore(clock=self.clock, now=place.time.now)
        self.runner = asyncio.Runner()
        self.agreed = True
        self.store: BlobStore = self.run(suite.make_store(place))

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it to its end."""
        try:
            return self.runner.run(coroutine)
        except BaseException:
            self.agreed = False
            raise

    def teardown(self) -> None:
        """Compare everything, unless a difference was found before, and close."""
        try:
            if self.agreed:
                self.run(self.everything_agrees())
        finally:
            self.run(self.close())
            self.runner.close()

    async def close(self) -> None:
        """Close the store and what was started for it."""
        await self.store.aclose()
        await self.place.exits.aclose()

    async def stamp(self, name: str, step: int) -> int:
        """The stamp that a step means here."""
        found = await standing(self.model, name)
        return step if step > 1 else max(1, (found.stamp if found else at(4)) + step)

    def shown(self, info: BlobInfo | None) -> object:
        """What has to be the same of an info."""
        if info is None:
            return None
        arrived = info.arrived if self.suite.takes_time else 0
        return (info.name, info.size, *info.rank, info.metadata, arrived)

    async def agree(self, name: str) -> None:
        """What stands under the name is the same, and its bytes are."""
        found, wanted = await standing(self.store, name), await standing(self.model, name)
        assert self.shown(found) == self.shown(wanted)
        if wanted is not None and wanted.kind != Kind.TOMBSTONE:
            blob, model = await self.store.get(name), await self.model.get(name)
            assert self.shown(blob.info) == self.shown(wanted)
            assert await read(blob.payload) == model.payload.whole

    async def everything_agrees(self) -> None:
        """Every name, every listing and the digests are the same."""
        for name in NAMES:
            await self.agree(name)
        found, wanted = await self.store.digests(), await self.model.digests()
        assert found.encode() == wanted.encode()
        await self.same_listing(tombstones=True)

    async def same_listing(self, **narrowed: Any) -> None:
        """A listing is the same."""
        found = [self.shown(info) async for info in calls.listing(self.store, **narrowed)]
        assert found == [self.shown(info) async for info in calls.listing(self.model, **narrowed)]

    async def plain(self, found: object, again: Awaitable[Put]) -> None:
        """Let the model do the plain write the store has answered, with the stamp it gave."""
        self.clock.told = found.stamp if isinstance(found, Put) else 1 << 70
        assert found == await answer_of(again)

    @rule(name=names_, data=contents, kind=kinds, meta=metas, step=steps, stream=st.booleans())
    def put(self, name: str, data: bytes, kind: Kind, meta: bytes, step: int, stream: bool) -> None:
        """Put with a stamp."""

        async def both() -> None:
            stamp = await self.stamp(name, step)
            payload = streamed(data) if stream else Bytes(data)
            found = await calls.put(self.store, name, payload, stamp=stamp, kind=kind, meta=meta)
            assert found == await calls.put(
                self.model, name, Bytes(data), stamp=stamp, kind=kind, meta=meta
            )
            await self.agree(name)

        self.run(both())

    @rule(name=names_, data=contents, meta=metas, stream=st.booleans())
    def put_plain(self, name: str, data: bytes, meta: bytes, stream: bool) -> None:
        """Put without a stamp."""

        async def both() -> None:
            payload = streamed(data) if stream else Bytes(data)
            found = await answer_of(calls.put(self.store, name, payload, meta=meta))
            stamp = None
            if isinstance(found, Put) and not self.store.capabilities.conflicts:
                stamp = found.stamp  # the newer stamp wins
            if found != (Conflict, 0) or self.store.capabilities.conflicts:
                again = calls.put(self.model, name, Bytes(data), meta=meta, stamp=stamp)
                await self.plain(found, again)
            await self.agree(name)

        self.run(both())

    @rule(name=names_, data=contents, step=steps, missing=st.integers(1, 60_000))
    def put_what_fails(self, name: str, data: bytes, step: int, missing: int) -> None:
        """Put a payload that ends too early."""

        async def fails() -> None:
            payload = streamed(data)
            payload.size += missing
            with pytest.raises(BadContent):
                await calls.put(self.store, name, payload, stamp=await self.stamp(name, step))
            await self.agree(name)

        self.run(fails())

    @rule(name=names_, data=contents, meta=metas, step=steps)
    def touch(self, name: str, data: bytes, meta: bytes, step: int) -> None:
        """Touch what may or may not be there."""

        async def both() -> None:
            stamp, checksum = await self.stamp(name, step), checksum_of(data)
            found, wanted = [
                await answer_of(calls.touch(store, name, stamp=stamp, checksum=checksum, meta=meta))
                for store in (self.store, self.model)
            ]
            assert found == wanted
            await self.agree(name)

        self.run(both())

    @rule(name=names_, step=steps)
    def delete(self, name: str, step: int) -> None:
        """Delete with a stamp."""

        async def both() -> None:
            stamp = await self.stamp(name, step)
            found = await calls.delete(self.store, name, stamp=stamp)
            assert found == await calls.delete(self.model, name, stamp=stamp)
            await self.agree(name)

        self.run(both())

    @rule(name=names_)
    def delete_plain(self, name: str) -> None:
        """Delete without a stamp."""

        async def both() -> None:
            await self.plain(await calls.delete(self.store, name), calls.delete(self.model, name))
            await self.agree(name)

        self.run(both())

    @rule(name=names_, step=steps, min_age=st.sampled_from([0, 3600]))
    def remove(self, name: str, step: int, min_age: float) -> None:
        """Remove, mostly what stands."""

        async def both() -> None:
            stamp = await self.stamp(name, step)
            found = await calls.remove(self.store, name, if_stamp=stamp, min_age=min_age)
            assert found == await calls.remove(self.model, name, if_stamp=stamp, min_age=min_age)
            await self.agree(name)

        self.run(both())

    @rule(bundle=st.dictionaries(names_, writes, min_size=1))
    def put_many(self, bundle: dict[str, Rival]) -> None:
        """Rival several names at once."""

        async def blobs() -> AsyncIterator[Blob]:
            for name, write in bundle.items():
                yield Blob(write.info(name), Bytes(write.data))

        async def both() -> None:
            found = [answer async for answer in calls.put_many(self.store, blobs())]
            assert found == [
                await self.model.write(write.of(name)) for name, write in bundle.items()
            ]
            for name in bundle:
                await self.agree(name)

        self.run(both())

    @rule(name=names_, start=st.integers(0, 70_001), length=st.integers(0, 70_001))
    def get_range(self, name: str, start: int, length: int) -> None:
        """Read a part."""

        async def both() -> None:
            parts = []
            for store in (self.store, self.model):
                try:
                    blob = await store.get(name, byte_range=(start, start + length))
                    parts.append(await read(blob.payload))
                except NotFound:
                    parts.append(b"nothing")
            assert parts[0] == parts[1]

        self.run(both())

    @rule(
        after=st.none() | names_,
        prefix=st.sampled_from(["", "n", "o", NAMES[0]]),
        partitions=st.sampled_from([ALL_PARTITIONS, sorted({partition_of(n) for n in NAMES[1:]})]),
        tombstones=st.booleans(),
    )
    def list(self, **narrowed: Any) -> None:
        """List in some way."""
        self.run(self.same_listing(**narrowed))

    @rule()
    def digests(self) -> None:
        """Compare everything."""
        self.run(self.everything_agrees())

    @precondition(lambda self: self.suite.takes_time)
    @rule(seconds=st.sampled_from([1, 1800, 3600]))
    def time_passes(self, seconds: int) -> None:
        """Let time pass."""
        self.place.time.advance(seconds)

    @precondition(lambda self: self.suite.reopens)
    @rule()
    def reopen(self) -> None:
        """Close the store and open it again."""
        self.run(self.store.aclose())
        self.store = self.run(self.suite.make_store(self.place))
        self.run(self.everything_agrees())


class Modelled(Suite):
    """The store compared with the model."""

    model_examples: ClassVar[int] = 25
    """How many sequences of calls an ordinary run tries."""

    def test_any_sequence_of_calls_answers_as_the_model_does(self, tmp_path: Path) -> None:
        """See `Compared`."""
        suite, places = self, self._places(tmp_path)

        class Here(Compared):
            def __init__(self) -> None:
                super().__init__(suite, next(places))

        run_state_machine_as_test(Here, settings=examples(self.model_examples))

    def test_copies_converge_in_whatever_order_writes_arrive(self, tmp_path: Path) -> None:
        """A bundle of writes, in two orders and partly twice, gives equal digests."""
        places = self._places(tmp_path)

        @examples(self.model_examples)
        @given(bundle=st.lists(st.tuples(names_, writes), min_size=2, max_size=12), data=st.data())
        def converge(bundle: list[tuple[str, Rival]], data: st.DataObject) -> None:
            orders = [bundle, data.draw(st.permutations(bundle + bundle[:3]))]
            digests = [asyncio.run(delivered(self, next(places), order)) for order in orders]
            assert digests[0] == digests[1]

        converge()

    def _places(self, folder: Path) -> Iterator[Place]:
        for number in itertools.count():
            yield Place(folder / str(number), Time(real=not self.takes_time))


async def delivered(suite: Suite, place: Place, writes: list[tuple[str, Rival]]) -> bytes:
    """The digests of a new store that took these writes in this order."""
    async with place.exits:
        store = await suite.make_store(place)
        for name, write in writes:
            await store.write(write.of(name))
        digests = await store.digests()
        await store.aclose()
    return digests.encode()

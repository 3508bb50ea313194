"""Any sequence of calls: the store answers as the store in memory does.

Hypothesis makes up the calls, the same ones every time, and shortens those that find a
difference. The model is `MemoryStore`, whose rules are `dolmen.resolve`; so that the two
need not agree on the time of day, the model's clock gives the stamp that the store gave.
"""

# ruff: noqa: D102 - the names say what is done

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from dolmen.errors import Conflict, DolmenError, NotFound
from dolmen.names import checksum_of, partition_of
from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.stamps import Clock
from dolmen.store import ALL_PARTITIONS, BlobInfo, BlobStore, Failed, Listing, Put, Write
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls
from dolmen.testing.conformance.material import (
    META,
    OTHER_META,
    at,
    content,
    crowd,
    each,
    noise,
    read,
    with_stream,
)
from dolmen.testing.conformance.setting import LONG, Place, Suite, Time
from dolmen.testing.faulty import damage

T = TypeVar("T")
NEIGHBOURS = next(
    pair for pair in pairwise(crowd()) if partition_of(pair[0]) == partition_of(pair[1])
)
NAMES = [*NEIGHBOURS, "name"]


class Content(bytes):
    """Bytes that don't fill the report of a failure."""

    def __repr__(self) -> str:
        return bytes.__repr__(self) if len(self) < 20 else f"<{len(self)} bytes>"


def made(name: str, kind: Kind, data: bytes, meta: bytes) -> Write:
    """A write without a stamp; a touch has one that does not count."""
    if kind is Kind.TOMBSTONE:
        return Write.tombstone(name)
    if kind is Kind.TOUCH:
        return Write.touch(name, stamp=0, checksum=checksum_of(data), metadata=meta)
    return Write(name, Bytes(data), kind, meta)


PUTS = [Kind.BLOB, Kind.BLOB, Kind.MANIFEST] * 2
"""What is made up more often comes more often."""
some_name = st.sampled_from(NAMES)
contents = st.sampled_from([Content(data) for data in (b"one", b"one", noise(70_000), b"")])
metas = st.sampled_from([b"", META, OTHER_META])
plain, writes = (
    st.builds(made, some_name, st.sampled_from(kinds), contents, metas)
    for kinds in ([*PUTS, Kind.TOMBSTONE], [*PUTS, *[Kind.TOUCH] * 3, Kind.TOMBSTONE])
)
steps = st.sampled_from([2, 1, 1, 1, 0, 0, -1])
"""A stamp: so far from the current one."""


def examples(count: int) -> settings:
    """So many examples, 80 times as many in a long run; always the same ones."""
    return settings(
        max_examples=count * 80 if LONG else count,
        stateful_step_count=60 if LONG else 30,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )


class Given(Clock):
    """A clock that gives the stamp it was given, and minds that it is high enough."""

    stamp = 0

    def next(self, above: int = 0) -> int:
        assert self.stamp > above, "a stamp was given that is not above the current one"
        return self.stamp


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
        self.clock = Given()
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
        await self.store.aclose()
        await self.place.exits.aclose()

    def stamp(self, name: str, step: int) -> int:
        """The stamp that a step means here."""
        current = self.model._current(name)[0]  # noqa: SLF001 - of a damaged copy too
        return (current.stamp if current else at(4)) + step

    def shown(self, info: object) -> object:
        """What has to be the same of an info."""
        if not isinstance(info, BlobInfo):
            return info
        arrived = info.arrived if self.suite.takes_time else 0
        return info.name, info.size, *info.rank, info.metadata, arrived

    async def agree(self, name: str) -> None:
        """What is current under the name is the same, and its bytes are."""
        infos = [
            self.shown(await answer_of(calls.current(store, name)))
            for store in (self.store, self.model)
        ]
        assert infos[0] == infos[1]
        with suppress(DolmenError):
            wanted = (await self.model.get(name)).payload.whole
            blob = await self.store.get(name)
            assert self.shown(blob.info) == infos[0]
            assert await read(blob.payload) == wanted

    async def everything_agrees(self) -> None:
        for name in NAMES:
            await self.agree(name)
        found, wanted = await self.store.digests(), await self.model.digests()
        assert found.encode() == wanted.encode()
        await self.same_listing(Listing(tombstones=True))
        await self.same_listing(Listing(quarantined=True))

    async def same_listing(self, listing: Listing) -> None:
        found = [self.shown(info) async for info in self.store.list(listing)]
        assert found == [self.shown(info) async for info in self.model.list(listing)]

    @rule(write=writes, step=steps, stream=st.booleans())
    def write(self, write: Write, step: int, stream: bool) -> None:
        async def both() -> None:
            stamped = replace(write, stamp=self.stamp(write.name, step))
            found = await answer_of(self.store.write(with_stream(stamped) if stream else stamped))
            assert found == await answer_of(self.model.write(stamped))
            await self.agree(write.name)

        self.run(both())

    @rule(write=plain, stream=st.booleans())
    def write_plain(self, write: Write, stream: bool) -> None:
        async def both() -> None:
            found = await answer_of(self.store.write(with_stream(write) if stream else write))
            self.clock.stamp = found.stamp if isinstance(found, Put) else 1 << 70
            wins = not self.store.capabilities.conflicts  # the newer stamp does
            stamp = found.stamp if wins and isinstance(found, Put) else None
            if found != (Conflict, 0) or not wins:
                assert found == await answer_of(self.model.write(replace(write, stamp=stamp)))
            await self.agree(write.name)

        self.run(both())

    @rule(name=some_name, step=steps, min_age=st.sampled_from([0, 3600]))
    def remove(self, name: str, step: int, min_age: float) -> None:
        async def both() -> None:
            stamp = self.stamp(name, step)
            found = await calls.remove(self.store, name, if_stamp=stamp, min_age=min_age)
            assert found == await calls.remove(self.model, name, if_stamp=stamp, min_age=min_age)
            await self.agree(name)

        self.run(both())

    @rule(some=st.lists(st.tuples(writes, steps), min_size=1, unique_by=lambda one: one[0].name))
    def write_many(self, some: list[tuple[Write, int]]) -> None:
        async def both() -> None:
            writes = [replace(write, stamp=self.stamp(write.name, step)) for write, step in some]
            answers = zip(
                [answer async for answer in self.store.write_many(each(writes))],
                [await answer_of(self.model.write(write)) for write in writes],
                strict=True,
            )
            for answer, wanted in answers:
                if isinstance(answer, Failed):
                    assert not isinstance(wanted, Put)
                    assert type(answer.error) is wanted[0]
                else:
                    assert answer == wanted
            for write in writes:
                await self.agree(write.name)

        self.run(both())

    @rule(name=some_name, start=st.integers(0, 70_001), length=st.integers(0, 70_001))
    def get_range(self, name: str, start: int, length: int) -> None:
        async def part(store: BlobStore) -> bytes:
            return await read((await store.get(name, byte_range=(start, start + length))).payload)

        async def both() -> None:
            assert await answer_of(part(self.store)) == await answer_of(part(self.model))

        self.run(both())

    @rule(
        listing=st.builds(
            Listing,
            st.sampled_from([ALL_PARTITIONS, sorted({partition_of(n) for n in NAMES[1:]})]),
            st.none() | some_name,
            st.sampled_from(["", "n", "o", NAMES[0]]),
            st.booleans(),
            st.booleans(),
        )
    )
    def list(self, listing: Listing) -> None:
        self.run(self.same_listing(listing))

    @precondition(lambda self: self.suite.takes_time)
    @rule(seconds=st.sampled_from([1, 1800, 3600]))
    def time_passes(self, seconds: int) -> None:
        self.place.time.advance(seconds)

    @precondition(lambda self: self.suite.reopens)
    @rule()
    def reopen(self) -> None:
        self.run(self.store.aclose())
        self.store = self.run(self.suite.make_store(self.place))
        self.run(self.everything_agrees())

    @precondition(lambda self: self.suite.quarantines)
    @precondition(lambda self: type(self.suite).damage is not Suite.damage)
    @rule(name=some_name)
    def damage(self, name: str) -> None:
        async def both() -> None:
            info = await answer_of(self.model.stat(name))
            if not isinstance(info, BlobInfo) or not info.size:
                return
            await self.suite.damage(self.store, self.place, name)
            damage(self.model, name)
            for store in (self.store, self.model):
                assert isinstance(await answer_of(content(store, name)), tuple)
            await self.agree(name)

        self.run(both())


class Modelled(Suite):
    """The store compared with the model."""

    model_examples: ClassVar[int] = 25
    """How many sequences of calls an ordinary run tries."""

    def test_any_sequence_of_calls_answers_as_the_model_does(self, tmp_path: Path) -> None:
        suite, places = self, self._places(tmp_path)

        class Here(Compared):
            def __init__(self) -> None:
                super().__init__(suite, next(places))

        run_state_machine_as_test(Here, settings=examples(self.model_examples))

    def _places(self, folder: Path) -> Iterator[Place]:
        for number in itertools.count():
            yield Place(folder / str(number), Time(real=not self.takes_time))

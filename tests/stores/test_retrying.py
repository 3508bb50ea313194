"""What is asked again, how often, and what an error says when it was enough."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dolmen.errors import Corrupt, NotFound, OutcomeUnknown, Outdated, ReadOnly, Unavailable
from dolmen.payload import Bytes, Piece, Stream, read_whole
from dolmen.store import Blob, Failed, Listing, Remove, Write
from dolmen.stores.memory import MemoryStore
from dolmen.stores.retrying import FIRST_PAUSE, LONGEST, TRIES, Retrying, ServerFailed
from dolmen.testing import calls
from dolmen.testing.faulty import Fault, FaultyStore

NAMES = [f"name-{number}" for number in range(12)]


class Trial:
    """A faulty store behind a retrying one, on a clock that pauses move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch | None = None) -> None:
        self.now, self.waited = 0.0, list[float]()
        self.faulty = FaultyStore(MemoryStore())
        self.store = Retrying(self.faulty, "attic", pause=self.pause)
        if monkeypatch is not None:
            monkeypatch.setattr("dolmen.stores.retrying.time.monotonic", lambda: self.now)

    async def pause(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.now += seconds

    async def filled(self) -> Trial:
        for name in NAMES:
            await calls.put(self.faulty.store, name, Bytes(name.encode()), stamp=5)
        return self


QUESTIONS = {
    "stat": lambda store: store.stat("name-1"),
    "get": lambda store: store.get("name-1"),
    "digests": lambda store: store.digests(),
    "notes": lambda store: store.notes(),
    "note": lambda store: store.note("key", b"value"),
    "condition": lambda store: store.condition(),
    "put": lambda store: store.write(Write("new", Bytes(b"new"), stamp=7)),
    "delete": lambda store: store.write(Write.tombstone("new", stamp=8)),
    "remove_many": lambda store: store.remove_many([Remove("name-1", 5)]),
}


@pytest.mark.parametrize("method", QUESTIONS)
async def test_a_question_is_asked_until_it_is_answered(method):
    trial = await Trial().filled()
    trial.faulty.script(method, *[Unavailable("away"), OutcomeUnknown("broke")] * 2)
    await QUESTIONS[method](trial.store)
    assert trial.waited == [FIRST_PAUSE * 2**n for n in range(TRIES - 1)]


@pytest.mark.parametrize("method", QUESTIONS)
async def test_one_that_stays_away_is_named(method):
    trial = await Trial().filled()
    trial.faulty.script(method, *[Unavailable("away")] * 9)
    with pytest.raises(ServerFailed, match="attic: away") as caught:
        await QUESTIONS[method](trial.store)
    assert isinstance(caught.value.error, Unavailable)
    assert len(trial.waited) == TRIES - 1


async def test_one_that_hangs_is_not_waited_for_many_times(monkeypatch):
    trial = Trial(monkeypatch)

    async def hangs(_method: str, _name: str) -> None:
        trial.now += LONGEST
        raise Unavailable("no answer")

    trial.faulty.pause = hangs
    with pytest.raises(ServerFailed):
        await trial.store.digests()
    assert trial.waited == []


async def test_what_is_wrong_with_one_blob_is_passed_on_at_once():
    trial = await Trial().filled()
    trial.faulty.script("get", Corrupt("rotten"))
    with pytest.raises(Corrupt):
        await trial.store.get("name-1")
    with pytest.raises(NotFound):
        await trial.store.stat("absent")
    assert trial.waited == []


async def test_what_no_attempt_would_change_is_not_repeated():
    trial = await Trial().filled()
    trial.faulty.script("note", ReadOnly("its disk failed"))
    with pytest.raises(ServerFailed, match="attic: its disk failed"):
        await trial.store.note("key", b"value")
    trial.faulty.script("remove_many", Outdated("epoch 7"))
    with pytest.raises(Outdated, match="attic: epoch 7"):
        await trial.store.remove_many([])
    trial.faulty.script("put", Fault.UNHEARD)
    with pytest.raises(OutcomeUnknown):  # it may have happened, and would get another stamp
        await trial.store.write(Write("new", Bytes(b"new")))
    assert trial.waited == []


@settings(max_examples=settings.default.max_examples // 4)
@given(st.integers(0, 2**32), st.sampled_from([0.1, 0.3]))
async def test_listings_and_bulk_reads_go_on_where_they_broke_off(seed, rate):
    trial = await Trial().filled()
    expected = [info.name async for info in trial.faulty.store.list()]
    trial.faulty.at_random(random.Random(seed), rate, among={Fault.CUT, Fault.UNAVAILABLE})
    try:
        assert [info.name async for info in trial.store.list(Listing())] == expected
        got = [each async for each in trial.store.get_many(NAMES)]
        assert [g.name if isinstance(g, Failed) else g.info.name for g in got] == NAMES
        for blob in got:
            if isinstance(blob, Blob):
                assert await read_whole(blob.payload) == blob.info.name.encode()
        verified = [each async for each in trial.store.verify_many(NAMES)]
        assert [each.name for each in verified] == NAMES
    except (ServerFailed, Unavailable):
        assert trial.waited


async def test_names_that_keep_failing_are_answered_with_their_error():
    trial = await Trial().filled()

    async def refuse(method: str, name: str) -> None:
        if method == "get" and name in ("name-3", "name-4"):
            raise Unavailable("503")

    trial.faulty.pause = refuse
    got = [each async for each in trial.store.get_many(NAMES)]
    assert [each.name for each in got if isinstance(each, Failed)] == ["name-3", "name-4"]
    assert len(got) == len(NAMES)


class Cutting(MemoryStore):
    """A store whose bodies break off after 10 bytes, or at once after `rest` of them."""

    def __init__(self, *, replaced: bool = False) -> None:
        super().__init__()
        self.replaced, self.ranges = replaced, list[object]()

    async def get(self, name, *, byte_range=None):
        self.ranges.append(byte_range)
        blob = await super().get(name, byte_range=byte_range)
        if self.replaced and byte_range:
            blob.info = replace(blob.info, stamp=6)
        data = bytes(blob.payload.whole or b"")

        async def opened() -> AsyncIterator[Piece]:
            yield data[:10]
            if len(data) > 10:
                raise Unavailable("the connection broke")

        blob.payload = Stream(len(data), opened)
        return blob


async def test_a_body_is_read_on_from_where_it_broke_off():
    store = Cutting()
    await calls.put(store, "name", Bytes(bytes(range(35))), stamp=5)
    retrying = Retrying(store, "attic", pause=Trial().pause)
    async for blob in retrying.get_many(["name"]):
        assert isinstance(blob, Blob)
        assert bytes(await read_whole(blob.payload)) == bytes(range(35))
    assert store.ranges == [None, (10, 35), (20, 35), (30, 35)]


async def test_a_body_is_not_put_together_from_two_writes():
    store = Cutting(replaced=True)
    await calls.put(store, "name", Bytes(bytes(35)), stamp=5)
    blob = await Retrying(store, "attic", pause=Trial().pause).get("name")
    with pytest.raises(NotFound, match="replaced"):
        await read_whole(blob.payload)
    assert blob.payload.error is not None


@pytest.mark.parametrize("method", ["list", "get_many"])
async def test_slow_progress_is_progress(monkeypatch, method):
    trial = await Trial(monkeypatch).filled()
    names = [f"more-{number}" for number in range(4 * TRIES)]
    for name in names:
        await calls.put(trial.faulty.store, name, Bytes(b"x"), stamp=5)
    trial.faulty.script(method, *[Fault.CUT] * 2 * TRIES)
    if method == "list":
        found = [info.name async for info in trial.store.list() if info.name in names]
    else:
        found = [blob.info.name async for blob in trial.store.get_many(names)]
    assert sorted(found) == sorted(names)

import asyncio
import random

import pytest

from dolmen.errors import Corrupt, DolmenError, Full, NotFound, OutcomeUnknown, Unavailable
from dolmen.names import checksum_of
from dolmen.payload import Bytes, Stream
from dolmen.stamps import Clock
from dolmen.store import Blob, BlobStore, Failed, Put, Remove
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls
from dolmen.testing.conformance import Conformance, Place
from dolmen.testing.conformance.material import content, info_of, names, noise, streamed
from dolmen.testing.faulty import CUT_AFTER, FITTING, Fault, FaultyStore, damage

DATA = noise(1000)


class TestFaultyButNothingScripted(Conformance):
    reopens = False

    async def make_store(self, place: Place) -> BlobStore:
        return FaultyStore(MemoryStore(clock=Clock(place.time.wall), now=place.time.now))

    async def damage(self, store, place, name):
        damage(store.store, name)


class Streaming(MemoryStore):
    """A store that streams what it reads."""

    async def get(self, name, *, byte_range=None):
        blob = await super().get(name, byte_range=byte_range)
        return Blob(blob.info, streamed(blob.payload.whole, (400,), once=False))


@pytest.fixture(params=[MemoryStore, Streaming])
async def faulty(request):
    store = FaultyStore(request.param())
    await calls.put(store, "name", Bytes(DATA))
    store.calls.clear()
    return store


CALLS = {
    "put": lambda store: calls.put(store, "put", Bytes(DATA)),
    "get": lambda store: store.get("name"),
    "stat": lambda store: store.stat("name"),
    "touch": lambda store: calls.touch(
        store, "name", stamp=(1 << 62), checksum=checksum_of(DATA), meta=b""
    ),
    "list": lambda store: names(store.list()),
    "delete": lambda store: calls.delete(store, "name"),
    "remove": lambda store: calls.remove(store, "absent", if_stamp=1),
    "remove_many": lambda store: store.remove_many([Remove("absent", 1)]),
    "quarantined": lambda store: collected(calls.quarantined(store)),
    "digests": lambda store: store.digests(),
    "get_many": lambda store: collected(store.get_many(["name"])),
    "write_many": lambda store: collected(calls.put_many(store, blobs())),
    "note": lambda store: store.note("key", b"value"),
    "notes": lambda store: store.notes(),
    "condition": lambda store: store.condition(),
}


async def collected(answers):
    return [answer async for answer in answers]


async def blobs(count=4):
    for number in range(count):
        yield Blob(info_of(f"n{number}", b"x", stamp=1), Bytes(b"x"))


@pytest.mark.parametrize("method", FITTING)
async def test_a_method_fails_as_scripted_and_then_goes_well(faulty, method):
    before = await faulty.store.digests()
    faulty.script(method, Fault.UNAVAILABLE, Full("no room"), None, Fault.UNAVAILABLE)
    for error in (Unavailable, Full):
        with pytest.raises(error):
            await CALLS[method](faulty)
    assert await faulty.store.digests() == before
    await CALLS[method](faulty)
    with pytest.raises(Unavailable):
        await CALLS[method](faulty)
    await CALLS[method](faulty)
    assert [call for call, _ in faulty.calls].count(method) == 5


@pytest.mark.parametrize("method", FITTING)
async def test_a_store_that_is_down_answers_nothing_until_it_is_up(faulty, method):
    faulty.down = True
    before = await faulty.store.digests()
    faulty.script(method, Full("no room"))
    with pytest.raises(Unavailable):
        await CALLS[method](faulty)
    assert await faulty.store.digests() == before
    faulty.down = False
    with pytest.raises(Full):  # the script waited
        await CALLS[method](faulty)
    await CALLS[method](faulty)


@pytest.mark.parametrize("method", ["put", "touch", "delete", "note"])
async def test_after_an_unknown_outcome_the_write_happened_or_did_not(faulty, method):
    async def state():
        return (await faulty.store.digests()).root, await faulty.store.notes()

    before = await state()
    faulty.script(method, Fault.LOST, Fault.UNHEARD)
    with pytest.raises(OutcomeUnknown):
        await CALLS[method](faulty)
    assert await state() == before
    with pytest.raises(OutcomeUnknown):
        await CALLS[method](faulty)
    assert await state() != before


async def test_a_put_that_is_lost_has_used_up_its_payload(faulty):
    payload = streamed(DATA)
    faulty.script("put", Fault.LOST)
    with pytest.raises(OutcomeUnknown):
        await calls.put(faulty, "other", payload)
    with pytest.raises(DolmenError, match="only once"):
        await calls.put(faulty, "other", payload)


async def test_wrong_bytes_differ_in_a_bit_and_nothing_says_so(faulty):
    faulty.script("get", Fault.WRONG)
    blob = await faulty.get("name")
    got = await content_of(blob)
    assert len(got) == blob.info.size
    assert sum((one ^ other).bit_count() for one, other in zip(got, DATA, strict=True)) == 1
    assert await content(faulty, "name") == DATA


@pytest.mark.parametrize(("fault", "error"), [(Fault.ROTTEN, Corrupt), (Fault.CUT, Unavailable)])
async def test_a_payload_breaks_off_half_way(faulty, fault, error):
    faulty.script("get", fault)
    blob = await faulty.get("name")
    assert blob.payload.whole is None
    got = []

    async def read():
        async for piece in blob.payload:
            got.append(bytes(piece))  # noqa: PERF401 - what came before the error counts

    with pytest.raises(error):
        await read()
    assert b"".join(got) == DATA[:500]


async def content_of(blob):
    return b"".join([bytes(piece) async for piece in blob.payload])


async def test_a_quarantined_copy_is_corrupt(faulty):
    faulty.script("get", Fault.CORRUPT)
    faulty.script("stat", Fault.CORRUPT)
    for call in (faulty.get, faulty.stat):
        with pytest.raises(Corrupt):
            await call("name")


async def test_a_listing_and_bulk_operations_are_cut_in_the_middle(faulty):
    await collected(calls.put_many(faulty, blobs(6)))
    cases = [
        ("list", faulty.list(), Unavailable),
        ("get_many", faulty.get_many(["name"] * 6), Unavailable),
        ("write_many", calls.put_many(faulty, blobs(6)), OutcomeUnknown),
    ]
    for method, stream, error in cases:
        faulty.script(method, Fault.CUT)
        for _ in range(CUT_AFTER):
            await anext(stream)
        with pytest.raises(error):
            await anext(stream)


async def test_single_blobs_of_a_bulk_operation_fail(faulty):
    faulty.script("put", None, Fault.UNAVAILABLE)
    answers = await collected(calls.put_many(faulty, blobs(4)))
    assert [type(answer) for answer in answers] == [Put, Failed, Put, Put]
    faulty.script("get", Corrupt("damaged"))
    answers = await collected(faulty.get_many(["name", "name", "absent"]))
    assert [type(answer) for answer in answers] == [Failed, Blob, Failed]
    assert isinstance(answers[0].error, Corrupt)
    assert isinstance(answers[2].error, NotFound)


async def test_what_is_under_way_breaks_off_when_the_store_goes_down():
    store = FaultyStore(Streaming())
    await calls.put(store, "name", Bytes(DATA))
    await calls.put(store, "other", Bytes(DATA))
    pieces = aiter((await store.get("name")).payload)
    listing = store.list()
    await anext(pieces)
    await anext(listing)
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def held():
        reached.set()
        await go_on.wait()
        yield DATA

    put = asyncio.ensure_future(calls.put(store, "put", Stream(len(DATA), held)))
    await reached.wait()
    store.down = True
    go_on.set()
    with pytest.raises(OutcomeUnknown):
        await put
    for stream in (pieces, listing):
        with pytest.raises(Unavailable):
            await anext(stream)


async def test_operations_are_held_back_until_they_are_let_go(faulty):
    go_on = asyncio.Event()
    seen = []

    async def pause(method, name):
        seen.append((method, name))
        await go_on.wait()

    faulty.pause = pause
    stat = asyncio.ensure_future(faulty.stat("name"))
    while not seen:
        await asyncio.sleep(0)
    assert seen == [("stat", "name")]
    assert not stat.done()
    go_on.set()
    assert (await stat).size == len(DATA)


async def test_random_faults_are_the_same_for_the_same_seed():
    async def run(seed):
        store = FaultyStore(MemoryStore())
        store.at_random(random.Random(seed), 0.5, among=set(Fault))
        seen = []
        for number in range(100):
            for call in (calls.put(store, f"n{number}", Bytes(DATA)), store.get("n0")):
                try:
                    await call
                    seen.append("well")
                except DolmenError as error:
                    seen.append(type(error).__name__)
        return seen

    one = await run(1)
    assert one == await run(1)
    assert one != await run(2)
    assert {"well", "Unavailable", "OutcomeUnknown", "Corrupt"} <= set(one)


async def test_a_fault_that_a_method_cannot_meet_is_refused_when_it_is_scripted(faulty):
    with pytest.raises(ValueError, match="list can't meet WRONG"):
        faulty.script("list", Fault.WRONG)
    with pytest.raises(KeyError):
        faulty.script("lists", Fault.CUT)

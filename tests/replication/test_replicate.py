"""What a run between two stores copies, in which order, and what it reports."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import AsyncIterator

import pytest

from dolmen import metadata
from dolmen.errors import BadContent, Corrupt, DolmenError, Full, ReadOnly, TooLarge, Unavailable
from dolmen.names import checksum_of, is_object_id, partition_of
from dolmen.payload import Bytes, Piece, Stream
from dolmen.record import Kind
from dolmen.replication import Report, replicate
from dolmen.replication.compare import Difference
from dolmen.replication.replicate import BATCH, size_of
from dolmen.replication.report import EXAMPLES
from dolmen.store import EVERYTHING, Blob, BlobInfo, Failed, Listing, Put, Write
from dolmen.stores.base import Delegating, in_batches
from dolmen.stores.memory import MemoryStore
from dolmen.stores.retrying import TRIES
from dolmen.testing import calls
from dolmen.testing.faulty import Fault, FaultyStore
from replication.setting import no_time

META = metadata.encode([(b"x-file-name", b"a.txt")])


async def filled(count: int, *, size: int = 10) -> MemoryStore:
    store = MemoryStore()
    for number in range(count):
        await calls.put(store, f"blob-{number:05}", Bytes(bytes([number % 256]) * size))
    return store


async def same(one: MemoryStore, other: MemoryStore) -> bool:
    return (await one.digests()).root == (await other.digests()).root


async def test_an_empty_store_gets_everything_and_the_report_counts_it() -> None:
    source, destination = await filled(5_000), MemoryStore()
    await calls.delete(source, "blob-00007")
    await calls.put(source, "kept", Bytes(b"12345"), meta=META)
    seen: list[tuple[int, int]] = []

    def notice(report: Report) -> None:
        assert report.total == 5_001
        seen.append((report.compared, report.copied))

    report = await replicate(source, destination, progress=notice)
    assert await same(source, destination)
    assert seen == sorted(seen)
    assert seen[-1] == (5_001, 5_000)
    assert len(seen) >= 3
    assert (await destination.stat("kept")).metadata == META
    assert report.complete
    assert (report.copied, report.tombstones, report.touched) == (5_000, 1, 0)
    assert report.bytes == 4_999 * 10 + 5
    assert report.compared == report.total == 5_001


async def test_stores_in_step_cost_one_request_each() -> None:
    source, destination = await filled(100), MemoryStore()
    await replicate(source, destination)
    left, right = FaultyStore(source), FaultyStore(destination)
    report = await replicate(left, right)
    assert left.calls == right.calls == [("digests", "")]
    assert report.complete
    assert report.compared == report.total == 100


async def test_only_partitions_that_differ_are_listed() -> None:
    source, destination = await filled(1_000), MemoryStore()
    await replicate(source, destination)
    await calls.put(source, "new", Bytes(b"new"))
    listed: list[int] = []

    class Watching(Delegating):
        def list(self, listing: Listing = EVERYTHING) -> AsyncIterator[BlobInfo]:
            listed.extend(listing.partitions)
            return self.store.list(listing)

    report = await replicate(Watching(source), destination)
    assert report.copied == 1
    assert listed == [partition_of("new")]


async def test_a_newer_stamp_of_the_same_content_is_a_touch_without_data() -> None:
    source, destination = await filled(300), await filled(300)
    for number in range(300):
        info = await source.stat(f"blob-{number:05}")
        fresh = max(info.stamp, (await destination.stat(info.name)).stamp) + 1
        await calls.touch(source, info.name, stamp=fresh, checksum=info.checksum, meta=META)
    await calls.put(source, "other", Bytes(b"new"), stamp=2)
    await calls.put(destination, "other", Bytes(b"old"), stamp=1)
    left, right = FaultyStore(source), FaultyStore(destination)
    right.script("touch", Fault.UNAVAILABLE)  # one that is refused is sent whole
    report = await replicate(left, right, pause=no_time)
    assert (report.touched, report.copied) == (300, 1)
    assert next(name for method, name in left.calls if method == "get") == "other"
    assert len([call for call in left.calls if call[0] == "get"]) == 2
    assert ("touch", "other") not in right.calls
    assert await same(source, destination)


async def test_manifests_come_after_everything_else() -> None:
    source, destination = await filled(3_000), FaultyStore(MemoryStore())
    for number in range(50):
        await calls.put(source, f"manifest-{number}", Bytes(b"m"), kind=Kind.MANIFEST)
    report = await replicate(source, destination)
    assert report.copied == 3_050
    written = [name for method, name in destination.calls if method == "put"]
    assert len(written) == 3_050
    assert all(name.startswith("manifest-") for name in written[3_000:])


async def test_no_manifest_goes_when_the_run_stopped_before_and_listings_are_closed() -> None:
    source, destination = await filled(15_000), FaultyStore(MemoryStore())
    await calls.put(source, "manifest", Bytes(b"m"), kind=Kind.MANIFEST)
    open_now = 0
    kept = []  # so that no garbage collection closes what the run left open

    class Counting(Delegating):
        def list(self, listing: Listing = EVERYTHING) -> AsyncIterator[BlobInfo]:
            kept.append(self.listing(listing))
            return kept[-1]

        async def listing(self, listing: Listing) -> AsyncIterator[BlobInfo]:
            nonlocal open_now
            open_now += 1
            try:
                async for info in source.list(listing):
                    yield info
            finally:
                open_now -= 1

    destination.script("put", *[ReadOnly("its disk failed")] * 15_000)
    report = await replicate(Counting(source), destination, pause=no_time)
    assert isinstance(report.stopped, ReadOnly)
    assert report.failing == "destination"
    assert "manifest" not in [name for _, name in destination.calls]
    assert kept
    assert open_now == 0


async def test_failing_blobs_are_reported_with_a_few_examples_and_the_others_go() -> None:
    source, destination = FaultyStore(await filled(100)), FaultyStore(MemoryStore())
    source.script("get", None, Corrupt("rotten"), None, Corrupt("rotten"))
    destination.script("put", *[TooLarge("too large for me")] * 20)
    report = await replicate(source, destination, pause=no_time)
    assert report.copied == 78
    assert not report.complete
    assert report.stopped is None
    assert [text for _, text in report.refused["Corrupt"].examples] == ["rotten"] * 2
    assert report.refused["TooLarge"].count == 20
    assert len(report.refused["TooLarge"].examples) == EXAMPLES


async def test_a_blob_that_is_gone_when_its_turn_comes_is_no_failure() -> None:
    source, destination = await filled(10), MemoryStore()
    left = FaultyStore(source)

    async def drop(method: str, name: str) -> None:
        if method == "get" and name == "blob-00003":
            await calls.remove(source, name, if_stamp=(await source.stat(name)).stamp)

    left.pause = drop
    report = await replicate(left, destination)
    assert report.complete
    assert (report.copied, report.vanished) == (9, 1)


async def test_a_server_that_comes_back_in_time_costs_nothing_but_time() -> None:
    source, destination = FaultyStore(await filled(50)), FaultyStore(MemoryStore())
    waits: list[float] = []

    async def wait(seconds: float) -> None:
        waits.append(seconds)
        source.down = False

    source.script("digests", Fault.UNAVAILABLE)
    source.script("list", Fault.CUT, Fault.UNAVAILABLE)
    source.script("get_many", Fault.CUT, Fault.UNAVAILABLE)
    source.script("get", None, BadContent("the stream is cut off"))
    destination.script("write_many", None, *[Fault.CUT] * 3 * TRIES)  # each brings two
    report = await replicate(source, destination, pause=wait)
    assert report.complete
    assert await same(source.store, destination.store)  # type: ignore[arg-type]
    assert len(waits) >= 5


@pytest.mark.parametrize("side", ["source", "destination"])
async def test_a_server_that_stays_away_ends_the_run_and_is_named(side: str) -> None:
    source, destination = FaultyStore(await filled(10_000)), FaultyStore(MemoryStore())
    failing = source if side == "source" else destination
    waits: list[float] = []

    async def wait(seconds: float) -> None:
        waits.append(seconds)

    seen = 0

    async def leave(method: str, _name: str) -> None:
        nonlocal seen
        seen += method in ("get", "put")
        failing.down = seen > 3_000

    failing.pause = leave
    report = await replicate(source, destination, pause=wait)
    assert isinstance(report.stopped, Unavailable)
    assert report.failing == side
    assert not report.complete
    assert 0 < report.copied < 10_000
    assert len(waits) <= 10 * TRIES
    failing.pause, failing.down = None, False
    assert (await replicate(source, destination, pause=wait)).complete
    assert await same(source.store, destination.store)  # type: ignore[arg-type]


async def test_names_that_stay_unreachable_do_not_hold_up_the_rest() -> None:
    source, destination = FaultyStore(await filled(30)), MemoryStore()

    async def refuse(method: str, name: str) -> None:
        if method == "get" and name in ("blob-00003", "blob-00004"):
            raise Unavailable("503")

    source.pause = refuse
    report = await replicate(source, destination, pause=no_time)
    assert report.stopped is None
    assert report.copied == 28
    assert report.refused["Unavailable"].count == 2


async def test_a_source_of_which_no_name_can_be_read_ends_the_run_early() -> None:
    source = FaultyStore(await filled(10_000))

    async def refuse(method: str, _name: str) -> None:
        if method == "get":
            raise Unavailable("503")

    source.pause = refuse
    report = await replicate(source, MemoryStore(), pause=no_time)
    assert isinstance(report.stopped, Unavailable)
    assert report.failing == "source"
    assert report.refused["Unavailable"].count < 10_000


async def test_a_full_destination_still_gets_the_deletes() -> None:
    source, destination = await filled(12_000), MemoryStore()
    for number in range(0, 12_000, 2):
        await calls.delete(source, f"blob-{number:05}")
    right = FaultyStore(destination)
    right.script("put", *[Full("no room")] * 12_000)
    report = await replicate(source, right, pause=no_time)
    assert report.tombstones == 6_000
    assert report.refused["Full"].count == 6_000
    # Once it is known to be full nothing that needs room is read or sent any more.
    assert len([call for call in right.calls if call[0] == "put"]) < 6_000


class Broken(MemoryStore):
    """A store whose blob breaks off while it is streamed, with an error of our choice."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def get(self, name: str, *, byte_range: tuple[int, int] | None = None) -> Blob:
        blob = await super().get(name, byte_range=byte_range)
        if name == "bad":
            blob.payload = Stream(blob.info.size, self.opened)
        return blob

    async def opened(self) -> AsyncIterator[Piece]:
        yield b"ha"
        raise self.error


class OneStream(MemoryStore):
    """A store whose bulk write fails whole when a body does, as a connection would."""

    async def write_many(self, writes: AsyncIterator[Write]) -> AsyncIterator[Put | Failed]:
        async for write in writes:
            write.payload = Bytes(b"".join([bytes(piece) async for piece in write.payload]))
            yield await self.write(write)


class Vague(MemoryStore):
    """A store that has another word for a body that breaks off."""

    async def write_many(self, writes: AsyncIterator[Write]) -> AsyncIterator[Put | Failed]:
        async for write in writes:
            try:
                yield await self.write(write)
            except Corrupt:
                yield Failed(write.name, TooLarge("the body was odd"))


class Picky(OneStream):
    """A store that fails the stream over a blob."""

    async def write(self, write: Write) -> Put:
        if write.name == "bad":
            raise BadContent("not what was announced")
        return await super().write(write)


ROTTEN = Corrupt("block 3 is damaged")


@pytest.mark.parametrize(
    ("source", "destination", "error"),
    [
        (Broken(ROTTEN), OneStream(), ROTTEN),
        (Broken(ROTTEN), Vague(), ROTTEN),
        (MemoryStore(), Picky(), BadContent("not what was announced")),
    ],
)
async def test_a_stream_that_breaks_is_put_down_to_its_blob(
    source: MemoryStore, destination: MemoryStore, error: DolmenError
) -> None:
    for name in ("a", "bad", "c", "d"):
        await calls.put(source, name, Bytes(b"hallo"))
    report = await replicate(source, destination, pause=no_time)
    assert report.refused[type(error).__name__].examples == [("bad", str(error))]
    assert (report.stopped, report.copied) == (None, 3)


class Plain(MemoryStore):
    """Stands for a server that knows neither stamps nor tombstones nor digests."""

    capabilities = dataclasses.replace(
        MemoryStore.capabilities, stamps=False, digests=False, conflicts=False
    )

    async def digests(self):  # type: ignore[no-untyped-def,override]
        raise AssertionError("it has none")


async def test_a_store_without_stamps_is_compared_by_names() -> None:
    source, destination = Plain(), await filled(3)
    await calls.put(source, "blob-00001", Bytes(b"other"), stamp=0)
    await calls.put(source, "new", Bytes(b"new"), stamp=0)
    report = await replicate(source, destination)
    assert report.copied == 1
    assert report.total is None
    assert (await destination.get("blob-00001")).payload.whole != b"other"
    assert (await destination.stat("new")).stamp == 0


async def test_a_store_without_stamps_gets_no_manifest_and_no_delete() -> None:
    class Late(MemoryStore):
        async def get(self, name: str, *, byte_range: tuple[int, int] | None = None) -> Blob:
            if name == "late":
                await calls.delete(self, name)
            return await super().get(name, byte_range=byte_range)

    source, destination = Late(), Plain()
    await calls.delete(source, "kept")
    await calls.delete(source, "unheard-of")
    await calls.put(destination, "kept", Bytes(b"kept"))
    await calls.put(source, "late", Bytes(b"gone in a moment"))
    await calls.put(source, "object", Bytes(b"the names of its chunks"), kind=Kind.MANIFEST)
    await calls.put(source, "small", Bytes(b"small"))
    report = await replicate(source, destination)
    assert report.stopped is None
    assert (report.copied, report.vanished, report.tombstones) == (1, 1, 0)
    assert [name for name, _ in report.refused["TooLarge"].examples] == ["object"]
    assert {info.name async for info in destination.list()} == {"kept", "small"}


@pytest.mark.parametrize("streamed", [False, True])
async def test_what_a_store_without_checksums_gives_must_fit_its_name(streamed: bool) -> None:
    good, bad = b"g" * 1_000, b"b" * 1_000
    right_id, wrong_id = hashlib.sha256(good).hexdigest(), hashlib.sha1(b"no").hexdigest()

    class Streaming(Plain):
        async def get(self, name: str, *, byte_range: tuple[int, int] | None = None) -> Blob:
            blob = await super().get(name, byte_range=byte_range)
            blob.info.checksum = bytes(16)  # it knows none
            whole = blob.payload.whole
            assert whole is not None

            async def opened() -> AsyncIterator[Piece]:
                for at in range(0, len(whole), 300):
                    yield whole[at : at + 300]

            if is_object_id(name) and streamed:
                blob.payload = Stream(len(whole), opened)
            return blob

    class Framing(MemoryStore):
        async def write(self, write: Write) -> Put:
            # A record carries the checksum of what is in memory.
            if write.payload.whole is not None:
                assert write.checksum == checksum_of(write.payload.whole)
            return await super().write(write)

    source, destination = Streaming(), Framing()
    await calls.put(source, right_id, Bytes(good), stamp=0)
    await calls.put(source, wrong_id, Bytes(bad), stamp=0)
    await calls.put(source, "any-name", Bytes(bad), stamp=0)
    report = await replicate(source, destination)
    assert report.copied == 2
    assert report.refused["Corrupt"].examples[0][0] == wrong_id
    assert bytes((await destination.get(right_id)).payload.whole or b"") == good


async def test_a_batch_is_bounded_in_names_and_in_bytes() -> None:
    async def found(size: int, count: int) -> AsyncIterator[Difference]:
        for number in range(count):
            yield Difference(BlobInfo(str(number), size, 1, 1, bytes(16)), touch=False)

    async def sizes(size: int, count: int) -> list[int]:
        return [len(batch) async for batch in in_batches(found(size, count), BATCH, size_of)]

    assert await sizes(0, 5_000) == [2_048, 2_048, 904]
    assert await sizes(20 << 20, 9) == [4, 4, 1]
    assert await sizes(1 << 40, 2) == [1, 1]
    assert await sizes(-1, 3) == [3]


async def test_few_batches_are_under_way_however_much_differs() -> None:
    source, destination = await filled(12_000, size=0), MemoryStore()
    left = FaultyStore(source)
    release = asyncio.Event()

    async def hold(method: str, _name: str) -> None:
        if method == "get_many":
            await release.wait()

    left.pause = hold
    compared = 0

    def notice(report: Report) -> None:
        nonlocal compared
        compared = report.compared

    task = asyncio.create_task(replicate(left, destination, progress=notice))
    while len([call for call in left.calls if call[0] == "get_many"]) < 3:
        await asyncio.sleep(0)
    for _ in range(100):
        await asyncio.sleep(0)
    assert compared <= 5 * 2_048
    release.set()
    assert (await task).copied == 12_000

"""An archive holds all that was there, chunks before their manifests; import brings it back."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dolmen import metadata
from dolmen.cluster.cluster import Cluster
from dolmen.cluster.groups import Member, make_group
from dolmen.cluster.manifest import CHUNK, Manifest, decode
from dolmen.config import load
from dolmen.config.opening import opened_store
from dolmen.errors import BadContent, BadSetting, Corrupt, DolmenError, Full, NotFound, Unavailable
from dolmen.names import checksum_of, chunk_name, is_chunk_name, partition_of
from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.replication.archive import (
    END,
    EXPORT,
    MANIFESTS,
    Imported,
    Progress,
    export,
    import_archive,
    progress_of,
)
from dolmen.stamps import Clock, format_stamp
from dolmen.store import NO_CHECKSUM, Blob, BlobInfo, Capabilities, Failed, Write
from dolmen.stores import open_store
from dolmen.stores.base import Delegating
from dolmen.stores.memory import MemoryStore
from dolmen.stores.record_reader import Damage, RecordReader
from dolmen.stores.record_reader import decode as decoded
from dolmen.stores.records import Mark, encode, head_of
from dolmen.stores.volume import open_volume
from dolmen.stores.watermark import PURGED, WATERMARK, watermark_in
from dolmen.testing import calls
from dolmen.testing.faulty import Fault, FaultyStore
from replication.setting import names_on

META = metadata.encode([(b"x-file-name", b"a.txt")])
PARTS = [bytes([number]) * 20 for number in range(6)]
OWNER = bytes(range(16))
BEGIN = Mark(EXPORT, {"source": "somewhere", "purged": "0" * 16})


async def add_object(store, name: str, parts: list[bytes]) -> list[str]:
    chunks = [chunk_name(part) for part in parts]
    for chunk, part in zip(chunks, parts, strict=True):
        await calls.put(store, chunk, Bytes(part))
    manifest = Manifest((len(chunks) - 1) * CHUNK + 1, chunks).encode()
    await calls.put(store, name, Bytes(manifest), kind=Kind.MANIFEST, meta=META)
    return chunks


async def filled(store=None) -> MemoryStore:
    store = store or MemoryStore()
    for number in range(40):
        meta = META if number % 2 else b""
        await calls.put(store, f"blob-{number}", Bytes(b"data %d" % number), meta=meta)
    for number in range(4):
        await calls.delete(store, f"blob-{number}")
    await add_object(store, "one", PARTS[:2])
    await add_object(store, "two", PARTS[1:4])
    return store


async def in_steps(data: bytes, step: int = 50_000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), step):
        yield data[at : at + step]


async def exported(store, begun: Progress | None = None) -> bytes:
    begun = begun or Progress()
    pieces = export(store, source="here", begun=begun)
    return b"".join([bytes(piece) async for piece in pieces])


async def archive(*items: Blob | Failed | Mark, owner: bytes = OWNER) -> bytes:
    async def each() -> AsyncIterator[Blob | Failed | Mark]:
        for item in items:
            yield item

    return b"".join([bytes(piece) async for piece in encode(each(), owner)])


def blob(number: int, size: int = 20, kind: int = Kind.BLOB) -> Blob:
    data = random.Random(number).randbytes(size)
    info = BlobInfo(f"name-{number}", size, kind, number + 1, checksum_of(data))
    return Blob(info, Bytes(data))


async def imported(data: bytes, store, **how) -> Imported:
    return await import_archive(in_steps(data), store, **how)


async def root(store) -> str:
    return (await store.digests()).root


async def contents(data: bytes) -> dict[str, tuple[object, bytes]]:
    """What an archive holds under each name; checks its order on the way."""
    items = [item async for item in RecordReader(in_steps(data))]
    assert [items[0].word, items[-1].word] == [EXPORT, END]
    held: dict[str, tuple[object, bytes]] = {}
    second, last = False, (-1, "")
    for item in items[1:-1]:
        if isinstance(item, Mark):
            assert item.word == MANIFESTS
            second, last = True, last if second else (-1, "")
        elif isinstance(item, Blob):
            info = item.info
            place = (partition_of(info.name), info.name)
            if second and info.kind != Kind.MANIFEST:
                assert is_chunk_name(info.name)
            else:
                assert second == (info.kind == Kind.MANIFEST)
                assert place > last
                last = place
            held[info.name] = (info.rank, bytes(item.payload.whole))
    return held


async def everything(store) -> dict[str, tuple[object, bytes]]:
    names = [info.name async for info in calls.listing(store, tombstones=True)]
    return {
        found.info.name: (found.info.rank, bytes(found.payload.whole))
        async for found in store.get_many(names)
    }


# Both ways


async def test_an_import_of_everything_makes_an_equal_store():
    assert await contents(await exported(MemoryStore())) == {}
    source, destination = await filled(), MemoryStore()
    begun = Progress()
    data = await exported(source, begun)
    assert await contents(data) == await everything(source)
    assert (begun.report.complete, begun.report.copied, begun.report.tombstones) == (True, 42, 4)
    found = await imported(data, destination)
    assert await root(destination) == await root(source)
    assert (found.complete, found.source, found.read) == (True, "here", len(data))
    assert (found.report.complete, found.report.copied, found.report.tombstones) == (True, 42, 4)


async def test_a_cluster_goes_out_and_comes_back():
    def cluster() -> Cluster:
        members = [Member(name, MemoryStore()) for name in "abc"]
        return Cluster([make_group("all", members, copies=2, volatile=True)])

    source, destination = cluster(), cluster()
    await filled(source)
    data = await exported(source)
    assert (await imported(data, destination)).complete
    assert await root(destination) == await root(source)


async def test_a_large_blob_is_streamed_and_gone_on_behind():
    source, destination = MemoryStore(), MemoryStore()
    large = random.Random(1).randbytes(5 << 20)
    for name, data in (("before", b"x"), ("large", large), ("after", b"y")):
        await calls.put(source, name, Bytes(data))
    data = await exported(source)
    found = await progress_of(in_steps(data[: len(data) // 2]))
    assert found.end < len(data) // 2
    data = data[: found.end] + await exported(source, found)
    assert (await imported(data, destination)).complete
    assert await root(destination) == await root(source)


# Export


@settings(max_examples=30)
@given(st.lists(st.integers(0, 6_000), min_size=1, max_size=4))
async def test_interrupted_anywhere_and_gone_on_with_it_ends_the_same(cuts):
    store = await filled()
    data = b""
    for cut in [*cuts, 1 << 20]:
        found = await progress_of(in_steps(data)) if data else Progress()
        if found.complete:
            break
        begun = data[: found.end]
        data = (begun + await exported(store, found))[: max(len(begun), 200, cut)]
    assert await contents(data) == await everything(store)


@pytest.mark.parametrize("when", [0, 3, 20, 44])
async def test_an_object_written_meanwhile_has_its_chunks_before_it(when, tmp_path):
    """The last time while the other manifest is read, and to a store whose writes take time."""
    store = FaultyStore(await filled())
    reads = 0

    async def write(method: str, _name: str) -> None:
        nonlocal reads
        reads += method == "get"
        if method == "get" and reads == when + 1:
            await calls.delete(store.store, "one")
            await add_object(store.store, "one", [b"new 1", b"new 2", PARTS[5]])

    store.pause = write
    data = await exported(store)
    held = await contents(data)
    chunks = decode(held["one"][1]).chunks
    assert chunk_name(b"new 1") in chunks
    assert held.keys() >= set(chunks)
    volume = await open_volume(str(tmp_path))
    assert (await imported(data, volume)).report.complete
    await volume.aclose()


async def test_gone_on_with_later_it_has_the_chunks_that_were_written_meanwhile():
    data = await exported(await filled())
    for cut in range(300, len(data), 997):
        later = await filled()
        late = [b"late 1", b"late 2", PARTS[5]]
        await add_object(later, "late", late)
        found = await progress_of(in_steps(data[:cut]))
        held = await contents(data[: found.end] + await exported(later, found))
        if "late" in held:
            assert {chunk_name(part) for part in late} <= held.keys()


async def test_what_can_not_be_read_is_named_in_it_and_on_import_and_what_is_gone_is_not():
    store = FaultyStore(await filled())
    store.script("get", None, NotFound("gone"), Fault.CORRUPT)
    begun = Progress()
    data = await exported(store, begun)
    assert begun.report.refused["Corrupt"].count == begun.report.vanished == 1
    found = await imported(data, MemoryStore())
    assert found.complete
    assert (found.lacking.count, found.report.copied + found.report.tombstones) == (1, 44)
    store.down = True
    with pytest.raises(Unavailable):
        await exported(store)


async def test_a_large_blob_that_is_damaged_is_refused_before_its_record_begins():
    class Rotten(MemoryStore):
        async def verify_many(self, names):
            for name in names:
                yield Failed(name, Corrupt("a block fails its checksum"))

        async def get_many(self, names):
            async for answer in super().get_many(names):
                answer.payload.whole = None  # as if it were streamed
                yield answer

    store, begun = Rotten(), Progress()
    await calls.put(store, "large", Bytes(bytes(5 << 20)))
    assert len(await exported(store, begun)) < 10_000
    assert begun.report.refused["Corrupt"].count == 1


class Plain(MemoryStore):
    capabilities = Capabilities(
        durable=True, largest=1 << 30, digests=False, ordered=True, conflicts=True, stamps=False
    )


async def test_a_store_without_stamps_is_neither_exported_nor_imported_to():
    data = await exported(await filled())
    with pytest.raises(BadSetting, match="sos"):
        await exported(Plain())
    with pytest.raises(BadSetting, match="sos"):
        await imported(data, Plain())


@pytest.mark.parametrize(
    ("data", "why"),
    [(b"hello", "not an archive"), (bytes(500), "not an archive"), (None, "damaged")],
)
async def test_what_can_not_be_gone_on_with_is_refused(data, why):
    if data is None:
        damaged = bytearray(await exported(await filled()))
        damaged[len(damaged) // 2] ^= 1
        data = bytes(damaged)
    with pytest.raises(Corrupt, match=why):
        await progress_of(in_steps(data))


# Import


async def test_again_it_writes_nothing():
    data = await exported(await filled())
    destination = FaultyStore(MemoryStore())
    await imported(data, destination)
    destination.calls.clear()
    report = (await imported(data, destination)).report
    assert (report.copied, report.tombstones, report.touched) == (0, 0, 0)
    assert not {method for method, _ in destination.calls} & {"put", "delete", "touch"}


async def test_what_is_newer_stays_and_what_is_older_is_replaced():
    source, destination = await filled(), MemoryStore()
    data = await exported(source)
    await calls.put(destination, "blob-7", Bytes(b"newer"))
    for name, body in (("blob-8", b"older"), ("blob-2", b"deleted since"), ("blob-9", b"data 9")):
        await calls.put(destination, name, Bytes(body), stamp=3)
    await imported(data, destination)
    stamp = (await destination.stat("blob-7")).stamp
    await calls.put(source, "blob-7", Bytes(b"newer"), stamp=stamp)
    assert await root(destination) == await root(source)


@settings(max_examples=30)
@given(after=st.integers(0, 80), seed=st.integers(0, 1_000))
async def test_interrupted_anywhere_and_run_again_it_ends_the_same(after, seed):
    source, destination = await filled(), FaultyStore(MemoryStore())
    data = await exported(source)
    destination.at_random(random.Random(seed), 0.05)

    async def end(_method: str, _name: str) -> None:
        if len(destination.calls) == after:
            raise asyncio.CancelledError

    destination.pause = end
    with contextlib.suppress(asyncio.CancelledError, DolmenError):
        await imported(data, destination)
    destination.pause = None
    destination.at_random(random.Random(0), 0)
    assert (await imported(data, destination)).complete
    assert await root(destination) == await root(source)


async def test_a_manifest_whose_chunk_is_missing_is_refused():
    chunk = chunk_name(b"part")
    manifest = blob(1, kind=Kind.MANIFEST)
    data = Manifest(1, [chunk]).encode()
    info = BlobInfo("object", len(data), Kind.MANIFEST, 5, checksum_of(data))
    manifest = Blob(info, Bytes(data))
    found = await imported(
        await archive(BEGIN, blob(1), Mark(MANIFESTS, {}), manifest, Mark(END, {"records": 4})),
        MemoryStore(),
    )
    assert found.complete
    assert found.report.refused["Corrupt"].examples[0][0] == "object"
    assert chunk in found.report.refused["Corrupt"].examples[0][1]


async def test_a_manifest_that_is_streamed_goes_out_and_comes_back():
    """That of an object of more than 512 GiB, from a store that gives it only once."""
    chunk = chunk_name(PARTS[0])
    manifest = Manifest(140_000 * CHUNK, [chunk] * 140_000).encode()
    info = BlobInfo("object", len(manifest), Kind.MANIFEST, 5, checksum_of(manifest))
    begin = [BEGIN, Mark(MANIFESTS, {})]
    data = await archive(*begin, Blob(info, Bytes(manifest)), Mark(END, {"records": 3}))
    source, destination = MemoryStore(), MemoryStore()
    await calls.put(source, chunk, Bytes(PARTS[0]))
    assert (await imported(data, source)).report.copied == 1

    class Streaming(Delegating):
        def get_many(self, names):
            return decoded(encode(super().get_many(names)))

    assert (await imported(await exported(Streaming(source)), destination)).complete
    assert await root(destination) == await root(source)


async def test_what_is_too_long_for_a_manifest_takes_no_memory():
    info = BlobInfo("object", 1 << 45, Kind.MANIFEST, 5, NO_CHECKSUM)
    data = await archive(BEGIN) + head_of(info, OWNER) + bytes(5 << 20)
    found = await imported(data, MemoryStore())
    assert (found.report.refused["Corrupt"].count, found.complete) == (1, False)


async def test_chunks_that_were_there_are_made_young_again():
    now = [time.time() - 13 * 3600]
    source = await filled()
    destination = MemoryStore(now=lambda: now[0])
    for part in PARTS[:4]:
        stamp = (await source.stat(chunk_name(part))).stamp
        await calls.put(destination, chunk_name(part), Bytes(part), stamp=stamp)
    now[0] += 13 * 3600
    await imported(await exported(source), destination)
    async for info in calls.listing(destination, prefix="chunk"):
        assert info.arrived == int(now[0])
    assert await root(destination) == await root(source)


@settings(max_examples=60)
@given(at=st.integers(0, 1 << 20), bit=st.integers(0, 7))
async def test_a_flipped_bit_costs_its_record_and_is_named(at, bit):
    source, destination = await filled(), MemoryStore()
    data = bytearray(await exported(source))
    data[at % len(data)] ^= 1 << bit
    found = await imported(bytes(data), destination)
    assert not found.complete
    assert found.damaged.count == 1 or found.ends
    held = await everything(source)
    copies = await everything(destination)
    assert all(held[name] == copy for name, copy in copies.items())
    # A lost chunk also costs the two manifests that may name it.
    assert len(copies) >= len(held) - 3


@settings(max_examples=60)
@given(st.integers(1, 1 << 20))
async def test_an_end_that_is_missing_is_reported(cut):
    data = await exported(await filled())
    data = data[: cut % len(data)]
    destination = MemoryStore()
    try:
        found = await imported(data, destination)
    except BadContent:
        assert len(data) < 120  # not even one record
        return
    assert not found.complete


async def test_records_that_were_cut_out_are_counted():
    whole = [BEGIN, *map(blob, range(5)), Mark(MANIFESTS, {}), Mark(END, {"records": 7})]
    assert (await imported(await archive(*whole), MemoryStore())).complete
    found = await imported(await archive(*whole[:2], *whole[4:]), MemoryStore())
    assert (found.complete, found.missing) == (False, 2)


async def test_a_large_blob_that_is_damaged_leaves_nothing():
    large = blob(1, 5 << 20)
    data = bytearray(await archive(BEGIN, large, blob(2), Mark(END, {"records": 3})))
    data[3 << 20] ^= 1
    destination = MemoryStore()
    found = await imported(bytes(data), destination)
    assert (found.damaged.count, found.report.copied) == (1, 1)
    assert found.damaged.examples[0][0] == large.info.name
    assert [info.name async for info in destination.list()] == ["name-2"]


async def test_a_large_blob_of_another_checksum_is_refused_and_named():
    large = blob(1, 5 << 20)
    large.info.checksum = bytes(reversed(large.info.checksum))
    destination = MemoryStore()
    found = await imported(await archive(BEGIN, large, Mark(END, {"records": 2})), destination)
    assert found.report.refused["BadContent"].examples[0][0] == large.info.name
    assert [info.name async for info in destination.list()] == []


async def test_an_archive_inside_a_blob_is_not_taken_for_records():
    inner = await archive(BEGIN, *map(blob, range(10)))
    outer = Blob(BlobInfo("outer", len(inner), Kind.BLOB, 9, checksum_of(inner)), Bytes(inner))
    whole = bytearray(await archive(BEGIN, outer, blob(99), owner=b"o" * 16))
    whole[whole.find(b"outer") - 1] ^= 1  # the head of the record around it
    destination = MemoryStore()
    found = await imported(bytes(whole), destination)
    assert found.damaged.count == 1
    assert [info.name async for info in destination.list()] == ["name-99"]


@pytest.mark.parametrize("data", [b"", b"hello", bytes(500), b"dlmn" * 200])
async def test_what_is_not_an_archive_is_refused(data):
    with pytest.raises(BadContent, match="not an archive"):
        await imported(data, MemoryStore())


async def test_hostile_marks_are_read_as_empty():
    deep = b'{"a":' * 3_000
    for facts in (b"{no json", b"\xff\xfe", deep, b"[1]", b'{"purged": 5, "source": 7}'):
        mark = Blob(BlobInfo(EXPORT, 0, Kind.MARK, 0, NO_CHECKSUM, facts), Bytes(b""))
        archived = await archive(mark, blob(1), Mark(END, {"records": 2}))
        found = await imported(archived, MemoryStore())
        assert (found.complete, found.report.copied) == (True, 1)


async def test_a_full_store_refuses_what_needs_room_and_takes_the_rest():
    source, destination = await filled(), FaultyStore(MemoryStore())
    destination.script("put", *[Full("no room")] * 100)
    report = (await imported(await exported(source), destination)).report
    assert (report.tombstones, report.copied) == (4, 0)
    assert report.refused["Full"].count == 40


async def test_what_may_have_been_deleted_since_is_refused_unless_asked_for():
    source = MemoryStore()
    await calls.put(source, "old", Bytes(b"old"), stamp=5)
    await calls.put(source, "new", Bytes(b"new"), stamp=90)
    data = await exported(source)
    destination = MemoryStore()
    await calls.put(destination, "other", Bytes(b"x"))
    await destination.note(WATERMARK, format_stamp(50).encode())
    report = (await imported(data, destination)).report
    assert (report.copied, report.refused["MayBeDeleted"].count) == (1, 1)
    assert (await imported(data, destination, rejoin=True)).report.copied == 1
    # Where the first mark is damaged nobody knows what was forgotten.
    await calls.remove(destination, "old", if_stamp=5)
    broken = bytearray(data)
    broken[10] ^= 1
    report = (await imported(bytes(broken), destination)).report
    assert report.refused["MayBeDeleted"].count == 1


async def test_what_is_purged_while_it_is_imported_stays_deleted(monkeypatch):
    monkeypatch.setattr("dolmen.replication.archive.SETTLE", 0)
    source, destination = MemoryStore(), MemoryStore()
    first, second = sorted(("one", "other"), key=partition_of)
    for name in (first, second):
        await calls.put(source, name, Bytes(b"x"), stamp=5)

    async def pieces():
        data = await exported(source)
        cut = data.index(second.encode()) - 100  # in the record of the first
        yield data[:cut]
        await destination.note(PURGED, format_stamp(50).encode())
        yield data[cut:]

    report = (await import_archive(pieces(), destination)).report
    refused = report.refused["MayBeDeleted"]
    assert refused.count == 2 - report.copied
    assert second in [name for name, _ in refused.examples]


async def test_an_empty_store_takes_over_what_was_forgotten_and_another_does_not():
    source = await filled(MemoryStore(clock=Clock()))
    await source.note(WATERMARK, format_stamp(50).encode())
    data = await exported(source)
    empty, other = MemoryStore(), MemoryStore()
    await other.write(Write("other", Bytes(b"x"), stamp=1))
    for store, expected in ((empty, 50), (other, 0)):
        await imported(data, store)
        assert watermark_in(await store.notes()) == expected


async def test_a_stale_server_of_a_cluster_is_neither_exported_nor_imported_to(tmp_path):
    volumes = [f"volume:{tmp_path / name}" for name in "abc"]
    for number, volume in enumerate(volumes):
        async with contextlib.aclosing(await open_store(volume)) as store:
            await calls.put(store, "kept", Bytes(b"kept"), stamp=90)
            if number == 2:
                await calls.put(store, "deleted", Bytes(b"deleted"), stamp=40)
            await store.note(WATERMARK, format_stamp(10 if number == 2 else 50).encode())
            await store.note(PURGED, format_stamp(10 if number == 2 else 50).encode())
    groups = load({"blob_servers": volumes}, config=None).settings.all_groups()
    async with opened_store(groups, read_only=True) as source:
        data = await exported(source)
    assert [*await contents(data)] == ["kept"]
    older = await filled()
    await calls.put(older, "deleted", Bytes(b"deleted"), stamp=40)
    async with opened_store(groups) as destination:
        found = await imported(await exported(older), destination)
    assert [name for name, _ in found.report.refused["MayBeDeleted"].examples] == ["deleted"]
    async with contextlib.aclosing(await open_store(volumes[2])) as stale:
        assert await names_on(stale) == {"kept", "deleted"}


async def test_damage_says_where():
    assert str(Damage(1_000, 20, "its data fails its checksum", "name", ends=False)) == (
        "from byte 1,000 on, 20 bytes of name: its data fails its checksum"
    )

"""Puts and touches: what they answer, and what stands after them."""

# ruff: noqa: D102 - the names say what is held

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest

from dolmen import metadata
from dolmen.errors import BadContent, Conflict, InvalidName, NotFound, TooLarge
from dolmen.names import checksum_of, chunk_name
from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.stamps import MAX_STAMP
from dolmen.store import BlobInfo, BlobStore, Outcome
from dolmen.testing import calls
from dolmen.testing.conformance.material import (
    META,
    OTHER_META,
    at,
    content,
    info_of,
    standing,
    streamed,
)
from dolmen.testing.conformance.rivals import RIVALS, Rival, same
from dolmen.testing.conformance.setting import Place, Suite

BAD_NAMES = ["", ".a", "-a", "_a", "..", "a/b", "a b", "a\n", "a\0", "ä", "a\udcff", "x" * 129]
GOOD_NAMES = ["a", "A", "0", "a..b", "Z-._", "x" * 128, "chunk" + "0" * 63]
FULL_META = metadata.encode([(b"a", bytes(metadata.METADATA_MAX - 4))])
OVERFULL_META = (
    b"\1"
    + (metadata.METADATA_MAX - 3).to_bytes(2, "little")
    + b"a"
    + bytes(metadata.METADATA_MAX - 3)
)


class Writes(Suite):
    """Puts and touches."""

    @pytest.mark.parametrize("name", GOOD_NAMES)
    async def test_a_new_blob_is_created_and_reads_as_it_was_put(
        self, store: BlobStore, name: str
    ) -> None:
        answer = await calls.put(store, name, Bytes(b"content"), checksum=checksum_of(b"content"))
        assert answer.outcome is Outcome.CREATED
        assert same(await store.stat(name), info_of(name, b"content", stamp=answer.stamp))
        blob = await store.get(name)
        assert same(blob.info, info_of(name, b"content", stamp=answer.stamp))
        assert await content(store, name) == b"content"

    async def test_names_differ_by_case(self, store: BlobStore) -> None:
        await calls.put(store, "name", Bytes(b"low"))
        await calls.put(store, "NAME", Bytes(b"high"))
        assert (await content(store, "name"), await content(store, "NAME")) == (b"low", b"high")

    @pytest.mark.parametrize("name", BAD_NAMES)
    async def test_every_method_refuses_a_name_of_another_form(
        self, store: BlobStore, name: str
    ) -> None:
        refused: list[Callable[[], Awaitable[object]]] = [
            lambda: calls.put(store, name, Bytes(b"x")),
            lambda: calls.put(store, name, streamed(b"x" * 100_000), stamp=at(1)),
            lambda: store.get(name),
            lambda: store.stat(name),
            lambda: calls.current(store, name),
            lambda: calls.touch(store, name, stamp=at(1), checksum=bytes(16), meta=b""),
            lambda: calls.delete(store, name, stamp=at(1)),
            lambda: calls.delete(store, name),
            lambda: calls.remove(store, name, if_stamp=at(1)),
        ]
        for call in refused:
            with pytest.raises(InvalidName):
                await call()

    async def test_an_absent_name_is_not_found_and_has_no_stamp(self, store: BlobStore) -> None:
        for call in (store.get, store.stat):
            with pytest.raises(NotFound) as caught:
                await call("absent")
            assert caught.value.stamp == 0
        with pytest.raises(NotFound):
            await calls.current(store, "absent")

    async def test_a_plain_put_of_other_content_is_a_conflict(self, store: BlobStore) -> None:
        first = await calls.put(store, "name", Bytes(b"one"), meta=META)
        if not store.capabilities.conflicts:
            pytest.skip("this store lets the newer stamp win")
        for other in (Bytes(b"two"), Bytes(b""), streamed(b"two" * 50_000)):
            with pytest.raises(Conflict):
                await calls.put(store, "name", other)
        assert same(await store.stat("name"), info_of("name", b"one", stamp=first.stamp, meta=META))
        assert await content(store, "name") == b"one"

    async def test_a_plain_put_of_the_same_content_raises_stamp_and_metadata(
        self, store: BlobStore
    ) -> None:
        first = await calls.put(store, "name", Bytes(b"one"), meta=META)
        for payload in (Bytes(b"one"), streamed(b"one")):
            again = await calls.put(store, "name", payload, meta=OTHER_META)
            assert again.outcome is Outcome.UNCHANGED
            assert again.stamp > first.stamp
            first = again
        wanted = info_of("name", b"one", stamp=first.stamp, meta=OTHER_META)
        assert same(await store.stat("name"), wanted)

    async def test_a_plain_put_is_stamped_above_the_current_stamp(
        self, store: BlobStore, place: Place
    ) -> None:
        ahead = (place.time.wall() + 1_800_000) << 16  # half an hour: within what is believed
        await calls.put(store, "name", Bytes(b"one"), stamp=ahead)
        assert (await calls.put(store, "name", Bytes(b"one"))).stamp > ahead
        assert (await calls.delete(store, "name")).stamp > ahead

    async def test_a_name_written_by_a_clock_years_ahead_can_still_be_written(
        self, store: BlobStore, place: Place
    ) -> None:
        ahead = (place.time.wall() + 10 * 365 * 86_400_000) << 16
        await calls.put(store, "blob", Bytes(b"one"), stamp=ahead)
        await calls.delete(store, "deleted", stamp=ahead)
        assert await calls.put(store, "blob", Bytes(b"one"), meta=META) == (
            Outcome.UNCHANGED,
            ahead + 1,
        )
        assert await calls.delete(store, "blob") == (Outcome.CREATED, ahead + 2)
        assert await calls.put(store, "deleted", Bytes(b"one")) == (Outcome.CREATED, ahead + 1)
        # The clock itself does not follow: other blobs get stamps of now.
        assert (await calls.put(store, "another", Bytes(b"two"))).stamp < ahead

    async def test_a_stamp_beyond_the_highest_is_refused(self, store: BlobStore) -> None:
        for stamp in (-1, MAX_STAMP + 1, 1 << 64):
            with pytest.raises(InvalidName):
                await calls.put(store, "name", Bytes(b"x"), stamp=stamp)
            with pytest.raises(InvalidName):
                await calls.delete(store, "name", stamp=stamp)
        assert await standing(store, "name") is None

    async def test_a_chunk_is_only_stored_under_its_own_name(self, store: BlobStore) -> None:
        name = chunk_name(b"chunk")
        for payload in (Bytes(b"other"), streamed(b"other")):
            with pytest.raises(BadContent):
                await calls.put(store, name, payload)
        with pytest.raises(BadContent):
            await calls.put(store, name, Bytes(b"chunk"), kind=Kind.MANIFEST)
        assert await standing(store, name) is None
        assert (await calls.put(store, name, Bytes(b"chunk"))).outcome is Outcome.CREATED

    async def test_every_order_of_arrival_ends_with_the_highest_rank(
        self, store: BlobStore
    ) -> None:
        async def arrive(name: str, writes: tuple[Rival, ...]) -> None:
            before: BlobInfo | None = None
            for write in writes:
                expected = write.answer(before)
                assert await store.write(write.of(name)) == expected, (before, write)
                if before is None or write.info(name).rank > before.rank:
                    before = write.info(name)
                assert same(await standing(store, name), before), write
            assert before is not None
            if before.kind is not Kind.TOMBSTONE:
                data = next(write.data for write in writes if write.info(name) == before)
                assert await content(store, name) == data

        orders = itertools.permutations(RIVALS, 3)
        await asyncio.gather(*(arrive(f"o{number}", order) for number, order in enumerate(orders)))

    async def test_stamps_differ_by_the_last_of_64_bits(self, store: BlobStore) -> None:
        edges = [0, 1, (1 << 53), (1 << 53) + 1, (1 << 63) - 1, 1 << 63, MAX_STAMP - 1, MAX_STAMP]
        for number, stamp in enumerate(edges):
            data = b"%d" % number
            assert await calls.put(store, "up", Bytes(data), stamp=stamp) == (
                Outcome.CREATED,
                stamp,
            )
            assert (await store.stat("up")).stamp == stamp
            assert await content(store, "up") == data
        for stamp in edges[:-1]:
            answer = await calls.put(store, "up", Bytes(b"late"), stamp=stamp)
            assert answer == (Outcome.SUPERSEDED, MAX_STAMP)

    @pytest.mark.parametrize("size", [3, 200_000])
    async def test_an_identical_stamped_put_is_a_write(self, store: BlobStore, size: int) -> None:
        data = b"x" * size
        await calls.put(store, "name", Bytes(data), stamp=at(1), meta=META)
        for payload, stamp in ((Bytes(data), at(2)), (streamed(data), at(3))):
            answer = await calls.put(store, "name", payload, stamp=stamp)
            assert answer == (Outcome.UNCHANGED, stamp)
            assert same(await store.stat("name"), info_of("name", data, stamp=stamp))
        assert (await calls.delete(store, "name", stamp=at(2))).outcome is Outcome.SUPERSEDED
        assert await content(store, "name") == data

    async def test_a_blob_and_a_manifest_replace_one_another(self, store: BlobStore) -> None:
        kinds = (Kind.BLOB, Kind.MANIFEST, Kind.BLOB)
        for number, kind in enumerate(kinds):
            data = b"content %d" % number
            answer = await calls.put(store, "name", Bytes(data), stamp=at(number), kind=kind)
            assert answer == (Outcome.CREATED, at(number))
            assert same(
                await store.stat("name"), info_of("name", data, stamp=at(number), kind=kind)
            )
            assert await content(store, "name") == data

    async def test_metadata_is_kept_byte_for_byte_up_to_16_kib(self, store: BlobStore) -> None:
        for number, meta in enumerate((b"", META, FULL_META)):
            await calls.put(store, f"put{number}", Bytes(b"x"), meta=meta)
            assert (await store.stat(f"put{number}")).metadata == meta
            assert (await store.get(f"put{number}")).info.metadata == meta

    async def test_metadata_too_large_or_not_canonical_is_refused(self, store: BlobStore) -> None:
        one = await calls.put(store, "standing", Bytes(b"x"))
        for meta, error in (
            (OVERFULL_META, TooLarge),
            (META[:-1], InvalidName),
            (b"x", InvalidName),
        ):
            for payload in (Bytes(b"x"), streamed(b"x" * 100_000)):
                with pytest.raises(error):
                    await calls.put(store, "name", payload, meta=meta)
            with pytest.raises(error):
                await calls.touch(
                    store, "standing", stamp=one.stamp + 1, checksum=checksum_of(b"x"), meta=meta
                )
        assert await standing(store, "name") is None
        assert same(await store.stat("standing"), info_of("standing", b"x", stamp=one.stamp))

    async def test_a_checksum_that_is_not_the_datas_is_bad_content(self, store: BlobStore) -> None:
        for number, data in enumerate((b"", b"content", b"content" * 20_000)):
            for payload in (Bytes(data), streamed(data)):
                with pytest.raises(BadContent):
                    await calls.put(store, f"name{number}", payload, checksum=checksum_of(b"other"))
                assert await standing(store, f"name{number}") is None

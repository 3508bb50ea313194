"""Puts and touches: what they answer, and what stands after them."""

# ruff: noqa: D102 - the names say what is held

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest

from dolmen import metadata
from dolmen.errors import BadContent, Conflict, InvalidName, NotFound, TooLarge, Unavailable
from dolmen.names import checksum_of
from dolmen.payload import Bytes
from dolmen.record import Kind
from dolmen.stamps import MAX_STAMP
from dolmen.store import BlobInfo, BlobStore, Outcome
from dolmen.testing.conformance.material import (
    META,
    OTHER_META,
    at,
    content,
    info_of,
    standing,
    streamed,
)
from dolmen.testing.conformance.rivals import RIVALS, Write, same
from dolmen.testing.conformance.setting import Place, Suite

BAD_NAMES = ["", ".a", "-a", "_a", "..", "a/b", "a b", "a\n", "a\0", "ä", "a\udcff", "x" * 129]
GOOD_NAMES = ["a", "A", "0", "a..b", "Z-._", "x" * 128, "chunk-" + "0" * 64]
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
        answer = await store.put(name, Bytes(b"content"), checksum=checksum_of(b"content"))
        assert answer.outcome is Outcome.CREATED
        assert same(await store.stat(name), info_of(name, b"content", stamp=answer.stamp))
        blob = await store.get(name)
        assert same(blob.info, info_of(name, b"content", stamp=answer.stamp))
        assert await content(store, name) == b"content"

    async def test_names_differ_by_case(self, store: BlobStore) -> None:
        await store.put("name", Bytes(b"low"))
        await store.put("NAME", Bytes(b"high"))
        assert (await content(store, "name"), await content(store, "NAME")) == (b"low", b"high")

    @pytest.mark.parametrize("name", BAD_NAMES)
    async def test_every_method_refuses_a_name_of_another_form(
        self, store: BlobStore, name: str
    ) -> None:
        refused: list[Callable[[], Awaitable[object]]] = [
            lambda: store.put(name, Bytes(b"x")),
            lambda: store.put(name, streamed(b"x" * 100_000), stamp=at(1)),
            lambda: store.get(name),
            lambda: store.stat(name),
            lambda: store.stat(name, tombstones=True),
            lambda: store.touch(name, stamp=at(1), checksum=bytes(16), meta=b""),
            lambda: store.delete(name, stamp=at(1)),
            lambda: store.delete(name),
            lambda: store.remove(name, if_stamp=at(1)),
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
            await store.stat("absent", tombstones=True)

    async def test_a_plain_put_of_other_content_is_a_conflict(self, store: BlobStore) -> None:
        first = await store.put("name", Bytes(b"one"), meta=META)
        if not store.capabilities.conflicts:
            pytest.skip("this store lets the newer stamp win")
        for other in (Bytes(b"two"), Bytes(b""), streamed(b"two" * 50_000)):
            with pytest.raises(Conflict):
                await store.put("name", other)
        assert same(await store.stat("name"), info_of("name", b"one", stamp=first.stamp, meta=META))
        assert await content(store, "name") == b"one"

    async def test_a_plain_put_of_the_same_content_raises_stamp_and_metadata(
        self, store: BlobStore
    ) -> None:
        first = await store.put("name", Bytes(b"one"), meta=META)
        for payload in (Bytes(b"one"), streamed(b"one")):
            again = await store.put("name", payload, meta=OTHER_META)
            assert again.outcome is Outcome.UNCHANGED
            assert again.stamp > first.stamp
            first = again
        wanted = info_of("name", b"one", stamp=first.stamp, meta=OTHER_META)
        assert same(await store.stat("name"), wanted)

    async def test_a_plain_put_is_stamped_above_what_stands(
        self, store: BlobStore, place: Place
    ) -> None:
        ahead = (place.time.wall() + 1_800_000) << 16  # half an hour: within what is believed
        await store.put("name", Bytes(b"one"), stamp=ahead)
        assert (await store.put("name", Bytes(b"one"))).stamp > ahead
        assert (await store.delete("name")).stamp > ahead

    async def test_no_stamp_is_given_days_ahead_of_the_clock(
        self, store: BlobStore, place: Place
    ) -> None:
        ahead = (place.time.wall() + 2 * 86_400_000) << 16
        await store.put("blob", Bytes(b"one"), stamp=ahead)
        await store.delete("deleted", stamp=ahead)
        refused: list[Callable[[], Awaitable[object]]] = [
            lambda: store.put("blob", Bytes(b"one"), meta=META),
            lambda: store.delete("blob"),
            lambda: store.put("deleted", Bytes(b"one")),
        ]
        for call in refused:
            with pytest.raises(Unavailable):
                await call()
        assert same(await store.stat("blob"), info_of("blob", b"one", stamp=ahead))
        # What already carries a stamp is taken as it is, and nobody else is held up.
        assert (await store.put("deleted", Bytes(b"two"), stamp=ahead + 1)).stamp == ahead + 1
        assert (await store.put("another", Bytes(b"two"))).stamp < ahead

    async def test_every_order_of_arrival_ends_with_the_highest_rank(
        self, store: BlobStore
    ) -> None:
        async def arrive(name: str, writes: tuple[Write, ...]) -> None:
            before: BlobInfo | None = None
            for write in writes:
                expected = write.answer(before)
                assert await write.to(store, name) == expected, (before, write)
                if before is None or write.info(name).rank > before.rank:
                    before = write.info(name)
                assert same(await standing(store, name), before), write
            assert before is not None
            if before.kind is not Kind.TOMBSTONE:
                data = next(write.data for write in writes if write.info(name) == before)
                assert await content(store, name) == data

        orders = itertools.permutations(RIVALS, 3)
        await asyncio.gather(*(arrive(f"o{number}", order) for number, order in enumerate(orders)))

    async def test_stamps_of_64_bits_are_told_apart_by_their_last(self, store: BlobStore) -> None:
        edges = [0, 1, (1 << 53), (1 << 53) + 1, (1 << 63) - 1, 1 << 63, MAX_STAMP - 1, MAX_STAMP]
        for number, stamp in enumerate(edges):
            data = b"%d" % number
            assert await store.put("up", Bytes(data), stamp=stamp) == (Outcome.CREATED, stamp)
            assert (await store.stat("up")).stamp == stamp
            assert await content(store, "up") == data
        for stamp in edges[:-1]:
            answer = await store.put("up", Bytes(b"late"), stamp=stamp)
            assert answer == (Outcome.SUPERSEDED, MAX_STAMP)

    @pytest.mark.parametrize("size", [3, 200_000])
    async def test_an_identical_stamped_put_is_a_write(self, store: BlobStore, size: int) -> None:
        data = b"x" * size
        await store.put("name", Bytes(data), stamp=at(1), meta=META)
        for payload, stamp in ((Bytes(data), at(2)), (streamed(data), at(3))):
            answer = await store.put("name", payload, stamp=stamp)
            assert answer == (Outcome.UNCHANGED, stamp)
            assert same(await store.stat("name"), info_of("name", data, stamp=stamp))
        assert (await store.delete("name", stamp=at(2))).outcome is Outcome.SUPERSEDED
        assert await content(store, "name") == data

    async def test_a_blob_and_a_manifest_replace_one_another(self, store: BlobStore) -> None:
        kinds = (Kind.BLOB, Kind.MANIFEST, Kind.BLOB)
        for number, kind in enumerate(kinds):
            data = b"content %d" % number
            answer = await store.put("name", Bytes(data), stamp=at(number), kind=kind)
            assert answer == (Outcome.CREATED, at(number))
            assert same(
                await store.stat("name"), info_of("name", data, stamp=at(number), kind=kind)
            )
            assert await content(store, "name") == data

    async def test_metadata_is_kept_byte_for_byte_up_to_16_kib(self, store: BlobStore) -> None:
        for number, meta in enumerate((b"", META, FULL_META)):
            await store.put(f"put{number}", Bytes(b"x"), meta=meta)
            assert (await store.stat(f"put{number}")).metadata == meta
            assert (await store.get(f"put{number}")).info.metadata == meta

    async def test_metadata_too_large_or_not_canonical_is_refused(self, store: BlobStore) -> None:
        one = await store.put("standing", Bytes(b"x"))
        for meta, error in (
            (OVERFULL_META, TooLarge),
            (META[:-1], InvalidName),
            (b"x", InvalidName),
        ):
            for payload in (Bytes(b"x"), streamed(b"x" * 100_000)):
                with pytest.raises(error):
                    await store.put("name", payload, meta=meta)
            with pytest.raises(error):
                await store.touch(
                    "standing", stamp=one.stamp + 1, checksum=checksum_of(b"x"), meta=meta
                )
        assert await standing(store, "name") is None
        assert same(await store.stat("standing"), info_of("standing", b"x", stamp=one.stamp))

    async def test_a_checksum_that_is_not_the_datas_is_bad_content(self, store: BlobStore) -> None:
        for number, data in enumerate((b"", b"content", b"content" * 20_000)):
            for payload in (Bytes(data), streamed(data)):
                with pytest.raises(BadContent):
                    await store.put(f"name{number}", payload, checksum=checksum_of(b"other"))
                assert await standing(store, f"name{number}") is None

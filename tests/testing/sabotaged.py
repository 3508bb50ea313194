"""Stores in memory that break the contract, each in one way, and the test that finds it.

The tests of this file must fail; `test_conformance.py` runs them and sees to it.
"""

import asyncio
import random
from dataclasses import replace

from dolmen.stores.verdict import Action, Verdict

from dolmen.digests import Digests
from dolmen.errors import BadContent, DolmenError, NotFound
from dolmen.names import partition_of
from dolmen.payload import Bytes, read_whole
from dolmen.record import Kind
from dolmen.stamps import Clock
from dolmen.store import Blob, Failed, Outcome, Put
from dolmen.stores.memory import MemoryStore
from dolmen.testing.conformance import Conformance

FOUND_BY = {}


def found_by(test):
    """Run the suite on the store; `test` is the one that must fail."""

    def made(store):
        class Sabotaged(Conformance):
            reopens = False

            async def make_store(self, place):
                return store(clock=Clock(place.time.wall), now=place.time.now)

        Sabotaged.__qualname__ = Sabotaged.__name__ = f"Test{store.__name__}"
        globals()[Sabotaged.__name__] = Sabotaged
        FOUND_BY[Sabotaged.__name__] = test
        return store

    return made


@found_by("test_nothing_of_a_payload_that_fails_is_ever_visible")
class LeavesATraceOfWhatFails(MemoryStore):
    async def put(self, name, payload, **options):
        if self._standing(name) is None:
            await super().delete(name, stamp=0)
        return await super().put(name, payload, **options)


@found_by("test_a_put_given_up_in_its_payload_leaves_nothing")
class KeepsAPutThatWasGivenUp(MemoryStore):
    async def put(self, name, payload, **options):
        try:
            return await super().put(name, payload, **options)
        except asyncio.CancelledError:
            await super().put(name, Bytes(b"part"), **options)
            raise


@found_by("test_nothing_of_a_payload_that_fails_is_ever_visible")
class TakesAnyLength(MemoryStore):
    async def put(self, name, payload, **options):
        data = bytearray()
        try:
            async for piece in payload:
                data += piece
        except BadContent:
            pass
        return await super().put(name, Bytes(data), **options)


@found_by("test_a_checksum_that_is_not_the_datas_is_bad_content")
class ChecksNoChecksum(MemoryStore):
    async def put(self, name, payload, *, checksum=None, **options):
        return await super().put(name, payload, **options)


@found_by("test_an_identical_stamped_put_is_a_write")
class ForgetsToRaiseTheStamp(MemoryStore):
    def _carry_out(self, verdict, info, data):
        if verdict.action is Action.REVISE:
            return verdict.answer
        return super()._carry_out(verdict, info, data)


@found_by("test_a_touch_raises_stamp_and_metadata_and_keeps_the_bytes")
class KeepsTheOldMetadata(MemoryStore):
    def _carry_out(self, verdict, info, data):
        if verdict.action is Action.REVISE:
            info = replace(info, metadata=self._standing(info.name).metadata)
        return super()._carry_out(verdict, info, data)


@found_by("test_a_touch_makes_a_blob_young_again")
class ForgetsWhenItWasTouched(MemoryStore):
    def _carry_out(self, verdict, info, data):
        before = self._standing(info.name)
        answer = super()._carry_out(verdict, info, data)
        if verdict.action is Action.REVISE:
            self._standing(info.name).arrived = before.arrived
        return answer


@found_by("test_every_order_of_arrival_ends_with_the_highest_rank")
class LetsTheLastPutWin(MemoryStore):
    def _carry_out(self, verdict, info, data):
        return super()._carry_out(Verdict(Action.WRITE, verdict.answer), info, data or b"")


@found_by("test_stamps_of_64_bits_are_told_apart_by_their_last")
class ComparesStampsAsDoubles(MemoryStore):
    async def put(self, name, payload, *, stamp=None, **options):
        if stamp is not None:
            stamp = min(int(float(stamp)), (1 << 64) - 1)
        return await super().put(name, payload, stamp=stamp, **options)


@found_by("test_an_absent_name_gets_a_tombstone_too")
class DeletesWithoutTombstone(MemoryStore):
    async def delete(self, name, *, stamp=None):
        answer = await super().delete(name, stamp=stamp)
        self._partitions[partition_of(name)].pop(name)
        return answer


@found_by("test_a_plain_delete_is_stamped_above_what_stands")
class HidesTheTombstonesStamp(MemoryStore):
    async def get(self, name, *, byte_range=None):
        try:
            return await super().get(name, byte_range=byte_range)
        except NotFound as error:
            raise NotFound(str(error)) from None


@found_by("test_only_the_stamp_named_is_removed")
class RemovesWhateverStands(MemoryStore):
    async def remove(self, name, *, if_stamp, min_age=0):
        found = self._standing(name)
        return await super().remove(
            name, if_stamp=found.stamp if found else if_stamp, min_age=min_age
        )


@found_by("test_what_arrived_lately_is_not_removed")
class RemovesTheYoung(MemoryStore):
    async def remove(self, name, *, if_stamp, min_age=0):
        return await super().remove(name, if_stamp=if_stamp)


@found_by("test_a_removed_blob_leaves_nothing")
class RemovesByTombstone(MemoryStore):
    async def remove(self, name, *, if_stamp, min_age=0):
        removed = await super().remove(name, if_stamp=if_stamp, min_age=min_age)
        if removed:
            await self.delete(name, stamp=if_stamp)
        return removed


@found_by("test_everything_is_listed_in_order_with_all_that_is_known")
class ListsInOrderOfArrival(MemoryStore):
    async def list(self, **narrowed):
        infos = [info async for info in super().list(**narrowed)]
        for info in sorted(infos, key=lambda info: info.stamp):
            yield info


@found_by("test_everything_is_listed_in_order_with_all_that_is_known")
class ListsByNameAlone(MemoryStore):
    async def list(self, **narrowed):
        infos = [info async for info in super().list(**narrowed)]
        for info in sorted(infos, key=lambda info: info.name):
            yield info


@found_by("test_a_listing_begins_behind_any_name")
class BeginsWithTheNameItShouldFollow(MemoryStore):
    async def list(self, *, after=None, **narrowed):
        if after is not None:
            async for info in super().list(**narrowed):
                if info.name == after:
                    yield info
        async for info in super().list(after=after, **narrowed):
            yield info


@found_by("test_a_listing_begins_behind_any_name")
class SkipsThePartitionOfAfter(MemoryStore):
    async def list(self, *, after=None, **narrowed):
        async for info in super().list(after=after, **narrowed):
            if after is None or partition_of(info.name) != partition_of(after):
                yield info


@found_by("test_what_stands_throughout_is_listed_once_whatever_else_is_written")
class PagesByPosition(MemoryStore):
    async def list(self, **narrowed):
        position = 0
        while True:
            page = [info async for info in super().list(**narrowed)][position:][:100]
            for info in page:
                yield info
            position += len(page)
            if not page:
                return


@found_by("test_a_prefix_and_partitions_narrow_a_listing")
class IgnoresThePartitions(MemoryStore):
    async def list(self, *, partitions=(), **narrowed):
        async for info in super().list(**narrowed):
            yield info


@found_by("test_digests_follow_every_write")
class LeavesTombstonesOutOfDigests(MemoryStore):
    async def digests(self):
        kept = {
            partition: {
                name: found for name, found in held.items() if found[0].kind != Kind.TOMBSTONE
            }
            for partition, held in self._partitions.items()
        }
        other = MemoryStore()
        other._partitions = kept
        return await other.digests()


@found_by("test_digests_follow_every_write")
class CountsWhatWasReplacedTwice(MemoryStore):
    def __init__(self, **options):
        super().__init__(**options)
        self.extra = 0

    def _carry_out(self, verdict, info, data):
        before = self._standing(info.name)
        if verdict.action is Action.WRITE and before is not None:
            self.extra += before.size
        return super()._carry_out(verdict, info, data)

    async def digests(self):
        slots = (await super().digests()).slots
        for slot in list(slots.values())[:1]:
            slot.size += self.extra
        return Digests(slots)


@found_by("test_every_range_reads_as_that_part")
class CountsRangesFromOne(MemoryStore):
    async def get(self, name, *, byte_range=None):
        if byte_range and byte_range[0] == 65_536:
            byte_range = (65_535, byte_range[1])
        return await super().get(name, byte_range=byte_range)


@found_by("test_every_range_reads_as_that_part")
class GivesTheSizeOfTheRange(MemoryStore):
    async def get(self, name, *, byte_range=None):
        blob = await super().get(name, byte_range=byte_range)
        return Blob(replace(blob.info, size=blob.payload.size), blob.payload)


@found_by("test_every_size_reads_as_it_was_put")
class RoundsSizesDown(MemoryStore):
    async def put(self, name, payload, **options):
        data = bytes(await read_whole(payload))
        if len(data) > 4 << 20:
            data = data[: 4 << 20]
        return await super().put(name, Bytes(data), **options)


@found_by("test_every_method_refuses_a_name_of_another_form")
class DeletesAnyName(MemoryStore):
    async def delete(self, name, *, stamp=None):
        try:
            return await super().delete(name, stamp=stamp)
        except DolmenError:
            return Put(Outcome.CREATED, stamp or 1)


@found_by("test_every_method_refuses_a_name_of_another_form")
class TakesNamesThatEndInALineFeed(MemoryStore):
    def _standing(self, name):
        return super()._standing(name.removesuffix("\n"))


@found_by("test_names_differ_by_case")
class FoldsCase(MemoryStore):
    async def put(self, name, payload, **options):
        return await super().put(name.lower(), payload, **options)

    async def stat(self, name, *, tombstones=False):
        return await super().stat(name.lower(), tombstones=tombstones)


@found_by("test_metadata_too_large_or_not_canonical_is_refused")
class TouchesWithAnyMetadata(MemoryStore):
    async def touch(self, name, *, stamp, checksum, meta):
        try:
            return await super().touch(name, stamp=stamp, checksum=checksum, meta=meta)
        except NotFound:
            raise
        except DolmenError:
            return Put(Outcome.UNCHANGED, stamp)


@found_by("test_a_touch_finds_only_the_live_blob_of_that_checksum")
class TouchesWhateverIsThere(MemoryStore):
    async def touch(self, name, *, stamp, checksum, meta):
        found = await self.stat(name)
        return await super().touch(name, stamp=stamp, checksum=found.checksum, meta=meta)


@found_by("test_of_plain_puts_of_differing_content_at_once_one_stands")
class DecidesBeforeItWaits(MemoryStore):
    async def put(self, name, payload, **options):
        free = self._standing(name) is None
        data = bytes(await read_whole(payload))
        await asyncio.sleep(0)
        if free and self._standing(name) is not None and options.get("stamp") is None:
            self._partitions[partition_of(name)].pop(name)
        return await super().put(name, Bytes(data), **options)


@found_by("test_get_many_answers_for_every_name_in_order")
class AnswersInAnyOrder(MemoryStore):
    async def get_many(self, names):
        answers = [answer async for answer in super().get_many(names)]
        random.Random(1).shuffle(answers)
        for answer in answers:
            yield answer


@found_by("test_get_many_answers_for_every_name_in_order")
class LeavesOutWhatIsDeleted(MemoryStore):
    async def get_many(self, names):
        async for answer in super().get_many(names):
            if isinstance(answer, Failed) or answer.info.kind != Kind.TOMBSTONE:
                yield answer


@found_by("test_a_blob_that_fails_holds_up_no_other")
class StopsAtTheFirstFailure(MemoryStore):
    async def put_many(self, blobs):
        async for answer in super().put_many(blobs):
            yield answer
            if isinstance(answer, Failed):
                return


@found_by("test_put_many_keeps_stamps_kinds_and_metadata")
class StampsAnew(MemoryStore):
    async def put_many(self, blobs):
        async def renewed():
            async for blob in blobs:
                yield Blob(replace(blob.info, stamp=blob.info.stamp + 1), blob.payload)

        async for answer in super().put_many(renewed()):
            yield answer


@found_by("test_no_stamp_is_given_days_ahead_of_the_clock")
class TrustsEveryClock(MemoryStore):
    def __init__(self, *, clock, now):
        super().__init__(clock=Clock(lambda: 1 << 46), now=now)


@found_by("test_notes_are_kept_beside_the_blobs")
class ListsItsNotes(MemoryStore):
    async def note(self, key, value):
        await super().note(key, value)
        await self.put("scrub", Bytes(value), stamp=1 << 60)


@found_by("test_notes_are_kept_beside_the_blobs")
class KeepsTheFirstNote(MemoryStore):
    async def note(self, key, value):
        if key not in await self.notes():
            await super().note(key, value)


@found_by("test_a_store_may_be_closed_twice")
class ClosesOnce(MemoryStore):
    closed = False

    async def aclose(self):
        if self.closed:
            raise RuntimeError("closed already")
        self.closed = True

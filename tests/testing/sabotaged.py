"""Stores in memory that break the contract, each in one way, and the test that finds it.

The tests of this file must fail; `test_conformance.py` runs them and sees to it.
"""

import asyncio
import random
from dataclasses import replace

from dolmen.digests import Digests
from dolmen.errors import BadContent, Corrupt, DolmenError, NotFound, Unavailable
from dolmen.names import checksum_of, partition_of
from dolmen.payload import Bytes, read_whole
from dolmen.record import Kind
from dolmen.resolve import may_remove
from dolmen.stamps import AHEAD_MS, Clock, milliseconds
from dolmen.store import EVERYTHING, Blob, BlobInfo, Failed, Outcome, Put
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls
from dolmen.testing.conformance import Conformance
from dolmen.testing.faulty import damage

FOUND_BY = {}


def found_by(test):
    """Run the suite on the store; `test` is the one that must fail."""

    def made(store):
        class Sabotaged(Conformance):
            reopens = False

            async def make_store(self, place):
                return store(clock=Clock(place.time.wall), now=place.time.now)

            async def damage(self, store, place, name):
                damage(store, name)

        Sabotaged.__qualname__ = Sabotaged.__name__ = f"Test{store.__name__}"
        globals()[Sabotaged.__name__] = Sabotaged
        FOUND_BY[Sabotaged.__name__] = test
        return store

    return made


class Prying(MemoryStore):
    """What the sabotages below have in common: a way to what is kept."""

    def kept(self, name):
        return self._partitions.setdefault(partition_of(name), {})

    def keep(self, name, info, data=b""):
        self.kept(name)[name] = info, data

    def info(self, name):
        return self._current(name)[0]


class Spoiling(Prying):
    """What is written is spoilt afterwards."""

    async def write(self, write):
        before, held = self._current(write.name)
        put = await super().write(write)
        self.spoil(write, put, before, held)
        return put


# Writes


@found_by("test_nothing_of_a_payload_that_fails_is_ever_visible")
class LeavesATraceOfWhatFails(Prying):
    async def write(self, write):
        if write.kind != Kind.TOUCH and self.info(write.name) is None:
            self.keep(write.name, BlobInfo(write.name, 0, Kind.TOMBSTONE, 1, bytes(16)))
        return await super().write(write)


@found_by("test_a_put_cancelled_in_its_payload_leaves_nothing")
class KeepsAPutThatWasCancelled(Prying):
    async def write(self, write):
        try:
            return await super().write(write)
        except asyncio.CancelledError:
            await super().write(replace(write, payload=Bytes(b"part")))
            raise


@found_by("test_nothing_of_a_payload_that_fails_is_ever_visible")
class TakesAnyLength(Prying):
    async def write(self, write):
        data = bytearray()
        try:
            async for piece in write.payload:
                data += piece
        except BadContent:
            pass
        return await super().write(replace(write, payload=Bytes(data)))


@found_by("test_every_size_reads_as_it_was_put")
class CutsLargeBlobs(Prying):
    async def write(self, write):
        data = bytes(await read_whole(write.payload))
        if len(data) > 4 << 20:
            data = data[: 4 << 20]
        return await super().write(replace(write, payload=Bytes(data)))


@found_by("test_writes_of_a_name[a write of another form changes nothing]")
class ChecksNoChecksum(Prying):
    async def write(self, write):
        return await super().write(replace(write, checksum=None))


@found_by("test_writes_of_a_name[a chunk's name takes only its own content]")
class StoresOtherContentUnderAChunksName(Prying):
    async def write(self, write):
        try:
            return await super().write(write)
        except BadContent:
            put = await super().write(replace(write, name="elsewhere", checksum=None, stamp=None))
            info, data = self.kept("elsewhere").pop("elsewhere")
            self.keep(write.name, replace(info, name=write.name), data)
            return put


@found_by("test_writes_of_a_name[a chunk's name takes only its own content]")
class TakesAManifestForAChunk(Prying):
    async def write(self, write):
        if write.kind == Kind.MANIFEST and write.name.startswith("chunk"):
            put = await super().write(replace(write, kind=Kind.BLOB))
            info, data = self._current(write.name)
            self.keep(write.name, replace(info, kind=Kind.MANIFEST), data)
            return put
        return await super().write(write)


@found_by("test_writes_of_a_name[an identical put is a write]")
class ForgetsToRaiseTheStamp(Spoiling):
    def spoil(self, write, put, before, held):
        if put.outcome is Outcome.UNCHANGED:
            self.keep(write.name, before, held)


@found_by("test_writes_of_a_name[a touch raises stamp and metadata and keeps the bytes]")
class KeepsTheOldMetadata(Spoiling):
    def spoil(self, write, put, before, held):
        if put.outcome is Outcome.UNCHANGED:
            self.info(write.name).metadata = before.metadata


@found_by("test_a_write_or_touch_renews_the_time_of_arrival")
class ForgetsWhenItWasTouched(Spoiling):
    def spoil(self, write, put, before, held):
        if put.outcome is Outcome.UNCHANGED:
            self.info(write.name).arrived = before.arrived


@found_by("test_a_write_or_touch_renews_the_time_of_arrival")
class RenewsWhatWasSuperseded(Spoiling):
    def spoil(self, write, put, before, held):
        self.info(write.name).arrived = int(self._now())


@found_by("test_writes_of_a_name[the newer of delete and put is current]")
class LetsTheLastPutWin(Prying):
    async def write(self, write):
        if write.kind != Kind.TOUCH and write.stamp is not None:
            self.kept(write.name).pop(write.name, None)
        return await super().write(write)


@found_by("test_stamped_writes_in_any_order_end_with_the_highest_rank")
class LetsTheFirstOfATieWin(Prying):
    async def write(self, write):
        current = self.info(write.name)
        if current is not None and current.stamp == write.stamp:
            return Put(Outcome.SUPERSEDED, current.stamp)
        return await super().write(write)


@found_by("test_writes_of_a_name[stamps differ by the last of 64 bits]")
class ComparesStampsAsDoubles(Prying):
    async def write(self, write):
        if write.stamp is not None:
            write = replace(write, stamp=min(int(float(write.stamp)), (1 << 64) - 2))
        return await super().write(write)


@found_by("test_a_name_written_by_a_clock_years_ahead_can_still_be_written")
class FollowsAClockYearsAhead(Prying):
    async def write(self, write):
        if write.stamp is not None:
            self._clock.last = max(self._clock.last, write.stamp)
            self._clock._wall = lambda: milliseconds(self._clock.last)
        return await super().write(write)


@found_by("test_a_name_written_by_a_clock_years_ahead_can_still_be_written")
class RefusesADeleteYearsAhead(Prying):
    async def write(self, write):
        current = self.info(write.name)
        ahead = current and milliseconds(current.stamp) > self._clock._wall() + AHEAD_MS
        if write.kind == Kind.TOMBSTONE and write.stamp is None and ahead:
            raise Unavailable("the current version was written by a clock that is ahead")
        return await super().write(write)


@found_by("test_writes_of_a_name[the newer of delete and put is current]")
class DeletesWithoutTombstone(Spoiling):
    def spoil(self, write, put, before, held):
        if write.kind == Kind.TOMBSTONE:
            self.kept(write.name).pop(write.name)


@found_by("test_a_plain_write_is_stamped_above_the_current_stamp")
class HidesTheTombstonesStamp(Prying):
    async def stat(self, name):
        try:
            return await super().stat(name)
        except NotFound as error:
            raise NotFound(str(error)) from None


@found_by("test_every_method_refuses_a_name_of_another_form")
class DeletesAnyName(Prying):
    async def write(self, write):
        try:
            return await super().write(write)
        except DolmenError:
            if write.kind != Kind.TOMBSTONE:
                raise
            return Put(Outcome.CREATED, write.stamp or 1)


@found_by("test_every_method_refuses_a_name_of_another_form")
class ReadsNamesThatEndInALineFeed(Prying):
    async def get(self, name, *, byte_range=None):
        return await super().get(name.removesuffix("\n"), byte_range=byte_range)

    async def stat(self, name):
        return await super().stat(name.removesuffix("\n"))


@found_by("test_every_good_name_holds_its_own_blob")
class FoldsCase(Prying):
    async def write(self, write):
        return await super().write(replace(write, name=write.name.lower()))

    def _current(self, name):
        return super()._current(name.lower())


@found_by("test_writes_of_a_name[a write of another form changes nothing]")
class TouchesWithAnyMetadata(Prying):
    async def write(self, write):
        try:
            return await super().write(write)
        except DolmenError as error:
            if write.kind != Kind.TOUCH or isinstance(error, NotFound):
                raise
            return Put(Outcome.UNCHANGED, write.stamp)


@found_by("test_writes_of_a_name[a touch finds only the live blob of its checksum]")
class TouchesWhateverIsThere(Prying):
    async def write(self, write):
        if write.kind == Kind.TOUCH:
            write = replace(write, checksum=(await self.stat(write.name)).checksum)
        return await super().write(write)


@found_by("test_of_plain_puts_at_once_one_creates_and_its_content_is_current")
class DecidesBeforeItWaits(Prying):
    async def write(self, write):
        free = self.info(write.name) is None
        data = bytes(await read_whole(write.payload))
        await asyncio.sleep(0)
        if free and write.stamp is None:
            self.kept(write.name).pop(write.name, None)
        return await super().write(replace(write, payload=Bytes(data)))


@found_by("test_any_sequence_of_calls_answers_as_the_model_does")
class RaisesNoStampOnceItWasRaised(Spoiling):
    def spoil(self, write, put, before, held):
        if put.outcome is Outcome.UNCHANGED and before.metadata and not write.metadata:
            self.keep(write.name, before, held)


# Removals


class Removing(Prying):
    def may_remove(self, current, if_stamp, min_age):
        return may_remove(current, if_stamp=if_stamp, min_age=min_age, now=self._now())

    async def remove(self, remove, *, min_age):
        name, if_stamp = remove
        await super().remove(remove, min_age=1 << 60)  # refuses names of another form
        gone = self.may_remove(self.info(name), if_stamp, min_age)
        if gone:
            self.kept(name).pop(name)
        return gone


@found_by("test_only_a_copy_of_that_stamp_and_age_is_removed")
class RemovesWhateverIsThere(Removing):
    def may_remove(self, current, if_stamp, min_age):
        return current is not None


@found_by("test_only_a_copy_of_that_stamp_and_age_is_removed")
class RemovesTheYoung(Removing):
    def may_remove(self, current, if_stamp, min_age):
        return super().may_remove(current, if_stamp, 0)


@found_by("test_a_removed_copy_leaves_nothing")
class RemovesByTombstone(Prying):
    async def remove(self, remove, *, min_age):
        removed = await super().remove(remove, min_age=min_age)
        if removed:
            await calls.delete(self, remove.name, stamp=remove.if_stamp)
        return removed


@found_by("test_an_older_configuration_removes_nothing")
class RemovesForAnyConfiguration(Prying):
    async def remove_many(self, removes, *, min_age=0, epoch=None):
        return await super().remove_many(removes, min_age=min_age)


# Listings and digests


@found_by("test_everything_is_listed_in_order_with_all_that_is_known")
class ListsInOrderOfArrival(Prying):
    async def list(self, listing=EVERYTHING):
        infos = [info async for info in super().list(listing)]
        for info in sorted(infos, key=lambda info: info.stamp):
            yield info


@found_by("test_everything_is_listed_in_order_with_all_that_is_known")
class ListsByNameAlone(Prying):
    async def list(self, listing=EVERYTHING):
        infos = [info async for info in super().list(listing)]
        for info in sorted(infos, key=lambda info: info.name):
            yield info


@found_by("test_a_listing_begins_behind_any_name_and_may_be_abandoned")
class BeginsWithTheNameItShouldFollow(Prying):
    async def list(self, listing=EVERYTHING):
        if listing.after is not None:
            async for info in super().list(replace(listing, after=None)):
                if info.name == listing.after:
                    yield info
        async for info in super().list(listing):
            yield info


@found_by("test_a_listing_begins_behind_any_name_and_may_be_abandoned")
class SkipsThePartitionOfAfter(Prying):
    async def list(self, listing=EVERYTHING):
        after = listing.after
        async for info in super().list(listing):
            if after is None or partition_of(info.name) != partition_of(after):
                yield info


@found_by("test_what_is_there_throughout_is_listed_once_whatever_else_is_written")
class PagesByPosition(Prying):
    async def list(self, listing=EVERYTHING):
        position = 0
        while True:
            page = [info async for info in super().list(listing)][position:][:100]
            for info in page:
                yield info
            position += len(page)
            if not page:
                return


@found_by("test_a_prefix_and_partitions_narrow_a_listing")
class IgnoresThePartitions(Prying):
    async def list(self, listing=EVERYTHING):
        async for info in super().list(replace(listing, partitions=range(65_536))):
            yield info


@found_by("test_digests_tell_in_which_partitions_stores_differ")
class LeavesTombstonesOutOfDigests(Prying):
    async def digests(self):
        other = MemoryStore()
        for partition, names in self._partitions.items():
            live = {name: kept for name, kept in names.items() if kept[0].kind != Kind.TOMBSTONE}
            other._partitions[partition] = live
        return await other.digests()


@found_by("test_writes_of_a_name[a blob and a manifest replace one another]")
class CountsWhatWasReplacedTwice(Spoiling):
    extra = 0

    def spoil(self, write, put, before, held):
        if put.outcome is Outcome.CREATED and before is not None:
            self.extra += before.size

    async def digests(self):
        slots = (await super().digests()).slots
        for slot in list(slots.values())[:1]:
            slot.size += self.extra
        return Digests(slots)


# Reading


@found_by("test_every_range_reads_as_that_part")
class CountsRangesFromOne(Prying):
    async def get(self, name, *, byte_range=None):
        if byte_range and byte_range[0] == 65_536:
            byte_range = (65_535, byte_range[1])
        return await super().get(name, byte_range=byte_range)


@found_by("test_every_range_reads_as_that_part")
class GivesTheSizeOfTheRange(Prying):
    async def get(self, name, *, byte_range=None):
        blob = await super().get(name, byte_range=byte_range)
        return Blob(replace(blob.info, size=blob.payload.size), blob.payload)


@found_by("test_many_are_read_and_verified_in_the_order_asked")
class AnswersInAnyOrder(Prying):
    async def get_many(self, names):
        answers = [answer async for answer in super().get_many(names)]
        random.Random(1).shuffle(answers)
        for answer in answers:
            yield answer


@found_by("test_many_are_read_and_verified_in_the_order_asked")
class LeavesOutWhatIsDeleted(Prying):
    async def get_many(self, names):
        async for answer in super().get_many(names):
            if isinstance(answer, Failed) or answer.info.kind != Kind.TOMBSTONE:
                yield answer


@found_by("test_a_write_that_fails_holds_up_no_other")
class StopsAtTheFirstFailure(Prying):
    async def write_many(self, writes):
        async for answer in super().write_many(writes):
            yield answer
            if isinstance(answer, Failed):
                return


@found_by("test_everything_copied_makes_equal_stores")
class StampsAnew(Prying):
    async def write_many(self, writes):
        async def renewed():
            async for write in writes:
                yield replace(write, stamp=write.stamp + 1)

        async for answer in super().write_many(renewed()):
            yield answer


# Damage


@found_by("test_an_acknowledged_put_of_the_same_content_makes_a_damaged_copy_sound")
class SaysUnchangedOfADamagedCopy(Prying):
    def _is_sound(self, name):
        return True

    async def get(self, name, *, byte_range=None):
        if not super()._is_sound(name):
            raise Corrupt("damaged")
        return await super().get(name, byte_range=byte_range)


@found_by("test_damage_is_found_by_every_read_and_never_handed_out")
class HandsOutDamagedBytes(Prying):
    def _is_sound(self, name):
        return True


@found_by("test_damage_is_found_by_every_read_and_never_handed_out")
class VerifiesNothing(Prying):
    async def verify_many(self, names):
        for name in names:
            yield self.info(name)


@found_by("test_a_touch_does_not_find_a_damaged_copy")
class TouchesADamagedCopy(Prying):
    async def write(self, write):
        info, data = self._current(write.name)
        if write.kind == Kind.TOUCH and info is not None and checksum_of(data) != info.checksum:
            return Put(Outcome.UNCHANGED, write.stamp)
        return await super().write(write)


@found_by("test_a_copy_known_to_be_damaged_leaves_listings_and_digests")
class ListsDamagedCopies(Prying):
    async def list(self, listing=EVERYTHING):
        damaged, self._quarantine = self._quarantine, set()
        infos = [info async for info in super().list(replace(listing, quarantined=False))]
        self._quarantine = damaged
        for info in infos:
            if info.name in damaged or not listing.quarantined:
                yield info


@found_by("test_a_copy_known_to_be_damaged_is_replaced_by_its_content_and_what_is_newer")
class LetsAnythingReplaceADamagedCopy(Prying):
    async def write(self, write):
        if not self._is_sound(write.name):
            self.kept(write.name).pop(write.name)
        return await super().write(write)


# The store itself


@found_by("test_a_store_has_an_identity_that_never_changes")
class LetsItsIdentityBeOverwritten(Prying):
    async def note(self, key, value):
        self._notes[key] = value


@found_by("test_notes_are_kept_beside_the_blobs")
class ListsItsNotes(Prying):
    async def note(self, key, value):
        await super().note(key, value)
        await calls.put(self, "scrub", Bytes(value), stamp=1 << 60)


@found_by("test_notes_are_kept_beside_the_blobs")
class KeepsTheFirstNote(Prying):
    async def note(self, key, value):
        if key not in await self.notes():
            await super().note(key, value)


@found_by("test_a_store_may_be_closed_twice")
class ClosesOnce(Prying):
    closed = False

    async def aclose(self):
        if self.closed:
            raise RuntimeError("closed already")
        self.closed = True

"""Crashes at chosen moments, where trials by chance seldom come."""

import os
import random

import pytest

from dolmen.errors import Corrupt, NotFound
from dolmen.names import checksum_of
from dolmen.record import Kind, block_sums
from dolmen.stamps import Clock
from dolmen.stores.volume import recovery
from dolmen.stores.volume.reindex import reindex
from dolmen.stores.volume.segment import Segment
from dolmen.stores.volume.volume import VolumeStore
from dolmen.stores.volume.write import Op, Write
from dolmen.testing.crash import PowerCut, SimulatedDisk, commit


class Machine:
    """A volume on a simulated disk; `store` is the one process that has it open."""

    def __init__(self, folder, seed: int = 1) -> None:
        self.folder, self.lives = folder, 0
        self.disk = SimulatedDisk(self._root(), rng=random.Random(seed))
        self.start()

    def _root(self) -> str:
        self.lives += 1
        root = f"{self.folder}/{self.lives}"
        os.makedirs(root)
        return root

    def start(self) -> None:
        wall = iter(range(1_700_000_000_000 + self.lives * 10_000, 1_800_000_000_000))
        self.store = VolumeStore(
            self.disk.root + "/volume",
            disk=self.disk,
            clock=Clock(lambda: next(wall)),
            now=lambda: 1_000_000.0,
            segment_size=3_000,
        )

    def stop(self) -> None:
        """What a dead process lets go of."""
        self.store._executor.shutdown()
        self.store._files.close()
        self.store._index.env.close()
        self.store._recent.env.close()
        del self.store

    def kill(self) -> None:
        self.stop()
        self.disk.kill()
        self.start()

    def cut_power(self) -> None:
        self.stop()
        self.disk = self.disk.power_cut(self._root())
        self.start()

    def commit(self, *writes: Write) -> None:
        commit(self.store._log, *writes)
        for write in writes:
            if write.error is not None:
                raise write.error

    def data(self, name: str) -> bytes | None:
        try:
            entry = self.store._live(name)
        except NotFound:
            return None
        reading = self.store._reader.read(name, entry, None)
        with pytest.raises(StopIteration) as done:
            reading.send(None)
        return bytes(done.value.value.whole)


def died(machine: Machine, segment: Segment) -> None:
    """Let the lock of a segment go, as if its process had died."""
    machine.disk.unlock(segment.fd)


def put(name: str, data: bytes, *, kind: Kind = Kind.BLOB, stamp: int | None = None) -> Write:
    return Write(
        Op.PUT,
        name,
        stamp=stamp,
        kind=kind,
        checksum=checksum_of(data),
        data=data,
        sums=block_sums(data),
        length=len(data),
    )


def streamed(machine: Machine, name: str, data: bytes, *, alone: bool) -> Write:
    place = machine.store._log.place(len(name), len(data), alone=alone)
    place.take(data)
    return Write(
        Op.PUT,
        name,
        stamp=None,
        kind=1,
        checksum=place.checksum,
        length=len(data),
        place=place,
    )


@pytest.mark.parametrize("seed", range(12))
def test_what_refers_to_a_killed_upload_survives_the_power_cut_after_it(tmp_path, seed):
    # Killed between the naming of its segment and the flush of the name, recovered by a process
    # that lives. The same content put again is unchanged: its revision refers to that segment.
    machine = Machine(tmp_path, seed)
    log = machine.store._log
    write = streamed(machine, "name", b"x" * 500, alone=True)
    batch, _ = log.claim([write])
    real = machine.disk.flush_directory

    def killed(path: str) -> None:
        raise PowerCut

    machine.disk.flush_directory = killed
    with pytest.raises(PowerCut):
        log.log(batch)
    machine.disk.flush_directory = real
    died(machine, write.place.segment)
    with log._recent.change() as change:
        change.release([write.key])
    recovery.recover(machine.disk, log.appender._layout, log._index, log._recent)
    again = put("name", b"x" * 500)
    machine.commit(again)
    assert again.answer.outcome == "unchanged"
    machine.cut_power()
    assert machine.data("name") == b"x" * 500


def test_a_removal_made_during_a_merge_is_not_undone_by_a_scan(tmp_path, monkeypatch):
    machine = Machine(tmp_path)
    machine.commit(put("old", b"o"))
    store = machine.store
    real = store._recent.state
    place = None

    def meanwhile():
        """The merge has looked how far the segments reach; now all of this happens."""
        nonlocal place
        found = real()
        monkeypatch.setattr(store._recent, "state", real)
        place = store._log.place(1, 100, alone=False)  # an upload begins and goes on
        machine.commit(put("name", b"n" * 100))  # lies behind it
        machine.commit(put("filler", b"f" * 4_000))  # the segment is retired
        stamp = store._live("name").stamp
        machine.commit(Write(Op.REMOVE, "name", stamp=stamp))  # lies in the next one
        return found

    monkeypatch.setattr(store._recent, "state", meanwhile)
    store._merge.merge()
    store._merge.merge()
    assert machine.data("name") is None
    machine.kill()
    assert machine.data("name") is None


def test_claims_of_a_dead_process_are_kept_until_all_its_segments_are_read(tmp_path, monkeypatch):
    # The claim is in the name of the active segment, the record in one of its own behind it.
    machine = Machine(tmp_path)
    machine.commit(put("before", b"data"))
    write = streamed(machine, "name", b"x" * 500, alone=True)
    log = machine.store._log
    batch, _ = log.claim([write])
    log.log(batch)
    # Another process of the volume recovers it: the claims are in recent, which is kept.
    died(machine, log.appender.active)
    died(machine, write.place.segment)
    claimed = []
    real = recovery._let_be_seen

    def watched(index, recent, recovered):
        real(index, recent, recovered)
        with recent.change() as change:
            claimed.append(change.claimed([write.key]))

    monkeypatch.setattr(recovery, "_let_be_seen", watched)
    recovery.recover(machine.disk, log.appender._layout, log._index, log._recent)
    assert claimed == [{write.key}, {write.key}]
    with log._recent.change() as change:
        assert change.claimed([write.key]) == set()
    assert machine.data("name") == b"x" * 500


def test_what_was_merged_while_a_segment_was_scanned_is_not_covered_by_older(tmp_path, monkeypatch):
    machine = Machine(tmp_path)
    log = machine.store._log
    dead = put("name", b"of the dead")
    batch, _ = log.claim([dead])
    log.log(batch)
    with log._recent.change() as change:  # as if nobody knew of the claim any more
        change.release([dead.key])
    died(machine, log.appender.active)
    real = recovery._recover_segment

    def meanwhile(*arguments):
        recovered = real(*arguments)
        machine.commit(put("name", b"of the living"))
        machine.store._merge.merge()
        return recovered

    monkeypatch.setattr(recovery, "_recover_segment", meanwhile)
    layout = log.appender._layout
    number = log.appender.active.number
    log.appender.active = log.appender._new_segment()
    monkeypatch.setattr(recovery, "leftover_segments", lambda *_: [number])
    recovery.recover(machine.disk, layout, log._index, log._recent)
    assert machine.data("name") == b"of the living"


def test_a_merge_killed_while_it_seals_is_carried_on_by_another(tmp_path, monkeypatch):
    machine = Machine(tmp_path)
    for number in range(4):
        machine.commit(put(f"n{number}", b"x" * 4_000))
    store = machine.store

    def killed(number: int) -> None:
        raise PowerCut

    monkeypatch.setattr(store._recent, "forget_segment", killed)
    with pytest.raises(PowerCut):
        store._merge.merge()
    monkeypatch.undo()
    store._merge.merge()
    assert len(store._recent.segments()) <= 1
    machine.kill()
    assert all(machine.data(f"n{number}") == b"x" * 4_000 for number in range(4))


@pytest.mark.parametrize("seed", range(6))
def test_segments_in_a_folder_made_by_a_killed_process_survive_a_power_cut(tmp_path, seed):
    machine = Machine(tmp_path, seed)
    machine.commit(put("name", b"x" * 4_000))
    real = machine.disk.add_directory

    def killed(path: str) -> None:
        real(path)
        raise PowerCut

    machine.disk.add_directory = killed
    with pytest.raises(PowerCut):
        machine.store._merge.merge()
    machine.disk.add_directory = real
    machine.kill()
    machine.store._merge.merge()
    machine.cut_power()
    assert machine.data("name") == b"x" * 4_000


@pytest.mark.parametrize("seed", range(8))
def test_torn_parts_in_the_middle_are_not_taken_for_damage_later(tmp_path, seed):
    machine = Machine(tmp_path, seed)
    machine.commit(put("first", b"1"))
    segment = machine.store._log.appender.active
    batch, _ = machine.store._log.claim([put("torn", b"t" * 200), put("kept", b"k" * 200)])
    offset = segment.append(batch.size)[0]
    machine.disk.write(segment.fd, batch.parts, offset)
    machine.disk.write(segment.fd, [b"garbage"], offset)  # the header of the first never arrived
    machine.kill()
    assert machine.data("torn") is None
    assert machine.data("kept") == b"k" * 200
    machine.store._close()
    assert reindex(machine.disk.root + "/volume", disk=machine.disk).damaged == []
    machine.start()
    assert machine.data("first") == b"1"
    assert machine.data("kept") == b"k" * 200


def segments(machine: Machine) -> list[str]:
    """The segments there are, those that are being written included."""
    root = machine.disk.root + "/volume"
    folders = [
        f"{root}/active",
        *(f"{root}/sealed/{n}" for n in machine.disk.names(f"{root}/sealed")),
    ]
    return [name for folder in folders for name in machine.disk.names(folder)]


@pytest.mark.parametrize("how", ["close", "kill", "power"])
def test_openings_that_write_nothing_leave_no_segments(tmp_path, how):
    machine = Machine(tmp_path)
    machine.commit(put("name", b"data"))
    for _ in range(5):
        if how == "kill":
            machine.kill()
        elif how == "power":
            machine.cut_power()
        else:
            machine.store._close()
            machine.start()
    assert len(segments(machine)) == 2, "with the name in it, and being written"
    machine.commit(put("other", b"data"))
    machine.cut_power()
    assert machine.data("name") == machine.data("other") == b"data"


def test_a_segment_that_is_sealed_while_another_process_recovers_is_passed_over(
    tmp_path, monkeypatch
):
    machine = Machine(tmp_path)
    machine.commit(put("name", b"data"))
    log = machine.store._log
    monkeypatch.setattr(recovery, "leftover_segments", lambda *_: [99])
    recovery.recover(machine.disk, log.appender._layout, log._index, log._recent)
    assert machine.data("name") == b"data"


def touched_and_damaged(machine: Machine, kind: Kind, *, rebuilt: bool) -> int:
    """A blob whose revision was damaged, found so by an opening or a reindex; its stamp."""
    machine.commit(put("name", b"data", kind=kind, stamp=5))
    checksum = checksum_of(b"data")
    machine.commit(Write(Op.TOUCH, "name", stamp=9, checksum=checksum, metadata=META))
    end = machine.store._log.appender.active.end
    machine.commit(put("later", b"later"))
    path = machine.store._log.appender.active.path
    machine.stop()
    machine.disk.kill()
    fd = machine.disk.open(path, write=True)
    machine.disk.write(fd, [b"?"], end - 10)
    machine.disk.close(fd)
    if rebuilt:
        reindex(machine.disk.root + "/volume", disk=machine.disk)
    machine.start()
    with pytest.raises(Corrupt):
        machine.data("name")
    return 9


META = b"\x01\x01\x00a1"


@pytest.mark.parametrize("rebuilt", [False, True], ids=["opened", "reindexed"])
@pytest.mark.parametrize("kind", [Kind.BLOB, Kind.MANIFEST])
@pytest.mark.parametrize("older", [0, 4])
def test_a_damaged_revision_is_replaced_by_its_content(tmp_path, kind, older, rebuilt):
    machine = Machine(tmp_path)
    stamp = touched_and_damaged(machine, kind, rebuilt=rebuilt) - older
    write = put("name", b"data", kind=kind, stamp=stamp)
    machine.commit(write)
    assert write.answer == ("created", stamp)
    assert machine.data("name") == b"data"
    assert machine.store._live("name").kind == kind


def test_a_damaged_revision_is_replaced_by_a_plain_put_and_a_tombstone_of_its_stamp(tmp_path):
    machine = Machine(tmp_path)
    stamp = touched_and_damaged(machine, Kind.BLOB, rebuilt=False)
    stale = put("name", b"other", stamp=stamp - 1)
    machine.commit(stale)
    assert stale.answer == ("superseded", stamp)
    machine.commit(put("name", b"data"))
    assert machine.data("name") == b"data"
    machine = Machine(tmp_path / "another")
    stamp = touched_and_damaged(machine, Kind.BLOB, rebuilt=False)
    delete = Write(Op.DELETE, "name", stamp=stamp)
    machine.commit(delete)
    assert delete.answer == ("created", stamp)
    assert machine.data("name") is None

"""Power cuts at every moment: what was answered stands, and nothing is half there.

A workload runs on the simulated disk until the power goes at some operation, in
the middle of a commit, a merge, a sealing, a recovery or a reindex. Then the disk
forgets what was not flushed, the volume is opened again and compared with what the
workload was told. Every sabotage at the end must be noticed by the same trial.
"""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from dolmen.errors import DolmenError, NotFound
from dolmen.names import checksum_of
from dolmen.record import Kind, block_sums
from dolmen.stamps import Clock
from dolmen.stores.volume import (
    appender,
    carry,
    compact,
    index,
    merge,
    move,
    recovery,
    sealed,
    segment,
    slices,
    source,
)
from dolmen.stores.volume.layout import Layout
from dolmen.stores.volume.opening import Membership
from dolmen.stores.volume.place import Place
from dolmen.stores.volume.recent import Reach
from dolmen.stores.volume.reindex import reindex
from dolmen.stores.volume.scan import Scanner
from dolmen.stores.volume.volume import VolumeStore
from dolmen.stores.volume.write import Op, Write
from dolmen.testing.compacting import compactor_of
from dolmen.testing.crash import PowerCut, SimulatedDisk, commit

TRIALS = int(os.environ.get("DOLMEN_CRASH_STATES", "500"))
NAMES = [f"name{number}" for number in range(12)]
ABSENT = ("absent",)


class Volume:
    """A volume on a simulated disk, driven step by step on this thread."""

    def __init__(self, disk: SimulatedDisk) -> None:
        self.disk = disk
        self.store: VolumeStore | None = None
        self.compaction: Iterator | None = None

    def open(self) -> None:
        wall = iter(range(1_700_000_000_000, 1_800_000_000_000))
        self.store = VolumeStore(
            self.disk.root + "/volume",
            disk=self.disk,
            clock=Clock(lambda: next(wall)),
            now=lambda: 1_000_000.0,
            segment_size=20_000,
        )
        self.store._reader._failed = lambda name, entry: None
        self.compactor = compactor_of(self.store, segment_size=20_000)

    def compact(self, steps: int) -> None:
        """Take some steps of a compaction, which begins anew when it has come to its end."""
        for _ in range(steps):
            if self.compaction is None:
                self.compaction = self.compactor.steps()
            try:
                next(self.compaction)
            except StopIteration:
                self.compaction = None
                return

    def close(self) -> None:
        if self.compaction is not None:
            self.compaction.close()
            self.compaction = None
        self.store._close()
        self.store = None

    def drop(self) -> None:
        """Let go of LMDB's files as a dead process does."""
        if self.compaction is not None:
            with suppress(PowerCut):
                self.compaction.close()
            self.compaction = None
        if self.store is not None:
            self.store._executor.shutdown()
            self.store._files.close()
            for env in (self.store._index.env, self.store._recent.env):
                env.close()
            self.store = None

    def state(self, name: str) -> tuple:
        assert self.store is not None
        try:
            entry = self.store._live(name, tombstones=True)
        except NotFound:
            return ABSENT
        if entry.kind == Kind.TOMBSTONE:
            return ("deleted", entry.stamp)
        reading = self.store._reader.read(name, entry, None)
        try:
            reading.send(None)
        except StopIteration as done:
            payload = done.value
        data = payload.whole
        if data is None:
            data = b"".join(bytes(piece) for piece in _run(payload))
        return ("blob", entry.stamp, entry.metadata, bytes(data))


def _run(payload):
    pieces = payload.__aiter__()
    while True:
        try:
            pieces.__anext__().send(None)
        except StopIteration as piece:
            yield piece.value
        except StopAsyncIteration:
            return


def put_of(name: str, data: bytes, *, stamp: int | None) -> Write:
    return Write(
        Op.PUT,
        name,
        stamp=stamp,
        kind=Kind.BLOB,
        checksum=checksum_of(data),
        data=data,
        sums=block_sums(data),
        length=len(data),
    )


class Trial:
    """One workload with its power cuts, and the log of what it was told."""

    def __init__(self, folder: str, seed: int) -> None:
        self.rng = random.Random(seed)
        self.folder = folder
        self.generation = 0
        self.volume = Volume(SimulatedDisk(self._root(), rng=self.rng))
        self.known: dict[str, tuple] = dict.fromkeys(NAMES, ABSENT)
        self.maybe: dict[str, list[tuple]] = {}
        self.data: dict[Write, bytes] = {}
        self.streaming: list[tuple[Place, bytes, str]] = []
        """Blobs on their way in, while other things happen."""

    def _root(self) -> str:
        self.generation += 1
        root = f"{self.folder}/{self.generation}"
        os.makedirs(root)
        return root

    def run(self) -> None:
        for _ in range(4):
            self.volume.disk.cut_after(self.rng.randrange(1, 200))
            try:
                self.volume.open()
                self.check()
                while True:
                    self.step()
            except PowerCut:
                pass
            self.volume.drop()
            self.streaming.clear()
            if self.rng.random() < 0.4:
                self.volume.disk.kill()
                continue
            self.volume = Volume(self.volume.disk.power_cut(self._root()))
            shutil.rmtree(f"{self.folder}/{self.generation - 1}")
        self.volume.open()
        self.check()
        self.reindex()
        self.volume.compact(100_000)
        self.check()
        self.reindex()
        self.volume.close()

    def reindex(self) -> None:
        """From the segments alone: the index is gone."""
        self.volume.store._merge.merge()
        self.check()
        found = self.volume.store._index
        held, usage = found.digests(), found.usage()
        self.volume.close()
        path = self.volume.disk.root + "/volume"
        shutil.rmtree(path + "/index")
        reindex(path, disk=self.volume.disk)
        self.volume.open()
        self.check()
        found = self.volume.store._index
        assert found.digests() == held, "reindex gives another index"
        assert found.usage() == usage, "reindex counts other bytes"

    def step(self) -> None:
        store = self.volume.store
        choice = self.rng.random()
        if choice < 0.12:
            store._merge.merge()
        elif choice < 0.15:
            for place, _, _ in self.streaming:
                place.abandon()
            self.streaming.clear()
            self.volume.close()
            self.volume.open()
        elif choice < 0.4:
            self.volume.compact(self.rng.randint(1, 6))
        else:
            self.commit()

    def commit(self) -> None:
        writes = [self.write(name) for name in self.rng.sample(NAMES, self.rng.randint(1, 4))]
        for write in writes:
            self.maybe[write.name] = [self.outcome(write)]
        commit(self.volume.store._log, *writes)
        for write in writes:
            self.maybe.pop(write.name)
            if write.error is None and write.answer.outcome != "superseded":
                self.known[write.name] = self.told(write)
            if write.place is not None:
                write.place.abandon()

    def write(self, name: str) -> Write:
        before = self.known[name]
        choice = self.rng.random()
        if choice < 0.12:
            return Write(Op.DELETE, name, stamp=None)
        if choice < 0.22 and before[0] == "blob":
            return Write(Op.REMOVE, name, stamp=before[1])
        if choice < 0.34 and before[0] == "blob":
            return Write(
                Op.TOUCH,
                name,
                stamp=before[1] + 5,
                checksum=checksum_of(before[3]),
                metadata=b"\x01\x01\x00a" + self.rng.randbytes(1),
            )
        data = self.rng.randbytes(self.rng.choice((0, 1, 100, 1000, 5000, 70_000)))
        if before[0] == "blob" and self.rng.random() < 0.3:
            data = before[3]
        stamp = before[1] + 1 if before[0] == "blob" else None
        if self.rng.random() < 0.3:
            place = self.volume.store._log.place(
                len(name), len(data), alone=self.rng.random() < 0.3
            )
            for at in range(0, len(data), 30_000):
                place.take(data[at : at + 30_000])
            self.streaming.append((place, data, name))
        ready = [item for item in self.streaming if len(item[2]) == len(name)]
        if ready and self.rng.random() < 0.5:
            place, data, sized = self.rng.choice(ready)
            self.streaming.remove((place, data, sized))
            if self.rng.random() < 0.2:  # the client went away
                place.abandon()
                return Write(Op.DELETE, name, stamp=None)
            write = Write(
                Op.PUT,
                name,
                stamp=stamp,
                kind=Kind.BLOB,
                checksum=place.checksum,
                length=len(data),
                place=place,
            )
        else:
            write = put_of(name, data, stamp=stamp)
        self.data[write] = data
        return write

    def told(self, write: Write) -> tuple:
        stamp = write.answer.stamp
        if write.op is Op.DELETE:
            return ("deleted", stamp)
        if write.op is Op.REMOVE:
            return ABSENT
        if write.op is Op.TOUCH:
            return ("blob", stamp, write.metadata, self.known[write.name][3])
        return ("blob", stamp, write.metadata, self.data[write])

    def outcome(self, write: Write) -> Callable[[], tuple]:
        return lambda: self.told(write)

    def check(self) -> None:
        for name in NAMES:
            try:
                state = self.volume.state(name)
            except DolmenError as error:
                raise AssertionError(f"{name} can't be read: {error}") from error
            allowed = [self.known[name], *(later() for later in self.maybe.get(name, []))]
            # The stamp of a write that was never answered is its own affair.
            assert _without_stamp(state) in map(_without_stamp, allowed), (
                f"{name} is {str(state)[:80]}, told was {str(self.known[name])[:80]}"
            )
            if name not in self.maybe:
                assert state == self.known[name]
            self.known[name] = state
        self.maybe.clear()


def _without_stamp(state: tuple) -> tuple:
    return state[:1] + state[2:]


def trial(folder: str, seed: int) -> None:
    run = Trial(folder, seed)
    try:
        run.run()
    finally:
        run.volume.drop()


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch):
    monkeypatch.setattr(merge, "SLICE", 3)
    monkeypatch.setattr(compact, "THRESHOLD", 0.9)
    monkeypatch.setattr(compact, "_LOOK_AGAIN", 0.0)
    monkeypatch.setattr(source, "_HEADS", 3)
    monkeypatch.setattr(carry, "_BATCH", 4_000)
    monkeypatch.setattr(carry, "_LARGE", 60_000)


def test_a_power_cut_at_any_moment_keeps_what_was_answered(tmp_path):
    for seed in range(TRIALS // 4):  # four openings after a crash in each trial
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            trial(str(folder), seed)
        except (AssertionError, DolmenError, OSError) as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        shutil.rmtree(folder)


def without_flush(monkeypatch):
    real = appender.Appender.flush

    def flush(self, segments):
        real(self, [home for home in segments if home.path.endswith(".part")])

    def write(self, fd, buffers, offset, *, through=False):
        return real_write(self, fd, buffers, offset)

    real_write = SimulatedDisk.write
    monkeypatch.setattr(appender.Appender, "flush", flush)
    monkeypatch.setattr(SimulatedDisk, "write", write)


def without_writing_through(monkeypatch):
    def write(self, fd, buffers, offset, *, through=False):
        return real(self, fd, buffers, offset)

    real = SimulatedDisk.write
    monkeypatch.setattr(SimulatedDisk, "write", write)


def answer_before_flush(monkeypatch):
    """The batch is shown and answered, then flushed with the next one."""
    real = appender.Appender.flush
    late = []

    def flush(self, segments):
        for home in segments:
            if home.path.endswith(".part") or (late and late[-1] is home):
                real(self, [home])
            late.append(home)

    def write(self, fd, buffers, offset, *, through=False):
        if through:
            self.flush(fd)
        return real_write(self, fd, buffers, offset)

    real_write = SimulatedDisk.write
    monkeypatch.setattr(appender.Appender, "flush", flush)
    monkeypatch.setattr(SimulatedDisk, "write", write)


def without_flushing_the_index(monkeypatch):
    monkeypatch.setattr(index.Index, "settle", lambda self: None)


def watermarks_ahead_of_their_entries(monkeypatch):
    def early(self):
        reached = self._recent.segments()
        with self._index.slice() as change:
            for number, reach in reached.items():
                change.mark(number, reach.settled)
        real(self)

    real = merge.Merge._pass
    monkeypatch.setattr(merge.Merge, "_pass", early)


def watermarks_past_unfinished_extents(monkeypatch):
    def reach(self):
        return Reach(self.end, self.end, self.retired and not self._extents)

    monkeypatch.setattr(segment.Segment, "reach", reach)


def segments_whose_names_are_not_flushed(monkeypatch):
    def publish(disk, layout, new):
        disk.flush(new.fd)
        disk.rename(new.path, layout.active_segment(new.number))
        new.path = layout.active_segment(new.number)

    monkeypatch.setattr(appender, "publish", publish)


def recovery_that_believes_the_page_cache(monkeypatch):
    def recover(disk, fd, *rest):
        flush, disk.flush = disk.flush, lambda _fd: None
        try:
            return real(disk, fd, *rest)
        finally:
            disk.flush = flush

    real = recovery._recover_segment
    monkeypatch.setattr(recovery, "_recover_segment", recover)


def recovery_that_does_not_check_data(monkeypatch):
    class Trusting(Scanner):
        def _sound(self, head, offset):
            return True

    monkeypatch.setattr(recovery, "Scanner", Trusting)


def recovery_that_leaves_torn_records(monkeypatch):
    real = recovery.sort_out

    def leave(disk, fd, number, owner, found, size, **options):
        class Deaf:
            def __getattr__(self, name):
                return getattr(disk, name)

            def truncate(self, fd, size):
                pass

            def write(self, fd, buffers, offset, **_):
                pass

        return real(Deaf(), fd, number, owner, found, size, **options)

    monkeypatch.setattr(recovery, "sort_out", leave)


def removals_forgotten_too_soon(monkeypatch):
    real = slices.Slice.mark

    def mark(self, number, watermark):
        self.forget_removals(before=1 << 63)
        real(self, number, watermark)

    monkeypatch.setattr(slices.Slice, "mark", mark)


def index_whose_name_is_not_flushed(monkeypatch):
    real = SimulatedDisk.flush_directory

    def flush_directory(self, path):
        if not path.endswith("/index"):
            real(self, path)

    monkeypatch.setattr(SimulatedDisk, "flush_directory", flush_directory)


def recent_believed_after_a_power_cut(monkeypatch):
    monkeypatch.setattr(SimulatedDisk, "remove_folder", lambda self, path: None)


def compaction_that_does_not_flush(monkeypatch):
    """What it carried may not be on disk when the old file is gone."""

    def commit(self, moves):
        write = SimulatedDisk.write
        with monkeypatch.context() as patch:
            patch.setattr(
                SimulatedDisk,
                "write",
                lambda disk, fd, parts, offset, *, through=False: write(disk, fd, parts, offset),
            )
            patch.setattr(segment.Segment, "flush", lambda home: None)
            real(self, moves)

    real = carry.Carrier._commit
    monkeypatch.setattr(carry.Carrier, "_commit", commit)


def compaction_that_believes_its_first_look(monkeypatch):
    """It writes what stood when it looked, whatever stands when the name is claimed."""

    def judge(self, clock, now):
        self.standing = self.seen or self.standing
        return real(self, clock, now)

    def needed(self, source, floor):
        for moves, read in look(self, source, floor):
            standing = self._carrier.standing([each.key for each, _ in moves])
            for each, _ in moves:
                each.seen = standing.get(each.key)
            yield moves, read

    class Believing(move.Move):
        seen = None

    real, look = move.Move.judge, compact.Compactor._needed
    Believing.judge = judge
    monkeypatch.setattr(compact, "Move", Believing)
    monkeypatch.setattr(compact.Compactor, "_needed", needed)


def compaction_that_drops(kind):
    def sabotage(monkeypatch):
        def judge(self, clock, now):
            return move._LEAVE if self.kind == kind else real(self, clock, now)

        real = move.Move.judge
        monkeypatch.setattr(move.Move, "judge", judge)
        # Else what stands in a file keeps it from going.
        monkeypatch.setattr(index.Index, "usage", lambda self: {})

    sabotage.__name__ = f"compaction_that_drops_{kind.name.lower()}s"
    return sabotage


def compaction_that_drops_every_old_removal(monkeypatch):
    monkeypatch.setattr(sealed.Sealed, "floor_without", lambda self, number: 1 << 63)


@pytest.mark.parametrize(
    "sabotage",
    [
        without_flush,
        without_writing_through,
        answer_before_flush,
        without_flushing_the_index,
        watermarks_ahead_of_their_entries,
        watermarks_past_unfinished_extents,
        segments_whose_names_are_not_flushed,
        recovery_that_believes_the_page_cache,
        recovery_that_does_not_check_data,
        recovery_that_leaves_torn_records,
        removals_forgotten_too_soon,
        index_whose_name_is_not_flushed,
        recent_believed_after_a_power_cut,
        compaction_that_does_not_flush,
        compaction_that_believes_its_first_look,
        compaction_that_drops(Kind.TOMBSTONE),
        compaction_that_drops(Kind.TOUCH),
        compaction_that_drops(Kind.REMOVAL),
        compaction_that_drops_every_old_removal,
    ],
    ids=lambda sabotage: sabotage.__name__,
)
def test_the_trial_notices(sabotage, monkeypatch, tmp_path):
    sabotage(monkeypatch)
    for seed in range(400):
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            trial(str(folder), seed)
        except (AssertionError, DolmenError, OSError):
            return
        shutil.rmtree(folder)
    pytest.fail("400 trials passed with this defect in place")


def removed_and_compacted(folder: str, seed: int) -> None:
    """A blob and its removal go, each with its segment, then the power, then the index."""
    os.mkdir(folder + "/before")
    volume = Volume(SimulatedDisk(folder + "/before", rng=random.Random(seed)))
    volume.open()
    for name in NAMES[:2]:  # each fills a segment; the removal is in the next one
        commit(volume.store._log, put_of(name, volume.disk.rng.randbytes(30_000), stamp=5))
        commit(volume.store._log, Write(Op.REMOVE, name, stamp=5))
    volume.store._merge.merge()
    assert [size for _, size in volume.compactor.candidates()] > [30_000, 30_000]
    volume.compact(100_000)
    assert volume.compactor.candidates() == []
    volume.drop()
    after = Volume(volume.disk.power_cut(folder + "/after"))
    path = after.disk.root + "/volume"
    shutil.rmtree(path + "/index")
    reindex(path, disk=after.disk)
    try:
        after.open()
        assert [after.state(name) for name in NAMES[:2]] == [ABSENT, ABSENT]
    finally:
        after.drop()


def forty_removed_and_compacted(folder):
    for seed in range(40):
        each = folder / str(seed)
        each.mkdir(parents=True)
        removed_and_compacted(str(each), seed)
        shutil.rmtree(each)


def test_a_removal_is_kept_until_what_it_removed_is_gone_for_good(tmp_path):
    forty_removed_and_compacted(tmp_path)


def test_that_notices_when_what_is_gone_is_not_flushed(tmp_path, monkeypatch):
    real = SimulatedDisk.flush_directory
    monkeypatch.setattr(
        SimulatedDisk,
        "flush_directory",
        lambda disk, path: None if "/sealed/" in path else real(disk, path),
    )
    with pytest.raises(AssertionError):
        forty_removed_and_compacted(tmp_path)


def dies_when_a_segment_is_unlinked(volume: Volume) -> None:
    """The compactor's process, before it has flushed the folder."""
    disk = volume.disk

    def unlink(path: str) -> None:
        SimulatedDisk.unlink(disk, path)
        if "/sealed/" in path:
            raise PowerCut

    disk.unlink = unlink
    with pytest.raises(PowerCut):
        list(compactor_of(volume.store, segment_size=20_000).steps())
    del disk.unlink


def test_what_a_killed_compactor_unlinked_is_gone_for_good_before_its_removals_go(tmp_path):
    for seed in range(40):
        for folder in ("before", "after"):
            (tmp_path / str(seed) / folder).mkdir(parents=True)
        root = f"{tmp_path}/{seed}"
        volume = Volume(SimulatedDisk(root + "/before", rng=random.Random(seed)))
        volume.open()
        for name in NAMES[:2]:
            commit(volume.store._log, put_of(name, volume.disk.rng.randbytes(30_000), stamp=5))
            commit(volume.store._log, Write(Op.REMOVE, name, stamp=5))
        volume.store._merge.merge()
        dies_when_a_segment_is_unlinked(volume)
        dies_when_a_segment_is_unlinked(volume)
        volume.drop()
        after = Volume(volume.disk.power_cut(root + "/after"))
        reindex(after.disk.root + "/volume", disk=after.disk)
        after.open()
        assert [after.state(name) for name in NAMES[:2]] == [ABSENT, ABSENT], f"seed {seed}"
        after.drop()


def compacted_alone(disk: SimulatedDisk) -> None:
    """Compact what no server has open, and die."""
    layout = Layout(disk.root + "/volume")
    membership = Membership(disk, layout)
    try:
        membership.join()
        index, recent = membership.index, membership.recent
        merging = merge.Merge(disk, layout, index, recent)
        list(
            compact.Compactor(disk, layout, index, recent, merging, membership.recover_dead).steps()
        )
    finally:
        membership._open.close()
        disk.kill()


def test_what_was_compacted_does_not_come_back_where_its_sealing_was_killed(tmp_path):
    """Between giving segments their new names and flushing that the old ones are gone."""
    for seed in range(40):
        for folder in ("before", "after"):
            (tmp_path / str(seed) / folder).mkdir(parents=True)
        root = f"{tmp_path}/{seed}"
        volume = Volume(SimulatedDisk(root + "/before", rng=random.Random(seed)))
        volume.open()
        disk = volume.disk
        commit(volume.store._log, put_of(NAMES[0], disk.rng.randbytes(30_000), stamp=5))
        commit(volume.store._log, Write(Op.REMOVE, NAMES[0], stamp=5))
        volume.drop()
        disk.kill()

        def flush_directory(path: str, disk: SimulatedDisk = disk) -> None:
            if "/sealed/" in path:
                raise PowerCut
            SimulatedDisk.flush_directory(disk, path)

        disk.flush_directory = flush_directory
        with pytest.raises(PowerCut):
            compacted_alone(disk)
        del disk.flush_directory
        compacted_alone(disk)
        after = Volume(disk.power_cut(root + "/after"))
        after.open()
        assert after.state(NAMES[0]) == ABSENT, f"seed {seed}"
        after.drop()

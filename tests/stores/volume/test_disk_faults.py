"""A disk that refuses: what is full, read-only, removed or failing is said, and nothing is lost."""

import asyncio
import errno
import os
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dolmen.errors import (
    BadVolume,
    DolmenError,
    Full,
    NotFound,
    OutcomeUnknown,
    ReadOnly,
    Unavailable,
)
from dolmen.payload import Stream
from dolmen.store import IDENTITY, Outcome, Write
from dolmen.stores.volume import Volume
from dolmen.stores.volume.compaction import Compactor
from dolmen.stores.volume.disk import Buffer, Disk
from stores.volume.conftest import Opener, data_of, files, put, tree


class FailingDisk(Disk):
    """Fails the n-th call of a kind, with an error."""

    def __init__(self, call: str, at: int, error: int) -> None:
        self.calls, self.armed = 0, False
        real = getattr(super(), call)

        def failing(*arguments: Any, **options: Any) -> Any:
            if self.armed:
                self.calls += 1
                if self.calls == at:
                    raise OSError(error, os.strerror(error))
            return real(*arguments, **options)

        setattr(self, call, failing)


async def streamed(store: Volume, name: str, size: int) -> None:
    async def pieces():
        for at in range(0, size, 1 << 20):
            yield bytes(min(1 << 20, size - at))

    await store.write(Write(name, Stream(size, pieces)))


async def test_a_failed_flush_ends_writing_and_is_not_tried_again(
    tmp_path: Path, opened: Opener
) -> None:
    disk = FailingDisk("write", 1, errno.EIO)
    store = await opened(disk=disk)
    await put(store, "before")
    disk.armed = True
    results = await asyncio.gather(*(put(store, f"a{n}") for n in range(5)), return_exceptions=True)
    assert {type(result) for result in results} == {OutcomeUnknown}
    with pytest.raises(ReadOnly):
        await put(store, "after")
    assert disk.calls == 1
    condition = await store.condition()
    assert not condition.writable
    assert "Input/output" in condition.reasons[0]
    assert (await store.stat("before")).size == 4
    await store.aclose()
    store = await opened()
    await put(store, "after")


async def test_a_write_the_disk_has_no_room_for_is_full_and_cannot_come_back(
    opened: Opener,
) -> None:
    class Short(Disk):
        full = False

        def write(
            self, fd: int, buffers: Sequence[Buffer], offset: int, *, sync: bool = False
        ) -> None:
            if self.full and sum(map(len, buffers)) > 1_000:
                os.pwrite(fd, bytes(buffers[0]), offset)
                raise OSError(errno.ENOSPC, "no space")
            super().write(fd, buffers, offset, sync=sync)

    disk = Short()
    store = await opened(disk=disk)
    await put(store, "gone", b"1")
    disk.full = True
    # In one batch: the put is refused, the delete and the removal of room are not.
    results = await asyncio.gather(
        put(store, "large", bytes(5_000)),
        store.write(Write.tombstone("gone")),
        return_exceptions=True,
    )
    assert isinstance(results[0], Full)
    assert results[1].outcome is Outcome.CREATED  # type: ignore[union-attr]
    disk.full = False
    await put(store, "next", b"2")
    await store.aclose()
    store = await opened()
    with pytest.raises(NotFound):
        await store.stat("large")
    assert (await store.stat("next")).size == 1


@pytest.mark.parametrize("call", ["create", "write", "flush", "rename", "flush_directory"])
async def test_a_large_upload_that_fails_leaves_nothing_behind(opened: Opener, call: str) -> None:
    for at in range(1, 4):
        for error in (errno.ENOSPC, errno.EIO):
            disk = FailingDisk(call, at, error)
            store = await opened(disk=disk)
            disk.armed = True
            try:
                await streamed(store, "big", 6 << 20)
            except DolmenError:
                with pytest.raises(NotFound):
                    await store.stat("big")
            disk.armed = False
            await store.aclose()
            store = await opened()
            there = True
            try:
                assert (await store.stat("big")).size == 6 << 20
                await store.write(Write.tombstone("big"))
            except NotFound:
                there = False
            await store.aclose()
            left = [n for n, suffix in store.folder.numbers() if suffix != ".seg"]
            assert not left, there


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
async def test_a_write_into_a_file_that_is_no_longer_there_is_an_error(
    tmp_path: Path, opened: Opener, how: str
) -> None:
    store = await opened()
    await put(store, "a")
    folder = tmp_path / "v"
    if how == "deleted":
        shutil.rmtree(folder / "segments")
    else:
        shutil.copytree(folder, tmp_path / "copy", symlinks=True)
        folder.rename(tmp_path / "aside")
        if how == "replaced":
            (tmp_path / "copy").rename(folder)
    condition = await store.condition()
    assert not condition.writable
    with pytest.raises(OutcomeUnknown):
        await put(store, "b")
    with pytest.raises(ReadOnly):
        await put(store, "c")
    assert not (await store.condition()).writable
    (tmp_path / "v").mkdir(exist_ok=True)


@pytest.mark.parametrize(
    ("call", "error"), [("flush_directory", errno.ENOSPC), ("create", errno.EMFILE)]
)
async def test_a_segment_that_could_not_be_made_leaves_the_old_one_the_last(
    opened: Opener, call: str, error: int
) -> None:
    disk = FailingDisk(call, 1, error)
    store = await opened(disk=disk, segment_size=10_000)
    disk.armed = True
    await put(store, "a", bytes(12_000))
    assert store.log is not None
    assert files(store) == [store.log.active.number]
    await put(store, "b")
    assert files(store) == [1, store.log.active.number]


async def test_the_reserve_is_made_anew_by_one_of_those_who_ask_how_it_is(opened: Opener) -> None:
    store = await opened()
    for _ in range(50):
        store.folder.release_reserve()
        asked = await asyncio.gather(*(store.condition() for _ in range(4)))
        assert all(condition.writable for condition in asked)
    assert os.path.exists(store.folder.reserve)


async def test_a_write_that_cannot_be_framed_fails_alone(opened: Opener) -> None:
    times = [-5.0, 5.0]  # a clock that stands before 1970
    store = await opened(now=lambda: times.pop(0))
    with pytest.raises(struct.error):
        await asyncio.wait_for(put(store, "a"), 10)
    await put(store, "b")
    assert (await store.stat("b")).arrived == 5


async def test_closing_ends_though_writers_go_on(opened: Opener) -> None:
    store = await opened()

    async def write_on(writer: int) -> None:
        for n in range(20_000):
            await put(store, f"{writer}-{n}")

    writers = [asyncio.create_task(write_on(n)) for n in range(2)]
    await put(store, "first")
    await store.aclose()
    for writer in writers:
        with pytest.raises(Unavailable):
            await writer


async def test_one_process_owns_a_volume_and_the_lock_goes_with_it(
    tmp_path: Path, opened: Opener
) -> None:
    store = await opened()
    store.name_owner("http://127.0.0.1:3001")
    with pytest.raises(BadVolume, match=f"process {os.getpid()}, http://127.0.0.1:3001"):
        await opened()
    with pytest.raises(BadVolume, match="open in another process"):
        await opened(read_only=True)
    identity = (await store.notes())[IDENTITY]
    await store.aclose()
    first, second = await opened(read_only=True), await opened(read_only=True)
    assert (await first.notes())[IDENTITY] == (await second.notes())[IDENTITY] == identity


async def test_a_foreign_or_newer_folder_is_refused_untouched(
    tmp_path: Path, opened: Opener
) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("x")
    with pytest.raises(BadVolume, match="not empty"):
        await opened(foreign)
    assert os.listdir(foreign) == ["thesis.txt"]
    await (await opened()).aclose()
    marker = tmp_path / "v" / "dolmen-volume"
    text = marker.read_text()
    for wrong in ("dolmen volume 9\n", "something else", text.replace("\n", "\n0", 1)):
        marker.write_text(wrong)
        with pytest.raises(BadVolume):
            await opened()


async def test_reading_only_writes_nothing_and_sees_the_tail(
    tmp_path: Path, opened: Opener
) -> None:
    store = await opened()
    for name in ("indexed", "deleted"):
        await put(store, name)
    await asyncio.to_thread(store.catalog.index.flush)
    await store.write(Write.tombstone("deleted"))
    await put(store, "tail", b"tail")
    copy = tmp_path / "copy"  # as a kill leaves it: the index knows nothing of the tail
    shutil.copytree(tmp_path / "v", copy, symlinks=True)
    before = tree(copy)
    reader = await opened(copy, read_only=True)
    names = [info.name async for info in reader.list()]
    assert sorted(names) == ["indexed", "tail"]
    assert await data_of(reader, "tail") == b"tail"
    assert await reader.digests() == await store.digests()
    with pytest.raises(ReadOnly):
        await reader.write(Write.tombstone("tail"))
    with pytest.raises(ReadOnly):
        await reader.note("a", b"b")
    assert not (await reader.condition()).writable
    await reader.aclose()
    assert tree(copy) == before


# On file systems of their own


class Mounted:
    """A small ext4 in a file."""

    def __init__(self, path: Path, mib: int) -> None:
        self.image, self.path = path / "image", path / "mnt"
        self.path.mkdir()
        with self.image.open("wb") as file:
            file.truncate(mib << 20)
        self._run("mkfs.ext4", "-q", "-F", "-m", "0", str(self.image))
        self._run("mount", "-o", "loop", str(self.image), str(self.path))

    def _run(self, *command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)

    def fill(self) -> None:
        """Leave not a single block, as another program may."""
        with (self.path / "ballast").open("wb", buffering=0) as file:
            size = 1 << 20
            while size >= 512:
                try:
                    file.write(bytes(size))
                except OSError:
                    size //= 2

    def remount(self, mode: str) -> None:
        self._run("mount", "-o", f"remount,{mode}", str(self.path))


@pytest.fixture
def mounted(tmp_path: Path):
    if os.geteuid() or shutil.which("mkfs.ext4") is None:
        pytest.skip("a loop mount takes root and mkfs.ext4")
    try:
        there = Mounted(tmp_path, 160)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no loop mounts here: {error.stderr!r}")
    yield there
    subprocess.run(["umount", "-l", str(there.path)], check=True)


async def test_on_a_full_disk_deletes_go_on_and_opening_works(
    mounted: Mounted, opened: Opener
) -> None:
    path = mounted.path / "v"
    store = await opened(path)
    for n in range(20):
        await put(store, f"n{n}", bytes([n]) * 100_000)
    mounted.fill()
    with pytest.raises(Full):
        await put(store, "refused", bytes(100_000))
    assert not (await store.condition()).writable
    for n in range(10):
        await store.write(Write.tombstone(f"n{n}"))
    await store.aclose()
    reader = await opened(path, read_only=True)
    assert (await reader.stat("n15")).size == 100_000
    await reader.aclose()
    store = await opened(path)
    await store.write(Write.tombstone("n10"))
    assert len([info async for info in store.list()]) == 9
    (mounted.path / "ballast").unlink()
    await put(store, "again", bytes(100_000))
    await Compactor(store).compact()


async def test_a_file_system_gone_read_only_is_noticed_and_can_be_read(
    mounted: Mounted, opened: Opener
) -> None:
    path = mounted.path / "v"
    store = await opened(path)
    await put(store, "a")
    await store.aclose()
    mounted.remount("ro")
    reader = await opened(path, read_only=True)
    assert (await reader.stat("a")).size == 4
    await reader.aclose()
    with pytest.raises(BadVolume):
        await opened(path)
    mounted.remount("rw")

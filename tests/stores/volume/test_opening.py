"""Opening: what is refused, with what words, and that nothing is left behind by it."""

import asyncio
import errno
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import lmdb
import pytest
from crc32c import crc32c

from dolmen.errors import BadVolume, DolmenError
from dolmen.payload import Bytes
from dolmen.stores.volume import open_volume
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.reindex import reindex


async def filled(path: Path, count: int = 3) -> dict[str, bytes]:
    """A volume with some blobs, closed."""
    contents = {f"name{number}": b"content %d" % number for number in range(count)}
    store = await open_volume(str(path))
    for name, data in contents.items():
        await store.put(name, Bytes(data))
    await store.aclose()
    return contents


async def held_by(path: Path) -> dict[str, bytes]:
    """What a volume holds."""
    store = await open_volume(str(path))
    try:
        names = [info.name async for info in store.list()]
        return {name: bytes((await store.get(name)).payload.whole or b"") for name in names}
    finally:
        await store.aclose()


async def test_a_folder_with_something_else_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(BadVolume, match=r"not empty \(it holds 'photo.jpg'\)"):
        await open_volume(str(tmp_path))
    assert os.listdir(tmp_path) == ["photo.jpg"]


async def test_a_folder_may_lie_in_one_that_can_not_be_opened(tmp_path):
    class Closed(Disk):
        def flush_directory(self, path: str) -> None:
            if path == str(tmp_path):
                raise PermissionError(errno.EACCES, "permission denied", path)
            super().flush_directory(path)

    (tmp_path / "v").mkdir()
    store = await open_volume(str(tmp_path / "v"), disk=Closed())
    await store.put("name", Bytes(b"data"))
    await store.aclose()
    assert await held_by(tmp_path / "v") == {"name": b"data"}


async def test_a_newer_format_is_refused(tmp_path):
    contents = await filled(tmp_path / "v")
    (tmp_path / "v/dolmen-volume").write_text("dolmen volume 2\n")
    before = sorted(os.walk(tmp_path / "v"))
    with pytest.raises(BadVolume, match="use the newer dolmen"):
        await open_volume(str(tmp_path / "v"))
    assert sorted(os.walk(tmp_path / "v")) == before
    (tmp_path / "v/dolmen-volume").write_text("dolmen volume 1\n")
    assert await held_by(tmp_path / "v") == contents


@pytest.mark.parametrize("mark", ["", "dolmen", "dolmen volume", "dolmen volume x", "photo album"])
async def test_a_mark_that_is_none_is_refused(tmp_path, mark):
    await filled(tmp_path / "v")
    (tmp_path / "v/dolmen-volume").write_text(mark)
    with pytest.raises(BadVolume, match="not the mark of a volume"):
        await open_volume(str(tmp_path / "v"))


async def test_a_volume_open_on_another_machine_is_refused_and_can_be_tried_again(
    tmp_path, descriptors
):
    contents = await filled(tmp_path / "v")
    holder = tmp_path / "v/holder"
    holder.write_text("elsewhere/0123\n")
    before = descriptors()
    for _ in range(3):
        with pytest.raises(BadVolume, match="open on another machine"):
            await open_volume(str(tmp_path / "v"))
        with pytest.raises(BadVolume, match="open on another machine"):
            reindex(str(tmp_path / "v"))
    assert descriptors() == before
    assert holder.read_text() == "elsewhere/0123\n"
    holder.unlink()
    assert await held_by(tmp_path / "v") == contents


@pytest.mark.parametrize(
    ("names", "boot"), [("kept", "before"), ("other", "kept")], ids=["restarted", "container"]
)
async def test_what_a_crashed_process_of_this_machine_held_is_taken_over(tmp_path, names, boot):
    contents = await filled(tmp_path / "v")
    holder = tmp_path / "v/holder"
    store = await open_volume(str(tmp_path / "v"))
    here = holder.read_text()
    await store.aclose()
    lines = here.split()
    assert len(lines) == 2
    left = [lines[0] if names == "kept" else "elsewhere/1", lines[1] if boot == "kept" else boot]
    holder.write_text("\n".join(left))
    store = await open_volume(str(tmp_path / "v"))
    assert holder.read_text() == here, "others of this machine would not know it"
    await store.aclose()
    assert await held_by(tmp_path / "v") == contents


async def test_a_lost_index_is_said_to_be_lost_and_reindex_brings_it_back(tmp_path, descriptors):
    contents = await filled(tmp_path / "v")
    for file in (tmp_path / "v/index").iterdir():
        file.unlink()
    (tmp_path / "v/index").rmdir()
    before = descriptors()
    for _ in range(3):
        with pytest.raises(BadVolume, match="dolmen reindex"):
            await open_volume(str(tmp_path / "v"))
    assert descriptors() == before
    reindex(str(tmp_path / "v"))
    assert await held_by(tmp_path / "v") == contents


async def test_a_second_opening_in_one_process_is_refused_and_the_first_goes_on(
    tmp_path, descriptors
):
    store = await open_volume(str(tmp_path / "v"))
    before = descriptors()
    for _ in range(3):
        with pytest.raises(BadVolume, match="already open in this process"):
            await open_volume(str(tmp_path / "v"))
        with pytest.raises(BadVolume, match="in use"):
            reindex(str(tmp_path / "v"))
    assert descriptors() == before
    await store.put("name", Bytes(b"data"))
    assert (await store.get("name")).payload.whole == b"data"
    await store.aclose()
    assert await held_by(tmp_path / "v") == {"name": b"data"}


async def test_the_last_to_leave_takes_the_name_of_the_machine_along(tmp_path):
    store = await open_volume(str(tmp_path / "v"))
    assert (tmp_path / "v/holder").read_text().startswith(socket.gethostname())
    await store.aclose()
    assert not (tmp_path / "v/holder").exists()


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES, errno.EMFILE, errno.ENOSPC])
async def test_an_opening_that_fails_anywhere_says_so_and_leaves_nothing_open(
    tmp_path, failing, descriptors, error
):
    contents = await filled(tmp_path / "v")
    before = descriptors()
    for number in range(1, 200):
        disk = failing()
        disk.arm(number, error)
        try:
            store = await open_volume(str(tmp_path / "v"), disk=disk)
        except DolmenError:
            assert descriptors() == before, f"call {number}"
            continue
        all_went_well = disk.left > 0
        disk.arm(0)
        await store.aclose()
        assert descriptors() == before, f"call {number}"
        if all_went_well:
            break
    else:
        pytest.fail("opening has no end")
    assert await held_by(tmp_path / "v") == contents


class Held(Disk):
    """A disk on which an opening that has begun waits until it may go on."""

    def __init__(self) -> None:
        self.begun, self.may_go_on = threading.Event(), threading.Event()

    def open_index(self, path: str, *, durable: bool) -> lmdb.Environment:
        self.begun.set()
        self.may_go_on.wait()
        return super().open_index(path, durable=durable)


def children() -> str:
    """The processes this one has started."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def through() -> None:
    """Wait until no thread opens a volume any more."""
    for thread in threading.enumerate():
        if thread.name.startswith("dolmen-open"):
            thread.join()


@pytest.mark.parametrize("opened", [False, True], ids=["half-way", "when it was just open"])
@pytest.mark.parametrize("apart", [False, True])
async def test_an_opening_that_is_cancelled_leaves_nothing_open(
    tmp_path, descriptors, opened, apart
):
    contents = await filled(tmp_path / "v")
    before, processes = descriptors(), children()
    disk = Held()
    opening = asyncio.ensure_future(open_volume(str(tmp_path / "v"), disk=disk, apart=apart))
    while not disk.begun.is_set():
        await asyncio.sleep(0)
    if opened:
        disk.may_go_on.set()
        through()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    disk.may_go_on.set()
    through()
    assert descriptors() == before
    assert children() == processes
    assert await held_by(tmp_path / "v") == contents


async def test_an_opening_whose_keeper_can_not_be_started_leaves_nothing_open(
    tmp_path, descriptors, monkeypatch
):
    contents = await filled(tmp_path / "v")
    before = descriptors()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(BadVolume, match="No such file"):
        await open_volume(str(tmp_path / "v"), apart=True)
    assert descriptors() == before
    monkeypatch.undo()
    assert await held_by(tmp_path / "v") == contents


async def test_a_segment_of_a_newer_version_is_refused_and_left_alone(tmp_path):
    contents = await filled(tmp_path / "v")
    (segment,) = (tmp_path / "v").rglob("*.seg")
    held = segment.read_bytes()
    header = held[:8] + (2).to_bytes(4, "little") + held[12:60]
    segment.write_bytes(header + crc32c(header).to_bytes(4, "little") + held[64:])
    newer = segment.read_bytes()
    with pytest.raises(BadVolume, match="use the newer dolmen"):
        reindex(str(tmp_path / "v"))
    active = tmp_path / "v/active" / segment.name
    segment.rename(active)
    segment.parent.rmdir()
    for file in (tmp_path / "v/index").iterdir():
        file.unlink()
    with pytest.raises(BadVolume, match="use the newer dolmen"):
        await open_volume(str(tmp_path / "v"))
    assert active.read_bytes() == newer
    active.write_bytes(held)
    reindex(str(tmp_path / "v"))
    assert await held_by(tmp_path / "v") == contents


OPEN = """
import asyncio, sys
from dolmen.payload import Bytes
from dolmen.stores.volume import open_volume
from dolmen.stores.volume.disk import Disk

async def main():
    sys.stdin.readline()
    store = await open_volume(sys.argv[1])
    await store.put(sys.argv[2], Bytes(b"data"))
    await store.aclose()

print("ready", flush=True)
asyncio.run(main())
"""


@pytest.mark.parametrize("attempt", range(5))
async def test_several_processes_make_a_new_volume_at_once(tmp_path, attempt):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, str(tmp_path / "v"), f"name{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in range(4)
    ]
    for process in processes:
        assert process.stdout.readline() == b"ready\n"
    for process in processes:
        process.stdin.write(b"go\n")
        process.stdin.flush()
    failed = [process.communicate()[1].decode() for process in processes]
    assert failed == [""] * 4
    assert (await held_by(tmp_path / "v")).keys() == {f"name{number}" for number in range(4)}

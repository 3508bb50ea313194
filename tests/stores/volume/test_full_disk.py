"""A disk that fills up: puts are refused cleanly, everything else goes on."""

import errno
import os
from collections.abc import AsyncIterator, Sequence

import pytest

from dolmen.errors import Full, NotFound
from dolmen.payload import Bytes, Payload, Stream
from dolmen.stores.volume import VolumeStore, carry, open_volume
from dolmen.stores.volume.disk import Buffer, Disk
from dolmen.testing.compacting import compactor_of

SEGMENT = 1 << 20


class Small(Disk):
    """A disk with so many bytes left; it does not count what LMDB writes.

    `told` is what it says to be free: more, where others fill the disk meanwhile.
    """

    def __init__(self, left: int) -> None:
        self.left, self.told = left, None

    def _take(self, size: int) -> None:
        if size > self.left:
            raise OSError(errno.ENOSPC, "no space left on device")
        self.left -= size

    def write(
        self, fd: int, buffers: Sequence[Buffer], offset: int, *, through: bool = False
    ) -> int:
        data = b"".join(buffers)
        grown = max(0, offset + len(data) - self.size(fd))
        if grown > self.left:
            super().write(fd, [data[: len(data) - grown + self.left]], offset)
        self._take(grown)
        return super().write(fd, [data], offset, through=through)

    def reserve(self, fd: int, offset: int, length: int) -> None:
        self._take(max(0, offset + length - self.size(fd)))
        super().reserve(fd, offset, length)

    def truncate(self, fd: int, size: int) -> None:
        self.left += self.size(fd) - size
        super().truncate(fd, size)

    def unlink(self, path: str) -> None:
        self.left += os.path.getsize(path)
        super().unlink(path)

    def space(self, path: str) -> tuple[int, int]:
        return (self.left if self.told is None else self.told), 1 << 40


def streamed(data: bytes) -> Payload:
    async def pieces() -> AsyncIterator[bytes]:
        yield data

    return Stream(len(data), pieces)


async def content(store: VolumeStore, name: str) -> bytes:
    return b"".join([bytes(piece) async for piece in (await store.get(name)).payload])


async def fill(store: VolumeStore, payload_of, size: int) -> dict[str, bytes]:
    """Puts until one is refused; what was answered."""
    held = {}
    for number in range(1000):
        data = os.urandom(size)
        try:
            await store.put(f"n{number}", payload_of(data))
        except Full:
            return held
        held[f"n{number}"] = data
    pytest.fail("the disk never filled up")


@pytest.mark.parametrize("says_so", [True, False], ids=["seen coming", "without warning"])
@pytest.mark.parametrize("payload_of", [Bytes, streamed], ids=["whole", "streamed"])
@pytest.mark.parametrize("size", [1_000, 100_000, 5_000_000])
async def test_puts_are_refused_and_the_rest_goes_on(tmp_path, size, payload_of, says_so):
    disk = Small(left=20 * size + 20_000 + SEGMENT * says_so)
    if not says_so:
        disk.told = 1 << 40
    store = await open_volume(str(tmp_path / "v"), disk=disk, segment_size=SEGMENT)
    held = await fill(store, payload_of, size)
    assert held
    with pytest.raises(NotFound):
        await store.stat(f"n{len(held)}")
    for name, data in held.items():
        assert await content(store, name) == data
    disk.left += 2_000  # the reserve is for this
    assert (await store.delete("n0")).outcome == "created"
    info = await store.stat("n1")
    await store.touch("n1", stamp=info.stamp + 1, checksum=info.checksum, meta=b"")
    assert {found.name async for found in store.list()} == held.keys() - {"n0"}
    disk.left += 40 * size + 4 * SEGMENT
    assert (await store.put("more", payload_of(b"x" * size))).outcome == "created"
    await store.aclose()
    store = await open_volume(str(tmp_path / "v"))
    assert {found.name async for found in store.list()} == held.keys() - {"n0"} | {"more"}
    for name in held.keys() - {"n0"}:
        assert await content(store, name) == held[name]
    with pytest.raises(NotFound):
        await store.stat(f"n{len(held)}")
    await store.aclose()


async def test_a_batch_without_room_before_an_upload_is_covered(tmp_path):
    # The write fails, and cutting the file off would take the upload's extent along.
    disk = Small(left=1 << 30)
    store = await open_volume(str(tmp_path / "v"), disk=disk, segment_size=64 << 20)
    await store.put("before", Bytes(b"b" * 1000))
    uploads = []
    real = disk.write

    def write(fd, buffers, offset, **_):
        disk.write = real
        # While the batch is about to be written, an upload takes room behind it.
        uploads.append(store._log.place(6, 100_000, alone=False))
        raise OSError(errno.ENOSPC, "no space left on device")

    disk.write = write
    with pytest.raises(Full):
        await store.put("refused", Bytes(b"r" * 1000))
    uploads[0].abandon()
    await store.put("after", Bytes(b"a" * 1000))
    await store.aclose()
    store = await open_volume(str(tmp_path / "v"))
    assert {found.name async for found in store.list()} == {"before", "after"}
    await store.aclose()


async def test_a_segment_that_can_not_be_followed_by_another_goes_on(tmp_path, monkeypatch):
    store = await open_volume(str(tmp_path / "v"), segment_size=SEGMENT)
    segment = store._log.appender.active

    def no_room():
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(store._log.appender, "_new_segment", no_room)
    for number in range(4):
        await store.put(f"n{number}", Bytes(bytes([number]) * 700_000))
    assert store._log.appender.active is segment
    monkeypatch.undo()
    await store.put("n4", Bytes(b"data"))
    assert store._log.appender.active is not segment
    for number in range(4):
        assert await content(store, f"n{number}") == bytes([number]) * 700_000
    await store.aclose()


@pytest.mark.parametrize("large", [8 << 20, 50_000], ids=["in batches", "streamed"])
async def test_what_is_deleted_makes_room_where_puts_have_filled_the_disk(
    tmp_path, monkeypatch, large
):
    monkeypatch.setattr(carry, "_LARGE", large)
    disk = Small(left=10 * SEGMENT)
    store = await open_volume(str(tmp_path / "v"), disk=disk, segment_size=SEGMENT)
    held = await fill(store, Bytes, 100_000)
    for number in range(len(held)):  # of each segment something stands
        if number % 5 > 1:
            await store.delete(f"n{number}")
            del held[f"n{number}"]
    await store._merged()
    with pytest.raises(Full):
        await store.put("more", Bytes(b"x" * 100_000))
    won = sum(
        step.dropped - step.carried for step in compactor_of(store, segment_size=SEGMENT).steps()
    )
    assert won > 4 * SEGMENT
    await store.put("more", Bytes(b"x" * 100_000))
    for name, data in held.items():
        assert await content(store, name) == data
    await store.aclose()

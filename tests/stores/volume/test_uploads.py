"""Uploads that are given up, at any moment, and volumes that are closed under them."""

import asyncio
import gc
import os
import threading
from collections.abc import AsyncIterator, Sequence

import pytest

from dolmen.errors import DolmenError, NotFound, Unavailable
from dolmen.payload import Bytes, Stream
from dolmen.stores.volume import VolumeStore, open_volume
from dolmen.stores.volume.disk import Buffer, Disk


class Held(Disk):
    """A disk whose calls of one kind wait until they are let go."""

    def __init__(self) -> None:
        self.kind = ""
        self.reached = threading.Event()
        self.go = threading.Event()
        self.written_to_closed: list[OSError] = []

    def hold(self, kind: str) -> None:
        self.kind = kind

    def _wait(self, kind: str) -> None:
        if kind == self.kind:
            self.reached.set()
            self.go.wait(10)

    def reserve(self, fd: int, offset: int, length: int) -> None:
        self._wait("reserve")
        super().reserve(fd, offset, length)

    def write(
        self, fd: int, buffers: Sequence[Buffer], offset: int, *, through: bool = False
    ) -> int:
        self._wait("write")
        try:
            written = super().write(fd, buffers, offset)
        except OSError as error:
            self.written_to_closed.append(error)
            raise
        if through:
            self.flush(fd)
        return written

    def flush(self, fd: int) -> None:
        self._wait("flush")
        super().flush(fd)


def streamed(data: bytes) -> Stream:
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 1 << 20):
            yield data[at : at + (1 << 20)]

    return Stream(len(data), pieces)


async def until(store: VolumeStore, condition) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it never came about")


async def content(store: VolumeStore, name: str) -> bytes:
    return b"".join([bytes(piece) async for piece in (await store.get(name)).payload])


def settled(store: VolumeStore) -> bool:
    active = store._log.appender.active
    return active.reach().settled == active.end


@pytest.mark.parametrize("kind", ["reserve", "write", "flush"])
@pytest.mark.parametrize("size", [500_000, 6_000_000])
async def test_given_up_while_a_thread_is_at_it_leaves_nothing_behind(
    tmp_path, descriptors, kind, size
):
    disk = Held()
    store = await open_volume(str(tmp_path / "v"), disk=disk)
    before = descriptors()
    disk.hold(kind)
    put = asyncio.ensure_future(store.put("name", streamed(os.urandom(size))))
    await asyncio.get_running_loop().run_in_executor(None, disk.reached.wait)
    put.cancel()
    await asyncio.wait([put])
    assert put.cancelled()
    disk.kind = ""
    disk.go.set()
    await until(store, lambda: settled(store) and descriptors() == before)
    assert disk.written_to_closed == []
    await store.put("other", Bytes(b"data"))
    await until(store, lambda: not list((tmp_path / "v/active").glob("*.part")))
    if kind != "flush":  # then the commit was under way, and may stand
        with pytest.raises(NotFound):
            await store.stat("name")
    await store.aclose()


@pytest.mark.parametrize("size", [500_000, 6_000_000])
async def test_closing_under_uploads_answers_each_and_keeps_what_was_answered(
    tmp_path, descriptors, size
):
    before = descriptors()
    for steps in range(0, 60, 7):
        path = str(tmp_path / str(steps))
        store = await open_volume(path)
        data = os.urandom(size)
        puts = [
            asyncio.ensure_future(
                store.put(f"n{number}", streamed(data) if number % 2 else Bytes(data))
            )
            for number in range(6)
        ]
        for _ in range(steps):
            await asyncio.sleep(0.001)
        await asyncio.wait_for(store.aclose(), 60)
        answers = await asyncio.wait_for(asyncio.gather(*puts, return_exceptions=True), 60)
        assert all(
            not isinstance(answer, BaseException) or isinstance(answer, Unavailable)
            for answer in answers
        ), answers
        store = await open_volume(path)
        for number, answer in enumerate(answers):
            if isinstance(answer, BaseException):
                with pytest.raises(NotFound):
                    await store.stat(f"n{number}")
            else:
                assert await content(store, f"n{number}") == data
        await store.aclose()
        del answers, answer, puts
        for _ in range(500):  # a thread may be just about to close the last one
            if descriptors() == before:
                break
            gc.collect()
            await asyncio.sleep(0.01)
        assert descriptors() == before


async def test_a_write_given_up_before_its_turn_is_left_out(tmp_path):
    disk = Held()
    store = await open_volume(str(tmp_path / "v"), disk=disk)
    disk.hold("flush")
    first = asyncio.ensure_future(store.put("first", Bytes(b"1")))
    await asyncio.get_running_loop().run_in_executor(None, disk.reached.wait)
    second = asyncio.ensure_future(store.put("second", Bytes(b"2")))
    await asyncio.sleep(0)
    second.cancel()
    disk.go.set()
    await first
    await store.put("third", Bytes(b"3"))
    with pytest.raises(NotFound):
        await store.stat("second")
    await store.aclose()


async def test_closing_that_is_given_up_goes_on_and_may_be_asked_again(tmp_path, descriptors):
    before = descriptors()
    store = await open_volume(str(tmp_path / "v"))
    await store.put("name", Bytes(b"data"))
    closing = asyncio.ensure_future(store.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    await asyncio.gather(store.aclose(), store.aclose())
    assert descriptors() == before


@pytest.mark.parametrize("bad", [-1, 1 << 64])
async def test_a_stamp_that_is_none_is_refused_and_others_go_on(tmp_path, bad):
    store = await open_volume(str(tmp_path / "v"))
    for call in (
        store.put("a", Bytes(b"x"), stamp=bad),
        store.delete("a", stamp=bad),
        store.remove("a", if_stamp=bad),
        store.touch("a", stamp=bad, checksum=bytes(16), meta=b""),
    ):
        with pytest.raises(DolmenError):
            await asyncio.wait_for(call, 5)
    assert (await asyncio.wait_for(store.put("a", Bytes(b"x")), 5)).outcome == "created"
    await store.aclose()

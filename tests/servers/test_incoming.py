"""What uploads take of a server's memory while their bodies arrive."""

from __future__ import annotations

import asyncio

import pytest

from dolmen.http import Headers, Request
from dolmen.http.body import Body
from dolmen.servers.incoming import Checked


class Stalled(Body):
    """A body that fills most of the first buffer it is given, and no more comes."""

    def __init__(self, length: int | None, rooms: list[int]) -> None:
        self.whole, self.length, self.given, self.rooms = None, length, 0, rooms

    async def receive_into(self, buffer: memoryview) -> int:
        self.rooms.append(len(buffer))
        await asyncio.Event().wait()
        return 0


@pytest.mark.parametrize("length", [None, 1 << 30], ids=["chunked", "sized"])
async def test_hundreds_of_stalled_uploads_share_one_room(length, tmp_path) -> None:
    rooms: list[int] = []

    async def upload() -> None:
        request = Request("PUT", b"/", Headers(), Stalled(length, rooms))
        payload = await Checked(request).payload(str(tmp_path))
        async for _ in payload:
            pass

    for _ in range(2):
        uploads = [asyncio.create_task(upload()) for _ in range(300)]
        while len(rooms) < 300:
            await asyncio.sleep(0.001)
        assert max(rooms) == 2 << 20
        assert sum(rooms) <= (64 << 20) + 300 * 65_536
        for each in uploads:
            each.cancel()
        await asyncio.wait(uploads)
        rooms.clear()  # all of it was given back

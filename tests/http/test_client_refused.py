"""A server that refuses a new connection, with a response or without, was not asked anything."""

from __future__ import annotations

import asyncio

import pytest

from dolmen.errors import Unavailable
from dolmen.http.client import Client


async def test_a_write_that_never_left_is_not_of_unknown_outcome() -> None:
    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Client("127.0.0.1", port) as client:
            with pytest.raises(Unavailable, match="closed a new connection"):
                await client.request("POST", "/x", body=b"a")

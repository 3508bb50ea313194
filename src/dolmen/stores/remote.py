"""`http://host:port` as a store: a dolmen blob server (`remote_server`) or an sos one (`sos`).

Read first: `dolmen.stores.remote_server`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from urllib.parse import urlsplit

from dolmen.errors import BadSetting, DolmenError
from dolmen.http import Client
from dolmen.stores.base import Delegating
from dolmen.stores.remote_server import DolmenServer
from dolmen.stores.sos import SosStore

_OPENING = 10.0
"""Seconds a server may take at start to say what it is, before it is taken for the usual."""


class RemoteStore(Delegating):
    """The server at an address, whatever it turns out to be.

    One that can't be asked at first counts as a dolmen blob server: it may come up later, and
    is asked then, before anything else.
    """

    def __init__(self, address: str, client: Client) -> None:
        self._address, self._client = address, client
        self.server = DolmenServer(address, client, self._is_sos)
        super().__init__(self.server)

    def _is_sos(self) -> None:
        self.store = SosStore(self._address, self._client)


async def open_url(url: str) -> RemoteStore:
    """The blob server at `http://host:port`; asks it what it is.

    Raises `BadSetting` for what is not such an address.
    """
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise BadSetting(f"{url!r} has no valid port: {error}") from error
    if not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username:
        raise BadSetting(f"{url!r} is not a blob server's address: write http://host:port")
    if parts.scheme == "https":
        raise BadSetting(f"{url!r}: dolmen does not speak TLS yet; write http://host:port")
    client = Client(parts.hostname, port or 80)
    address = f"{parts.hostname}:{port}" if port else parts.hostname
    store = RemoteStore(address, client)
    with suppress(DolmenError, TimeoutError):
        async with asyncio.timeout(_OPENING):
            await store.server.learn()
    return store

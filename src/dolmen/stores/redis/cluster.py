"""The servers of a Redis Cluster: which one holds what, as the cluster says."""

from __future__ import annotations

import asyncio
from binascii import crc_hqx
from collections.abc import Callable, Sequence
from typing import Any

from dolmen.errors import DolmenError, Unavailable
from dolmen.stores.redis.address import Address, Place
from dolmen.stores.redis.connection import Ask
from dolmen.stores.redis.link import Link
from dolmen.stores.redis.refusals import Refused
from dolmen.stores.redis.server import Server

_HOPS = 8
"""How often a command is sent on before it is given up: slots may be on the move."""
_MOMENT = 0.05
_SLOTS = [crc_hqx(b"%02x" % tag, 0) % 16_384 for tag in range(256)]
"""The slot of every tag. CRC-16 as Redis Cluster has it is `crc_hqx` beginning with 0."""


class ClusterLink(Link):
    """A cluster, asked who holds what when the first command comes.

    It is asked again after a server was lost or sent us elsewhere; commands wait for that.
    """

    def __init__(self, address: Address, *, told: Callable[[bool], None], patience: float) -> None:
        super().__init__(address, told=told, patience=patience)
        self._holders: list[Place | None] = []
        self._stale = True
        self._held_up: list[Ask] = []
        self._learning: asyncio.Task[None] | None = None

    def _send(self, ask: Ask) -> None:
        if self._stale:
            self._held_up.append(ask)
            self._learned()
        elif (place := self._holders[ask.tag]) is not None:
            self._server(place, ask.lane).send(ask)
        else:
            ask.fail(Unavailable(f"{self.address}: no server of the cluster holds its slot"))

    def lost(self) -> None:
        """See `Link.lost`."""
        self._stale = True

    async def _all(self) -> list[Server]:
        if self._stale:
            await asyncio.wait([self._learned()])
        known = dict.fromkeys(filter(None, self._holders)) or self.address.servers
        return [self._server(place) for place in known]

    async def aclose(self) -> None:
        """See `Link.aclose`."""
        if self._learning is not None:
            await asyncio.wait([self._learning])
        await super().aclose()

    def _learned(self) -> asyncio.Task[None]:
        if self._learning is None:
            self._learning = asyncio.get_running_loop().create_task(self._learn())
        return self._learning

    async def _learn(self) -> None:
        """Ask for the layout, and send what waits for it."""
        error: DolmenError = Unavailable(f"{self.address}: no server is known")
        try:
            for place in self._known():
                ask = Ask(b"CLUSTER", b"SLOTS")
                self._server(place).send(ask)
                try:
                    self._lay_out(await ask, place[0])
                except DolmenError as unknown:
                    error = unknown
                    if isinstance(unknown, Refused):
                        break
                else:
                    self._stale = False
                    break
        finally:
            held_up, self._held_up, self._learning = self._held_up, [], None
            for ask in held_up:
                if self._stale:
                    ask.fail(type(error)(str(error)))
                else:
                    self._send(ask)

    def _known(self) -> list[Place]:
        """Every server that may be asked, those first that answered the last time."""
        places = dict.fromkeys([*filter(None, self._holders), *self.address.servers])
        return sorted(places, key=lambda place: self._server(place).failing)

    def _lay_out(self, slots: Sequence[Sequence[Any]], asked: str) -> None:
        self._holders = [None] * 256
        for first, last, (host, port, *_), *_ in slots:
            for tag, slot in enumerate(_SLOTS):
                if first <= slot <= last:
                    self._holders[tag] = (host.decode() if host else asked, port)
        for place in self._durable.keys() - set(self._holders):
            del self._durable[place]

    def refused(self, server: Server, ask: Ask, said: str) -> None:
        """See `Link.refused`."""
        code, *rest = said.split(" ")
        ask.hops += code in ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN")
        if code in ("MOVED", "CLUSTERDOWN"):
            self._stale = True
            server.failing = server.failing or code == "CLUSTERDOWN"  # it may be cut off
        if code not in ("MOVED", "ASK", "TRYAGAIN") or ask.hops > _HOPS:
            super().refused(server, ask, said)
        elif code == "TRYAGAIN":
            asyncio.get_running_loop().call_later(_MOMENT * ask.hops, self._send, ask)
        else:
            host, _, port = rest[1].rpartition(":")
            other = self._server((host or server.place[0], int(port)), ask.lane)
            if code == "ASK":
                other.send(Ask(b"ASKING", lane=ask.lane))
            other.send(ask)

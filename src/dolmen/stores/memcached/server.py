"""One memcached server: connected to when it is needed, and again after it was gone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from dolmen.errors import Full, OutcomeUnknown, TooLarge, Unavailable
from dolmen.stores.memcached.connection import Answer, Connection, connect

_BUSY = 200
"""How often a server may say that it is listing for somebody else."""
_MOMENT = 0.02


class Server:
    """Commands to one server, over one connection. Errors are those of the contract."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self.name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()

    async def read(self, command: bytes) -> Answer:
        """The answer to a command that changes nothing; raises `Unavailable`."""
        [answer] = await self.read_all([command])
        return answer

    async def read_all(self, commands: Sequence[bytes]) -> list[Answer]:
        """The answers to commands sent together; raises `Unavailable`."""
        connection = self._connection or await self._connected()
        asked = [connection.ask(command) for command in commands]
        try:
            return [self._sound(await answer) for answer in asked]
        except OSError as error:
            raise Unavailable(f"memcached at {self.name}: {error}") from error
        finally:
            for answer in asked:  # of those behind one that failed nobody takes the error
                answer.cancel()

    async def write(self, command: bytes) -> Answer:
        """The answer to a command that changes something.

        Raises `Unavailable` when it was not sent, `OutcomeUnknown` when it was and got no answer,
        `Full`, `TooLarge`.
        """
        connection = self._connection or await self._connected()
        try:
            answer = await connection.ask(command)
        except OSError as error:
            raise OutcomeUnknown(
                f"memcached at {self.name}: {error}; whether it did what was asked is not known"
            ) from error
        return self._sound(answer)

    async def lines(self, command: bytes) -> list[bytes]:
        """The lines that answer `stats` or a listing; raises `Unavailable`."""
        for _ in range(_BUSY):
            connection = self._connection or await self._connected()
            try:
                answer = await connection.ask(command, lines=True)
            except OSError as error:
                raise Unavailable(f"memcached at {self.name}: {error}") from error
            if answer.status != b"BUSY":
                return self._sound(answer).lines
            await asyncio.sleep(_MOMENT)
        raise Unavailable(f"memcached at {self.name} is being listed by others all the time")

    def _sound(self, answer: Answer) -> Answer:
        status = answer.status
        if not status.endswith(b"ERROR"):
            return answer
        said = b" ".join(answer.words[1:]).decode("latin-1")
        if "out of memory" in said.lower():
            raise Full(f"memcached at {self.name} has no memory left and may not evict (-M)")
        if "too large" in said:
            raise TooLarge(f"memcached at {self.name} takes no item of that size (see its -I)")
        raise Unavailable(
            f"memcached at {self.name} did not understand ({status.decode('latin-1')} {said}); "
            "dolmen needs memcached 1.6 with its LRU crawler on"
        )

    async def _connected(self) -> Connection:
        async with self._connecting:
            if self._connection is None:
                try:
                    self._connection = await connect(self._host, self._port, self._lost)
                except OSError as error:
                    raise Unavailable(
                        f"can't connect to memcached at {self.name}: {error}"
                    ) from error
            return self._connection

    def _lost(self, connection: Connection) -> None:
        if self._connection is connection:
            self._connection = None

    def close(self) -> None:
        """Let go of the connection; what waits fails."""
        if self._connection is not None:
            self._connection.close()

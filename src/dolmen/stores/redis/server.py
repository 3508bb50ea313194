"""One Redis server: what is asked of it in one turn of the loop shares a pipeline.

Whoever asks gets a future at once. No task is made for a request but one for every
pipeline, because redis-py waits with timeouts, which belong to tasks, and a store may be
called without one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from redis.asyncio.connection import ConnectionPool
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from dolmen.errors import DolmenError, Full, OutcomeUnknown, ReadOnly, Unauthorized, Unavailable
from dolmen.stores.redis.scripts import SOURCES

_log = logging.getLogger("dolmen.redis")
_LANES = 4
"""Pipelines under way at once, each on a connection of its own."""
_COMMANDS, _BYTES = 512, 4 << 20
"""What a pipeline holds at most."""

Command = tuple[bytes | memoryview | int, ...]
Reply = Any
"""As RESP 2 has it: bytes, an int, a list of replies or None."""


class Refused(Unavailable):
    """The server said no, and will until something is set right."""


class Ask:
    """A command and the future of its reply. `writes` when it may change something."""

    __slots__ = ("asking", "command", "future", "hops", "tag", "writes")

    def __init__(self, tag: int, command: Command, *, writes: bool) -> None:
        self.tag, self.command, self.writes = tag, command, writes
        self.future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.asking = False
        self.hops = 0

    def fail(self, error: Exception) -> None:
        """Let it fail, unless it was given up."""
        if not self.future.done():
            self.future.set_exception(error)


Redirect = Callable[[Ask, ResponseError], bool]
"""Told of an error; True when it asks elsewhere."""


class Server:
    """A server at `where`, asked over the connections of a pool. `timeout` is in seconds.

    `lost` is called when it can't be reached.
    """

    def __init__(
        self,
        where: str,
        pool: ConnectionPool,
        *,
        timeout: float,
        redirect: Redirect = lambda _ask, _error: False,
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        self.where = where
        self._pool, self._timeout, self._redirect, self._lost = pool, timeout, redirect, lost
        self._waiting: deque[Ask] = deque()
        self._under_way: set[asyncio.Task[None]] = set()
        self._due = self._closed = False
        self.failing = False
        """Whether it could not be asked the last time."""

    def ask(self, ask: Ask) -> None:
        """Send a command with the next pipeline."""
        if self._closed:
            ask.fail(Unavailable("this store was closed"))
            return
        self._waiting.append(ask)
        if not self._due and len(self._under_way) < _LANES:
            self._due = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._due = False
        while self._waiting and len(self._under_way) < _LANES:
            pipeline: list[Ask] = []
            size = 0
            while self._waiting and len(pipeline) < _COMMANDS and size < _BYTES:
                ask = self._waiting.popleft()
                if not ask.future.done():  # nobody waits for what was given up
                    pipeline.append(ask)
                    size += len(ask.command[-1]) if isinstance(ask.command[-1], memoryview) else 0
            task = asyncio.ensure_future(self._exchange(pipeline))
            self._under_way.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._send()

    async def _exchange(self, pipeline: list[Ask]) -> None:
        """Send commands, and hand out the replies as they come."""
        commands: list[Command] = []
        for ask in pipeline:
            if ask.asking:
                commands.append((b"ASKING",))
            commands.append(ask.command)
        answered, sent = 0, False
        try:
            async with asyncio.timeout(self._timeout):
                connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
                try:
                    sent = True
                    await connection.send_packed_command(connection.pack_commands(commands))
                    for ask in pipeline:
                        if ask.asking:
                            await connection.read_response()
                        try:
                            reply = await connection.read_response()
                        except ResponseError as error:
                            self._refuse(ask, error)
                        else:
                            if not ask.future.done():
                                ask.future.set_result(reply)
                        answered += 1
                finally:
                    if answered < len(pipeline):  # replies nobody reads are on their way
                        await connection.disconnect(nowait=True)
                    await self._pool.release(connection)
            self.failing = False
        except (RedisError, OSError) as error:
            self.failing = True
            self._lost()
            for number, ask in enumerate(pipeline[answered:]):
                ask.fail(self._broken(error, unsure=sent and ask.writes, told=number == 0))
        except BaseException as error:
            _log.exception("asking %s", self.where)
            for ask in pipeline[answered:]:
                ask.fail(OutcomeUnknown(f"asking {self.where} failed: {error!r}"))
            raise

    def _refuse(self, ask: Ask, error: ResponseError) -> None:
        """Settle a command that got an error for a reply, or ask it otherwise."""
        if isinstance(error, NoScriptError):
            sha = ask.command[1]
            assert isinstance(sha, bytes)
            ask.command = (b"EVAL", SOURCES[sha], *ask.command[2:])
            self.ask(ask)
        elif not self._redirect(ask, error):
            ask.fail(self._meaning(error))

    def _meaning(self, error: Exception) -> DolmenError:
        """What an error that the server told means. Nothing was done."""
        where, said = self.where, str(error)
        if isinstance(error, OutOfMemoryError) or "OOM" in said or "No space left" in said:
            return Full(f"{where} has no memory left for this (maxmemory): {said}")
        if isinstance(error, AuthenticationError):
            return Refused(
                f"{where} refuses the user or password: mend them in the store's URL ({said})"
            )
        if isinstance(error, NoPermissionError):
            return Unauthorized(f"{where} does not permit it; mend the user's rights: {said}")
        if "DB index" in said or "invalid DB" in said:
            return Refused(
                f"{where} has no such database: mend the number at the end of the store's URL"
            )
        if isinstance(error, AskError):
            return Refused(f"{where} is a node of a cluster: write redis+cluster:// in the URL")
        if "cluster support disabled" in said:
            return Refused(f"{where} is no cluster: write redis:// in the store's URL")
        if isinstance(error, ReadOnlyError) or "READONLY" in said or "MISCONF" in said:
            return ReadOnly(f"{where} takes no writes: {said}")
        if isinstance(error, BusyLoadingError):
            return Unavailable(f"{where} is still loading: {said}")
        return Refused(f"{where} answered: {said}")

    def _broken(self, error: Exception, *, unsure: bool, told: bool) -> DolmenError:
        """What the end of a connection means for a command that got no reply.

        `told` when the error came in place of the reply to just this command.
        """
        said = isinstance(error, ResponseError | AuthenticationError | BusyLoadingError)
        if said and (told or not unsure):
            return self._meaning(error)
        why = str(error) or f"no answer within {self._timeout:g} seconds"
        if unsure:
            return OutcomeUnknown(f"{self.where} was lost before it answered: {why}")
        return Unavailable(f"{self.where} can't be asked: {why}")

    async def aclose(self) -> None:
        """Wait for what was asked, and let go of every connection."""
        self._closed = True
        while self._waiting or self._under_way:
            self._send()
            if self._under_way:
                await asyncio.wait(self._under_way)
        await self._pool.aclose()

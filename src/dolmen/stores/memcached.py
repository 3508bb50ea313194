"""`memcached://HOST[:PORT][/PREFIX]`: a driver for the memory of a memcached server.

For caches, and as the neighbour that forgets: memcached drops whatever it likes when its
memory is full, and everything when it ends.

What it promises:

* **Not durable**: it never counts as a copy. A blob whose entry was dropped is not there;
  one that lacks a part answers as damaged.
* **A swap is one key after the other**: the entry by compare-and-swap, and what belongs to
  it only if that went well. So digests are made by listing.
* **Lists** read every key (`lru_crawler metadump`) and are sorted here, in memory.
* **Full** (`-M`: no eviction): writes raise `Full`.
* **Restart, no answer in time**: what was on its way fails; the next request connects again.

Needs memcached 1.6 (meta commands), with its LRU crawler on as it is by default. No client
library for asyncio that is maintained speaks these commands.

Read first: `dolmen.stores.driver`, `dolmen.stores.batches`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from dolmen.errors import BadSetting, DolmenError, Full, OutcomeUnknown, TooLarge, Unavailable
from dolmen.store import Capabilities, Condition
from dolmen.stores.batches import Batches
from dolmen.stores.driver import HEAD, PATIENCE, Change
from dolmen.stores.keyed import KeyedStore, open_keyed
from dolmen.stores.secrets import without_secrets

_PAGE = 256
_BUSY = 200
"""How often the server may say that it is listing for somebody else."""
_MOMENT = 0.02
_READ_AHEAD = 1 << 20
_LAST = (b"END", b"BUSY", b"ERROR", b"CLIENT_ERROR", b"SERVER_ERROR")
Answer = tuple[list[bytes], bytes]
"""The words of a line, and the value behind it."""


class _Server:
    """The server, asked over one connection, which is opened again once it was lost."""

    def __init__(self, host: str, port: int, patience: float) -> None:
        self._where, self._place = f"memcached at {host}:{port}", (host, port)
        self._patience = patience
        self._reader = asyncio.StreamReader()
        self._writer: asyncio.StreamWriter | None = None
        self._asks = Batches(self._exchange, at_once=1, most=64)

    def ask(self, sent: bytes, *, writes: bool = False) -> asyncio.Future[Answer]:
        """The answer to a request; those that come at once share a round trip."""
        return self._asks.ask((sent, writes))

    async def _exchange(
        self, requests: Sequence[tuple[bytes, bool]]
    ) -> Sequence[Answer | DolmenError]:
        answers: list[Answer | DolmenError] = []
        sent = False
        try:
            async with asyncio.timeout(self._patience):
                if self._writer is None or self._reader.at_eof():
                    self._close()
                    self._reader, self._writer = await self._connect()
                sent = True
                self._writer.write(b"".join([request for request, _ in requests]))
                for _ in requests:
                    answers.append(await self._answer())  # noqa: PERF401 - those before a fault count
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            self._close()
            left = requests[len(answers) :]
            answers += [self._lost(error, unknown=sent and writes) for _, writes in left]
        return answers

    async def _answer(self) -> Answer | DolmenError:
        line = await self._reader.readline()
        words = line.split() or [b""]
        if not line.endswith(b"\n"):
            raise EOFError("it closed the connection")
        if words[0].endswith(b"ERROR"):
            return self._refusal(line)
        value = b""
        if words[0] == b"VA":
            value = (await self._reader.readexactly(int(words[1]) + 2))[:-2]
        return words, value

    async def lines(self, command: bytes) -> list[bytes]:
        """The lines that answer `stats` or a listing, over a connection of its own."""
        for _ in range(_BUSY):
            try:
                async with asyncio.timeout(self._patience):
                    reader, writer = await self._connect()
                    try:
                        writer.write(command)
                        lines = [await reader.readline()]
                        while lines[-1] and not lines[-1].startswith(_LAST):
                            lines.append(await reader.readline())
                    finally:
                        writer.transport.abort()
            except (OSError, TimeoutError, ValueError) as error:
                raise self._lost(error) from error
            if lines[-1].startswith(b"END"):
                return lines
            if not lines[-1].startswith(b"BUSY"):
                raise self._refusal(lines[-1])
            await asyncio.sleep(_MOMENT)
        raise Unavailable(f"{self._where} is being listed by others all the time")

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self._place, limit=_READ_AHEAD)

    def _refusal(self, line: bytes) -> DolmenError:
        said = line.decode("latin-1").strip()
        if "out of memory" in said.lower():
            return Full(f"{self._where} has no memory left and may not evict (-M)")
        if "too large" in said:
            return TooLarge(f"{self._where} takes no item of that size (see its -I)")
        return Unavailable(
            f"{self._where} did not understand ({said}); "
            "dolmen needs memcached 1.6 with its LRU crawler on"
        )

    def _lost(self, error: Exception, *, unknown: bool = False) -> DolmenError:
        why = str(error) or f"no answer within {self._patience:g} seconds"
        if unknown:
            return OutcomeUnknown(f"{self._where} was lost before it answered: {why}")
        return Unavailable(f"{self._where} can't be asked: {why}")

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None

    async def aclose(self) -> None:
        """Wait for what is under way, and let go of the connection."""
        await self._asks.aclose()
        self._close()


class MemcachedDriver:
    """Keeps values in a server, under keys that begin with a prefix."""

    capabilities = Capabilities(
        durable=False, largest=1 << 30, digests=False, ordered=False, conflicts=True
    )
    part_size = 1 << 19
    """A server takes items of up to 1 MiB, its own bookkeeping included."""

    def __init__(self, host: str, port: int, prefix: str, patience: float) -> None:
        self._server = _Server(host, port, patience)
        self._prefix = prefix.encode() + b":"

    async def get(self, keys: Sequence[bytes], *, head: bool = False) -> list[bytes | None]:
        """See `Driver.get`."""
        asked = [self._server.ask(b"mg %b v\r\n" % (self._prefix + key)) for key in keys]
        answers = await asyncio.gather(*asked)
        size = HEAD if head else None
        return [value[:size] if words[0] == b"VA" else None for words, value in answers]

    async def swap(self, changes: Sequence[Change], **_grows: bool) -> bool:
        """See `Driver.swap`."""
        (key, old, new), *others = changes
        mode = b"ME"  # add
        if old is not None:
            words, value = await self._server.ask(b"mg %b v c\r\n" % (self._prefix + key))
            if words[0] != b"VA" or not value.startswith(old):
                return False
            mode = next(b"C" + word[1:] for word in words[2:] if word[:1] == b"c")
        if not await self._write(key, new, mode):
            return False
        for key, _, new in others:
            await self._write(key, new)
        return True

    async def _write(self, key: bytes, value: bytes | memoryview | None, mode: bytes = b"") -> bool:
        """Store or forget a value; whether `mode` let it."""
        place = self._prefix + key
        if value is None:
            command = b"md %b %b\r\n" % (place, mode)
        else:
            command = b"ms %b %d %b\r\n%b\r\n" % (place, len(value), mode, bytes(value))
        words, _ = await self._server.ask(command, writes=True)
        return words[0] == b"HD"

    async def set(self, key: bytes, value: bytes | memoryview) -> None:
        """See `Driver.set`."""
        await self._write(key, value)

    async def delete(self, keys: Sequence[bytes]) -> None:
        """See `Driver.delete`."""
        await asyncio.gather(*(self._write(key, None) for key in keys))

    async def scan(self, start: bytes, stop: bytes) -> AsyncIterator[Sequence[tuple[bytes, bytes]]]:
        """See `Driver.scan`."""
        own = self._prefix + start[:1]
        found: set[bytes] = set()
        for line in await self._server.lines(b"lru_crawler metadump hash\r\n"):
            item = unquote_to_bytes(line.partition(b" ")[0].removeprefix(b"key="))
            if item.startswith(own):
                found.add(item.removeprefix(self._prefix))
        keys = sorted(key for key in found if start <= key < stop)
        for first in range(0, len(keys), _PAGE):
            page = keys[first : first + _PAGE]
            values = await asyncio.gather(*(self.get([key], head=True) for key in page))
            pairs = zip(page, values, strict=True)
            yield [(key, value) for key, [value] in pairs if value is not None]

    async def condition(self) -> Condition:
        """See `Driver.condition`: memory, and whether some was needed for something else."""
        words = (line.split() for line in await self._server.lines(b"stats\r\n"))
        stats = {word[1]: int(word[2]) for word in words if len(word) == 3 and word[2].isdigit()}
        used, total = stats.get(b"bytes", 0), stats.get(b"limit_maxbytes", 0)
        evicted = stats.get(b"evictions", 0)
        remarks = ["memcached is not durable: a restart empties it"]
        if evicted:
            remarks.append(f"memcached dropped {evicted} items for want of memory")
        return Condition(max(total - used, 0), total, remarks=remarks)

    async def aclose(self) -> None:
        """See `Driver.aclose`."""
        await self._server.aclose()


async def open_url(url: str, *, patience: float = PATIENCE, **options: Any) -> KeyedStore:
    """Open the store of a URL; see `open_keyed`. `patience`: seconds a server may take.

    Raises `BadSetting` for a URL that can't be read.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 11_211
    except ValueError:
        host = None
    prefix = re.fullmatch(r"/?([A-Za-z0-9_-]{0,64})/?", parts.path) if host else None
    if host is None or prefix is None or parts.query or parts.fragment or "@" in parts.netloc:
        raise BadSetting(
            f"{without_secrets(url)!r} names no memcached: write memcached://HOST:PORT, and perhaps"
            " /PREFIX of letters and digits"
        )
    return await open_keyed(MemcachedDriver(host, port, prefix[1] or "dolmen", patience), **options)

"""What an engine's driver has to do: keep values under ordered keys.

`dolmen.stores.keyed` is the whole blob store above it. A driver knows nothing of blobs;
its own docstring says what it promises of durability and faults. `docs/engines.md` shows how
to write one; `tests/stores/sqlite.py` is one in under 120 lines.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from importlib import import_module
from types import ModuleType
from typing import NamedTuple, Protocol

from dolmen.errors import BadSetting, Unavailable
from dolmen.store import Capabilities, Condition

HEAD = 512
"""Bytes of a value that are enough to know what it is, nearly always."""
PATIENCE = 10.0
"""Seconds a server may take to be connected to, and to answer."""


class Refused(Unavailable):
    """The server refuses who asks, or what is configured, until somebody changes that."""


class Change(NamedTuple):
    """What one key of a swap is to become.

    `old` is None where the key has to be absent; otherwise the value has to begin with it.
    `new` is the value to be, None for none.
    """

    key: bytes
    old: bytes | None
    new: bytes | memoryview | None


class Driver(Protocol):
    """An ordered key-value store.

    Keys are text of up to 140 bytes: a letter, a partition in 4 hex digits, and more. All keys
    of one call but `scan` have the same partition. Values are 1 byte to `part_size` bytes.

    Every method may raise `Unavailable`, those that write also `OutcomeUnknown` (where it
    may have happened), `Full` and `ReadOnly` (nothing happened).
    """

    part_size: int

    @property
    def capabilities(self) -> Capabilities:
        """`durable` may change with what the server says of its configuration."""
        ...

    def get(self, keys: Sequence[bytes], *, head: bool = False) -> Awaitable[list[bytes | None]]:
        """The values of these keys, None for none; with `head` their first `HEAD` bytes."""
        ...

    def swap(self, changes: Sequence[Change], *, grows: bool = True) -> Awaitable[bool]:
        """Make all changes in one step if every key still is what its change says.

        Returns True when done, as durable as `capabilities` promise, False when nothing was
        changed. What frees room, or needs next to none, says so by `grows=False` and goes on
        while the engine is full.
        """
        ...

    def set(self, key: bytes, value: bytes | memoryview) -> Awaitable[None]:
        """Keep a value, durably. `scan` need not see it."""
        ...

    def delete(self, keys: Sequence[bytes]) -> Awaitable[None]:
        """Forget what `set` kept; keys that are absent do not matter."""
        ...

    def scan(self, start: bytes, stop: bytes) -> AsyncIterator[Sequence[tuple[bytes, bytes]]]:
        """The keys from `start` to before `stop` with their heads, in order, page by page.

        Only what was kept by `swap`. The two bounds have the same first byte. A key present
        throughout comes exactly once.
        """
        ...

    async def condition(self) -> Condition:
        """How the server is doing; brings `capabilities.durable` up to date."""
        ...

    async def aclose(self) -> None:
        """Finish what is under way and let go of everything. May be called twice."""
        ...


def driver(module: str, extra: str) -> ModuleType:
    """The library of an engine, which the extra `dolmen[extra]` installs.

    Raises `BadSetting` with the line to type where it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise BadSetting(
            f"this store needs {error.name}, which is not installed: pip install 'dolmen[{extra}]'"
        ) from error

"""An answer that is there already, in the place of one that is waited for.

A call that returns `Awaitable[T]` may return `Ready` where nothing needs waiting: `await`
then costs no coroutine and no turn of the event loop, and who knows the class can take
`value` without awaiting at all.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Generic, TypeVar

T_co = TypeVar("T_co", covariant=True)


class Ready(Generic[T_co]):
    """An awaitable whose result is there: `value`."""

    __slots__ = ("value",)

    def __init__(self, value: T_co) -> None:
        self.value = value

    def __await__(self) -> Generator[None, None, T_co]:
        return self.value
        yield

"""What the suite runs in: a place for the store, and a time that passes when asked to."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from dolmen.store import BlobStore
from dolmen.testing.conformance.material import at

LONG = os.environ.get("DOLMEN_TEST_LONG") == "1"
"""Whether this is a long run, with far more examples."""


class Time:
    """A clock for a store: the real one, or one that moves only by `advance`."""

    def __init__(self, *, real: bool = False) -> None:
        self._real = real
        self._ms = at(86_400_000) >> 16  # later than every stamp the suite makes up

    def wall(self) -> int:
        """Milliseconds since 1970, for `dolmen.stamps.Clock`."""
        return time.time_ns() // 1_000_000 if self._real else self._ms

    def now(self) -> float:
        """Seconds since 1970, for the time of arrival."""
        return self.wall() / 1000

    def advance(self, seconds: float) -> None:
        """Let time pass. Skips the test where the store goes by the real time."""
        if self._real:
            pytest.skip("this store can't be given the time")
        self._ms += round(seconds * 1000)


@dataclass
class Place:
    """Where one store lives."""

    path: Path
    """No other store's. Nothing is there at first; `str(path)` serves as a unique key too."""
    time: Time
    exits: AsyncExitStack = field(default_factory=AsyncExitStack)
    """For what the factory starts and has to be ended after the store, such as a server."""


class Suite:
    """The fixtures, and what a store's test says about its store."""

    takes_time: ClassVar[bool] = True
    """The factory gives the store `place.time`; otherwise it goes by the real time."""
    reopens: ClassVar[bool] = True
    """Made again in the same place, after it was closed, the store holds what it held."""
    quarantines: ClassVar[bool] = True
    """It remembers which copies it found damaged, rather than find out with every read."""

    async def make_store(self, place: Place) -> BlobStore:
        """Open the store in this place. Called again after a close where it `reopens`."""
        raise NotImplementedError("a store's test says here how the store is opened")

    async def damage(self, store: BlobStore, place: Place, name: str) -> None:  # noqa: ARG002
        """Change a kept byte of this blob behind the open store's back; it has at least one.

        A store's test that can do so overrides this: the suite then sees to it that damage
        is found, never handed out, and replaced.
        """
        pytest.skip("this store's test has no way to damage what it keeps")

    @pytest.fixture
    async def place(self, tmp_path: Path) -> AsyncIterator[Place]:
        """The place of the store."""
        place = Place(tmp_path / "store", Time(real=not self.takes_time))
        async with place.exits:
            yield place

    @pytest.fixture
    async def store(self, place: Place) -> AsyncIterator[BlobStore]:
        """The store, empty."""
        store = await self.make_store(place)
        yield store
        await store.aclose()

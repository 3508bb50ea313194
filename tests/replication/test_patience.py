"""How often a server that does not answer is asked."""

from __future__ import annotations

import pytest

from dolmen.errors import Unavailable
from dolmen.replication.patience import FIRST_PAUSE, LONGEST, TRIES, Stopped, ask


class Server:
    """One that is away, and lets so many seconds pass before it is known each time."""

    def __init__(self, hangs: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hangs, self.now, self.asked = hangs, 0.0, 0
        monkeypatch.setattr("dolmen.replication.patience.time.monotonic", lambda: self.now)

    async def question(self) -> None:
        self.asked += 1
        self.now += self.hangs
        raise Unavailable("it is away")

    async def pause(self, seconds: float) -> None:
        self.now += seconds

    async def ask(self) -> None:
        with pytest.raises(Stopped, match="it is away"):
            await ask(self.question, side="source", pause=self.pause)


async def test_one_that_refuses_is_asked_again_after_longer_and_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server(0, monkeypatch)
    await server.ask()
    assert server.asked == TRIES
    assert server.now == FIRST_PAUSE * (2 ** (TRIES - 1) - 1)


async def test_one_that_hangs_is_not_waited_for_many_times(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(LONGEST, monkeypatch)
    await server.ask()
    assert (server.asked, server.now) == (1, LONGEST)

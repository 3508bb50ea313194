"""Stores over buckets, as tests open them: time passes when it is told to."""

from __future__ import annotations

from dolmen.stamps import Clock
from dolmen.stores.bucket import BucketStore
from dolmen.stores.bucket_client import Client, open_client, seconds


class Later:
    """Time of the bucket and of this machine, as much later as it is told."""

    def __init__(self) -> None:
        self.by = 0.0

    def elapsed(self) -> float:
        """In place of `seconds`."""
        return seconds() + self.by


def opened(url: str, later: Later | None = None, clock: Clock | None = None) -> BucketStore:
    """A store that sweeps only when it is told to."""
    later = later or Later()
    client = open_client(url)
    now = client.now

    async def shifted(*, fresh: bool = False) -> float:
        return await now(fresh=fresh) + later.by

    client.now = shifted  # type: ignore[method-assign]
    return BucketStore(client, clock=clock, elapsed=later.elapsed)


async def everything(client: Client) -> list[str]:
    """The path of every head, mark and part."""
    return [found.path for top in ("data", "heads") for found in await client.all(top)]

"""Stores over buckets, as tests open them: time passes when it is told to."""

from __future__ import annotations

from collections.abc import AsyncIterator

from dolmen.closing import closing
from dolmen.stamps import Clock
from dolmen.stores.bucket import BucketStore
from dolmen.stores.bucket_client import Client, Found, open_client, seconds


class Later:
    """Time of the bucket and of its users' machines, later than it is by `by` seconds."""

    def __init__(self) -> None:
        self.by = 0.0
        self.written: dict[str, float] = {}
        """How much later it was when an object was written."""

    def elapsed(self) -> float:
        """In place of `seconds`."""
        return seconds() + self.by


class LaterClient(Client):
    """A client of a bucket in which it is later."""

    later: Later

    async def put(
        self, path: str, data: bytes | memoryview, *, once: bool = False, mode: str = "overwrite"
    ) -> bool:
        stored = await super().put(path, data, once=once, mode=mode)
        self.later.written[f"{self.url}/{path}"] = self.later.by
        return stored

    async def pages(self, folder: str, after: str | None = None) -> AsyncIterator[list[Found]]:
        async with closing(super().pages(folder, after)) as pages:
            async for page in pages:
                yield [
                    found._replace(modified=found.modified + self._later(found.path))
                    for found in page
                ]

    def _later(self, path: str) -> int:
        return int(self.later.written.get(f"{self.url}/{path}", 0))

    async def now(self, *, fresh: bool = False) -> float:
        return await super().now(fresh=fresh) + self.later.by


def opened(url: str, later: Later | None = None, clock: Clock | None = None) -> BucketStore:
    """A store that sweeps only when it is told to."""
    client = open_client(url)
    client.__class__ = LaterClient
    assert isinstance(client, LaterClient)
    client.later = later or Later()
    return BucketStore(client, clock=clock, elapsed=client.later.elapsed)


async def everything(client: Client) -> tuple[list[str], list[str]]:
    """The paths of all heads, marks among them, and of all parts."""
    paths = [found.path for found in await client.all("blobs")]
    return (
        [path for path in paths if "!/p." not in path],
        [path for path in paths if "!/p." in path],
    )

"""Stores over buckets, as tests open them."""

from __future__ import annotations

from dolmen.stamps import Clock
from dolmen.stores.objects import ObjectsStore
from dolmen.stores.objects.bucket import Bucket
from dolmen.stores.objects.url import open_bucket
from dolmen.testing.conformance import Time


def opened(url: str, time: Time) -> ObjectsStore:
    """A store that goes by this time and sweeps only when it is told to."""
    bucket, folder = open_bucket(url)
    return ObjectsStore(bucket, folder=folder, clock=Clock(time.wall), now=time.now)


async def everything(bucket: Bucket) -> list[str]:
    """The path of every object."""
    return sorted([path for top in ("heads", "data") for path in await bucket.all(top)])

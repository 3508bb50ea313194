"""Blob stores, one module or package an engine, opened by URL.

`open_store` maps a URL's scheme to its engine and imports only that one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import cast
from urllib.parse import urlsplit

from dolmen.errors import BadSetting
from dolmen.store import BlobStore
from dolmen.stores.old_adapted import Adapted
from dolmen.stores.secrets import without_secrets

SCHEMES = {
    "memory": "dolmen.stores.memory",
    "volume": "dolmen.stores.volume",
    "http": "dolmen.stores.remote",
    "https": "dolmen.stores.remote",
    "cache": "dolmen.stores.cache",
    "memcached": "dolmen.stores.memcached",
    "redis": "dolmen.stores.redis",
    "rediss": "dolmen.stores.redis",
    "redis+cluster": "dolmen.stores.redis",
    "postgresql": "dolmen.stores.postgresql",
    "s3": "dolmen.stores.objects",
    "gs": "dolmen.stores.objects",
    "az": "dolmen.stores.objects",
    "file": "dolmen.stores.objects",
}

Opener = Callable[[str], Awaitable[BlobStore]]


async def open_store(url: str) -> BlobStore:
    """Open the store a URL names; the engine's module has an `open_url(url)`.

    Raises `BadSetting` for what is no URL or has a scheme that no engine has, and whatever
    the engine raises where it can't be opened.
    """
    try:
        scheme = urlsplit(url).scheme
    except ValueError as error:  # such as half of the brackets of an IPv6 address
        raise BadSetting(f"{without_secrets(url)!r} is no URL: {error}") from error
    module = SCHEMES.get(scheme)
    if module is None:
        known = ", ".join(f"{name}:" for name in SCHEMES)
        raise BadSetting(
            f"{without_secrets(url)!r} names no store dolmen knows: a store URL begins with one of"
            f" {known} (for example volume:/var/lib/dolmen or http://127.0.0.1:3001)"
        )
    opener: Opener = import_module(module).open_url
    store = await opener(url)
    return cast("BlobStore", Adapted(store)) if hasattr(store, "put") else store


async def open_existing(url: str, *, read_only: bool = True) -> BlobStore:
    """The same for who makes no new volume where there is none (`BadVolume`).

    A volume is opened `read_only` for who only reads: that works on a disk that is full or
    read-only, and writes nothing.
    """
    if url.startswith("volume:"):
        from dolmen.stores.volume import check_there, open_volume, path_of

        check_there(url)
        return await open_volume(path_of(url), read_only=read_only)
    return await open_store(url)

"""Requests to a bucket of S3, Google or Azure, by obstore, and its errors in dolmen's words.

Of a bucket dolmen needs only put, get, list and delete, lists that show at once what was
written, in order of the keys, and a time of modification for each object. `Client` makes these
requests and `open_client` reads the URL. The driver repeats a request that failed quickly, which
is harmless here: no key ever gets two contents, but for notes, which are sent `once`.
"""

from __future__ import annotations

import asyncio
import atexit
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from dolmen.errors import BadSetting, DolmenError, Full, OutcomeUnknown, Unavailable
from dolmen.stores.driver import Refused, driver

PAGE = 1000
"""Objects of a page of a listing: what S3 gives in one answer."""
CLOCK = "clock"
"""An object written only to learn the bucket's time."""
_AT_ONCE = 128
"""Requests under way, and so connections; the rest wait here, where no timeout counts."""
_CLOCK_AGE = 3600
_CLASSES = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}
_FORM = "write s3://BUCKET/PATH, gs://BUCKET/PATH or az://CONTAINER/PATH, perhaps with ?endpoint=…"
_OF_CLIENT = {"allow_invalid_certificates", "connect_timeout", "proxy_url", "timeout"}
_BACKOFF = {"init_backoff": timedelta(seconds=0.05), "max_backoff": timedelta(seconds=1), "base": 4}
_REPEATED = {"max_retries": 3, "retry_timeout": timedelta(seconds=10), "backoff": _BACKOFF}
"""Repeated while that is quick; not after a timeout, which is longer."""
_ONCE = {"max_retries": 0}

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_ABSENT = r"NoSuchBucket|ContainerNotFound|specified (bucket|container) does not"
_MEANINGS: tuple[tuple[str, type[DolmenError], str], ...] = (
    (r"status code: 507|QuotaExceeded|StorageFull", Full, "has no room left"),
    (_ABSENT, Refused, "is not there: create it, or correct its name or endpoint in the URL"),
    (
        r"status code: 40[13]|PermissionDenied|Unauthenticated",
        Refused,
        "refuses access: check the credentials in the environment (docs/engines.md)",
    ),
    # Where the driver asks for credentials when it was given none. It is in the clouds only.
    (
        r"169\.254\.169\.254|metadata\.google\.internal",
        Refused,
        "needs credentials, and none are in the environment (docs/engines.md)",
    ),
)
_NOT_DONE = re.compile(r"kind: Connect\b|status code: (4\d\d|503)")
_WAS_REPEATED = re.compile(r"after [1-9]\d* retries")
_QUERY = re.compile(r"\?\S*")


# The driver's threads release what they were given a moment after they answered. One that
# does so while the interpreter ends takes the process down (PyO3/pyo3-async-runtimes, issue 40).
atexit.register(time.sleep, 0.05)


class Found(NamedTuple):
    """An object in a listing; `modified` in seconds since 1970 by the bucket's clock."""

    path: str
    modified: int


def seconds() -> float:
    """Seconds since this machine started, those it was suspended included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Client:
    """Objects of a bucket by their paths. `url` is without secrets.

    `repeated` and `once` are obstore's stores of the same bucket, with and without its retries.
    Every method raises `Unavailable`, and those that write also `OutcomeUnknown` and `Full`.
    """

    def __init__(self, obstore: ModuleType, repeated: Any, once: Any, url: str) -> None:
        self._obstore, self._repeated, self._once, self.url = obstore, repeated, once, url
        self._free = asyncio.Semaphore(_AT_ONCE)
        self._closed = False
        self._clock: tuple[float, float] | None = None
        self._learning = asyncio.Lock()

    async def aclose(self) -> None:
        """Refuse every further request, and wait for those under way."""
        if not self._closed:
            self._closed = True
            for _ in range(_AT_ONCE):
                await self._free.acquire()
            for _ in range(_AT_ONCE):
                self._free.release()

    async def pages(self, folder: str, after: str | None = None) -> AsyncIterator[list[Found]]:
        """All objects below a folder, a page a request, in order; those behind the path `after`."""
        stream = self._obstore.list(self._repeated, folder, offset=after, chunk_size=PAGE)
        while True:
            async with self._asking():
                page = await anext(stream, None)
            if not page:
                return
            yield [Found(one["path"], int(one["last_modified"].timestamp())) for one in page]

    async def all(self, folder: str) -> list[Found]:
        """All objects below a folder that holds few."""
        return [found async for page in self.pages(folder) for found in page]

    async def get(self, path: str) -> memoryview | None:
        """The bytes of an object, None where none is."""
        try:
            async with self._asking():
                found = await self._obstore.get_async(self._repeated, path)
                return memoryview(await found.bytes_async())
        except FileNotFoundError:
            return None

    async def put(
        self, path: str, data: bytes | memoryview, *, once: bool = False, mode: str = "overwrite"
    ) -> bool:
        """Store an object; returns False where `mode` is "create" and there was one.

        `once` is for a path that gets other content later: a late copy would undo a newer one.
        """
        try:
            async with self._asking(wrote=True):
                store = self._once if once else self._repeated
                await self._obstore.put_async(store, path, data, use_multipart=False, mode=mode)
        except FileExistsError:
            return False
        return True

    async def delete(self, paths: Sequence[str]) -> None:
        """Delete objects, in any order. What is not there is fine."""
        for first in range(0, len(paths), PAGE):
            await self._delete(list(paths[first : first + PAGE]))

    async def _delete(self, page: list[str], tries: int = 3) -> None:
        try:
            async with self._asking(wrote=True):
                await self._obstore.delete_async(self._repeated, page)
        except FileNotFoundError:
            if len(page) > 1:  # the others may not have been tried
                for path in page:
                    await self._delete([path])
        except OutcomeUnknown:  # the driver does not repeat this where the connection was closed
            if tries == 1:
                raise
            await asyncio.sleep(0.2)
            await self._delete(page, tries - 1)

    async def modified(self, path: str) -> float | None:
        """When an object was written, in seconds since 1970 by the bucket's clock."""
        try:
            async with self._asking():
                found = await self._obstore.head_async(self._repeated, path)
        except FileNotFoundError:
            return None
        when: float = found["last_modified"].timestamp()
        return when

    async def now(self, *, fresh: bool = False) -> float:
        """The bucket's own time, in seconds since 1970, and never ahead of it.

        Learned from an object written for it, at most an hour ago unless it has to be `fresh`.
        """
        async with self._learning:
            if fresh or self._clock is None or seconds() - self._clock[1] > _CLOCK_AGE:
                await self.put(CLOCK, b"")
                modified = await self.modified(CLOCK)
                if modified is None:
                    raise Unavailable(f"{self.url} does not show at once what was written")
                self._clock = modified, seconds()
            modified, since = self._clock
        return modified + seconds() - since

    @asynccontextmanager
    async def _asking(self, *, wrote: bool = False) -> AsyncIterator[None]:
        """Around a request; raises `FileNotFoundError` and `FileExistsError` besides."""
        exceptions = self._obstore.exceptions
        try:
            async with self._free:
                if self._closed:
                    raise Unavailable("the store is closed")
                yield
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
            raise FileExistsError(str(error)) from error
        except (exceptions.BaseError, OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError) and not re.search(_ABSENT, str(error)):
                raise
            raise self._translated(f"{type(error).__name__}: {error}", wrote=wrote) from error

    def _translated(self, said: str, *, wrote: bool) -> DolmenError:
        """The driver's error as one of dolmen's. The driver's messages have pages of detail."""
        first = _QUERY.sub("", said.partition("\n")[0].partition(": ")[2])
        cause = (_CODE.findall(said) or _STATUS.findall(said) or [first])[0]
        for words, meaning, what in _MEANINGS:
            if re.search(words, said):
                return meaning(f"{self.url} {what} ({cause})")
        if "kind: Connect" in said:
            cause = "it can't be reached, nothing answers at its endpoint"
        if wrote and (_WAS_REPEATED.search(said) or not _NOT_DONE.search(said)):
            return OutcomeUnknown(f"{self.url} did not say whether it wrote: {cause}")
        return Unavailable(f"{self.url} could not be asked: {cause}")


def open_client(url: str) -> Client:
    """The bucket of a URL; raises `BadSetting`.

    Settings of the driver are parameters of the URL, as `?endpoint=…&region=…`, or come from
    the environment variables it knows; docs/engines.md lists those that matter.
    """
    obstore = driver("obstore", "objects")
    stores: Any = driver("obstore.store", "objects")
    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if not parts.netloc or "@" in parts.netloc or parts.fragment:
        raise BadSetting(f"{shown!r} names no bucket: {_FORM}")
    settings = dict(parse_qsl(parts.query, keep_blank_values=True))
    # Plain http is spoken where an endpoint says so, and nowhere else.
    client: dict[str, Any] = {"allow_http": True}
    client |= {key: settings.pop(key) for key in _OF_CLIENT & settings.keys()}
    if "allow_invalid_certificates" in client:
        client["allow_invalid_certificates"] = client["allow_invalid_certificates"] == "true"
    try:
        repeated, once = (
            getattr(stores, _CLASSES[parts.scheme])(
                parts.netloc,
                prefix=unquote(parts.path).strip("/") or None,
                config=settings,
                client_options=client,
                retry_config=retries,
            )
            for retries in (_REPEATED, _ONCE)
        )
    except (obstore.exceptions.BaseError, OSError, ValueError, TypeError) as error:
        cause = _QUERY.sub("", str(error).partition("\n")[0])
        raise BadSetting(f"{shown!r} can't be used: {cause}; {_FORM}") from error
    return Client(obstore, repeated, once, shown)

"""The client for programs on an event loop."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self
from urllib.parse import quote, urlencode, urlsplit

from dolmen.client.objects import ObjectInfo, Uploaded, decode_metadata, metadata_headers
from dolmen.errors import BadContent, BadSetting, Corrupt, InvalidName, OutcomeUnknown, Unavailable
from dolmen.http import Client as Connections
from dolmen.http import ClientResponse, Streamed, Timeouts
from dolmen.names import id_hasher, is_object_id
from dolmen.stores.responses import error_of, object_of

DEFAULT_SERVER = "http://127.0.0.1:9991"
_PATIENT = Timeouts(first_byte=600.0)  # a large upload is answered when its last copy is on disk


class Download:
    """An object, or a range of it, as it comes. `size` is the number of bytes that will.

    Iterating gives the bytes. Of a whole object they are hashed on the way, and
    if they are not what the id stands for the iteration ends with `Corrupt`
    instead of ending well: whoever used them must throw them away.
    """

    def __init__(self, object_id: str, response: ClientResponse, *, verify: bool) -> None:
        self.id = object_id
        self.size = response.body.length
        self.info = ObjectInfo(object_id, self.size or 0, decode_metadata(response.headers.items()))
        self._body = response.body
        self._verify = verify

    async def __aiter__(self) -> AsyncIterator[bytes]:
        hasher = id_hasher(self.id)
        async for piece in self._body:
            if self._verify:
                hasher.update(piece)
            yield piece
        if self._verify and hasher.hexdigest() != self.id:
            raise Corrupt(f"what came for {self.id} has the digest {hasher.hexdigest()}")


class AsyncClient:
    """An API server. Connections are made when needed, and closed by `aclose` or `async with`."""

    def __init__(self, server: str = DEFAULT_SERVER) -> None:
        parts = urlsplit(server if "://" in server else f"http://{server}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.path in ("", "/")
        if not usable or port == -1 or parts.hostname is None:
            raise BadSetting(f"{server!r} is no API server's address: write http://HOST:PORT")
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        port = port or (443 if tls else 80)
        self._connections = Connections(parts.hostname, port, tls=tls, timeouts=_PATIENT)
        self.server = f"{parts.hostname}:{port}"

    async def upload(
        self,
        data: bytes | memoryview | AsyncIterator[bytes],
        *,
        size: int | None = None,
        file_name: str | None = None,
        mime_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        expected_id: str | None = None,
    ) -> Uploaded:
        """Store an object; `size` is the length of an iterator's data, where it is known.

        With `expected_id` the server refuses other content (`BadContent`) and need
        not be sent what it has. Otherwise the id it answers is compared with the
        SHA-256 of what was sent.
        """
        headers = metadata_headers(file_name, mime_type, metadata or {})
        method, target = "POST", "/upload"
        if expected_id is not None:
            method, target = "PUT", f"/objects/{_checked(expected_id)}"
        hasher = hashlib.sha256()
        body: bytes | memoryview | Streamed
        if isinstance(data, bytes | memoryview):
            hasher.update(data)
            body = data
        else:
            body = Streamed(_hashing(data, hasher), size)
        response = await self._ask(method, target, headers, body)
        said = await object_of(self.server, response, OutcomeUnknown)
        stored = Uploaded(said["id"], said["size"], said.get("copies", 1))
        if expected_id is None and len(stored.id) == 64 and stored.id != hasher.hexdigest():
            raise BadContent(
                f"{self.server} stored {stored.id}, but what was sent has the digest "
                f"{hasher.hexdigest()}: it was changed on the way; upload it again"
            )
        return stored

    @asynccontextmanager
    async def download(
        self, object_id: str, *, byte_range: tuple[int, int] | None = None
    ) -> AsyncIterator[Download]:
        """An object to read inside `async with`; `byte_range` is its first byte and the one after.

        Raises `NotFound`, or `Unavailable` when a server that may have it can't be asked.
        """
        headers = []
        if byte_range is not None:
            headers.append((b"Range", b"bytes=%d-%d" % (byte_range[0], byte_range[1] - 1)))
        response = await self._ask("GET", f"/fetch/{_checked(object_id)}", headers)
        async with response:
            yield Download(object_id, response, verify=response.status == 200)

    async def stat(self, object_id: str) -> ObjectInfo:
        """What is known of an object, and where its copies are; raises `NotFound`."""
        said = await self._get(f"/objects/{_checked(object_id)}")
        told = ("size", "metadata", "copies", "wanted", "servers")
        return ObjectInfo(object_id, *(said[what] for what in told))

    async def list(self) -> AsyncIterator[str]:
        """The id of every object, once each, in pages behind the scenes."""
        target = "/objects"
        while True:
            said = await self._get(target)
            for object_id in said["ids"]:
                yield object_id
            if said["next"] is None:
                return
            target = f"/objects?{urlencode({'cursor': said['next']})}"

    async def delete(self, object_id: str) -> None:
        """Delete an object everywhere. Deleting what is not there is no error."""
        await self._ask("DELETE", f"/objects/{_checked(object_id)}")

    async def cluster(self) -> dict[str, Any]:
        """How the servers behind the API server are."""
        return await self._get("/cluster")

    async def _get(self, target: str) -> dict[str, Any]:
        return await object_of(self.server, await self._ask("GET", target), Unavailable)

    async def _ask(
        self,
        method: str,
        target: str,
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes | memoryview | Streamed | None = None,
    ) -> ClientResponse:
        response = await self._connections.request(
            method, target, headers, body, expect_continue=isinstance(body, Streamed)
        )
        if response.status >= 400:
            async with response:
                raise await error_of(self.server, response)
        return response

    async def aclose(self) -> None:
        """Close every connection."""
        await self._connections.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _checked(object_id: str) -> str:
    if not is_object_id(object_id):
        raise InvalidName(
            f"{object_id[:140]!r} is no object's id: an id is 64 (or 40) lower-case hex digits"
        )
    return quote(object_id)


async def _hashing(data: AsyncIterator[bytes], hasher: hashlib._Hash) -> AsyncIterator[bytes]:
    async for piece in data:
        hasher.update(piece)
        yield piece

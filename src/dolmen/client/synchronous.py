"""The client for plain programs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Self

from dolmen.client.asynchronous import DEFAULT_SERVER, AsyncClient
from dolmen.client.files import download_file, upload_file
from dolmen.client.objects import ObjectInfo, Uploaded


class Client:
    """An API server, one call at a time; close it, or use it in `with`."""

    def __init__(self, server: str = DEFAULT_SERVER) -> None:
        self._client = AsyncClient(server)
        self._ending = ExitStack()
        self._runner = self._ending.enter_context(asyncio.Runner())
        self._ending.callback(lambda: self._runner.run(self._client.aclose()))

    def upload(
        self,
        data: bytes,
        *,
        file_name: str | None = None,
        mime_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        expected_id: str | None = None,
    ) -> Uploaded:
        """See `AsyncClient.upload`."""
        return self._runner.run(
            self._client.upload(
                data,
                file_name=file_name,
                mime_type=mime_type,
                metadata=metadata,
                expected_id=expected_id,
            )
        )

    def upload_file(self, path: str) -> Uploaded:
        """See `upload_file`."""
        return self._runner.run(upload_file(self._client, path))

    def download(self, object_id: str, *, byte_range: tuple[int, int] | None = None) -> bytes:
        """An object, or a range of it, in memory; for large ones there is `download_file`."""

        async def whole() -> bytes:
            async with self._client.download(object_id, byte_range=byte_range) as download:
                return b"".join([piece async for piece in download])

        return self._runner.run(whole())

    def download_file(self, object_id: str, path: str | None = None, *, force: bool = False) -> str:
        """See `download_file`."""
        return self._runner.run(download_file(self._client, object_id, path, force=force))

    def stat(self, object_id: str) -> ObjectInfo:
        """See `AsyncClient.stat`."""
        return self._runner.run(self._client.stat(object_id))

    def list(self) -> Iterator[str]:
        """See `AsyncClient.list`."""
        listing = aiter(self._client.list())

        async def following() -> str | None:
            return await anext(listing, None)

        while (object_id := self._runner.run(following())) is not None:
            yield object_id

    def delete(self, object_id: str) -> None:
        """See `AsyncClient.delete`."""
        self._runner.run(self._client.delete(object_id))

    def close(self) -> None:
        """Close every connection. May be called twice."""
        self._ending.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

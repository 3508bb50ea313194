"""What a Python program imports to use an API server.

`Client` for plain programs, `AsyncClient` for those on an event loop:

    with Client("http://127.0.0.1:9991") as store:
        stored = store.upload(b"hello")
        assert store.download(stored.id) == b"hello"

Every download is checked against the object's id, the digest of its content.
Errors are those of `dolmen.errors`.
"""

from __future__ import annotations

from dolmen.client.asynchronous import AsyncClient, Download
from dolmen.client.files import download_file, upload_file
from dolmen.client.objects import ObjectInfo, Uploaded
from dolmen.client.synchronous import Client

__all__ = [
    "AsyncClient",
    "Client",
    "Download",
    "ObjectInfo",
    "Uploaded",
    "download_file",
    "upload_file",
]

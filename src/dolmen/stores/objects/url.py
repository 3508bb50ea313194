"""`s3://BUCKET[/PATH]`, `gs://BUCKET[/PATH]`, `az://CONTAINER[/PATH]`, `file:///FOLDER`.

Settings of the driver (obstore) are parameters of the URL, as `?endpoint=…&region=…`, or come
from the environment variables it knows; `docs/engines.md` lists those that matter.
"""

from __future__ import annotations

import atexit
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from dolmen.errors import BadSetting, Unavailable
from dolmen.stores.driver import driver
from dolmen.stores.objects.bucket import Bucket, Refused
from dolmen.stores.objects.store import ObjectsStore

_CLASSES = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}
_FORM = (
    "write s3://BUCKET/PATH, gs://BUCKET/PATH or az://CONTAINER/PATH, perhaps with ?endpoint=…,"
    " or file:///FOLDER"
)
_OF_CLIENT = {"allow_invalid_certificates", "connect_timeout", "proxy_url", "timeout"}
_READING = {"max_retries": 2, "retry_timeout": timedelta(seconds=10)}
"""Reads are asked again while that is quick; not after a timeout, which is longer."""
_WRITING = {"max_retries": 0}
"""Whoever writes decides what to do about a write that may have happened."""

# The driver's threads let go of what they were given a moment after they answered. One that
# does so while the interpreter ends takes the process down (PyO3/pyo3-async-runtimes, issue 40).
atexit.register(time.sleep, 0.05)


async def open_url(url: str) -> ObjectsStore:
    """The store in the bucket or folder that a URL names.

    One that can't be reached now may come up later; one that is not there, or not for the
    credentials given, raises `BadSetting`.
    """
    bucket, folder = open_bucket(url)
    try:
        await bucket.all("sweeps")
    except Refused as error:
        raise BadSetting(str(error)) from error
    except Unavailable:
        pass
    store = ObjectsStore(bucket, folder=folder)
    store.sweeper.start()
    return store


def open_bucket(url: str) -> tuple[Bucket, Path | None]:
    """The bucket of a URL, and its folder if it is one; raises `BadSetting`."""
    obstore = driver("obstore", "objects")
    stores: Any = driver("obstore.store", "objects")
    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    faults = (obstore.exceptions.BaseError, OSError, ValueError, TypeError)
    try:
        if parts.scheme == "file":
            folder = _folder_of(parts, shown)
            local = stores.LocalStore(folder, automatic_cleanup=True)
            return Bucket(obstore, local, local, shown, ordered=False), folder
        if not parts.netloc or "@" in parts.netloc or parts.fragment:
            raise BadSetting(f"{shown!r} names no bucket: {_FORM}")
        settings = dict(parse_qsl(parts.query, keep_blank_values=True))
        # Plain http is spoken where an endpoint says so, and nowhere else.
        client: dict[str, Any] = {"allow_http": True}
        client |= {key: settings.pop(key) for key in _OF_CLIENT & settings.keys()}
        if "allow_invalid_certificates" in client:
            client["allow_invalid_certificates"] = client["allow_invalid_certificates"] == "true"
        reading, writing = (
            getattr(stores, _CLASSES[parts.scheme])(
                parts.netloc,
                prefix=unquote(parts.path).strip("/") or None,
                config=settings,
                client_options=client,
                retry_config=retries,
            )
            for retries in (_READING, _WRITING)
        )
    except faults as error:
        said = str(error).partition("\n")[0]
        raise BadSetting(f"{shown!r} can't be used: {said}; {_FORM}") from error
    return Bucket(obstore, reading, writing, shown, ordered=True), None


def _folder_of(parts: SplitResult, shown: str) -> Path:
    """The folder of a `file://` URL, made if only its last name is missing."""
    if parts.netloc or parts.query or parts.fragment or not parts.path.startswith("/"):
        raise BadSetting(f"{shown!r} names no folder: write file:///FOLDER")
    folder = Path(unquote(parts.path))
    if not folder.is_dir():
        os.mkdir(folder)
    return folder

"""Answers about many blobs: a line of JSON each, sent in pages while they come."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import AsyncIterator

from dolmen.errors import DolmenError, NotFound
from dolmen.http.messages import Response, Streamed
from dolmen.record import Kind
from dolmen.servers.orders import PAGE
from dolmen.stamps import format_stamp
from dolmen.store import BlobInfo, Failed, Outcome, Put

NDJSON = b"application/x-ndjson"
_KINDS = {kind.value: kind.name.lower() for kind in Kind}


def lines(items: AsyncIterator[str], *, together: int = PAGE) -> Response:
    """An answer of these lines, so many sent `together`."""

    async def encoded() -> AsyncIterator[bytes]:
        gathered: list[str] = []
        async for item in items:
            gathered.append(item)
            if len(gathered) == together:
                yield "\n".join([*gathered, ""]).encode()
                gathered = []
        if gathered:
            yield "\n".join([*gathered, ""]).encode()

    return Response(200, [(b"Content-Type", NDJSON)], Streamed(encoded()))


async def listed(listing: AsyncIterator[BlobInfo], limit: int) -> AsyncIterator[str]:
    """A line for each of the first `limit` blobs, and one that says where the next page begins."""
    last = ""
    async for info in listing:
        if limit == 0:
            yield json.dumps({"next": last})
            return
        yield entry(info)
        last = info.name
        limit -= 1


def entry(info: BlobInfo) -> str:
    """A blob as a line of a listing. A name that is stored needs no quoting."""
    meta = f', "metadata": "{b64encode(info.metadata).decode()}"' if info.metadata else ""
    return (
        f'{{"name": "{info.name}", "size": {info.size}, "kind": "{_KINDS[info.kind]}", '
        f'"stamp": "{info.stamp:016x}", "checksum": "{info.checksum.hex()}", '
        f'"arrived": {info.arrived}{meta}}}'
    )


def written(name: str, put: Put) -> str:
    """What became of a write under a good name."""
    return f'{{"name": "{name}", "status": "{put.outcome}", "stamp": "{put.stamp:016x}"}}'


class Told:
    """The lines that answer a stream of records.

    One for each that was superseded or refused, with its name; between them one for
    every run of records that were all created, or all unchanged, with their number. (The
    stamp that stands is then the one that each was sent with.)
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.count = 0
        self._lines: list[str] = []
        self._run: Outcome | None = None
        self._length = 0

    def add(self, result: Put | Failed) -> None:
        """Tell what became of the next one."""
        run = None if isinstance(result, Failed) else result.outcome
        if run is not self._run or run is Outcome.SUPERSEDED:
            self._end_run()
            self._run = run
        if isinstance(result, Failed):
            self._lines.append(refused(self.names[self.count], result.error))
        elif run is Outcome.SUPERSEDED:
            self._lines.append(written(self.names[self.count], result))
        else:
            self._length += 1
        self.count += 1

    def _end_run(self) -> None:
        if self._length:
            self._lines.append(f'{{"status": "{self._run}", "count": {self._length}}}')
            self._length = 0

    def broke(self, error: DolmenError) -> None:
        """Tell why nothing is said of the rest."""
        self._end_run()
        self._lines.append(refused("", error))

    def lines(self) -> bytes:
        """All of them."""
        self._end_run()
        return "\n".join([*self._lines, ""]).encode()


def refused(name: str, error: DolmenError) -> str:
    """Why a write did not happen. The name may be anything."""
    said: dict[str, object] = {
        "name": name,
        "status": "refused",
        "error": type(error).__name__,
        "detail": str(error),
    }
    if isinstance(error, NotFound) and error.stamp:
        said["stamp"] = format_stamp(error.stamp)
    return json.dumps(said)


async def array(listing: AsyncIterator[BlobInfo], limit: int | None) -> AsyncIterator[bytes]:
    """Names as one JSON array, in pieces."""
    gathered: list[str] = []
    opening = "["
    async for info in listing:
        if limit is not None:
            if limit == 0:
                break
            limit -= 1
        gathered.append(f'"{info.name}"')
        if len(gathered) == PAGE:
            yield (opening + ",".join(gathered)).encode()
            gathered, opening = [], ","
    yield (opening + ",".join(gathered) if gathered or opening == "[" else "").encode() + b"]\n"

"""Small blobs on their way to a blob server, many in one request."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from dolmen import metadata
from dolmen.errors import DolmenError, OutcomeUnknown
from dolmen.http.calls import ClientResponse
from dolmen.names import check_name
from dolmen.store import Blob, Failed, Put
from dolmen.stores import records
from dolmen.stores.wire import lines_of, put_of

NAMES = 2048
"""How many blobs are asked for or sent, or partitions listed, in one request."""
BYTES = 8 << 20
"""How many bytes of small blobs go in one request."""
Ask = Callable[..., Awaitable[ClientResponse]]
"""Sends a request: method, target, headers, body; raises the error of a refusal."""


async def batches(blobs: AsyncIterator[Blob]) -> AsyncIterator[list[Blob] | Blob]:
    """Small blobs in lists of bounded size, large ones alone, in order."""
    batch: list[Blob] = []
    size = 0
    async for blob in blobs:
        if blob.payload.whole is None:
            if batch:
                yield batch
                batch, size = [], 0
            yield blob
            continue
        batch.append(blob)
        size += blob.payload.size
        if len(batch) >= NAMES or size >= BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


async def send(ask: Ask, address: str, batch: Sequence[Blob]) -> Sequence[Put | Failed]:
    """Put small blobs in one request; returns what became of each, in order."""
    results: dict[int, Put | Failed] = {}
    sent: list[int] = []
    for number, blob in enumerate(batch):
        try:  # here, for a single one that is not allowed would fail the whole stream there
            check_name(blob.info.name)
            metadata.check(blob.info.metadata)
            sent.append(number)
        except DolmenError as error:
            results[number] = Failed(blob.info.name, error)

    async def each() -> AsyncIterator[Blob | Failed]:
        for number in sent:
            yield batch[number]

    body = b"".join([piece async for piece in records.encode(each())])
    waiting = deque(sent)
    try:
        response = await ask("POST", "/records", (), body)
        async for line in lines_of(response):
            if waiting:
                number = waiting.popleft()
                results[number] = _result(batch[number].info.name, line)
    except DolmenError as error:
        results |= {number: Failed(batch[number].info.name, error) for number in waiting}
    else:
        for number in waiting:
            name = batch[number].info.name
            unknown = OutcomeUnknown(f"{address} said nothing of {name}")
            results[number] = Failed(name, unknown)
    return [results[number] for number in range(len(batch))]


def _result(name: str, line: dict[str, Any]) -> Put | Failed:
    try:
        return put_of(line)
    except DolmenError as error:
        return Failed(name, error)

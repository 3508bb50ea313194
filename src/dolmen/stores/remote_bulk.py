"""Many blobs at once to and from a dolmen blob server: pages of a listing, streams of records.

What comes is only believed as far as it answers what was asked: names in order, one
answer each. A server that gives anything else, or nothing, is `Unavailable`.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

from dolmen.errors import DolmenError, OutcomeUnknown, Unavailable
from dolmen.http.client_connection import ClientResponse
from dolmen.names import partition_of
from dolmen.payload import Piece
from dolmen.store import ALL_PARTITIONS, Blob, BlobInfo, BlobStore, Failed, Put
from dolmen.stores import records
from dolmen.stores.bulk import check_travels, put_any
from dolmen.stores.wire import lines_of, listed, puts_of, told

_PAGE = 10_000
_NAMES = 2048
"""How many blobs are asked for, or partitions listed, in one request."""
_BATCH = 8 << 20
"""How many bytes of small blobs go in one request."""
_LARGE = 1 << 20
"""From this size on a blob is put by itself: its bytes are copied less often than in a record."""
_UNDER_WAY = 2
"""How many batches, or blobs by themselves, are written at once."""


Ask = Callable[..., Awaitable[ClientResponse]]
"""Sends a request (method, target, headers, body, `reads`); raises the error of its answer."""


async def list_all(
    ask: Ask, partitions: Iterable[int], after: str | None, prefix: str, *, tombstones: bool
) -> AsyncIterator[BlobInfo]:
    """What stands in these partitions, in list order."""
    wanted = list(partitions)
    everything = len(wanted) == len(ALL_PARTITIONS)
    last = (partition_of(after), after) if after is not None else (-1, "")
    for first in range(0, 1 if everything else len(wanted), _NAMES):
        order: dict[str, object] = {"prefix": prefix, "tombstones": tombstones, "limit": _PAGE}
        if not everything:
            order["partitions"] = wanted[first : first + _NAMES]
        cursor: object = after
        while True:
            if cursor is not None:
                order["cursor"] = cursor
            before, cursor = last, None
            body = json.dumps(order).encode()
            async with await ask("POST", "/blobs/list", (), body, reads=True) as response:
                async for line in lines_of(response, reads=True):
                    if "next" in line:
                        cursor = line["next"]
                        continue
                    info = listed(line)
                    place = (partition_of(info.name), info.name)
                    if place <= last:
                        raise Unavailable(f"a listing is not in order: {last[1]}, then {info.name}")
                    last = place
                    yield info
            if cursor is None:
                break
            if last == before:
                raise Unavailable(f"a listing goes nowhere from {last[1]!r} on")


async def verify_all(
    ask: Ask, address: str, names: Sequence[str]
) -> AsyncIterator[BlobInfo | Failed]:
    """How these blobs are, as the server finds by reading them."""
    for first in range(0, len(names), _NAMES):
        some = names[first : first + _NAMES]
        body = json.dumps({"names": some}).encode()
        left = iter(some)
        async with await ask("POST", "/blobs/verify", (), body, reads=True) as response:
            async for line in lines_of(response, reads=True):
                name = next(left, None)
                if name is None or line.get("name") != name:
                    raise Unavailable(f"{address} tells of other blobs than it was asked to verify")
                if line.get("status") == "refused":
                    yield Failed(name, told(line))
                else:
                    yield listed(line)
        if (name := next(left, None)) is not None:
            raise Unavailable(f"{address} did not say how {name} is")


async def read_many(ask: Ask, address: str, names: Sequence[str]) -> AsyncIterator[Blob | Failed]:
    """An answer for each name, in their order."""
    done = 0
    barren = False
    while done < len(names):
        begin, stop = done, min(done + _NAMES, len(names))
        body = json.dumps({"names": [*names[begin:stop]]}).encode()
        failure: DolmenError = Unavailable(f"{address} said nothing of {names[done]}")
        astray = False
        async with await ask("POST", "/records/read", (), body, reads=True) as response:
            try:
                async for answer in records.decode(aiter(response.body)):
                    name = answer.name if isinstance(answer, Failed) else answer.info.name
                    if done == stop or name != names[done]:
                        failure = Unavailable(
                            f"{address} sent {name}, which is not what comes next"
                        )
                        astray = True
                        break
                    done += 1
                    yield answer
            except DolmenError as error:
                failure = error
        if astray or (barren and done == begin):
            raise failure
        barren = done == begin
        if barren:  # it may be this one that can't be read to its end
            yield Failed(names[done], failure)
            done += 1


async def write_many(
    store: BlobStore, ask: Ask, blobs: AsyncIterator[Blob]
) -> AsyncIterator[Put | Failed]:
    """An answer for each blob, in their order; what is streamed is put while nothing else is."""
    under_way: deque[asyncio.Task[Sequence[Put | Failed]]] = deque()
    try:
        async for batch in _batches(blobs):
            streamed = batch[0].payload.whole is None
            if not streamed:
                under_way.append(asyncio.create_task(_written(store, ask, batch)))
            while under_way and (streamed or len(under_way) == _UNDER_WAY):
                for answer in await under_way[0]:
                    yield answer
                under_way.popleft()
            if streamed:
                yield await put_any(store, batch[0])
        while under_way:
            for answer in await under_way[0]:
                yield answer
            under_way.popleft()
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


async def _written(store: BlobStore, ask: Ask, batch: Sequence[Blob]) -> Sequence[Put | Failed]:
    if batch[0].payload.size >= _LARGE:
        return [await put_any(store, batch[0])]
    return await _send(ask, batch)


async def _batches(blobs: AsyncIterator[Blob]) -> AsyncIterator[list[Blob]]:
    """Small blobs in lists of bounded size, large ones alone, in order."""
    batch: list[Blob] = []
    size = 0
    async for blob in blobs:
        if blob.payload.whole is None or blob.payload.size >= _LARGE:
            if batch:
                yield batch
                batch, size = [], 0
            yield [blob]
            continue
        batch.append(blob)
        size += blob.payload.size
        if len(batch) >= _NAMES or size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


async def _send(ask: Ask, batch: Sequence[Blob]) -> Sequence[Put | Failed]:
    refused: dict[int, Failed] = {}
    sent: list[BlobInfo] = []
    framed: list[Piece] = []
    for number, blob in enumerate(batch):
        try:  # here, for a single one that is not allowed would fail the whole stream there
            check_travels(blob)
        except DolmenError as error:
            refused[number] = Failed(blob.info.name, error)
        else:
            sent.append(blob.info)
            framed += records.frame(blob)
    answers: list[Put | Failed] = []
    failure: DolmenError = OutcomeUnknown("the answer does not tell of every blob that was sent")
    try:
        async with await ask("POST", "/records", (), b"".join(framed)) as response:
            async for line in lines_of(response, reads=False):
                answers += puts_of(line, sent, len(answers))
    except DolmenError as error:
        failure = error
    answers += [Failed(info.name, failure) for info in sent[len(answers) :]]
    for number, failed in refused.items():  # ascending
        answers.insert(number, failed)
    return answers

"""What dolmen servers say to each other about many blobs: entries and answers.

`docs/wire-api.md` says which request uses which.

An **entry** is the head of a record (`dolmen.stores.records`), whose length is the blob's size,
with nothing behind it. The last is a mark: its word is the name behind which the next page begins,
or empty at the end. A stream without it was cut.

An **answer** to a write is a line: the outcome and the stamp that is now current; or for a write
that failed, the error's class, the stamp of the tombstone behind a `NotFound`, the message in JSON.

Read first: `dolmen.stores.records`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator

from dolmen.errors import Corrupt, DolmenError, from_text
from dolmen.payload import Piece
from dolmen.record import HEADER_SIZE, NOBODY, Kind, decode_head, head_size
from dolmen.stamps import format_stamp, parse_stamp
from dolmen.store import BlobInfo, Failed, Outcome, Put
from dolmen.stores.records import GATHER, Mark, head_of, item_of, sound_records
from dolmen.stores.responses import NONSENSE

_OUTCOMES = {outcome.value: outcome for outcome in Outcome}


async def encode_entries(
    items: AsyncIterator[BlobInfo | Failed], limit: int | None = None, *, together: int = GATHER
) -> AsyncIterator[bytes]:
    """The entries of these, at most `limit`, in pieces of about `together` bytes."""
    gathered = bytearray()
    last, left, following = "", limit, ""
    async for item in items:
        if left == 0:
            following = last
            break
        gathered += head_of(item)
        last = item.name
        if left is not None:
            left -= 1
        if len(gathered) >= together:
            yield bytes(gathered)
            gathered = bytearray()
    yield bytes(gathered + head_of(Mark(following, {})))


async def decode_entries(pieces: AsyncIterator[Piece]) -> AsyncIterator[BlobInfo | Failed | Mark]:
    """The entries that come in pieces; the mark is the last one.

    Raises `Corrupt` for what is not a stream of entries, and for one that was cut.
    """
    rest, ended = b"", False
    async for piece in pieces:
        buffer, at = rest + bytes(piece), 0
        while len(buffer) - at >= HEADER_SIZE and not ended:
            for fields, _, _, end in sound_records(buffer, at, NOBODY, False):
                at, info = end, BlobInfo(*fields)
                if info.kind == Kind.TOUCH:
                    raise Corrupt(f"the entry of {info.name} is of no blob")
                yield info
            if len(buffer) - at < HEADER_SIZE or len(buffer) < at + head_size(buffer, at):
                break
            item = item_of(decode_head(buffer, at))
            if isinstance(item, BlobInfo):
                raise Corrupt(f"the entry of {item.name} has an owner")
            at += head_size(buffer, at)
            ended = isinstance(item, Mark)
            yield item
        rest = buffer[at:]
        if ended and rest:
            raise Corrupt("something follows the end of the answer")
    if not ended:
        raise Corrupt("the answer breaks off before its end")


def encode_answer(answer: Put | Failed) -> bytes:
    """The answer to one write."""
    if isinstance(answer, Put):
        return b"%b %016x\n" % (answer.outcome.encode(), answer.stamp)
    error = answer.error
    stamp = format_stamp(getattr(error, "stamp", 0))
    return f"{type(error).__name__} {stamp} {json.dumps(str(error))}\n".encode()


def decode_answers(encoded: bytes) -> Iterator[Put | DolmenError]:
    """The answers to writes, in their order; raises `Corrupt` behind the last whole one."""
    *lines, rest = str(encoded, "utf-8", "replace").split("\n")
    for line in lines:
        word, _, said = line.partition(" ")
        try:
            if outcome := _OUTCOMES.get(word):
                answer: Put | DolmenError = Put(outcome, parse_stamp(said))
            else:
                stamp, _, message = said.partition(" ")
                answer = from_text(f"{word}\n{json.loads(message)}", parse_stamp(stamp))
        except NONSENSE as error:
            raise Corrupt(f"the answer to a write makes no sense: {error!r:.200}") from error
        yield answer
    if rest:
        raise Corrupt("the answer to a write breaks off")

"""*Recent*: what is on disk in the segments and not yet in the durable index.

A second LMDB environment, shared by the processes of a volume and opened without
sync, because it is only a view of the segments' tails: whoever opens the volume
first makes it anew and fills it by scanning. Four tables: `blobs` (entries,
visible to readers), `claims` (names a commit under way has decided about, and the
segment of who decided), `segments` (how far each active segment is visible, and
whether its writer is through with it), `facts` (the next sequence and number).
"""

from __future__ import annotations

import struct
from types import TracebackType
from typing import Any, NamedTuple, Self

from dolmen.stores.volume.disk import Disk

_REACH = struct.Struct("<QQ?")
_NUMBER = struct.Struct("<Q")
_SEQUENCE = b"sequence"
_SEGMENT = b"segment"


class Reach(NamedTuple):
    """How far a segment is visible: below `settled` everything is, or never will be.

    Up to `end` it has been handed out; extents in between are still being filled.
    `finished` when its writer will add nothing more.
    """

    settled: int
    end: int
    finished: bool


class Recent:
    """The environment at a path."""

    def __init__(self, disk: Disk, path: str) -> None:
        self.env = disk.open_index(path, durable=False)
        self.env.reader_check()
        self.blobs = self.env.open_db(b"blobs")
        self._claims = self.env.open_db(b"claims")
        self._segments = self.env.open_db(b"segments")
        self._facts = self.env.open_db(b"facts")

    def get(self, key: bytes) -> bytes | None:
        """The packed entry under a key."""
        value: bytes | None = self.env.begin(db=self.blobs).get(key)
        return value

    def get_many(self, keys: list[bytes]) -> dict[bytes, bytes]:
        """The packed entries under those of the keys that have one."""
        with self.env.begin() as transaction, transaction.cursor(db=self.blobs) as cursor:
            return dict(cursor.getmulti(keys))

    def begin(self, *, sequence: int, number: int) -> None:
        """Set the next sequence and the next segment's number of a new environment."""
        with self.env.begin(write=True, db=self._facts) as transaction:
            transaction.put(_SEQUENCE, _NUMBER.pack(sequence))
            transaction.put(_SEGMENT, _NUMBER.pack(number))

    def take_number(self) -> tuple[int, int]:
        """A number no other segment of this volume has, and a sequence all its records are above.

        Or at: they are decided later, and sequences only rise.
        """
        with self.env.begin(write=True, db=self._facts) as transaction:
            number: int = _NUMBER.unpack(transaction.get(_SEGMENT, b""))[0]
            transaction.put(_SEGMENT, _NUMBER.pack(number + 1))
            floor: int = _NUMBER.unpack(transaction.get(_SEQUENCE, b""))[0]
        return number, floor

    def change(self) -> Change:
        """Begin to change recent; see `Change`."""
        return Change(
            self.env.begin(write=True), self.blobs, self._claims, self._segments, self._facts
        )

    def count(self) -> int:
        """How many entries await the merge."""
        with self.env.begin() as transaction:
            entries: int = transaction.stat(self.blobs)["entries"]
        return entries

    def page(self, start: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Up to `limit` keys and values from `start` on, in order."""
        found: list[tuple[bytes, bytes]] = []
        with self.env.begin(db=self.blobs) as transaction, transaction.cursor() as cursor:
            if cursor.set_range(start):
                for pair in cursor.iternext():
                    found.append(pair)
                    if len(found) == limit:
                        break
        return found

    def drop(self, merged: list[tuple[bytes, bytes]]) -> None:
        """Forget entries that are in the durable index now, unless they changed since."""
        with self.env.begin(write=True, db=self.blobs) as transaction:
            for key, value in merged:
                if transaction.get(key) == value:
                    transaction.delete(key)

    def segments(self) -> dict[int, Reach]:
        """How far each active segment is visible."""
        return self.state()[0]

    def state(self) -> tuple[dict[int, Reach], int]:
        """How far each active segment is visible, and the next sequence, of one moment."""
        with self.env.begin(db=self._segments) as transaction:
            reached = {
                int.from_bytes(key, "big"): Reach(*_REACH.unpack(value))
                for key, value in transaction.cursor()
            }
            sequence: int = _NUMBER.unpack(transaction.get(_SEQUENCE, b"", db=self._facts))[0]
        return reached, sequence

    def forget_segment(self, number: int) -> None:
        """A segment is sealed."""
        with self.env.begin(write=True, db=self._segments) as transaction:
            transaction.delete(number.to_bytes(4, "big"))

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


class Change:
    """One transaction on recent, a context manager. Nothing is seen by others before its end."""

    def __init__(
        self, transaction: Any, blobs: Any, claims: Any, segments: Any, facts: Any
    ) -> None:
        self._transaction = transaction
        self._blobs, self._claims, self._segments, self._facts = blobs, claims, segments, facts

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._transaction.commit()
        else:
            self._transaction.abort()

    def get_many(self, keys: list[bytes]) -> dict[bytes, bytes]:
        """The packed entries awaiting the merge under those of the keys that have one."""
        with self._transaction.cursor(db=self._blobs) as cursor:
            return dict(cursor.getmulti(keys))

    def put(self, entries: list[tuple[bytes, bytes]]) -> None:
        """Let packed entries be seen."""
        with self._transaction.cursor(db=self._blobs) as cursor:
            cursor.putmulti(entries)

    def claimed(self, keys: list[bytes]) -> set[bytes]:
        """Those of the keys that a commit under way has decided about."""
        if not self._transaction.stat(self._claims)["entries"]:
            return set()
        with self._transaction.cursor(db=self._claims) as cursor:
            return {key for key, _ in cursor.getmulti(keys)}

    def claim(self, keys: list[bytes], number: int) -> None:
        """Keep others from deciding about these names; `number` is the claimant's segment."""
        claimant = number.to_bytes(4, "big")
        with self._transaction.cursor(db=self._claims) as cursor:
            cursor.putmulti([(key, claimant) for key in keys])

    def release(self, keys: list[bytes]) -> None:
        """Let others decide again."""
        if self._transaction.stat(self._claims)["entries"] == len(keys):  # all are ours
            self._transaction.drop(self._claims, delete=False)
            return
        for key in keys:
            self._transaction.delete(key, db=self._claims)

    def release_all(self, numbers: list[int]) -> None:
        """Drop the claims of commits that will never end, by the numbers of their segments."""
        claimants = {number.to_bytes(4, "big") for number in numbers}
        with self._transaction.cursor(db=self._claims) as cursor:
            held = [key for key, value in cursor if value in claimants]
        for key in held:
            self._transaction.delete(key, db=self._claims)

    def take_sequences(self, count: int) -> int:
        """The first of `count` sequences that nobody else gets."""
        first: int = _NUMBER.unpack(self._transaction.get(_SEQUENCE, db=self._facts))[0]
        self._transaction.put(_SEQUENCE, _NUMBER.pack(first + count), db=self._facts)
        return first

    def raise_sequence(self, above: int) -> None:
        """Let the next sequence be above one that was found in a segment."""
        found: int = _NUMBER.unpack(self._transaction.get(_SEQUENCE, db=self._facts))[0]
        if found <= above:
            self._transaction.put(_SEQUENCE, _NUMBER.pack(above + 1), db=self._facts)

    def set_segment(self, number: int, reach: Reach) -> None:
        """Say how far an active segment is visible."""
        self._transaction.put(number.to_bytes(4, "big"), _REACH.pack(*reach), db=self._segments)

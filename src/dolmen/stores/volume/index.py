"""The durable index of a volume: an LMDB environment beside the segments.

Its tables: `blobs` (entries, see `entry`), `digests` (per partition), `segments`
(how far each segment is reflected here: its watermark), `usage` (how many bytes of each
segment are records in which a sound blob or tombstone stands), `removals` (sequences of
removals that a scan from a watermark held back might otherwise undo), `notes`,
and `facts` (the highest sequence seen). It is changed only in slices, each one transaction
that moves entries and watermarks together, so after any crash it shows a state
that was; whatever lies in the segments beyond the watermarks is read again at
the next opening. It can always be rebuilt (`reindex`).

That holds while flushes succeed. When one fails the kernel drops what it could not write
and has the next one succeed, so nobody can tell any more what the disk holds; the index is
then marked as doubtful, by a file beside it, and is not used again before it was rebuilt.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import lmdb

from dolmen.digests import Digests
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.entry import unpack
from dolmen.stores.volume.layout import write_whole
from dolmen.stores.volume.slices import NUMBER, SEQUENCE, Slice

_NONE = bytes(4)

Run = tuple[int, int]
"""Partitions in a row: the first, and the one after the last."""
Page = tuple[list[tuple[bytes, bytes]], list[Run]]


class Index:
    """The durable index at a path. Opening one twice in a process is an error of LMDB's."""

    def __init__(self, disk: Disk, path: str) -> None:
        self._disk, self._path = disk, path
        self._doubted = False
        self.env = disk.open_index(path, durable=True)
        self.env.reader_check()  # a reader that died would keep pages from being used again
        self.blobs = self.env.open_db(b"blobs")
        self._digests = self.env.open_db(b"digests")
        self._segments = self.env.open_db(b"segments")
        self._usage = self.env.open_db(b"usage")
        self._removals = self.env.open_db(b"removals")
        self._notes = self.env.open_db(b"notes")
        self._facts = self.env.open_db(b"facts")
        self._digested: tuple[int, Digests] | None = None

    def get(self, key: bytes) -> bytes | None:
        """The packed entry under a key."""
        value: bytes | None = self.env.begin(db=self.blobs).get(key)
        return value

    def get_many(self, keys: list[bytes]) -> list[tuple[bytes, bytes]]:
        """Those of the keys that have an entry, with the packed entry."""
        with self.env.begin() as transaction, transaction.cursor(db=self.blobs) as cursor:
            return cursor.getmulti(keys)

    def sequence_of(self, key: bytes) -> int:
        """The sequence of the last write of a name that is reflected here; 0 for none."""
        with self.env.begin() as transaction:
            value = transaction.get(key, db=self.blobs)
            if value is not None:
                return unpack(value).sequence
            value = transaction.get(key, db=self._removals)
            return NUMBER.unpack(value)[0] if value is not None else 0

    def page(self, runs: list[Run], least: int) -> Page:
        """Keys and values of whole partitions, and the runs that are left.

        Goes on until there are `least` of them, or none is left.
        """
        found: list[tuple[bytes, bytes]] = []
        with self.env.begin(db=self.blobs) as transaction, transaction.cursor() as cursor:
            for number, (first, stop) in enumerate(runs):
                if not cursor.set_range(first.to_bytes(2)):
                    break
                for key, value in cursor.iternext():
                    partition = int.from_bytes(key[:2])
                    if partition >= stop:
                        break
                    if len(found) >= least and key[:2] != found[-1][0][:2]:
                        return found, [(partition, stop), *runs[number + 1 :]]
                    found.append((key, value))
        return found, []

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """Every key and value. One long read: not while others write."""
        with self.env.begin(db=self.blobs) as transaction, transaction.cursor() as cursor:
            yield from cursor

    def digests(self) -> Digests:
        """The digests of what the index holds; kept until the index changes."""
        with self.env.begin(db=self._digests) as transaction:
            state = transaction.id()
            if self._digested is not None and self._digested[0] == state:
                return self._digested[1]
            encoded = b"".join(
                # Key: partition, big-endian. Value: 8 bytes count, 8 size, 16 XOR, little-endian.
                [
                    key[::-1] + value[:4] + value[8:]
                    for key, value in transaction.cursor()
                    if value[:4] != _NONE
                ]
            )
        digests = Digests.decode(encoded)
        self._digested = (state, digests)
        return digests

    def watermark(self, number: int) -> int:
        """How far a segment is reflected in the index, in bytes."""
        with self.env.begin(db=self._segments) as transaction:
            value = transaction.get(number.to_bytes(4, "big"))
        return NUMBER.unpack(value)[0] if value is not None else 0

    def usage(self) -> dict[int, int]:
        """How many bytes of each segment stand; one in which nothing does is not named."""
        with self.env.begin(db=self._usage) as transaction:
            return {
                int.from_bytes(key, "big"): NUMBER.unpack(value)[0]
                for key, value in transaction.cursor()
            }

    def last_number(self) -> int:
        """The highest number of any segment ever merged."""
        with self.env.begin(db=self._segments) as transaction, transaction.cursor() as cursor:
            return int.from_bytes(cursor.key(), "big") if cursor.last() else 0

    def last_sequence(self) -> int:
        """The highest sequence of any record ever merged."""
        with self.env.begin(db=self._facts) as transaction:
            value = transaction.get(SEQUENCE)
        return NUMBER.unpack(value)[0] if value is not None else 0

    def notes(self) -> dict[str, bytes]:
        """Every note."""
        with self.env.begin(db=self._notes) as transaction:
            return {key.decode(): value for key, value in transaction.cursor()}

    def note(self, key: str, value: bytes) -> None:
        """Keep a note, on disk when this returns."""
        with self._flushing(), self.env.begin(write=True, db=self._notes) as transaction:
            transaction.put(key.encode(), value)
        self.settle()

    def settle(self) -> None:
        """Return when every commit so far survives a power cut (its root included)."""
        with self._flushing():
            self._disk.settle_index(self.env)

    def doubtful(self) -> bool:
        """Whether a flush of it ever failed, in this process or another."""
        return self._doubted or self._disk.exists(mark_of_doubt(self._path))

    @contextmanager
    def _flushing(self) -> Iterator[None]:
        try:
            yield
        except (lmdb.Error, OSError) as error:
            # LMDB has no class for EIO.
            if type(error) is lmdb.Error or getattr(error, "errno", None) == errno.EIO:
                self._doubted = True
                with suppress(OSError):
                    write_whole(self._disk, mark_of_doubt(self._path), f"{error}\n".encode())
            raise

    def slice(self) -> Slice:
        """Begin to change the index; see `Slice`."""
        return Slice(
            self.env,
            self.blobs,
            self._digests,
            self._segments,
            self._usage,
            self._removals,
            self._facts,
            self._flushing,
        )

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


def mark_of_doubt(path: str) -> str:
    """The file that says of the index at a path that a flush of it failed."""
    return path + ".doubtful"

"""A change of the durable index: one transaction that moves entries and watermarks together."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

import lmdb

from dolmen.digests import Slot, entry_hash
from dolmen.record import Kind
from dolmen.stores.volume.entry import Entry, unpack
from dolmen.stores.volume.key import name_of

NUMBER = struct.Struct("<Q")
SEQUENCE = b"sequence"
_SLOT = struct.Struct("<QQ16s")
_COUNTED = b"usage is counted"


class Slice:
    """One transaction on the index, a context manager.

    Entries, watermarks, and what is counted of them (digests and usage) change together.
    """

    def __init__(
        self,
        env: lmdb.Environment,
        blobs: Any,
        digests: Any,
        segments: Any,
        usage: Any,
        removals: Any,
        facts: Any,
        flushing: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._flushing = flushing
        self._transaction = env.begin(write=True)
        self._blobs, self._digests, self._segments = blobs, digests, segments
        self._usage, self._removals, self._facts = usage, removals, facts
        self._slots: dict[bytes, Slot] = {}
        self._used: dict[int, int] = {}
        self._sequence = 0
        self._any_removed = self._transaction.stat(removals)["entries"] > 0
        if self._transaction.get(_COUNTED, db=facts) is None:
            self._count_usage()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._transaction.abort()
            return
        put = self._transaction.put
        for key, slot in self._slots.items():
            put(key, _packed(slot), db=self._digests)
        for number, used in self._used.items():
            packed = number.to_bytes(4, "big")
            found = self._transaction.get(packed, db=self._usage)
            used += NUMBER.unpack(found)[0] if found is not None else 0
            if used:
                put(packed, NUMBER.pack(used), db=self._usage)
            else:
                self._transaction.delete(packed, db=self._usage)
        if self._sequence:
            found = self._transaction.get(SEQUENCE, db=self._facts)
            if found is None or NUMBER.unpack(found)[0] < self._sequence:
                put(SEQUENCE, NUMBER.pack(self._sequence), db=self._facts)
        with self._flushing():
            self._transaction.commit()

    def apply(self, entries: list[tuple[bytes, bytes]]) -> None:
        """Make these the entries under their keys (each key once); a REMOVAL takes one away."""
        with self._transaction.cursor(db=self._blobs) as cursor:
            standing = dict(cursor.getmulti([key for key, _ in entries]))
            stored: list[tuple[bytes, bytes]] = []
            for key, value in entries:
                new = unpack(value)
                found = standing.get(key)
                if found is not None:
                    old = unpack(found)
                    if old.sequence > new.sequence:
                        continue
                    if not old.damaged:
                        name = name_of(key).encode()
                        self._slot(key).drop(old.length, _hash(name, old))
                        self._use(old.segment, -old.record_size(name))
                elif self._removed_after(key, new.sequence):
                    continue
                self._sequence = max(self._sequence, new.sequence)
                if new.kind == Kind.REMOVAL:
                    self._remove(key, new.sequence, present=found is not None)
                    continue
                stored.append((key, value))
                if not new.damaged:
                    name = name_of(key).encode()
                    self._slot(key).add(new.length, _hash(name, new))
                    self._use(new.segment, new.record_size(name))
            cursor.putmulti(stored)

    def _use(self, number: int, size: int) -> None:
        self._used[number] = self._used.get(number, 0) + size

    def _count_usage(self) -> None:
        """Count what an index made before usage was counted holds."""
        with self._transaction.cursor(db=self._blobs) as cursor:
            for key, value in cursor:
                entry = unpack(value)
                if not entry.damaged:
                    self._use(entry.segment, entry.record_size(name_of(key).encode()))
        self._transaction.put(_COUNTED, b"", db=self._facts)

    def _remove(self, key: bytes, sequence: int, *, present: bool) -> None:
        if present:
            self._transaction.delete(key, db=self._blobs)
        self._transaction.put(key, NUMBER.pack(sequence), db=self._removals)
        self._any_removed = True

    def mark(self, number: int, watermark: int) -> None:
        """Say how far a segment is reflected, once everything below has been applied."""
        self._transaction.put(number.to_bytes(4, "big"), NUMBER.pack(watermark), db=self._segments)

    def forget_segment(self, number: int) -> None:
        """A segment is gone. The highest number stays known, so that it is not given again."""
        packed = number.to_bytes(4, "big")
        with self._transaction.cursor(db=self._segments) as cursor:
            if cursor.last() and cursor.key() != packed and cursor.set_key(packed):
                cursor.delete()

    def forget_removals(self, *, before: int) -> None:
        """Forget the removals of lower sequences: no scan begins before what they removed."""
        if self._any_removed:
            with self._transaction.cursor(db=self._removals) as cursor:
                done = [key for key, value in cursor if NUMBER.unpack(value)[0] < before]
            for key in done:
                self._transaction.delete(key, db=self._removals)

    def _removed_after(self, key: bytes, sequence: int) -> bool:
        if not self._any_removed:
            return False
        value = self._transaction.get(key, db=self._removals)
        return value is not None and NUMBER.unpack(value)[0] > sequence

    def _slot(self, key: bytes) -> Slot:
        slot = self._slots.get(key[:2])
        if slot is None:
            value = self._transaction.get(key[:2], db=self._digests)
            slot = self._slots[key[:2]] = Slot() if value is None else _slot(value)
        return slot


def _hash(name: bytes, entry: Entry) -> int:
    return entry_hash(name, entry.stamp, entry.kind, entry.checksum, entry.metadata)


def _slot(value: bytes) -> Slot:
    count, size, xor = _SLOT.unpack(value)
    return Slot(count, size, int.from_bytes(xor, "little"))


def _packed(slot: Slot) -> bytes:
    return _SLOT.pack(slot.count, slot.size, slot.xor.to_bytes(16, "little"))

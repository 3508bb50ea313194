"""The index: where each blob of the volume lies, and all that `stat`, `list` and `digests` say.

It is a view of the segments and can be rebuilt from them. RocksDB keeps it, without its
write-ahead log: a change is visible at once and reaches the disk when RocksDB writes
its memory out. `apply` is one batch, and RocksDB keeps batches whole and in order, so after a
kill or a power cut the index is as some earlier `apply` left it, none older than the last
`flush`. Entries, digests and watermark that belong together go into one `apply`; whoever
opens the index scans the segments beyond the watermark it finds. Apply only what the
segments' flush has made durable, or a power cut leaves entries that point at nothing.

Keys: `e`, partition (2 bytes, big-endian), packed name: an entry. `d`, partition: a digest
slot. `f`, name: a fact (watermark, live bytes of segments). `z`: the end. Values are opaque
here but for the slots: count (4 bytes), bytes of data, low and high half of the XOR (8 each),
little-endian.

Every method raises `OSError`: ENOSPC when the disk is full, else EIO, damage in the index
included (`reindex` rebuilds it). After an `apply` that failed nothing more is applied before
the index was opened again, or the next watermark would hide what is missing. RocksDB has
threads: open the index after the last fork. Its calls hold the interpreter lock, `flush` and
`get_many` excepted.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from heapq import merge
from typing import Any, Protocol

from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    Options,
    Rdict,
    WriteBatch,
    WriteOptions,
)

from dolmen.digests import Digests
from dolmen.names import PARTITIONS

Changed = tuple[bytes, bytes | None]
"""An entry to be set, or (None) taken away."""
DigestChange = tuple[int, int, int, int]
"""What a write does to a digest: partition, more entries, more bytes, XOR of the hashes."""

SLOT = struct.Struct("<IQQQ")
_LOW = (1 << 64) - 1
_ENTRY, _SLOTS, _FACT, _END = b"e", b"d", b"f", b"z"
_WRITE_BUFFER = 16 << 20  # about 85,000 puts
_CACHE = 32 << 20  # files are not mapped: a sector that can't be read would end the process


class Index(Protocol):
    """What the volume needs of an index. `slots` are the digests of all partitions, packed."""

    slots: bytearray

    def get(self, key: bytes) -> bytes | None:
        """The value under a key."""
        ...

    def get_many(self, keys: Iterable[bytes]) -> list[bytes | None]:
        """The values under the keys, in their order."""
        ...

    def scan(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values from `start` up to `stop`, in order, as of one moment."""
        ...

    def facts(self) -> dict[bytes, bytes]:
        """Every fact."""
        ...

    def apply(
        self,
        entries: Iterable[Changed],
        digests: Iterable[DigestChange] = (),
        facts: Mapping[bytes, bytes | None] | None = None,
    ) -> None:
        """Set entries and facts (None takes one away) and change digests, all or none."""
        ...

    def flush(self) -> None:
        """Return when all that was applied survives a power cut. Blocks; for a thread."""
        ...

    def close(self) -> None:
        """Write out what is in memory and close."""
        ...


class RocksIndex:
    """The index in a folder. Opened `read_only` it writes nothing at all.

    Raises `FileNotFoundError` for one that a kill left before it was made.

    The caller holds the volume's lock.
    """

    def __init__(self, folder: str, *, read_only: bool = False) -> None:
        access = AccessType.read_only() if read_only else AccessType.read_write()
        options = _options()
        try:
            if not read_only:
                _make_folder(folder)
            # Given only as `options`, an existing index is opened with the default cache and
            # without a filter.
            self._db = Rdict(folder, options, {"default": options}, access)
            unlogged = WriteOptions()
            unlogged.disable_wal = True  # type: ignore[method-assign, assignment]  # wrong stub
            self._db.set_write_options(unlogged)
            unfinished = self._db.get(_END) is None
            if unfinished and not read_only:
                self._db[_END] = b""
                self._db.flush()  # or a kill leaves an index whose end nobody can see
        except Exception as error:
            raise _as_os_error(error, folder) from error
        if unfinished and read_only:
            self._db.close()
            raise FileNotFoundError(errno.ENOENT, "the index was never written out", folder)
        self._folder, self._failed = folder, False
        self._get = self._db.get
        self.slots = bytearray(SLOT.size * PARTITIONS)
        for key, value in self._scan(_SLOTS, _ENTRY):
            at = int.from_bytes(key[1:]) * SLOT.size
            self.slots[at : at + SLOT.size] = value

    def get(self, key: bytes) -> bytes | None:
        """See `Index`."""
        try:
            value: bytes | None = self._get(_ENTRY + key)
        except Exception as error:
            raise _as_os_error(error, self._folder) from error
        return value

    def get_many(self, keys: Iterable[bytes]) -> list[bytes | None]:
        """See `Index`."""
        try:
            values: Any = self._get([_ENTRY + key for key in keys])
        except Exception as error:
            raise _as_os_error(error, self._folder) from error
        return list(values)

    def scan(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """See `Index`.

        Hold it open briefly: files that were merged meanwhile stay on disk until it ends.
        """
        for key, value in self._scan(_ENTRY + start, _FACT if stop is None else _ENTRY + stop):
            yield key[1:], value

    def facts(self) -> dict[bytes, bytes]:
        """See `Index`."""
        return {key[1:]: value for key, value in self._scan(_FACT, _END)}

    def apply(
        self,
        entries: Iterable[Changed],
        digests: Iterable[DigestChange] = (),
        facts: Mapping[bytes, bytes | None] | None = None,
    ) -> None:
        """See `Index`."""
        if self._failed:
            raise OSError(errno.EIO, "a write of the index failed: reopen it", self._folder)
        batch = WriteBatch(raw_mode=True)
        put = batch.put
        for key, value in entries:
            if value is None:
                batch.delete(_ENTRY + key)
            else:
                put(_ENTRY + key, value)
        for name, fact in (facts or {}).items():
            if fact is None:
                batch.delete(_FACT + name)
            else:
                put(_FACT + name, fact)
        changed = changed_slots(self.slots, digests)
        for at, slot in changed.items():
            put(_SLOTS + (at // SLOT.size).to_bytes(2), slot)
        try:
            self._db.write(batch)
        except Exception as error:
            self._failed = True
            raise _as_os_error(error, self._folder) from error
        for at, slot in changed.items():
            self.slots[at : at + SLOT.size] = slot

    def flush(self) -> None:
        """See `Index`."""
        try:
            self._db.flush()
        except Exception as error:
            raise _as_os_error(error, self._folder) from error

    def close(self) -> None:
        """See `Index`."""
        try:
            self._db.close()
        except Exception as error:
            raise _as_os_error(error, self._folder) from error

    def _scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        # An iterator of rocksdict ends without a word at a damaged block, so only the sight of
        # a key at or beyond `stop` is the end. (Its upper bound is freed too early: not used.)
        try:
            pairs: Any = self._db.items(from_key=start)
            for key, value in pairs:
                if key >= stop:
                    return
                yield key, value
        except Exception as error:
            raise _as_os_error(error, self._folder) from error
        raise OSError(errno.EIO, "the index is damaged: run dolmen reindex", self._folder)


class TailIndex:
    """An index whose changes stay in memory, in front of another one or of nothing.

    For a volume that is opened read-only: what lies beyond the watermark.
    """

    def __init__(self, base: Index | None = None) -> None:
        self._base = base
        self._entries: dict[bytes, bytes | None] = {}
        self._facts = base.facts() if base else {}
        self.slots = bytearray(base.slots) if base else bytearray(SLOT.size * PARTITIONS)

    def get(self, key: bytes) -> bytes | None:
        """See `Index`."""
        if key in self._entries or self._base is None:
            return self._entries.get(key)
        return self._base.get(key)

    def get_many(self, keys: Iterable[bytes]) -> list[bytes | None]:
        """See `Index`."""
        return [self.get(key) for key in keys]

    def scan(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """See `Index`."""
        ours = {
            key: value
            for key, value in list(self._entries.items())
            if key >= start and (stop is None or key < stop)
        }
        below = self._base.scan(start, stop) if self._base else iter(())
        theirs = (pair for pair in below if pair[0] not in ours)
        for key, value in merge(sorted(ours.items()), theirs, key=lambda pair: pair[0]):
            if value is not None:
                yield key, value

    def facts(self) -> dict[bytes, bytes]:
        """See `Index`."""
        return dict(self._facts)

    def apply(
        self,
        entries: Iterable[Changed],
        digests: Iterable[DigestChange] = (),
        facts: Mapping[bytes, bytes | None] | None = None,
    ) -> None:
        """See `Index`."""
        self._entries.update(entries)
        for name, fact in (facts or {}).items():
            if fact is None:
                self._facts.pop(name, None)
            else:
                self._facts[name] = fact
        for at, slot in changed_slots(self.slots, digests).items():
            self.slots[at : at + SLOT.size] = slot

    def flush(self) -> None:
        """See `Index`: there is nothing to make durable."""

    def close(self) -> None:
        """See `Index`."""
        if self._base is not None:
            self._base.close()


def changed_slots(slots: bytearray, changes: Iterable[DigestChange]) -> dict[int, bytes]:
    """The slots that digest changes leave, by their place in `slots`."""
    size = SLOT.size
    changed: dict[int, bytes] = {}
    for partition, more, data, xor in changes:
        at = partition * size
        count, held, low, high = SLOT.unpack(changed.get(at) or slots[at : at + size])
        changed[at] = SLOT.pack(count + more, held + data, low ^ xor & _LOW, high ^ xor >> 64)
    return changed


def digests_of(slots: bytes) -> Digests:
    """The digests in an index's packed slots, which are laid out as those of `Digests`."""
    size, none = SLOT.size, bytes(4)
    return Digests.decode(
        b"".join(
            [
                (at // size).to_bytes(2, "little") + slots[at : at + size]
                for at in range(0, len(slots), size)
                if slots[at : at + 4] != none
            ]
        )
    )


def _make_folder(folder: str) -> None:
    os.makedirs(folder, exist_ok=True)
    # rocksdict rewrites a file of its own at every opening, read-only ones too, and fails on a
    # read-only mount. Nothing here needs the file.
    config = os.path.join(folder, "rocksdict-config.json")
    if not os.path.lexists(config):
        os.symlink(os.devnull, config)


def _options() -> Options:
    table = BlockBasedOptions()
    table.set_bloom_filter(10, False)  # a put of a new name reads no block
    table.set_block_cache(Cache(_CACHE))
    options = Options(raw_mode=True)
    options.set_block_based_table_factory(table)
    options.create_if_missing(True)
    options.set_compression_type(DBCompressionType.none())  # keys and checksums are random
    options.set_write_buffer_size(_WRITE_BUFFER)
    options.set_max_write_buffer_number(4)
    options.set_level_zero_slowdown_writes_trigger(40)  # a delayed write stops the event loop
    options.set_level_zero_stop_writes_trigger(60)
    options.set_bytes_per_sync(1 << 20)
    options.set_max_log_file_size(1 << 20)
    options.set_keep_log_file_num(2)
    options.set_stats_dump_period_sec(0)
    return options


def _as_os_error(error: Exception, folder: str) -> OSError:
    full = "No space left" in str(error)
    return OSError(errno.ENOSPC if full else errno.EIO, str(error), folder)

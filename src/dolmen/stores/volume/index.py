"""The index: bytes under keys, in order. `catalog` says what lies in it.

It is a view of the segments and can be rebuilt from them. RocksDB keeps it, without its
write-ahead log: a change is visible at once and reaches the disk when RocksDB writes
its memory out. `apply` is one batch, and RocksDB keeps batches whole and in order, so after a
kill or a power cut the index is as some earlier `apply` left it, none older than the last
`flush`. What belongs together goes into one `apply`, and with it how far the log is reflected;
whoever opens the index scans the segments beyond that. Apply only what the segments' flush has
made durable, or a power cut leaves entries that point at nothing.

Every method raises `OSError`: ENOSPC when the disk is full, else EIO, damage in the index
included (`reindex` rebuilds it). After an `apply` that failed nothing more is applied before
the index was opened again, or the next watermark would hide what is missing. RocksDB has
threads: open the index after the last fork. Its calls hold the interpreter lock, `flush`
excepted.

Read first: `entry`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from heapq import merge
from typing import Any

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

Changes = Mapping[bytes, bytes | None]
"""Keys with their new values; None takes one away."""
_END = b"z"
"""Behind every other key: a scan that does not see it met damage."""
_WRITE_BUFFER = 16 << 20  # about 85,000 puts
_CACHE = 32 << 20  # files are not mapped: a sector that can't be read would end the process


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

    def get(self, key: bytes) -> bytes | None:
        """The value under a key."""
        try:
            value: bytes | None = self._get(key)
        except Exception as error:
            raise _as_os_error(error, self._folder) from error
        return value

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values from `start` up to `stop`, in order, as of one moment.

        Hold it open briefly: files that were merged meanwhile stay on disk until it ends.
        """
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

    def apply(self, changes: Changes) -> None:
        """Carry out all changes or none."""
        if self._failed:
            raise OSError(errno.EIO, "a write of the index failed: reopen it", self._folder)
        batch = WriteBatch(raw_mode=True)
        for key, value in changes.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        try:
            self._db.write(batch)
        except Exception as error:
            self._failed = True
            raise _as_os_error(error, self._folder) from error

    def flush(self) -> None:
        """Return when all that was applied survives a power cut. Blocks; for a thread."""
        try:
            self._db.flush()
        except Exception as error:
            raise _as_os_error(error, self._folder) from error

    def close(self) -> None:
        """Write out what is in memory and close."""
        try:
            self._db.close()
        except Exception as error:
            raise _as_os_error(error, self._folder) from error


class TailIndex:
    """An index whose changes stay in memory, in front of another one or of nothing.

    For a volume that is opened read-only: what lies beyond the watermark. Its methods are
    those of `RocksIndex`.
    """

    def __init__(self, base: Index | None = None) -> None:
        self._base = base
        self._changed: dict[bytes, bytes | None] = {}

    def get(self, key: bytes) -> bytes | None:
        """See `RocksIndex`."""
        if key in self._changed or self._base is None:
            return self._changed.get(key)
        return self._base.get(key)

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """See `RocksIndex`."""
        ours = {key: value for key, value in list(self._changed.items()) if start <= key < stop}
        below = self._base.scan(start, stop) if self._base else iter(())
        theirs = (pair for pair in below if pair[0] not in ours)
        for key, value in merge(sorted(ours.items()), theirs, key=lambda pair: pair[0]):
            if value is not None:
                yield key, value

    def apply(self, changes: Changes) -> None:
        """See `RocksIndex`."""
        self._changed.update(changes)

    def flush(self) -> None:
        """See `RocksIndex`: there is nothing to make durable."""

    def close(self) -> None:
        """See `RocksIndex`."""
        if self._base is not None:
            self._base.close()


Index = RocksIndex | TailIndex


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

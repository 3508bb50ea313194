"""A simulated disk that loses, at a power cut, what was not flushed.

`SimulatedDisk` stands under a volume in place of `Disk`. It keeps files in memory, each as
the process sees it and as the platter has it, with the writes in between. `power_cut` gives the
disk a machine finds when it comes up again: of the writes and name changes not flushed each
may be kept, dropped, torn or garbled, page by page and in any order (SQLite's and ALICE's model
of a crash: Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014). Where data is
lost the file may be as long as if it were there, with zeros or an old block of another file.

`cut_after(n)` makes the n-th change from now raise `PowerCut`, before or after it took effect, and
every one behind it. `killed` is the disk after a `kill -9`. A volume on such
a disk is given an `InlineExecutor`, so one seed gives one run. Undocumented methods: see `Disk`.

Read first: `dolmen.testing.crash_index`.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from dolmen.record import data_in, record_size
from dolmen.stores.volume.disk import Buffer, Disk
from dolmen.stores.volume.index import Index
from dolmen.testing.crash_index import Kept, SimulatedIndex

T = TypeVar("T")
_SECTOR = 512
_PAGE = 4096


class PowerCut(BaseException):
    """The power went. Nothing handles it, as nothing handles a power cut."""


class InlineExecutor(Executor):
    """Runs every call at once, on the caller's thread."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - as in a thread
            future.set_exception(error)
        return future


@dataclass(slots=True)
class _File:
    """A file as it is seen, as it is on the platter, and what lies between."""

    seen: bytearray = field(default_factory=bytearray)
    platter: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    """Writes (offset, bytes) and truncations (size, None) not flushed."""

    def flush(self) -> None:
        for offset, written in self.pending:
            _put(self.platter, offset, written)
        self.pending.clear()


@dataclass(slots=True)
class _NameChange:
    """A creation, an unlink or a rename: one name is set, one goes, both at once."""

    new: str | None
    thing: object
    old: str | None

    def apply(self, names: dict[str, Any]) -> None:
        if self.new is not None:
            names[self.new] = self.thing
        if self.old is not None:
            names.pop(self.old, None)

    def flush(self, folder: str, names: dict[str, Any]) -> bool:
        """What the flush of one folder makes durable of it; True when nothing is left to do.

        A rename never loses the file: its old name goes only with the new one there.
        """
        if self.old is not None and os.path.dirname(self.old) == folder:
            self.apply(names)
            return True
        if self.new is not None and os.path.dirname(self.new) == folder:
            names[self.new] = self.thing
            return self.old is None
        return False


class SimulatedDisk(Disk):
    """A disk in memory, which is never full."""

    def __init__(self, *, rng: random.Random) -> None:
        self.rng = rng
        self._names: dict[str, Any] = {"/": None}
        """Files, indexes, and (None) folders."""
        self._platter_names: dict[str, Any] = dict(self._names)
        self._pending: list[_NameChange] = []
        self._open: dict[int, _File] = {}
        self._locked: dict[str, int] = {}
        self._next = 1000
        self._countdown: int | None = None
        self.dead = False
        self.fail_flush = False
        """Whether flushes fail; what they should have made durable is lost."""

    def cut_after(self, operations: int) -> None:
        """Let the power go at the n-th changing operation from now."""
        self._countdown = operations

    def killed(self) -> SimulatedDisk:
        """The disk after the death of the process: what was written is seen, flushed or not."""
        after = SimulatedDisk(rng=self.rng)
        after._names, after._platter_names = self._names, self._platter_names
        after._pending = self._pending
        for thing in self._names.values():
            if isinstance(thing, Kept):
                thing.crash(self.rng)
        return after

    def power_cut(self) -> SimulatedDisk:
        """The disk as the next start finds it."""
        after = SimulatedDisk(rng=self.rng)
        names = dict(self._platter_names)
        for change in self._pending:
            if self.rng.random() < 0.5:
                change.apply(names)
        for path, thing in names.items():
            folder = os.path.dirname(path)
            if folder not in names:
                continue  # its folder was lost, and it with it
            if isinstance(thing, _File):
                data = self._survive(thing)
                thing = _File(data, bytearray(data))
            elif isinstance(thing, Kept):
                thing.crash(self.rng)
            after._names[path] = thing
        after._platter_names = dict(after._names)
        return after

    def _survive(self, file: _File) -> bytearray:
        data = bytearray(file.platter)
        loss = self.rng.random()
        for offset, written in file.pending:
            fate = "kept"
            if self.rng.random() < loss:
                fate = self.rng.choice(("dropped", "torn", "garbled", "zeros", "stale"))
            if fate != "dropped":
                kept = None if written is None else self._damage(file, written, offset, fate)
                _put(data, offset, kept)
        return data

    def _damage(self, file: _File, written: bytes, offset: int, fate: str) -> bytes:
        if fate == "torn":
            return written[: self.rng.randrange(0, len(written) + 1) // _SECTOR * _SECTOR]
        if fate == "garbled" and written:
            at = self.rng.randrange(len(written))
            junk = self.rng.randbytes(min(_SECTOR, len(written) - at))
            return written[:at] + junk + written[at + len(junk) :]
        if fate == "zeros":
            return bytes(len(written))
        if fate == "stale":  # what the block held before, as part of another file
            files = [thing for thing in self._names.values() if isinstance(thing, _File)]
            others = [other.seen for other in files if other is not file and other.seen]
            if others:
                other = self.rng.choice(others)
                at = offset % _PAGE + self.rng.randrange(len(other)) // _PAGE * _PAGE
                return bytes(other[at : at + len(written)]).ljust(len(written), b"\0")
        return written

    @contextmanager
    def step(self) -> Iterator[None]:
        """Count an operation; the power may go before or after it takes effect."""
        if self.dead:
            raise PowerCut
        if self._countdown is not None:
            self._countdown -= 1
            self.dead = self._countdown <= 0
        if self.dead and self.rng.random() < 0.5:
            raise PowerCut
        yield
        if self.dead:
            raise PowerCut

    def _file(self, path: str) -> _File:
        found = self._names.get(path)
        if not isinstance(found, _File):
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return found

    def _opened(self, file: _File) -> int:
        self._next += 1
        self._open[self._next] = file
        return self._next

    def _change(self, new: str | None, thing: object, old: str | None) -> None:
        change = _NameChange(new, thing, old)
        change.apply(self._names)
        self._pending.append(change)

    def create(self, path: str) -> int:
        with self.step():
            if path in self._names:
                raise FileExistsError(errno.EEXIST, "file exists", path)
            if os.path.dirname(path) not in self._names:
                raise FileNotFoundError(errno.ENOENT, "no such folder", path)
            file = _File()
            self._change(path, file, None)
        return self._opened(file)

    def open(self, path: str, *, write: bool = False) -> int:  # noqa: ARG002
        return self._opened(self._file(path))

    def close(self, fd: int) -> None:
        self._open.pop(fd, None)
        self._locked = {path: held for path, held in self._locked.items() if held != fd}

    def write(self, fd: int, buffers: Sequence[Buffer], offset: int, *, sync: bool = False) -> None:
        data = b"".join(buffers)
        file = self._open[fd]
        before = len(file.pending)
        with self.step():
            self._write(file, data, offset)
        if not sync:
            return
        with self.step():
            if self.fail_flush:
                del file.pending[before:]
                raise OSError(errno.EIO, "input/output error")
            # These bytes, and every change of size, but nothing else that was written before.
            late = file.pending[:before]
            file.pending = [change for change in late if change[1] is None] + file.pending[before:]
            file.flush()
            file.pending = [change for change in late if change[1] is not None]

    def _write(self, file: _File, data: bytes, offset: int) -> None:
        # The kernel writes pages: a write may survive in any of its parts.
        stop = offset + len(data)
        for start in (offset, *range((offset // _PAGE + 1) * _PAGE, stop, _PAGE)):
            end = min(start // _PAGE * _PAGE + _PAGE, stop)
            part = data[start - offset : end - offset]
            _put(file.seen, start, part)
            file.pending.append((start, part))

    def flush(self, fd: int) -> None:
        with self.step():
            file = self._open[fd]
            if self.fail_flush:  # as in Linux, the pages count as clean, and are lost all the same
                file.pending.clear()
                raise OSError(errno.EIO, "input/output error")
            file.flush()

    def flush_directory(self, path: str) -> None:
        with self.step():
            self._pending = [
                change for change in self._pending if not change.flush(path, self._platter_names)
            ]

    def write_behind(self, fd: int, offset: int, length: int) -> None:
        """Promises nothing, and does nothing."""

    def will_need(self, fd: int, length: int, offset: int) -> None:
        """The same."""

    def forget(self, fd: int) -> None:
        """See `Disk`: what is clean is read from the platter again."""
        file = self._open[fd]
        if not file.pending:
            file.seen[:] = file.platter

    def allocate(self, fd: int, size: int) -> None:  # noqa: ARG002
        with self.step():
            pass

    def truncate(self, fd: int, size: int) -> None:
        with self.step():
            file = self._open[fd]
            _put(file.seen, size, None)
            file.pending.append((size, None))

    def identity(self, file: str | int) -> tuple[int, int] | None:
        found = self._names.get(file) if isinstance(file, str) else self._open[file]
        return None if found is None else (1, id(found))

    def size(self, file: str | int) -> int:
        return len((self._file(file) if isinstance(file, str) else self._open[file]).seen)

    def read_into(self, fd: int, room: memoryview, offset: int) -> int:
        data = self._open[fd].seen[offset : offset + len(room)]
        room[: len(data)] = data
        return len(data)

    def read_cached(self, fd: int, room: bytearray | memoryview, offset: int) -> int | None:
        return self.read_into(fd, memoryview(room), offset)

    def read_record(
        self, fd: int, offset: int, name: bytes, inner: int, length: int, checksum: bytes
    ) -> bytes | memoryview | Literal[False] | None:
        record = self.read(fd, record_size(len(name), inner, length), offset)
        return data_in(record, name, inner, length, checksum)

    def lock(self, path: str, *, shared: bool) -> int | None:
        """See `Disk`. One holder at a time, shared or not."""
        if path in self._locked:
            return None
        fd = self.open(path) if shared or path in self._names else self.create(path)
        self._locked[path] = fd
        return fd

    def rename(self, source: str, target: str) -> None:
        with self.step():
            self._change(target, self._names[source], source)

    def unlink(self, path: str) -> None:
        with self.step():
            if path in self._names:
                self._change(None, None, path)

    def make_directory(self, path: str) -> None:
        with self.step():
            if path not in self._names:
                self._change(path, None, None)
        self.flush_directory(os.path.dirname(path))

    def names(self, path: str) -> list[str]:
        inside = [name for name in self._names if os.path.dirname(name) == path != name]
        return sorted(map(os.path.basename, inside))

    def exists(self, path: str) -> bool:
        return path in self._names

    def space(self, path: str) -> tuple[int, int, bool]:  # noqa: ARG002
        return 1 << 40, 1 << 40, False

    def open_index(self, path: str, *, read_only: bool) -> Index:
        kept = self._names.get(path)
        if not isinstance(kept, Kept):
            kept = self._names[path] = self._platter_names[path] = Kept()
        if read_only:
            kept = deepcopy(kept)
            kept.crash(self.rng)
        return SimulatedIndex(self.step, kept)

    def remove_index(self, path: str) -> None:
        self.unlink(path)


def _put(data: bytearray, offset: int, written: bytes | None) -> None:
    """Write at an offset, or (None) make it the end."""
    if len(data) < offset:
        data.extend(bytes(offset - len(data)))
    if written is None:
        del data[offset:]
    else:
        data[offset : offset + len(written)] = written

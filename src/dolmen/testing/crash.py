"""A simulated disk that forgets, at a power cut, what was not flushed.

`SimulatedDisk` stands under a volume in place of `Disk`. It keeps files in memory,
each as the process sees it and as the platter has it, with the writes in between.
`power_cut` gives the disk a machine finds when it comes up again: of the writes
and name changes not flushed each may be kept, dropped, torn or garbled, page by page
and whatever the order in which they were made (SQLite's and ALICE's model of a crash:
Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014). Where data is lost the
file may be as long as if it were there, with zeros or an old block of another file.

LMDB keeps its own files, in a real folder; for a power cut they are copied, and
the last commit is undone at random, which is what a lost root page means to an
environment opened with `metasync=False`. One that is not durable is junk by then.

`cut_after(n)` makes the n-th operation from now raise `PowerCut`, before or after
it took effect, and every one behind it. `kill` stands for a `kill -9` at that moment.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, cast

import lmdb

from dolmen.stores.volume.commit import Log
from dolmen.stores.volume.disk import Buffer, Disk, Room
from dolmen.stores.volume.write import Write

_META_TXNID = 16 + 24 + 96 + 8
_SECTOR = 512
_PAGE = 4096


def commit(log: Log, *writes: Write) -> None:
    """Carry writes of different names out on this thread, step by step as `Group` has it done."""
    batch, waiting = log.claim([*writes])
    assert not waiting
    if batch.writes:
        log.log(batch)
        log.show(batch)


class PowerCut(BaseException):
    """The power went. Nothing handles it, as nothing handles a power cut."""


@dataclass(slots=True)
class _File:
    """A file as it is seen, as it is on the platter, and what lies between."""

    seen: bytearray = field(default_factory=bytearray)
    platter: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    """Writes (offset, bytes) and truncations (size, None) not flushed."""
    links: int = 0
    spoiled: set[int] = field(default_factory=set)
    """Bytes that can't be read."""


@dataclass(slots=True)
class _NameChange:
    """A creation, an unlink or a rename: one name is set, one goes, both at once."""

    new: str | None
    file: _File | None
    old: str | None

    def apply(self, names: dict[str, _File]) -> None:
        """Carry it out in full."""
        if self.new is not None and self.file is not None:
            names[self.new] = self.file
        if self.old is not None:
            names.pop(self.old, None)

    def flush(self, folder: str, names: dict[str, _File]) -> bool:
        """What the flush of one folder makes durable of it; True when nothing is left to do.

        A rename never loses the file: its old name goes only with the new one there.
        """
        if self.old is not None and os.path.dirname(self.old) == folder:
            self.apply(names)
            return True
        if self.new is not None and os.path.dirname(self.new) == folder and self.file is not None:
            names[self.new] = self.file
            return self.old is None
        return False


class SimulatedDisk(Disk):
    """A disk in memory below the real folder `root`, which holds LMDB's files alone."""

    def __init__(self, root: str, *, rng: random.Random, total: int = 1 << 40) -> None:
        self.root = root
        self.rng = rng
        self.free = total
        self._total = total
        self._names: dict[str, _File] = {}
        self._platter_names: dict[str, _File] = {}
        self._pending_names: list[_NameChange] = []
        self._open: dict[int, tuple[_File, str]] = {}
        self._next = 1000
        self._settled: dict[str, int] = {}
        self._views: set[str] = set()
        """LMDB environments that are not durable."""
        self._pending_folders: list[tuple[str, str | None]] = []
        """Folders made or given another name (with their old one), and not flushed."""
        self._unnamed: set[str] = set()
        """LMDB environments the names of whose files are not flushed."""
        self._locks: dict[int, dict[int, bool]] = {}
        self._countdown: int | None = None
        self.dead = False
        self.operations = 0
        self.fail_flush = False

    # Faults

    def cut_after(self, operations: int) -> None:
        """Let the power go at the n-th changing operation from now."""
        self._countdown = operations

    def kill(self) -> None:
        """Let the process die and the machine live: what was written stays seen, flushed or not."""
        self._open.clear()
        self._locks.clear()
        self._countdown = None
        self.dead = False

    def spoil(self, path: str, offset: int) -> None:
        """Let a byte be unreadable until it is written again."""
        self._names[path].spoiled.add(offset)

    def power_cut(self, root: str) -> SimulatedDisk:
        """The disk as the next start finds it, with LMDB's files below `root`."""
        after = SimulatedDisk(root, rng=self.rng, total=self._total)
        names = dict(self._platter_names)
        for change in self._pending_names:
            if self.rng.random() < 0.5:
                change.apply(names)
        survivors: dict[int, _File] = {}
        for name, file in names.items():
            path = root + name[len(self.root) :]
            survivor = survivors.get(id(file))
            if survivor is None:
                data = self._survive(file)
                survivor = survivors[id(file)] = _File(data, bytearray(data))
            survivor.links += 1
            after._names[path] = survivor
        after._platter_names = dict(after._names)
        after._views = {root + path[len(self.root) :] for path in self._views}
        shutil.copytree(self.root, root, dirs_exist_ok=True)
        self._lose_folders(after)
        for folder, _, files in os.walk(root):
            if "data.mdb" not in files:
                continue
            path = self.root + folder[len(root) :]
            if path in self._unnamed and self.rng.random() < 0.5:
                os.unlink(os.path.join(folder, "data.mdb"))
            elif path in self._views:
                with open(os.path.join(folder, "data.mdb"), "r+b") as junk:
                    junk.write(self.rng.randbytes(1 << 16))
            else:
                if self.rng.random() < 0.5:
                    _undo_last_commit(folder, settled=self._settled.get(path, 0))
                after._settled[folder] = _last_commit(folder)
        return after

    def _lose_folders(self, after: SimulatedDisk) -> None:
        """Undo what was not flushed of the changes to folders, each or not."""
        for new, old in reversed(self._pending_folders):
            if self.rng.random() < 0.5:
                continue
            path = after.root + new[len(self.root) :]
            before = after.root + old[len(self.root) :] if old is not None else None
            if before is None:
                shutil.rmtree(path, ignore_errors=True)
                for name in [name for name in after._names if name.startswith(path + "/")]:
                    del after._names[name]
            elif os.path.isdir(path) and not os.path.exists(before):
                os.rename(path, before)

    def _survive(self, file: _File) -> bytearray:
        data = bytearray(file.platter)
        loss = self.rng.random()
        for offset, written in file.pending:
            fate = "kept"
            if self.rng.random() < loss:
                fate = self.rng.choice(("dropped", "torn", "garbled", "zeros", "stale"))
            if fate == "dropped":
                continue
            if written is None:
                del data[offset:]
                data.extend(bytes(max(0, offset - len(data))))
                continue
            if fate == "torn":
                written = written[: self.rng.randrange(0, len(written) + 1) // _SECTOR * _SECTOR]
            elif fate == "garbled" and written:
                at = self.rng.randrange(len(written))
                junk = self.rng.randbytes(min(_SECTOR, len(written) - at))
                written = written[:at] + junk + written[at + len(junk) :]
            elif fate == "zeros":
                written = bytes(len(written))
            elif fate == "stale":
                written = self._old_block(file, offset % _PAGE, len(written))
            data.extend(bytes(max(0, offset - len(data))))
            data[offset : offset + len(written)] = written
        return data

    def _old_block(self, file: _File, at: int, length: int) -> bytes:
        """A part of a page of another file, as the disk may have kept it from before."""
        others = [other.seen for other in self._names.values() if other is not file and other.seen]
        if others:
            other = self.rng.choice(others)
            at += self.rng.randrange(len(other)) // _PAGE * _PAGE
            return bytes(other[at : at + length]).ljust(length, b"\0")
        return bytes(length)

    def _step(self) -> bool:
        """Count an operation; True when the power goes right after it took effect."""
        if self.dead:
            raise PowerCut
        self.operations += 1
        if self._countdown is None:
            return False
        self._countdown -= 1
        if self._countdown > 0:
            return False
        self.dead = True
        if self.rng.random() < 0.5:
            raise PowerCut
        return True

    def _after(self, cut: bool) -> None:
        if cut:
            raise PowerCut

    # The disk

    def _opened(self, file: _File, path: str) -> int:
        self._next += 1
        self._open[self._next] = (file, path)
        return self._next

    def create(self, path: str) -> int:
        """See `Disk`."""
        cut = self._step()
        if path in self._names:
            raise FileExistsError(errno.EEXIST, "file exists", path)
        file = _File(links=1)
        self._change(_NameChange(path, file, None))
        self._after(cut)
        return self._opened(file, path)

    def open(self, path: str, *, write: bool = False) -> int:  # noqa: ARG002
        """See `Disk`."""
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return self._opened(self._names[path], path)

    def open_lock(self, path: str) -> int:
        """See `Disk`."""
        return self.open(path) if path in self._names else self.create(path)

    def close(self, fd: int) -> None:
        """See `Disk`."""
        file, _ = self._open.pop(fd)
        self._locks.get(id(file), {}).pop(fd, None)

    def write(
        self, fd: int, buffers: Sequence[Buffer], offset: int, *, through: bool = False
    ) -> int:
        """See `Disk`."""
        data = b"".join(buffers)
        cut = self._step()
        if self.free < len(data):
            part = data[: self.free]
            self._put(self._open[fd][0], part, offset)
            raise OSError(errno.ENOSPC, "no space left on device")
        self.free -= len(data)
        # The kernel writes pages: a write may survive in any of its parts.
        file = self._open[fd][0]
        before = len(file.pending)
        stop = offset + len(data)
        for start in (offset, *range((offset // _PAGE + 1) * _PAGE, stop, _PAGE)):
            end = min(start // _PAGE * _PAGE + _PAGE, stop)
            self._put(file, data[start - offset : end - offset], start)
        self._after(cut)
        if through:
            self._flush_since(file, before)
        return len(data)

    def _flush_since(self, file: _File, before: int) -> None:
        """Flush the pending writes from this one on, and with them every change of size."""
        cut = self._step()
        if self.fail_flush:
            del file.pending[before:]
            raise OSError(errno.EIO, "input/output error")
        late = file.pending[:before]
        file.pending = [change for change in late if change[1] is None] + file.pending[before:]
        self._flush(file)
        file.pending = [change for change in late if change[1] is not None]
        self._after(cut)

    def _put(self, file: _File, data: bytes, offset: int) -> None:
        file.seen.extend(bytes(max(0, offset - len(file.seen))))
        file.seen[offset : offset + len(data)] = data
        file.spoiled -= set(range(offset, offset + len(data))) if file.spoiled else set()
        file.pending.append((offset, data))

    def flush(self, fd: int) -> None:
        """See `Disk`."""
        cut = self._step()
        if self.fail_flush:
            # As Linux does: the pages count as clean, and are lost all the same.
            self._open[fd][0].pending.clear()
            raise OSError(errno.EIO, "input/output error")
        self._flush(self._open[fd][0])
        self._after(cut)

    def _flush(self, file: _File) -> None:
        for offset, written in file.pending:
            if written is None:
                del file.platter[offset:]
                file.platter.extend(bytes(max(0, offset - len(file.platter))))
            else:
                file.platter.extend(bytes(max(0, offset - len(file.platter))))
                file.platter[offset : offset + len(written)] = written
        file.pending.clear()

    def flush_directory(self, path: str) -> None:
        """See `Disk`."""
        cut = self._step()
        self._pending_names = [
            change for change in self._pending_names if not change.flush(path, self._platter_names)
        ]
        self._pending_folders = [
            (new, old) for new, old in self._pending_folders if os.path.dirname(new) != path
        ]
        self._unnamed.discard(path)
        self._after(cut)

    def reserve(self, fd: int, offset: int, length: int) -> None:
        """See `Disk`."""
        cut = self._step()
        if self.free < length:
            raise OSError(errno.ENOSPC, "no space left on device")
        file = self._open[fd][0]
        if len(file.seen) < offset + length:
            file.pending.append((offset + length, None))
            file.seen.extend(bytes(offset + length - len(file.seen)))
        self._after(cut)

    def write_behind(self, fd: int, offset: int, length: int) -> None:
        """See `Disk`. Promises nothing, and does nothing."""

    def forget(self, fd: int, offset: int) -> None:
        """See `Disk`: what is clean is read from the platter again."""
        file = self._open[fd][0]
        if not file.pending:
            file.seen[:] = file.platter
        del offset

    def truncate(self, fd: int, size: int) -> None:
        """See `Disk`."""
        cut = self._step()
        file = self._open[fd][0]
        del file.seen[size:]
        file.seen.extend(bytes(max(0, size - len(file.seen))))
        file.pending.append((size, None))
        self._after(cut)

    def linked(self, fd: int) -> bool:
        """See `Disk`."""
        return self._open[fd][0].links > 0

    def modified(self, fd: int) -> int:
        """See `Disk`."""
        del fd
        return 0

    def size(self, fd: int) -> int:
        """See `Disk`."""
        return len(self._open[fd][0].seen)

    def read(self, fd: int, length: int, offset: int) -> bytes:
        """See `Disk`."""
        file = self._open[fd][0]
        if any(offset <= at < offset + length for at in file.spoiled):
            raise OSError(errno.EIO, "input/output error")
        return bytes(file.seen[offset : offset + length])

    def read_cached(self, fd: int, room: Room, offset: int) -> Room:
        """See `Disk`; here nothing ever waits."""
        found = self.read(fd, len(room), offset)
        room[: len(found)] = found
        return room[: len(found)]

    def lock(self, fd: int, *, shared: bool = False, wait: bool = False) -> bool:
        """See `Disk`. Waiting for a lock that is held would be for ever here."""
        holders = self._locks.setdefault(id(self._open[fd][0]), {})
        others = [mode for holder, mode in holders.items() if holder != fd]
        if others and not (shared and all(others)):
            if wait:
                raise AssertionError("a deadlock: a lock is waited for that is held")
            return False
        holders[fd] = shared
        return True

    def unlock(self, fd: int) -> None:
        """See `Disk`."""
        self._locks.get(id(self._open[fd][0]), {}).pop(fd, None)

    def rename(self, source: str, target: str) -> None:
        """See `Disk`."""
        cut = self._step()
        if source in self._names:
            file = self._names[source]
            self._unlinked(target)
            self._change(_NameChange(target, file, source))
        else:
            os.rename(source, target)  # a folder of LMDB's
            self._pending_folders.append((target, source))
            self._settled[target] = self._settled.pop(source, 0)
        self._after(cut)

    def unlink(self, path: str) -> None:
        """See `Disk`."""
        cut = self._step()
        self._unlinked(path)
        self._change(_NameChange(None, None, path))
        self._after(cut)

    def _unlinked(self, path: str) -> None:
        if path in self._names:
            self._names[path].links -= 1

    def _change(self, change: _NameChange) -> None:
        change.apply(self._names)
        self._pending_names.append(change)

    def add_directory(self, path: str) -> None:
        """See `Disk`."""
        cut = self._step()
        super().add_directory(path)
        self._pending_folders.append((path, None))
        self._after(cut)

    def remove_folder(self, path: str) -> None:
        """See `Disk`."""
        shutil.rmtree(path, ignore_errors=True)

    def names(self, path: str) -> list[str]:
        """See `Disk`."""
        files = {os.path.basename(name) for name in self._names if os.path.dirname(name) == path}
        return sorted(files | set(os.listdir(path)))

    def exists(self, path: str) -> bool:
        """See `Disk`."""
        return path in self._names or os.path.isdir(path)

    def open_index(self, path: str, *, durable: bool) -> lmdb.Environment:
        """See `Disk`. Commits of a durable one are operations of this disk."""
        if not os.path.exists(os.path.join(path, "data.mdb")):
            self._unnamed.add(path)
        env: Any = super().open_index(path, durable=durable)
        if durable:
            env = _Environment(env, self._step)
        else:
            self._views.add(path)
        return cast("lmdb.Environment", env)

    def settle_index(self, env: lmdb.Environment) -> None:
        """See `Disk`."""
        cut = self._step()
        super().settle_index(env)
        self._settled[env.path()] = _last_commit(env.path())
        self._after(cut)

    def space(self, path: str) -> tuple[int, int]:
        """See `Disk`."""
        del path
        return self.free, self._total


class _Environment:
    """An LMDB environment whose commits are operations of a simulated disk."""

    def __init__(self, env: Any, step: Callable[[], bool]) -> None:
        self._env, self._step = env, step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def begin(self, *arguments: Any, write: bool = False, **options: Any) -> Any:
        transaction = self._env.begin(*arguments, write=write, **options)
        return _Transaction(transaction, self._step) if write else transaction


class _Transaction:
    """A transaction that writes; the power may go before its commit or after."""

    def __init__(self, transaction: Any, step: Callable[[], bool]) -> None:
        self._transaction, self._step = transaction, step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transaction, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.commit()
        else:
            self._transaction.abort()

    def commit(self) -> None:
        try:
            cut = self._step()
        except PowerCut:
            self._transaction.abort()
            raise
        self._transaction.commit()
        if cut:
            raise PowerCut


def _roots(folder: str) -> list[tuple[int, int]]:
    """LMDB's two root pages: the number of their commit, and where it is written."""
    with open(os.path.join(folder, "data.mdb"), "rb") as file:
        start = file.read(2 * 65_536)
    page = struct.unpack_from("<I", start, 16 + 24)[0]
    places = (_META_TXNID, page + _META_TXNID)
    return [(struct.unpack_from("<Q", start, place)[0], place) for place in places]


def _last_commit(folder: str) -> int:
    return max(_roots(folder))[0]


def _undo_last_commit(folder: str, *, settled: int) -> None:
    """Make the newer root page an older one, as if it had never reached the platter."""
    newest, place = max(_roots(folder))
    if newest > max(settled, 1):
        with open(os.path.join(folder, "data.mdb"), "r+b") as file:
            file.seek(place)
            file.write(struct.pack("<Q", newest - 2))

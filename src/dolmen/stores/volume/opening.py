"""Opening a volume together with other processes, and leaving it.

Two locks: `opening.lock` is held while one process opens; `users.lock` is held
shared by everyone who has the volume open. Whoever gets `users.lock` alone is the
first: nobody else can have put anything into *recent*, so it is emptied and
filled again from the segments. `reindex` needs the volume for itself in the same way.

Whether a process lives is told by its locks alone, which the kernel drops with it: no
process id is kept or compared, as containers give the same ones again. flock does not
always reach from one machine to another, so the folder also says which machine holds it.
"""

from __future__ import annotations

import socket
import uuid
from contextlib import ExitStack

from dolmen.errors import BadVolume
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.index import Index, mark_of_doubt
from dolmen.stores.volume.layout import Layout, doubt, write_whole
from dolmen.stores.volume.recent import Recent
from dolmen.stores.volume.recovery import leftover_segments, recover


def this_machine() -> list[str]:
    """Words of which machines have none in common: host name with machine id, and boot id.

    The containers of a machine have names of their own, but one boot id. When the machine
    starts again it has another one, and nobody from before is left.
    """
    names = f"{socket.gethostname()}/{_word('/etc/machine-id') or uuid.getnode()}"
    return [names, *_word("/proc/sys/kernel/random/boot_id").split()]


def _word(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


class Membership:
    """The share of this process in an open volume: its locks, `index` and `recent`.

    `leave` lets go of whatever it has by then, so it is also what a failed `join` needs.
    """

    def __init__(self, disk: Disk, layout: Layout) -> None:
        self._disk, self._layout = disk, layout
        self._locks: list[int] = []
        self._holds = False
        self._open = ExitStack()

    def join(self) -> None:
        """Open the index and recent, recovering what dead processes left.

        Raises `BadVolume` when another machine has the volume open, or this very process.
        """
        disk, layout = self._disk, self._layout
        opening, users = self._open_locks()
        disk.lock(opening, wait=True)
        alone = disk.lock(users)
        self._hold()
        if alone:
            put_new_index_in_place(disk, layout)
        if disk.exists(mark_of_doubt(layout.index)):
            raise BadVolume(doubt(layout))
        if alone:
            # Written without sync: after a power cut it may hold anything.
            disk.remove_folder(layout.recent)
            disk.make_directory(layout.recent)
        self.index = Index(disk, layout.index)
        self._open.callback(self.index.close)
        self.recent = Recent(disk, layout.recent)
        self._open.callback(self.recent.close)
        if alone:
            if not self.index.last_number() and disk.names(layout.sealed):
                raise BadVolume(
                    f"the index of {layout.root} is missing, but its segments are there: "
                    f"run `dolmen reindex volume:{layout.root}`, which rebuilds it from them"
                )
            last = max([self.index.last_number(), *leftover_segments(disk, layout)])
            self.recent.begin(sequence=self.index.last_sequence() + 1, number=last + 1)
        recover(disk, layout, self.index, self.recent)
        disk.lock(users, shared=True, wait=True)
        disk.unlock(opening)

    def join_alone(self) -> None:
        """Have the volume for this process only; raises `BadVolume` when others use it."""
        opening, users = self._open_locks()
        self._disk.lock(opening, wait=True)
        if not self._disk.lock(users):
            raise BadVolume(
                f"{self._layout.root} is in use; stop the servers that have it open, then try again"
            )
        self._hold()

    def recover_dead(self) -> None:
        """Recover segments of processes that died while this one lives."""
        opening = self._locks[0]
        if not self._disk.lock(opening):
            return  # somebody is at it
        try:
            recover(self._disk, self._layout, self.index, self.recent)
        finally:
            self._disk.unlock(opening)

    def leave(self) -> None:
        """Let go; the last to leave takes the machine's name off the folder."""
        self._open.close()
        disk = self._disk
        try:
            if self._holds:
                opening, users = self._locks
                disk.lock(opening, wait=True)  # nobody joins meanwhile
                if disk.lock(users) and disk.exists(self._layout.holder):
                    disk.unlink(self._layout.holder)
        finally:
            while self._locks:
                disk.close(self._locks.pop())

    def _open_locks(self) -> list[int]:
        for name in ("opening", "users"):
            self._locks.append(self._disk.open_lock(self._layout.lock(name)))
        return self._locks

    def _hold(self) -> None:
        """Note that this machine has the volume, unless another one does."""
        disk, path, machine = self._disk, self._layout.holder, this_machine()
        found: list[str] = []
        if disk.exists(path):
            fd = disk.open(path)
            try:
                found = disk.read(fd, 1000, 0).decode("utf-8", "replace").split()
            finally:
                disk.close(fd)
        if found and set(found).isdisjoint(machine):
            raise BadVolume(
                f"{self._layout.root} is open on another machine ({found[0].split('/')[0]}); if "
                f"that machine is gone for good, remove the file {path} and start again"
            )
        if found != machine:
            write_whole(disk, path, "\n".join([*machine, ""]).encode())
        self._holds = True


def put_new_index_in_place(disk: Disk, layout: Layout) -> None:
    """Let the index that a reindex completed take the place of the old one, if there is one.

    It bears its name only when it is complete, and nobody opens the volume before this is
    done, so it may be repeated after any crash.
    """
    if disk.exists(layout.new_index):
        disk.remove_folder(layout.index)
        if disk.exists(mark_of_doubt(layout.index)):
            disk.unlink(mark_of_doubt(layout.index))
        disk.rename(layout.new_index, layout.index)
        disk.flush_directory(layout.root)

"""Opening a volume together with other processes, and leaving it.

Two locks: `opening.lock` is held while one process opens; `users.lock` is held
shared by everyone who has the volume open. Whoever gets `users.lock` alone is the
first: nobody else can have put anything into *recent*, so it is emptied and
filled again from the segments. `reindex` needs the volume for itself in the same way.

flock does not always reach from one machine to another, so the folder also says
which machine holds it.
"""

from __future__ import annotations

import socket
import uuid

from dolmen.errors import BadVolume
from dolmen.stores.volume.disk import Disk
from dolmen.stores.volume.index import Index
from dolmen.stores.volume.layout import Layout, write_whole
from dolmen.stores.volume.recent import Recent
from dolmen.stores.volume.recovery import leftover_segments, recover


def this_machine() -> str:
    """One word that differs from machine to machine."""
    try:
        with open("/etc/machine-id", encoding="ascii") as file:
            found = file.read().strip()
    except OSError:
        found = ""
    return f"{socket.gethostname()}/{found or uuid.getnode()}"


class Membership:
    """The share of this process in an open volume."""

    def __init__(self, disk: Disk, layout: Layout) -> None:
        self._disk, self._layout = disk, layout
        self._opening = disk.open_lock(layout.lock("opening"))
        self._users = disk.open_lock(layout.lock("users"))

    def join(self) -> tuple[Index, Recent]:
        """Open the index and recent, recovering what dead processes left.

        Raises `BadVolume` when another machine has the volume open.
        """
        disk, layout = self._disk, self._layout
        disk.lock(self._opening, wait=True)
        try:
            alone = disk.lock(self._users)
            self._hold()
            index = Index(disk, layout.index)
            if alone:  # written without sync: after a power cut it may hold anything
                disk.remove_folder(layout.recent)
                disk.make_directory(layout.recent)
            recent = Recent(disk, layout.recent)
            if alone:
                if not index.last_number() and disk.names(layout.sealed):
                    raise BadVolume(
                        f"the index of {layout.root} is missing, but its segments are there: "
                        f"run `dolmen reindex volume:{layout.root}`, which rebuilds it from them"
                    )
                last = max([index.last_number(), *leftover_segments(disk, layout)])
                recent.begin(sequence=index.last_sequence() + 1, number=last + 1)
            recover(disk, layout, index, recent)
            disk.lock(self._users, shared=True, wait=True)
        finally:
            disk.unlock(self._opening)
        return index, recent

    def join_alone(self) -> None:
        """Have the volume for this process only; raises `BadVolume` when others use it."""
        self._disk.lock(self._opening, wait=True)
        if not self._disk.lock(self._users):
            self._disk.unlock(self._opening)
            raise BadVolume(
                f"{self._layout.root} is in use by another process; stop the servers that have "
                "it open, then try again"
            )
        self._hold()

    def recover_dead(self, index: Index, recent: Recent) -> None:
        """Recover segments of processes that died while this one lives."""
        if not self._disk.lock(self._opening):
            return  # somebody is at it
        try:
            recover(self._disk, self._layout, index, recent)
        finally:
            self._disk.unlock(self._opening)

    def leave(self) -> None:
        """Let go; the last to leave takes the machine's name off the folder."""
        disk = self._disk
        if disk.lock(self._users) and disk.exists(self._layout.holder):
            disk.unlock(self._users)
            disk.unlink(self._layout.holder)
        disk.close(self._users)
        disk.close(self._opening)

    def _hold(self) -> None:
        """Note that this machine has the volume, unless another one does."""
        disk, path, machine = self._disk, self._layout.holder, this_machine()
        if disk.exists(path):
            fd = disk.open(path)
            found = disk.read(fd, 1000, 0).decode("utf-8", "replace").strip()
            disk.close(fd)
            if found == machine:
                return
            raise BadVolume(
                f"{self._layout.root} is open on another machine ({found.split('/')[0]}); if that "
                f"machine is gone for good, remove the file {path} and start again"
            )
        write_whole(disk, path, machine.encode() + b"\n")

import errno
import os
from collections.abc import Callable

import pytest

from dolmen.stores.volume.disk import Disk

UNFAILING = ("arm", "close", "unlock", "write_behind", "forget")


class FailingDisk(Disk):
    """Fails at the call of a given number, counted from `arm`, and from then on if it `stays`.

    A write that fails has written a part.
    """

    def __init__(self) -> None:
        self.left, self.error, self.stays = 0, 0, False

    def arm(self, number: int, error: int = errno.EIO, *, stays: bool = False) -> None:
        """Let the call of this number fail; 0 for none."""
        self.left, self.error, self.stays = number, error, stays

    def __getattribute__(self, name: str) -> Callable:
        found = super().__getattribute__(name)
        if name in UNFAILING or not callable(found):
            return found

        def call(*arguments, **options):
            if self.left == 1:
                self.left = 1 if self.stays else 0
                if name == "write":
                    fd, buffers, offset = arguments
                    data = b"".join(buffers)
                    found(fd, [data[: len(data) // 2]], offset)
                raise OSError(self.error, os.strerror(self.error))
            self.left = max(self.left - 1, 0)
            return found(*arguments, **options)

        return call


@pytest.fixture
def failing() -> type[FailingDisk]:
    return FailingDisk

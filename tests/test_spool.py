import errno
import os
import random

import pytest

from dolmen.errors import Corrupt, Full
from dolmen.spool import Spool


def test_what_is_appended_is_read_from_anywhere(tmp_path):
    spool, data = Spool(str(tmp_path)), random.Random(1).randbytes(100_000)
    for at in range(0, len(data), 30_000):
        spool.append(memoryview(data)[at : at + 30_000])
    assert spool.size == len(data)
    for at, length in [(0, 100_000), (0, 1), (99_999, 1), (50_000, 200_000), (100_000, 5)]:
        assert spool.read(at, memoryview(bytearray(length))) == data[at : at + length]
    assert not os.listdir(tmp_path), "it has no name"


def test_its_descriptor_goes_with_it(tmp_path, descriptors):
    before = descriptors()
    spools = [Spool(str(tmp_path)) for _ in range(5)]
    appends = [spool.append for spool in spools]
    del spools
    assert descriptors() == before + 5, "somebody may still append"
    del appends
    assert descriptors() == before


def test_no_room_says_where(tmp_path, monkeypatch):
    with pytest.raises(Full, match="absent"):
        Spool(str(tmp_path / "absent"))
    spool = Spool(str(tmp_path))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(Full, match="No space left"):
        spool.append(b"data")


def test_bytes_that_are_gone_are_missed(tmp_path):
    spool = Spool(str(tmp_path))
    spool.append(b"data")
    os.truncate(f"/proc/self/fd/{spool._fd}", 2)
    with pytest.raises(Corrupt):
        spool.read(0, memoryview(bytearray(4)))

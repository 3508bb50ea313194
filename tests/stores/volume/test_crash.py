"""No crash loses what was answered, or shows what was not: on a simulated disk.

The sabotages are one-line defects of the volume's own code; each must be found. (That a removal
is carried by compaction is in `test_compaction`, with what happens if it is not.)
"""

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dolmen.errors import DolmenError
from dolmen.stores.volume import recovery
from dolmen.stores.volume.catalog import Catalog
from dolmen.stores.volume.commit import Log
from dolmen.stores.volume.compaction import Compactor
from dolmen.stores.volume.folder import SEGMENT, Folder
from dolmen.stores.volume.large import LargeFile
from dolmen.stores.volume.segment import Scanner
from dolmen.testing.crash import SimulatedDisk, SimulatedIndex
from stores.volume.conftest import Opener, flip, put
from stores.volume.crashing import Trial, small_sizes

SEEDS = int(os.environ.get("DOLMEN_CRASHES", "120"))
TRIED = 300
"""Seeds after which a sabotage counts as not found."""


@pytest.mark.parametrize("part", range(4))
def test_after_any_crash_what_was_answered_is_there_and_nothing_is_half_there(part: int) -> None:
    with small_sizes():
        for seed in range(part * SEEDS // 4, (part + 1) * SEEDS // 4):
            trial = Trial(seed)
            try:
                trial.run()
            except BaseException as error:
                error.add_note(f"seed {seed}")
                raise


Patch = pytest.MonkeyPatch


def write_without_flush(patch: Patch) -> None:
    write = SimulatedDisk.write
    patch.setattr(SimulatedDisk, "write", lambda *a, sync=False: write(*a))


def answer_before_the_flush(patch: Patch) -> None:
    def early(log: Log, parts: list[bytes], size: int) -> None:
        active, at = log.active, log.active.end
        active.end += size
        log._loop.call_soon(log._end, None, size)
        log._loop.call_soon(lambda: active.folder.disk.write(active.fd, parts, at, sync=True))

    patch.setattr(Log, "_write", early)


def watermark_before_the_entries(patch: Patch) -> None:
    apply = SimulatedIndex.apply

    def ahead(self: SimulatedIndex, changes: dict[bytes, bytes | None]) -> None:
        rest = dict(changes)
        if b"fw" in rest:
            apply(self, {b"fw": rest.pop(b"fw")})
        apply(self, rest)

    patch.setattr(SimulatedIndex, "apply", ahead)


def unlink_before_the_index_is_flushed(patch: Patch) -> None:
    ask = Compactor._ask

    async def without(self: Compactor, call: Callable[..., object], *rest: object) -> object:
        if getattr(call, "__name__", "") == "flush":
            return None
        return await ask(self, call, *rest)

    patch.setattr(Compactor, "_ask", without)


def unlink_before_the_moves_are_committed(patch: Patch) -> None:
    carry = Compactor._carry

    async def late(self: Compactor, number: int, names: list[str]) -> None:
        disk, path = self._folder.disk, self._folder.file(number, SEGMENT)
        held = disk._names[path]
        disk.unlink(path)
        disk.flush_directory(self._folder.segments)
        disk._names[path] = held
        await carry(self, number, names)

    patch.setattr(Compactor, "_carry", late)


def believe_the_last_batch(patch: Patch) -> None:
    patch.setattr(Scanner, "is_sound", lambda self, found: True)


def recover_without_a_flush(patch: Patch) -> None:
    flush = SimulatedDisk.flush

    def only_outside(self: SimulatedDisk, fd: int) -> None:
        import sys

        if sys._getframe(1).f_code is not recovery._replay.__code__:
            flush(self, fd)

    patch.setattr(SimulatedDisk, "flush", only_outside)


def believe_the_cache_after_a_failed_flush(patch: Patch) -> None:
    patch.setattr(SimulatedDisk, "forget", lambda self, fd: None)


def leave_names_unflushed(patch: Patch) -> None:
    flush = SimulatedDisk.flush_directory

    def only_outside(self: SimulatedDisk, path: str) -> None:
        if not path.endswith("/segments"):
            flush(self, path)

    patch.setattr(SimulatedDisk, "flush_directory", only_outside)


def rename_a_large_blob_before_its_flush(patch: Patch) -> None:
    finish = LargeFile._finish

    def unflushed(self: LargeFile) -> bytes:
        flush, self._disk.flush = self._disk.flush, lambda fd: None  # type: ignore[method-assign]
        try:
            return finish(self)
        finally:
            self._disk.flush = flush  # type: ignore[method-assign]

    patch.setattr(LargeFile, "_finish", unflushed)


def use_a_number_again(patch: Patch) -> None:
    def low(self: Catalog) -> int:
        self._following = max(1, self._following - 1)
        return self._following

    patch.setattr(Catalog, "take_number", low)


def leave_files_that_nothing_refers_to(patch: Patch) -> None:
    patch.setattr(Folder, "remove", lambda self, numbers, suffix: None)


def remove_large_blobs_that_are_current(patch: Patch) -> None:
    apply = Catalog.apply

    def applied(self: Catalog, *arguments: object) -> None:
        apply(self, *arguments)
        self.dead.update(self.live)

    patch.setattr(Catalog, "apply", applied)


@pytest.mark.parametrize(
    "sabotage",
    [
        write_without_flush,
        answer_before_the_flush,
        watermark_before_the_entries,
        unlink_before_the_index_is_flushed,
        unlink_before_the_moves_are_committed,
        believe_the_last_batch,
        recover_without_a_flush,
        believe_the_cache_after_a_failed_flush,
        leave_names_unflushed,
        rename_a_large_blob_before_its_flush,
        use_a_number_again,
        leave_files_that_nothing_refers_to,
        remove_large_blobs_that_are_current,
    ],
)
def test_a_sabotage_is_found(sabotage: Callable[[Patch], None]) -> None:
    with small_sizes(), pytest.MonkeyPatch.context() as patch:
        sabotage(patch)
        for seed in range(TRIED):
            try:
                Trial(seed).run()
            except (AssertionError, DolmenError):
                return
    pytest.fail(f"{sabotage.__name__} was not found in {TRIED} trials")


async def test_a_torn_tail_is_cut_off_and_nothing_behind_it_counts(
    tmp_path: Path, opened: Opener
) -> None:
    """Of a batch the first record is torn and the second whole; nobody was answered."""
    store = await opened()
    await put(store, "before")
    await asyncio.to_thread(store.catalog.index.flush)
    assert store.log is not None
    path, end = store.folder.file(store.log.active.number, ".seg"), store.log.active.end
    shutil.copytree(tmp_path / "v", tmp_path / "crashed", symlinks=True)
    await asyncio.gather(*(put(store, n, b"x" * 500) for n in ("torn", "whole")))
    torn = store._live("torn").data[1]
    assert torn == end
    await store.aclose()
    after = path.replace(str(tmp_path / "v"), str(tmp_path / "crashed"))
    shutil.copyfile(path, after)
    flip(after, torn + 200)
    store = await opened(tmp_path / "crashed")
    assert os.path.getsize(after) == end
    assert [info.name async for info in store.list()] == ["before"]

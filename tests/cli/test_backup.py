"""export and import, as a person uses them: files, pipes, interruptions, and what is no export."""

from __future__ import annotations

import json
import os
import pty
import random
import signal
import subprocess
from contextlib import aclosing
from typing import Any

import pytest

from dolmen.payload import Bytes
from dolmen.stores import open_store
from dolmen.testing import calls


async def fill(url: str, count: int) -> None:
    async with aclosing(await open_store(url)) as store:
        rng = random.Random(4)
        for number in range(count):
            await calls.put(store, f"name-{number}", Bytes(rng.randbytes(2_000)))
        await calls.delete(store, "name-1")
        await calls.put(store, "large", Bytes(rng.randbytes(5_000_000)))


async def root(url: str) -> bytes:
    async with aclosing(await open_store(url)) as store:
        return (await store.digests()).root


async def until_written(dolmen: Any, running: Any) -> None:
    """Wait until an export to `backup` has begun."""
    file = dolmen.folder / "backup"
    while not file.exists() or file.stat().st_size < 100:
        assert running.returncode is None
        await dolmen("--version")


@pytest.fixture
async def source(dolmen: Any) -> str:
    url = f"volume:{dolmen.folder}/source"
    await fill(url, 200)
    return url


async def test_a_volume_goes_through_a_file(dolmen: Any, source: str) -> None:
    ended = await dolmen("export", "backup", "volume:source")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith("volume:source → backup: 201 compared, 200 copied (5.1 MiB), 1 del")
    ended = await dolmen("import", "backup", "volume:copy")
    assert (ended.status, ended.err) == (0, "")
    assert await root(f"volume:{dolmen.folder}/copy") == await root(source)
    ended = await dolmen("import", "backup", "volume:copy", "--json")
    lines = [json.loads(line) for line in ended.out.splitlines()]
    assert (lines[0]["copied"], lines[0]["compared"]) == (0, 201)
    assert (lines[1]["complete"], lines[1]["damaged"]["count"]) == (True, 0)


async def test_a_server_goes_through_a_pipe_into_another(
    dolmen: Any, source: str, blob_server: Any
) -> None:
    one, _ = await blob_server("volume:source")
    two, _ = await blob_server("memory:")
    reading = await dolmen.start("export", "-", one)
    data, said = await reading.communicate()
    assert reading.returncode == 0
    assert b"200 copied" in said
    ended = await dolmen("import", "-", two, given=data)
    assert ended.status == 0
    assert await root(two) == await root(one)


async def test_interrupted_it_goes_on_where_it_was(dolmen: Any, source: str) -> None:
    running = await dolmen.start("export", "backup", source, "--bandwidth", "200000")
    await until_written(dolmen, running)
    running.send_signal(signal.SIGINT)
    await running.communicate()
    assert running.returncode == 130
    ended = await dolmen("import", "backup", "volume:half")
    assert ended.status == 5
    assert "not complete" in ended.out
    assert (await dolmen("export", "backup", source)).status == 0
    assert (await dolmen("import", "backup", "volume:copy")).status == 0
    assert await root(f"volume:{dolmen.folder}/copy") == await root(source)


async def test_an_import_that_was_killed_is_run_again(dolmen: Any, source: str) -> None:
    assert (await dolmen("export", "backup", source)).status == 0
    running = await dolmen.start("import", "-", "volume:copy")
    data = (dolmen.folder / "backup").read_bytes()
    running.stdin.write(data[: len(data) // 2])
    await running.stdin.drain()
    running.kill()
    await running.communicate()
    assert (await dolmen("import", "backup", "volume:copy")).status == 0
    assert await root(f"volume:{dolmen.folder}/copy") == await root(source)


async def test_an_import_that_waits_for_its_input_can_be_interrupted(dolmen: Any) -> None:
    running = await dolmen.start("import", "-", "volume:copy")
    while not (dolmen.folder / "copy" / "dolmen-volume").exists():
        assert running.returncode is None
        await dolmen("--version")
    running.send_signal(signal.SIGINT)
    assert await running.wait() == 130


async def test_damage_is_named_and_all_else_comes(dolmen: Any, source: str) -> None:
    await dolmen("export", "backup", source)
    file = dolmen.folder / "backup"
    data = bytearray(file.read_bytes())
    data[3_000] ^= 1
    file.write_bytes(data[:-100])
    ended = await dolmen("import", "backup", "volume:copy")
    assert ended.status == 5
    assert "damaged in the export, and left out: 1\n  from byte " in ended.out
    assert "its end is missing\n  from byte " in ended.out
    ended = await dolmen("export", "backup", source)
    assert ended.status == 2
    assert "damaged" in ended.err


async def test_what_is_no_export_is_left_alone(dolmen: Any, source: str) -> None:
    (dolmen.folder / "letter").write_text("Dear reader")
    ended = await dolmen("export", "letter", source)
    assert (ended.status, ended.err) == (
        2,
        "dolmen: letter: this is not an archive of dolmen; give another FILE, or remove it\n",
    )
    assert (dolmen.folder / "letter").read_text() == "Dear reader"
    ended = await dolmen("import", "letter", "volume:copy")
    assert ended.status == 5
    assert "not an archive" in ended.err
    ended = await dolmen("import", "nothing", "volume:copy")
    assert (ended.status, ended.err) == (1, "dolmen: nothing: No such file or directory\n")


async def test_a_complete_export_or_one_of_something_else_stays_as_it_is(
    dolmen: Any, source: str
) -> None:
    await dolmen("export", "backup", source)
    ended = await dolmen("export", "backup", source)
    assert ended.status == 2
    assert "backup is a complete export of" in ended.err
    file = dolmen.folder / "backup"
    file.write_bytes(file.read_bytes()[:-10])
    await fill(f"volume:{dolmen.folder}/other", 3)
    ended = await dolmen("export", "backup", "volume:other")
    assert ended.status == 2
    assert f"begun as an export of {source}" in ended.err


async def test_a_reader_that_goes_is_told_of(dolmen: Any, source: str) -> None:
    running = await dolmen.start("export", "-", source, stdout=subprocess.PIPE)
    running.stdout._transport.close()  # the pipe's reader, as head is when it has enough
    assert await running.wait() == 4
    assert b"the reader closed the pipe" in await running.stderr.read()


async def test_two_exports_do_not_write_to_one_file(dolmen: Any, source: str) -> None:
    running = await dolmen.start("export", "backup", source, "--bandwidth", "1000")
    await until_written(dolmen, running)
    ended = await dolmen("export", "backup", source)
    assert ended.status == 2
    assert "another export is writing to it" in ended.err
    running.kill()
    await running.communicate()


async def test_a_cluster_is_one_export_and_goes_to_another(
    dolmen: Any, source: str, blob_server: Any
) -> None:
    urls = [(await blob_server("memory:"))[0] for _ in range(3)]
    servers = "\n".join(
        f'[[groups.servers]]\nname = "{name}"\nurl = "{url}"'
        for name, url in zip("abc", urls, strict=True)
    )
    (dolmen.folder / "cluster.toml").write_text(
        f'[[groups]]\nname = "main"\ncopies = 2\n{servers}\n'
    )
    await dolmen("export", "backup", source)
    assert (await dolmen("import", "backup", "--config", "cluster.toml")).status == 0
    checked = await dolmen("check", "--config", "cluster.toml", "--data", "--json")
    assert checked.status == 0, checked
    assert (await dolmen("export", "again", "--config", "cluster.toml")).status == 0
    assert (await dolmen("import", "again", "volume:copy")).status == 0
    assert await root(f"volume:{dolmen.folder}/copy") == await root(source)


async def test_a_terminal_gets_no_export(dolmen: Any, source: str) -> None:
    terminal, shown = pty.openpty()
    running = await dolmen.start("export", "-", source, stdout=shown)
    _, said = await running.communicate()
    os.close(terminal)
    os.close(shown)
    assert running.returncode == 2
    assert b"an export is binary: give a FILE, or pipe it into another command" in said


async def test_what_is_no_file_takes_an_export_by_redirection_only(
    dolmen: Any, source: str
) -> None:
    os.mkfifo(dolmen.folder / "pipe")
    for path in ("pipe", "/dev/null"):
        ended = await dolmen("export", path, source)
        assert ended.status == 2
        assert f"{path} is no file: give -, and redirect standard output to it" in ended.err

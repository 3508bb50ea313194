"""put, get, ls, stat and rm."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dolmen.http import Request, Response
from dolmen.http.messages import Streamed

BIG = bytes(range(256)) * 8_000


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def server(dolmen: Any, api: Any) -> Any:
    dolmen.environment["DOLMEN_SERVER"] = api.url
    return api


async def test_files_go_in_and_come_out(dolmen: Any, server: Any) -> None:
    (dolmen.folder / "a.txt").write_bytes(b"hello")
    (dolmen.folder / "b.bin").write_bytes(BIG)
    put = await dolmen("put", "a.txt", "b.bin")
    assert put.err == ""
    assert put.out == f"{digest(b'hello')}  a.txt\n{digest(BIG)}  b.bin\n"
    assert put.status == 0
    (dolmen.folder / "b.bin").unlink()
    got = await dolmen("get", digest(BIG))
    assert (got.status, got.out, got.err) == (0, "b.bin\n", "")
    assert (dolmen.folder / "b.bin").read_bytes() == BIG


async def test_json_says_the_same_for_programs(dolmen: Any, server: Any) -> None:
    (dolmen.folder / "a.txt").write_bytes(b"hello")
    put = json.loads((await dolmen("put", "a.txt", "--json")).out)
    assert put == {"id": digest(b"hello"), "size": 5, "copies": 2, "file": "a.txt"}
    assert json.loads((await dolmen("ls", "--json")).out) == {"id": put["id"]}
    stat = json.loads((await dolmen("stat", put["id"], "--json")).out)
    assert stat["metadata"] == {"x-file-name": "a.txt", "x-mime-type": "text/plain"}
    got = json.loads((await dolmen("get", put["id"], "-o", "b.txt", "--json")).out)
    assert got == {"id": put["id"], "file": "b.txt"}
    assert json.loads((await dolmen("rm", put["id"], "--json")).out)["deleted"] is True
    assert (await dolmen("ls")).out == ""


async def test_pipes_work_both_ways(dolmen: Any, server: Any) -> None:
    put = await dolmen("put", "-", "--name", "piped.bin", given=BIG)
    assert put.out == f"{digest(BIG)}  -\n"
    process = await dolmen.start("get", digest(BIG), "-o", "-")
    out, err = await process.communicate()
    assert out == BIG
    assert err == b""
    assert "piped.bin" in (await dolmen("stat", digest(BIG))).out


async def test_a_file_that_is_no_utf_8_keeps_its_name(dolmen: Any, server: Any) -> None:
    name = os.fsdecode(b"\xff \xc3\xa4.txt")
    (dolmen.folder / name).write_bytes(b"hello")
    dolmen.environment["PYTHONIOENCODING"] = "utf-8:strict"  # as with a language set
    process = await dolmen.start("put", name)
    out, err = await process.communicate()
    assert (os.fsencode(f"{digest(b'hello')}  {name}\n"), b"") == (out, err)
    assert json.loads((await dolmen("put", name, "--json")).out)["file"] == name
    (dolmen.folder / name).unlink()
    process = await dolmen.start("get", digest(b"hello"))
    out, _ = await process.communicate()
    assert out == os.fsencode(f"{name}\n")
    assert (dolmen.folder / name).read_bytes() == b"hello"


async def test_what_is_there_is_not_replaced_unless_told_to_and_only_a_file(
    dolmen: Any, server: Any
) -> None:
    (dolmen.folder / "a.txt").write_bytes(b"hello")
    os.mkfifo(dolmen.folder / "pipe")
    await dolmen("put", "a.txt")
    got = await dolmen("get", digest(b"hello"))
    assert got.status == 2
    assert got.err == "dolmen: a.txt is there already; --force replaces it, -o names another file\n"
    assert (await dolmen("get", digest(b"hello"), "--force")).status == 0
    got = await dolmen("get", digest(b"hello"), "-o", "pipe", "--force")
    assert got.status == 2
    assert "pipe is no file that could be replaced" in got.err
    assert (dolmen.folder / "pipe").is_fifo()


async def test_each_failure_has_its_status_and_one_line(dolmen: Any, server: Any) -> None:
    async def fails(status: int, said: str, *arguments: str) -> None:
        ended = await dolmen(*arguments)
        assert ended.status == status, ended
        assert said in ended.err
        assert ended.err.startswith("dolmen: ")
        assert ended.err.count("\n") == 1

    nobody = "0" * 64
    await fails(3, nobody, "get", nobody)
    await fails(3, nobody, "stat", nobody)
    await fails(2, "no object's id", "get", "nonsense")
    await fails(1, "missing.txt: No such file", "put", "missing.txt")
    await fails(4, "", "stat", nobody, "--server", "http://127.0.0.1:1")
    await fails(2, "write http://HOST:PORT", "ls", "--server", "ftp://x")
    server.stores[0].down = True
    await fails(4, "", "get", nobody)
    server.stores[1].down = True
    await fails(4, "", "rm", nobody)
    for store in server.stores:
        store.down = False
    await dolmen("put", "-", given=b"hello")
    server.spoil = True
    await fails(5, "has the digest", "get", digest(b"hello"))
    assert os.listdir(dolmen.folder) == []


async def test_one_file_that_fails_does_not_stop_the_others(dolmen: Any, server: Any) -> None:
    (dolmen.folder / "b").write_bytes(b"b")
    ended = await dolmen("put", "missing", "b")
    assert ended.status == 1
    assert ended.out == f"{digest(b'b')}  b\n"
    assert "missing" in ended.err


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)]
)
async def test_told_to_stop_it_cleans_up_and_says_so(
    dolmen: Any, server: Any, number: signal.Signals, status: int
) -> None:
    await dolmen("put", "-", "--name", "big", given=BIG)
    begun = asyncio.Event()
    release = asyncio.Event()

    async def slow(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield BIG[:100_000]
            begun.set()
            await release.wait()

        return Response(200, [], Streamed(pieces(), len(BIG)))

    server.server.handle = slow
    process = await dolmen.start("get", digest(BIG))
    await begun.wait()
    while not os.listdir(dolmen.folder):
        await asyncio.sleep(0.001)
    process.send_signal(number)
    out, err = await process.communicate()
    release.set()
    assert process.returncode == status
    assert err == b""
    assert out == b""
    assert os.listdir(dolmen.folder) == []


async def test_a_reader_that_has_seen_enough_is_no_failure(dolmen: Any, server: Any) -> None:
    await dolmen("put", "-", given=b"hello")
    for arguments in (["ls"], ["ls", "--json"], ["stat", digest(b"hello")]):
        reading, writing = os.pipe()
        os.close(reading)
        process = await dolmen.start(*arguments, stdout=writing)
        os.close(writing)
        _, err = await process.communicate()
        assert (process.returncode, err) == (0, b"")


async def test_status_shows_the_cluster(dolmen: Any, server: Any) -> None:
    ended = await dolmen("status")
    assert ended.status == 0
    assert "all" in ended.out
    assert json.loads((await dolmen("status", "--json")).out)["groups"][0]["group"] == "all"
    server.stores[0].down = True
    assert (await dolmen("status")).status == 1


async def test_help_teaches_with_examples_and_unknown_options_are_usage(
    dolmen: Any, tmp_path: Path
) -> None:
    for command in ("put", "get", "ls", "replicate", "serve", "blob-server", "api-server"):
        ended = await dolmen(command, "--help")
        assert ended.status == 0
        assert f"dolmen {command}" in ended.out
    ended = await dolmen("put", "--nonsense", "x")
    assert ended.status == 2
    assert "--nonsense" in ended.err
    assert (await dolmen("--version")).out.startswith("dolmen ")

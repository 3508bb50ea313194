"""The client against a server on the network."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dolmen.client import AsyncClient, Client, download_file, upload_file
from dolmen.errors import (
    BadContent,
    BadSetting,
    Corrupt,
    InvalidName,
    NotFound,
    Unavailable,
)

BIG = random.Random(1).randbytes(9_000_000)  # three chunks


@pytest.fixture
async def client(api: Any) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(api.url) as client:
        yield client


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def fetched(client: AsyncClient, object_id: str, **options: Any) -> bytes:
    async with client.download(object_id, **options) as download:
        return b"".join([piece async for piece in download])


@pytest.mark.parametrize("data", [b"", b"hello", BIG])
async def test_what_was_uploaded_comes_back(client: AsyncClient, data: bytes) -> None:
    stored = await client.upload(data)
    assert (stored.id, stored.size, stored.copies) == (digest(data), len(data), 2)
    assert await fetched(client, stored.id) == data
    if len(data) > 4:
        assert await fetched(client, stored.id, byte_range=(1, 4)) == data[1:4]
        end = len(data)
        assert await fetched(client, stored.id, byte_range=(end - 2, end)) == data[-2:]


@pytest.mark.parametrize("known", [True, False])
async def test_a_stream_is_uploaded_with_or_without_its_length(
    client: AsyncClient, known: bool
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(BIG), 70_000):
            yield BIG[at : at + 70_000]

    stored = await client.upload(pieces(), size=len(BIG) if known else None)
    assert await fetched(client, stored.id) == BIG


async def test_name_type_and_metadata_travel(client: AsyncClient) -> None:
    stored = await client.upload(
        b"x",
        file_name="Übung 100%\n.txt",
        mime_type="text/plain",
        metadata={"X-Note": "kept"},
    )
    info = await client.stat(stored.id)
    assert info.file_name == "Übung 100%.txt"  # as it can be shown and created
    assert info.mime_type == "text/plain"
    assert info.metadata["x-note"] == "kept"
    assert (info.copies, info.wanted, info.degraded) == (2, 2, False)
    assert {server["server"] for server in info.servers} == {"a", "b"}
    async with client.download(stored.id) as download:
        assert download.info.file_name == "Übung 100%.txt"
        assert download.size == 1


@pytest.mark.parametrize("name", ["note", "x-dolmen-stamp"])
async def test_metadata_needs_a_name_of_its_own(client: AsyncClient, name: str) -> None:
    with pytest.raises(ValueError, match="metadata is named x-"):
        await client.upload(b"x", metadata={name: "y"})


async def test_an_upload_that_was_changed_on_the_way_is_noticed(
    client: AsyncClient, api: Any
) -> None:
    api.shift = True
    with pytest.raises(BadContent, match="changed on the way"):
        await client.upload(b"hello")


async def test_an_upload_with_its_id_must_have_that_content(client: AsyncClient) -> None:
    with pytest.raises(BadContent):
        await client.upload(b"hell", expected_id=digest(b"hello"))
    assert (await client.upload(b"hello", expected_id=digest(b"hello"))).size == 5
    assert (await client.upload(b"hello", expected_id=digest(b"hello"))).size == 5


@pytest.mark.parametrize("api", ["sha256", "sha1"], indirect=True)
async def test_a_download_with_the_wrong_content_never_ends_well(
    client: AsyncClient, api: Any
) -> None:
    stored = await client.upload(BIG)
    assert await fetched(client, stored.id) == BIG
    api.spoil = True
    with pytest.raises(Corrupt):
        await fetched(client, stored.id)


async def test_not_there_and_not_to_be_asked_are_different(client: AsyncClient, api: Any) -> None:
    with pytest.raises(NotFound):
        await fetched(client, "0" * 64)
    api.stores[0].down = True
    with pytest.raises(Unavailable):
        await fetched(client, "0" * 64)


async def test_ids_are_checked_before_anything_is_asked() -> None:
    async with AsyncClient("http://127.0.0.1:1") as client:
        with pytest.raises(InvalidName, match="64"):
            await client.stat("../etc/passwd")
        with pytest.raises(Unavailable):
            await client.stat("0" * 64)


async def test_the_listing_goes_through_all_pages(client: AsyncClient) -> None:
    stored = [await client.upload(b"%d" % number) for number in range(2_500)]  # a page has 1,000
    found = [object_id async for object_id in client.list()]
    assert sorted(found) == sorted(each.id for each in stored)


async def test_a_delete_may_be_repeated(client: AsyncClient) -> None:
    stored = await client.upload(b"x")
    await client.delete(stored.id)
    await client.delete(stored.id)
    with pytest.raises(NotFound):
        await client.stat(stored.id)


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x:port", "http://x/path"])
def test_an_address_that_is_none_is_a_bad_setting(url: str) -> None:
    with pytest.raises(BadSetting, match="write http://HOST:PORT"):
        AsyncClient(url)


async def test_a_file_goes_up_and_comes_down_under_its_name(
    client: AsyncClient, tmp_path: Path
) -> None:
    there = tmp_path / "photo.jpg"
    there.write_bytes(BIG)
    moved: list[tuple[int, int | None]] = []
    stored = await upload_file(
        client, str(there), progress=lambda done, total: moved.append((done, total))
    )
    assert moved[-1] == (len(BIG), len(BIG))
    assert (await client.stat(stored.id)).mime_type == "image/jpeg"
    folder = tmp_path / "down"
    folder.mkdir()
    path = await download_file(client, stored.id, str(folder))
    assert path == str(folder / "photo.jpg")
    assert Path(path).read_bytes() == BIG
    assert [each.name for each in folder.iterdir()] == ["photo.jpg"]


async def test_a_file_stays_even_one_that_appears_during_the_download_unless_told_otherwise(
    client: AsyncClient, tmp_path: Path
) -> None:
    stored = await client.upload(BIG)
    path = tmp_path / "file"

    def appear(_done: int, _total: int | None) -> None:
        path.write_bytes(b"mine")

    for _ in range(2):
        with pytest.raises(BadSetting, match="is there already"):
            await download_file(client, stored.id, str(path), progress=appear)
        assert path.read_bytes() == b"mine"
        assert [each.name for each in tmp_path.iterdir()] == ["file"]
    await download_file(client, stored.id, str(path), force=True)
    assert path.read_bytes() == BIG
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


async def test_nothing_is_left_of_a_download_that_failed_or_was_cancelled(
    client: AsyncClient, api: Any, tmp_path: Path
) -> None:
    stored = await client.upload(BIG)
    begun = asyncio.Event()
    task = asyncio.create_task(
        download_file(client, stored.id, str(tmp_path), progress=lambda *_: begun.set())
    )
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(tmp_path.iterdir()) == []
    api.spoil = True
    with pytest.raises(Corrupt):
        await download_file(client, stored.id, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../evil", "evil"),
        (".bashrc", "bashrc"),
        ("..", None),
        ("a\\b", "b"),
        ("\x1b[2J", "[2J"),
        ("\udcff", "\udcff"),
    ],
)
async def test_a_file_name_from_the_server_can_not_leave_the_folder(
    client: AsyncClient, tmp_path: Path, name: str, kept: str | None
) -> None:
    stored = await client.upload(b"x", file_name=name)
    path = await download_file(client, stored.id, str(tmp_path))
    assert path == str(tmp_path / (kept or stored.id))


async def test_plain_programs_have_the_same(api: Any, tmp_path: Path) -> None:
    def use() -> None:
        path = tmp_path / "a.txt"
        path.write_bytes(b"hello")
        with Client(api.url) as client:
            stored = client.upload_file(str(path))
            assert client.upload(b"hello", file_name="a.txt").id == stored.id
            assert client.download(stored.id) == b"hello"
            assert client.download(stored.id, byte_range=(1, 3)) == b"el"
            assert client.stat(stored.id).file_name == "a.txt"
            assert list(client.list()) == [stored.id]
            target = client.download_file(stored.id, str(tmp_path / "b.txt"))
            assert Path(target).read_bytes() == b"hello"
            client.delete(stored.id)
            with pytest.raises(NotFound):
                client.stat(stored.id)
        client.close()

    await asyncio.to_thread(use)

"""URLs: what they may say, and what is said of those that can't be used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from acceptance.processes import Process, ask, free_ports, until_alive
from dolmen.errors import BadSetting
from dolmen.payload import Bytes
from dolmen.store import Capabilities
from dolmen.stores import open_store
from dolmen.stores.objects.parts import GRACE
from dolmen.testing.conformance.material import content
from engines.rclone import KEY, SECRET, Rclone


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://", "names no bucket"),
        ("s3:///path", "names no bucket"),
        ("s3://bucket?colour=blue", "'colour' is not valid"),
        ("s3://bucket?timeout=long", "failed to parse"),
        ("s3://user:hidden@bucket/path", "names no bucket"),
        ("az://container", "Account must be specified"),
        ("az://container?account_name=x&account_key=hidden", "Invalid Access Key"),
        ("gs://bucket?service_account_key=hidden", "can't be used"),
        ("file://host/folder", "names no folder"),
        ("file:folder", "names no folder"),
        ("file:///nowhere/at/all", "No such file"),
        ("file:///etc/passwd", "File exists"),
    ],
)
async def test_a_url_that_cannot_be_used_is_told_in_a_line_without_secrets(
    url: str, said: str
) -> None:
    with pytest.raises(BadSetting) as caught:
        await open_store(url)
    assert said in str(caught.value)
    assert "hidden" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_what_each_promises(rclone: Rclone, tmp_path: Path) -> None:
    for url, durable in ((rclone.url("x"), True), (f"file://{tmp_path}", False)):
        store = await open_store(url)
        assert store.capabilities == Capabilities(
            durable=durable, largest=1 << 40, digests=False, ordered=False, conflicts=False
        )
        await store.aclose()


async def test_credentials_and_settings_come_from_the_environment_too(
    rclone: Rclone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{rclone.port}")
    store = await open_store("s3://bucket/environment")
    await store.put("name", Bytes(b"data"))
    assert await content(store, "name") == b"data"
    await store.aclose()


async def test_paths_of_one_bucket_are_stores_of_their_own(rclone: Rclone) -> None:
    one, other = [await open_store(rclone.url(path)) for path in ("paths/one", "paths/two")]
    await one.put("name", Bytes(b"one"))
    assert [info.name async for info in other.list()] == []
    await other.put("name", Bytes(b"other"))
    assert await content(one, "name") == b"one"
    await one.aclose()
    await other.aclose()


async def test_a_folder_tells_its_room_and_that_it_is_not_durable(tmp_path: Path) -> None:
    store = await open_store(f"file://{tmp_path}/new")
    condition = await store.condition()
    assert condition.free
    assert condition.reasons == []
    assert "power cut" in condition.remarks[0]
    await store.aclose()


async def test_an_open_store_sweeps_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dolmen.stores.objects.sweep._FIRST", 0)
    monkeypatch.setattr("dolmen.stores.objects.sweep._NEXT", 0.001)
    stale = tmp_path / "data/0000/name!" / f"{1:08x}{'0' * 16}"
    stale.mkdir(parents=True)
    (stale / "000000").write_bytes(b"")
    assert GRACE > 1
    store = await open_store(f"file://{tmp_path}")
    while stale.exists():
        await store.condition()
    tmp_path.joinpath("sweeps").rename(tmp_path / "gone")
    tmp_path.joinpath("sweeps").write_bytes(b"in the way")
    while not (reasons := (await store.condition()).reasons):
        pass
    assert "could not be swept" in reasons[0]
    await store.aclose()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_blob_server_serves_a_bucket_with_any_number_of_workers(
    rclone: Rclone, workers: int
) -> None:
    (port,) = free_ports(1)
    url = rclone.url(f"served-{workers}")
    server = Process(
        *("blob-server", "--store", url, "--listen", f"127.0.0.1:{port}"),
        *("--workers", workers),
    )
    try:
        until_alive(port)
        for size in (1000, 1_000_000):
            data = bytes(size)
            assert ask(port, "POST", f"/blob/n{size}", data)[0] == 201
            for _ in range(4):
                assert ask(port, "GET", f"/blob/n{size}")[::2] == (200, data)
        assert ask(port, "GET", "/blob/absent")[0] == 404
    finally:
        server.end()
    assert server.process.returncode == 0


def test_a_process_ends_well_right_after_its_last_answer(tmp_path: Path) -> None:
    """The driver alone makes many of these abort."""
    code = f"""
import asyncio
from dolmen.payload import Bytes
from dolmen.stores import open_store

async def main():
    store = await open_store("file://{tmp_path}")
    await store.put("name", Bytes(bytes(500_000)))
    print([info.name async for info in store.list()])

asyncio.run(main())
"""
    for _ in range(10):
        ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        assert ended.stdout == b"['name']\n"

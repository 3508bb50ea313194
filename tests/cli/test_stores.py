"""blob-server, replicate, status, reindex and config show, over real volumes and sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from dolmen.payload import Bytes
from dolmen.stores import open_store
from dolmen.stores.volume import open_volume
from dolmen.testing import calls


async def fill(url: str, *names: str) -> None:
    store = await open_store(url)
    for name in names:
        await calls.put(store, name, Bytes(name.encode()))
    await store.aclose()


async def names(url: str) -> list[str]:
    store = await open_store(url)
    found = sorted([info.name async for info in store.list()])
    await store.aclose()
    return found


async def mostly_deleted(path: str) -> str:
    """A volume of several segments in which one of 40 blobs stands."""
    store = await open_volume(path, segment_size=1 << 20)
    for number in range(40):
        await calls.put(store, f"n{number}", Bytes(bytes(100_000)))
    for number in range(1, 40):
        await calls.delete(store, f"n{number}")
    await store.aclose()
    return path


def open_files(pid: int) -> set[str]:
    found = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed while we look
            found.add(os.readlink(each))
    return found


async def test_replicate_copies_from_a_server_to_a_volume(dolmen: Any, blob_server: Any) -> None:
    url, process = await blob_server("volume:source")
    await fill(url, "a", "b", "c")
    ended = await dolmen("replicate", url, "volume:target", "--json")
    assert ended.status == 0, ended
    report = json.loads(ended.out)
    assert report["complete"] is True
    assert (report["copied"], report["bytes"], report["refused"]) == (3, 3, {})
    assert await names(f"volume:{dolmen.folder}/target") == ["a", "b", "c"]
    again = await dolmen("replicate", url, "volume:target")
    assert again.out == f"{url} → volume:target: 3 compared, in sync\n"
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0


async def test_replicate_brings_the_servers_of_a_config_together(
    dolmen: Any, blob_server: Any
) -> None:
    first, _ = await blob_server("memory:")
    second, _ = await blob_server("memory:")
    await fill(first, "a")
    await fill(second, "b")
    (dolmen.folder / "sos.conf").write_text(f"{first}\n{second}\n")
    assert (await dolmen("replicate", "--config", "sos.conf")).status == 0
    assert await names(first) == await names(second) == ["a", "b"]
    assert (await dolmen("replicate", "--config", "sos.conf")).out == "2 servers, in sync\n"


async def test_a_server_that_is_away_makes_replicate_fail_and_is_named(
    dolmen: Any, blob_server: Any
) -> None:
    url, _ = await blob_server("memory:")
    await fill(url, "a")
    ended = await dolmen("replicate", url, "http://127.0.0.1:1", "--json")
    assert ended.status == 4
    report = json.loads(ended.out)
    assert report["failing"] == "destination"
    assert report["complete"] is False


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["replicate", "memory:"], "both SOURCE and DESTINATION"),
        (["replicate", "memory:", "memory:", "--config", "x"], "not both"),
        (["replicate", "ftp://x", "memory:"], "names no store"),
        (["replicate"], "no cluster is named"),
        (["blob-server"], "use --store volume:"),
        (["blob-server", "--store", "ftp:x"], "should be a store URL"),
        (["blob-server", "--store", "memory:", "--listen", "0.0.0.0:0"], "--open"),
        (["api-server", "-b", "memory:", "--workers", "0"], "should be greater than"),
        (["api-server"], "use --blob-server"),
        (["serve", "--listen", "127.0.0.1:9992"], "can't both be served on port 9992"),
        (["config", "show", "--config", "missing.toml"], "there is no such file"),
    ],
)
async def test_bad_settings_and_usage_exit_with_2(
    dolmen: Any, arguments: list[str], said: str
) -> None:
    ended = await dolmen(*arguments)
    assert ended.status == 2
    assert said in " ".join(ended.err.replace("│", " ").split())
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("command", ["reindex", "compact", "scrub", "status", "check", "export -"])
async def test_no_volume_is_made_where_there_is_none(dolmen: Any, command: str) -> None:
    ended = await dolmen(*command.split(), "volume:mistyped")
    said = "dolmen: there is no volume in mistyped: check the path\n"
    assert (ended.status, ended.out, ended.err) == (1, "", said)
    assert not (dolmen.folder / "mistyped").exists()


async def test_reindex_rebuilds_a_volume_and_names_what_is_damaged(dolmen: Any) -> None:
    await fill(f"volume:{dolmen.folder}/data", "a")
    assert json.loads((await dolmen("reindex", "data", "--json")).out)["blobs"] == 1
    assert await names(f"volume:{dolmen.folder}/data") == ["a"]
    whole = await dolmen("reindex", "data")
    assert whole.out.startswith("1 blobs and 0 deletes, from 1 records in 1 segments (")
    assert "damaged" not in whole.out
    (segment,) = (dolmen.folder / "data").rglob("*.seg")
    segment.write_bytes(segment.read_bytes()[:64] + b"?" * 8)
    (*_, said) = (await dolmen("reindex", "data")).out.splitlines()
    assert said == "damaged: a: no segment shows its last write any more"


async def test_a_volume_that_is_named_twice_is_told_of(dolmen: Any) -> None:
    await fill(f"volume:{dolmen.folder}/data", "a")
    ended = await dolmen("replicate", "volume:data", "volume:./data")
    assert ended.status == 2
    assert "the same volume" in ended.err


async def test_config_show_says_where_each_value_came_from_and_all_of_a_group(dolmen: Any) -> None:
    (dolmen.folder / "here.toml").write_text("""
        workers = 3
        [[groups]]
        name = "g"
        copies = 1
        servers = [{name = "attic", url = "http://127.0.0.1:1", weight = 2, zone = "house"}]
    """)
    dolmen.environment["DOLMEN_DIGEST"] = "sha1"
    shown = await dolmen("config", "show", "--config", "here.toml", "--json")
    said = {line["key"]: line for line in map(json.loads, shown.out.splitlines())}
    assert said["workers"] == {"key": "workers", "value": 3, "origin": "here.toml"}
    assert said["digest"]["origin"] == "environment DOLMEN_DIGEST"
    assert said["limits.connections"]["origin"] == "default"
    lines = (await dolmen("config", "show", "--config", "here.toml")).out.splitlines()
    assert "workers                    3                        (here.toml)" in lines
    at = lines.index("group g                    (here.toml)")
    assert lines[at + 1 : at + 3] == [
        "  copies                   1",
        "  attic                    http://127.0.0.1:1  weight 2  zone house",
    ]


async def test_a_port_in_use_is_told_in_a_line(dolmen: Any, blob_server: Any) -> None:
    url, _ = await blob_server("memory:")
    address = url.removeprefix("http://")
    ended = await dolmen("blob-server", "--store", "memory:", "--listen", address)
    assert ended.status == 2
    assert "in use" in ended.err
    assert "Traceback" not in ended.err


async def test_serve_starts_everything_and_tells_how_to_use_it(dolmen: Any, answering: Any) -> None:
    process = await dolmen.start(
        "serve", "--listen", "127.0.0.1:0", "--download-listen", "127.0.0.1:0"
    )
    first = (await process.stdout.readline()).decode()
    url = first.split(" on ")[1].split(",")[0]
    assert url.startswith("http://127.0.0.1:")
    assert b"curl -T FILE" in await process.stdout.readline()
    assert b"dolmen get ID" in await process.stdout.readline()
    (dolmen.folder / "a.txt").write_bytes(b"hello")
    await answering(url)
    put = await dolmen("put", "a.txt", "--server", url)
    assert put.status == 0, put
    got = await dolmen("get", put.out.split()[0], "-o", "-", "--server", url)
    assert got.out == "hello"
    assert (dolmen.folder / "dolmen-data").is_dir()
    process.send_signal(signal.SIGINT)
    assert await process.wait() == 0


async def test_watching_goes_on_until_it_is_interrupted(dolmen: Any, blob_server: Any) -> None:
    url, _ = await blob_server("memory:")
    await fill(url, "a")
    process = await dolmen.start("replicate", url, "volume:target", "--watch", "--json")
    assert json.loads(await process.stdout.readline())["copied"] == 1
    assert process.returncode is None
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert (process.returncode, err) == (130, b"")


@pytest.mark.parametrize("json", [True, False])
async def test_passwords_are_not_told(dolmen: Any, json: bool) -> None:
    settings = """
        [[groups]]
        name = "g"
        servers = [{name = "a", url = "http://user:geheim@127.0.0.1:1"}]
    """
    (dolmen.folder / "secret.toml").write_text(settings)
    options = ["--json"] if json else []
    shown = await dolmen("config", "show", "--config", "secret.toml", *options)
    assert "user:***@127.0.0.1" in shown.out
    wrong = "nothing://user:geheim@127.0.0.1"
    told = [await dolmen("blob-server", "--store", wrong), await dolmen("status", wrong)]
    assert all(each.status == 2 and "user:***@" in each.err for each in told)
    assert "geheim" not in "".join(each.out + each.err for each in (shown, *told))


async def test_status_tells_of_copies_in_quarantine(dolmen: Any) -> None:
    await fill(f"volume:{dolmen.folder}/v", "sound", "spoiled")
    assert (await dolmen("status", "volume:v")).status == 0
    (segment,) = Path(dolmen.folder, "v").rglob("*.seg")
    data = segment.read_bytes()
    at = data.rindex(b"spoiled")  # its content
    segment.write_bytes(data[:at] + b"S" + data[at + 1 :])
    assert (await dolmen("scrub", "volume:v")).status == 5
    ended = await dolmen("status", "volume:v", "--json")
    said = json.loads(ended.out)
    assert (ended.status, said["blobs"], said["quarantined"]) == (1, 1, 1)


async def test_compact_gives_room_back_and_says_how_much(dolmen: Any) -> None:
    path = await mostly_deleted(f"{dolmen.folder}/v")
    ended = await dolmen("compact", "volume:v")
    assert ended.status == 0, ended
    assert ended.out.startswith("3 segments compacted, reclaimed 3.1 MiB")
    assert (await dolmen("compact", path)).out.startswith("0 segments compacted, reclaimed 0 bytes")
    assert json.loads((await dolmen("compact", "v", "--json")).out)["reclaimed"] == 0
    assert await names(f"volume:{path}") == ["n0"]


async def test_compact_is_interrupted_within_its_bandwidth_and_goes_on(dolmen: Any) -> None:
    path = await mostly_deleted(f"{dolmen.folder}/v")
    process = await dolmen.start("compact", "volume:v", "--bandwidth", "1")
    while f"{path}/lock" not in open_files(process.pid):
        await asyncio.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in err
    ended = await dolmen("compact", "volume:v", "--bandwidth", "1000000000")
    assert "segments compacted, reclaimed 3." in ended.out
    assert await names(f"volume:{path}") == ["n0"]

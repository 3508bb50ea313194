"""The main job on real files: three blob servers and an API server, as separate processes.

Thousands of files of this machine and one large generated one are uploaded by plain HTTP,
a blob server is killed half way, and everything comes back. Then the dead server returns,
another one's folder is wiped, `dolmen replicate` runs, and each of the three can serve all.
"""

import hashlib
import http.client
import json
import os
import random
import sysconfig
from pathlib import Path

import pytest

from acceptance.processes import (
    BLOCK,
    Generated,
    Process,
    ask,
    check_all,
    free_ports,
    generated,
    replicate,
    until_alive,
    wipe,
)
from dolmen.testing.conformance.setting import LONG

FILES, LARGE = (5_000, 3 << 30) if LONG else (2_000, 1 << 30)
"""Far more than the budget for bodies in flight (192 MiB) goes through in one object."""


def real_files():
    """Files of this machine, of every size: the standard library, then /usr/share."""
    found = []
    for root in (sysconfig.get_paths()["stdlib"], "/usr/share"):
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(set(folders) - {"site-packages", "__pycache__"})
            for name in sorted(names):
                path = Path(folder, name)
                if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
                    found.append(path)
    assert len(found) >= FILES
    return random.Random(1).sample(found, FILES)


@pytest.fixture
def cluster(tmp_path):
    ports = free_ports(5)
    blob_ports, api_port, download_port = ports[:3], ports[3], ports[4]
    started = []
    try:
        for number, port in enumerate(blob_ports):
            store = f"volume:{tmp_path}/{number}"
            started.append(
                Process("blob-server", "--store", store, "--listen", f"127.0.0.1:{port}")
            )
            until_alive(port)
        urls = ",".join(f"http://127.0.0.1:{port}" for port in blob_ports)
        started.append(
            Process(
                "api-server",
                "--blob-server",
                urls,
                "--listen",
                f"127.0.0.1:{api_port}",
                "--download-listen",
                f"127.0.0.1:{download_port}",
            )
        )
        until_alive(api_port)
        yield tmp_path, started, blob_ports, api_port, download_port
    finally:
        for process in reversed(started):
            process.end()


def test_nothing_is_lost_when_a_server_dies_and_another_is_wiped(cluster):
    folder, processes, blob_ports, api_port, download_port = cluster
    wanted = {}

    def upload(files):
        connection = http.client.HTTPConnection("127.0.0.1", api_port, timeout=120)
        for path in files:
            data = path.read_bytes()
            connection.request("POST", "/upload", data)
            response = connection.getresponse()
            said = json.loads(response.read())
            assert response.status == 200, said
            assert (said["status"], said["size"]) == ("OK", len(data))
            assert said["id"] == hashlib.sha256(data).hexdigest()
            wanted[said["id"]] = len(data)
        connection.close()

    files = real_files()
    upload(files[: FILES // 2])
    upload(files[:20])  # again: the same ids

    large = Generated(LARGE)
    killed = []

    def with_a_kill_half_way():
        for number, block in enumerate(large):
            if number == LARGE // BLOCK // 2:
                processes[1].kill()
                killed.append(number)
            yield block

    status, _, body = ask(
        api_port, "PUT", "/upload", with_a_kill_half_way(), {"Content-Length": str(LARGE)}
    )
    said = json.loads(body)
    assert (status, said["size"], said["id"]) == (200, LARGE, large.hasher.hexdigest())
    assert killed
    wanted[said["id"]] = LARGE
    large_id = said["id"]
    upload(files[FILES // 2 :])

    check_all(download_port, wanted)
    for start, stop in (
        (0, 1),
        ((4 << 20) - 1, (4 << 20) + 1),
        (LARGE - 10, LARGE),
        (LARGE // 3, LARGE // 3 + 10_000_000),
    ):
        status, headers, body = ask(
            download_port,
            "GET",
            f"/fetch/{large_id}",
            headers={"Range": f"bytes={start}-{stop - 1}"},
        )
        assert (status, headers["Content-Range"]) == (206, f"bytes {start}-{stop - 1}/{LARGE}")
        first = start // BLOCK
        blocks = b"".join(map(generated, range(first, (stop - 1) // BLOCK + 1)))
        assert body == blocks[start - first * BLOCK : stop - first * BLOCK]

    # The dead one comes back, another one loses everything it had.
    processes[1].start()
    processes[2].kill()
    wipe(folder / "2")
    processes[2].start()
    for port in blob_ports[1:]:
        until_alive(port)
    urls = [f"http://127.0.0.1:{port}" for port in blob_ports]
    for source in range(3):
        for destination in range(3):
            if source != destination:
                replicate(urls[source], urls[destination])
    roots = {ask(port, "GET", "/digests")[1]["ETag"] for port in blob_ports}
    assert len(roots) == 1

    # Each of the three alone can serve everything.
    processes[3].end()
    for port in blob_ports:
        ports = free_ports(2)
        api = Process(
            "api-server",
            "--blob-server",
            f"http://127.0.0.1:{port}",
            "--listen",
            f"127.0.0.1:{ports[0]}",
            "--download-listen",
            f"127.0.0.1:{ports[1]}",
        )
        try:
            until_alive(ports[0])
            check_all(ports[1], wanted)
        finally:
            api.end()

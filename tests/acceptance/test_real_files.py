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
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

FILES = 5_000
LARGE = 3 << 30
BLOCK = 1 << 20


class Process:
    """A dolmen command in a process of its own."""

    def __init__(self, *arguments):
        self.arguments = [str(argument) for argument in arguments]
        self.start()

    def start(self):
        command = [sys.executable, "-c", "from dolmen.cli import main; main()", *self.arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()  # printed once the ports are bound
        assert "http://" in line, f"{self.arguments} did not start"

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    def end(self):
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)
        self.process.stdout.close()


def free_ports(count):
    import socket

    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def until_alive(port):
    """Wait until a server answers; it is bound already, so the first request just waits."""
    for _ in range(600):
        try:
            status, _, _ = ask(port, "GET", "/alive")
        except OSError:
            time.sleep(0.05)
            continue
        if status == 200:
            return
    raise AssertionError(f"nothing answers on port {port}")


def ask(port, method, target, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, target, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def check_all(port, wanted):
    """Every object comes back with the digest and the size it should have."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    for object_id, size in wanted.items():
        connection.request("GET", f"/fetch/{object_id}")
        response = connection.getresponse()
        assert response.status == 200, response.read()
        hasher, got = hashlib.sha256(), 0
        while piece := response.read(BLOCK):
            hasher.update(piece)
            got += len(piece)
        assert (hasher.hexdigest(), got) == (object_id, size)
    connection.close()


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


def generated(block):
    """The block of the large file at this number: incompressible, no two alike."""
    return random.Random(block).randbytes(BLOCK)


class Generated:
    """The large file as something http.client sends, and its digest."""

    def __init__(self, size):
        self.size = size
        self.hasher = hashlib.sha256()

    def __iter__(self):
        for block in range(self.size // BLOCK):
            data = generated(block)
            self.hasher.update(data)
            yield data


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


def wipe(folder: Path) -> None:
    """Remove a volume whose server was killed; its keeper may still be on its way out."""
    for _ in range(100):
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:  # something was gone before us
            continue
        return


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
        (1_234_567_890, 1_244_567_890),
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
    for source in range(3):
        for destination in range(3):
            if source != destination:
                replicate(blob_ports[source], blob_ports[destination])
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


def replicate(source, destination):
    command = [
        sys.executable,
        "-c",
        "from dolmen.cli import main; main()",
        "replicate",
        f"http://127.0.0.1:{source}",
        f"http://127.0.0.1:{destination}",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

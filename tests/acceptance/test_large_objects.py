"""What is far larger than a server's memory passes through it, onto engines of every kind."""

import hashlib
import http.client
import json

import pytest

from acceptance.processes import BLOCK, Generated, Process, ask, free_ports, until_alive
from dolmen.testing.conformance.setting import LONG
from engines.postgresql import PostgresServer
from engines.rclone import Rclone

SIZE = (3 << 30) if LONG else (300 << 20)
MEMORY = 400_000_000


def check(port, target, data):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("GET", target)
    response = connection.getresponse()
    assert response.status == 200
    hasher = hashlib.sha256()
    while piece := response.read(BLOCK):
        hasher.update(piece)
    assert hasher.digest() == data.hasher.digest()
    connection.close()


@pytest.mark.parametrize(
    ("engine", "url"),
    [(PostgresServer, PostgresServer.schema), (Rclone, Rclone.url)],
    ids=["postgresql", "s3"],
)
@pytest.mark.parametrize("command", ["blob-server", "api-server"])
def test_hundreds_of_megabytes_in_little_memory(tmp_path, engine, url, command):
    port, other = free_ports(2)
    listen = ["--listen", f"127.0.0.1:{port}"]
    data = Generated(SIZE)
    headers = {"Content-Length": str(SIZE)}
    with engine(tmp_path / "engine") as running:
        store = url(running, "large")
        if command == "blob-server":
            server = Process(command, "--store", store, *listen)
        else:
            downloads = ["--download-listen", f"127.0.0.1:{other}"]
            server = Process(command, "--blob-server", store, *listen, *downloads)
        try:
            until_alive(port)
            if command == "blob-server":
                status, _, body = ask(port, "PUT", "/blob/large", iter(data), headers)
                assert status == 201, body
                check(port, "/blob/large", data)
            else:
                status, _, body = ask(port, "PUT", "/upload", iter(data), headers)
                assert status == 200, body
                said = json.loads(body)
                assert (said["size"], said["id"]) == (SIZE, data.hasher.hexdigest())
                check(port, f"/fetch/{said['id']}", data)
            assert server.peak_memory < MEMORY
        finally:
            server.end()

"""A large blob and a large object pass through a process that holds little of them."""

import hashlib
import http.client
import json
from collections.abc import Iterator

import pytest

from acceptance.processes import BLOCK, Generated, Process, ask, free_ports, until_alive
from dolmen.testing.conformance.strategies import LONG
from engines.rclone import Rclone

SIZE = (3 << 30) if LONG else (300 << 20)
MOST = 400_000_000


def sent(data: Generated) -> Iterator[bytes]:
    yield from data


def check(port: int, target: str, data: Generated) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("GET", target)
    response = connection.getresponse()
    assert response.status == 200
    hasher = hashlib.sha256()
    while piece := response.read(BLOCK):
        hasher.update(piece)
    assert hasher.digest() == data.hasher.digest()
    connection.close()


@pytest.mark.parametrize("command", ["blob-server", "api-server"])
def test_a_large_one_passes_in_bounded_memory(rclone: Rclone, command: str) -> None:
    (port, other) = free_ports(2)
    listen = ["--listen", f"127.0.0.1:{port}"]
    store = rclone.url(f"memory/{command}")
    if command == "blob-server":
        server = Process(command, "--store", store, *listen)
    else:
        server = Process(command, "-b", store, *listen, "--download-listen", f"127.0.0.1:{other}")
    data = Generated(SIZE)
    headers = {"Content-Length": str(SIZE)}
    try:
        until_alive(port)
        if command == "blob-server":
            assert ask(port, "POST", "/blob/large", sent(data), headers)[0] == 201
            check(port, "/blob/large", data)
        else:
            status, _, body = ask(port, "PUT", "/upload", sent(data), headers)
            assert (status, json.loads(body)["id"]) == (200, data.hasher.hexdigest())
            check(port, f"/fetch/{data.hasher.hexdigest()}", data)
        print(f"{command}: {SIZE >> 20} MiB with a peak of {server.peak_memory >> 20} MiB")
        assert server.peak_memory < MOST
    finally:
        server.end()

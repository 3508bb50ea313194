"""A server process: what it may open, and what it leaves to its store."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import resource
import socket
import subprocess
import sys

import pytest

PROGRAM = (sys.executable, "-W", "error", "-c", "from dolmen.cli import main; main()")


@pytest.fixture
def serve(tmp_path):
    """Start `dolmen serve` with so many files it may open; gives its two ports and the process."""
    running = []

    def serve(soft: int = 1024, hard: int = 4096, **environ: str):
        process = subprocess.Popen(
            [
                *PROGRAM, "serve", "--data", str(tmp_path / "data"),
                "--listen", "127.0.0.1:0", "--download-listen", "127.0.0.1:0",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environ,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
        )  # fmt: skip
        running.append(process)
        words = process.stdout.readline().replace(",", " ").split()
        return int(words[5].rpartition(":")[2]), int(words[-1].rpartition(":")[2]), process

    yield serve
    for process in running:
        process.terminate()
        process.communicate(timeout=30)


def ask(port: int, method: str, target: str, body: bytes | None = None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, target, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_clients_never_take_the_stores_descriptors(serve) -> None:
    uploads, downloads, process = serve(128, 128)
    assert "at most 56 connections, not 10000" in process.stderr.readline()
    with contextlib.ExitStack() as idle:
        for _ in range(200):  # of which this listener keeps 28
            idle.enter_context(socket.create_connection(("127.0.0.1", downloads), timeout=20))
        status, body = ask(uploads, "POST", "/upload", b"x" * 3_000_000)
        assert (status, json.loads(body)["copies"]) == (200, 1)
        assert ask(downloads, "GET", "/alive")[0] == 503


def test_the_limit_on_descriptors_is_raised_as_far_as_it_may_be(serve) -> None:
    _, downloads, _ = serve(128, 20_000)
    with contextlib.ExitStack() as idle:
        for _ in range(300):
            idle.enter_context(socket.create_connection(("127.0.0.1", downloads), timeout=20))
        assert ask(downloads, "GET", "/alive") == (200, b"alive")


def test_a_proxy_may_pass_on_the_names_it_answers_for(serve) -> None:
    _, downloads, _ = serve(DOLMEN_HOSTS="files.example,files.lan")
    for host, status in (("files.example", 200), ("files.lan:8443", 200), ("evil.example", 421)):
        connection = http.client.HTTPConnection("127.0.0.1", downloads, timeout=20)
        with contextlib.closing(connection):
            connection.request("GET", "/alive", headers={"Host": host})
            assert connection.getresponse().status == status

"""An API server that repairs: its companion brings a server back to what it should hold."""

from __future__ import annotations

import json
import os
import re
import signal
import time

import pytest

from acceptance.processes import Process, ask, free_ports, until_alive, wipe
from dolmen.config import Settings
from dolmen.servers.repairing import Repairing, Told


@pytest.fixture
def cluster(tmp_path):
    """Three blob servers on volumes, and an API server of two workers that repairs."""
    ports = dict(zip(("a", "b", "c", "api", "downloads"), free_ports(5), strict=True))
    running = {}

    def start(name):
        listen = f"127.0.0.1:{ports[name]}"
        running[name] = Process(
            "blob-server", "--store", f"volume:{tmp_path / name}", "--listen", listen
        )

    try:
        for name in "abc":
            start(name)
        urls = ",".join(f"http://127.0.0.1:{ports[name]}" for name in "abc")
        running["api"] = Process(
            *("api-server", "--blob-server", urls, "--repair", "--workers", "2"),
            *("--listen", f"127.0.0.1:{ports['api']}"),
            *("--download-listen", f"127.0.0.1:{ports['downloads']}"),
        )
        until_alive(ports["api"])
        yield tmp_path, ports, running, start
    finally:
        for process in running.values():
            process.end()


def cluster_says(port):
    return json.loads(ask(port, "GET", "/cluster")[2])["repair"]


def wait_for(what):
    deadline = time.monotonic() + 90
    while not (found := what()):
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.1)  # another process's work has nothing to wait on
    return found


def root_of(port):
    return ask(port, "GET", "/digests")[1]["ETag"]


def test_a_wiped_server_is_filled_again(cluster):
    folder, ports, running, start = cluster
    for number in range(50):
        status, _, body = ask(ports["api"], "POST", "/upload", b"%d" % number)
        assert status == 200, body
    wait_for(lambda: len({root_of(ports[name]) for name in "abc"}) == 1)
    full = root_of(ports["a"])
    running["b"].kill()
    wipe(folder / "b")
    start("b")
    until_alive(ports["b"])
    assert root_of(ports["b"]) != full
    wait_for(lambda: root_of(ports["b"]) == full)
    wait_for(lambda: cluster_says(ports["api"])["complete"])
    text = ask(ports["api"], "GET", "/metrics")[2].decode()
    copied = re.search(r"^dolmen_repair_copied_total\S+ (\S+)$", text, re.MULTILINE)
    assert float(copied[1]) >= 50
    assert 'dolmen_repair_complete{server="api"} 1.0' in text


def companions():
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as command:
                if b"dolmen.servers.repairing" in command.read():
                    found.append(int(pid))
        except OSError:
            continue
    return found


def parent_of(pid):
    with open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rpartition(")")[2].split()[1])


def mine(running):
    """The companions of this API server: its workers are their parents."""
    return [pid for pid in companions() if parent_of(parent_of(pid)) == running["api"].process.pid]


def test_there_is_one_companion_however_many_workers_and_it_ends_with_them(cluster):
    _, ports, running, _ = cluster
    wait_for(lambda: cluster_says(ports["api"]))
    (first,) = mine(running)
    os.kill(first, signal.SIGKILL)
    (second,) = wait_for(lambda: [pid for pid in mine(running) if pid != first])
    running["api"].end()
    wait_for(lambda: second not in companions())


def test_before_it_said_anything_there_are_figures_all_the_same():
    figures = {each.name: each.value for each in Repairing(Settings()).figures("")}
    assert figures["dolmen_repair_copied"] == 0
    assert figures["dolmen_repair_complete"] == 0
    assert Told().complete is False

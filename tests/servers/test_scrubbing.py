"""A server with a volume scrubs it by itself, once, however many workers it has."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import pytest

from acceptance.processes import Process, ask, free_ports, until_alive
from dolmen.config import Settings
from dolmen.servers import scrubbing
from dolmen.servers.scrubbing import Scrubbing
from dolmen.stores.memory import MemoryStore
from dolmen.stores.scrub import KEY, Scrub


def test_before_it_said_anything_there_are_figures_all_the_same():
    work = Scrubbing("volume:/srv/data", Settings().scrub)
    figures = {each.name: each for each in work.figures("")}
    assert figures["dolmen_scrub_checked"].value == 0
    assert figures["dolmen_quarantined_copies"].value == 0
    assert figures["dolmen_quarantined_copies"].value_of_label == "/srv/data"


@pytest.mark.parametrize(
    ("ended", "due"), [(-9, 1.0), (-11, 0.0), (10 * 365 * 86_400, 0.0)], ids=["soon", "now", "odd"]
)
async def test_a_clock_that_was_ahead_keeps_no_scrub_from_being_due(monkeypatch, ended, due):
    store, now = MemoryStore(), time.time()
    await store.note(KEY, json.dumps(asdict(Scrub(ended=now + ended))).encode())
    monkeypatch.setattr(time, "time", lambda: now)
    assert await scrubbing._due(store, 10.0) == pytest.approx(due)


def test_a_blob_server_finds_damage_by_itself(tmp_path):
    (port,) = free_ports(1)
    folder = tmp_path / "v"
    arguments = ("--store", f"volume:{folder}", "--listen", f"127.0.0.1:{port}")
    config = tmp_path / "dolmen.toml"
    config.write_text("[scrub]\nevery_days = 0.0\n")
    server = Process("blob-server", *arguments, "--config", config)
    try:
        until_alive(port)
        for number in range(20):
            assert ask(port, "POST", f"/blob/name-{number}", b"x" * 1_000)[0] == 201
    finally:
        server.end()
    (segment,) = folder.rglob("*.seg")
    with segment.open("r+b") as file:
        file.seek(5_000)
        file.write(b"?")
    config.write_text("[scrub]\nbandwidth = 1_000_000_000\n")
    server = Process("blob-server", *arguments, "--config", config, "--workers", "2")
    try:
        until_alive(port)
        deadline = time.monotonic() + 60
        labels = f'{{server="blob",volume="{folder}"}}'
        failed = f"dolmen_scrub_failed_total{labels} 1.0"
        while failed not in ask(port, "GET", "/metrics")[2].decode():
            assert time.monotonic() < deadline, ask(port, "GET", "/metrics")[2].decode()
            time.sleep(0.1)  # another process's work has nothing to wait on
        (line,) = ask(port, "GET", "/quarantined")[2].splitlines()
        name = json.loads(line)["name"]
        assert ask(port, "GET", f"/blob/{name}")[0] == 503
        assert json.loads(ask(port, "GET", "/status")[2])["scrub"]["failed"] == 1
        assert f"dolmen_quarantined_copies{labels} 1.0" in ask(port, "GET", "/metrics")[2].decode()
    finally:
        server.end()

"""A server with a volume scrubs it by itself, once, however many workers it has."""

from __future__ import annotations

import json
import time

from acceptance.processes import Process, ask, free_ports, until_alive
from dolmen.config import Settings
from dolmen.servers.scrubbing import scrubbing


def test_only_a_volume_is_scrubbed_and_not_when_it_is_off():
    settings = Settings()
    assert len(scrubbing("volume:/srv/data", settings)) == 1
    assert scrubbing("redis://127.0.0.1", settings) == []
    off = Settings.model_validate({"scrub": {"every_days": 0.0}})
    assert scrubbing("volume:/srv/data", off) == []


def test_before_it_said_anything_there_are_figures_all_the_same():
    (work,) = scrubbing("volume:/srv/data", Settings())
    families = {each.name: each for each in work.families("")}
    assert families["dolmen_scrub_checked"].samples[0].value == 0
    assert families["dolmen_quarantined_copies"].samples[0].value == 0


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
        while "dolmen_scrub_failed_total 1.0" not in ask(port, "GET", "/metrics")[2].decode():
            assert time.monotonic() < deadline, ask(port, "GET", "/metrics")[2].decode()
            time.sleep(0.1)  # another process's work has nothing to wait on
        (line,) = ask(port, "GET", "/quarantined")[2].splitlines()
        name = json.loads(line)["name"]
        assert ask(port, "GET", f"/blob/{name}")[0] == 503
        assert json.loads(ask(port, "GET", "/status")[2])["scrub"]["failed"] == 1
        assert "dolmen_quarantined_copies 1.0" in ask(port, "GET", "/metrics")[2].decode()
    finally:
        server.end()

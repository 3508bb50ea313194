"""An object far larger than the server's memory goes through it, onto engines of every kind."""

import json
import os

import pytest

from acceptance.processes import Generated, Process, ask, check_all, free_ports, until_alive
from engines.postgresql import PostgresServer
from engines.rclone import Rclone

SIZE = 3 << 30 if os.environ.get("DOLMEN_TEST_LONG") else 300 << 20
MEMORY = 400_000_000


@pytest.mark.parametrize(
    ("engine", "url"),
    [(PostgresServer, PostgresServer.schema), (Rclone, Rclone.url)],
    ids=["postgresql", "s3"],
)
def test_an_object_of_hundreds_of_megabytes_in_little_memory(tmp_path, engine, url):
    uploads, downloads = free_ports(2)
    with engine(tmp_path / "engine") as running:
        api = Process(
            *("api-server", "--blob-server", url(running, "large")),
            *("--listen", f"127.0.0.1:{uploads}", "--download-listen", f"127.0.0.1:{downloads}"),
        )
        try:
            until_alive(uploads)
            large = Generated(SIZE)
            headers = {"Content-Length": str(SIZE)}
            status, _, body = ask(uploads, "PUT", "/upload", iter(large), headers)
            said = json.loads(body)
            assert status == 200, said
            assert (said["size"], said["id"]) == (SIZE, large.hasher.hexdigest())
            check_all(downloads, {said["id"]: SIZE})
            assert api.peak_memory < MEMORY
        finally:
            api.end()

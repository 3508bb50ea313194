"""Azurite, Microsoft's own emulator of Azure's blob storage (npm: azurite)."""

from __future__ import annotations

import base64
import hashlib
import hmac
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote_plus
from urllib.request import Request, urlopen

from .programs import program
from .served import Served

ACCOUNT, CONTAINER = "devstoreaccount1", "container"
# The key of every Azurite, as its documentation gives it.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class Azurite(Served):
    """`azurite-blob` with one container."""

    def command(self) -> list[str]:
        script = Path(__file__).parents[2] / ".venv/azurite/node_modules/.bin/azurite-blob"
        assert script.exists(), "Azurite is missing: run tests/engines/install"
        return [
            *(
                program("node"),
                str(script),
                "--silent",
                "--skipApiVersionCheck",
                "--disableTelemetry",
            ),
            *("--blobHost", "127.0.0.1", "--blobPort", str(self.port)),
            *("--location", str(self.folder)),
        ]

    def start(self) -> None:
        super().start()
        # Signed as https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key
        # says; the driver makes no containers.
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-12-02"}
        signed = "PUT" + "\n" * 12 + "".join(f"{key}:{headers[key]}\n" for key in headers)
        signed += f"/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container"
        code = hmac.digest(base64.b64decode(KEY), signed.encode(), hashlib.sha256)
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(code).decode()}"
        url = f"http://127.0.0.1:{self.port}/{ACCOUNT}/{CONTAINER}?restype=container"
        urlopen(Request(url, method="PUT", headers=headers)).close()

    def url(self, path: str, *, container: str = CONTAINER, key: str = KEY) -> str:
        """The store below a path."""
        return (
            f"az://{container}/{path}?endpoint=http://127.0.0.1:{self.port}/{ACCOUNT}"
            f"&account_name={ACCOUNT}&account_key={quote_plus(key)}"
        )

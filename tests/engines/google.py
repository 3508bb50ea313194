"""A stand-in for Google: its XML interface is S3's but for the signature, and moto checks none."""

from __future__ import annotations

import json
from urllib.parse import quote_plus

from .moto import Moto


class Google(Moto):
    """moto, spoken to by the driver's Google client."""

    def absent(self, path: str) -> str:
        account = {
            "gcs_base_url": f"http://127.0.0.1:{self.port}",
            "disable_oauth": True,
            "client_email": "",
            "private_key": "",
            "private_key_id": "",
        }
        return f"gs://{path}?service_account_key={quote_plus(json.dumps(account))}"

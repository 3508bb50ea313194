"""moto's S3 server (PyPI: moto[server]): buckets in memory, and errors like Amazon's."""

from __future__ import annotations

import sys
from urllib.request import Request, urlopen

from .served import Served

# What `moto_server` does, less its guess for each request which service is meant, which costs
# more than the request, and with connections that last.
_SERVE = """
import sys
from moto.moto_server.werkzeug_app import create_backend_app
from werkzeug.serving import WSGIRequestHandler, run_simple

WSGIRequestHandler.protocol_version = "HTTP/1.1"
WSGIRequestHandler.log_request = lambda *_: None
run_simple("127.0.0.1", int(sys.argv[1]), create_backend_app("s3"), threaded=True)
"""


class Moto(Served):
    """moto's S3. It takes any key."""

    def command(self) -> list[str]:
        return [sys.executable, "-c", _SERVE, str(self.port)]

    def url(self, path: str) -> str:
        """The store in a bucket of its own: moto looks at every object of a bucket to list it."""
        # Letters and digits: moto does not decode what Google's client encodes in a bucket's name.
        bucket = "".join(filter(str.isalnum, path))[:63]
        made = Request(f"http://127.0.0.1:{self.port}/{bucket}", method="PUT")
        urlopen(made).close()
        return self.absent(f"{bucket}/{path}")

    def absent(self, path: str) -> str:
        """A store in a bucket that is not there."""
        return (
            f"s3://{path}?endpoint=http://127.0.0.1:{self.port}&region=us-east-1"
            "&access_key_id=tests&secret_access_key=tests"
        )

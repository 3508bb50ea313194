"""The command line. `main` is the `dolmen` program.

Exit statuses scripts can rely on: 0 done; 1 failed; 2 wrong usage or a bad
setting; 3 no such object; 4 a server could not be asked, later may do; 5 content
that is damaged; 130 interrupted.
"""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command of `sys.argv`; errors become a line on stderr and an exit status."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # there is nothing to clean up yet
    from dolmen.cli.app import app
    from dolmen.cli.ending import seen_enough, status_of, tell

    signal.signal(signal.SIGINT, signal.default_int_handler)
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

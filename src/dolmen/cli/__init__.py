"""The command line. `main` is the `dolmen` program.

Exit statuses scripts can rely on: 0 done; 1 failed; 2 wrong usage or a bad
setting; 3 no such object; 4 a server could not be asked, later may do; 5 content
that is damaged; 130 interrupted.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the program. Ctrl-C ends it quietly from its first moment, which loading takes."""
    _give_streams()
    try:
        from dolmen.cli.program import run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


def _give_streams() -> None:
    """Where a standard stream was closed, put one to nowhere in its place.

    Else the next file or socket gets its descriptor, and what is printed with it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # noqa: SIM115 - for as long as the program
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)

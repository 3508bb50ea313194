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
    _prepare_streams()
    try:
        from dolmen.cli.app import run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


def _prepare_streams() -> None:
    """Have all standard streams, and have them take file names, which are bytes, as they are.

    Where one was closed, the next file or socket would get its descriptor, and what is printed.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, mode)  # noqa: SIM115 - for as long as the program
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
        stream.reconfigure(errors="surrogateescape")

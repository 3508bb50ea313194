"""`dolmen compact`: reclaim the space of deleted and replaced blobs."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from dolmen.cli.options import Bandwidth, Json
from dolmen.cli.output import emit, readable, transfer_bar


def compact(
    volume: Annotated[
        str, typer.Argument(metavar="VOLUME", help="volume:/path, or the folder alone.")
    ],
    bandwidth: Bandwidth = None,
    json: Json = False,
) -> None:
    """Reclaim the space of deleted and replaced blobs in a volume.

    Servers do so by themselves, little by little; this does it at once, beside them (they leave it
    to this command meanwhile) or without them. May be interrupted and run again.

    [green]dolmen compact volume:/srv/dolmen[/green]

    [green]dolmen compact volume:/srv/dolmen --bandwidth 50000000[/green]
    """
    from dolmen.pace import Pace, give_way
    from dolmen.stores.volume import path_of
    from dolmen.stores.volume.compaction import Compacted, Compacting

    give_way()
    before, interrupted, pace = Compacted(), False, Pace(bandwidth)
    # Ctrl-C is looked for between two steps, so that it never comes in the midst of one.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with transfer_bar("compact") as bar:

            def go_on(done: Compacted) -> bool:
                nonlocal before, interrupted
                if bar:
                    bar(done.moved, None)
                wait = pace.delay(done.moved - before.moved)
                before = done
                interrupted = signal.sigtimedwait({signal.SIGINT}, wait) is not None
                return not interrupted

            with Compacting(path_of(volume)) as opened:
                done = opened.compact(go_on, at_once=True)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if json:
        emit(done._asdict())
    else:
        print(
            f"{done.segments:,} segments compacted, reclaimed {readable(done.won)} "
            f"({readable(done.carried)} rewritten)"
        )
    if interrupted:
        raise KeyboardInterrupt

"""`dolmen compact`: give back the room of what was deleted or replaced."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Annotated

import typer

from dolmen.cli.options import Json
from dolmen.cli.output import emit, readable, transfer_bar

if TYPE_CHECKING:
    from dolmen.stores.volume.compaction import Compacted


def compact(
    volume: Annotated[
        str, typer.Argument(metavar="VOLUME", help="volume:/path, or the folder alone.")
    ],
    json: Json = False,
) -> None:
    """Give back the room of what was deleted or replaced in a volume.

    Servers do so by themselves, little by little; this does it at once, beside them or without
    them. May be interrupted and run again.

    [green]dolmen compact volume:/srv/dolmen[/green]
    """
    from dolmen.stores.volume.compaction import Compacting

    interrupted: list[int] = []
    # Not in the midst of a step.
    before = signal.signal(signal.SIGINT, lambda number, _: interrupted.append(number))
    try:
        with transfer_bar("compact") as bar:

            def go_on(done: Compacted) -> bool:
                if bar:
                    bar(done.moved, None)
                return not interrupted

            with Compacting(volume.removeprefix("volume:").removeprefix("//")) as opened:
                done = opened.compact(go_on)
    finally:
        signal.signal(signal.SIGINT, before)
    if json:
        emit(done._asdict())
    else:
        print(
            f"{done.segments:,} segments compacted, {readable(done.won)} won "
            f"({readable(done.carried)} written again)"
        )
    if interrupted:
        raise KeyboardInterrupt

"""`dolmen check`, `scrub`, `gc`, `compact` and `reindex`: look after a cluster or a store."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from dolmen.cli.ending import DAMAGED, FAILED
from dolmen.cli.options import Bandwidth, Config, Json, Stores, Volume, settings_of
from dolmen.cli.output import progress_bar, readable, show

if TYPE_CHECKING:
    from dolmen.replication.check import Findings
    from dolmen.replication.gc import Collected

GRACE = 24 * 3600.0
_MEANING = {
    "lacking": "copies are missing (dolmen replicate makes them)",
    "outdated": "copies are outdated (dolmen replicate updates them)",
    "misplaced": "copies are misplaced (dolmen replicate moves them)",
    "quarantined": "copies are known to be damaged (dolmen replicate replaces them)",
    "damaged": "copies were found damaged and are now quarantined (replicate, then check again)",
    "unreadable": "manifests have no copy that can be read (restore them from a backup)",
    "broken": "objects lack a chunk on every server (upload them again, or restore them)",
}


async def check(
    stores: Stores = None,
    config: Config = None,
    data: Annotated[bool, typer.Option("--data", help="Also read and verify every copy.")] = False,
    json: Json = False,
) -> int:
    """Look for what is missing, outdated, misplaced, damaged or broken.

    Changes nothing, but --data quarantines the copies it finds damaged, as scrub does. Exit
    status 0 when no problem was found, else 1.

    [green]dolmen check --config cluster.toml[/green]

    [green]dolmen check --data volume:/srv/data[/green]
    """
    from dolmen.config.opening import opened_groups
    from dolmen.pace import stand_back
    from dolmen.replication.check import check as look
    from dolmen.stores.epoch import Seen

    stand_back()
    settings = settings_of(config, stores)
    seen, groups = Seen(settings.epoch, settings.fingerprint()), settings.all_groups()
    async with opened_groups(groups, existing=True, read_only=not data) as opened:
        with progress_bar("check") as bar:

            def update(found: Findings) -> None:
                wrong = sum(each.count for each in found.wrong.values())
                bar(found.names, None, f"{found.read:,} read, {wrong:,} problems")

            found = await look(opened, seen=seen, data=data, progress=update)
    show({"well": found.well} | asdict(found), _check_lines(found, data=data), as_json=json)
    return 0 if found.well else FAILED


def _check_lines(found: Findings, *, data: bool) -> Iterator[str]:
    for kind, each in found.wrong.items():
        yield f"{each.count:,} {_MEANING[kind]}"
        for name, why in each.examples:
            yield f"  {name}: {why}"
        if each.count > len(each.examples):
            yield f"  and {each.count - len(each.examples):,} more"
    read = f", {found.read:,} read to the end" if data else ""
    yield f"{found.names:,} names, {found.copies:,} copies, {found.manifests:,} manifests{read}"
    if found.unnamed:
        yield (
            f"{found.unnamed:,} copies of chunks ({readable(found.unnamed_bytes)}) belong to no "
            "object: dolmen gc removes them after the grace period"
        )
    if found.partial:
        yield f"chunks were not looked at: {found.partial}"
    elif found.well:
        yield "no problems found"


async def scrub(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Its URL.")],
    bandwidth: Bandwidth = None,
    again: Annotated[bool, typer.Option("--again", help="Start over instead of resuming.")] = False,
    json: Json = False,
) -> int:
    r"""Read and verify every blob of STORE. Damaged copies are quarantined.

    Replication then replaces it from another copy. May be interrupted; the next one goes on
    where it was. Servers with a volume do it by themselves (\[scrub] in the settings). Exit status
    5 when something is damaged.

    [green]dolmen scrub volume:/srv/data[/green]

    [green]dolmen scrub http://10.0.0.1:3001 --bandwidth 50000000[/green]
    """
    from dolmen.closing import closing
    from dolmen.errors import BadVolume
    from dolmen.pace import Pace, give_way
    from dolmen.store import Listing
    from dolmen.stores import open_existing
    from dolmen.stores.scrub import Scrub
    from dolmen.stores.scrub import scrub as through

    give_way()
    try:
        opened = await open_existing(store, read_only=False)
    except BadVolume:
        opened = await open_existing(store)  # a read-only disk can be scrubbed as well
    done, found = Scrub(), 0
    try:
        with progress_bar("scrub") as bar:
            async with closing(through(opened, again=again, pace=Pace(bandwidth))) as batches:
                async for done, damaged in batches:
                    found += len(damaged)
                    if not json:
                        for failed in damaged:
                            print(f"{failed.name}: {failed.error}", flush=True)
                    said = f"% of the names, {done.checked:,} read, {readable(done.bytes)}"
                    bar(int(done.done * 100), 100, said)
        async with closing(opened.list(Listing(quarantined=True))) as infos:
            quarantined = len([info async for info in infos])
    finally:
        await opened.aclose()
    lines = [f"{done.checked:,} read ({readable(done.bytes)}), {done.failed:,} damaged"]
    if quarantined:
        lines += [f"{quarantined:,} are quarantined until dolmen replicate replaces them"]
    show(asdict(done) | {"quarantined": quarantined}, lines, as_json=json)
    return DAMAGED if found or quarantined else 0


async def gc(
    stores: Stores = None,
    config: Config = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be removed.")
    ] = False,
    grace: Annotated[
        float,
        typer.Option(
            "--grace",
            metavar="SECONDS",
            min=0,
            help="Keep chunks stored or used within this time; uploads rely on the default.",
        ),
    ] = GRACE,
    json: Json = False,
) -> int:
    """Remove the chunks of deleted objects and broken-off uploads, while uploads go on.

    Reads every manifest on every server; nothing is removed unless all of them could be
    read. May be interrupted and run again.

    [green]dolmen gc --config cluster.toml --dry-run[/green]

    [green]dolmen gc volume:/srv/data[/green]
    """
    from dolmen.config.opening import opened_groups
    from dolmen.pace import stand_back
    from dolmen.replication.gc import BUCKETS, collect
    from dolmen.stores.epoch import Seen

    if grace < GRACE and not dry_run:
        print(
            f"dolmen: with --grace {grace:g} an upload that is under way may lose chunks; "
            "use it only while nobody uploads",
            file=sys.stderr,
        )
    stand_back()
    settings = settings_of(config, stores)
    seen = Seen(settings.epoch, settings.fingerprint())
    async with opened_groups(settings.all_groups(), existing=True) as groups:
        with progress_bar("gc") as bar:

            def update(done: Collected) -> None:
                bar(done.buckets, BUCKETS, f"{done.removed:,} of {done.chunks:,} removed")

            done = await collect(groups, seen=seen, grace=grace, dry_run=dry_run, progress=update)
    facts = {"dry_run": dry_run} | asdict(done) | {"unread": dict(done.unread)}
    show(facts, _gc_lines(done, dry_run=dry_run), as_json=json)
    return DAMAGED if done.unread else 0


def _gc_lines(done: Collected, *, dry_run: bool) -> Iterator[str]:
    if done.unread:
        yield "nothing was removed: these manifests can't be read, and nobody knows what they name"
        for name, error in done.unread[:20]:
            yield f"  {name}: {error}"
        yield "run dolmen replicate first; dolmen check tells more"
        return
    would = "would be removed" if dry_run else "removed"
    yield (
        f"{done.manifests:,} manifests, {done.chunks:,} copies of chunks: {done.removed:,} "
        f"{would} ({readable(done.bytes)}), {done.young:,} unreferenced within the grace period"
    )
    for name, why in done.passed_over.items():
        yield f"{name}: nothing was removed: {why}"


async def compact(volume: Volume, bandwidth: Bandwidth = None, json: Json = False) -> None:
    """Reclaim the space of deleted and replaced blobs in a volume.

    A server compacts the volume it has open continuously; this is for one that no server has
    open. May be interrupted and run again.

    [green]dolmen compact volume:/srv/dolmen[/green]

    [green]dolmen compact volume:/srv/dolmen --bandwidth 50000000[/green]
    """
    from dolmen.pace import Pace
    from dolmen.stores.volume import check_there, open_volume, path_of
    from dolmen.stores.volume.compaction import Compactor

    check_there(volume)
    async with aclosing(await open_volume(path_of(volume))) as opened:
        with progress_bar("compact", unit="bytes") as bar:
            compactor = Compactor(opened, pace=Pace(bandwidth))
            running = asyncio.ensure_future(compactor.compact())
            try:
                while not running.done():
                    await asyncio.wait([running], timeout=0.2)
                    bar(compactor.done.carried)
            finally:
                running.cancel()  # where this was interrupted
            done = await running
    line = (
        f"{done.segments:,} segments compacted, reclaimed {readable(done.reclaimed)} "
        f"({readable(done.carried)} rewritten)"
    )
    show(done._asdict(), [line], as_json=json)


def reindex(volume: Volume, json: Json = False) -> None:
    """Rebuild a volume's index from its segments, which hold everything.

    No server may have the volume open. Interrupted, it goes on when the volume is opened next.

    [green]dolmen reindex ./dolmen-data[/green]
    """
    from dolmen.stores.volume import check_there, path_of
    from dolmen.stores.volume.recovery import reindex as rebuild

    check_there(volume)
    with progress_bar("reindex") as bar:
        found = rebuild(path_of(volume), progress=lambda done, total: bar(done, total, "segments"))
    line = (
        f"{found.blobs:,} blobs and {found.tombstones:,} deletes, from {found.records:,} records "
        f"in {found.segments:,} segments ({readable(found.bytes)})"
    )
    damaged = (f"damaged: {each}" for each in found.damaged)
    show(asdict(found), [line, *damaged], as_json=json)

"""How far an archive goes that was broken off, so that an export can go on behind it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

from dolmen.errors import BadContent, Corrupt
from dolmen.names import is_chunk_name
from dolmen.record import Kind
from dolmen.replication.archive import END, EXPORT, MANIFESTS, Damage, Mark, Reader
from dolmen.replication.chunk_list import ChunkList
from dolmen.replication.report import Report
from dolmen.store import Blob, BlobInfo, Failed


@dataclass(slots=True)
class Begun:
    """How far an archive goes that was begun before; as it is here, one that was not."""

    owner: bytes | None = None
    records: int = 0
    end: int = 0
    """Bytes up to the end of the last whole record."""
    source: str = ""
    """Where it is from."""
    after: str | None = None
    """The last name of the pass it is in."""
    manifests: bool = False
    """It is in the second pass."""
    complete: bool = False
    chunks: ChunkList = field(default_factory=ChunkList)
    """The chunks in it."""
    report: Report = field(default_factory=Report)
    """What it holds."""


async def begun(reader: Reader) -> Begun:
    """Read an archive that is to be gone on with. Raises `Corrupt` for what can't be."""
    found = Begun()
    async for item in reader:
        if found.complete:
            raise Corrupt("something follows the end of the archive")
        match item:
            case Damage(records=None):  # this is where it was broken off
                continue
            case Damage():
                raise Corrupt(f"the archive is damaged: {item}")
            case Mark(word, facts):
                found.complete = word == END
                if word == EXPORT:
                    found.source = str(facts.get("source", ""))
                elif word == MANIFESTS:
                    found.manifests, found.after = True, None
            case Failed(name, error):
                found.report.refuse(name, error)
                if not (found.manifests and is_chunk_name(name)):
                    found.after = name
            case Blob(info, payload):
                with contextlib.suppress(BadContent):
                    async for _ in payload:
                        pass
                    count(found.report, info)
                    if is_chunk_name(info.name):
                        found.chunks.add(info.name)
                    if not found.manifests or info.kind == Kind.MANIFEST:
                        found.after = info.name
    if not reader.owner:
        raise Corrupt("this is no archive of dolmen")
    found.owner, found.records, found.end = reader.owner, reader.records, reader.end
    return found


def count(report: Report, info: BlobInfo) -> None:
    """Take a record into a report."""
    if info.kind == Kind.TOMBSTONE:
        report.tombstones += 1
    else:
        report.copied += 1
        report.bytes += info.size

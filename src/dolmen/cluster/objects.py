"""Objects: what clients upload, over a cluster of blob stores.

An object's id is the digest of its content. It is one blob, or a manifest and the chunks
it names. Read first: `dolmen.cluster.upload`, `dolmen.cluster.download`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import NamedTuple

from dolmen import metadata
from dolmen.closing import closing
from dolmen.cluster.cluster import Cluster
from dolmen.cluster.download import object_payload
from dolmen.cluster.groups import Failures
from dolmen.cluster.manifest import MANIFEST_MAX, Manifest, decode
from dolmen.cluster.upload import Digest, Source, Uploaded, Uploads
from dolmen.errors import Corrupt, NoCopies, NotFound, Unavailable
from dolmen.names import is_object_id, partition_of
from dolmen.payload import read_whole
from dolmen.record import Kind
from dolmen.stamps import format_stamp
from dolmen.store import Blob, BlobInfo, Listing, Outcome, Range, Write


class Page(NamedTuple):
    """Some ids in list order, and where to go on; `incomplete` says why some may lack."""

    ids: Sequence[str]
    following: str | None
    incomplete: str | None


class Objects:
    """Uploads, downloads and deletes of objects."""

    def __init__(self, cluster: Cluster, *, digest: Digest = "sha256") -> None:
        self.cluster = cluster
        self._uploads = Uploads(cluster.writer, cluster.budget, digest)

    def upload(
        self,
        source: Source,
        *,
        whole: bytes | None = None,
        meta: bytes = b"",
        expected_id: str | None = None,
    ) -> Awaitable[Uploaded]:
        """Store a body; `whole` is all of it where it is in memory anyway.

        Raises `BadContent`, `NoCopies`, `TooLarge`, and what receiving raises.
        """
        if whole is not None:
            return self._uploads.small(whole, meta, expected_id)
        return self._uploads.any(source, meta, expected_id)

    async def renew(self, object_id: str, meta: bytes) -> Uploaded | None:
        """Upload an object again that is stored, without its bytes; None when they are needed.

        Chunks and all are touched on as many servers as an upload would write.
        """
        writer = self.cluster.writer
        try:
            info = await self.cluster.stat(object_id)
            size = info.size
            copies = 255
            if info.kind == Kind.MANIFEST:
                manifest = await self._manifest(object_id)
                size = manifest.size
                copies = await writer.renew_chunks(manifest.chunks, range(len(manifest.chunks)))
            written = await writer.renew(object_id, info.checksum, meta)
        except (NotFound, Unavailable, NoCopies):
            return None
        return Uploaded(object_id, size, min(copies, written.copies), Outcome.UNCHANGED)

    async def download(self, object_id: str, *, byte_range: Range | None = None) -> Blob:
        """An object, or a range of it; `info.size` is the object's. Raises `NotFound`,
        `Unavailable`.
        """
        cluster, reader = self.cluster, self.cluster.reader
        if byte_range is not None:
            info = await reader.stat(object_id)
            if info.kind != Kind.MANIFEST:
                return await reader.part_of(info, byte_range)
        blob = await reader.get(object_id)
        info = blob.info
        if info.kind != Kind.MANIFEST:
            return blob if byte_range is None else await reader.part_of(info, byte_range)
        manifest = await _manifest_in(blob)
        size = manifest.size
        kept = manifest if blob.payload.whole is not None else None
        payload = object_payload(reader, cluster.budget, info, size, byte_range, kept)
        return Blob(replace(info, size=size), payload)

    async def stat(self, object_id: str) -> BlobInfo:
        """What is known of an object; `size` is the object's. Raises `NotFound`, `Unavailable`."""
        info = await self.cluster.stat(object_id)
        if info.kind == Kind.MANIFEST:
            return replace(info, size=(await self._manifest(object_id)).size)
        return info

    async def _manifest(self, object_id: str) -> Manifest:
        return await _manifest_in(await self.cluster.get(object_id))

    async def delete(self, object_id: str) -> None:
        """Delete an object everywhere; its chunks stay until they are collected."""
        await self.cluster.write(Write.tombstone(object_id))

    async def page(self, *, after: str | None, limit: int) -> Page:
        """At most `limit` ids in list order, of the servers that answer."""
        ids: list[str] = []
        failures: Failures = []
        following = None
        reader = self.cluster.reader
        async with closing(reader.list(Listing(after=after), failures)) as infos:
            async for info in infos:
                if not is_object_id(info.name):
                    continue
                if len(ids) == limit:
                    following = ids[-1]
                    break
                ids.append(info.name)
        return Page(ids, following, reader.incomplete(failures))

    async def locate(self, object_id: str) -> dict[str, object]:
        """Where the copies of an object are, as the API server says it."""
        info = await self.stat(object_id)
        place = self.cluster.placement.of(partition_of(object_id))
        copies, servers = 0, []
        for member, found in await self.cluster.copies_of(object_id):
            said: dict[str, object] = {
                "server": member.name,
                "rightful": member in place.rightful,
            }
            if isinstance(found, BlobInfo):
                said["state"] = Kind(found.kind).name.lower()
                said["stamp"] = format_stamp(found.stamp)
                copies += found.kind != Kind.TOMBSTONE and member.stale is None
            else:
                said["state"] = "absent" if isinstance(found, NotFound) else "unknown"
                said["detail"] = str(found)
            servers.append(said)
        return {
            "id": object_id,
            "size": info.size,
            "kind": Kind(info.kind).name.lower(),
            "stamp": format_stamp(info.stamp),
            "metadata": {
                name.decode("utf-8", "replace"): value.decode("utf-8", "replace")
                for name, value in metadata.decode(info.metadata)
            },
            "group": place.group.name,
            "copies": copies,
            "wanted": place.group.copies,
            "degraded": copies < place.group.copies,
            "servers": servers,
        }

    async def aclose(self) -> None:
        """Close every store."""
        await self.cluster.aclose()


async def _manifest_in(blob: Blob) -> Manifest:
    if blob.payload.size > MANIFEST_MAX:
        raise Corrupt(f"no manifest has {blob.payload.size} bytes, as that of {blob.info.name}")
    return decode(await read_whole(blob.payload))

"""Objects: what clients upload, over a cluster of blob stores."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from dolmen import metadata
from dolmen.cluster.budget import Budget
from dolmen.cluster.cluster import Cluster
from dolmen.cluster.download import chunks_payload
from dolmen.cluster.incoming import Source
from dolmen.cluster.manifest import CHUNK, Manifest, decode
from dolmen.cluster.upload import Digest, Uploaded, upload, upload_small
from dolmen.errors import NotFound
from dolmen.names import is_object_id, partition_of
from dolmen.payload import read_whole
from dolmen.record import Kind
from dolmen.stamps import format_stamp
from dolmen.store import Blob, BlobInfo, Listing, Outcome, Range, Write


class Objects:
    """Uploads, downloads and deletes of objects. Their ids are digests of their content."""

    def __init__(
        self, cluster: Cluster, *, digest: Digest = "sha256", budget: Budget | None = None
    ) -> None:
        self.cluster = cluster
        self._digest = digest
        self._budget = budget or Budget()

    async def upload(
        self,
        source: Source,
        *,
        whole: bytes | None = None,
        meta: bytes = b"",
        expected_id: str | None = None,
    ) -> Uploaded:
        """Store a body; `whole` is all of it where it is in memory anyway.

        Raises `BadContent`, `NoCopies`, `TooLarge`, and what receiving raises.
        """
        if whole is not None:
            return await upload_small(
                self.cluster, whole, meta=meta, expected_id=expected_id, digest=self._digest
            )
        return await upload(
            self.cluster,
            source,
            self._budget,
            meta=meta,
            expected_id=expected_id,
            digest=self._digest,
        )

    async def renew(self, object_id: str, meta: bytes) -> Uploaded:
        """Upload an object again that is stored, without its bytes; `NotFound` when it is not.

        Chunks and all are touched on as many servers as an upload would write.
        """
        info = await self.cluster.stat(object_id)
        if info.kind == Kind.MANIFEST:
            manifest = await self._manifest(object_id)
            for number, name in enumerate(manifest.chunks):
                length = min(CHUNK, manifest.size - number * CHUNK)
                if not await self.cluster.renew(name, length):
                    raise NotFound(f"{name}, a chunk of {object_id}, is missing")
            size = manifest.size
        else:
            size = info.size
        copies = await self.cluster.renew(object_id, info.size, meta=meta)
        if not copies:
            raise NotFound(f"{object_id} is not on enough servers")
        return Uploaded(object_id, size, copies, Outcome.UNCHANGED)

    async def download(self, object_id: str, *, byte_range: Range | None = None) -> Blob:
        """An object, or a range of it; `info.size` is the object's. Raises `NotFound`,
        `Unavailable`.
        """
        if byte_range is None:
            blob = await self.cluster.get(object_id)
            if blob.info.kind != Kind.MANIFEST:
                return blob
        else:
            info = await self.cluster.stat(object_id)
            if info.kind != Kind.MANIFEST:
                return await self.cluster.get(object_id, byte_range=byte_range)
            blob = await self.cluster.get(object_id)
        manifest = decode(await read_whole(blob.payload))
        blob.info.size = manifest.size
        return Blob(blob.info, chunks_payload(self.cluster, self._budget, manifest, byte_range))

    async def stat(self, object_id: str) -> BlobInfo:
        """What is known of an object; `size` is the object's. Raises `NotFound`, `Unavailable`."""
        info = await self.cluster.stat(object_id)
        if info.kind == Kind.MANIFEST:
            return replace(info, size=(await self._manifest(object_id)).size)
        return info

    async def _manifest(self, object_id: str) -> Manifest:
        return decode(await read_whole((await self.cluster.get(object_id)).payload))

    async def delete(self, object_id: str) -> None:
        """Delete an object everywhere; its chunks stay until they are collected."""
        await self.cluster.write(Write.tombstone(object_id))

    async def list(self, *, after: str | None = None) -> AsyncIterator[BlobInfo]:
        """Every object in list order; `size` is that of its blob or manifest."""
        async for info in self.cluster.list(Listing(after=after)):
            if is_object_id(info.name):
                yield info

    async def locate(self, object_id: str) -> dict[str, object]:
        """Where the copies of an object are, as the API server tells it."""
        info = await self.stat(object_id)
        place = self.cluster.placement.of(partition_of(object_id))
        copies, servers = 0, []
        for member, found in await self.cluster.copies_of(object_id):
            told: dict[str, object] = {
                "server": member.name,
                "rightful": member in place.rightful,
            }
            if isinstance(found, BlobInfo):
                told["state"] = Kind(found.kind).name.lower()
                told["stamp"] = format_stamp(found.stamp)
                copies += found.kind != Kind.TOMBSTONE
            else:
                told["state"] = "absent" if isinstance(found, NotFound) else "unknown"
                told["detail"] = str(found)
            servers.append(told)
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

"""`s3://`, `gs://`, `az://`, `file://`: blobs in a bucket of an object store.

For data that outgrew one's machines. It needs nothing of the bucket but put, get, delete and a
list that shows at once what was written: no compare-and-swap, no database beside it. Any number
of dolmen processes on any machines may use one bucket at a time.

Layout, below the path of the URL; PPPP is the partition in hex:

    heads/PPPP/NAME!/STAMP.KIND.CHECKSUM.SIZE.ARRIVED.ID.METADATA
    data/PPPP/NAME!/ID/NUMBER       a part of 8 MiB of a blob above 64 KiB, number by number
    data/PPPP/NAME!/ID/at.TIME      the parts were in use at this second
    notes/HASH, sweeps/TIME         facts about the store; when it was swept

A **head** is one write of one name: a blob, a manifest or a tombstone. Its key says all that a
listing needs, so a page of a listing is one request and nothing is fetched blob by blob (but for
metadata of more than 96 bytes: `head.py`). The bytes of a blob of up to 64 KiB are in its
head: a put is a list and a put, a get is a list and a get. Objects are never changed: no key gets
two contents, so a put may be sent again.

**The highest head wins** (`store.rank`), and nothing else decides; so why whatever happens at
once, or is cut off half-way, ends well:

* *Half a blob is never seen.* The head is put after the parts, in one piece, and a put shows
  whole or not at all. A writer that dies before leaves parts nobody refers to, one that dies
  after has written.
* *Writers converge.* Each puts a head of its own under a key of its own, so none can undo
  another's, and every reader takes the highest of the same set. Two plain puts of differing
  content at once may both be told they succeeded; the newer stands (`conflicts` is False).
  What a writer was told is true of the moment it looked.
* *A touch* is a new head with the same parts; a *delete* is a head that is a tombstone.
* *Nothing comes back.* What is outranked goes lowest first, so that no moment shows a lower head
  which a higher one overruled; and every put makes keys of its own (ID is random), so a slow
  removal can't take the same write made anew.
* *What is being read stays.* Outranked heads and the parts they refer to go a day after they
  were overruled, by the sweep. (Only `remove` takes heads at once, which is its point: a reader
  between its list and its get looks again.)
* *What is being written stays.* The sweep takes parts only if no head refers to them and the
  newest time in their keys is a day old: ID begins with the second in which the upload began, an
  upload longer than half a day adds `at.TIME`, and so does `remove` before it takes the head,
  because a touch may have seen it and be about to put another one. The sweep lists heads
  first and parts after, so that a head gone in the first list has left its time in the second.
  A writer that is held up for a day between its list and its put could still lose its parts: the
  blob then is `Corrupt`, never wrong.

Machines' clocks need to agree within hours for this, not more.

Why parts, and not one multipart upload: one that was abandoned can't be seen or swept by listing,
and is paid for until a rule of the bucket ends it; every part here is an object like any other.

**Damage.** Parts carry CRC-32C sums of each 256 KiB, small blobs are compared with their checksum.
What fails gets an empty object beside its head (the head's key and `!`): it answers as
`Corrupt`, and leaves lists and digests, until a put replaces it.
"""

from __future__ import annotations

from dolmen.stores.objects.store import ObjectsStore
from dolmen.stores.objects.url import open_url

__all__ = ["ObjectsStore", "open_url"]

"""The purge watermark: two stamps that say which purges of old tombstones a store took part in.

*Purging* forgets old tombstones (`dolmen.replication.purge`). Each purge has a stamp, higher
than that of every purge before it. A store notes the stamp under `WATERMARK` when it takes
part, before anything is removed, and under `PURGED` once every store has done so. A store whose
watermark is below what another has purged missed that purge: it was out of the configuration,
or its disk was set back to an older state. It is *stale*: what it holds may have been deleted,
and nobody remembers.
"""

from __future__ import annotations

from collections.abc import Mapping

from dolmen.errors import Corrupt, InvalidName
from dolmen.stamps import parse_stamp

WATERMARK = "watermark"
PURGED = "purged"


def purged_in(notes: Mapping[str, bytes]) -> int:
    """Up to which stamp tombstones may be gone anywhere; 0 for none. Raises `Corrupt`."""
    return _stamp(notes, PURGED)


def watermark_in(notes: Mapping[str, bytes]) -> int:
    """The stamp of the last purge the store took part in; 0 for none. Raises `Corrupt`."""
    return max(_stamp(notes, WATERMARK), _stamp(notes, PURGED))


def _stamp(notes: Mapping[str, bytes], key: str) -> int:
    noted = notes.get(key)
    if noted is None:
        return 0
    try:
        return parse_stamp(noted.decode("ascii", "replace"))
    except InvalidName as error:
        raise Corrupt(f"the note {key!r} is damaged: {error}") from error

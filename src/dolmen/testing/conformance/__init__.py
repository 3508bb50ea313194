"""The one suite every blob store passes: `dolmen.store`, made to run.

A store's own test hands a factory to it, and pytest does the rest:

    class TestMemory(Conformance):
        reopens = False

        async def make_store(self, place: Place) -> BlobStore:
            return MemoryStore(clock=Clock(place.time.wall), now=place.time.now)

A test that overrides `damage` as well has the suite damage what the store keeps. What a
store does not promise in its `capabilities` is asked in the weaker form that they allow,
or skipped. One without stamps (a plain sos blob server) is not for this.
The idea of such a suite is perkeep's `storagetest`.
"""

from __future__ import annotations

from dolmen.testing.conformance.bulk import Bulk
from dolmen.testing.conformance.model import Modelled
from dolmen.testing.conformance.reads import Reads
from dolmen.testing.conformance.setting import Place, Time
from dolmen.testing.conformance.upkeep import Upkeep
from dolmen.testing.conformance.writes import Writes

__all__ = ["Conformance", "Place", "Time"]


class Conformance(Writes, Reads, Bulk, Upkeep, Modelled):
    """Everything the contract asks of one store."""

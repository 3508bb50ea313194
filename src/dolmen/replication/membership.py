"""Who is who: what servers know of the configuration, compared before anything is removed.

Two repairers that disagree about who should hold what could each remove what the other counts
on. So every server keeps the epoch and the fingerprint of its configuration and its own name in
it (`dolmen.stores.epoch`), noted once under an epoch. One that knows a higher epoch, another
configuration of the same or another name for itself (two URLs were swapped) ends the round
with `Outdated`, before anything is copied or removed. A store that answers under two names is
one server, and the second name is left out: its only copy would vouch for itself. Before each
removal all of this is asked again: the same stores still have to be there.

Read first: `dolmen.stores.epoch`.
"""

from __future__ import annotations

from collections.abc import Mapping

from dolmen.errors import Corrupt, Outdated, Unavailable
from dolmen.store import IDENTITY
from dolmen.stores.epoch import Seen, seen_in, server_in, tell
from dolmen.stores.retrying import Retrying, ServerFailed
from dolmen.stores.watermark import watermark_in

Notes = Mapping[str, bytes]


class Membership:
    """The servers of one configuration, which they know of with `told`."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self.news = True
        """The last `check` told a server of the configuration, or there was none yet."""
        self._found: dict[str, Notes] = {}
        """What each server had noted at the beginning of this round."""

    async def check(
        self, stores: Mapping[str, Retrying], *, told: bool
    ) -> tuple[Mapping[str, Notes], dict[str, str]]:
        """Look who is there; returns their notes, and the servers that can't be used, and why.

        Those that don't know the configuration are told, once all were found to agree. Raises
        `Outdated`.
        """
        failing: dict[str, str] = {}
        notes: dict[str, Notes] = {}
        for name, store in _keeping_notes(stores):
            try:
                found = await store.notes()
                seen_in(found), watermark_in(found)
                if IDENTITY not in found:
                    raise Corrupt("it does not say which store it is")  # noqa: TRY301
                notes[name] = found
            except (ServerFailed, Corrupt) as error:
                failing[name] = str(getattr(error, "error", error))
        for name, other in _twins(notes).items():
            del notes[name]
            failing[name] = (
                f"it is the same store as {other}: take one of them out of the configuration"
            )
        self._found = dict(notes)
        if told:
            for name, noted in self._found.items():
                self._compare(name, noted)
            for name, noted in self._found.items():
                if seen_in(noted) != self._seen:
                    self.news = True
                    try:
                        await tell(stores[name], self._seen, name)
                    except ServerFailed as failed:
                        del notes[name]
                        failing[name] = str(failed.error)
        return notes, failing

    async def confirm(self, stores: Mapping[str, Retrying], *, told: bool) -> None:
        """Make sure that these are the servers that `check` found.

        Raises `Outdated`, or `ServerFailed` for one that is another store or has an older disk.
        """
        for name, store in _keeping_notes(stores):
            noted, found = await store.notes(), self._found[name]
            if noted.get(IDENTITY) != found[IDENTITY] or watermark_in(noted) < watermark_in(found):
                why = "it is another store, or has an older disk, than when the round began"
                raise ServerFailed(name, Unavailable(why))
            if told:
                self._compare(name, noted)
                if seen_in(noted) != self._seen:
                    why = "it does not know the configuration it was given in this round"
                    raise ServerFailed(name, Unavailable(why))

    def _compare(self, name: str, noted: Notes) -> None:
        known, ours = seen_in(noted), self._seen.epoch
        if known.epoch > ours:
            raise Outdated(
                f"{name} has seen epoch {known.epoch} of the configuration, this one is epoch "
                f"{ours}: use the newer configuration"
            )
        if known.epoch < ours or not known.fingerprint:
            return
        if known != self._seen:
            raise Outdated(
                f"{name} has seen another configuration with epoch {ours}. If this is the newer "
                "one (servers, URLs, weights, zones or copies changed), give it "
                f"epoch = {ours + 1} and use it everywhere; if not, correct it: nothing was "
                "copied or removed"
            )
        if server_in(noted) != name:
            raise Outdated(
                f"the server reached as {name} is {server_in(noted)} since epoch {ours}: compare "
                "the URLs of both in the configuration, and what listens there; nothing was "
                "copied or removed"
            )


def _keeping_notes(stores: Mapping[str, Retrying]) -> list[tuple[str, Retrying]]:
    return [(name, store) for name, store in stores.items() if store.capabilities.stamps]


def _twins(notes: Mapping[str, Notes]) -> dict[str, str]:
    """The names under which a store is there once more, and the one it goes by."""
    names: dict[bytes, list[str]] = {}
    for name, noted in notes.items():
        names.setdefault(noted[IDENTITY], []).append(name)
    twins: dict[str, str] = {}
    for same in names.values():
        known = server_in(notes[same[0]])
        first = known if known in same else same[0]
        twins |= {name: first for name in same if name != first}
    return twins

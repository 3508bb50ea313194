"""Every error a caller of dolmen may catch, in one place.

A store raises only these. Each message is a sentence for a person: what was
found, and where it helps, what to do next. Two of them decide what may be
retried: after `Unavailable` nothing has happened, so trying again is safe;
after `OutcomeUnknown` the write may have happened, so only an operation that
may happen twice (a put of the same content under the same name) is repeated.
"""

from __future__ import annotations

from collections.abc import Sequence


class DolmenError(Exception):
    """Base of every error dolmen raises on purpose."""


class InvalidName(DolmenError):
    """A blob name, object id, stamp or metadata entry that is not of the allowed form."""


class NotFound(DolmenError):
    """Nothing live is stored under this name.

    `stamp` is the stamp of the tombstone that says so, or 0 where the name was
    never heard of: a reader that asks several stores needs it, because a newer
    tombstone on one overrules an older copy on another.
    """

    def __init__(self, message: str, *, stamp: int = 0) -> None:
        super().__init__(message)
        self.stamp = stamp


class Conflict(DolmenError):
    """A put without a stamp met other content that is live under the name."""


class Corrupt(DolmenError):
    """The bytes that were stored are not the bytes that are there now.

    It is never the same as `NotFound`: another copy may well be good.
    """


class TooLarge(DolmenError):
    """The blob, its metadata or a request is beyond what this store can keep."""


class Full(DolmenError):
    """The store has no room for this put; reads and deletes go on."""


class ReadOnly(DolmenError):
    """The store refuses every write, for example after its disk failed to flush."""


class Unavailable(DolmenError):
    """The store could not be asked. Nothing happened, so a retry is safe."""


class OutcomeUnknown(DolmenError):
    """The store was asked to write and did not say how it went. It may have happened."""


class NoCopies(DolmenError):
    """Every server was tried and too few of them took a write; it may stand on some.

    `failures` has a pair for each server that failed: its name and its error.
    """

    def __init__(self, message: str, failures: Sequence[tuple[str, DolmenError]] = ()) -> None:
        told = "; ".join(f"{server}: {error}" for server, error in failures)
        super().__init__(f"{message}: {told}" if told else message)
        self.failures = list(failures)


class Outdated(DolmenError):
    """Whoever asks acts on an older configuration than the store has seen. Nothing happened."""


class Unauthorized(DolmenError):
    """The store refuses who is asking."""


class BadContent(DolmenError):
    """The bytes that arrived are not those that were announced (length or digest)."""


class BadSetting(DolmenError):
    """A flag, environment variable, file entry or store URL that can't be used.

    The message is one line: where it was found, what was found, what is allowed.
    """


class BadVolume(DolmenError):
    """A data folder that can't be opened: foreign, newer, in use or unreadable."""


def to_text(error: DolmenError) -> str:
    """An error as servers send it to each other: its class, a line feed, its message."""
    return f"{type(error).__name__}\n{error}"


def from_text(text: str, stamp: int = 0) -> DolmenError:
    """The error that `to_text` wrote; a class that is not known here becomes `Unavailable`.

    `stamp` is the tombstone's for a `NotFound`.
    """
    word, _, message = text.partition("\n")
    kind = globals().get(word)
    if kind is NotFound:
        return NotFound(message, stamp=stamp)
    if isinstance(kind, type) and issubclass(kind, DolmenError):
        return kind(message)
    return Unavailable(message or word)

"""Header fields: metadata in and out, stamps, kinds, digests of content, entity tags.

`X-…` fields of an upload are kept as metadata and come back on every download,
except those that are dolmen's own (`X-Dolmen-…`) and those that proxies and
browsers obey, which nobody should be able to store for others.

Read first: `dolmen.metadata`, `dolmen.http.messages`.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from binascii import hexlify
from collections.abc import Callable
from email.utils import formatdate
from functools import lru_cache
from typing import NamedTuple

from crc32c import CRC32CHash

from dolmen import metadata
from dolmen.errors import BadContent, InvalidName
from dolmen.http.conditional import content_range, refuse_conditions
from dolmen.http.encoding import EncodedHeaders, encode_headers
from dolmen.http.messages import Headers
from dolmen.record import Kind
from dolmen.stamps import milliseconds, parse_stamp
from dolmen.store import BlobInfo

MIME_TYPE = b"x-mime-type"
_OURS = b"x-dolmen-"
_STARTED = int(time.time())  # nothing up to then is ahead of the clock
_PROXY = frozenset(
    b"""
    x-real-ip x-request-id x-correlation-id x-cluster-client-ip x-client-ip x-original-url
    x-rewrite-url x-http-method-override x-powered-by x-ua-compatible x-robots-tag x-sendfile
    x-lighttpd-send-file x-content-type-options x-frame-options x-xss-protection
    x-permitted-cross-domain-policies x-dns-prefetch-control x-download-options
    """.split()
)
_PROXY_PREFIXES = (b"x-forwarded", b"x-accel-", b"x-envoy-", b"x-amzn-", b"x-b3-", b"x-goog-")
_NAME = re.compile(rb"x-[a-z0-9!#$%&'*+.^_`|~-]+")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_DIGESTS: dict[str, Callable[[], hashlib._Hash | CRC32CHash]] = {
    "sha-256": hashlib.sha256,
    "crc32c": CRC32CHash,
}
_CHECKSUM = re.compile(rb"[0-9a-fA-F]{32}")
_SF_BYTES = re.compile(r":([A-Za-z0-9+/=]*):")
_NOBODY_CHOSE = b"application/x-www-form-urlencoded"
_KINDS = {b"blob": Kind.BLOB, b"manifest": Kind.MANIFEST}
_KIND_NAMES = {kind.value: kind.name.lower().encode() for kind in Kind}


def metadata_of(headers: Headers) -> bytes:
    """The metadata an upload's header fields give, encoded.

    Without `X-Mime-Type` the `Content-Type` is kept in its place, unless it is the
    one curl sends when nobody chose. Raises `InvalidName` for `X-Dolmen-…` fields
    that are none, `TooLarge`.
    """
    pairs: list[tuple[bytes, bytes]] = []
    content_type = b""
    for name, value in headers.items():
        if name == b"content-type":
            content_type = value
        elif name.startswith(b"x-"):
            if name.startswith(_OURS):
                if name not in (b"x-dolmen-stamp", b"x-dolmen-kind", b"x-dolmen-checksum"):
                    raise InvalidName(
                        f"{name.decode('latin-1')} is no header of dolmen's, and X-Dolmen-… names "
                        "are kept for it; choose another name"
                    )
            elif not _is_obeyed(name):
                pairs.append((name, value))
    if content_type and content_type != _NOBODY_CHOSE and MIME_TYPE not in headers:
        pairs.append((MIME_TYPE, content_type))
    return metadata.encode(pairs) if pairs else b""


def stamp_of(headers: Headers) -> int | None:
    """The stamp a copy carries, or None; raises `InvalidName` for what is no stamp."""
    value = headers.get(b"x-dolmen-stamp")
    return None if value is None else parse_stamp(value.decode("latin-1"))


def describe(
    info: BlobInfo,
    *,
    tag: bytes | None = None,
    part: tuple[int, int] | None = None,
    guess: bytes = b"application/octet-stream",
    more: bytes = b"",
) -> EncodedHeaders:
    """The header fields of an answer with (or about) this blob, or a part (start, stop) of it.

    `guess` is the Content-Type where its metadata gives none, `more` are header lines.
    """
    if not info.metadata:
        own = b"%bContent-Type: %b\r\n" % (more, guess)
    else:
        pairs = _presentable(list(metadata.decode(info.metadata)))
        content_type = dict(pairs).get(MIME_TYPE, guess)
        exact = (b"X-Dolmen-Metadata", base64.b64encode(info.metadata))
        own = more + encode_headers([(b"Content-Type", content_type), *pairs, exact])
    if part is not None:
        own += b"Content-Range: %b\r\n" % content_range(*part, info.size)
    stamp = info.stamp
    # The rest is hex digits, dates and kinds, and needs no checking for control characters.
    return EncodedHeaders(
        b"%bETag: %b\r\nAccept-Ranges: bytes\r\nLast-Modified: %b\r\n"
        b"X-Dolmen-Stamp: %016x\r\nX-Dolmen-Kind: %b\r\nX-Dolmen-Arrived: %d\r\n"
        % (
            own,
            tag or entity_tag(info),
            _date(modified(info)),
            stamp,
            _KIND_NAMES[info.kind],
            info.arrived,
        )
    )


def _presentable(pairs: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The pairs that may be header fields; a store may have been given any bytes as metadata."""
    return [
        (name, value)
        for name, value in pairs
        if _NAME.fullmatch(name)
        and not _CONTROL.search(value)
        and not name.startswith(_OURS)
        and not _is_obeyed(name)
    ]


def _is_obeyed(name: bytes) -> bool:
    """Whether proxies or browsers act on a field of this name."""
    return name in _PROXY or name.startswith(_PROXY_PREFIXES)


def entity_tag(info: BlobInfo) -> bytes:
    """The ETag of a blob: its checksum in quotes."""
    return b'"%b"' % hexlify(info.checksum)


def modified(info: BlobInfo) -> int:
    """When a blob was written, in seconds since the epoch; never ahead of this clock."""
    seconds = milliseconds(info.stamp) // 1000 or info.arrived
    return seconds if seconds <= _STARTED else min(seconds, int(time.time()))


@lru_cache(maxsize=4096)
def _date(seconds: int) -> bytes:
    return formatdate(min(seconds, 253_402_300_799), usegmt=True).encode()


def parse_base64(text: bytes | str) -> bytes:
    """The bytes behind base64; raises `InvalidName`."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InvalidName(f"{text[:60]!r} is not base64: {error}") from error


class Announced(NamedTuple):
    """What the header fields of an upload say of the blob."""

    metadata: bytes
    stamp: int | None
    kind: Kind
    checksum: bytes | None
    digested: bool
    """There is a `Content-Digest` to compare the body with."""


def announced_by(headers: Headers) -> Announced:
    """Read the header fields of an upload; raises `HTTPError`, `InvalidName`, `TooLarge`."""
    refuse_conditions(headers)
    exact = headers.get(b"x-dolmen-metadata")
    kind = headers.get(b"x-dolmen-kind", b"blob")
    if kind not in _KINDS:
        raise InvalidName(f"{kind[:40]!r} is no kind of a blob: it is blob or manifest")
    checksum = headers.get(b"x-dolmen-checksum")
    if checksum is not None and not _CHECKSUM.fullmatch(checksum):
        raise InvalidName(f"{checksum[:60]!r} is no checksum: it is 32 hex digits")
    return Announced(
        metadata.check(parse_base64(exact)) if exact is not None else metadata_of(headers),
        stamp_of(headers),
        _KINDS[kind],
        bytes.fromhex(checksum.decode()) if checksum is not None else None,
        b"content-digest" in headers,
    )


class ContentDigest:
    """The `Content-Digest` of a request (RFC 9530; sha-256 or crc32c), checked as bytes pass."""

    def __init__(self, headers: Headers) -> None:
        self._wanted: list[tuple[str, bytes, hashlib._Hash | CRC32CHash]] = []
        for member in headers.get(b"content-digest", b"").decode("latin-1").split(","):
            algorithm, _, encoded = member.strip().partition("=")
            make = _DIGESTS.get(algorithm)
            if make is None:
                continue  # RFC 9530: algorithms one does not know are passed over
            hasher = make()
            match = _SF_BYTES.fullmatch(encoded)
            digest = parse_base64(match[1]) if match else b""
            if len(digest) != hasher.digest_size:
                raise InvalidName(
                    f"Content-Digest: {member.strip()[:100]!r} is no digest; it has the form "
                    f"{algorithm}=:base64 of {hasher.digest_size} bytes:"
                )
            self._wanted.append((algorithm, digest, hasher))

    def __bool__(self) -> bool:
        return bool(self._wanted)

    def update(self, piece: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the body."""
        for _, _, hasher in self._wanted:
            hasher.update(piece)

    def check(self) -> None:
        """Raise `BadContent` when the body was another one than announced."""
        for algorithm, wanted, hasher in self._wanted:
            found = hasher.digest()
            if found != wanted:
                raise BadContent(
                    f"the body's {algorithm} is :{base64.b64encode(found).decode()}:, "
                    f"not :{base64.b64encode(wanted).decode()}: as its Content-Digest says; "
                    "nothing was stored"
                )

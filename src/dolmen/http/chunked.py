"""Reading the chunked transfer coding (RFC 9112, 7.1), strictly; trailers are read and dropped."""

from __future__ import annotations

import re

from dolmen.http.problems import HTTPError

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;%b(?:=(?:%b|%b))?)*" % (_TOKEN, _TOKEN, _QUOTED))
_TRAILER = re.compile(rb"(%b):[\t -~\x80-\xff]*" % _TOKEN)
_FRAMING = (b"content-length", b"transfer-encoding")
_LINE_MAX = 4 * 1024
_SLACK = 16 * 1024
LAST_CHUNK = b"0\r\n\r\n"


class ChunkDecoder:
    """Turns the bytes of one chunked body into its content."""

    __slots__ = ("_held", "_left", "_overhead", "_trailers", "ended")

    def __init__(self) -> None:
        self.ended = False
        self._held = b""  # the beginning of a line
        self._left = 0  # bytes of the chunk to come, with the CRLF behind it
        self._overhead = 0
        self._trailers = False

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Decode `data`: pieces of content, and the bytes beyond the body's end (b"" before it).

        Raises HTTPError 400 for bad sizes, extensions, line ends and trailers, and where those
        outgrow 16 KiB plus 16 bytes a chunk.
        """
        pieces: list[bytes] = []
        at = 0
        if self._held:
            data, self._held = self._held + data, b""
        while not self.ended:
            left = self._left
            if left > 2:
                piece = data[at : at + left - 2]
                if piece:
                    pieces.append(piece)
                    self._left = left = left - len(piece)
                    at += len(piece)
            if left:
                if left > 2 or len(data) < at + 2:
                    if left == 2 and data[at : at + 1] not in (b"", b"\r"):
                        raise HTTPError(400, "A chunk is longer than its size says.")
                    break
                if data[at : at + 2] != b"\r\n":
                    raise HTTPError(400, "A chunk is longer than its size says.")
                at += 2
                self._left = 0
            end = data.find(b"\n", at)
            if end < 0:
                if len(data) - at > _LINE_MAX:
                    raise HTTPError(400, "A line of the chunked body is too long.")
                break
            self._line(data[at:end])
            at = end + 1
        if self.ended:
            return pieces, data[at:]
        self._held = data[at:]
        return pieces, b""

    def _line(self, line: bytes) -> None:
        """Take a line, still with its CR: the size of a chunk, or a trailer."""
        self._overhead += len(line) + 1 - 16
        if self._overhead > _SLACK:
            raise HTTPError(400, "The chunked body has too many extensions or trailers.")
        if not line.endswith(b"\r"):
            raise HTTPError(400, "A line of the chunked body does not end in CRLF.")
        line = line[:-1]
        if self._trailers:
            self._overhead += 16
            trailer = _TRAILER.fullmatch(line)
            if not line:
                self.ended = True
            elif trailer is None or trailer[1].lower() in _FRAMING:
                raise HTTPError(400, "A trailer of the chunked body is malformed.")
            return
        size = _SIZE.fullmatch(line)
        if size is None:
            raise HTTPError(400, "A chunk's size is malformed.")
        length = int(size[1], 16)
        if length:
            self._left = length + 2
        else:
            self._trailers = True

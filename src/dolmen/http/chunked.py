"""The chunked transfer coding (RFC 9112, 7.1), taken apart by llhttp."""

from __future__ import annotations

from httptools import HttpParserError, HttpRequestParser

_HEAD = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
_SLACK = 16 * 1024
LAST_CHUNK = b"0\r\n\r\n"


class BadChunk(Exception):  # noqa: N818 - says what it is
    """The bytes are not a chunked body; the message says where they went wrong."""


class ChunkDecoder:
    """Turns the bytes of one chunked body into its content; trailers are read and dropped.

    The parser is llhttp, fed a head of our own. It does not tell where in the
    bytes a body ends, so they are fed up to each CRLF CRLF (which ends every
    chunked body) and what lies after the end is never shown to it.
    """

    __slots__ = ("_chunks", "_content", "_fed", "_parser", "_pieces", "ended")

    def __init__(self) -> None:
        self.ended = False
        self._pieces: list[bytes] = []
        self._fed = self._content = self._chunks = 0
        self._parser = HttpRequestParser(self)
        self._parser.feed_data(_HEAD)

    def on_body(self, data: bytes) -> None:
        """Called by the parser."""
        self._content += len(data)
        self._pieces.append(data)

    def on_chunk_header(self) -> None:
        """Called by the parser."""
        self._chunks += 1

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self.ended = True

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Decode `data`: pieces of content, and the bytes beyond the body's end (b"" before it).

        Raises BadChunk for bad sizes and line ends, and when extensions and
        trailers outgrow 16 KiB plus 16 bytes a chunk.
        """
        view = memoryview(data)
        at = 0
        try:
            while not self.ended and at < len(data):
                if at < 4 and data[at] in b"\r\n":  # the end may have begun in the last arrival
                    to = at + 1
                else:
                    to = data.find(b"\r\n\r\n", at) + 4
                    if to == 3:
                        to = len(data)
                self._parser.feed_data(view[at:to])
                self._fed += to - at
                at = to
        except HttpParserError as error:
            raise BadChunk(f"The chunked body is malformed: {error}.") from None
        if self._fed - self._content > _SLACK + 16 * self._chunks:
            raise BadChunk("The chunked body has too many extensions or trailers.")
        pieces, self._pieces = self._pieces, []
        return pieces, data[at:]

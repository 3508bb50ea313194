"""Reading the head of a message, request or response: strict (RFC 9112), the same for both roles.

Pure functions from bytes to values. Whatever is ambiguous raises `HTTPError`: folded or nameless
lines, a bare CR or LF, a space before the colon, several lengths, a length beside a transfer
coding, an unknown coding. Header lines mostly come again: what a line says is kept in the
`Lines` a caller passes, and a block of lines a connection has just brought is recognized whole.
"""

from __future__ import annotations

import re

from dolmen.http.messages import Headers
from dolmen.http.problems import HTTPError

Lines = dict[bytes, tuple[bytes, bytes]]
"""Header lines that were read before, each with its lower-case name and its value."""
_LINES_MAX, _LINE_MAX = 1024, 256
METHODS = frozenset(("GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH"))
_NAMES = {name.encode(): name for name in METHODS}
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_LINE = re.compile(rb"(%b):([\t -~\x80-\xff]*)" % _TOKEN)
_REQUEST = re.compile(rb"(%b) ([!-~]+) (HTTP/[0-9]\.[0-9])" % _TOKEN)
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [\t -~\x80-\xff]*)?")
_plain = re.compile(rb"(GET|HEAD|PUT|POST|DELETE) (/[!\"$-~]*+) HTTP/1\.1").fullmatch
_IN_NO_HEAD = re.compile(rb"[^\t\r\n -~\x80-\xff]|\r(?!\n|\Z)|(?<!\r)\n")
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]+)(?::[0-9]{0,5})?")


class Head:
    """The header fields of one message and what follows from them.

    `length` is the body's announced size, None without a Content-Length. `expects` means that
    the sender waits for 100 Continue. `plain` that the response needs no line about the
    connection. `same_site` that no web page of another site sent the request.
    """

    __slots__ = (
        "chunked", "expects", "headers", "http11", "keep_alive", "length", "plain", "same_site",
    )  # fmt: skip

    def __init__(self, headers: Headers, *, http11: bool) -> None:
        self.headers = headers
        self.http11 = http11
        self.length = _length(headers)
        self.chunked = b"transfer-encoding" in headers and _is_chunked(headers, http11=http11)
        self.keep_alive = http11
        if b"connection" in headers or b"proxy-connection" in headers:
            values = headers.get(b"connection", b""), headers.get(b"proxy-connection", b"")
            tokens = [token.strip(b" \t") for token in b",".join(values).lower().split(b",")]
            self.keep_alive = b"close" not in tokens and (http11 or b"keep-alive" in tokens)
        self.plain = http11 and self.keep_alive
        self.expects = False
        self.same_site = True


def recognize(data: bytes, block: bytes) -> tuple[str, bytes, int] | None:
    """Method, target and where the body begins, of a plain request with this block of lines.

    A block begins with the CRLF before the lines and ends with the empty line. None for anything
    else, which is not thereby wrong.
    """
    line = data.find(b"\r\n")
    if not data.startswith(block, line):
        return None
    words = _plain(data, 0, line)
    if words is None:
        return None
    method, target = words.groups()
    return _NAMES[method], target, line + len(block)


def may_begin(data: bytes | bytearray, at: int) -> bool:
    """Whether a head's first bytes, good up to `at`, may still become one.

    It tells a TLS handshake or a bare line feed at once, which would never end in an empty line.
    """
    return _IN_NO_HEAD.search(data, max(0, at - 1)) is None


def read_headers(block: bytes, lines: Lines) -> Headers:
    """The fields of a block: the CRLF before them, lines that each end in CRLF, an empty line."""
    headers = Headers()
    if len(block) <= 4:
        return headers
    for line in block[2:-4].split(b"\r\n"):
        field = lines.get(line)
        if field is None:
            match = _LINE.fullmatch(line)
            if match is None:
                raise HTTPError(400, f"A header line is malformed: {_shown(line)}.")
            field = match[1].lower(), match[2].strip(b" \t")
            if len(line) <= _LINE_MAX:
                if len(lines) >= _LINES_MAX:
                    lines.clear()
                lines[line] = field
        name, value = field
        headers[name] = headers[name] + b", " + value if name in headers else value
    return headers


def _length(headers: Headers) -> int | None:
    value = headers.get(b"content-length")
    if value is None:
        return None
    if not value.isdigit() or len(value) > 20:  # nor are several, joined by commas
        raise HTTPError(400, "The Content-Length is not one number.")
    return int(value)


def _is_chunked(headers: Headers, *, http11: bool) -> bool:
    if b"content-length" in headers:
        raise HTTPError(400, "There is a Content-Length beside a Transfer-Encoding.")
    if not http11:
        raise HTTPError(400, "HTTP/1.0 has no Transfer-Encoding.")
    codings = [c.strip(b" \t") for c in headers[b"transfer-encoding"].lower().split(b",")]
    if codings[-1] != b"chunked" or b"chunked" in codings[:-1]:
        raise HTTPError(400, "The last transfer coding, and only the last, must be chunked.")
    if len(codings) > 1:
        raise HTTPError(501, "The only transfer coding supported is chunked.")
    return True


def read_status_line(line: bytes) -> tuple[int, bool]:
    """Status and whether it is HTTP/1.1 (else 1.0), of a line without its CRLF."""
    match = _STATUS.fullmatch(line)
    if match is None:
        raise HTTPError(400, f"The status line is malformed: {_shown(line)}.")
    return int(match[2]), match[1] == b"1"


def read_request_line(line: bytes) -> tuple[str, bytes, bytes | None, bool]:
    """Method, target, authority of an absolute-form target, and whether it is HTTP/1.1 (else 1.0).

    Raises HTTPError: 400 for anything but three words with single spaces, or a target of no
    known form; 501 for methods unknown here; 505 for other versions.
    """
    if line == b"PRI * HTTP/2.0":
        raise HTTPError(400, "HTTP/2 is not supported here; use HTTP/1.1 (curl --http1.1).")
    match = _REQUEST.fullmatch(line)
    if match is None:
        raise HTTPError(400, "The request line is not method, target and version.")
    method, target, version = match.groups()
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise HTTPError(505, "Only HTTP/1.1 and HTTP/1.0 are supported.")
    name = _NAMES.get(method)
    if name is None:
        raise HTTPError(501, f"The method {_shown(method)} is not supported.")
    target, authority = _resolve(name, target)
    return name, target, authority, version == b"HTTP/1.1"


def _resolve(method: str, target: bytes) -> tuple[bytes, bytes | None]:
    """The path with its query, and the authority of an absolute-form target (RFC 9112, 3.2)."""
    if b"#" in target:
        raise HTTPError(400, "The request target has a fragment.")
    if target.startswith(b"/") or (target == b"*" and method == "OPTIONS"):
        return target, None
    scheme, mark, rest = target.partition(b"://")
    if not mark or scheme.lower() not in (b"http", b"https"):
        raise HTTPError(400, "The request target is neither a path nor an http URL.")
    cut = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
    authority, path = rest[:cut], rest[cut:]
    return path if path.startswith(b"/") else b"/" + path, authority


def read_request_head(headers: Headers, authority: bytes | None, *, http11: bool) -> Head:
    """The head of a request with these fields; `authority` overrules its Host.

    Raises HTTPError: 400 for a missing, repeated or impossible Host, 417 for an unknown
    expectation, and as `Head` does.
    """
    head = Head(headers, http11=http11)
    hosts = [headers.get(b"host"), authority]
    if http11 and hosts[0] is None:
        raise HTTPError(400, "An HTTP/1.1 request needs a Host header.")
    if not all(host is None or _HOST.fullmatch(host) for host in hosts):
        raise HTTPError(400, "The host is not one host name with an optional port.")
    if authority is not None:
        headers[b"host"] = authority
    expectation = headers.get(b"expect")
    if expectation is not None and http11:
        if expectation.lower() != b"100-continue":
            raise HTTPError(417, "The only expectation supported is 100-continue.")
        head.expects = head.chunked or bool(head.length)
    return head


def _shown(text: bytes) -> str:
    return ascii(text[:60].decode("latin-1"))

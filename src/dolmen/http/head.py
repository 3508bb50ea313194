"""Reading the head of a message, request or response: strict (RFC 9112), the same for both roles.

Pure functions from bytes to values. Whatever is ambiguous raises `HTTPError`: folded or nameless
lines, a bare CR or LF, a space before the colon, several lengths, a length beside a transfer
coding, an unknown coding. Header lines mostly come again: what a line says is kept in the
`Lines` a caller passes, and a block of lines a connection has just brought is recognized whole.
"""

from __future__ import annotations

import re

from dolmen.http.limits import Limits
from dolmen.http.messages import BodyTooLarge, Headers, HTTPError
from dolmen.native import accelerated

Lines = dict[bytes, tuple[bytes, bytes]]
"""Header lines that were read before, each with its lower-case name and its value."""
_LINES_MAX, _LINE_MAX = 1024, 256
_NAMES = {
    name.encode(): name for name in ("GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH")
}
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
    the sender waits for 100 Continue, `plain` that the response needs no line about the
    connection.
    """

    __slots__ = ("chunked", "expects", "headers", "http11", "keep_alive", "length", "plain")

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


@accelerated
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


def may_begin(data: bytes, at: int) -> bool:
    """Whether a head's first bytes, good up to `at`, may still become one.

    It tells a TLS handshake or a bare line feed at once, which would never end in an empty line.
    """
    return _IN_NO_HEAD.search(data, max(0, at - 1)) is None


def check_beginning(data: bytes, scanned: int, limits: Limits) -> None:
    """Raise HTTPError where a request that begins so is not one, or is too long."""
    line = data.find(b"\r\n")
    if (line if line >= 0 else len(data) - data.endswith(b"\r")) > limits.request_line:
        raise HTTPError(414, f"The request line exceeds {limits.request_line} bytes.")
    if line >= 0 and len(data) - line > limits.header_size:
        raise HTTPError(431, f"The headers exceed {limits.header_size} bytes.")
    if not line or not may_begin(data, scanned):
        raise HTTPError(400, "This is not HTTP/1.1.")


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


def read_request(data: bytes, limits: Limits, lines: Lines) -> tuple[str, bytes, Head, bytes]:
    """Method, target, head and block of a whole request head.

    The block is b"" where the head does not follow from it alone. Raises HTTPError: 400 for
    anything but three words with single spaces, a target of no known form, or a missing, repeated
    or impossible Host; 413, 414 and 431 beyond a limit; 417 for an unknown expectation; 501 for
    methods unknown here; 505 for other versions; and as `Head` does.
    """
    check_beginning(data, len(data), limits)
    cut = data.find(b"\r\n")
    line, block = data[:cut], data[cut:]
    if block.count(b"\r\n") - 2 > limits.header_count:
        raise HTTPError(431, f"There are more than {limits.header_count} headers.")
    match = _REQUEST.fullmatch(line)
    if match is None:
        raise HTTPError(400, "The request line is not method, target and version.")
    word, target, version = match.groups()
    http11 = version == b"HTTP/1.1"
    if not http11 and version != b"HTTP/1.0":
        raise HTTPError(505, "Only HTTP/1.1 and HTTP/1.0 are supported.")
    method = _NAMES.get(word)
    if method is None:
        raise HTTPError(501, f"The method {_shown(word)} is not supported.")
    target, authority = _resolve(method, target)
    headers = read_headers(block, lines)
    head = Head(headers, http11=http11)
    if head.length is not None and head.length > limits.body_size:
        raise BodyTooLarge(limits.body_size)
    hosts = [headers.get(b"host"), authority]
    if http11 and hosts[0] is None:
        raise HTTPError(400, "An HTTP/1.1 request needs a Host header.")
    if not all(host is None or _HOST.fullmatch(host) for host in hosts):
        raise HTTPError(400, "The host is not one host name with an optional port.")
    expectation = headers.get(b"expect")
    if expectation is not None and http11:
        if expectation.lower() != b"100-continue":
            raise HTTPError(417, "The only expectation supported is 100-continue.")
        head.expects = head.chunked or bool(head.length)
    if authority is not None:  # it overrules Host
        headers[b"host"] = authority
        block = b""
    return method, target, head, block


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


def _shown(text: bytes) -> str:
    return ascii(text[:60].decode("latin-1"))

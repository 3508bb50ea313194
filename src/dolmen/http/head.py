"""What the header section of a message says about its framing; what llhttp leaves open.

llhttp has validated every line before these functions see it: no folded or
nameless headers, no bare CR or LF, no space before a colon, one Content-Length
of digits, never beside Transfer-Encoding. What it lets pass is refused here.
"""

from __future__ import annotations

from dolmen.http.messages import Headers
from dolmen.http.origins import SitePolicy, is_host
from dolmen.http.problems import HTTPError


class Framing:
    """The headers of one message and what follows from them.

    `length` is the body's announced size, None when there is no Content-Length. `plain` when the
    answer needs no header lines about the connection.
    """

    __slots__ = (
        "chunked", "expects", "foreign", "headers", "http11", "keep_alive", "length", "plain",
    )  # fmt: skip

    def __init__(self, lines: bytes, *, http11: bool) -> None:
        self.http11 = http11
        self.headers = headers = Headers(lines)
        length, coding = headers.get(b"content-length"), headers.get(b"transfer-encoding")
        self.length = None if length is None else int(length)
        self.chunked = self.expects = False
        self.keep_alive = http11
        if coding is not None:
            self.chunked = True
            if coding.lower() != b"chunked":
                raise HTTPError(501, "The only transfer coding spoken here is chunked.")
            if not http11:
                raise HTTPError(400, "Transfer-Encoding is not for HTTP/1.0.")
        if b"connection" in headers or b"proxy-connection" in headers:
            values = headers.get_all(b"connection")
            values += headers.get_all(b"proxy-connection")  # llhttp takes it for the same
            tokens = [token.strip() for token in b",".join(values).lower().split(b",")]
            self.keep_alive = b"close" not in tokens and (http11 or b"keep-alive" in tokens)
        self.plain = http11 and self.keep_alive
        self.foreign: str | None = None


def request_framing(
    lines: bytes, *, http11: bool, policy: SitePolicy | None, loopback: bool
) -> Framing:
    """Examine a request's header lines.

    Raises HTTPError: 400 for a missing, repeated or impossible Host, 417 for an unknown
    expectation, 421 for a Host that a loopback listener does not answer for, 501 for
    transfer codings other than chunked.
    """
    framing = Framing(lines, http11=http11)
    headers = framing.headers
    host = headers.get(b"host")
    if host is not None:
        if not is_host(host):  # nor are several, joined by commas
            raise HTTPError(400, "The Host header is not one host name with an optional port.")
        if policy is not None and loopback:
            wrong = policy.misdirected(host)
            if wrong is not None:
                raise HTTPError(421, wrong)
    elif http11:
        raise HTTPError(400, "An HTTP/1.1 request needs a Host header.")
    expectation = headers.get(b"expect")
    if expectation is not None and http11:
        if expectation.lower() != b"100-continue":
            raise HTTPError(417, "The only expectation met here is 100-continue.")
        framing.expects = framing.chunked or bool(framing.length)
    if policy is not None:
        framing.foreign = policy.foreign(headers)
    return framing


def split_request_line(line: bytes) -> tuple[bytes, bytes, bool]:
    """Method, target and whether it is HTTP/1.1 (else 1.0), of a line without its CRLF.

    Raises HTTPError 400 for anything but three words with single spaces, 505 for
    another version, 501 for CONNECT.
    """
    words = line.split(b" ")
    if len(words) != 3:
        raise HTTPError(400, "The request line is not method, target and version.")
    method, target, version = words
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        if not version.startswith(b"HTTP/") or method == b"PRI":
            raise HTTPError(400, "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
        raise HTTPError(505, "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
    if method == b"CONNECT":
        raise HTTPError(501, "This server is not a proxy.")
    return method, target, version == b"HTTP/1.1"


def resolve_target(method: bytes, target: bytes) -> tuple[bytes, bytes | None]:
    """The path with its query, and the authority of an absolute-form target (RFC 9112, 3.2).

    Raises HTTPError 400 for a target of no known form, or with a fragment.
    """
    if b"#" in target:
        raise HTTPError(400, "The request target has a fragment.")
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return target, None
    scheme, mark, rest = target.partition(b"://")
    if not mark or scheme.lower() not in (b"http", b"https"):
        raise HTTPError(400, "The request target is neither a path nor an http URL.")
    cut = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
    authority, path = rest[:cut], rest[cut:]
    if not is_host(authority):
        raise HTTPError(400, "The request target's authority is not a host with an optional port.")
    return path if path.startswith(b"/") else b"/" + path, authority


def replace_host(lines: bytes, authority: bytes) -> bytes:
    """Header lines whose Host is the authority of the target, which overrules it."""
    own = lines.split(b"\r\n")
    kept = [line for line in own if line and not line.lower().startswith(b"host:")]
    return b"\r\n".join([b"", *kept, b"Host: " + authority, b"", b""])

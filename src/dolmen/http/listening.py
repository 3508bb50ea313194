"""Sockets to listen on, and a clear word when there can be none."""

from __future__ import annotations

import errno
import socket

from dolmen.errors import BadSetting


def bind(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """Bind a TCP socket, not listening yet; port 0 lets the system choose one.

    A name that stands for several addresses is bound to the first, IPv4 before
    IPv6. Raises BadSetting when the address is in use, unknown, or not allowed.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise BadSetting(f"can't listen on {host}: {error.strerror}") from None
    family, kind, proto, _, address = min(found, key=lambda info: info[0])
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind(address)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise BadSetting(
                f"port {port} on {host} is in use by another program; "
                "stop it or choose another with --listen"
            ) from None
        raise BadSetting(f"can't listen on port {port} of {host}: {error.strerror}") from None
    except BaseException:
        sock.close()
        raise
    return sock

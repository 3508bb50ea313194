"""HTTP/1.1 on uvloop and llhttp, server and client; it knows nothing of blobs."""

from __future__ import annotations

from dolmen.http.body import NO_BODY, Body
from dolmen.http.calls import ClientResponse
from dolmen.http.client import Client
from dolmen.http.conditional import not_modified, range_applies
from dolmen.http.encoding import EncodedHeaders
from dolmen.http.exchange import Handler, Observer
from dolmen.http.limits import Limits
from dolmen.http.listening import bind
from dolmen.http.messages import Headers, Request, Response, Stream, Streamed
from dolmen.http.origins import SitePolicy
from dolmen.http.pool import Timeouts
from dolmen.http.problems import BodyTooLarge, HTTPError, problem
from dolmen.http.ranges import byte_range, content_range
from dolmen.http.server import Server, start_server
from dolmen.http.workers import run_workers

__all__ = [
    "NO_BODY",
    "Body",
    "BodyTooLarge",
    "Client",
    "ClientResponse",
    "EncodedHeaders",
    "HTTPError",
    "Handler",
    "Headers",
    "Limits",
    "Observer",
    "Request",
    "Response",
    "Server",
    "SitePolicy",
    "Stream",
    "Streamed",
    "Timeouts",
    "bind",
    "byte_range",
    "content_range",
    "not_modified",
    "problem",
    "range_applies",
    "run_workers",
    "start_server",
]

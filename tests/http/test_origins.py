"""Web pages elsewhere can't reach the server through their visitor's browser."""

from __future__ import annotations

import pytest

from dolmen.http import SitePolicy

POLICY = SitePolicy(frozenset({"dolmen.lan"}))


async def ask(kit, method: bytes, *lines: bytes, host=b"localhost:3001", policy=POLICY) -> int:
    transport = kit.make_connection(kit.echo, policy=policy, loopback=True)
    head = b"\r\n".join([b"%b / HTTP/1.1" % method, b"Host: " + host, *lines, b"", b""])
    transport.feed(head)
    await kit.settle()
    [answer] = kit.parse_answers(transport.written, head=method == b"HEAD")
    return answer.status


FOREIGN = [
    [b"Origin: http://evil.example"],
    [b"Origin: null"],
    [b"Origin: http://localhost:8080"],
    [b"Sec-Fetch-Site: cross-site"],
]
OWN = [
    [],
    [b"Origin: http://localhost:3001"],
    [b"Origin: https://dolmen.lan"],
    [b"Origin: https://Dolmen.LAN:8443"],
    [b"Origin: https://dolmen.lan", b"Sec-Fetch-Site: cross-site"],
    [b"Sec-Fetch-Site: same-origin"],
    [b"Sec-Fetch-Site: none"],
]


@pytest.mark.parametrize(
    "method", [b"POST", b"PUT", b"DELETE", b"PATCH", b"GET", b"HEAD", b"OPTIONS"]
)
@pytest.mark.parametrize("lines", FOREIGN + OWN)
async def test_only_own_and_listed_pages_and_programs_change_anything(kit, method, lines) -> None:
    reads = method in (b"GET", b"HEAD", b"OPTIONS")
    assert await ask(kit, method, *lines) == (200 if reads or lines in OWN else 403)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"localhost", 200),
        (b"LOCALHOST:3001", 200),
        (b"a.localhost:3001", 200),
        (b"127.0.0.1:3001", 200),
        (b"127.1.2.3", 200),
        (b"[::1]:3001", 200),
        (b"dolmen.lan:3001", 200),
        (b"evil.example:3001", 421),
        (b"localhost.evil.example", 421),
        (b"127.0.0.1.evil.example", 421),
        (b"10.0.0.1", 421),
        (b"[::2]", 421),
    ],
)
async def test_a_loopback_listener_answers_for_loopback_hosts_only(kit, host, status) -> None:
    assert await ask(kit, b"GET", host=host) == status


async def test_other_listeners_and_no_policy_answer_for_any_host(kit) -> None:
    assert await ask(kit, b"GET", host=b"evil.example", policy=None) == 200
    transport = kit.make_connection(kit.echo, policy=POLICY, loopback=False)
    transport.feed(b"GET / HTTP/1.1\r\nHost: blobs.example\r\n\r\n")
    await kit.settle()
    assert kit.parse_answers(transport.written)[0].status == 200


async def test_an_absolute_target_is_the_host_that_counts(kit) -> None:
    transport = kit.make_connection(kit.echo, policy=POLICY, loopback=True)
    transport.feed(b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await kit.settle()
    assert kit.parse_answers(transport.written)[0].status == 421

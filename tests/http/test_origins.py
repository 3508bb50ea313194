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


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"PATCH"])
async def test_foreign_pages_may_not_change_anything(kit, method) -> None:
    assert await ask(kit, method, b"Origin: http://evil.example") == 403
    assert await ask(kit, method, b"Origin: null") == 403
    assert await ask(kit, method, b"Origin: http://localhost:8080") == 403
    assert await ask(kit, method, b"Sec-Fetch-Site: cross-site") == 403


async def test_own_and_listed_pages_and_programs_may(kit) -> None:
    assert await ask(kit, b"POST") == 200
    assert await ask(kit, b"POST", b"Origin: http://localhost:3001") == 200
    assert await ask(kit, b"POST", b"Origin: https://dolmen.lan") == 200
    assert await ask(kit, b"POST", b"Origin: https://Dolmen.LAN:8443") == 200
    listed = (b"Origin: https://dolmen.lan", b"Sec-Fetch-Site: cross-site")
    assert await ask(kit, b"POST", *listed) == 200
    assert await ask(kit, b"POST", b"Sec-Fetch-Site: same-origin") == 200
    assert await ask(kit, b"POST", b"Sec-Fetch-Site: none") == 200


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS"])
async def test_reading_changes_nothing(kit, method) -> None:
    assert await ask(kit, method, b"Origin: http://evil.example") == 200
    assert await ask(kit, method, b"Sec-Fetch-Site: cross-site") == 200


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

"""What the URL of a Redis store may say."""

import pytest
from dolmen.stores.redis.address import Address, at, parse

from dolmen.errors import BadSetting


@pytest.mark.parametrize(
    ("url", "address", "shown"),
    [
        (
            "redis://localhost",
            Address("redis", [("localhost", 6379)], "", "", 0, "dolmen"),
            "redis://localhost:6379",
        ),
        (
            "rediss://me:p%40ss%2F%23@[::1]:7000/12?prefix=a.b",
            Address("rediss", [("::1", 7000)], "me", "p@ss/#", 12, "a.b"),
            "rediss://[::1]:7000/12",
        ),
        (
            "redis+cluster://:secret@a:1,[fe80::2],c",
            Address(
                "redis+cluster",
                [("a", 1), ("fe80::2", 6379), ("c", 6379)],
                "",
                "secret",
                0,
                "dolmen",
            ),
            "redis+cluster://a:1,[fe80::2]:6379,c:6379",
        ),
        (
            "redis://me@10.0.0.1:1/",
            Address("redis", [("10.0.0.1", 1)], "me", "", 0, "dolmen"),
            "redis://10.0.0.1:1",
        ),
    ],
)
def test_a_url_is_read_and_shown_without_its_password(url, address, shown):
    assert parse(url) == address
    assert str(address) == shown


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis:", "no host and port"),
        ("redis://", "no host and port"),
        ("redis://:hunter2@", "no host and port"),
        ("redis://a:b", "no host and port"),
        ("redis://a:70000", "no host and port"),
        ("redis://[::1", "no host and port"),
        ("redis://:hun/ter2@a:1", "no host and port"),
        ("redis://:hun#ter2@a:1", "no host and port"),
        ("redis://u:hun?ter2@a:1", "no host and port"),
        ("redis://a,b", "several servers are a cluster"),
        ("redis://a/b", "a database is a number"),
        ("redis://a/99999", "a database is a number"),
        ("redis://a/1/2", "a database is a number"),
        ("redis+cluster://a,", "no host and port"),
        ("redis+cluster://a/3", "a cluster has no databases"),
        ("redis://a?prefix=", "a prefix is"),
        ("redis://a?prefix={x}", "a prefix is"),
        ("redis://a?timeout=3", "prefix= is all"),
        ("redis://a#x", "prefix= is all"),
    ],
)
def test_a_url_that_is_none_is_explained_without_repeating_a_password(url, why):
    with pytest.raises(BadSetting, match=why) as caught:
        parse(url)
    told = f"{caught.value} {caught.value.__cause__}"
    assert "hun" not in told
    assert "ter2" not in told
    assert "\n" not in told


def test_a_place_is_written_as_it_is_in_a_url():
    assert at(("::1", 5)) == "[::1]:5"
    assert at(("a", 5)) == "a:5"

"""What is told of a URL has no secret in it."""

import pytest

from dolmen.stores.secrets import without_secrets


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis://:pw@h:6379/1", "redis://:***@h:6379/1"),
        ("redis://u:p@w@h/1", "redis://u:***@h/1"),
        ("postgresql://u:p%40w:x@h/db", "postgresql://u:***@h/db"),
        (
            "postgresql:///db?host=/tmp&password=x&a=b",
            "postgresql:///db?host=/tmp&password=***&a=b",
        ),
        ("redis+cluster://:x@a:1,b:2", "redis+cluster://:***@a:1,b:2"),
        (
            "s3://bucket/p?secret_access_key=abc&region=x",
            "s3://bucket/p?secret_access_key=***&region=x",
        ),
        ("cache:?fast=memory:&slow=redis://u:pw@h/1", "cache:?fast=memory:&slow=redis://u:***@h/1"),
        (
            "cache:?slow=redis%3A%2F%2Fu%3Apw%40h&fast=memory:",
            "cache:?slow=redis%3A%2F%2Fu%3A***%40h&fast=memory:",
        ),
        ("'redis://u:pw@h' and 'redis://v:pw@h'", "'redis://u:***@h' and 'redis://v:***@h'"),
    ],
)
def test_passwords_and_secret_parameters_are_left_out(url, told):
    assert without_secrets(url) == told


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:3001",
        "http://[::1]:3001",
        "volume:/a@b:c",
        "memcached://a:1,b:2/x",
        "rediss://u@h:1/?prefix=a@b",
        "redis://[[user]:password@]host",
    ],
)
def test_what_has_no_secret_stays_as_it_is(url):
    assert without_secrets(url) == url

"""The forms an sos.conf has."""

from __future__ import annotations

import pytest

from dolmen.config.load import read_sos_groups as read_groups
from dolmen.errors import BadSetting


def urls(text: str) -> dict[object, list[str]]:
    return {
        group["name"]: [server["url"] for server in group["servers"]]  # type: ignore[attr-defined]
        for group in read_groups(text, "sos.conf")
    }


def test_plain_lines_are_one_group() -> None:
    text = "# servers\nhttp://10.0.0.1:3001\n\nhttp://10.0.0.2:3001/  # second\n"
    assert urls(text) == {"all": ["http://10.0.0.1:3001", "http://10.0.0.2:3001"]}


def test_sections_are_groups_with_dashes_or_bare_lines() -> None:
    text = "[one]\n- : http://a:1\n- : http://b:1\n; a comment\n[two]\nhttp://c:1\n"
    assert urls(text) == {"one": ["http://a:1", "http://b:1"], "two": ["http://c:1"]}


def test_empty_sections_hold_no_group() -> None:
    assert urls("[one]\n\n") == {}


def test_a_line_that_is_neither_is_told_by_its_number() -> None:
    with pytest.raises(BadSetting, match=r"sos\.conf: line 2 is 'ftp://x', but should be"):
        read_groups("http://a:1\nftp://x\n", "sos.conf")

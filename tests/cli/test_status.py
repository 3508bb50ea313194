"""A cluster is read at a glance."""

from __future__ import annotations

import re

import pytest

from dolmen.cli.status import ago, cluster_lines

GOOD = {
    "server": "cellar",
    "weight": 1.0,
    "reachable": True,
    "writable": True,
    "free": 1 << 40,
    "total": 4 << 40,
    "reasons": [],
    "remarks": [],
    "blobs": 1_234_567,
    "bytes": 5 << 30,
    "missing": 0,
    "misplaced": 3,
    "compared_at": 990.0,
    "scrubbed_at": None,
}
HEAD = "server state free blobs data missing misplaced compared scrubbed"
REPAIR = {
    "rounds": 3,
    "copied": 12,
    "bytes": 2_048,
    "removed": 4,
    "complete": True,
    "ended": 880.0,
    "failing": {},
    "trouble": None,
    "copying": None,
}


def told(server, **more):
    group = {"group": "main", "copies": 2, "servers": [GOOD, GOOD | server]}
    return "\n".join(cluster_lines({"groups": [group], **more}, 1_000.0))


def test_a_row_a_server():
    lines = told({}).splitlines()
    assert lines[0] == "group main: 2 servers, 2 copies of all"
    assert lines[1].split() == HEAD.split()
    row = re.sub(r"\s{2,}", " | ", lines[2].strip())
    assert (
        row == "cellar | ok | 1.0 TiB of 4.0 TiB | 1,234,567 | 5.0 GiB | 0 | 3 | 10 s ago | never"
    )


@pytest.mark.parametrize(
    ("server", "state"),
    [
        ({"reachable": False, "detail": "no route"}, "UNREACHABLE"),
        ({"writable": False, "reasons": ["the disk failed"]}, "READ-ONLY"),
        ({"reasons": ["the index falls behind"]}, "DEGRADED"),
        ({"weight": 0.0}, "draining"),
    ],
)
def test_what_is_not_well_stands_out_with_its_reason(server, state):
    lines = told(server).splitlines()
    assert lines[3].split()[1] == state
    for line in [server.get("detail"), *server.get("reasons", [])]:
        assert line is None or f"  cellar: {line}" in lines


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, "fully replicated 2 min ago; 12 copied (2.0 KiB), 4 removed since it began"),
        ({"complete": False, "failing": {"attic": "gone"}}, "not fully replicated"),
        ({"failing": {"attic": "gone"}}, "since it began; attic: gone"),
        ({"trouble": "epoch 2"}, "failed: epoch 2"),
        ({"copying": "a to b: 3 of 9"}, "copying from a to b: 3 of 9; 12 copied"),
        ({"rounds": 0}, "has just begun"),
    ],
)
def test_how_repair_is(change, says):
    assert says in told({}, repair=REPAIR | change).splitlines()[-1]


def test_who_does_not_repair_says_so():
    assert "repair: disabled" in told({}).splitlines()[-1]
    assert told({}, repair=None).splitlines()[-1] == "repair: has just begun"


@pytest.mark.parametrize(
    ("when", "says"),
    [(None, "never"), (999, "1 s ago"), (900, "100 s ago"), (0, "17 min ago"), (2_000, "0 s ago")],
)
def test_how_long_ago(when, says):
    assert ago(when, 1_000) == says

"""What the workers counted, as whoever is asked sees it."""

from __future__ import annotations

import sys
import threading

import pytest

from dolmen.http import Headers, Request
from dolmen.http.body import NO_BODY
from dolmen.servers.metrics import Board, Figure, Tally


@pytest.fixture
def eager_threads():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def board():
    board = Board(2)
    yield board
    board._file.close()  # else open as long as the process


def rows(number: int):
    return {(f"/route-{n}", "GET", 200): [float(number)] * 17 for n in range(20)}


def test_sums_are_never_seen_half_written(board, eager_threads) -> None:
    board.take_part()
    board.write(rows(0))
    done = threading.Event()

    def write() -> None:
        number = 0
        while not done.is_set():
            number += 1
            board.write(rows(number))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3000):
            seen = board.sums()
            assert len(seen) == 20
            assert len({row[0] for row in seen.values()}) == 1
    finally:
        done.set()
        writer.join()


def test_a_worker_goes_on_from_the_sums_of_the_one_before_it(board) -> None:
    for _ in range(3):
        tally = Tally("blob", board)
        for status in (200, 200, 404):
            request = Request("GET", b"/x", Headers(), NO_BODY)
            request.state = "/blob/{name}"
            tally.observe(request, status, 10, 0.002)
        assert b'status="404"' in tally.text()
    line = (
        b'dolmen_http_requests_total{method="GET",route="/blob/{name}",server="blob",status="200"}'
    )
    [counted] = [each for each in tally.text().splitlines() if each.startswith(line)]
    assert counted.endswith(b" 6.0")


def test_what_the_workers_applications_keep_is_added_up(board) -> None:
    def figures(count: int):
        return lambda: [
            Figure("counter", "dolmen_made", "Made.", "outcome", "well", count),
            Figure("gauge", "dolmen_now", "Now.", "which", f"{count}", 1),
        ]

    first = Tally("api", board, figures(2))
    first.share()
    second = Tally("api", board, figures(3))
    board._mine = 1  # as another process, which has the second part
    second.share()
    text = second.text().decode()
    assert 'dolmen_made_total{outcome="well",server="api"} 5.0' in text
    for which in (2, 3):
        assert f'dolmen_now{{server="api",which="{which}"}} 1.0' in text

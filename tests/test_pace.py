"""Work is spread over time as the rate says, whatever its pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dolmen.pace import Pace


def test_without_a_rate_nobody_waits():
    assert Pace().delay(1 << 40) == 0


@given(st.lists(st.tuples(st.integers(0, 10**7), st.floats(0, 5)), max_size=50))
def test_never_more_than_the_rate_and_a_tenth_of_a_second(pieces):
    rate, time = 10**6, 0.0
    pace = Pace(rate, now=lambda: time)
    done = 0
    for size, idle in pieces:
        time += idle
        done += size
        time += pace.delay(size)
        assert done <= rate * (time + 0.1) + 1e-3


def test_work_that_is_always_ready_gets_the_whole_rate():
    time = 0.0
    pace = Pace(1_000_000, now=lambda: time)
    for _ in range(1_000):
        time += pace.delay(10_000)
    assert 9.8 <= time <= 10.0

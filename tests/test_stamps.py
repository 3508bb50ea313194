import pytest
from hypothesis import given
from hypothesis import strategies as st

from dolmen.errors import InvalidName, Unavailable
from dolmen.stamps import (
    HORIZON_MS,
    MAX_STAMP,
    Clock,
    format_stamp,
    milliseconds,
    parse_stamp,
    wall_ms,
)

NOW = 1_700_000_000_000
stamps = st.integers(0, MAX_STAMP)


class Wall:
    def __init__(self, ms=NOW):
        self.ms = ms

    def __call__(self):
        return self.ms


@given(stamps)
def test_a_stamp_is_written_and_read_again(stamp):
    text = format_stamp(stamp)
    assert len(text) == 16
    assert parse_stamp(text) == stamp


@given(stamps, stamps)
def test_written_stamps_sort_as_stamps_do(one, other):
    assert (format_stamp(one) < format_stamp(other)) is (one < other)


@given(st.text(max_size=20) | st.text("0123456789abcdefABCDEFx_+- ", min_size=16, max_size=16))
def test_only_16_lower_case_hex_digits_are_a_stamp(text):
    if len(text) == 16 and set(text) <= set("0123456789abcdef"):
        assert format_stamp(parse_stamp(text)) == text
    else:
        with pytest.raises(InvalidName):
            parse_stamp(text)


@given(
    st.lists(
        st.tuples(
            st.integers(-5000, 5000),
            st.none() | st.integers(NOW - 10_000, NOW + HORIZON_MS // 2),
            st.none() | st.integers(NOW - 10_000, NOW + 2 * HORIZON_MS),
        )
    )
)
def test_stamps_rise_whatever_the_wall_clock_does(events):
    wall = Wall()
    clock = Clock(wall)
    given_ = [0]
    for step, above, seen in events:
        wall.ms = max(NOW - 10_000, wall.ms + step)
        if seen is not None:
            clock.observe(seen << 16)
        floor = (above or 0) << 16
        try:
            stamp = clock.next(floor)
        except Unavailable:
            assert max(clock.last, floor) >> 16 >= wall.ms + HORIZON_MS
            continue
        assert stamp > given_[-1]
        assert stamp > floor
        assert milliseconds(stamp) <= wall.ms + HORIZON_MS
        if seen is not None and seen <= wall.ms + HORIZON_MS:
            assert stamp > seen << 16
        given_.append(stamp)


def test_a_stamp_holds_the_wall_time_as_long_as_it_moves():
    wall = Wall()
    clock = Clock(wall)
    assert clock.next() == NOW << 16
    wall.ms += 1
    assert clock.next() == (NOW + 1) << 16
    assert milliseconds(clock.last) == NOW + 1


def test_more_stamps_than_a_millisecond_holds_go_on_into_the_next():
    clock = Clock(Wall())
    stamps = [clock.next() for _ in range(70_000)]
    assert stamps == list(range(NOW << 16, (NOW << 16) + 70_000))


def test_no_stamp_is_more_than_an_hour_ahead():
    clock = Clock(Wall())
    edge = (NOW + HORIZON_MS) << 16
    with pytest.raises(Unavailable, match=r"hours ahead.*NTP"):
        clock.next(edge + 0xFFFF)
    with pytest.raises(Unavailable):
        clock.next(MAX_STAMP)
    # A refusal changes nothing.
    assert clock.next() == NOW << 16
    assert clock.next(edge) == edge + 1


def test_a_clock_that_has_gone_back_is_said_to_be_this_machines():
    wall = Wall()
    clock = Clock(wall)
    clock.next()
    wall.ms -= HORIZON_MS + 2
    with pytest.raises(Unavailable, match=r"this machine's clock has gone back by 1\.0 hours"):
        clock.next()


def test_what_is_seen_far_ahead_does_not_move_the_clock():
    clock = Clock(Wall())
    clock.observe((NOW + HORIZON_MS + 1) << 16)
    assert clock.last == 0
    clock.observe((NOW + HORIZON_MS) << 16)
    assert clock.next() == ((NOW + HORIZON_MS) << 16) + 1
    clock.observe(5)
    assert clock.last == ((NOW + HORIZON_MS) << 16) + 1


def test_the_wall_clock_counts_milliseconds_since_1970():
    assert 1_700_000_000_000 < wall_ms() < 1 << 48

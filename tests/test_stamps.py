import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dolmen.errors import InvalidName, Unavailable
from dolmen.stamps import (
    AHEAD_MS,
    MAX_STAMP,
    Clock,
    format_stamp,
    milliseconds,
    parse_stamp,
    wall_ms,
)

NOW = 1_700_000_000_000
EDGE = ((NOW + AHEAD_MS) << 16) - 1
"""The highest stamp that a clock at `NOW` follows."""
stamps = st.integers(0, MAX_STAMP)


class Wall:
    def __init__(self, ms=NOW):
        self.ms = ms

    def __call__(self):
        return self.ms


@given(stamps, stamps)
@example(0, MAX_STAMP)
def test_a_stamp_is_written_as_text_that_reads_and_sorts_as_it_does(one, other):
    texts = format_stamp(one), format_stamp(other)
    assert [len(text) for text in texts] == [16, 16]
    assert [parse_stamp(text) for text in texts] == [one, other]
    assert (texts[0] < texts[1]) is (one < other)


@given(st.text(max_size=20) | st.text("0123456789abcdefABCDEFx_+- ", min_size=16, max_size=16))
@example("f" * 16)
@example("fffffffffffffffe")
def test_only_16_lower_case_hex_digits_up_to_the_highest_are_a_stamp(text):
    if len(text) == 16 and set(text) <= set("0123456789abcdef") and int(text, 16) <= MAX_STAMP:
        assert format_stamp(parse_stamp(text)) == text
    else:
        with pytest.raises(InvalidName):
            parse_stamp(text)


moments = st.integers(NOW - 10_000, NOW + 3 * AHEAD_MS)


@given(
    st.lists(
        st.tuples(
            st.integers(-5000, 5000) | st.sampled_from([-2 * AHEAD_MS, 3 * AHEAD_MS]),
            st.none() | moments,
            st.none() | moments,
        )
    )
)
def test_stamps_rise_above_all_that_was_seen_and_only_one_name_follows_a_wrong_clock(events):
    wall = Wall()
    clock = Clock(wall)
    last = 0
    for step, above, seen in events:
        wall.ms = max(NOW - 10_000, wall.ms + step)
        ahead = wall.ms + AHEAD_MS
        if seen is not None:
            clock.observe(seen << 16)
            if seen < ahead:
                last = max(last, seen << 16)
        floor = (above or 0) << 16
        stamp = clock.next(floor)
        assert stamp > floor
        assert stamp >= wall.ms << 16
        if milliseconds(last) <= ahead:  # the wall clock was not set back by more
            assert stamp > last
        if milliseconds(stamp) > ahead:
            assert stamp == floor + 1, "above the current one, and no further"
            assert milliseconds(clock.last) <= ahead, "other names do not follow"
        else:
            last = stamp


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


def test_a_clock_follows_stamps_of_an_hour_ahead_and_no_others():
    for follow in (Clock.observe, Clock.next):
        clock = Clock(Wall())
        follow(clock, EDGE + 1)
        assert clock.next() <= (NOW << 16) + 1
        follow(clock, EDGE - 1)
        follow(clock, 5)
        given_ = [clock.next() for _ in range(3)]
        assert given_ == sorted(given_)
        assert given_[0] > EDGE - 1


def test_a_clock_set_back_by_more_than_an_hour_gives_stamps_of_now():
    wall = Wall()
    clock = Clock(wall)
    before = clock.next()
    wall.ms -= AHEAD_MS + 1
    after = [clock.next() for _ in range(3)]
    assert [milliseconds(stamp) for stamp in after] == [wall.ms] * 3
    assert sorted(set(after)) == after
    assert clock.next(above=before) == before + 1


@pytest.mark.parametrize("ms", [NOW, 1 << 48, 1 << 60])
def test_no_stamp_is_given_above_the_highest(ms):
    wall = Wall(ms)
    clock = Clock(wall)
    with pytest.raises(Unavailable, match="no stamp above"):
        clock.next(MAX_STAMP)
    if ms > NOW:
        with pytest.raises(Unavailable, match="this machine's clock"):
            clock.next()
    wall.ms = NOW
    assert clock.next(MAX_STAMP - 1) == MAX_STAMP
    assert clock.next() == (NOW << 16) + 1, "a refusal changes nothing"


def test_the_wall_clock_counts_milliseconds_since_1970():
    assert 1_700_000_000_000 < wall_ms() < 1 << 48

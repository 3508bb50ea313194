"""Whatever state the members are in, a cluster's answers are what its contract says.

Members are drawn in any mix of states, the breaker in any state, and what get, stat, put and
delete answer is compared with what follows from the contract for just that mix.
"""

import asyncio
import enum
import hashlib
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.conftest import made as clusters
from dolmen.cluster.breaker import FAILURES, REST, Trouble
from dolmen.errors import Corrupt, Full, NoCopies, NotFound, Unavailable
from dolmen.names import partition_of
from dolmen.payload import Bytes, read_whole
from dolmen.record import Kind
from dolmen.store import Write
from dolmen.testing import calls
from dolmen.testing.faulty import Fault

DATA = b"what was put"
NAME = hashlib.sha256(DATA).hexdigest()


class State(enum.Enum):
    GOOD = enum.auto()
    ABSENT = enum.auto()
    DELETED = enum.auto()
    QUARANTINED = enum.auto()
    WRONG = enum.auto()
    DOWN = enum.auto()


@dataclass
class Drawn:
    """One member: what it holds with which stamp, how it is, and what the breaker thinks of it."""

    state: State
    stamp: int
    full: bool
    slow: int
    failures: int
    rested: bool
    behind: bool
    stale: bool

    @property
    def resting(self):
        return self.failures >= FAILURES and not self.rested


MEMBERS = st.lists(
    st.builds(
        Drawn,
        st.sampled_from(State),
        st.integers(1, 9),
        st.booleans(),
        st.integers(0, 3),
        st.sampled_from((0, 1, FAILURES)),
        st.booleans(),
        st.booleans(),
        st.sampled_from([False, False, False, True]),
    ),
    min_size=1,
    max_size=4,
)


async def made(drawn, write_copies, min_copies):
    """A cluster whose members, in the order in which the name is placed, are as drawn."""
    write_copies = min(write_copies, len(drawn))
    _, cluster = clusters(
        len(drawn),
        now=lambda: 1000.0,
        write_copies=write_copies,
        min_copies=min(min_copies, write_copies),
    )
    order = cluster.placement.of(partition_of(NAME)).order
    for member, how in zip(order, drawn, strict=True):
        store = member.store
        if how.state is State.DELETED:
            await calls.delete(store, NAME, stamp=how.stamp)
        elif how.state is State.WRONG:
            await calls.put(store.store, NAME, Bytes(b"what was not"), stamp=how.stamp)
        elif how.state is not State.ABSENT:
            await calls.put(store.store, NAME, Bytes(DATA), stamp=how.stamp)
        if how.state is State.QUARANTINED:
            store.script("get", *[Fault.CORRUPT] * 9)
            store.script("stat", *[Fault.CORRUPT] * 9)
        if how.full:
            store.script("put", *[Full("no room")] * 9)
        store.down = how.state is State.DOWN
        store.pause = slowly(how.slow)
        if how.failures or how.behind:
            rests_until = 1000.0 + (0 if how.rested else REST)
            cluster.breaker.troubles[member.name] = Trouble(
                how.failures, rests_until, hangs=True, behind=0 if how.behind else None
            )
        member.stale = "it missed a purge" if how.stale else None
        store.calls.clear()
    return cluster, order


def slowly(steps):
    async def pause(_method, _name):
        for _ in range(steps):
            await asyncio.sleep(0)

    return pause


def answer(drawn, *, stat):
    """What a read must say: a stamp, "no" with the tombstone's stamp, or "unknown"."""
    deleted, failed = 0, False
    drawn = sorted(drawn, key=lambda how: how.behind)
    awake = [how for how in drawn if not how.resting]
    resting = [how for how in drawn if how.resting]
    for how in [*awake, None, *resting]:
        if how is None:
            if awake and resting and not failed:
                return "unknown", 0
        elif how.stale:
            failed = True
        elif how.state is State.DELETED:
            deleted = max(deleted, how.stamp)
        elif how.state in (State.DOWN, State.QUARANTINED):
            failed = True
        elif how.state is State.WRONG and not stat:
            failed = failed or how.stamp > deleted
        elif how.state is not State.ABSENT and how.stamp > deleted:
            return "there", how.stamp
    return ("unknown", 0) if failed else ("no", deleted)


async def asked(asking):
    try:
        return await asking
    except NotFound as absent:
        return "no", absent.stamp
    except Unavailable:
        return "unknown", 0


@settings(max_examples=300)
@given(MEMBERS, st.sampled_from([None, (0, 4), (3, 100)]))
def test_reads(drawn, byte_range):
    async def get():
        cluster, _ = await made(drawn, 1, 1)

        async def read():
            blob = await cluster.get(NAME, byte_range=byte_range)
            data = bytes(await read_whole(blob.payload))
            assert data == (DATA if byte_range is None else DATA[slice(*byte_range)])
            return "there", blob.info.stamp

        async def stat():
            return "there", (await cluster.stat(NAME)).stamp

        got = await asked(read())
        assert got == answer(drawn, stat=False)
        if got[0] == "no":  # never said of what could not be asked
            assert not {how.state for how in drawn} & {State.DOWN, State.QUARANTINED}
            assert len({how.resting for how in drawn}) == 1
            assert not any(how.stale for how in drawn)
        again, _ = await made(drawn, 1, 1)
        cluster = again
        assert await asked(stat()) == answer(drawn, stat=True)

    asyncio.run(get())


@settings(max_examples=300)
@given(MEMBERS, st.integers(1, 3), st.integers(1, 3))
def test_puts(drawn, write_copies, min_copies):
    async def put():
        cluster, order = await made(drawn, write_copies, min_copies)
        group = cluster.groups[0]
        taking = [how for how in drawn if not (how.full or how.stale or how.state is State.DOWN)]
        awake = [how for how in taking if not how.resting]
        if len(taking) < group.min_copies:
            with pytest.raises(NoCopies) as raised:
                await cluster.writer.put(Write(NAME, Bytes(DATA)))
            assert len(raised.value.failures) == len(drawn) - len(taking)
            return
        written = await cluster.writer.put(Write(NAME, Bytes(DATA)))
        # As many as are wanted where so many are to be had without asking who rests.
        least = min(group.write_copies, max(len(awake), group.min_copies))
        assert written.copies == least
        copies = 0
        for member in order:
            try:
                info = await member.store.store.stat(NAME)
            except (NotFound, Corrupt):
                continue
            copies += info.stamp == written.stamp and member.stale is None
        assert copies == written.copies

    asyncio.run(put())


@settings(max_examples=300)
@given(MEMBERS, st.integers(1, 3))
def test_deletes(drawn, min_copies):
    async def delete():
        cluster, order = await made(drawn, 3, min_copies)
        reached = [how for how in drawn if how.state is not State.DOWN and not how.stale]
        if len(reached) < cluster.groups[0].min_copies:
            with pytest.raises(Unavailable):
                await calls.delete(cluster, NAME)
            return
        await calls.delete(cluster, NAME)
        for member, how in zip(order, drawn, strict=True):
            if how in reached:
                info = await calls.current(member.store.store, NAME)
                assert info.kind == Kind.TOMBSTONE

    asyncio.run(delete())

"""What hypothesis makes up: names, contents, stamps, writes; and how often.

The same every time. With `DOLMEN_TEST_LONG=1` there is more of it.
"""

from __future__ import annotations

import os
from itertools import pairwise

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from dolmen.names import partition_of
from dolmen.record import Kind
from dolmen.testing.conformance.material import META, OTHER_META, at, crowd, noise
from dolmen.testing.conformance.rivals import Rival

LONG = os.environ.get("DOLMEN_TEST_LONG") == "1"
NEIGHBOURS = next(
    pair for pair in pairwise(crowd()) if partition_of(pair[0]) == partition_of(pair[1])
)
NAMES = [*NEIGHBOURS, "name", "other"]


class Content(bytes):
    """Bytes that don't fill the report of a failure."""

    def __repr__(self) -> str:
        return bytes.__repr__(self) if len(self) < 20 else f"<{len(self)} bytes>"


CONTENTS = [Content(data) for data in (b"", b"one", b"two", noise(70_000))]
names_ = st.sampled_from(NAMES)
contents = st.sampled_from(CONTENTS)
metas = st.sampled_from([b"", META, OTHER_META])
kinds = st.sampled_from([Kind.BLOB, Kind.MANIFEST])
steps = st.integers(-1, 1) | st.integers(2, 8).map(at)
"""A stamp: so far from the one that stands, or a fixed one."""
writes = st.builds(Rival, st.integers(0, 6).map(at), kinds, contents, metas) | st.builds(
    Rival, st.integers(0, 6).map(at), st.just(Kind.TOMBSTONE), st.just(b""), st.just(b"")
)


def examples(count: int) -> settings:
    """So many examples, 80 times as many in a long run; always the same ones."""
    return settings(
        max_examples=count * 80 if LONG else count,
        stateful_step_count=60 if LONG else 30,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )

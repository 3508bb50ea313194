import gc
import os
from collections.abc import Callable

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("dolmen.testing")

# The same examples every time; where a test does not say how many, a long run has far more.
settings.register_profile(
    "dolmen",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=2_000 if os.environ.get("DOLMEN_TEST_LONG") == "1" else 100,
)
settings.load_profile("dolmen")


@pytest.fixture
def descriptors() -> Callable[[], int]:
    """How many files this process has open."""
    gc.collect()  # what tests before this one left
    return lambda: len(os.listdir("/proc/self/fd"))

import os
from collections.abc import Callable

import pytest

pytest.register_assert_rewrite("dolmen.testing")


@pytest.fixture
def descriptors() -> Callable[[], int]:
    """How many files this process has open."""
    return lambda: len(os.listdir("/proc/self/fd"))

"""No crash loses what was answered, or shows what was not: on a simulated disk.

The sabotages are one-line defects of the volume's own code; each must be found.
"""

import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
crashing = importlib.import_module("crashing")
SEEDS = 120


@pytest.mark.parametrize("part", range(4))
def test_after_any_crash_what_was_answered_is_there_and_nothing_is_half_there(part: int) -> None:
    with crashing.small_sizes():
        for seed in range(part * SEEDS // 4, (part + 1) * SEEDS // 4):
            trial = crashing.Trial(seed)
            try:
                trial.run()
            except BaseException as error:
                error.add_note(f"seed {seed}")
                raise

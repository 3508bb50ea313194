"""Native versions of functions that every small request runs through, where they could be built.

`native.c` needs a C compiler when dolmen is installed; without one its functions run in Python,
which is the reference: `accelerated` marks it, and puts the native function of the same name in
its place if there is one. Both give the same for the same arguments, which `tests/test_native.py`
holds over every pair in `REFERENCES`. `DOLMEN_PURE_PYTHON=1` does without.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])

REFERENCES: dict[str, Callable[..., object]] = {}
"""The Python function of each name that was marked."""


def _module() -> tuple[ModuleType | None, str]:
    if os.environ.get("DOLMEN_PURE_PYTHON", "0") not in ("", "0"):
        return None, "pure Python, as DOLMEN_PURE_PYTHON asks"
    try:
        return importlib.import_module("dolmen._native"), "native"
    except ImportError:
        return None, "pure Python: a C compiler was missing when it was installed"


MODULE, DESCRIPTION = _module()


def accelerated(reference: F) -> F:
    """The native function of this name, or this one where there is none."""
    REFERENCES[reference.__name__] = reference
    native: F = getattr(MODULE, reference.__name__, reference)
    return native

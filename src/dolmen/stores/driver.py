"""Drivers of engines: libraries that are installed only where their engine is used."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from dolmen.errors import BadSetting


def driver(module: str, extra: str) -> ModuleType:
    """The driver module of an engine, which the extra `dolmen[extra]` installs.

    Raises `BadSetting` with the line to type where it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise BadSetting(
            f"this store needs {error.name}, which is not installed: pip install 'dolmen[{extra}]'"
        ) from error

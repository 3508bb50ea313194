"""Settings: flags over the environment over a file over defaults.

Every value remembers where it came from, and one that can't be used is a
`BadSetting`: a line naming the place, the key, what was found and what is allowed.
"""

from __future__ import annotations

from dolmen.config.load import Loaded, load, split_list
from dolmen.config.settings import Group, Server, Settings, join_address, split_address

__all__ = [
    "Group",
    "Loaded",
    "Server",
    "Settings",
    "join_address",
    "load",
    "split_address",
    "split_list",
]

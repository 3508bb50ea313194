"""Groups as an `sos.conf` names them.

Plain lines `http://host:port` are one group; in sections (`[name]`) each is a
group, with lines `- : http://host:port` or bare ones. `#` and `;` begin comments.
"""

from __future__ import annotations

import re

from dolmen.config.settings import server_name
from dolmen.errors import BadSetting

_SECTION = re.compile(r"\[\s*([^\[\]]+?)\s*\]")
_SERVER = re.compile(r"(?:[\w.-]+\s*[:=]\s*)?(https?://[^\s/]+)/?")
_COMMENT = re.compile(r"(^|\s)[#;].*")


def read_groups(text: str, path: str) -> list[dict[str, object]]:
    """The groups in the form `Settings` takes them; raises `BadSetting` with the line."""
    found: dict[str, list[str]] = {}
    group = "all"
    for number, raw in enumerate(text.splitlines(), 1):
        line = _COMMENT.sub("", raw).strip()
        if section := _SECTION.fullmatch(line):
            group = re.sub(r"[^A-Za-z0-9._-]", "-", section[1])
        elif server := _SERVER.fullmatch(line):
            found.setdefault(group, []).append(server[1])
        elif line:
            raise BadSetting(
                f"{path}: line {number} is {line[:80]!r}, but should be http://HOST:PORT, "
                "[GROUP], or - : http://HOST:PORT"
            )
    return [
        {
            "name": name,
            "servers": [{"name": server_name(url), "url": url} for url in urls],
        }
        for name, urls in found.items()
    ]

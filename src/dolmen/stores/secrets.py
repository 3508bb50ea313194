"""Store URLs as they may be told: what is secret in them left out."""

from __future__ import annotations

import re

_PASSWORD = re.compile(r"(//[^\s/?@:\[]*:)[^\s/?]*@")  # [ begins the form in a message
_ENCODED = re.compile(r"(%2F%2F[^\s&]*?(?:%3A|:))[^\s&]*(%40|@)", re.IGNORECASE)
_PARAMETER = re.compile(r"([?&][^=&]*(?:secret|password|token|key)[^=&]*=)[^&\s]*", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """A URL, or a text that has some in it, with `***` for passwords and secret parameters."""
    text = _ENCODED.sub(r"\1***\2", _PASSWORD.sub(r"\1***@", text))
    return _PARAMETER.sub(r"\1***", text)

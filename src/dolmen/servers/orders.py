"""What a request orders in JSON, or in its query: read strictly, refused with a reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dolmen.http.messages import Request
from dolmen.http.problems import HTTPError
from dolmen.names import PARTITIONS
from dolmen.store import ALL_PARTITIONS

PAGE = 1000
"""Items in a page when nobody says how many."""
PAGE_MAX = 100_000
_LARGEST = 16 << 20
"""The largest order (names to read, touch, remove, partitions to list), in bytes."""


async def order_of(request: Request, keys: set[str]) -> dict[str, Any]:
    """The JSON object a request carries; raises `HTTPError` 400 for keys other than these."""
    body = await request.body.read(_LARGEST)
    try:
        order = json.loads(body or b"{}")
        if b"\\u" in body:
            json.dumps(order, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise HTTPError(400, f"The body is not JSON: {error}.") from error
    if not isinstance(order, dict) or not order.keys() <= keys:
        raise HTTPError(
            400, f"The body is a JSON object with the keys {', '.join(sorted(keys))} only."
        )
    return order


def items_of(order: dict[str, Any], key: str) -> Sequence[dict[str, Any]]:
    """The objects in a list under this key; raises `HTTPError` 400 for anything else."""
    items = order.get(key)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise HTTPError(400, f'The body is a JSON object with a list of objects under "{key}".')
    return items


def partitions_of(value: object) -> Sequence[int]:
    """The partitions to list, ascending; None stands for all. Raises `HTTPError` 400."""
    if value is None:
        return ALL_PARTITIONS
    if isinstance(value, list) and all(
        isinstance(item, int) and 0 <= item < PARTITIONS for item in value
    ):
        return sorted(set(value))
    raise HTTPError(400, f"partitions is a list of numbers from 0 to {PARTITIONS - 1}.")


def limit_of(value: object) -> int:
    """A page's length as it was asked for; raises `HTTPError` 400 for what is none."""
    try:
        limit = int(str(value))
    except ValueError:
        limit = 0
    if not 1 <= limit <= PAGE_MAX:
        raise HTTPError(400, f"limit is a number from 1 to {PAGE_MAX}, not {value!r}.")
    return limit

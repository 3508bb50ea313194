"""`dolmen config`: what the settings come to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dolmen.cli.options import Config, Json
from dolmen.cli.output import emit
from dolmen.stores.secrets import without_secrets


def show(config: Config = None, json: Json = False) -> None:
    """Print the settings in effect, and where each came from.

    [green]DOLMEN_WORKERS=2 dolmen config show[/green]
    """
    from dolmen.config import load

    loaded = load(config=config, needs_servers=True)
    values = _without_secrets(loaded.settings.model_dump())
    tables = {key: values.pop(key) for key in [*values] if isinstance(values[key], dict)}
    for table, inner in tables.items():
        values |= {f"{table}.{key}": value for key, value in inner.items()}
    for key, value in values.items():
        origin = loaded.origin(key)
        if json:
            emit({"key": key, "value": value, "origin": origin})
        elif key != "groups":
            print(f"{key:<26} {value!s:<24} ({origin})")
        else:
            for group in value:
                print(f"group {group['name']:<20} ({origin})", *_group_lines(group), sep="\n  ")


def _group_lines(group: dict[str, Any]) -> Iterator[str]:
    for count in ("copies", "write_copies", "min_copies"):
        if group[count] is not None:
            yield f"{count:<24} {group[count]}"
    for each in group["servers"]:
        zone = f"  zone {each['zone']}" if each["zone"] else ""
        yield f"{each['name']:<24} {each['url']}  weight {each['weight']:g}{zone}"


def _without_secrets(value: Any) -> Any:
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, list):
        return [_without_secrets(each) for each in value]
    if isinstance(value, dict):
        return {key: _without_secrets(each) for key, each in value.items()}
    return value

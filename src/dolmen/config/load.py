"""Loads the settings, and remembers where each came from."""

from __future__ import annotations

import difflib
import logging
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError

from dolmen.config.settings import (
    Compaction,
    Group,
    Limits,
    Replication,
    Scrub,
    Server,
    Settings,
    server_name,
)
from dolmen.errors import BadSetting
from dolmen.stores import SCHEMES
from dolmen.stores.secrets import without_secrets

PREFIX = "DOLMEN_"
FILES = ("~/.config/dolmen.toml", "/etc/dolmen.toml")
"""Where a file is looked for without `--config`; the first that is there counts alone."""
SOS_FILES = ("~/.sos.conf", "/etc/sos.conf")

Origin = str
"""A file's path, `environment DOLMEN_X`, `--flag`, or `default`."""
Layer = tuple[dict[str, Any], Origin]
"""Settings as a file has them, tables within, and where they came from."""

_SERVERS = ("blob_servers", "groups")
_APART = ("DOLMEN_CONFIG", "DOLMEN_SERVER", "DOLMEN_TEST_LONG")
"""Variables that are no settings: those of the command line, and of the project's tests."""
_PLATFORM = re.compile(
    r"DOLMEN_(.*_)?(SERVICE_(HOST|PORT.*)|PORT(_[0-9]+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)?)"
)
"""Variables that a container platform sets for a service named dolmen, or dolmen-something."""
_TABLES: dict[str, type[BaseModel]] = {
    "groups": Group,
    "servers": Server,
    "replication": Replication,
    "scrub": Scrub,
    "compaction": Compaction,
    "limits": Limits,
}
"""What is in the tables of a file, by their names."""
log = logging.getLogger("dolmen.config")


@dataclass(frozen=True, slots=True)
class Loaded:
    """The effective settings, and where each that isn't a default came from, by its key."""

    settings: Settings
    origins: Mapping[str, Origin]

    def origin(self, key: str) -> Origin:
        """Where the value of `key` came from (`limits.connections` for one in a table)."""
        return self.origins.get(key, "default")


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    config: str | None = None,
    needs_servers: bool = False,
    environ: Mapping[str, str] | None = None,
    files: Sequence[str] = FILES,
    sos_files: Sequence[str] = SOS_FILES,
) -> Loaded:
    """The settings in effect. Flags that are None were not given.

    `config` is the file given with `--config`; one that ends in `.conf` is an
    sos.conf. With `needs_servers` an sos.conf is looked for when nothing else names
    blob servers. Raises `BadSetting`.
    """
    environ = os.environ if environ is None else environ
    layers = [
        _from_file(config or environ.get("DOLMEN_CONFIG"), files),
        *_from_environment(environ),
        *(({key: value}, _flag(key)) for key, value in (flags or {}).items() if value is not None),
    ]
    if needs_servers and not any(found.get(key) for found, _ in layers for key in _SERVERS):
        layers.append(_from_sos(None, sos_files))
    return _validated(*_merge(layers))


def _flag(key: str) -> Origin:
    return "--blob-server" if key == "blob_servers" else "--" + key.replace("_", "-")


def _merge(layers: Iterable[Layer]) -> tuple[dict[str, Any], dict[str, Origin]]:
    """Later layers win, key by key. Whichever last names servers names all of them."""
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    for found, origin in layers:
        naming = [key for key in _SERVERS if found.get(key)]
        if len(naming) == 2:
            raise BadSetting(
                f"{origin}: sets both blob_servers and groups, but should set one of them"
            )
        for key in _SERVERS if naming else ():
            values.pop(key, None)
            origins.pop(key, None)
        for key, value in found.items():
            if isinstance(value, dict):
                table = values.get(key)
                values[key] = (table if isinstance(table, dict) else {}) | value
                origins |= {f"{key}.{inner}": origin for inner in value}
            else:
                values[key], origins[key] = value, origin
    return values, origins


def _from_file(config: str | None, files: Sequence[str]) -> Layer:
    if config and config.endswith(".conf"):
        return _from_sos(config, ())
    path, text = _read(config, files)
    try:
        return tomllib.loads(text), path
    except tomllib.TOMLDecodeError as error:
        raise BadSetting(f"{path}: invalid TOML: {error}") from error


def _read(given: str | None, usual: Sequence[str]) -> tuple[str, str]:
    """The path and the text of the file that was given, or of the first of the usual ones.

    One that was not asked for, and can't be read, is passed over.
    """
    for path in [given] if given else map(os.path.expanduser, usual):
        try:
            with open(path, encoding="utf-8") as file:
                return path, file.read()
        except FileNotFoundError:
            if given:
                raise BadSetting(f"{path}: there is no such file; see --config") from None
        except UnicodeDecodeError as error:
            raise BadSetting(f"{path}: should be UTF-8, but is not: {error}") from error
        except OSError as error:
            if given:
                raise BadSetting(f"{path}: can't be read: {error.strerror}") from error
            log.warning("%s is passed over: %s", path, error.strerror)
    return "", ""


_SECTION = re.compile(r"\[\s*([^\[\]]+?)\s*\]")
_SERVER = re.compile(r"(?:[\w.-]+\s*[:=]\s*)?(https?://[^\s/]+)/?")
_COMMENT = re.compile(r"(^|\s)[#;].*")


def _from_sos(given: str | None, usual: Sequence[str]) -> Layer:
    path, text = _read(given, usual)
    groups = read_sos_groups(text, path)
    if given and not groups:
        raise BadSetting(f"{path}: names no server")
    return {"groups": groups} if groups else {}, path


def read_sos_groups(text: str, path: str) -> list[dict[str, object]]:
    """The groups of an sos.conf in the form `Settings` takes; raises `BadSetting` with the line.

    Plain lines `http://host:port` are one group; in sections (`[name]`) each is a group, with
    lines `- : http://host:port` or bare ones. `#` and `;` begin comments.
    """
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
        {"name": name, "servers": [{"name": server_name(url), "url": url} for url in urls]}
        for name, urls in found.items()
    ]


def _from_environment(environ: Mapping[str, str]) -> Iterator[Layer]:
    """`DOLMEN_WORKERS=2`, `DOLMEN_LIMITS_CONNECTIONS=50`, lists separated by commas."""
    kinds = _kinds()
    keys = {PREFIX + key.replace(".", "_").upper(): key for key in kinds if key != "groups"}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable in _APART or _PLATFORM.fullmatch(variable):
            continue
        origin = f"environment {variable}"
        if variable not in keys:
            hint = _nearest(variable, keys)
            raise BadSetting(f"{origin}: unknown setting{hint}; see `dolmen config show`")
        value = _parsed(text, kinds[keys[variable]], origin)
        table, dot, key = keys[variable].partition(".")
        yield ({table: {key: value}} if dot else {table: value}), origin


def _kinds() -> dict[str, Any]:
    """The type of every key; those in tables as `table.key`."""
    kinds: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        if name in _TABLES and name != "groups":
            inner = _TABLES[name].model_fields
            kinds |= {f"{name}.{key}": each.annotation for key, each in inner.items()}
        else:
            kinds[name] = field.annotation
    return kinds


def _parsed(text: str, kind: Any, origin: Origin) -> Any:
    """The text of a variable as the type of its key; other bounds are checked with all else."""
    if get_origin(kind) is list:
        return split_list(text)
    try:
        return TypeAdapter(kind).validate_strings(text)
    except ValidationError as error:
        raise BadSetting(f"{origin}: is {_shown(text)}, but {_wish(error)}") from None


def split_list(text: str) -> list[str]:
    """The parts of a list with commas; one that continues a URL of several servers is no part."""
    parts: list[str] = []
    for part in filter(None, map(str.strip, text.split(","))):
        begins = "://" in part or part.partition(":")[0] in SCHEMES
        if parts and "://" in parts[-1] and not begins:
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    return parts


def _validated(values: dict[str, Any], origins: Mapping[str, Origin]) -> Loaded:
    try:
        return Loaded(Settings.model_validate(values), origins)
    except ValidationError as error:
        raise BadSetting(_explained(error, origins)) from None


def _explained(error: ValidationError, origins: Mapping[str, Origin]) -> str:
    """The first problem as one line: where, which key, what was found, what is allowed."""
    first = error.errors(include_url=False)[0]
    where = [str(part) for part in first["loc"]]
    path = ".".join(where)
    # A rule between several keys has no place.
    candidates = [path, *where[:1]] if where else _SERVERS
    origin = next((origins[key] for key in candidates if key in origins), "settings")
    if first["type"] == "extra_forbidden":
        tables = [_TABLES[part] for part in where[:-1] if part in _TABLES]
        known = (tables or [Settings])[-1].model_fields
        return f"{origin}: unknown setting {path}{_nearest(where[-1], known)}"
    if first["type"] == "missing":
        return f"{origin}: {path} is not set, but has no default"
    if not path:
        return f"{origin}: {_wish(error)}"
    return f"{origin}: {path} is {_shown(first['input'])}, but {_wish(error)}"


def _wish(error: ValidationError) -> str:
    message = error.errors(include_url=False)[0]["msg"]
    return message.removeprefix("Value error, ").replace("Input should", "should")


def _shown(value: object) -> str:
    shown = without_secrets(repr(value))
    return shown if len(shown) <= 80 else shown[:79] + "…"


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"

"""Loads the settings, and remembers where each came from."""

from __future__ import annotations

import difflib
import logging
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError

from dolmen.config.settings import Settings, is_loopback
from dolmen.config.sosconf import read_groups
from dolmen.errors import BadSetting
from dolmen.stores import SCHEMES
from dolmen.stores.secrets import without_secrets

PREFIX = "DOLMEN_"
FILES = ("~/.config/dolmen.toml", "/etc/dolmen.toml")
"""Where a file is looked for without `--config`; the first that is there counts alone."""
SOS_FILES = ("~/.sos.conf", "/etc/sos.conf")

Origin = str
"""A file's path, `environment DOLMEN_X`, `--flag`, or `default`."""
_SERVERS = ("blob_servers", "groups")
_APART = ("DOLMEN_CONFIG", "DOLMEN_SERVER", "DOLMEN_TEST_LONG")
"""Variables that are no settings: those of the command line, and of the project's tests."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The effective settings, and where each that isn't a default came from, by its key."""

    settings: Settings
    origins: Mapping[str, Origin]

    def origin(self, key: str) -> Origin:
        """Where the value of `key` came from (`limits.connections` for one in a table)."""
        return self.origins.get(key, "default")


_PLATFORM = re.compile(
    r"DOLMEN_(.*_)?(SERVICE_(HOST|PORT.*)|PORT(_[0-9]+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)?)"
)
"""Variables that a container platform sets for a service named dolmen, or dolmen-something."""
log = logging.getLogger("dolmen.config")


Layer = tuple[dict[str, Any], dict[str, Origin]]
"""Values by key (those of tables as `limits.x`), and the origin of each."""


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    config: str | None = None,
    needs_servers: bool = False,
    environ: Mapping[str, str] | None = None,
    files: tuple[str, ...] = FILES,
    sos_files: tuple[str, ...] = SOS_FILES,
) -> Loaded:
    """The settings in effect. Flags that are None were not given.

    `config` is the file given with `--config`; one that ends in `.conf` is an
    sos.conf. With `needs_servers` an sos.conf is looked for when nothing else names
    blob servers. Raises `BadSetting`.
    """
    environ = os.environ if environ is None else environ
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    origins = {key: "--" + _flag(key) for key in given}
    layers: list[Layer] = [_from_file(config or environ.get("DOLMEN_CONFIG"), files)]
    layers += [_from_environment(environ), (given, origins)]
    values, origins = _merge(layers)
    if needs_servers and not any(values.get(key) for key in _SERVERS):
        groups, path = _from_sos(sos_files)
        if groups:
            values["groups"], origins["groups"] = groups, path
    loaded = Loaded(_validated(values, origins), origins)
    _check_listening(loaded)
    return loaded


def _flag(key: str) -> str:
    return {"blob_servers": "blob-server"}.get(key, key.replace("_", "-"))


def _merge(layers: list[Layer]) -> Layer:
    """Later layers win. Whichever last names servers names all of them."""
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    for layer, named in layers:
        both = [key for key in _SERVERS if layer.get(key)]
        if len(both) == 2:
            raise BadSetting(
                f"{named['groups']}: sets both blob_servers and groups, but should set one of them"
            )
        if both:
            values = {key: value for key, value in values.items() if key not in _SERVERS}
        values |= layer
        origins |= named
    return values, {key: origin for key, origin in origins.items() if key in values}


def _from_file(config: str | None, files: tuple[str, ...]) -> Layer:
    if config and config.endswith(".conf"):
        groups, path = _from_sos((config,), given=True)
        if not groups:
            raise BadSetting(f"{config}: there is no such file, or it names no server")
        return {"groups": groups}, {"groups": path}
    candidates = (config,) if config else tuple(map(os.path.expanduser, files))
    for path in candidates:
        try:
            with open(path, "rb") as file:
                found = tomllib.load(file)
        except FileNotFoundError:
            if config:
                raise BadSetting(f"{path}: there is no such file; see --config") from None
            continue
        except OSError as error:
            if not config:
                log.warning("%s is passed over: %s", path, error.strerror)
                continue
            raise BadSetting(f"{path}: can't be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadSetting(f"{path}: invalid TOML: {error}") from error
        flat = _flat(found)
        return flat, dict.fromkeys(flat, path)
    return {}, {}


def _flat(found: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in found.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": each for inner, each in value.items()}
        else:
            flat[key] = value
    return flat


def _from_environment(environ: Mapping[str, str]) -> Layer:
    """`DOLMEN_WORKERS=2`, `DOLMEN_LIMITS_CONNECTIONS=50`, lists separated by commas."""
    keys = {_variable(key): key for key in _keys() if key != "groups"}
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable in _APART or _PLATFORM.fullmatch(variable):
            continue
        origin = f"environment {variable}"
        key = keys.get(variable)
        if key is None:
            hint = _nearest(variable, keys)
            raise BadSetting(f"{origin}: unknown setting{hint}; see `dolmen config show`")
        values[key], origins[key] = _parsed(key, text, origin), origin
    return values, origins


def _variable(key: str) -> str:
    return PREFIX + key.replace(".", "_").upper()


def _keys() -> dict[str, Any]:
    """Every key with its type; those in tables as `table.key`."""
    keys: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys |= {f"{name}.{at}": inner.annotation for at, inner in kind.model_fields.items()}
        else:
            keys[name] = kind
    return keys


def _parsed(key: str, text: str, origin: Origin) -> Any:
    """The text of a variable as the type of its key; bounds are checked with everything else."""
    kind = _keys()[key]
    if list in (getattr(kind, "__origin__", None), kind):
        return split_list(text)
    plain = next((each for each in (bool, int, float) if kind is each or each in _parts(kind)), str)
    if plain is str:
        return text
    try:
        return TypeAdapter(plain).validate_strings(text)
    except ValidationError as error:
        raise BadSetting(f"{origin}: is {text!r}, but {_wish(error)}") from None


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


def _parts(kind: Any) -> tuple[Any, ...]:
    return sum((_parts(part) for part in get_args(kind)), (kind,))


def _from_sos(
    files: tuple[str, ...], *, given: bool = False
) -> tuple[list[dict[str, object]], Origin]:
    for path in map(os.path.expanduser, files):
        try:
            with open(path, encoding="utf-8") as file:
                return read_groups(file.read(), path), path
        except FileNotFoundError:
            continue
        except PermissionError as error:
            if given:
                raise BadSetting(f"{path}: can't be read: {error.strerror}") from error
            log.warning("%s is passed over: %s", path, error.strerror)
        except (OSError, UnicodeDecodeError) as error:
            raise BadSetting(f"{path}: can't be read: {error}") from error
    return [], ""


def _validated(values: dict[str, Any], origins: Mapping[str, Origin]) -> Settings:
    nested: dict[str, Any] = {}
    for key, value in values.items():
        table, dot, name = key.partition(".")
        if dot:
            nested.setdefault(table, {})[name] = value
        else:
            nested[key] = value
    try:
        return Settings.model_validate(nested)
    except ValidationError as error:
        raise BadSetting(_explained(error, origins)) from None


def _explained(error: ValidationError, origins: Mapping[str, Origin]) -> str:
    """The first problem as one line: where, which key, what was found, what is allowed."""
    first = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    top = str(first["loc"][0]) if first["loc"] else ""
    origin = origins.get(path) or origins.get(top)
    if origin is None:  # a rule between several keys
        origin = next((origins[key] for key in _SERVERS if key in origins), "settings")
    if first["type"] == "extra_forbidden":
        return f"{origin}: unknown setting {path}{_nearest(str(first['loc'][-1]), _siblings(path))}"
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


def _siblings(path: str) -> list[str]:
    """The keys that could have been meant where an unknown one stands."""
    model: type[BaseModel] = Settings
    for part in path.split(".")[:-1]:
        if part in model.model_fields:
            kinds = _parts(model.model_fields[part].annotation)
            model = next(k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel))
    return list(model.model_fields)


def _nearest(word: str, known: Mapping[str, Any] | list[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"


def _check_listening(loaded: Loaded) -> None:
    settings = loaded.settings
    for key in ("listen", "download_listen"):
        address = getattr(settings, key)
        if address and not settings.open and not is_loopback(address):
            raise BadSetting(
                f"{loaded.origin(key)}: {key} is {address!r}, which other machines can reach; "
                "that should be said outright with --open (or open = true), "
                "or else be an address of this machine alone, such as 127.0.0.1:PORT"
            )

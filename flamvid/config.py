"""TOML to frozen dataclasses: unknown keys and wrong types are one clear line."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from flamvid.errors import ConfigError

__all__ = ["build", "read_toml", "to_toml"]

T = TypeVar("T")


def read_toml(path: Path) -> dict[str, Any]:
    """The table of a TOML file; a missing or malformed file is a ConfigError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"can't read {path}: {error.strerror}; give the path of a TOML file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def to_toml(table: Mapping[str, Any]) -> str:
    """A table as TOML: plain values first, then its tables. What is None is left out."""
    return "\n".join(_lines(table, ())) + "\n"


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    for key, value in table.items():
        if value is not None and not isinstance(value, Mapping) and not _tables(value):
            yield f"{_key(key)} = {_value(value)}"
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield f"\n[{'.'.join(map(_key, (*path, key)))}]"
            yield from _lines(value, (*path, key))
        for item in value if _tables(value) else ():
            yield f"\n[[{'.'.join(map(_key, (*path, key)))}]]"
            yield from _lines(item, (*path, key))


def _tables(value: Any) -> bool:
    """Whether this is a list of tables."""
    return isinstance(value, list) and bool(value) and all(isinstance(x, Mapping) for x in value)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _value(value: Any) -> str:
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item) for item in value if item is not None)}]"
    if isinstance(value, Mapping):
        rows = (f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None)
        return f"{{{', '.join(rows)}}}"
    raise TypeError(f"{type(value).__name__} has no form in TOML")


def build(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """An instance of the dataclass `cls` from `table`; `where` names the table in errors."""
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(fields)}"
            raise ConfigError(f"{where} has no key {key!r}{hint}")
    needed = (f for f in fields.values() if f.init and _required(f))
    if lacking := [f.name for f in needed if f.name not in table]:
        raise ConfigError(f"{where} lacks {', '.join(lacking)}; add what is missing")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    for key, value in values.items():
        default = fields[key].default
        if isinstance(default, bool) or default is dataclasses.MISSING:
            continue
        if isinstance(default, int) and (not isinstance(value, int) or isinstance(value, bool)):
            raise ConfigError(f"{where}.{key} is {value!r}; must be a whole number")
        if isinstance(default, float) and not isinstance(value, int | float):
            raise ConfigError(f"{where}.{key} is {value!r}; must be a number")
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error


def _required(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing

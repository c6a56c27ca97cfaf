"""TOML to frozen dataclasses: unknown keys and wrong types are one clear line."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from flamvid.errors import ConfigError

__all__ = ["build", "read_toml", "refuse", "to_toml"]

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
    refuse((key for key in table if key not in fields), fields, where)
    needed = (f for f in fields.values() if f.init and _required(f))
    if lacking := [f.name for f in needed if f.name not in table]:
        raise ConfigError(f"{where} lacks {', '.join(lacking)}; add what is missing")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    kinds = get_type_hints(cls)
    for key, value in values.items():
        if wrong := _wrong(value, kinds[key]):
            shown = list(value) if isinstance(value, tuple) else value
            raise ConfigError(f"{where}.{key} is {shown!r}; must be {wrong}")
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error


def refuse(keys: Iterable[str], known: Iterable[str], where: str) -> None:
    """ConfigError for the first of keys that are none of the known ones, which names the near."""
    for key in keys:
        near = difflib.get_close_matches(key, list(known), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
        raise ConfigError(f"{where} has no key {key!r}{hint}")


def _wrong(value: Any, kind: Any) -> str:
    """What a value must be if it isn't, for the kinds of values that TOML has."""
    if kind is bool:
        return "" if isinstance(value, bool) else "true or false"
    if kind is str:
        return "" if isinstance(value, str) else "a text"
    if kind in (int, float) and isinstance(value, bool):
        return "a number"
    if kind is int:
        return "" if isinstance(value, int) else "a whole number"
    if kind is float:
        # No number is below or above nan, so that no rule would refuse it.
        finite = isinstance(value, int | float) and math.isfinite(value)
        return "" if finite else "a number"
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        each = parts[:1] * len(value) if isinstance(value, tuple) and parts[-1] is ... else parts
        if isinstance(value, tuple) and len(each) == len(value):
            return next((f"a list, each of it {w}" for w in map(_wrong, value, each) if w), "")
        return "a list" if parts[-1] is ... else f"a list of {len(parts)}"
    return ""


def _required(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing

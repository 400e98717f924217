"""Saved walks: the JSON of :meth:`testbed.walk.model.Walk.to_dict`, read again, and its schema.

The fields are those of the dataclasses in :mod:`testbed.walk.model`, so reader and schema follow
them. Fields that are unknown here are left alone: a later version may write more.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from testbed.errors import UsageError
from testbed.walk import model
from testbed.walk.model import FORMAT, Walk

SHOWN = 8  # problems of one file; a file of another kind has too many
WRITES_IT = "`testbed walk SOURCE TARGET -o FILE.json` writes one"
NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def load(path: str | os.PathLike[str]) -> Walk:
    """Read a walk that `testbed walk --json` wrote.

    Raises UsageError with the file and each place in it that is wrong.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not text"
        raise UsageError(f"cannot read the walk: {why}", where=str(path)) from error
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        place = f":{error.lineno}:{error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        why = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise UsageError(f"not JSON: {why}", where=f"{path}{place}", hint=WRITES_IT) from error
    return from_dict(data, where=str(path))


def from_dict(data: Any, *, where: str = "") -> Walk:
    """Return the walk of a JSON object; ``where`` names its origin in errors.

    Raises UsageError, which names each wrong field by its place, as ``legs[0].hops[2].kind``.
    """
    if not isinstance(data, Mapping) or "format" not in data or "legs" not in data:
        raise UsageError(
            "not a walk: wanted an object with `format` and `legs`",
            where=where,
            hint=WRITES_IT,
        )
    if data["format"] != FORMAT:
        raise UsageError(
            f"format {data['format']!r} of walks is unknown; this version reads {FORMAT}",
            where=where,
            hint="follow the packet again, or use the version of testbed that wrote the file",
        )
    reader = _Reader()
    walk: Walk = reader.read(Walk, data, "")
    if reader.problems:
        left = len(reader.problems) - SHOWN
        lines = reader.problems[:SHOWN] + ([f"and {left} more"] if left > 0 else [])
        raise UsageError("; ".join(lines), where=where, hint="docs/walk.md describes the fields")
    return walk


def brief(walk: Walk) -> str:
    """Return a walk as JSON on one line, without frames and without values that are defaults."""
    data = {"format": FORMAT, **_brief(walk)}
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def _brief(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {
            one.name: _brief(getattr(value, one.name))
            for one in dataclasses.fields(value)
            if one.name != "frame" and getattr(value, one.name) != one.default
        }
    if isinstance(value, Mapping):
        return {key: _brief(one) for key, one in value.items()}
    return [_brief(one) for one in value] if isinstance(value, list | tuple) else value


@functools.cache
def _fields(kind: type) -> dict[str, tuple[Any, bool]]:
    """Return the fields of a dataclass: type, and whether it is required."""
    hints = get_type_hints(kind, vars(model))
    return {
        one.name: (
            hints[one.name],
            one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING,
        )
        for one in dataclasses.fields(kind)
    }


class _Reader:
    """Reads plain data as values of a type, and collects what does not fit."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def _wrong(self, place: str, wanted: str, seen: Any) -> Any:
        told = json.dumps(seen, ensure_ascii=False, default=str)
        told = told if len(told) <= 40 else f"{told[:37]}..."
        self.problems.append(f"{place or 'the file'}: wanted {wanted}, saw {told}")
        return None

    def read(self, kind: Any, data: Any, place: str) -> Any:
        if dataclasses.is_dataclass(kind):
            return self._object(kind, data, place)
        origin, arguments = get_origin(kind), get_args(kind)
        if origin in (Union, types.UnionType):
            (kind,) = (one for one in arguments if one is not types.NoneType)
            return None if data is None else self.read(kind, data, place)
        if origin is Literal:
            wanted = "one of " + ", ".join(arguments)
            return data if data in arguments else self._wrong(place, wanted, data)
        if origin is tuple:
            if not isinstance(data, list):
                return self._wrong(place, "a list", data)
            return tuple(
                self.read(arguments[0], one, f"{place}[{at}]") for at, one in enumerate(data)
            )
        if origin is not None:
            if not isinstance(data, dict):
                return self._wrong(place, "an object", data)
            return {
                key: self.read(arguments[1], one, f"{place}.{key}") for key, one in data.items()
            }
        return self._plain(kind, data, place)

    def _object(self, kind: Any, data: Any, place: str) -> Any:
        if not isinstance(data, dict):
            return self._wrong(place, "an object", data)
        values, before = {}, len(self.problems)
        for name, (wanted, required) in _fields(kind).items():
            at = f"{place}.{name}" if place else name
            if name in data:
                values[name] = self.read(wanted, data[name], at)
            elif required:
                self.problems.append(f"{at} is missing")
        return kind(**values) if len(self.problems) == before else None

    def _plain(self, kind: Any, data: Any, place: str) -> Any:
        if kind is bytes:
            try:
                return bytes.fromhex(data)
            except (TypeError, ValueError):
                return self._wrong(place, "octets in base 16", data)
        allowed = (int, float) if kind is float else kind
        if (isinstance(data, bool) and kind is not bool) or not isinstance(data, allowed):
            return self._wrong(place, NAMES[kind], data)
        return data


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a saved walk."""
    found: dict[str, Any] = {}
    _schema(Walk, found)
    whole = found.pop(Walk.__name__)
    whole["properties"] = {
        "format": {"const": FORMAT},
        **whole["properties"],
        "arrived": {"type": "boolean"},
    }
    whole["required"] = ["format", *whole["required"]]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "testbed: a saved walk",
        **whole,
        "$defs": found,
    }


SIMPLE: Mapping[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    bytes: {"type": "string", "pattern": "^([0-9a-f]{2})*$"},
}


def _schema(kind: Any, found: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a type; those of dataclasses are collected in ``found``."""
    if dataclasses.is_dataclass(kind):
        name = kind.__name__  # type: ignore[union-attr]  # it is a class
        if name not in found:
            found[name] = {}  # a View may hold a View
            fields = _fields(kind)  # type: ignore[arg-type]
            found[name] = {
                "type": "object",
                "properties": {key: _schema(one, found) for key, (one, _) in fields.items()},
                "required": [key for key, (_, required) in fields.items() if required],
            }
        return {"$ref": f"#/$defs/{name}"}
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        (inner,) = (one for one in arguments if one is not types.NoneType)
        return {"anyOf": [_schema(inner, found), {"type": "null"}]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0], found)}
    if origin is not None:
        return {"type": "object", "additionalProperties": _schema(arguments[1], found)}
    return SIMPLE[kind]

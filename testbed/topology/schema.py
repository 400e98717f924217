"""The JSON Schema (draft 2020-12) of topology files, for editors.

A schema checks one value at a time. Only :func:`testbed.topology.load` checks, for example, that
an address belongs to its network and that a container's node exists.
"""

from __future__ import annotations

from typing import Any

from testbed.topology.declare import schema_of
from testbed.topology.model import INCLUDE, Topology

__all__ = ["as_written", "schema"]


def schema() -> dict[str, Any]:
    """Return the schema as a new dictionary for ``json.dump``.

    >>> schema()["required"]
    ['name', 'nodes']
    """
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "testbed topology",
        "description": "A lab: its networks, its nodes, and what runs on them.",
    }
    return head | schema_of(Topology)


#: A text with a variable (:mod:`testbed.topology.variables`).
_VARIABLE = {"type": "string", "pattern": r"\$[{A-Za-z_]"}
_SCALARS = ("string", "number", "integer", "boolean")
_NOTES = ("description", "default")


def as_written() -> dict[str, Any]:
    """Return the schema of files as people write them, for editors.

    In addition to what :func:`schema` accepts, a value can be a text with a variable, and required
    keys can be in an included file.
    """
    whole = schema()
    required = whole.pop("required")
    either = [{"required": required}, {"required": [INCLUDE]}]
    return {**_open(whole), "anyOf": either, "$defs": {"variable": _VARIABLE}}


def _open(value: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a value that can be, or contain, variables."""
    if "enum" in value or value.get("type") in _SCALARS:
        notes = {name: value[name] for name in _NOTES if name in value}
        own = {name: one for name, one in value.items() if name not in notes}
        return {**notes, "anyOf": [own, {"$ref": "#/$defs/variable"}]}
    found = dict(value)
    for name in ("properties", "patternProperties"):
        if name in value:
            found[name] = {key: _open(one) for key, one in value[name].items()}
    for name in ("items", "additionalProperties"):
        if isinstance(value.get(name), dict):
            found[name] = _open(value[name])
    for name in ("anyOf", "oneOf"):
        if name in value:
            found[name] = [_open(one) for one in value[name]]
    return found

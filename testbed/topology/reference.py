"""A reference of the keys of topology files, in Markdown, from their JSON Schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from testbed.topology.schema import schema

__all__ = ["reference"]

TYPES = {
    "integer": "whole number", "boolean": "true or false", "string": "text", "object": "a mapping",
    "number": "number",
}  # fmt: skip

#: Values that show what a pattern means. The first that matches is printed: a name stands before
#: addresses, which patterns of names accept, too.
SAMPLES = (
    "registry.example/team/web:1.2",
    "node1",
    "10.168.0.2",
    "10.168.0.0/24",
    "8080:80",
    "53/udp",
    "1.5s",
    "512M",
    "exit 0",
    "container:web",
    "loss node1:node2 20%",
    "0644",
)
HEAD = """# Topology file

Every key of a topology file, from the JSON Schema that `testbed schema` prints. The schema judges
one value at a time. `testbed plan FILE` also checks how values fit together, for example that an
address is in its network.
"""


def reference() -> str:
    """Return the reference: a heading and a table of keys for each mapping of a file.

    >>> "## `nodes.NAME`" in reference()
    True
    """
    return HEAD + "\n" + "\n".join(_section("", schema()))


def _section(path: str, part: dict[str, Any]) -> list[str]:
    """Return a heading and a table of keys for a mapping, and for each mapping in it."""
    keys: dict[str, Any] = part.get("properties", {})
    lines = [f"## `{path}`" if path else "## The file", ""]
    lines += [part["description"], ""] if path and "description" in part else []
    lines += ["| key | meaning | value |", "|---|---|---|"]
    for key, value in keys.items():
        required = " (required)" if key in part.get("required", []) else ""
        default = f"; default {_code(value['default'])}" if "default" in value else ""
        about = value.get("description", "").replace("|", "\\|")
        accepts = _words(_below(path, key), value)
        lines.append(f"| {_code(key)}{required} | {about} | {accepts}{default} |")
    lines.append("")
    for key, value in keys.items():
        for name, inner in _mappings(_below(path, key), value):
            lines += _section(name, {"description": value.get("description", ""), **inner})
    return lines


def _below(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _mappings(path: str, value: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what has keys of its own in a value: its path, and its schema."""
    if "properties" in value:
        yield path, value
    elif isinstance(inner := value.get("additionalProperties"), dict):
        yield from _mappings(f"{path}.NAME", inner)
    elif "items" in value:
        yield from _mappings(f"{path}[]", value["items"])
    for one in value.get("anyOf", ()):
        yield from _mappings(path, one)


def _words(path: str, value: dict[str, Any]) -> str:
    """Say in words which values are accepted."""
    if "anyOf" in value and "type" not in value:
        return " or ".join(dict.fromkeys(_words(path, one) for one in value["anyOf"]))
    if "enum" in value:
        return ", ".join(dict.fromkeys(_code(one) for one in value["enum"]))
    match value.get("type"):
        case "array":
            return _several("a list of", "a list of mappings", f"{path}[]", value.get("items", {}))
        case "object":
            return _object(path, value)
        case "integer" | "number" as number:
            return _number(number, value)
        case "string" if "pattern" in value:
            return _text(value)
        case list() as types:
            return " or ".join(TYPES[one] for one in types)
        case other:
            return TYPES.get(str(other), str(other or "any value"))


def _object(path: str, value: dict[str, Any]) -> str:
    if "properties" in value:
        return f"a mapping: {_link(path)}"
    inner = value.get("additionalProperties")
    if not isinstance(inner, dict):
        return "a mapping"
    return _several("by name:", "mappings by name", f"{path}.NAME", inner)


def _several(values: str, mappings: str, path: str, inner: dict[str, Any]) -> str:
    """Say what a list or a mapping of names has."""
    if "properties" in inner:
        return f"{mappings}: {_link(path)}"
    return f"{values} {_words(path, inner)}"


def _link(path: str) -> str:
    return f"[`{path}`](#{_anchor(path)})"


def _text(value: dict[str, Any]) -> str:
    """Say in words which texts are accepted; a pattern without a sample is left to the meaning."""
    fits = next((one for one in SAMPLES if re.search(value["pattern"], one)), None)
    length = f", at most {value['maxLength']} characters" if "maxLength" in value else ""
    return f"text such as {_code(fits)}{length}" if fits else f"text{length}"


def _number(number: str, value: dict[str, Any]) -> str:
    low, high = value.get("minimum"), value.get("maximum")
    limits = f" from {low} to {high}" if high is not None else f" from {low}" if low else ""
    return f"{TYPES.get(number, number)}{limits}"


def _code(value: object) -> str:
    """Return a value as code, as YAML would have it."""
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{text}`".replace("|", "\\|")


def _anchor(heading: str) -> str:
    """Return the anchor of a heading, as forges and mkdocs.yml make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")

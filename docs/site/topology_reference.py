"""The page on the keys of topology files, from their JSON Schema."""

from __future__ import annotations

import json
import re
from typing import Any

from testbed.topology.schema import schema

TYPES = {"integer": "whole number", "boolean": "true or false", "string": "text"}

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
)
HEAD = """# Topology file

Every key of a topology file, from the JSON Schema that `testbed schema` prints. The schema judges
one value at a time. `testbed plan FILE` also checks how values fit together, for example that an
address is in its network. [Topologies](../topologies.md) explains the keys with examples.
"""


def page() -> str:
    """Return the page in Markdown."""
    return HEAD + "\n" + "\n".join(section("", schema()))


def section(path: str, part: dict[str, Any]) -> list[str]:
    """Return a heading and a table of keys for a mapping, and for each mapping in it."""
    keys: dict[str, Any] = part.get("properties", {})
    lines = [f"## `{path}`" if path else "## The file", ""]
    lines += [part["description"], ""] if path and "description" in part else []
    lines += ["| key | meaning | value |", "|---|---|---|"]
    for key, value in keys.items():
        required = " (required)" if key in part.get("required", []) else ""
        default = f"; default {code(value['default'])}" if "default" in value else ""
        about = value.get("description", "").replace("|", "\\|")
        lines.append(f"| {code(key)}{required} | {about} | {kind(path, key, value)}{default} |")
    lines.append("")
    for key, value in keys.items():
        if found := below(f"{path}.{key}" if path else key, value):
            lines += section(found[0], {"description": value.get("description", ""), **found[2]})
    return lines


def below(name: str, value: dict[str, Any]) -> tuple[str, str, dict[str, Any]] | None:
    """Return the path, the form and the schema of what has keys of its own in a value."""
    if "properties" in value:
        return name, "a mapping", value
    inner = value.get("additionalProperties")
    if isinstance(inner, dict) and "properties" in inner:
        return f"{name}.NAME", "a mapping by name", inner
    if "properties" in value.get("items", {}):
        return f"{name}[]", "a list", value["items"]
    return None


def kind(path: str, key: str, value: dict[str, Any]) -> str:
    """Say in words which values are accepted."""
    if found := below(f"{path}.{key}" if path else key, value):
        name, form, _ = found
        return f"{form}: [`{name}`](#{anchor(name)})"
    return words(value)


def mapping_words(value: dict[str, Any]) -> str:
    """Say in words which mappings are accepted."""
    if "properties" in value:
        return f"mapping with {', '.join(code(one) for one in value['properties'])}"
    inner = value.get("additionalProperties")
    return f"mapping of names to: {words(inner)}" if inner else "mapping"


def words(value: dict[str, Any]) -> str:
    """Say in words which values are accepted, for a value without keys of its own."""
    if "anyOf" in value and "type" not in value:
        return " or ".join(words(one) for one in value["anyOf"])
    if "enum" in value:
        return ", ".join(dict.fromkeys(code(one) for one in value["enum"]))
    match value.get("type"):
        case "array":
            return f"list of: {words(value.get('items', {}))}"
        case "object":
            return mapping_words(value)
        case "integer" | "number" as number:
            return number_words(number, value)
        case "string" if "pattern" in value:
            fits = next((one for one in SAMPLES if re.search(value["pattern"], one)), None)
            length = f", at most {value['maxLength']} characters" if "maxLength" in value else ""
            return (
                f"text such as {code(fits)}{length}" if fits else f"text, {code(value['pattern'])}"
            )
        case other:
            return TYPES.get(str(other), str(other))


def number_words(number: str, value: dict[str, Any]) -> str:
    low, high = value.get("minimum"), value.get("maximum")
    limits = f" from {low} to {high}" if high is not None else f" from {low}" if low else ""
    return f"{TYPES.get(number, number)}{limits}"


def code(value: object) -> str:
    """Return a value as code, as YAML would have it."""
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{text}`".replace("|", "\\|")


def anchor(heading: str) -> str:
    """Return the anchor of a heading, as mkdocs.yml has it made."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")

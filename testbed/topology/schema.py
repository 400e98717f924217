"""The JSON Schema (draft 2020-12) of topology files, for editors.

A schema checks one value at a time. Only :func:`testbed.topology.load` checks, for example, that
an address belongs to its network and that a container's node exists.
"""

from __future__ import annotations

from typing import Any

from testbed.topology.declare import schema_of
from testbed.topology.model import Topology

__all__ = ["schema"]


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

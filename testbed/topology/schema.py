"""The topology file as a JSON Schema (draft 2020-12), for editors.

A schema sees one value at a time: whether an address lies in its network, or a
container's node exists, only :func:`testbed.topology.load` can tell.
"""

from __future__ import annotations

import copy
from typing import Any

from testbed.topology import keys

__all__ = ["schema"]


def schema() -> dict[str, Any]:
    """The schema, as a new dictionary that ``json.dump`` takes.

    >>> schema()["required"]
    ['name', 'nodes']
    """
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "testbed topology",
        "description": "A lab: its networks, its nodes, and what runs on them.",
    }
    return head | copy.deepcopy(dict(keys.FILE))

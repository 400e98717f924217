"""Errors about a value of the topology file, with its place there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from testbed.errors import LabError
from testbed.topology import tree
from testbed.topology.load import places

if TYPE_CHECKING:
    from testbed.topology.model import Topology


def place(topology: Topology, *path: str | int) -> str:
    """Return FILE:LINE of a value of the topology file; empty if it has none.

    ``path`` are the keys and indices that lead to it.
    """
    if not topology.file or topology.foreign is not None:
        return ""
    root, problems = places(topology)
    at = tree.value_at(root, *path)
    return f"{problems.file_of(at)}:{at.line}" if at.line and at.path == path else ""


@contextlib.contextmanager
def placed(topology: Topology, *path: str | int) -> Iterator[None]:
    """Begin the message of a LabError of the block with the place of a value."""
    try:
        yield
    except LabError as error:
        if where := place(topology, *path):
            error.message = f"{where}: {error.message}"
        raise

"""Errors about a value of the topology file, with its place there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from testbed.errors import LabError
from testbed.topology.load import place

if TYPE_CHECKING:
    from testbed.topology.model import Topology


@contextlib.contextmanager
def placed(topology: Topology, *path: str | int) -> Iterator[None]:
    """Begin the message of a LabError of the block with the place of a value."""
    try:
        yield
    except LabError as error:
        if where := place(topology, *path):
            error.message = f"{where}: {error.message}"
        raise

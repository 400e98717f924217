"""Nodes that are containers of containerlab."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from testbed.nodes.base import is_stopped
from testbed.nodes.stream.container import ContainerNode

if TYPE_CHECKING:
    from testbed.nodes.stream.wire import Link


class ContainerlabNode(ContainerNode):
    """A container that containerlab has created."""

    shares_files = True  # those of the store, at the same paths

    def __init__(self, *args: Any, frozen: Callable[[], bool], **kwargs: Any) -> None:
        self._frozen = frozen
        super().__init__(*args, **kwargs)

    def link(self) -> Link:
        if self._frozen():
            raise is_stopped(self.name, self._lab)
        return super().link()


class UsersNode(ContainerlabNode):
    """A node of a user's topology file: it has nothing but what the file says."""

    shares_files = False

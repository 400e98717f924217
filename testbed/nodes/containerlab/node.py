"""Nodes that are containers of containerlab."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from testbed.nodes.base import is_stopped
from testbed.nodes.stream.container import ContainerNode

if TYPE_CHECKING:
    from testbed.nodes.base import Service
    from testbed.nodes.place import Place
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
    """A node of a user's image: it has nothing but what the image and the file say.

    ``outside`` is a place in its network with the programs of its cell.
    """

    shares_files = False

    def __init__(self, *args: Any, outside: Place, **kwargs: Any) -> None:
        self._outside = outside
        super().__init__(*args, **kwargs)

    @property
    def network(self) -> Place:
        return self._outside

    def start(self, service: Service, *, timeout: float = 60.0) -> None:
        super().start(replace(service, env={**self._env, **service.env}), timeout=timeout)

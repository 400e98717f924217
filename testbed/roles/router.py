"""The base of roles for routers.

It is imported with every command that lists the roles. What only labs with routers need is in
:mod:`testbed.roles.routing`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar

from testbed.roles.base import Role

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.nodes.base import Node as Machine
    from testbed.roles.part import Part
    from testbed.roles.routing import RouterOfNode
    from testbed.steps.context import Context
    from testbed.topology.declare import Block
    from testbed.topology.model import Node, Topology

#: Words of the mark ``needs``, beside a role's name.
NEEDS = {
    "ospf": "routers that speak OSPF",
    "bgp": "routers that speak BGP",
}


class RouterRole(Role):
    """A role for routers; its nodes forward packets."""

    title: ClassVar[str]  #: the name of the software
    version: ClassVar[tuple[str, ...]]  #: the command that prints its version
    version_form: ClassVar[str]  #: pattern of the version in the output, as the first group
    forwards = True
    networked = False  # its links need no addresses

    @property
    def node_section(self) -> type[Block]:  # type: ignore[override]  # loaded when a file names it
        from testbed.roles.routing import RouterOfNode

        return RouterOfNode

    def text(self, topology: Topology, node: Node) -> str:
        """Return the configuration of a node: the user's, or one that is written."""
        from testbed.roles.routing import router_of

        router = router_of(self.name, node)
        return router.config.content if router.config else self.written(router, topology, node)

    def written(self, router: RouterOfNode, topology: Topology, node: Node) -> str:
        """Return the configuration that the settings of a node stand for."""
        raise NotImplementedError

    def speaks(self, text: str) -> set[str]:
        """Return the protocols of a configuration, of those in :data:`NEEDS`."""
        raise NotImplementedError

    def neighbors(self, machine: Machine) -> Iterable[tuple[str, str]]:
        """Return the neighbours of a running router, each with its state."""
        raise NotImplementedError

    def lacking(self, store: Store, topology: Topology) -> str:  # noqa: ARG002  a trait of this machine
        from testbed.artifacts import debian

        return debian.lacking()

    def features(self, topology: Topology) -> set[str]:
        texts = [self.text(topology, node) for node in topology.with_role(self.name)]
        return {self.name}.union(*map(self.speaks, texts))

    def facts(self, context: Context) -> Mapping[str, str]:
        node = context.topology.with_role(self.name)[0].name
        said = context.node(node).run(self.version, check=False)
        found = re.search(self.version_form, said.stdout + said.stderr)
        return {self.name: found[1]} if found else {}

    def described(self, facts: Mapping[str, str]) -> Iterable[str]:
        if self.name in facts:
            yield f"{self.title} {facts[self.name]}"

    def status(self, context: Context, machine: Machine) -> Mapping[str, list[Part]]:  # noqa: ARG002  the node knows
        from testbed.roles.part import Part

        some = self.neighbors(machine)
        return {"neighbour": [Part(name, state, ok=True) for name, state in some]}

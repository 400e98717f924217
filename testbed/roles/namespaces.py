"""Plain network namespaces, bridges and veth pairs on a node, made with ``ip``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from testbed.lab.marks import is_marked, mark
from testbed.lab.step import Step, node_step
from testbed.roles.base import Role

if TYPE_CHECKING:
    from testbed.lab.context import Context
    from testbed.topology.model import Node, Topology


def batches(topology: Topology, node: str) -> dict[str, list[str]]:
    """The ``ip -batch`` lines for a node: "" is the node itself, else a namespace's name."""
    lines: dict[str, list[str]] = {"": []}
    for namespace in topology.namespaces.values():
        if namespace.node == node:
            lines[""].append(f"netns add {namespace.name}")
            lines[namespace.name] = ["link set dev lo up"]
    for bridge in topology.bridges.values():
        if bridge.node == node:
            lines[""] += [
                f"link add name {bridge.name} type bridge",
                f"link set dev {bridge.name} up",
            ]
    for veth in topology.veths:
        if veth.node != node:
            continue
        one, other = veth.ends
        lines[""].append(f"link add name {one.name} type veth peer name {other.name}")
        for end in veth.ends:
            if end.namespace:
                lines[""].append(f"link set dev {end.name} netns {end.namespace}")
                if end.address:
                    lines[end.namespace].append(f"address add {end.address} dev {end.name}")
                lines[end.namespace].append(f"link set dev {end.name} up")
            else:
                lines[""].append(f"link set dev {end.name} master {end.bridge} up")
    return lines


class Namespaces(Role):
    name = "namespaces"

    def steps(self, topology: Topology, node: Node) -> Iterable[Step]:
        names = [n.name for n in topology.namespaces.values() if n.node == node.name]

        def act(context: Context) -> tuple[str, bool]:
            machine = context.node(node.name)
            about = ", ".join(names) or "none"
            if is_marked(machine, "namespaces"):
                return about, False
            lines = batches(topology, node.name)
            self._clear(context, node.name, lines)
            machine.run(["ip", "-batch", "-"], input="\n".join(lines.pop("")).encode())
            for namespace, commands in lines.items():
                argv = ["ip", "-n", namespace, "-batch", "-"]
                machine.run(argv, input="\n".join(commands).encode())
            mark(machine, "namespaces")
            return about, True

        about = f"namespaces {', '.join(names)}, bridges, veth pairs"
        yield Step(f"namespaces {node.name}", about, (node_step(node.name),), act=act)

    @staticmethod
    def _clear(context: Context, node: str, lines: dict[str, list[str]]) -> None:
        """Remove what an attempt that was cut off may have left; links end with namespaces."""
        machine = context.node(node)
        for namespace in lines:
            if namespace:
                machine.run(["ip", "netns", "delete", namespace], check=False)
        for bridge in context.topology.bridges.values():
            if bridge.node == node:
                machine.run(["ip", "link", "delete", bridge.name], check=False)
        for veth in context.topology.veths:
            if veth.node == node:
                machine.run(["ip", "link", "delete", veth.ends[1].name], check=False)

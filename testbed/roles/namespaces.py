"""Network namespaces, bridges and veth pairs on a node."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.nodes.marks import is_marked, mark
from testbed.nodes.wiring import Difference, addresses_of, state_of
from testbed.roles.base import Role
from testbed.steps.step import Step, node_step

if TYPE_CHECKING:
    from testbed.nodes.base import Node as Machine
    from testbed.steps.context import Context
    from testbed.topology.model import Node, Topology

#: Prints the links of the node, then those of each namespace; nothing for a missing namespace.
LOOK = """\
ip -j address
for one; do
    printf '\\0'
    ip -n "$one" -j address 2>/dev/null || :
done
"""


def batches(topology: Topology, node: str) -> dict[str, list[str]]:
    """Return the ``ip -batch`` lines by namespace; "" is the node itself."""
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
        # Create each end in its namespace: on the node another link may have its name.
        one, other = (
            f"name {end.name}" + (f" netns {end.namespace}" if end.namespace else "")
            for end in veth.ends
        )
        lines[""].append(f"link add {one} type veth peer {other}")
        for end in veth.ends:
            if end.namespace:
                inside = lines.setdefault(end.namespace, [])
                if end.address:
                    inside.append(f"address add {end.address} dev {end.name}")
                inside.append(f"link set dev {end.name} up")
            else:
                lines[""].append(f"link set dev {end.name} master {end.bridge} up")
    return lines


class Namespaces(Role):
    name = "namespaces"
    creates = ("namespaces", "bridges", "veths")
    networked = False
    needs: ClassVar[dict[str, str]] = {
        "namespaces": "a node with namespaces of the topology's own, as document 002 makes them"
    }

    def steps(self, topology: Topology, node: Node) -> Iterable[Step]:
        names = [n.name for n in topology.namespaces.values() if n.node == node.name]

        def act(context: Context) -> tuple[str, bool]:
            machine = context.node(node.name)
            about = ", ".join(names) or "none"
            if not is_marked(machine, "namespaces"):
                _make(machine, node.name, topology)
                mark(machine, "namespaces")
                return about, True
            gone = differences(topology, machine)
            if gone:
                _make(machine, node.name, _part(topology, gone))
                about += f", restored: {', '.join(map(str, gone))}"
            return about, bool(gone)

        about = f"namespaces {', '.join(names)}, bridges, veth pairs"
        yield Step(f"namespaces {node.name}", about, (node_step(node.name),), act=act)

    def differences(self, topology: Topology, machine: Machine) -> list[Difference]:
        return differences(topology, machine)


def _make(machine: Machine, node: str, topology: Topology) -> None:
    """Create the topology's links on a node, after removing leftovers of them."""
    lines = batches(topology, node)
    _clear(machine, topology)
    machine.run(["ip", "-batch", "-"], input="\n".join(lines.pop("")).encode())
    for namespace, commands in lines.items():
        argv = ["ip", "-n", namespace, "-batch", "-"]
        machine.run(argv, input="\n".join(commands).encode())


def _clear(machine: Machine, topology: Topology) -> None:
    """Remove leftovers of an interrupted attempt.

    Links are deleted with their namespaces.
    """
    for namespace in topology.namespaces.values():
        if namespace.node == machine.name:
            machine.run(["ip", "netns", "delete", namespace.name], check=False)
    for bridge in topology.bridges.values():
        if bridge.node == machine.name:
            machine.run(["ip", "link", "delete", "dev", bridge.name], check=False)
    for veth in topology.veths:
        if veth.node == machine.name:
            for end in veth.ends:  # in its namespace: on the node another link may have its name
                where = ["-n", end.namespace] if end.namespace else []
                machine.run(["ip", *where, "link", "delete", "dev", end.name], check=False)


def differences(topology: Topology, machine: Machine) -> list[Difference]:
    """Return a node's namespaces, bridges and veth ends that are wrong.

    Missing ones are included.
    """
    node = machine.name
    spaces = [n.name for n in topology.namespaces.values() if n.node == node]
    printed = machine.run(["sh", "-c", LOOK, "sh", *spaces]).out
    listed = [json.loads(part.strip() or b"null") for part in printed.split(b"\0")]
    seen = {name: _links(entries) for name, entries in zip(["", *spaces], listed, strict=True)}
    found = [
        Difference("link", f"namespace {name}", "missing") for name in spaces if seen[name] is None
    ]
    for bridge in topology.bridges.values():
        if bridge.node == node:
            found += _link_lacks(f"bridge {bridge.name}", (seen[""] or {}).get(bridge.name), {})
    for veth in topology.veths:
        if veth.node != node:
            continue
        for end in veth.ends:
            link = (seen[end.namespace or ""] or {}).get(end.name)
            wanted = {"master": end.bridge, "address": str(end.address or "")}
            found += _link_lacks(end.name, link, wanted)
    return found


def _links(entries: list[dict[str, Any]] | None) -> dict[str, dict[str, Any]] | None:
    """Return the links of a namespace by name.

    Return None if the namespace does not exist.
    """
    return None if entries is None else {e["ifname"]: e for e in entries if e}


def _link_lacks(
    name: str, link: Mapping[str, Any] | None, wanted: Mapping[str, str | None]
) -> list[Difference]:
    if link is None:
        return [Difference("link", name, "missing")]
    if state_of(link["flags"]) == "down":
        return [Difference("link", name, "down")]
    if wanted.get("master") and link.get("master") != wanted["master"]:
        return [Difference("link", name, "detached")]
    if (address := wanted.get("address")) and address not in addresses_of(link):
        return [Difference("link", name, f"without {address}")]
    return []


def _part(topology: Topology, gone: Sequence[Difference]) -> Topology:
    """Return the part of a topology to create again.

    It has the missing parts and their dependents.
    """
    names = {difference.what for difference in gone}
    spaces = {k: v for k, v in topology.namespaces.items() if f"namespace {k}" in names}
    bridges = {k: v for k, v in topology.bridges.items() if f"bridge {k}" in names}
    veths = tuple(
        veth
        for veth in topology.veths
        if any(
            end.name in names or end.namespace in spaces or end.bridge in bridges
            for end in veth.ends
        )
    )
    return replace(topology, namespaces=spaces, bridges=bridges, veths=veths)

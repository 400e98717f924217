"""Topology files of containerlab (``.clab.yml``) for nodes of a lab.

Each node is of the kind ``linux``, and each network a bridge.  Nodes have no management interface,
so that their interfaces have the names and addresses of our topology.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Any

from testbed.artifacts.reference import local_name
from testbed.nodes.containerlab import DIGEST, IMAGE, NAME
from testbed.nodes.links import port_name
from testbed.nodes.netns.provider import bridge_of

if TYPE_CHECKING:
    from testbed.nodes.base import NodeSpec
    from testbed.topology.model import Topology

SUFFIX = ".clab.yml"
#: Names that containerlab gives to ends of links outside of nodes (manual/topo-def-file).
SPECIAL = frozenset({"host", "mgmt-net", "macvlan", "vxlan", "vxlan-stitch", "dummy"})
MTU = 1500  # containerlab's default is 9500
#: Networks for containerlab's management network, which it always creates (RFC 3927).
MANAGEMENT = IPv4Network("169.254.0.0/16")
MANAGEMENT_PREFIX = 24
#: A link beside the ports of nodes, which have the names of the nodes: none begins with "_".
MANAGEMENT_BRIDGE = "_testbed-mgmt"
FIRST = 79  # of the networks of that size
#: Place of ``testbed-init`` in a container of a user's image, whose first program it is.
INIT = "/usr/local/lib/testbed/testbed-init"
#: Settings of every node.
KIND: Mapping[str, str] = {
    "image-pull-policy": "never",
    "network-mode": "none",
    "restart-policy": "no",  # a container that is restarted has lost its links
    "cgroupns-mode": "private",
}


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of the nodes of a file.

    ``image`` is the name of the image of nodes without one of their own.  ``binds`` maps folders of
    containerlab's machine to the paths at which these nodes have them, read-only.  ``init`` is the
    path of ``testbed-init`` there.
    """

    image: str
    binds: Mapping[str, str]
    init: str


def names(nodes: Iterable[str]) -> dict[str, str]:
    """Return the name of each node in a topology file.

    It is the node's own, unless that has another meaning for containerlab.

    >>> names(["node1", "host", "host-node"])
    {'node1': 'node1', 'host': 'host-node-2', 'host-node': 'host-node'}
    """
    taken = set(nodes := list(nodes))
    found = {}
    for name in nodes:
        found[name] = name
        if name in SPECIAL:
            number, found[name] = 1, f"{name}-node"
            while found[name] in taken:
                number += 1
                found[name] = f"{name}-node-{number}"
            taken.add(found[name])
    return found


def management(used: Iterable[IPv4Network]) -> IPv4Network:
    """Return a network for containerlab's management that none of the ``used`` ones overlaps."""
    used = list(used)
    candidates = list(MANAGEMENT.subnets(new_prefix=MANAGEMENT_PREFIX))
    for one in [*candidates[FIRST:], *candidates[:FIRST]]:
        if not any(one.overlaps(other) for other in used):
            return one
    return candidates[FIRST]  # nodes have no interface in it: an overlap does no harm


def document(
    lab: str,
    specs: Sequence[NodeSpec],
    options: Options,
    topology: Topology | None = None,
) -> dict[str, Any]:
    """Return the content of a topology file.

    ``lab`` is containerlab's name of the lab, ``specs`` its nodes.  With a ``topology`` the nodes
    are linked to the bridges of their networks.
    """
    called = names(spec.name for spec in specs)
    linked = [] if topology is None else [s.name for s in specs if s.name in topology.nodes]
    networks = [] if topology is None else list(topology.networks.values())
    used = {name for node in linked for name in topology.nodes[node].networks} if topology else ()
    nodes = {called[spec.name]: _node(spec, called[spec.name], options) for spec in specs}
    bridges = {bridge_of(name): {"kind": "bridge"} for name in sorted(used)}
    return {
        "name": lab,
        "mgmt": {
            "network": "testbed-mgmt",
            "bridge": MANAGEMENT_BRIDGE,
            "ipv4-subnet": str(management(one.subnet for one in networks if one.subnet)),
            "ipv6-subnet": "",
            "external-access": False,
        },
        "topology": {
            "defaults": {"kind": "linux"},
            "kinds": {"linux": dict(KIND)},
            "nodes": {**nodes, **bridges},
            "links": [
                link for node in linked for link in _links(topology, node, called[node])
            ] if topology else [],
        },
    }  # fmt: skip


def _node(spec: NodeSpec, called: str, options: Options) -> dict[str, Any]:
    labels = {NAME: spec.name, DIGEST: spec.digest}
    node: dict[str, Any] = {"labels": labels}
    if spec.image:
        labels[IMAGE] = spec.image
        node |= {"image": local_name(spec.image), "entrypoint": INIT, "cmd": "machine"}
        node |= {"user": "root", "binds": [f"{options.init}:{INIT}:ro"]}
    else:
        node["image"] = options.image
        node["binds"] = [f"{source}:{place}:ro" for source, place in options.binds.items()]
    if called != spec.name:
        node["hostname"] = spec.name
    if spec.cpus is not None:
        node["cpu"] = float(spec.cpus)
    if spec.memory is not None:
        node["memory"] = f"{spec.memory}B"
    return node


def _links(topology: Topology, node: str, called: str) -> Iterable[dict[str, Any]]:
    for index, port in enumerate(topology.nodes[node].ports):
        yield {
            "type": "veth",
            "mtu": topology.networks[port.network].mtu or MTU,
            "endpoints": [
                {"node": called, "interface": port.name, "mac": port.hardware},
                {"node": bridge_of(port.network), "interface": port_name(node, index)},
            ],
        }


def text(content: Mapping[str, Any]) -> str:
    """Return the content of a topology file as YAML."""
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    written: str = yaml.dump(dict(content), Dumper=dumper, sort_keys=False)
    return written

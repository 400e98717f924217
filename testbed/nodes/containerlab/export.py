"""containerlab: a lab as a topology file that containerlab deploys anywhere.

Nodes are containers of the image that `testbed image build` builds.  A network of two nodes is a
link; a network of more is a node that is a switch, so no bridge of the host is needed.  Nodes have
no management interface, and their interfaces have the names and addresses of the lab
(containerlab.dev, "Topology definition").
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.artifacts.node_image import NAME as IMAGE
from testbed.errors import UsageError
from testbed.exports.base import Export, Exported, LeftOut, Subject, comment, dump, unsaid
from testbed.nodes import wiring
from testbed.nodes.containerlab.clabfile import MTU, SUFFIX, names
from testbed.topology.programs import argv
from testbed.topology.settings import Sysctls

if TYPE_CHECKING:
    from testbed.topology.foreign import Foreign
    from testbed.topology.model import Topology
    from testbed.topology.ports import Port

BRIDGE = "br0"  # on a switch
DIRECT = 2  # members of a network that is a link
HEAD = """\
# Lab {name}, by `testbed export --to containerlab`: containerlab deploy --topo {name}{suffix}
# The image is built by `testbed image build`, which says how to load it.
"""


#: Keys of a port that commands on the node set.
PORTS = ("addresses", "name", "mac", "mtu")


class Containerlab(Export):
    """A topology file."""

    name = "containerlab"
    about = "containerlab: a topology file for `containerlab deploy`"
    says: ClassVar[tuple[str, ...]] = (
        "description", "networks", "links", "nodes.*.networks", "nodes.*.gateway", "nodes.*.cpus",
        "nodes.*.memory", "nodes.*.forward", "nodes.*.sysctls", "nodes.*.routes", "nodes.*.rules",
        "nodes.*.env", "nodes.*.run", "nodes.*.binds", "nodes.*.image", "foreign",
    )  # fmt: skip
    reasons: ClassVar[Mapping[str, str]] = {
        "nodes.*.roles": "containerlab starts no daemons on nodes",
        "containers": "containerlab runs no containers on nodes",
        "*": "containerlab describes nodes and links",
    }

    def export(self, subject: Subject) -> Exported:
        topology = subject.topology
        if topology.foreign:
            return Exported({f"{topology.name}{SUFFIX}": _users(topology.foreign)})
        called = names(topology.nodes)
        left_out = [
            LeftOut((f"nodes.{name}",), f"it is called {other}, because containerlab has that word")
            for name, other in called.items()
            if name != other
        ]
        left_out += unsaid(
            topology, networks=["mtu", "subnet6"], ports=PORTS, six=True, why=self.reasons["*"]
        )
        about = comment(topology.description)
        head = HEAD.format(name=topology.name, suffix=SUFFIX) + (f"# {about}\n" if about else "")
        text = head + dump(_document(topology, called))
        return Exported({f"{topology.name}{SUFFIX}": text}, tuple(left_out))


def _users(foreign: Foreign) -> str:
    """Return a file of containerlab as it is."""
    if foreign.format != Containerlab.name:
        raise UsageError(
            f"{foreign.file} is a file of {foreign.format}, not of {Containerlab.name}",
            hint=f"export it to {foreign.format}",
        )
    if foreign.attached:
        raise UsageError(
            f"the lab {foreign.lab} exists already, and its own file is {foreign.file}",
            hint="use that file",
        )
    return foreign.text


def _document(topology: Topology, called: Mapping[str, str]) -> dict[str, Any]:
    nodes = {called[name]: _node(topology, name, called[name]) for name in topology.nodes}
    links: list[dict[str, Any]] = []
    for network, about in topology.networks.items():
        mtu = about.mtu or MTU
        ends = [
            (called[name], port.name)
            for name, node in topology.nodes.items()
            for port in node.on(network)
        ]
        if len(ends) > DIRECT:
            switch = _switch_name(network, nodes)
            ports = [f"port{number}" for number, _ in enumerate(ends, 1)]
            nodes[switch] = {"exec": list(_bridge(ports))}
            links += [
                _link(mtu, end, (switch, port)) for end, port in zip(ends, ports, strict=True)
            ]
        elif len(ends) == DIRECT:
            links.append(_link(mtu, *ends))
        else:
            links += [_alone(mtu, end) for end in ends]
    return {
        "name": topology.name,
        "topology": {
            "defaults": {"kind": "linux", "image": IMAGE, "network-mode": "none"},
            "nodes": nodes,
            **({"links": links} if links else {}),
        },
    }


def _node(topology: Topology, name: str, called: str) -> dict[str, Any]:
    node, gateway = topology.nodes[name], topology.gateway_of(name)
    commands = [line for port in node.ports for line in _port(port)]
    commands += [f"ip route replace default via {gateway}"] if gateway else []
    commands += [f"ip -{one.family} route replace {one.text}" for one in node.routes]
    commands += [f"ip -{one.family} rule add {one.text}" for one in node.ip_rules]
    sysctls = Sysctls().plain({**wiring.settings(topology, name), **node.sysctls})
    # The engine sets its sysctls before the container has these links.
    links = {port.name for port in node.ports}
    of_links = [one for one in sysctls if not links.isdisjoint(one.replace("/", ".").split("."))]
    commands += [f"sysctl -q -w {one}={sysctls.pop(one)}" for one in of_links]
    commands += [shlex.join(argv(one.line)) for one in node.run]
    return {
        # The entry point of the image does not run on a node.
        **({"image": literal(node.image), "entrypoint": "sleep infinity"} if node.image else {}),
        **({"env": literal(node.env)} if node.env else {}),
        **({"binds": literal(binds(topology, name))} if node.binds else {}),
        **({"hostname": name} if called != name else {}),
        **({"cpu": node.cpus} if node.cpus else {}),
        **({"memory": f"{node.memory}B"} if node.memory else {}),
        **({"sysctls": sysctls} if sysctls else {}),
        **({"exec": literal(commands)} if commands else {}),
    }


def binds(topology: Topology, name: str) -> list[str]:
    """Return the binds of a node with absolute paths on this machine."""
    found = []
    for one in topology.nodes[name].binds:
        source = topology.folder / Path(one.source).expanduser()
        found.append(str(replace(one, source=str(source))))
    return found


def literal(value: Any) -> Any:
    """Return texts in which containerlab finds no variables: it reads two dollar signs as one."""
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, Mapping):
        return {name: literal(one) for name, one in value.items()}
    return [literal(one) for one in value]


def _port(port: Port) -> Iterator[str]:
    """Yield the commands that set up a port."""
    if port.mac:
        yield f"ip link set dev {port.name} address {port.mac}"
    if port.own_mtu:
        yield f"ip link set dev {port.name} mtu {port.own_mtu}"
    for one in port.subnetted:
        yield f"ip address add {one} dev {port.name}"


def _switch_name(network: str, taken: Mapping[str, Any]) -> str:
    name = f"switch-{network}"
    while name in taken:
        name += "-1"
    return name


def _bridge(ports: list[str]) -> Iterator[str]:
    """Yield the commands that join the ports of a switch."""
    yield f"ip link add name {BRIDGE} type bridge"
    for port in ports:
        yield f"ip link set dev {port} master {BRIDGE}"
    yield f"ip link set dev {BRIDGE} up"


def _link(mtu: int, *ends: tuple[str, str]) -> dict[str, Any]:
    return {"endpoints": [f"{node}:{interface}" for node, interface in ends], "mtu": mtu}


def _alone(mtu: int, end: tuple[str, str]) -> dict[str, Any]:
    """Return the only link of a network, which leads nowhere."""
    node, interface = end
    return {"type": "dummy", "endpoint": {"node": node, "interface": interface}, "mtu": mtu}

"""flannel: an overlay with one subnet per node, stored in etcd.

Subnets are reserved before flanneld starts. A key under ``/coreos.com/network/subnets/`` without
a lease and with a node's public address is taken over by the flanneld with that address (flannel,
Documentation/reservations.md). So the subnets are those of the topology, and dockerd need not
wait for flanneld to get its subnet.
"""

from __future__ import annotations

import functools
import json
import uuid
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Any

from testbed.nodes.base import GO, Service
from testbed.nodes.marks import REWIRED, mark, marked
from testbed.roles import firewall
from testbed.roles.base import start
from testbed.roles.docker.section import ROLE as DOCKER
from testbed.roles.docker.section import firewall_of
from testbed.roles.etcd import CLIENT_PORT, endpoint, etcd_step, etcdctl, store_of
from testbed.roles.etcd import SERVICE as ETCD
from testbed.roles.flannel.role import service_of
from testbed.roles.flannel.section import (
    DEFAULT_PORT,
    DEFAULT_VNI,
    FORWARDING6,
    ROLE,
    FlannelSection,
)
from testbed.roles.way import Way
from testbed.spelling import counted
from testbed.steps.step import Step, node_step

if TYPE_CHECKING:
    from testbed.nodes.base import Node as Machine
    from testbed.steps.context import Context
    from testbed.topology.model import Node, Topology

PREFIX = "/coreos.com/network"  #: flanneld's default (--etcd-prefix)
CONFIG_STEP = "flannel config"
#: flanneld exits if the first one is missing, and loads none itself.
MODULES = ("br_netfilter", "vxlan", "tun")
#: Seconds between two checks of its rules by a flanneld: an amount per flannel node, with a
#: minimum that is higher on a virtual machine, which may be emulated.  One check runs iptables
#: twenty times.  The default of 5 s takes half of an emulated processor, and with a hundred nodes
#: all of two processors.
RESYNC, RESYNC_LEAST, RESYNC_LEAST_SLOW = 5, 30, 60
SUBNET_FILE = "/run/flannel/subnet.env"
TXN_OPS = 128  # default limit of operations in one transaction (etcd, --max-txn-ops)


def flannel_step(node: str) -> str:
    """Return the name of the step after which a node has its peers' routes."""
    return f"flannel {node}"


def load_modules(machine: Machine) -> None:
    """Load flanneld's kernel modules if the node has its own operating system.

    Others, such as Pods, run on the kernel of a machine that is not theirs to change.
    """
    if machine.has_system:
        machine.run(["modprobe", "--all", *MODULES])


def resync(nodes: int, *, slow: bool) -> str:
    """Return flanneld's option for the interval of its rule checks.

    ``nodes`` is the number of flannel nodes. ``slow`` is for nodes that may be emulated.
    """
    least = RESYNC_LEAST_SLOW if slow else RESYNC_LEAST
    return f"--iptables-resync={max(least, RESYNC * nodes)}"


def options(topology: Topology, flannel: FlannelSection, node: str) -> list[str]:
    """Return flanneld's options for the keys of the file that are no part of the network."""
    found = []
    if node in flannel.public_ip:
        found.append(f"--public-ip={flannel.public_ip[node]}")
    if flannel.ipv6:
        # The interface may have several, and flanneld would choose.
        found.append(f"--public-ipv6={flannel.address6(topology, node)}")
    if flannel.renew_margin is not None:
        found.append(f"--subnet-lease-renew-margin={flannel.renew_margin}")
    return found


def network_config(flannel: FlannelSection) -> dict[str, Any]:
    """Return the value of ``/coreos.com/network/config``.

    See flannel, Documentation/configuration.md.
    """
    backend: dict[str, Any] = {"Type": flannel.backend}
    if flannel.port is not None:
        backend["Port"] = flannel.port
    if flannel.backend == "vxlan":
        backend["VNI"] = flannel.vni
    if flannel.outer_mtu is not None:
        backend["MTU"] = flannel.outer_mtu
    if flannel.direct_routing:
        backend["DirectRouting"] = True
    found: dict[str, Any] = {
        "Network": str(flannel.network),
        "SubnetLen": min(s.prefixlen for s in flannel.subnets.values()),
        "SubnetMin": str(min(s.network_address for s in flannel.subnets.values())),
    }
    if six := flannel.ipv6:
        found["EnableIPv6"] = True
        found["IPv6Network"] = str(six.network)
        found["IPv6SubnetLen"] = min(s.prefixlen for s in six.subnets.values())
        found["IPv6SubnetMin"] = str(min(s.network_address for s in six.subnets.values()))
    return found | {"Backend": backend}


def subnet_key(subnet: IPv4Network, prefix: str = PREFIX, six: IPv6Network | None = None) -> str:
    """Return the etcd key of a subnet.

    For 100.96.1.0/24 it is ``.../subnets/100.96.1.0-24``, with an IPv6 subnet beside it
    ``.../subnets/100.96.1.0-24&fd00:1::-64`` (flannel, pkg/subnet/subnet.go).
    """
    words = "&".join(str(one).replace("/", "-") for one in (subnet, six) if one)
    return f"{prefix}/subnets/{words}"


def prefixes(flannel: FlannelSection) -> dict[str, FlannelSection]:
    """Return the section for each network of flannel, by the prefix of its keys in etcd."""
    return {PREFIX: flannel} | {
        f"/{name}/network": other for name, other in flannel.further().items()
    }


def reservations(topology: Topology) -> dict[str, str]:
    """Return the etcd keys and values to write before any flanneld starts.

    They must be written in this order.
    """
    keys = {}
    for prefix, flannel in prefixes(FlannelSection.of(topology)).items():
        for node, subnet in flannel.subnets.items():
            six = flannel.ipv6.subnets[node] if flannel.ipv6 else None
            public = flannel.address6(topology, node)
            value = {
                "PublicIP": str(flannel.address(topology, node)),
                "PublicIPv6": public and str(public),
            }
            keys[subnet_key(subnet, prefix, six)] = json.dumps(value)
        keys[f"{prefix}/config"] = json.dumps(network_config(flannel))
    return keys


def steps(topology: Topology, node: Node) -> Iterable[Step]:
    """Return the steps for flanneld on a node, and for its configuration in etcd."""
    flannel, etcd = FlannelSection.of(topology), store_of(topology)
    if node is topology.with_role(ROLE)[0]:
        yield Step(
            CONFIG_STEP,
            f"{', '.join(_way(flannel))} over {' and '.join(_networks(flannel))}, "
            f"{counted(len(flannel.subnets), 'subnet')}",
            (etcd_step(etcd.name),),
            ahead=node.name == etcd.name,
            act=_configure,
        )

    def act(context: Context) -> tuple[str, bool]:
        return _start(context, node, flannel)

    needs = (CONFIG_STEP, node_step(node.name))
    about = f"flanneld {flannel.backend} with {_subnets(flannel, node.name)}"
    yield Step(flannel_step(node.name), about, needs, heavy=True, act=act)
    for name, other in flannel.further().items():
        about = f"flanneld {', '.join(_way(other))} with {_subnets(other, node.name)}"
        yield Step(
            f"{flannel_step(node.name)} {name}",
            about,
            (*needs, flannel_step(node.name)),
            heavy=True,
            act=functools.partial(_start, node=node, flannel=other, name=name),
        )


def _networks(flannel: FlannelSection) -> Iterator[str]:
    yield str(flannel.network)
    if flannel.ipv6:
        yield str(flannel.ipv6.network)


def _subnets(flannel: FlannelSection, node: str) -> str:
    """Return the subnets of a node in words."""
    six = f" and {flannel.ipv6.subnets[node]}" if flannel.ipv6 else ""
    return f"{flannel.subnets[node]}{six}"


def _way(flannel: FlannelSection) -> Iterator[str]:
    """Yield the backend, and those of its settings that are not flannel's defaults."""
    yield flannel.backend
    if flannel.port != DEFAULT_PORT.get(flannel.backend):
        yield f"port {flannel.port}"
    if flannel.vni != DEFAULT_VNI:
        yield f"VNI {flannel.vni}"
    if flannel.outer_mtu is not None:
        yield f"MTU {flannel.outer_mtu}"
    if flannel.direct_routing:
        yield "direct routing"
    if not flannel.allow_direct_routing:
        yield "closed to containers without published ports"


def _configure(context: Context) -> tuple[str, bool]:
    topology = context.topology
    node = context.node(store_of(topology).name)
    keys = reservations(topology)
    wanted = json.dumps(keys, sort_keys=True)
    words = counted(sum("PublicIP" in value for value in keys.values()), "subnet") + " reserved"
    if _epoch(context) is not None and marked(node, "flannel-keys") == wanted:
        return words, False
    # An existing key may have a lease: leave it to the flanneld that owns it. If the node has
    # another address now, its flanneld would not find the key, and choose another subnet.
    there = _owners(context)
    changes = [
        f"put {key} {_quote(value)}\n"
        for key, value in keys.items()
        if there.get(key) != json.loads(value).get("PublicIP", "")
    ]
    # A flanneld takes the first key with its address: that of another subnet, which its node had
    # in an earlier file, must go.
    owners = {json.loads(value).get("PublicIP", "") for value in keys.values()}
    old = (key for key, owner in there.items() if key not in keys and owner in owners)
    changes = [*(f"del {key}\n" for key in old), *changes]
    # The network comes last: a flanneld never sees it without the reservations.
    for first in range(0, len(changes), TXN_OPS):
        operations = "".join(changes[first : first + TXN_OPS])
        node.run(etcdctl(topology, context, "txn"), input=f"\n{operations}\n\n".encode())
    if _epoch(context) is None:
        mark(node, "flannel-epoch", uuid.uuid4().hex)
    mark(node, "flannel-keys", wanted)
    return words, True


def _start(
    context: Context, node: Node, flannel: FlannelSection, name: str = ""
) -> tuple[str, bool]:
    """Start flanneld on a node, for the main network or for the further one of this name."""
    topology = context.topology
    machine = context.node(node.name)
    if DOCKER in node.roles:  # either of the two may come first
        firewall.choose(machine, firewall_of(topology, node.name))
    load_modules(machine)
    if flannel.ipv6:
        machine.run(FORWARDING6)
    # A new etcd has no leases: every flanneld must register again.
    # A link that was created again has lost flanneld's device and routes.
    life = f"{_epoch(context)}.{marked(machine, REWIRED) or ''}"
    digest = f"{topology.node_digest(node.name)}.{life}"
    argv = (
        machine.provide(context.store.binary("flanneld")),
        f"--etcd-endpoints={endpoint(topology)}",
        f"--iface={topology.interface(node.name)}",
        *_place(name),
        resync(len(flannel.subnets), slow=machine.slowness > 1),
        *options(topology, flannel, node.name),
    )
    service = Service(service_of(name), argv, env=GO, notify=True, digest=digest)
    etcd = store_of(topology).name
    way = Way(context, node.name, etcd, ETCD, str(topology.address(etcd)), CLIENT_PORT)
    changed = start(machine, service, timeout=180, context=context, seen=way.seen)
    return (
        f"flanneld {context.store.version('flanneld')}, {_subnets(flannel, node.name)}",
        changed,
    )


def _place(name: str) -> tuple[str, ...]:
    """Return the options for a network's files, keys and rules.

    Each flanneld that writes rules empties flannel's chains when it starts, so only that of the
    main network does (flannel, pkg/trafficmngr/iptables).
    """
    if not name:
        return f"--subnet-file={SUBNET_FILE}", "--ip-masq"
    return (
        f"--etcd-prefix=/{name}/network",
        f"--subnet-file=/run/flannel/{name}.env",
        "--iptables-forward-rules=false",
    )


def _epoch(context: Context) -> str | None:
    """Return an ID of this etcd's data; None if it is not configured yet."""
    node = context.node(store_of(context.topology).name)
    epoch = marked(node, "flannel-epoch")
    if epoch is None or not node.wakes:
        return epoch
    # A machine restored from a snapshot may have an etcd that was configured before the snapshot.
    return f"{epoch}.{node.get('/etc/machine-id').decode().strip()}"


def _owners(context: Context) -> dict[str, str]:
    """Return the public address of the node of each subnet in etcd, by key."""
    if _epoch(context) is None:
        return {}  # nothing else writes to an etcd that has just started
    node = context.node(store_of(context.topology).name)
    found = {}
    for prefix in prefixes(FlannelSection.of(context.topology)):
        asked = ("get", "--prefix", f"{prefix}/subnets/")
        lines = node.run(etcdctl(context.topology, context, *asked)).stdout.splitlines()
        for key, value in zip(lines[::2], lines[1::2], strict=True):
            found[key] = json.loads(value).get("PublicIP", "")
    return found


def _quote(value: str) -> str:
    """Quote a value for an etcdctl transaction, as a Go string.

    For ASCII that is equal to a string of JSON.
    """
    return json.dumps(value)

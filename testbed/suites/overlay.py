"""Shared parts of the flannel checks: hosts, packets, etcd, a third host."""

from __future__ import annotations

import base64
import contextlib
import json
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Any

import pytest

from testbed.claims.observation import Observation
from testbed.errors import CommandError, NoAnswer
from testbed.observe.capture import Capture, Packet, captures
from testbed.pytest_checks import features
from testbed.roles.etcd import SERVICE as ETCD
from testbed.roles.etcd import endpoint, etcdctl, member, store_of
from testbed.roles.flannel.daemon import PREFIX, SUBNET_FILE, load_modules, subnet_key
from testbed.roles.flannel.role import SERVICE
from testbed.roles.flannel.section import FlannelSection
from testbed.suites.helpers import (
    IMAGE,
    Inside,
    link,
    observe_until,
    outside_node,
    patient,
    ping,
    routes,
    scratch_machine,
    undone,
    wait_until,
    wait_while_runs,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.labs.live import LiveContainer, LiveLab
    from testbed.nodes.base import Node, Result
    from testbed.nodes.place import Place, Runs
    from testbed.topology.model import Topology

SUBNETS = f"{PREFIX}/subnets"
UNANSWERED = "context deadline exceeded"  # etcdctl's message if no server answers
OTHER_PREFIX = "/testbed/other-network"
DEVICES = {"udp": "flannel0", "vxlan": "flannel.1"}
ETCD_SECONDS = 15.0  #: timeout for etcd, which answers in milliseconds; used only once if it hangs


def overlay(lab: LiveLab) -> FlannelSection:
    """The lab's flannel settings."""
    return FlannelSection.of(lab.topology)


@dataclass(frozen=True)
class End:
    """One host of the overlay, with a container on it."""

    node: Node
    address: str  # the host's own address
    interface: str  # the link with that address, which sends the tunnelled packets
    subnet: IPv4Network
    container: LiveContainer

    @property
    def name(self) -> str:
        return self.node.name


def ends(lab: LiveLab) -> tuple[End, End]:
    """Return the first two hosts of the overlay that have a container with the page.

    From the first host the first container, from the second host the last: the
    documents' container-1 and container-2 (or 4), also in labs with more.
    """
    found: list[End] = []
    for node in lab.topology.with_role("flannel"):
        pages = [c for c in lab.topology.running_on(node.name) if c.image == IMAGE]
        bridged = [c.name for c in pages if c.network == "bridge"]
        if bridged and len(found) < 2:
            found.append(
                End(
                    node=lab.node(node.name),
                    address=str(lab.topology.address(node.name)),
                    interface=lab.topology.interface(node.name),
                    subnet=overlay(lab).subnets[node.name],
                    container=lab.container(bridged[-1 if found else 0]),
                )
            )
    if len(found) < 2:
        pytest.skip("the lab has no two flannel hosts with a container of the nginx image")
    return found[0], found[1]


def mtu_of(lab: LiveLab, observe: Observation, end: End) -> int:
    """Return the MTU for containers of a host: that of its link, less what the backend adds."""
    own = link(observe, end.node, end.interface)["mtu"]
    return overlay(lab).mtu(lab.topology, end.name, own)


#: The hosts that document 003 prints, by their addresses: the subnets of their containers.
PRINTED = {
    "udp": {"10.168.0.2": "100.96.1.0/24", "10.168.0.3": "100.96.2.0/24"},
    "vxlan": {"10.168.0.3": "10.1.16.0/24"},
}
PRINTED_CONTAINERS = 2  # on the second host: container-2 is 100.96.2.3, and the fourth is there


def has_printed_plan(topology: Topology) -> bool:
    """True if the lab has the host and container addresses that document 003 prints."""
    flannel = FlannelSection.find(topology)
    if flannel is None or flannel.backend not in PRINTED:
        return False
    hosts = topology.with_role("flannel")[:2]
    plan = {str(topology.address(h.name)): str(flannel.subnets[h.name]) for h in hosts}
    bridged = [c for c in topology.running_on(hosts[-1].name) if c.network == "bridge"]
    return PRINTED[flannel.backend].items() <= plan.items() and len(bridged) == PRINTED_CONTAINERS


def quoted(lab: LiveLab, printed: str, own: object) -> str:
    """Return the printed value if the lab has the document's plan, else the lab's."""
    return printed if has_printed_plan(lab.topology) else str(own)


def need(lab: LiveLab, *wanted: str) -> None:
    """Skip if the lab lacks something: for fixtures that outlive one test."""
    missing = sorted(set(wanted) - features(lab.topology))
    if missing:
        pytest.skip(f"the lab has no {', '.join(missing)}")


# -- packets -------------------------------------------------------------


def bare(packet: Packet) -> Packet:
    """Return the container's packet: the content of flannel's datagram, or the packet."""
    tunnelled = packet.vxlan()
    return tunnelled[1] if tunnelled else packet.inner_ip() or packet


def requests(capture: Capture, source: str, target: str) -> list[Packet]:
    """Return the packets that are, or carry, an echo request between two addresses."""
    found = []
    for packet in capture.packets:
        inner = bare(packet)
        if inner.is_echo_request and (inner.src, inner.dst) == (source, target):
            found.append(packet)
    return found


TUNNELLED = "icmp or udp port 8285 or udp port 8472"


@dataclass(frozen=True)
class Walk:
    """The path of one echo request from the first end's container to the other's.

    ``points`` are the captures in the order of the path, keyed ``where interface``.
    """

    ends: tuple[End, End]
    points: dict[str, Capture]
    answered: bool

    def at(self, point: str) -> Packet:
        """Return the request at a point, with its encapsulation.  Fails if it did not pass."""
        first, second = (end.container.address for end in self.ends)
        found = requests(self.points[point], first, second)
        assert found, f"the echo request did not pass {point}"
        return found[0]

    def inner(self, point: str) -> Packet:
        """Return the container's own packet at a point."""
        return bare(self.at(point))

    def lines(self) -> str:
        """Return the request at every point as text, to keep as evidence."""
        first, second = (end.container.address for end in self.ends)
        out = []
        for point, capture in self.points.items():
            found = requests(capture, first, second)
            out.append(f"{point}: {found[0] if found else 'not seen'}")
            if found and bare(found[0]) is not found[0]:
                out.append(f"    which carries {bare(found[0])}")
        return "\n".join(out)


def walk(lab: LiveLab) -> Walk:
    """Send an echo request from end to end, and capture on every interface it passes."""
    one, other = ends(lab)
    device = overlay(lab).device
    outward = ["docker0", *([device] if device else [])]
    places: list[tuple[Place, str, str]] = [(one.container, "eth0", "icmp")]
    points = [f"{one.container.name} eth0"]
    for end, turn in ((one, 1), (other, -1)):
        for interface in [*outward, end.interface][::turn]:
            tunnelled = interface == end.interface
            places.append((end.node, interface, TUNNELLED if tunnelled else "icmp"))
            points.append(f"{end.name} {interface}")
    places.append((other.container, "eth0", "icmp"))
    points.append(f"{other.container.name} eth0")
    with captures(*places) as seen:
        answered = ping(Observation(), one.container, other.container.address)
    return Walk((one, other), dict(zip(points, seen, strict=True)), answered)


@contextlib.contextmanager
def stopped(*nodes: Node, service: str = SERVICE) -> Iterator[None]:
    """Stop flanneld, or another service, on some nodes for the block (SIGSTOP)."""
    pids = [(node, node.services()[service].pid) for node in nodes]
    assert all(pid for _, pid in pids), f"{service} does not run"
    try:
        for node, pid in pids:
            node.run(["kill", "-STOP", str(pid)])
        wait_until(
            lambda: all(_state(node, pid) == "T" for node, pid in pids), f"{service} to stop"
        )
        yield
    finally:
        for node, pid in pids:
            node.run(["kill", "-CONT", str(pid)])


def _state(node: Node, pid: int) -> str:
    """Return the state of a process: the third field of /proc/PID/stat (proc(5))."""
    return node.get(f"/proc/{pid}/stat").decode().rpartition(")")[2].split()[0]


# -- etcd ----------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """One key of etcd; ``lease`` is 0 without a lease."""

    name: str
    value: Any
    lease: int


@contextlib.contextmanager
def other_network(lab: LiveLab, backend: str) -> Iterator[str]:
    """Create a second flannel network in the lab's etcd; yields its key prefix."""
    config = {"Network": "198.18.0.0/16", "Backend": {"Type": backend}}  # RFC 2544: for tests
    with key(lab, f"{OTHER_PREFIX}/config", config):
        yield OTHER_PREFIX


def etcd_node(lab: LiveLab) -> Node:
    """Return the node that etcd runs on."""
    return lab.node(store_of(lab.topology).name)


def etcd(lab: LiveLab, *args: str, input: bytes | None = None, check: bool = True) -> Result:
    """Run etcdctl on etcd's node.

    Raises NoAnswer if etcd does not answer: from the second time on at once, so that an etcd
    that hangs does not delay each check of a run.
    """
    node = etcd_node(lab)
    if silent := lab.silent.get(ETCD):
        raise NoAnswer(silent.message, hint=silent.hint)
    seconds = f"{patient(node, ETCD_SECONDS):g}s"
    bounds = (f"--dial-timeout={seconds}", f"--command-timeout={seconds}")
    argv = etcdctl(lab.topology, lab.context, *bounds, *args)
    result = node.run(argv, input=input, check=False)
    if not result.ok and UNANSWERED in result.stderr:
        lab.silent[ETCD] = NoAnswer(
            f"etcd on {node.name} does not answer within {seconds.replace('s', ' s')}",
            hint=f"`testbed logs {node.name} etcd` shows its log, `testbed fault ls` "
            "shows whether it is stopped",
        )
        raise lab.silent[ETCD]
    if check and not result.ok:
        raise CommandError(
            argv,
            where=node.name,
            status=result.status,
            stdout=result.stdout,
            stderr=result.stderr,
        )
    return result


def keys(lab: LiveLab, prefix: str = SUBNETS) -> dict[str, Key]:
    """Return the keys below a prefix, by name, with their values decoded."""
    answer = etcd(lab, "get", "--prefix", prefix, "-w", "json").json()
    found = {}
    for entry in answer.get("kvs", ()):
        name = base64.b64decode(entry["key"]).decode()
        value = json.loads(base64.b64decode(entry["value"]))
        found[name] = Key(name, value, entry.get("lease", 0))
    return found


@contextlib.contextmanager
def key(lab: LiveLab, name: str, value: Any) -> Iterator[None]:
    """Set a key in etcd for the time of the block."""
    try:
        etcd(lab, "put", name, json.dumps(value))
        yield
    finally:
        etcd(lab, "del", name)


# -- a VXLAN of our own ----------------------------------------------------

OWN_VXLAN = "vxlan42"
OWN_NETWORK = IPv4Network("198.18.42.0/24")  # RFC 2544: for tests


@contextlib.contextmanager
def own_vxlan(observe: Observation, one: End, other: End) -> Iterator[str]:
    """Create a VXLAN between two hosts beside flannel's; yield its device.

    It replicates at the head end.  Its ends have the first two addresses of :data:`OWN_NETWORK`.
    """
    settings = ["type", "vxlan", "id", "42", "dstport", "4789"]
    with contextlib.ExitStack() as stack:
        for number, here, there in ((1, one, other), (2, other, one)):
            add = ["ip", "link", "add", OWN_VXLAN, *settings, "dev", here.interface]
            add += ["local", here.address, "remote", there.address]
            delete = ["ip", "link", "delete", OWN_VXLAN]
            stack.enter_context(undone(observe, here.node, add, delete))
            address = f"{OWN_NETWORK[number]}/{OWN_NETWORK.prefixlen}"
            lines = [f"address add {address} dev {OWN_VXLAN}", f"link set {OWN_VXLAN} up"]
            here.node.run(["ip", "-batch", "-"], input="\n".join(lines).encode())
        yield OWN_VXLAN


# -- a third host ----------------------------------------------------------

UPLINK = "third0"  # the gateway's end
GATEWAY_SIDE, HOST_SIDE = "192.0.2.1", "192.0.2.2"  # RFC 5737, TEST-NET-1


def leased(observe: Observation, where: Runs) -> dict[str, str]:
    """Return the contents of flanneld's subnet.env on a host."""
    text = observe.run(where, ["cat", SUBNET_FILE]).stdout
    return dict(line.split("=", 1) for line in text.split())


def third_subnet(lab: LiveLab) -> IPv4Network:
    """Return the subnet after the lab's last one: 100.96.3.0/24 in the documents' labs."""
    last = max(overlay(lab).subnets.values())
    return IPv4Network((int(last.broadcast_address) + 1, last.prefixlen))


@dataclass(frozen=True, kw_only=True)
class ThirdHost(Inside):
    """One more host, in a subnet of its own behind the lab's gateway.

    It has no Docker: an address on its ``lo`` stands in for a container.
    """

    lab: LiveLab
    interface: str
    address: str = HOST_SIDE

    @contextlib.contextmanager
    def flanneld(
        self, *options: str, iface: str = "", prefix: str = PREFIX
    ) -> Iterator[IPv4Network]:
        """Run flanneld; yield the subnet that it has leased, and release it afterwards.

        ``iface`` defaults to the host's own interface.  Raises Ended if flanneld ends
        before it has a subnet, Unsettled if it has none in time.
        """
        argv = [
            self.node.provide(self.lab.context.store.binary("flanneld")),
            f"--etcd-endpoints={endpoint(self.lab.topology)}",
            f"--etcd-prefix={prefix}",
            f"--subnet-file={SUBNET_FILE}",
            "--iptables-forward-rules=false",
            f"--iface={iface or self.interface}",
            *options,
        ]
        etcd(self.lab, "get", f"{prefix}/config")  # otherwise flanneld would wait forever
        self.run(["rm", "-f", SUBNET_FILE])
        try:
            with self.spawn(argv) as running:
                wait_while_runs(
                    running,
                    lambda: self.run(["test", "-s", SUBNET_FILE], check=False).ok,
                    "the lease of the third host's flanneld",
                )
                own = leased(Observation(), self)["FLANNEL_SUBNET"]
                yield IPv4Network(own, strict=False)
        finally:
            self._give_back(prefix)
            # The device of vxlan outlives flanneld, that of udp does not.
            for device in {DEVICES["vxlan"], overlay(self.lab).device} - {""}:
                self.run(["ip", "link", "delete", device], check=False)

    def _give_back(self, prefix: str) -> None:
        for held in keys(self.lab, f"{prefix}/subnets").values():
            if held.value["PublicIP"] == self.address:
                etcd(self.lab, "del", held.name)
                if held.lease:
                    etcd(self.lab, "lease", "revoke", f"{held.lease:x}", check=False)

    @contextlib.contextmanager
    def joined(self, *options: str) -> Iterator[IPv4Network]:
        """Join the host to the lab's overlay, with :func:`third_subnet`.

        The first address of the subnet is its own, in place of a container.
        """
        wanted = third_subnet(self.lab)
        for each in self.lab.topology.with_role("flannel"):
            wait_no_route(Observation(), self.lab.node(each.name), wanted)  # of a previous host
        with key(self.lab, subnet_key(wanted), {"PublicIP": self.address, "PublicIPv6": None}):
            self.run(["ip", "address", "replace", f"{wanted[1]}/32", "dev", "lo"])
            with self.flanneld(*options) as subnet:
                yield subnet

    def wait_known(self, observe: Observation, subnet: IPv4Network, *hosts: End) -> None:
        """Wait until flanneld of the host and of others have added each other's subnets.

        With udp only flanneld itself knows them, so only passing packets show it.
        """
        if overlay(self.lab).backend == "udp":
            far = str(subnet[1])
            for end in hosts:

                def passes(notes: Observation, end: End = end) -> bool:
                    return ping(notes, end.container, far, seconds=1.0)

                observe_until(observe, passes, f"an answer of {far} to {end.container.name}")
            return
        for end in hosts:
            wait_route(observe, end.node, subnet)
            wait_route(observe, self, end.subnet)


def wait_route(observe: Observation, place: Runs, network: IPv4Network) -> dict[str, Any]:
    """Wait until a host has any route to a subnet; flanneld adds it last of all."""

    def look(notes: Observation) -> dict[str, Any] | None:
        return next(iter(routes(notes, place, "exact", str(network))), None)

    return observe_until(observe, look, f"a route of {place.name} to {network}")


def wait_no_route(observe: Observation, place: Runs, network: IPv4Network) -> None:
    """Wait until a host has no route to a subnet.

    flanneld removes those of hosts that left.
    """

    def look(notes: Observation) -> bool:
        return not routes(notes, place, "exact", str(network))

    observe_until(observe, look, f"the end of the route of {place.name} to {network}")


@contextlib.contextmanager
def third_host(lab: LiveLab, interface: str = "eth0") -> Iterator[ThirdHost]:
    """Create a third host with one interface, in its own network stack on the gateway."""
    gateway = outside_node(lab)
    store = member(lab.topology)
    assert store is not None
    if not lab.topology.reaches(gateway.name, store.name):
        pytest.skip(f"{gateway.name}, the lab's gateway, cannot reach etcd on {store.name}")
    if lab.topology.existing and gateway.name not in lab.topology.installs:
        pytest.skip(f"{gateway.name} is a machine that exists already, and gets no flanneld")
    load_modules(gateway)
    within = [
        # The other end goes to the network namespace of the gateway's init.
        f"link add {interface} type veth peer name {UPLINK} netns 1",
        f"address add {HOST_SIDE}/24 dev {interface}",
        f"link set {interface} up",
    ]
    beside = [f"address add {GATEWAY_SIDE}/24 dev {UPLINK}", f"link set {UPLINK} up"]
    with scratch_machine(gateway, "third") as inside:
        try:
            inside.run(["ip", "-batch", "-"], input="\n".join(within).encode())
            gateway.run(["ip", "-batch", "-"], input="\n".join(beside).encode())
            inside.run(["ip", "route", "add", "default", "via", GATEWAY_SIDE])
            yield ThirdHost(inside.node, inside.name, inside.prefix, lab=lab, interface=interface)
        finally:
            gateway.run(["ip", "link", "delete", UPLINK], check=False)

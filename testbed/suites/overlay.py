"""What the checks of flannel share: the two ends of an overlay, a walk between them, a third host."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Any

import pytest

from testbed.errors import LabError, TimeoutExpired
from testbed.observe.capture import Capture, Packet, captures
from testbed.pytest_plugin import features
from testbed.roles.containers import PAGE_IMAGE
from testbed.roles.etcd import endpoint, etcdctl
from testbed.roles.flannel import PREFIX, SERVICE, subnet_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from testbed.lab.live import LiveContainer, LiveLab
    from testbed.nodes.base import Node, Result, Running

SUBNETS = f"{PREFIX}/subnets"
DEVICES = {"udp": "flannel0", "vxlan": "flannel.1"}
WAIT_SECONDS = 10.0
POLL_SECONDS = 0.01


@dataclass(frozen=True)
class End:
    """One host of the overlay, with a container on it."""

    node: Node
    address: str  # the host's own
    subnet: IPv4Network
    container: LiveContainer

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def docker0(self) -> str:
        """docker0's address: the first one of the host's subnet."""
        return str(self.subnet[1])


def ends(lab: LiveLab) -> tuple[End, End]:
    """The first two hosts of the overlay that have a container with the page."""
    flannel = lab.topology.flannel
    assert flannel is not None
    found = []
    for node in lab.topology.with_role("flannel"):
        pages = [c for c in lab.topology.containers_on(node.name) if c.image == PAGE_IMAGE]
        bridged = [c.name for c in pages if c.network == "bridge"]
        if bridged and len(found) < 2:
            found.append(
                End(
                    node=lab.node(node.name),
                    address=str(lab.topology.address(node.name)),
                    subnet=flannel.subnets[node.name],
                    container=lab.container(bridged[0]),
                )
            )
    if len(found) < 2:
        pytest.skip("the lab has no two flannel hosts with a container of the nginx image")
    return found[0], found[1]


def need(lab: LiveLab, *wanted: str) -> None:
    """Skip where the lab lacks something: for fixtures that outlive one test."""
    missing = sorted(set(wanted) - features(lab))
    if missing:
        pytest.skip(f"the lab has no {', '.join(missing)}")


def eventually(seen: Callable[[], object], seconds: float = WAIT_SECONDS) -> bool:
    """Poll until ``seen()`` is true; False if it is not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not seen():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def links(where: Node | LiveContainer | ThirdHost) -> dict[str, dict[str, Any]]:
    """``ip -j -d addr``, by interface."""
    listed = where.run(["ip", "-j", "-d", "addr"]).json() or []
    return {link["ifname"]: link for link in listed if "ifname" in link}


def addresses(link: dict[str, Any]) -> list[str]:
    """The IPv4 addresses of an interface, as ``local/prefixlen``."""
    info = [a for a in link["addr_info"] if a["family"] == "inet"]
    return [f"{a['local']}/{a['prefixlen']}" for a in info]


def routes(where: Node | LiveContainer | ThirdHost) -> dict[str, dict[str, Any]]:
    """``ip -j -d route``, by destination."""
    listed = where.run(["ip", "-j", "-d", "route"]).json() or []
    return {route["dst"]: route for route in listed}


# -- packets -------------------------------------------------------------


def ping(where: LiveContainer | ThirdHost, address: str, *options: str) -> Result:
    """One echo request, and at most a second's wait for its reply."""
    argv = ["ping", "-n", "-c", "1", "-W", "1", *options, address]
    return where.run(argv, check=False)


def page(where: LiveContainer, address: str) -> dict[str, str]:
    """The page of the server at an address: its name, and the client that it saw."""
    argv = ["curl", "-sS", "--max-time", "3", f"http://{address}/"]
    answer: dict[str, str] = where.run(argv).json()
    return answer


def client_of(answer: dict[str, str]) -> str:
    """The client's address, as the server saw it."""
    return answer["client"].rpartition(":")[0]


def bare(packet: Packet) -> Packet:
    """The container's packet: what a datagram of flannel's holds, or the packet as it is."""
    tunnelled = packet.vxlan()
    return tunnelled[1] if tunnelled else packet.inner_ip() or packet


def requests(capture: Capture, source: str, target: str) -> list[Packet]:
    """The packets of a capture that are, or carry, an echo request between two addresses."""
    found = []
    for packet in capture.packets:
        inner = bare(packet)
        if inner.is_echo_request and (inner.src, inner.dst) == (source, target):
            found.append(packet)
    return found


TUNNELLED = "icmp or udp port 8285 or udp port 8472"


@dataclass(frozen=True)
class Walk:
    """The way of one echo request from the first end's container to the other's.

    ``points`` are the captures in the order of the way, by ``where interface``.
    """

    ends: tuple[End, End]
    points: dict[str, Capture]
    answered: bool

    def at(self, point: str) -> Packet:
        """The request as it passed a point, in whatever it was wrapped.  Fails if it did not."""
        first, second = (end.container.address for end in self.ends)
        found = requests(self.points[point], first, second)
        assert found, f"the echo request did not pass {point}"
        return found[0]

    def inner(self, point: str) -> Packet:
        """The container's own packet at a point."""
        return bare(self.at(point))

    def lines(self) -> str:
        """The request at every point, to keep as evidence."""
        first, second = (end.container.address for end in self.ends)
        out = []
        for point, capture in self.points.items():
            found = requests(capture, first, second)
            out.append(f"{point}: {found[0] if found else 'not seen'}")
            if found and bare(found[0]) is not found[0]:
                out.append(f"    which carries {bare(found[0])}")
        return "\n".join(out)


def walk(lab: LiveLab) -> Walk:
    """Send an echo request from end to end, and watch every interface that it passes."""
    one, other = ends(lab)
    flannel = lab.topology.flannel
    assert flannel is not None
    device = DEVICES.get(flannel.backend)
    outward = ["docker0", *([device] if device else []), "eth0"]
    places = [(one.container, "eth0", "icmp")]
    points = [f"{one.container.name} eth0"]
    for end, interfaces in ((one, outward), (other, outward[::-1])):
        for interface in interfaces:
            filter = TUNNELLED if interface == "eth0" else "icmp"
            places.append((end.node, interface, filter))  # type: ignore[arg-type]
            points.append(f"{end.name} {interface}")
    places.append((other.container, "eth0", "icmp"))
    points.append(f"{other.container.name} eth0")
    with captures(*places) as seen:
        answered = ping(one.container, other.container.address).ok
    return Walk((one, other), dict(zip(points, seen, strict=True)), answered)


@contextlib.contextmanager
def stopped(*nodes: Node) -> Iterator[None]:
    """Keep flanneld from running on some nodes (SIGSTOP), and let it go on afterwards."""
    pids = [(node, node.services()[SERVICE].pid) for node in nodes]
    try:
        for node, pid in pids:
            node.run(["kill", "-STOP", str(pid)])
            assert eventually(lambda node=node, pid=pid: _state(node, pid) == "T")
        yield
    finally:
        for node, pid in pids:
            node.run(["kill", "-CONT", str(pid)])


def _state(node: Node, pid: int) -> str:
    """The state of a process: the third field of /proc/PID/stat (proc(5))."""
    return node.get(f"/proc/{pid}/stat").decode().rpartition(")")[2].split()[0]


# -- etcd ----------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """One key of etcd; ``lease`` is 0 for one without."""

    name: str
    value: Any
    lease: int


def etcd_node(lab: LiveLab) -> Node:
    """The node that etcd runs on."""
    assert lab.topology.etcd is not None
    return lab.node(lab.topology.etcd.name)


def etcd(lab: LiveLab, *args: str, input: bytes | None = None, check: bool = True) -> Result:
    """Run etcdctl on etcd's node."""
    argv = etcdctl(lab.topology, lab.context, *args)
    return etcd_node(lab).run(argv, input=input, check=check)


def keys(lab: LiveLab, prefix: str = SUBNETS) -> dict[str, Key]:
    """The keys below a prefix, by name, with their values decoded."""
    answer = etcd(lab, "get", "--prefix", prefix, "-w", "json").json()
    found = {}
    for entry in answer.get("kvs", ()):
        name = base64.b64decode(entry["key"]).decode()
        value = json.loads(base64.b64decode(entry["value"]))
        found[name] = Key(name, value, entry.get("lease", 0))
    return found


@contextlib.contextmanager
def key(lab: LiveLab, name: str, value: Any) -> Iterator[None]:
    """A key in etcd, for as long as the block runs."""
    try:
        etcd(lab, "put", name, json.dumps(value))
        yield
    finally:
        etcd(lab, "del", name)


# -- a third host ----------------------------------------------------------

NETNS = "third"
UPLINK = "third0"  # the gateway's end
GATEWAY_SIDE, HOST_SIDE = "192.0.2.1", "192.0.2.2"  # RFC 5737, TEST-NET-1
OTHER_PREFIX = "/testbed/other-network"  # a flannel network of its own, in the lab's etcd


def third_subnet(lab: LiveLab) -> IPv4Network:
    """The subnet after the last one of the lab's hosts: 100.96.3.0/24 in the documents' labs."""
    flannel = lab.topology.flannel
    assert flannel is not None
    last = max(flannel.subnets.values())
    return IPv4Network((int(last.broadcast_address) + 1, last.prefixlen))


class ThirdHost:
    """One more host, in a subnet of its own behind the lab's gateway.

    A network namespace of the gateway with one interface; flanneld runs in it
    as on any host.  It has no Docker: an address on ``lo`` is its container.
    """

    name = NETNS
    address = HOST_SIDE

    def __init__(self, lab: LiveLab, interface: str) -> None:
        self.lab = lab
        self.interface = interface
        gateway = next(n for n in lab.topology.nodes.values() if n.gateway)
        self.node = lab.node(gateway.name)

    def __enter__(self) -> ThirdHost:
        self._remove()
        make = [
            f"netns add {NETNS}",
            f"link add {UPLINK} type veth peer name {self.interface} netns {NETNS}",
            f"address add {GATEWAY_SIDE}/24 dev {UPLINK}",
            f"link set {UPLINK} up",
        ]
        within = [
            "link set lo up",
            f"address add {HOST_SIDE}/24 dev {self.interface}",
            f"link set {self.interface} up",
            f"route add default via {GATEWAY_SIDE}",
        ]
        try:
            self.node.run(["ip", "-batch", "-"], input="\n".join(make).encode())
            self.run(["ip", "-batch", "-"], input="\n".join(within).encode())
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _remove(self) -> None:
        self.node.run(["ip", "link", "delete", UPLINK], check=False)
        self.node.run(["ip", "netns", "delete", NETNS], check=False)

    def argv(self, argv: Sequence[str]) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{NETNS}", *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float = 60.0,
        check: bool = True,
    ) -> Result:
        return self.node.run(self.argv(argv), input=input, timeout=timeout, check=check)

    def spawn(self, argv: Sequence[str]) -> Running:
        return self.node.spawn(self.argv(argv))

    @contextlib.contextmanager
    def flanneld(self, *options: str, prefix: str = PREFIX) -> Iterator[IPv4Network]:
        """Flanneld in the host; gives the subnet that it has leased, and gives that back.

        Raises LabError when it ends before it has one.
        """
        file = f"/run/testbed/{NETNS}.env"
        self.node.run(["rm", "-f", file])
        program = self.node.provide(self.lab.context.store.binary("flanneld"))
        argv = [
            program,
            f"--etcd-endpoints={endpoint(self.lab.topology)}",
            f"--etcd-prefix={prefix}",
            f"--subnet-file={file}",
            "--iptables-forward-rules=false",
            *(options or (f"--iface={self.interface}",)),
        ]
        try:
            with self.spawn(argv) as running:
                settings = self._wait_ready(running, file)
                subnet = IPv4Network(settings["FLANNEL_SUBNET"], strict=False)
                yield subnet
        finally:
            self.node.run(["rm", "-f", file])
            self._give_back(prefix)
            # vxlan's device outlives flanneld, udp's does not.
            self.run(["ip", "link", "delete", DEVICES["vxlan"]], check=False)

    def _wait_ready(self, running: Running, file: str) -> dict[str, str]:
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            with contextlib.suppress(TimeoutExpired):
                result = running.wait(POLL_SECONDS)
                last = result.stderr.strip().splitlines()[-1:]
                raise LabError(f"flanneld of the third host ended: {''.join(last)}")
            with contextlib.suppress(FileNotFoundError):
                text = self.node.get(file).decode()
                return dict(line.split("=", 1) for line in text.split())
            if time.monotonic() > deadline:
                raise TimeoutExpired("flanneld of the third host leases no subnet")

    def _give_back(self, prefix: str) -> None:
        for held in keys(self.lab, f"{prefix}/subnets").values():
            if held.value["PublicIP"] == HOST_SIDE:
                etcd(self.lab, "del", held.name)
                if held.lease:
                    etcd(self.lab, "lease", "revoke", f"{held.lease:x}", check=False)

    @contextlib.contextmanager
    def joined(self, *options: str) -> Iterator[IPv4Network]:
        """The host as a member of the lab's overlay, with :func:`third_subnet`.

        The first address of the subnet is its own, in place of a container.
        """
        wanted = third_subnet(self.lab)
        with key(self.lab, subnet_key(wanted), {"PublicIP": HOST_SIDE, "PublicIPv6": None}):
            self.run(["ip", "address", "replace", f"{wanted[1]}/32", "dev", "lo"])
            with self.flanneld(*options) as subnet:
                yield subnet

"""Shared helpers: ways to look that record evidence, and temporary changes.

Functions that look take the check's ``observe`` first, so that every command
shows in the report.  Functions that change anything are context managers that
restore the previous state.  If the lab lacks something, they skip and name it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import shlex
import socket
import struct
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, ip_address
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from testbed.claims.observation import Observation
from testbed.errors import LabError, TestbedError, TimeoutExpired, Unsettled
from testbed.nodes.engine import SERVICE
from testbed.roles.docker import daemon
from testbed.roles.docker.engine import LAB
from testbed.roles.docker.section import firewall_of
from testbed.steps.wait import Wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from testbed.labs.live import LiveContainer, LiveLab
    from testbed.nodes.base import Node, Result, Running
    from testbed.nodes.place import Place, Runs
    from testbed.observe.capture import Capture, Packet
    from testbed.topology.containers import Publish

T = TypeVar("T")
IMAGE = "nginx"
BRIDGE = "docker0"
#: The folder of a node's containerd with the OCI bundles of dockerd's running containers.
TASKS = "/run/docker/containerd/daemon/io.containerd.runtime.v2.task/moby"
SOON = 0.3  #: seconds to wait for an answer that is not expected to come
LATE = 30.0  #: seconds to wait for an expected answer: long enough for a busy machine
SETTLED = 120.0  #: seconds to wait for the system to settle: long enough for a busy machine
AGAIN = 5.0  #: the same, after a first wait for it has timed out in this run
START = 180.0  #: seconds for a program to start: dockerd takes a minute if emulated and busy


# -- nodes and containers -----------------------------------------------------


def docker_node(lab: LiveLab) -> Node:
    """The first node with Docker."""
    nodes = lab.topology.with_role("docker")
    if not nodes:
        pytest.skip("the lab has no node with Docker")
    return lab.node(nodes[0].name)


def outside_node(lab: LiveLab) -> Node:
    """The gateway node, which stands in for the internet."""
    for node in lab.topology.nodes.values():
        if node.gateway:
            return lab.node(node.name)
    pytest.skip("the lab has no gateway node outside")


def node_address(lab: LiveLab, node: Runs) -> str:
    """Return a node's address on its first network."""
    if not lab.topology.nodes[node.name].addresses:
        pytest.skip(f"the node {node.name} has no address")
    return str(lab.topology.address(node.name))


def in_mode(lab: LiveLab, node: Node, mode: str, wanted: int = 1) -> list[LiveContainer]:
    """Return a node's containers in a network mode (``container``: any ``container:NAME``)."""
    found = [
        lab.container(container.name)
        for container in lab.topology.running_on(node.name)
        if container.network.partition(":")[0] == mode
    ]
    if len(found) < wanted:
        few = f"only {len(found)}, not {wanted}, of its" if found else "no"
        pytest.skip(f"the lab has {few} containers on {node.name} in {mode} mode")
    return found


def bridge_containers(lab: LiveLab, node: Node, wanted: int = 1) -> list[LiveContainer]:
    """Return a node's containers on docker0, in the order of the topology's file.

    A container that is on other networks, too, is none of them, and changes what docker0 has.
    """
    for container in lab.topology.containers_on(node.name):
        if "bridge" in container.networks:
            pytest.skip(f"the container {container.name} is on docker0 and on other networks, too")
    return in_mode(lab, node, "bridge", wanted)


def web_port(lab: LiveLab, container: LiveContainer) -> int:
    """Return the port that the container's own web server listens on."""
    return int(lab.topology.containers[container.name].env.get("PORT", "80"))


def published(lab: LiveLab, node: Node) -> tuple[LiveContainer, Publish]:
    """Return a container on docker0 with a published TCP port, and that port."""
    for container in lab.topology.running_on(node.name):
        if container.network != "bridge":
            continue
        for port in container.publish:
            if port.protocol == "tcp" and port.address is None:
                return lab.container(container.name), port
    pytest.skip(f"the lab has no container with a published port on {node.name}")


# -- looking ------------------------------------------------------------------


def links(observe: Observation, where: Runs, *selector: str) -> list[dict[str, Any]]:
    """Run ``ip -j -d link show``: all links, or those of a selector such as "type veth"."""
    found = observe.json(where, ["ip", "-j", "-d", "link", "show", *selector])
    return [link for link in found or [] if link]  # iproute2 prints {} for what it leaves out


def link(observe: Observation, where: Runs, name: str) -> dict[str, Any]:
    """Return a link by its name, {} if there is none."""
    result = observe.run(where, ["ip", "-j", "-d", "link", "show", "dev", name], check=False)
    found = result.json() if result.ok else None
    return dict(found[0]) if found else {}


def kind(link: Mapping[str, Any]) -> str:
    """Return the kind of a link: "veth", "bridge", ...; "" for hardware and loopback."""
    return str(link.get("linkinfo", {}).get("info_kind", ""))


def is_up(link: Mapping[str, Any]) -> bool:
    return "UP" in link.get("flags", ())


def ports(observe: Observation, where: Runs, bridge: str = BRIDGE) -> list[dict[str, Any]]:
    """Return the links that are ports of a bridge."""
    return links(observe, where, "master", bridge)


def port_of(observe: Observation, container: LiveContainer) -> dict[str, Any]:
    """Return the host's end of a container's veth pair, found by its link id."""
    inner = link(observe, container, "eth0")
    for one in links(observe, container.node, "type", "veth"):
        if one["ifindex"] == inner["link_index"]:
            return one
    raise LabError(f"no link of {container.node.name} is the peer of eth0 in {container.name}")


def addresses(
    observe: Observation, where: Runs, interface: str | None = None
) -> list[IPv4Interface]:
    """Return IPv4 addresses of one or all interfaces, each with its prefix length."""
    selector = ["dev", interface] if interface else []
    found = observe.json(where, ["ip", "-j", "-4", "addr", "show", *selector])
    return [
        IPv4Interface(f"{address['local']}/{address['prefixlen']}")
        for one in found or []
        for address in one.get("addr_info", ())
    ]


def bridge_address(observe: Observation, node: Runs, bridge: str = BRIDGE) -> IPv4Interface:
    """Return the only IPv4 address of a bridge."""
    found = addresses(observe, node, bridge)
    assert len(found) == 1, f"{bridge} has {len(found)} addresses"
    return found[0]


def routes(observe: Observation, where: Runs, *selector: str) -> list[dict[str, Any]]:
    """Run ``ip -j route show``: the whole main table, or the routes of a selector."""
    return list(observe.json(where, ["ip", "-j", "route", "show", *selector]) or [])


def route_to(observe: Observation, where: Runs, address: object) -> dict[str, Any]:
    """Run ``ip -j route get``: return the route of a packet to the address."""
    return dict(observe.json(where, ["ip", "-j", "route", "get", str(address)])[0])


def namespace(observe: Observation, node: Runs, pid: int | str) -> str:
    """Return a process's network namespace, as the kernel names it: ``net:[4026532...]``."""
    return observe.run(node, ["readlink", f"/proc/{pid}/ns/net"]).stdout.strip()


def opened(observe: Observation, node: Runs, pid: int | str) -> set[str]:
    """Return a process's open files by their names in /proc/PID/fd.

    Names are paths such as ``/dev/net/tun``, or ``socket:[4711]``.  A process opens and closes
    files during the look: find complains about files that are gone by then, which does not
    affect the others.
    """
    argv = ["find", f"/proc/{pid}/fd", "-type", "l", "-printf", "%l\\n"]
    return set(observe.run(node, argv, check=False).stdout.splitlines()) - {""}


def network_entries(node: Node, identity: str) -> list[dict[str, Any]]:
    """Return the network namespace entries of a running container's OCI configuration."""
    path = f"{TASKS}/{identity}/config.json"
    result = node.run(["cat", path], check=False)
    if not result.ok:
        pytest.skip(f"the node has no OCI configuration at {path}")
    return [ns for ns in result.json()["linux"]["namespaces"] if ns["type"] == "network"]


def sysctl(observe: Observation, where: Runs, name: str) -> str:
    """Return the value of a kernel setting."""
    return observe.run(where, ["sysctl", "-n", name]).stdout.strip()


@dataclass(frozen=True, slots=True)
class Listener:
    """A TCP socket that waits for connections.  ``inode`` as shown in /proc/PID/fd."""

    address: str
    port: int
    inode: int


def listeners(observe: Observation, where: Runs) -> list[Listener]:
    """Return a network namespace's listening TCP sockets, from /proc/net/tcp and tcp6."""
    found = []
    # tcp6 is missing without IPv6.
    text = observe.run(where, ["cat", "/proc/net/tcp", "/proc/net/tcp6"], check=False).stdout
    for fields in map(str.split, text.splitlines()):
        if len(fields) > 9 and fields[3] == "0A":
            number, _, port = fields[1].partition(":")
            found.append(Listener(_kernel_address(number), int(port, 16), int(fields[9])))
    return found


def _kernel_address(number: str) -> str:
    """Parse an address of /proc/net: words of four octets, each in native byte order."""
    words = [int(number[i : i + 8], 16) for i in range(0, len(number), 8)]
    raw = struct.pack(f"={len(words)}I", *words)
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of iptables, or of Docker's own nftables in the same terms.

    ``matches`` maps options as iptables-save prints them.
    """

    table: str
    chain: str
    target: str
    matches: Mapping[str, str]
    negated: frozenset[str]  #: the keys of ``matches`` that stand after "!"
    packets: int

    def get(self, option: str, default: str = "") -> str:
        return self.matches.get(option, default)


def rules(observe: Observation, where: Runs, table: str) -> list[Rule]:
    """Return the rules of an iptables table, in order, with their packet counters."""
    text = observe.run(where, ["iptables-save", "-c", "-t", table]).stdout
    return [_rule(table, line) for line in text.splitlines() if line.startswith("[")]


def _rule(table: str, line: str) -> Rule:
    """Parse ``[3:180] -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE``."""
    try:
        return _parsed(table, *shlex.split(line))
    except (ValueError, LookupError, TypeError) as error:
        raise LabError(f"cannot parse a rule of iptables-save: {line!r}: {error}") from error


def _parsed(table: str, counters: str, *words: str) -> Rule:
    matches: dict[str, list[str]] = {}
    negated = set()
    negate, option = False, ""
    for word in words:
        if word == "!":
            negate = True
        elif word.startswith("-") and not word.lstrip("-").isdigit():
            option = word
            matches.setdefault(option, [])
            if negate:
                negated.add(option)
            negate = False
        else:
            matches[option].append(word)
    values = {name: " ".join(value) for name, value in matches.items()}
    chain, target = values.pop("-A"), values.pop("-j", values.pop("-g", ""))
    packets = int(counters.strip("[]").partition(":")[0])
    return Rule(table, chain, target, values, frozenset(negated), packets)


NATIVE = ("ip", "docker-bridges")  #: the table of Docker's own nftables rules
#: The iptables option equivalent to the left side of an nftables comparison.
OPTIONS: Mapping[tuple[str, str], str] = {
    ("ip", "saddr"): "-s",
    ("ip", "daddr"): "-d",
    ("meta", "iifname"): "-i",
    ("meta", "oifname"): "-o",
    ("tcp", "dport"): "--dport",
    ("udp", "dport"): "--dport",
}


def docker_rules(lab: LiveLab, observe: Observation, node: Node, table: str) -> list[Rule]:
    """Return the rules that implement an iptables table on a Docker node.

    Docker's own nftables chains are named after the table: ``nat-prerouting-and-output``.
    The node's iptables also has the rules of others, such as flanneld.
    """
    found = rules(observe, node, table)
    if firewall_of(lab.topology, node.name) != "nftables":
        return found
    listed = observe.json(node, ["nft", "-j", "list", "table", *NATIVE])["nftables"]
    native = [item["rule"] for item in listed if "rule" in item]
    return found + [
        _native_rule(table, rule) for rule in native if rule["chain"].startswith(f"{table}-")
    ]


def _native_rule(table: str, rule: Mapping[str, Any]) -> Rule:
    """Parse one rule of ``nft -j`` (libnftables-json(5))."""
    matches: dict[str, str] = {}
    negated = set()
    target, packets = "", 0
    for expression in rule["expr"]:
        ((kind, body),) = expression.items()
        if kind == "match":
            option = _option(body["left"])
            matches[option] = _value(body["right"])
            if body["op"] == "!=":
                negated.add(option)
        elif kind == "counter":
            packets = body["packets"]
        elif kind in {"jump", "goto"}:
            target = body["target"]
        elif kind in {"accept", "drop", "return", "masquerade", "snat", "dnat"}:
            target = kind.upper()
            if kind == "dnat":
                matches["--to-destination"] = f"{body['addr']}:{body['port']}"
    return Rule(table, rule["chain"], target, matches, frozenset(negated), packets)


def _option(left: Mapping[str, Any]) -> str:
    """Return the iptables option for a comparison's left side; without one, its JSON."""
    ((kind, body),) = left.items()
    known = None
    if kind == "payload" and "protocol" in body:
        known = OPTIONS.get((body["protocol"], body["field"]))
    elif kind == "meta":
        known = OPTIONS.get((kind, body["key"]))
    return known or json.dumps(left)


def _value(right: Any) -> str:
    """Return a comparison's right side; a prefix as iptables writes it."""
    if isinstance(right, dict) and "prefix" in right:
        return f"{right['prefix']['addr']}/{right['prefix']['len']}"
    return right if isinstance(right, str) else json.dumps(right)


@contextlib.contextmanager
def direct_access(lab: LiveLab, observe: Observation, node: Node, address: str) -> Iterator[bool]:
    """Lift the engine's drop of packets to a container that bypass its bridge.

    Yields True if there was one: since version 28, in the raw table (moby #49325).  The
    engine's own rules stay as they are: a rule before them accepts.
    """
    dropped = [
        rule
        for rule in docker_rules(lab, observe, node, "raw")
        if rule.target == "DROP" and rule.get("-d").partition("/")[0] == address
    ]
    if not dropped:
        yield False
    elif firewall_of(lab.topology, node.name) == "nftables":
        place = [*NATIVE, "raw-PREROUTING"]
        insert = ["nft", "-j", "-e", "insert", "rule", *place, "ip", "daddr", address, "accept"]
        ((_, made),) = observe.json(node, insert)["nftables"][-1].items()
        handle = str(made["rule"]["handle"])
        try:
            yield True
        finally:
            observe.run(node, ["nft", "delete", "rule", *place, "handle", handle])
    else:
        rule = ["PREROUTING", "-d", address, "-j", "ACCEPT"]
        insert, delete = (["iptables", "-w", "-t", "raw", how, *rule] for how in ("-I", "-D"))
        with undone(observe, node, insert, delete):
            yield True


def policies(observe: Observation, where: Runs, table: str) -> dict[str, str]:
    """Return the policy of each built-in chain of a table."""
    text = observe.run(where, ["iptables-save", "-t", table]).stdout
    words = [line[1:].split() for line in text.splitlines() if line.startswith(":")]
    return {chain: policy for chain, policy, *_ in words if policy != "-"}


@dataclass(frozen=True, slots=True)
class Tuple:
    """One direction of a tracked connection."""

    src: str
    dst: str
    sport: int
    dport: int

    def reversed(self) -> Tuple:
        return Tuple(self.dst, self.src, self.dport, self.sport)


@dataclass(frozen=True, slots=True)
class Flow:
    """A tracked connection: the original direction, and the expected reply.

    Without address translation the reply is the original reversed.
    """

    original: Tuple
    reply: Tuple

    @property
    def is_translated(self) -> bool:
        return self.reply != self.original.reversed()


def flows(observe: Observation, node: Runs, *selector: str) -> list[Flow]:
    """Run ``conntrack -L``: return the tracked TCP connections of a selector."""
    argv = ["conntrack", "-L", "-p", "tcp", "-o", "xml", *selector]
    text = observe.run(node, argv).stdout
    if not text.strip():
        return []
    found = []
    for flow in ET.fromstring(text).iter("flow"):  # noqa: S314  our own kernel wrote it
        ways = {}
        for meta in flow.iter("meta"):
            values = {element.tag: element.text or "" for element in meta.iter()}
            if meta.get("direction") in {"original", "reply"}:
                ways[meta.get("direction")] = Tuple(
                    values["src"], values["dst"], int(values["sport"]), int(values["dport"])
                )
        found.append(Flow(ways["original"], ways["reply"]))
    return found


# -- connecting ---------------------------------------------------------------


def patient(where: Runs, seconds: float) -> float:
    """Scale a waiting time for this machine to one for the place, in seconds."""
    return seconds * where.slowness


def fetch(
    observe: Observation, where: Runs, url: str, *, seconds: float | None = None
) -> dict[str, Any] | None:
    """Return the page at ``url``: JSON with name, client and server.

    The result is None if no page comes.  ``seconds`` defaults to LATE.
    """
    limit = patient(where, LATE if seconds is None else seconds)
    argv = ["curl", "-sS", "--noproxy", "*", "--max-time", f"{limit:g}", url]
    result = observe.run(where, argv, check=False)
    return dict(result.json()) if result.ok else None


def client_of(page: Mapping[str, Any]) -> str:
    """Return the client's address, as the server saw it."""
    return str(page["client"]).rpartition(":")[0]


def client_port(page: Mapping[str, Any]) -> int:
    """Return the client's port, as the server saw it."""
    return int(str(page["client"]).rpartition(":")[2])


def ping(
    observe: Observation,
    where: Runs,
    address: object,
    *,
    count: int = 1,
    seconds: float | None = None,
) -> bool:
    """True if all ``count`` echo requests are answered within ``seconds``, or LATE."""
    wait = f"-W{patient(where, LATE if seconds is None else seconds):g}"
    argv = ["ping", "-n", "-q", f"-c{count}", "-i0.01", wait, str(address)]
    return observe.run(where, argv, check=False).ok


def answers(observe: Observation, where: Runs, address: object) -> bool:
    """Tell whether an address answers one of many pings.

    This is for links that have just been set up: an unanswered ARP request is repeated after a
    second.
    """
    waits = (SOON * 2**number for number in itertools.count())
    return comes(lambda: ping(observe, where, address, seconds=min(LATE, next(waits))), LATE)


def settle(*places: Runs) -> None:
    """Wait until the veth devices work, a moment after they are up.

    A device that is down, or whose peer is, has no carrier (netdevice(7), IFF_LOWER_UP), and
    never works however long one waits.
    """

    def working(place: Runs) -> bool:
        return all(
            one["operstate"] == "UP"
            and one["linkinfo"].get("info_slave_data", {}).get("state", "forwarding")
            == "forwarding"
            for one in links(Observation(), place, "type", "veth")
            if "LOWER_UP" in one["flags"]
        )

    for place in places:
        wait_until(functools.partial(working, place), f"the links of {place.name} to work")


def wait_until(seen: Callable[[], T | None], what: str, seconds: float | None = None) -> T:
    """Poll until the result is true, and return it.

    For changes that others make in their own time: sessions, leases, endpoints, rules of a
    controller, neighbour entries.  After ``seconds`` (default: SETTLED) "late" and "never" look
    alike, so no verdict is possible: Unsettled is raised, naming ``what`` was missing, and the
    claim is inconclusive.

    A check waits like this for the preconditions of its statement, or for *any* effect of the
    subject of the statement, and then judges the result.  So a statement that is false on a
    settled system is still contradicted.  The absence of an event is shown by a later event
    from the same source, otherwise by :func:`comes`.

    After a timeout, further waits for the same thing in the same run are short, so that a daemon
    that is dead for good does not delay each check.
    """
    usual = AGAIN if what in IN_VAIN else SETTLED
    wait = Wait(None, what, usual if seconds is None else seconds)
    while not (answer := seen()):
        try:
            wait.pause()
        except TimeoutExpired as error:
            if seconds is None:
                IN_VAIN.add(what)
            raise Unsettled(error.message) from None
    IN_VAIN.discard(what)
    return answer


IN_VAIN: set[str] = set()  #: timeouts of this run; emptied when a run begins


def observe_until(
    observe: Observation,
    look: Callable[[Observation], T | None],
    what: str,
    seconds: float | None = None,
) -> T:
    """Poll as :func:`wait_until` does; keep the last look as evidence.

    ``look`` is given a new Observation each time, so that earlier looks leave no evidence.
    """
    last = Observation()

    def seen() -> T | None:
        nonlocal last
        last = Observation()
        return look(last)

    try:
        return wait_until(seen, what, seconds)
    finally:
        observe.evidence += last.evidence


def comes(seen: Callable[[], object], seconds: float) -> bool:
    """Tell whether a condition becomes true within a time.

    For events that no daemon has to cause: an answer to packets that are sent repeatedly on
    links that are set up, or an event that is not expected.  A busy machine may be late and
    must not decide the result, so ``seconds`` is long if the event is expected.
    """
    try:
        return bool(wait_until(seen, "it", seconds))
    except Unsettled:
        return False


# -- packets ------------------------------------------------------------------


def show_path(
    lab: LiveLab, observe: Observation, source: str, target: str, *, tcp: int | None = None
) -> None:
    """Record the path of one packet, for the report to draw.  It decides nothing."""
    from testbed.api import follow

    try:
        observe.walk(follow(lab, source, target, tcp=tcp))
    except TestbedError as error:
        observe.note(f"the path of a packet from {source} to {target}", f"not seen: {error}")


def place_of(container: LiveContainer) -> str:
    """Return the name of a container within the lab, as :func:`show_path` takes it."""
    return f"{container.node.name}/{container.name}"


def note(observe: Observation, *seen: Capture) -> None:
    """Record the packets of captures as evidence."""
    for one in seen:
        observe.note(f"tcpdump on {one}", one.lines())


def wait_closed(*seen: Capture) -> None:
    """Wait until captures have a connection's end: a server may close it later."""
    for one in seen:
        one.wait_for(is_closed)


def is_closed(packets: Sequence[Packet]) -> bool:
    """Tell whether both ends closed a TCP connection, or one reset it."""
    finished = {p.src for p in packets if "FIN" in p.flags}
    return len(finished) == 2 or any("RST" in p.flags for p in packets)


def between(packets: Sequence[Packet], one: str, other: str) -> list[Packet]:
    """Return the packets between two addresses, in either direction."""
    return [p for p in packets if {p.src, p.dst} == {one, other}]


def same(packet: Packet) -> tuple[object, ...]:
    """Return the fields of a TCP packet that stay the same without translation."""
    return (*packet.flow, packet.ip_id, packet.seq, packet.ack, packet.flags, packet.payload)


# -- places -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Inside:
    """A place on a node that is reached through a prefix, such as ``ip netns exec NAME``."""

    node: Node
    name: str
    prefix: tuple[str, ...] = ()

    @property
    def slowness(self) -> float:
        return self.node.slowness

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float = 60.0,
        check: bool = True,
    ) -> Result:
        """Run a command in the place to its end."""
        return self.node.run([*self.prefix, *argv], input=input, timeout=timeout, check=check)

    def spawn(self, argv: Sequence[str]) -> Running:
        """Start a command in the place."""
        return self.node.spawn([*self.prefix, *argv])

    def netns(self, name: str) -> Inside:
        """Return the named network namespace in the place."""
        return Inside(self.node, name, (*self.prefix, "ip", "netns", "exec", name))


def netns(node: Node, name: str) -> Inside:
    """Return a named network namespace of a node, as created by ``ip netns add``."""
    return Inside(node, name).netns(name)


class Ended(LabError):
    """A command ended before it did its task."""


READY = b"ready\n"
AT_ONCE = 0.001  #: seconds to wait for the end of a command that has probably ended
DOCKER = "/run/docker"  #: the folder of a second daemon's files, on its own /run


@contextlib.contextmanager
def scratch_machine(node: Node, name: str = "scratch") -> Iterator[Inside]:
    """Create a network stack and a /run of its own on the node, as after a boot.

    Experiments in it may use any names.  All of it is removed at the end of the
    block, named namespaces included.
    """
    script = (
        "mount -n -t tmpfs tmpfs /run && ip link set lo up && echo ready && exec sleep infinity"
    )
    argv = ["unshare", "--net", "--mount", "sh", "-c", script]
    with node.spawn(argv) as running:
        try:
            await_output(running, READY)
        except Ended:
            if not node.run(["sh", "-c", "command -v unshare"], check=False).ok:
                pytest.skip(f"the node {node.name} has no unshare")  # a container of any image
            raise
        yield Inside(node, name, ("nsenter", f"--target={running.pid}", "--net", "--mount"))


@dataclass(frozen=True, slots=True)
class FreshDocker:
    """A Docker daemon on a scratch machine, newly started and without containers."""

    machine: Inside

    def api(self, observe: Observation, path: str) -> Any:
        """Send ``GET path`` to its Engine API."""
        argv = ["curl", "-sS", "--unix-socket", f"{DOCKER}/socket", f"http://docker{path}"]
        return observe.json(self.machine, argv)


@contextlib.contextmanager
def fresh_docker(machine: Inside, *options: str) -> Iterator[FreshDocker]:
    """Start the node's own dockerd on a scratch machine, with only these options set.

    It writes its rules to the same firewall as the node's own daemon.
    """
    pid = machine.node.services()[SERVICE].pid
    environment = machine.node.run(["cat", f"/proc/{pid}/environ"]).stdout.split("\0")
    folders = next(value for value in environment if value.startswith("PATH="))[5:].split(":")
    # Through the running daemon: its files below /run are not visible here.
    path = ":".join(f"/proc/{pid}/root{folder}" for folder in folders)
    own = daemon.told(machine.node)
    config = {key: own[key] for key in ("firewall-backend",) if key in own}
    script = f"mkdir {DOCKER} && cat > {DOCKER}/daemon.json"
    machine.run(["sh", "-c", script], input=json.dumps(config).encode())
    if config:  # with nftables, the daemon leaves forwarding to the machine's owner
        machine.run(daemon.FORWARDING)
    argv = [
        *("env", f"PATH={path}", f"/proc/{pid}/exe", "--storage-driver=vfs", "--log-level=warn"),
        *(f"--config-file={DOCKER}/daemon.json", f"--host=unix://{DOCKER}/socket"),
        *(f"--data-root={DOCKER}/data", f"--exec-root={DOCKER}/exec"),
        f"--pidfile={DOCKER}/pid",
        *options,
    ]
    asked = ["curl", "-sf", "--unix-socket", f"{DOCKER}/socket", "http://docker/_ping"]
    with machine.spawn(argv) as running:
        wait_while_runs(
            running,
            lambda: machine.run(asked, check=False).ok,
            f"a second dockerd on {machine.node.name} to answer",
        )
        yield FreshDocker(machine)


def await_output(running: Running, wanted: bytes, seconds: float = START) -> None:
    """Wait until a command has printed ``wanted``.

    Raises Ended if the command ends first, Unsettled after ``seconds``.
    """
    what = f"{shlex.join(running.argv)} to print {wanted!r}"
    wait_while_runs(running, lambda: wanted in running.out, what, seconds)


def wait_while_runs(
    running: Running, seen: Callable[[], object], what: str, seconds: float = START
) -> None:
    """Wait for an effect of a running command.

    Raises Ended if the command ends first, Unsettled after a timeout.
    """

    def came() -> bool:
        if seen():
            return True
        with contextlib.suppress(TimeoutExpired):
            result = running.wait(AT_ONCE)
            if not seen():  # the effect may have come, and the command ended, meanwhile
                raise Ended(f"{shlex.join(running.argv)} ended: {result.stderr.strip()}")
            return True
        return False

    wait_until(came, what, seconds)


def await_strace(running: Running, whom: str) -> None:
    """Wait until strace watches a program; skip if it can't."""
    try:
        wait_while_runs(running, lambda: b"attached" in running.err, f"strace to watch {whom}")
    except Ended as error:
        pytest.skip(f"strace cannot attach to {whom}: {error.message}")


# -- temporary changes --------------------------------------------------------


SERVER = """
import json, socket, sys
name, address, port = sys.argv[1:]
server = socket.create_server((address, int(port)))
print("ready", flush=True)
while True:
    connection, client = server.accept()
    with connection:
        connection.recv(65536)
        page = json.dumps({"name": name, "client": "%s:%d" % client}).encode()
        head = "HTTP/1.0 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(page)
        connection.sendall(head.encode() + page)
"""


@contextlib.contextmanager
def serving(place: Place, port: int, address: str = "0.0.0.0") -> Iterator[Running]:
    """Run a web server at a place; its page has ``name``, the place's, and ``client``."""
    argv = ["python3", "-c", SERVER, place.name, address, str(port)]
    with place.spawn(argv) as running:
        await_output(running, READY)
        yield running


_numbers = itertools.count(1)


def fresh_name(prefix: str = "check") -> str:
    """Return a name for a container or network that is unused in the lab."""
    return f"{prefix}-{next(_numbers)}"


@contextlib.contextmanager
def extra_container(
    lab: LiveLab,
    node: Node,
    *,
    mode: str | None = None,
    command: Sequence[str] | None = None,
    env: Mapping[str, str] | None = None,
    expose: Sequence[int] = (),
    start: bool = True,
    **host_config: Any,
) -> Iterator[str]:
    """Run an extra container and yield its name.

    It is removed after the block, with its link.  With ``mode`` None no network
    option is given at all.  Further options are the SDK's for a container's host
    config.
    """
    engine = lab.engine(node.name)
    if not engine.has_image(IMAGE):
        pytest.skip(f"the node {node.name} has no image {IMAGE}")
    name = fresh_name()
    before, own = _veths(node), set[str]()
    if mode is not None:
        host_config["network_mode"] = mode
    shares = mode is not None and (mode == "host" or mode.startswith("container:"))
    engine.api.create_container(
        IMAGE,
        list(command) if command is not None else None,
        name=name,
        hostname=None if shares else name,
        environment={"NAME": name, **(env or {})},
        labels={LAB: lab.name},  # the next `up` removes one left by a killed run
        ports=[(port, "tcp") for port in expose] or None,
        host_config=engine.api.create_host_config(**host_config),
    )
    try:
        if start:
            engine.api.start(name)
            own = _veths(node) - before
        yield name
    finally:
        engine.remove(name)
        wait_until(lambda: not own & _veths(node), f"the end of the link of the container {name}")


def _veths(node: Node) -> set[str]:
    return {one["ifname"] for one in links(Observation(), node, "type", "veth")}


def wait_serving(lab: LiveLab, node: Node, name: str, port: int = 80) -> None:
    """Wait until an extra container listens on a port: its server starts after it."""
    container = lab.container(name, node=node.name)
    quiet = Observation()

    def listening() -> bool:
        return port in {one.port for one in listeners(quiet, container)}

    wait_until(listening, f"a server on port {port} of {name}")


@contextlib.contextmanager
def extra_network(lab: LiveLab, node: Node) -> Iterator[str]:
    """Create a user-defined bridge network for the block, and yield its name."""
    api = lab.engine(node.name).api
    name = fresh_name("net")
    identity = api.create_network(name, driver="bridge")["Id"]
    try:
        yield name
    finally:
        api.remove_network(identity)


@contextlib.contextmanager
def undone(
    observe: Observation, where: Runs, do: Sequence[str], undo: Sequence[str]
) -> Iterator[None]:
    """Run a command before the block, and another one after it in any case."""
    observe.run(where, do)
    try:
        yield
    finally:
        observe.run(where, undo)


@contextlib.contextmanager
def link_down(observe: Observation, where: Runs, name: str) -> Iterator[None]:
    """Set an interface down for the time of the block."""
    down, up = (["ip", "link", "set", "dev", name, state] for state in ("down", "up"))
    with undone(observe, where, down, up):
        yield
    settle(where)


@contextlib.contextmanager
def sysctl_set(observe: Observation, where: Runs, name: str, value: str) -> Iterator[None]:
    """Set a kernel setting for the time of the block."""
    before = sysctl(observe, where, name)
    argv = ["sysctl", "-q", "-w"]
    with undone(observe, where, [*argv, f"{name}={value}"], [*argv, f"{name}={before}"]):
        yield


def last_host(subnet: IPv4Network) -> IPv4Address:
    """Return a subnet's last host address: the last one that Docker would assign."""
    return subnet.broadcast_address - 1


def is_address(text: str) -> bool:
    """True for a bare IP address, without a prefix length."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


@dataclass(slots=True)
class Exchange:
    """One request and its answer, with packets captured at several points."""

    page: dict[str, Any] | None
    seen: Mapping[str, Capture] = field(default_factory=dict)

    def at(self, point: str) -> list[Packet]:
        return self.seen[point].packets

    def note(self, observe: Observation, *points: str) -> None:
        """Record the page and the packets at these points as evidence."""
        observe.note("the page", json.dumps(self.page))
        note(observe, *(self.seen[point] for point in points))

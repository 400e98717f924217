"""The parts of a lab's network at this moment, on every machine and in every namespace.

Each machine is looked at with one command, all machines at the same time: its own network
namespace, its named ones, and those of its containers and Pods, each with links, addresses,
routes, rules, neighbours and bridge entries. The other end of a link is resolved across
namespaces, and across machines through the lab's networks and links. The result is plain data:
:mod:`testbed.observe.graph` draws from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from ipaddress import ip_interface
from typing import TYPE_CHECKING, Any

from testbed.errors import TestbedError
from testbed.limits import FILES_PER_NODE, at_once
from testbed.registry import ROLES

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab
    from testbed.nodes.place import Runs
    from testbed.topology.foreign import Foreign
    from testbed.topology.model import Topology

FORMAT = 1  #: of :meth:`Inventory.to_dict`; one more when a field changes its meaning

#: Looks at one network namespace. Every value is JSON; a text is the family of what follows it.
ONE = r"""
printf 'addr\nneigh\nrule\nroute show table all\n' | ip -force -j -d -batch -
echo '"inet6"'; ip -j -6 rule
bridge -j fdb
"""
#: Arguments: the above, then a name and a network namespace for each container.  Every part begins
#: with its name on a line of its own, after a character that JSON text cannot contain.
LOOK = r"""
one=$1; shift
part() { printf '\036%s\n' "$1"; }
part inodes; stat -L -c '%i %n' /proc/self/ns/net /run/netns/* 2>/dev/null
part links; eval "$one"
for namespace in /run/netns/*; do
    [ -e "$namespace" ] || continue
    part "namespace ${namespace##*/}"; nsenter --net="$namespace" sh -c "$one"
done
while [ $# -gt 1 ]; do
    part inodes; stat -L -c '%i %n' "$2"
    part "container $1"; nsenter --net="$2" sh -c "$one"; shift 2
done
exit 0
"""
#: The same for a machine that another tool made: nothing but its own namespace.
LOOK_OUTSIDE = rf"""
printf '\036links\n'
{ONE}
exit 0
"""
SEPARATOR = "\036"
OWN = "/proc/self/ns/net"
NAMED = "/run/netns"
SECONDS = 10.0  # for one machine
#: The kernel's default tunnels, which every namespace has as soon as a module is loaded.
FALLBACK = frozenset(
    {"tunl0", "gre0", "gretap0", "erspan0", "sit0", "ip6tnl0", "ip6gre0", "ip_vti0", "ip6_vti0"}
)
#: Modes of a container without a network namespace of its own.
SHARING = frozenset({"host", "container"})


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a link."""

    machine: str
    space: str
    link: str


@dataclass(frozen=True, slots=True)
class Link:
    """A device of a network namespace.

    ``network`` is the name of a container network behind a bridge, ``joins`` that of the lab's
    network that the device leads to. ``lower`` is the device below a VLAN, a macvlan or a
    tunnel. ``data`` are the kind's own settings, as `ip -d` prints them: of a vxlan ``id``,
    ``port``, ``local``; of a bridge's port ``state``, ``hairpin``, ``isolated``.
    """

    name: str
    index: int
    kind: str = ""  #: "veth", "bridge", "vxlan", "tun", ...; "" for hardware
    mac: str = ""  #: of an Ethernet device
    mtu: int = 0
    up: bool = False
    loopback: bool = False
    master: str = ""
    lower: str = ""
    addresses: tuple[str, ...] = ()  #: with prefix length, link-local ones too
    network: str = ""
    joins: str = ""
    peer: Peer | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shown(self) -> bool:
        """True unless it is the loopback or one of the kernel's default tunnels."""
        return not self.loopback and self.name not in FALLBACK

    @property
    def global_addresses(self) -> tuple[str, ...]:
        """Its addresses without IPv6 link-local ones."""
        return tuple(one for one in self.addresses if ":" not in one or not _is_local(one))


@dataclass(frozen=True, slots=True)
class Step:
    """The next hop of a route; ``via`` is "" on a connected network."""

    via: str
    dev: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Route:
    """An entry of a routing table.  ``steps`` are several for a multipath route."""

    family: str  #: "inet" or "inet6"
    to: str  #: a prefix, an address, or "default"
    table: str = "main"
    type: str = "unicast"
    steps: tuple[Step, ...] = ()
    source: str = ""  #: preferred source address
    metric: int = 0
    protocol: str = ""  #: who has added it: "kernel", "bird", ...
    scope: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of policy routing, as `ip rule` prints it."""

    family: str
    priority: int
    text: str
    table: str = ""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An entry of the ARP or NDP table."""

    address: str
    dev: str
    mac: str
    state: str  #: "REACHABLE", "STALE", "PERMANENT", "FAILED", ...


@dataclass(frozen=True, slots=True)
class Entry:
    """A unicast entry of a bridge's or a VXLAN device's forwarding database."""

    mac: str
    dev: str  #: the port, or the VXLAN device
    master: str = ""  #: the bridge
    to: str = ""  #: the remote address of a VXLAN device
    permanent: bool = False


@dataclass(frozen=True, slots=True)
class Space:
    """A network namespace, or a container that shares one.

    ``kind`` is "own" for the machine's own, "namespace" for a named one, "container", "pod", or
    another word of a role. ``path`` enters it on the machine (`nsenter --net=PATH`); "" for
    a container without a namespace of its own. ``inode`` tells two names of one namespace.
    """

    name: str
    kind: str = "own"
    path: str = ""
    pid: int = 0
    inode: int = 0
    mode: str = ""  #: kind of a container's network
    published: tuple[str, ...] = ()  #: ports as "8080:80/tcp"
    shares: str = ""  #: the container whose namespace it has
    links: tuple[Link, ...] = ()
    routes: tuple[Route, ...] = ()
    rules: tuple[Rule, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    fdb: tuple[Entry, ...] = ()

    def link(self, name: str) -> Link | None:
        return next((one for one in self.links if one.name == name), None)


@dataclass(frozen=True, slots=True)
class Machine:
    """A node, or the fabric that holds the networks' bridges.

    The first of ``spaces`` is its own. ``error`` tells why it could not be looked at.
    """

    name: str
    roles: tuple[str, ...] = ()
    gateway: bool = False
    fabric: bool = False
    spaces: tuple[Space, ...] = ()
    error: str = ""

    @property
    def own(self) -> Space:
        return self.spaces[0] if self.spaces else Space("", path=OWN)

    def space(self, name: str) -> Space | None:
        return next((one for one in self.spaces if one.name == name), None)


@dataclass(frozen=True, slots=True)
class Network:
    """A network of the lab; ``bridge`` is the fabric's device, "" without a fabric to look at.

    One that is ``aside`` is not drawn in the file of the lab: the tool that runs the lab has its
    nodes on it besides their links.
    """

    name: str
    subnet: str
    ports: tuple[tuple[str, str], ...]  #: a node and an interface each
    bridge: str = ""
    uplink: bool = False  #: it has a way out of the lab
    aside: bool = False


@dataclass(frozen=True, slots=True)
class WireEnd:
    """An end of a link between two nodes.

    ``at`` is a node, or a bridge or another place outside of the nodes. It is not ``up`` if its
    node has no such interface, or one that is down.
    """

    at: str
    interface: str
    up: bool


@dataclass(frozen=True, slots=True)
class Service:
    """A virtual service of a role, such as a Service of Kubernetes."""

    name: str
    addresses: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()  #: "80/tcp", or "80:30080/tcp" with a port of every node
    backends: tuple[str, ...] = ()  #: "10.244.1.2:8080"


@dataclass(frozen=True, slots=True)
class Inventory:
    """The network of a lab.  ``overlay`` is that of a role (:meth:`Role.overlay`)."""

    lab: str
    machines: tuple[Machine, ...] = ()
    networks: tuple[Network, ...] = ()
    wires: tuple[tuple[WireEnd, WireEnd], ...] = ()
    overlay: Mapping[str, Any] | None = None
    services: tuple[Service, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def nodes(self) -> tuple[Machine, ...]:
        """The machines without the fabric."""
        return tuple(one for one in self.machines if not one.fabric)

    @property
    def fabric(self) -> Machine | None:
        return next((one for one in self.machines if one.fabric), None)

    def machine(self, name: str) -> Machine | None:
        """Return a node by its name."""
        return next((one for one in self.nodes if one.name == name), None)

    def at(self, peer: Peer) -> Link | None:
        """Return the device at an end."""
        machine = next((one for one in self.machines if one.name == peer.machine), None)
        space = machine.space(peer.space) if machine else None
        return space.link(peer.link) if space else None

    def names(self) -> dict[str, str]:
        """Return the owner's name for each address of the lab, containers and services included.

        An address that several have, such as that of a bridge of every node, is left out.
        """
        owners: dict[str, set[str]] = {}
        for machine in self.nodes:
            for space in machine.spaces:
                for link in space.links:
                    for address in link.global_addresses if link.shown else ():
                        plain = address.partition("/")[0]
                        owners.setdefault(plain, set()).add(space.name or machine.name)
        for service in self.services:
            for address in service.addresses:
                owners.setdefault(address, set()).add(service.name)
        return {address: min(names) for address, names in owners.items() if len(names) == 1}

    def to_dict(self) -> dict[str, Any]:
        """Return the inventory as data for JSON."""
        return {"format": FORMAT, **asdict(self)}


def inventory(lab: LiveLab) -> Inventory:
    """Look at a running lab; a machine that does not answer has an ``error``."""
    names = [name for name in lab.topology.nodes if name in lab.nodes]
    with ThreadPoolExecutor(at_once(min(8, len(names) + 2), files=FILES_PER_NODE)) as pool:
        fabric = pool.submit(_fabric, lab)
        services = pool.submit(_services, lab)
        nodes = list(pool.map(lambda name: machine(lab, name), names))
    held = fabric.result()
    found, warnings = services.result()
    made = [_joined(lab, one, held) for one in nodes]
    networks: list[Network] = []
    if lab.topology.foreign is not None and held is not None:
        made = _plugged(made, held)
        networks = list(bridged(lab.topology.foreign, made, held))
        made = [_on(networks, one) for one in made]
    else:
        networks = list(_networks(lab.topology, made, held))
    if held is not None:
        made.append(_reflected(held, made))
    shown = {network.name for network in networks}
    return Inventory(
        lab.name,
        tuple(made),
        tuple(networks),
        tuple(pair for pair in wires(lab.topology, nodes) if not shown & {end.at for end in pair}),
        _overlay(lab),
        tuple(found),
        tuple(warnings),
    )


# -- one machine -----------------------------------------------------------------


def machine(lab: LiveLab, name: str) -> Machine:
    """Look at a node."""
    spec = lab.topology.nodes[name]
    drawn: list[dict[str, Any]] = []
    known: dict[str, str] = {}
    errors = []
    for role in spec.roles:
        try:
            drawn += [dict(one) for one in ROLES[role].drawn(lab, name)]
            known |= ROLES[role].link_names(lab, name)
        except TestbedError as error:  # its devices are there without its daemon
            errors.append(str(error))
    found = Machine(name, tuple(spec.roles), spec.gateway, error="; ".join(errors))
    try:
        if lab.topology.foreign is None and not spec.image:
            printed = _look(lab.node(name), drawn)
        else:  # the node may be of any image
            argv = ["sh", "-c", LOOK_OUTSIDE]
            printed = lab.network(name).run(argv, timeout=SECONDS).stdout
    except TestbedError as error:
        return replace(found, error=str(error))
    try:
        spaces = _spaces(printed, drawn)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        return replace(found, error=f"cannot parse the output of ip on {name}: {error!r}")
    own, *others = _paired(name, spaces)
    named = [replace(link, network=known.get(link.name, "")) for link in own.links]
    return replace(found, spaces=(replace(own, links=tuple(named)), *others))


def _fabric(lab: LiveLab) -> Machine | None:
    """Look at the fabric; None if there is none that can be seen."""
    try:
        node = lab.fabric
        if node is None:
            return None
        if lab.topology.foreign is None:
            printed = _look(node, [])
        else:  # it may have names for the namespaces of the nodes
            printed = node.run(["sh", "-c", LOOK_OUTSIDE], timeout=SECONDS).stdout
        spaces = _spaces(printed, [])
    except (TestbedError, LookupError, TypeError, ValueError, AttributeError):
        return None
    return Machine(node.name, fabric=True, spaces=tuple(_paired(node.name, spaces)))


def _look(node: Runs, drawn: Sequence[Mapping[str, Any]]) -> str:
    argv = ["sh", "-c", LOOK, "look", ONE]
    for one in drawn:
        if one.get("pid") and one["mode"] not in SHARING:
            argv += [one["name"], f"/proc/{one['pid']}/ns/net"]
    return node.run(argv, timeout=SECONDS).stdout


def _spaces(printed: str, drawn: Sequence[Mapping[str, Any]]) -> list[Space]:
    """Return the namespaces of a machine, its own first."""
    texts: dict[str, str] = {}
    inodes: dict[str, int] = {}
    for part in printed.split(SEPARATOR)[1:]:
        name, _, text = part.partition("\n")
        if name == "inodes":
            for line in text.splitlines():
                number, _, path = line.partition(" ")
                inodes[path] = int(number)
        else:
            texts[name] = text
    own = _read(Space("", path=OWN, inode=inodes.get(OWN, 0)), texts.get("links", ""))
    inside = [_inside(one, texts, inodes) for one in drawn]
    taken = {one.inode for one in inside if one.inode}
    named = []
    for part, text in texts.items():
        kind, _, name = part.partition(" ")
        path = f"{NAMED}/{name}"
        if kind == "namespace" and inodes.get(path) not in taken:
            space = Space(name, kind, path, inode=inodes.get(path, 0))
            named.append(_read(space, text))
    for index, one in enumerate(drawn):
        if wanted := set(one.get("addresses", ())):
            found = next((each for each in named if wanted & set(_plain(each))), None)
            if found is not None:  # a Pod: its namespace has a name of the plugin's choice
                named.remove(found)
                mine = inside[index]
                inside[index] = replace(
                    found, name=mine.name, kind=mine.kind, mode=mine.mode, published=mine.published
                )
    return [own, *named, *inside]


def _plain(space: Space) -> Iterator[str]:
    """Yield the addresses of a namespace without their prefix lengths."""
    for link in space.links:
        for address in link.addresses:
            yield address.partition("/")[0]


def _inside(one: Mapping[str, Any], texts: Mapping[str, str], inodes: Mapping[str, int]) -> Space:
    """Return the space of a container."""
    pid, name = int(one.get("pid") or 0), str(one["name"])
    path = f"/proc/{pid}/ns/net" if pid and one["mode"] not in SHARING else ""
    space = Space(
        name,
        str(one.get("kind", "container")),
        path,
        pid,
        inodes.get(path, 0),
        str(one["mode"]),
        tuple(one["published"]),
        str(one.get("shares", "")),
    )
    return _read(space, texts.get(f"container {name}", "")) if path else space


# -- what iproute2 prints --------------------------------------------------------


def _read(space: Space, text: str) -> Space:
    """Return the space with what was printed there; as it is if it was removed meanwhile."""
    links: list[Link] = []
    routes: list[Route] = []
    rules: list[Rule] = []
    neighbours: list[Neighbour] = []
    fdb: list[Entry] = []
    family = "inet"
    for value in _values(text):
        if isinstance(value, str):
            family = value
            continue
        for entry in value:
            if not entry:  # iproute2 prints {} for what it leaves out
                continue
            if "ifindex" in entry:
                links.append(_link(entry))
            elif "priority" in entry:
                rules.append(_rule(entry, family))
            elif "mac" in entry:
                fdb += _fdb(entry)
            elif "state" in entry:
                neighbours.append(_neighbour(entry))
            else:
                routes.append(_route(entry))
    return replace(
        space,
        links=tuple(links),
        routes=tuple(routes),
        rules=tuple(rules),
        neighbours=tuple(neighbours),
        fdb=tuple(fdb),
    )


def _values(text: str) -> Iterator[Any]:
    """Yield the JSON values that follow each other in a text, up to what is none."""
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError:  # the namespace was removed while it was looked at
            return
        yield value


def _link(link: Mapping[str, Any]) -> Link:
    info = link.get("linkinfo", {})
    kind, data = info.get("info_kind", ""), info.get("info_data", {})
    if kind == "bridge":
        data = {key: data[key] for key in ("vlan_filtering", "stp_state") if key in data}
    if info.get("info_slave_kind") == "bridge":
        port = info.get("info_slave_data", {})
        data = {key: port[key] for key in ("state", "hairpin", "isolated") if key in port} | data
    if "link_index" in link:  # of a namespace that this one knows by an id only
        data = {**data, "peer_index": link["link_index"], "peer_netns": link.get("link_netnsid")}
    return Link(
        name=link["ifname"],
        index=link["ifindex"],
        kind=kind,
        mac=link.get("address", "") if link.get("link_type") == "ether" else "",
        mtu=link.get("mtu", 0),
        up="UP" in link.get("flags", ()),
        loopback=link.get("link_type") == "loopback",
        master=link.get("master", ""),
        lower=link.get("link", "") or data.get("link", ""),
        addresses=tuple(f"{one['local']}/{one['prefixlen']}" for one in link.get("addr_info", ())),
        data=data,
    )


def _is_local(address: str) -> bool:
    return ip_interface(address).is_link_local


def _route(route: Mapping[str, Any]) -> Route:
    to = route["dst"]
    hops = route.get("nexthops") or [route]
    steps = tuple(
        Step(_gateway(hop), hop.get("dev", ""), hop.get("weight", 1))
        for hop in hops
        if "dev" in hop or _gateway(hop)
    )
    # Only a route of IPv6 has a preference, which tells the default routes apart (rtnetlink(7)).
    six = ":" in to or "pref" in route
    return Route(
        "inet6" if six else "inet",
        to,
        str(route.get("table", "main")),
        route.get("type", "unicast"),
        steps,
        route.get("prefsrc", ""),
        route.get("metric", 0),
        str(route.get("protocol", "")),
        str(route.get("scope", "")),
    )


def _gateway(hop: Mapping[str, Any]) -> str:
    """Return the address of a next hop, which may be of the other family (RFC 5549)."""
    via = hop.get("gateway") or (hop.get("via") or {}).get("host", "")
    return str(via)


def _rule(rule: Mapping[str, Any], family: str) -> Rule:
    """Return a rule with its text as `ip rule` prints it."""
    words = ["not"] if "not" in rule else []
    for key, length in (("src", "srclen"), ("dst", "dstlen")):
        if key in rule:
            prefix = f"{rule[key]}/{rule[length]}" if length in rule else str(rule[key])
            words += ["from" if key == "src" else "to", prefix]
    if "fwmark" in rule:
        mask = f"/{rule['fwmask']}" if "fwmask" in rule else ""
        words += ["fwmark", f"{rule['fwmark']}{mask}"]
    for key in ("iif", "oif", "ipproto", "sport", "dport", "tos"):
        if key in rule:
            words += [key, str(rule[key])]
    table = str(rule.get("table", ""))
    words += ["lookup", table] if table else [str(rule.get("action", ""))]
    return Rule(family, rule["priority"], " ".join(words), table)


def _neighbour(entry: Mapping[str, Any]) -> Neighbour:
    state = entry["state"]
    word = state[0] if isinstance(state, list) and state else str(state or "")
    return Neighbour(entry["dst"], entry.get("dev", ""), entry.get("lladdr", ""), word)


def _fdb(entry: Mapping[str, Any]) -> Iterator[Entry]:
    """Yield an entry; nothing for a multicast address that a device listens to."""
    if int(entry["mac"][:2], 16) & 1:  # the group bit
        return
    yield Entry(
        entry["mac"],
        entry["ifname"],
        entry.get("master", ""),
        entry.get("dst", ""),
        entry.get("state") == "permanent",
    )


# -- the other ends --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class End:
    """A link as seen by its peer.  ``space`` is "" for the machine's own namespace."""

    space: str
    name: str
    index: int
    peer: int  #: the peer's index
    netns: int  #: this namespace's id of the peer's


def pairs(ends: Sequence[End]) -> list[tuple[End, End]]:
    """Return the veth pairs among the ends of different namespaces of a machine.

    Each end names its peer's index, and the peer's namespace by an id of its own.
    Indexes repeat from namespace to namespace: ambiguous pairs are resolved by the
    ids that are known already, or left out.
    """
    left = {(end.space, end.index): end for end in ends}
    by_numbers: dict[tuple[int, int], list[End]] = {}
    for end in left.values():
        by_numbers.setdefault((end.index, end.peer), []).append(end)
    found: list[tuple[End, End]] = []
    known: dict[tuple[str, int], str] = {}

    def fitting(one: End) -> list[End]:
        return [
            other
            for other in by_numbers.get((one.peer, one.index), ())
            if (other.space, other.index) in left
            and other.space != one.space
            and all(
                known.get((a.space, a.netns), b.space) == b.space
                for a, b in ((one, other), (other, one))
            )
        ]

    progress = True
    while progress:
        progress = False
        for one in list(left.values()):
            peers = fitting(one) if (one.space, one.index) in left else []
            if len(peers) != 1 or fitting(peers[0]) != [one]:
                continue
            (other,) = peers
            found.append((one, other))
            for a, b in ((one, other), (other, one)):
                known[a.space, a.netns] = b.space
                del left[a.space, a.index]
            progress = True
    return found


def _paired(machine: str, spaces: Sequence[Space]) -> list[Space]:
    """Return the namespaces of a machine with the peers of their veth devices."""
    ends = [
        End(space.name, link.name, link.index, link.data["peer_index"], link.data["peer_netns"])
        for space in spaces
        for link in space.links
        if link.kind == "veth" and link.data.get("peer_netns") is not None
    ]
    peers: dict[tuple[str, str], Peer] = {}
    for one, other in pairs(ends):
        peers[one.space, one.name] = Peer(machine, other.space, other.name)
        peers[other.space, other.name] = Peer(machine, one.space, one.name)
    for space in spaces:
        for link in space.links:
            if link.kind == "veth" and link.lower:  # both ends are here
                peers[space.name, link.name] = Peer(machine, space.name, link.lower)
    return [_with_peers(space, peers) for space in spaces]


def _with_peers(space: Space, peers: Mapping[tuple[str, str], Peer]) -> Space:
    links = tuple(
        replace(link, peer=peers.get((space.name, link.name), link.peer)) for link in space.links
    )
    return replace(space, links=links)


def _joined(lab: LiveLab, machine: Machine, fabric: Machine | None) -> Machine:
    """Return a node with the networks and the other ends of its ports."""
    if not machine.spaces:
        return machine
    topology, name = lab.topology, machine.name
    networks: dict[str, str] = {}
    peers: dict[tuple[str, str], Peer] = {}
    for one, other in _links_between(topology):
        for a, b in ((one, other), (other, one)):
            if a[0] == name and b[0] in topology.nodes:
                peers["", a[1]] = Peer(b[0], "", b[1])
    if topology.foreign is None:
        provider = lab.context.provider
        direct = provider.direct(topology, name)
        held = [port for port in topology.nodes[name].ports if port.name not in direct]
        networks = {port.name: port.network for port in topology.nodes[name].ports}
        for port, there in zip(held, provider.ports(topology, name), strict=False):
            if fabric is not None and fabric.own.link(there) is not None:
                peers["", port.name] = Peer(fabric.name, "", there)
    own, *others = machine.spaces
    own = replace(
        own, links=tuple(replace(one, joins=networks.get(one.name, "")) for one in own.links)
    )
    return replace(machine, spaces=(_with_peers(own, peers), *others))


def _plugged(nodes: Sequence[Machine], fabric: Machine) -> list[Machine]:
    """Return the nodes with the ports of the fabric that another tool has joined them to.

    No file names these: the kernel does, which all of them have in common.
    """
    ends = [
        End(one.name, link.name, link.index, link.data["peer_index"], link.data["peer_netns"])
        for one in (*nodes, fabric)
        for link in one.own.links
        if link.kind == "veth" and link.data.get("peer_netns") is not None
    ]
    found: dict[str, dict[tuple[str, str], Peer]] = {}
    for pair in pairs(ends):
        for one, other in (pair, pair[::-1]):
            found.setdefault(one.space, {})["", one.name] = Peer(other.space, "", other.name)
    return [
        replace(one, spaces=(_with_peers(one.own, found.get(one.name, {})), *one.spaces[1:]))
        if one.spaces
        else one
        for one in nodes
    ]


def bridged(foreign: Foreign, nodes: Sequence[Machine], fabric: Machine) -> Iterator[Network]:
    """Yield the networks of another tool's lab: bridges of the fabric that nodes are on."""
    ports: dict[str, list[tuple[str, Link]]] = {}
    for node in nodes:
        for link in node.own.links:
            peer = link.peer
            held = fabric.own.link(peer.link) if peer and peer.machine == fabric.name else None
            if held is not None and held.master:
                ports.setdefault(held.master, []).append((node.name, link))
    drawn = {end.at for link in foreign.links for end in link.ends}
    for bridge, some in ports.items():
        known = dict.fromkeys(name for node, _ in some for name in foreign.nodes[node].networks)
        rest = [
            name
            for name in known  # without bridges that have the name, and those in nodes
            if fabric.own.link(name) is None and name.rpartition(":")[0] not in drawn
        ]
        name = bridge if bridge in known else rest[0] if rest else bridge
        subnets = {
            one.version: str(one)
            for _, link in reversed(some)
            for one in (ip_interface(address).network for address in link.global_addresses)
        }
        yield Network(
            name,
            ", ".join(subnets[version] for version in sorted(subnets)),
            tuple((node, link.name) for node, link in some),
            bridge,
            aside=name != bridge,
        )


def _on(networks: Iterable[Network], machine: Machine) -> Machine:
    """Return a node with the networks that its devices lead to."""
    joins = {port: one.name for one in networks for at, port in one.ports if at == machine.name}
    if not joins:
        return machine
    links = tuple(replace(one, joins=joins.get(one.name, one.joins)) for one in machine.own.links)
    return replace(machine, spaces=(replace(machine.own, links=links), *machine.spaces[1:]))


def _reflected(fabric: Machine, nodes: Iterable[Machine]) -> Machine:
    """Return the fabric with the nodes' ports as the peers of its own."""
    back: dict[tuple[str, str], Peer] = {}
    joins: dict[str, str] = {}
    for node in nodes:
        for link in node.own.links:
            if link.peer is not None and link.peer.machine == fabric.name:
                back["", link.peer.link] = Peer(node.name, "", link.name)
                joins[link.peer.link] = link.joins
    own, *others = fabric.spaces
    for link in own.links:  # a bridge belongs to the network of its ports
        if link.master and link.name in joins:
            joins[link.master] = joins[link.name]
    own = replace(
        own, links=tuple(replace(one, joins=joins.get(one.name, "")) for one in own.links)
    )
    return replace(fabric, spaces=(_with_peers(own, back), *others))


def _links_between(topology: Topology) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    """Yield both ends of each link between two nodes, in our file or another tool's."""
    for pair in topology.links:
        one, other = pair.ends
        yield one, other
    for link in topology.foreign.links if topology.foreign else ():
        yield tuple((end.at, end.interface) for end in link.ends)  # type: ignore[misc]  # two


# -- the lab ---------------------------------------------------------------------


def wires(topology: Topology, nodes: Iterable[Machine]) -> Iterator[tuple[WireEnd, WireEnd]]:
    """Yield both ends of each link between two nodes, and whether they are up."""
    seen = {
        node.name: {link.name for link in node.own.links if link.up and link.shown}
        for node in nodes
    }

    def end(at: str, interface: str) -> WireEnd:
        return WireEnd(at, interface, at not in seen or interface in seen[at])

    for one, other in _links_between(topology):
        yield end(*one), end(*other)


def _networks(
    topology: Topology, nodes: Sequence[Machine], fabric: Machine | None
) -> Iterator[Network]:
    for network in topology.networks.values():
        if network.link >= 0:
            continue
        ports = [
            (node.name, port.name)
            for node in topology.nodes.values()
            for port in node.on(network.name)
        ]
        bridge = ""
        for node in nodes:
            for link in node.own.links:
                held = fabric.own.link(link.peer.link) if fabric and link.peer else None
                if held is not None and (node.name, link.name) in ports:
                    bridge = held.master or bridge
        yield Network(network.name, network.subnets, tuple(ports), bridge, network.uplink)


def _overlay(lab: LiveLab) -> Mapping[str, Any] | None:
    found = (ROLES[role].overlay(lab.topology) for role in lab.topology.roles)
    return next((dict(one) for one in found if one is not None), None)


def _services(lab: LiveLab) -> tuple[list[Service], list[str]]:
    found: list[Service] = []
    warnings: list[str] = []
    for role in lab.topology.roles:
        try:
            found += [
                Service(
                    str(one["name"]),
                    tuple(one.get("addresses", ())),
                    tuple(one.get("ports", ())),
                    tuple(one.get("backends", ())),
                )
                for one in ROLES[role].virtual_services(lab)
            ]
        except TestbedError as error:
            warnings.append(str(error))
    return found, warnings

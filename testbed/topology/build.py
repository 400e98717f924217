"""Build a :class:`Topology` from a tree, with all defaults.

Invalid values are reported and left out. :mod:`testbed.topology.check` checks whether the parts
fit together.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import TYPE_CHECKING, Literal, cast

from testbed import registry
from testbed.faults.model import RESERVED, Fault, Unreadable, parse
from testbed.topology import keys, reserved, tree
from testbed.topology.check import check
from testbed.topology.model import (
    ADD_ONS,
    BACKENDS,
    DEFAULT_ADD_ONS,
    ENGINES,
    FIREWALLS,
    PLUGINS,
    PROXIES,
    AddOn,
    Backend,
    Bridge,
    Container,
    Docker,
    Engine,
    Firewall,
    Flannel,
    Healthcheck,
    Kubernetes,
    Namespace,
    Network,
    Node,
    Plugin,
    Proxy,
    Publish,
    Ready,
    Topology,
    Underlay,
    Veth,
    VethEnd,
)
from testbed.topology.read import Reader
from testbed.topology.tree import Problems, Tree, nearest, quote

if TYPE_CHECKING:
    from collections import abc

    from testbed.topology.reserved import Reserved

__all__ = ["build"]


def build(root: Tree, problems: Problems) -> Topology:
    """Return the topology that a tree describes.

    Raises TopologyError with all problems.
    """
    read = Reader(problems)
    top = read.mapping(root, keys.TOPOLOGY, "a mapping with 'name' and 'nodes'")
    if top is None:
        raise problems.error()
    topology = _topology(read, top, problems)
    check(topology, top, problems)
    if problems:
        raise problems.error()
    return topology


def _topology(read: Reader, top: tree.Mapping, problems: Problems) -> Topology:
    name = top.get("name")
    nodes = _nodes(read, top)
    flannel = _flannel(read, top, nodes)
    return Topology(
        name=(name and read.name(name, "a lab", keys.LABEL, keys.LAB_MAX)) or "",
        description=read.text(top.get("description")) or "",
        provider=read.choice(top.get("provider"), "a provider", [*registry.PROVIDERS])
        or keys.DEFAULT_PROVIDER,
        networks=_networks(read, top),
        nodes=nodes,
        docker=_docker(read, top, nodes, flannel),
        flannel=flannel,
        kubernetes=_kubernetes(read, top, nodes),
        containers=_containers(read, top),
        namespaces=_namespaces(read, top),
        bridges=_bridges(read, top),
        veths=_veths(read, top),
        faults=_faults(read, top),
        source=problems.source,
    )


def _node_of(read: Reader, body: tree.Mapping, key: str = "node") -> str | None:
    """Return the name of a node; the check of its existence comes later."""

    def correct(text: str) -> str:
        good = re.fullmatch(keys.LABEL, text) and not reserved.why(text, reserved.NODES)
        return "" if good else "write the name of a node"

    return read.text(body.get(key), "the name of a node", correct)


def _named(
    read: Reader,
    section: Tree | None,
    what: str,
    pattern: str,
    limit: int,
    *,
    taken: abc.Iterable[Reserved] = (),
    empty: bool = True,
) -> abc.Iterator[tuple[str, Tree]]:
    """Yield the entries of a section whose keys are names.

    Entries with an invalid name are included, so that problems in them are reported, too.
    """
    found = read.table(section, empty=empty)
    for entry in found.entries.values() if found else ():
        read.name(entry.key, what, pattern, limit, taken=taken)
        yield entry.key.text, entry.value


def _networks(read: Reader, top: tree.Mapping) -> dict[str, Network]:
    out = {}
    section = top.get("networks")
    for name, at in _named(read, section, "a network", keys.LABEL, keys.NETWORK_MAX):
        body = read.mapping(at, keys.NETWORK)
        # At least two host addresses, plus the network's and the broadcast address.
        subnet = read.network(body and body.get("subnet"), 8, 30)
        if subnet is not None:
            out[name] = Network(name, subnet)
    return out


def _nodes(read: Reader, top: tree.Mapping) -> dict[str, Node]:
    out = {}
    section = top.get("nodes")
    for name, at in _named(
        read, section, "a node", keys.LABEL, keys.NODE_MAX, taken=reserved.NODES, empty=False
    ):
        body = read.mapping(at, keys.NODE)
        out[name] = _node(read, name, body) if body else Node(name)
    if isinstance(section, tree.Mapping) and not (
        section.entries or read.problems.touched("nodes")
    ):
        read.problems.add(section, "at least one node", "none", "add one: 'node1: {}'")
    return out


def _node(read: Reader, name: str, body: tree.Mapping) -> Node:
    networks = {}
    plugged = read.table(body.get("networks"), "a mapping of network to address")
    for network, entry in plugged.entries.items() if plugged else ():
        address = read.address(entry.value)
        if address is not None:
            networks[network] = address
    roles = _choices(read, body.get("roles"), "a list of roles", "role", [*registry.ROLES])
    return Node(
        name=name,
        networks=networks,
        roles=roles,
        gateway=read.boolean(body.get("gateway")) or False,
        cpus=read.cpus(body.get("cpus")),
        memory=read.memory(body.get("memory")),
        provider=read.choice(body.get("provider"), "a provider", [*registry.PROVIDERS]),
    )


def _choices(
    read: Reader, at: Tree | None, wanted: str, what: str, known: abc.Sequence[str]
) -> tuple[str, ...]:
    """Return the items of a list; each must be a known one and occur once."""
    found: dict[str, None] = {}
    for item in read.items(at, wanted):
        name = read.choice(item, f"{_article(what)} {what}", known)
        if name in found:
            read.problems.add(item, f"each {what} once", f"{quote(name)} again", "remove one")
        elif name:
            found[name] = None
    return tuple(found)


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _flannel(read: Reader, top: tree.Mapping, nodes: abc.Mapping[str, Node]) -> Flannel | None:
    body = read.mapping(top.get("flannel"), keys.FLANNEL)
    if body is None:
        return None
    backend = cast(
        "Backend",
        read.choice(body.get("backend"), "a backend", BACKENDS) or keys.DEFAULT_BACKEND,
    )
    network = IPv4Network(keys.DEFAULT_FLANNEL)
    if (at := body.get("network")) is not None:
        # Flannel requires room for four subnets of four addresses (pkg/subnet/config.go).
        network = read.network(at, 8, 28) or network
    given = _subnets(read, body.get("subnets"))
    port = read.integer(body.get("port"), "a UDP port", 1, 65535)
    return Flannel(
        backend=backend,
        network=network,
        subnets=_all_subnets(read, body, nodes, network, given),
        port=port or keys.DEFAULT_PORT.get(backend),
        vni=read.integer(body.get("vni"), "a VXLAN network identifier", 1, keys.MAX_VNI) or 1,
        interface=_interface(read, body.get("interface"), top),
    )


def _interface(read: Reader, at: Tree | None, top: tree.Mapping) -> Underlay:
    """Return the ``interface`` of an overlay or a cluster.

    Its existence is checked later.
    """
    wanted = "the name of a network, or ethN"
    known = tree.keys_at(top, "networks")

    def correct(text: str) -> str:
        return "" if text in known else nearest(text, known)

    if isinstance(at, tree.Mapping):
        given = {n: read.text(entry.value, wanted, correct) for n, entry in at.entries.items()}
        return {node: name for node, name in given.items() if name}
    return read.text(at, wanted, correct) or ""


def _subnets(read: Reader, at: Tree | None) -> dict[str, IPv4Network]:
    table = read.table(at, "a mapping of node to subnet")
    read_ones = {
        node: read.network(entry.value, 8, 30)
        for node, entry in (table.entries.items() if table else ())
    }
    return {node: subnet for node, subnet in read_ones.items() if subnet is not None}


def subnet_length(network: IPv4Network, given: abc.Iterable[IPv4Network] = ()) -> int:
    """Return the prefix length of a node's subnet.

    It is that of the given subnets. The default is flannel's: 24 bits, or a quarter of a network
    that is smaller than a /22 (flannel, pkg/subnet/config.go).
    """
    for subnet in given:
        return subnet.prefixlen
    return 24 if network.prefixlen <= 22 else network.prefixlen + 2


def _all_subnets(
    read: Reader,
    body: tree.Mapping,
    nodes: abc.Mapping[str, Node],
    network: IPv4Network,
    given: dict[str, IPv4Network],
) -> dict[str, IPv4Network]:
    """Return every flannel node's subnet: the file's, or the next free one."""
    members = [n.name for n in nodes.values() if "flannel" in n.roles]
    length = subnet_length(network, given.values())
    # After a problem with a given subnet, computed subnets would only cause more messages.
    if read.problems.touched("flannel") or length < network.prefixlen + 2:
        return given
    wanted = f"a subnet for each of {len(members)} flannel nodes"
    at = body.get("network") or body
    return _counted_on(read, members, network, given, length=length, at=at, wanted=wanted)


def _counted_on(
    read: Reader,
    members: abc.Sequence[str],
    network: IPv4Network,
    given: dict[str, IPv4Network],
    *,
    length: int,
    at: Tree,
    wanted: str,
) -> dict[str, IPv4Network]:
    """Return the given subnets, and the next free ones for other members.

    The new ones have the given prefix length. The network's first subnet is not used, as in flannel
    (SubnetMin, pkg/subnet/config.go).
    """
    missing = [name for name in members if name not in given]
    if not missing:
        return given
    taken = [next(network.subnets(new_prefix=length)), *given.values()]
    free = (s for s in network.subnets(new_prefix=length) if not any(map(s.overlaps, taken)))
    counted = dict(zip(missing, free, strict=False))
    if len(counted) < len(missing):
        room = (1 << (length - network.prefixlen)) - 1
        seen = f"{network} with room for {room} of /{length}"
        hint = "use a larger network" + (", or fewer nodes" if room else "")
        read.problems.add(at, wanted, seen, hint)
    both = given | counted
    return {name: both[name] for name in members if name in both} | given


def _kubernetes(
    read: Reader, top: tree.Mapping, nodes: abc.Mapping[str, Node]
) -> Kubernetes | None:
    members = [n.name for n in nodes.values() if "kubernetes" in n.roles]
    at = top.get("kubernetes")
    if at is None and not members:
        return None
    body = read.mapping(at, keys.KUBERNETES) or tree.Mapping((), 0, 0)
    pods = read.network(body.get("pods"), 8, 24) or IPv4Network(keys.DEFAULT_PODS)
    add_ons = body.get("add-ons")
    chosen = _choices(read, add_ons, "a list of add-ons", "add-on", ADD_ONS)
    return Kubernetes(
        control_plane=_node_of(read, body, "control-plane") or next(iter(members), ""),
        pods=pods,
        services=read.network(body.get("services"), 12, 24) or IPv4Network(keys.DEFAULT_SERVICES),
        ranges=_ranges(read, body, members, pods),
        proxy=cast(
            "Proxy",
            read.choice(body.get("proxy"), "a proxy mode", PROXIES) or keys.DEFAULT_PROXY,
        ),
        cni=cast(
            "Plugin",
            read.choice(body.get("cni"), "a network plugin", PLUGINS) or keys.DEFAULT_PLUGIN,
        ),
        backend=cast(
            "Backend",
            read.choice(body.get("backend"), "a backend", BACKENDS) or keys.DEFAULT_BACKEND,
        ),
        add_ons=DEFAULT_ADD_ONS if add_ons is None else cast("tuple[AddOn, ...]", chosen),
        interface=_interface(read, body.get("interface"), top),
    )


def _ranges(
    read: Reader, body: tree.Mapping, members: list[str], pods: IPv4Network
) -> dict[str, IPv4Network]:
    """Return every node's range of Pods: the file's, or the next free one."""
    given = _subnets(read, body.get("ranges"))
    # A /24 per node is the controller manager's default (--node-cidr-mask-size).
    length = max(24, pods.prefixlen)
    wanted = f"a range for each of {len(members)} nodes"
    at = body.get("pods") or body
    return _counted_on(read, members, pods, given, length=length, at=at, wanted=wanted)


def _docker(
    read: Reader, top: tree.Mapping, nodes: abc.Mapping[str, Node], flannel: Flannel | None
) -> Docker:
    body = read.mapping(top.get("docker"), keys.DOCKER) or tree.Mapping((), 0, 0)
    engine = read.release(body.get("engine"), "an engine", ENGINES, keys.ENGINE_ALIASES)
    firewall = read.choice(body.get("firewall"), "a packet filter", FIREWALLS)
    return Docker(
        bip=_bips(read, body.get("bip"), nodes, flannel),
        engine=cast("Engine", engine or keys.DEFAULT_ENGINE),
        firewall=cast("Firewall", firewall or keys.DEFAULT_FIREWALL),
    )


def _bips(
    read: Reader, at: Tree | None, nodes: abc.Mapping[str, Node], flannel: Flannel | None
) -> dict[str, IPv4Interface]:
    """Return every Docker node's docker0: the file's, or the default."""
    plain = IPv4Interface(keys.DEFAULT_BIP)
    given: dict[str, IPv4Interface] = {}
    if isinstance(at, tree.Mapping):
        for name, entry in at.entries.items():
            bip = read.interface(entry.value, longest=30)
            if bip is not None:
                given[name] = bip
    elif at is not None:
        plain = read.interface(at, longest=30) or plain
        if not any("docker" in n.roles and "flannel" not in n.roles for n in nodes.values()):
            wanted = "a node with the role docker and without flannel"
            some = any("docker" in n.roles for n in nodes.values())
            hint = "write {node: address} for other nodes" if some else "give a node the role"
            hint += ", or leave bip out"
            read.problems.add(at, wanted, "none", hint)
    out: dict[str, IPv4Interface] = {}
    for node in nodes.values():
        if node.name in given or "docker" not in node.roles:
            continue
        if "flannel" not in node.roles:
            out[node.name] = plain
        elif flannel and (subnet := flannel.subnets.get(node.name)):
            out[node.name] = IPv4Interface((subnet.network_address + 1, subnet.prefixlen))
    return given | out


def _containers(read: Reader, top: tree.Mapping) -> dict[str, Container]:
    out = {}
    section = top.get("containers")
    for name, at in _named(
        read, section, "a container", keys.CONTAINER, keys.LABEL_MAX, taken=reserved.CONTAINERS
    ):
        body = read.mapping(at, keys.CONTAINER_KEYS)
        if body is not None:
            out[name] = _container(read, name, body)
    return out


def _container(read: Reader, name: str, body: tree.Mapping) -> Container:
    image = read.matching(
        body.get("image"),
        keys.IMAGE,
        "an image, like nginx or registry.example:5000/team/web:1.2",
        "a repository is written in lower case, its tag after a colon",
    )
    if image is not None and len(image) > keys.IMAGE_MAX:
        wanted = f"an image of at most {keys.IMAGE_MAX} characters"
        read.problems.add(body, wanted, f"one with {len(image)}", "shorten it")
    network = read.matching(
        body.get("network"),
        keys.NETWORK_MODE,
        "bridge, host, none or container:NAME",
        "leave it out for Docker's bridge; the lab's networks are joined by nodes alone",
    )
    ports = (_publish(read, p) for p in read.items(body.get("publish"), "a list of ports"))
    return Container(
        name=name,
        node=_node_of(read, body) or "",
        image=image or keys.DEFAULT_IMAGE,
        network=network or "bridge",
        publish=tuple(p for p in ports if p),
        command=_command(read, body.get("command")),
        env=_env(read, body.get("env")),
        expect=_expect(read, body.get("expect")),
        healthcheck=_healthcheck(read, body.get("healthcheck")),
        ready=_ready(read, body.get("ready")),
    )


def _expect(read: Reader, at: Tree | None) -> int | None:
    wanted = "running, or the exit status of a container that ends, like exit 0"
    value = read.matching(at, keys.EXPECT, wanted, "write 'expect: exit 0'")
    if at is None or value is None or value == "running":
        return None
    return _number(read, at, value.removeprefix("exit "), "an exit status", low=0, high=255)


def _number(
    read: Reader, at: Tree, digits: str, what: str, *, low: int = 1, high: int = 65535
) -> int | None:
    """Return the number in a text of digits.

    It has no leading zeros, and is from ``low`` to ``high``.
    """
    number = int(digits)
    if not low <= number <= high:
        read.problems.add(at, f"{what} from {low} to {high}", quote(digits), "change it")
    elif digits != str(number):
        read.problems.add(at, f"{what} without leading zeros", quote(digits), f"write {number}")
    else:
        return number
    return None


def _healthcheck(read: Reader, at: Tree | None) -> Healthcheck | None:
    body = read.mapping(at, keys.HEALTHCHECK)
    if body is None:
        return None
    return Healthcheck(
        test=_test(read, body.get("test")),
        interval=read.duration(body.get("interval")),
        timeout=read.duration(body.get("timeout")),
        retries=read.integer(body.get("retries"), "a number of checks", 1, 1000),
        start_period=read.duration(body.get("start_period"), 0.0),
    )


def _test(read: Reader, at: Tree | None) -> tuple[str, ...]:
    """Return a health check's test.

    A single text is a shell command (CMD-SHELL), as in Compose.
    """
    if isinstance(at, tree.Scalar):
        line = read.text(at)
        if line == "":
            read.problems.add(at, "a command", "none", "leave it out for the image's own")
        return ("CMD-SHELL", line) if line else ()
    words = tuple(read.text(item) or "" for item in read.items(at, "a command line, or a list"))
    first = words[0] if words else ""
    if at is None or read.problems.touched(*at.path):
        return ()
    length = {"NONE": 1, "CMD-SHELL": 2}.get(first, max(2, len(words)))
    if first not in keys.TESTS or len(words) != length:
        wanted = "[CMD, PROGRAM, ARGUMENT...], [CMD-SHELL, LINE] or [NONE]"
        hint = _TEST_HINTS.get(first, "put CMD before a program and its arguments")
        read.problems.add(at, wanted, quote(" ".join(words)) if words else "none", hint)
        return ()
    return words


_TEST_HINTS = {
    "CMD": "add a program after CMD",
    "CMD-SHELL": "write one line after CMD-SHELL, in quotes",
    "NONE": "write [NONE] alone to turn off the check",
}


def _ready(read: Reader, at: Tree | None) -> Ready | None:
    body = read.mapping(at, keys.READY)
    if body is None:
        return None
    if not {"port", "command"} & body.entries.keys():
        read.problems.add(body, "a port or a command", "none", "like {port: 80}")
    port, protocol = _port(read, body.get("port"))
    return Ready(
        port=port,
        protocol=protocol,
        command=_command(read, body.get("command"), "add a command, or leave the key out"),
        timeout=read.duration(body.get("timeout")) or keys.READY_SECONDS,
    )


def _port(read: Reader, at: Tree | None) -> tuple[int, Literal["tcp", "udp"]]:
    if isinstance(at, tree.Scalar) and isinstance(at.value, int):
        return read.integer(at, "a port", 1, 65535) or 0, "tcp"
    value = read.matching(at, keys.PORT, "a port, like 80 or 53/udp", "like 80 or 53/udp")
    if at is None or value is None:
        return 0, "tcp"
    digits, _, protocol = value.partition("/")
    number = _number(read, at, digits, "a port")
    return number or 0, "udp" if protocol == "udp" else "tcp"


def _publish(read: Reader, at: Tree) -> Publish | None:
    wanted = "a port as [address:]host_port:container_port[/tcp|/udp]"
    value = read.matching(at, keys.PUBLISH, wanted, 'like "8080:80" or "10.168.0.2:8080:80/udp"')
    if value is None:
        return None
    ports, _, protocol = value.partition("/")
    *address, host_port, container_port = ports.split(":")
    outer = _number(read, at, host_port, "a port")
    inner = _number(read, at, container_port, "a port")
    if outer is None or inner is None:
        return None
    try:
        ip = IPv4Address(address[0]) if address else None
    except ValueError:
        hint = "write four numbers from 0 to 255 with dots between"
        read.problems.add(at, "an IPv4 address", quote(address[0]), hint)
        return None
    # The default protocol is TCP, as in docker run.
    kind = cast("Literal['tcp', 'udp']", protocol or "tcp")
    return Publish(outer, inner, kind, ip)


def _command(
    read: Reader, at: Tree | None, hint: str = "leave the key out for the image's own command"
) -> tuple[str, ...] | None:
    if at is None:
        return None
    items = read.items(at, "a list: the command and its arguments")
    if isinstance(at, tree.Sequence) and not items:
        read.problems.add(at, "a command", "an empty list", hint)
    words = [read.text(item, "an argument as text") for item in items]
    return tuple(word for word in words if word is not None)


def _env(read: Reader, at: Tree | None) -> dict[str, str]:
    out = {}
    table = read.table(at, "a mapping of variables")
    for entry in table.entries.values() if table else ():
        name = read.matching(
            entry.key,
            keys.VARIABLE,
            "a variable of letters, digits and '_', no digit first",
            "rename it",
        )
        value = read.text(entry.value, "a variable's value as text")
        if name is not None and value is not None:
            out[name] = value
    return out


def _on_node(read: Reader, at: Tree, known: keys.Keys) -> str | None:
    body = read.mapping(at, known)
    return _node_of(read, body) if body else None


def _namespaces(read: Reader, top: tree.Mapping) -> dict[str, Namespace]:
    out = {}
    section = top.get("namespaces")
    for name, at in _named(read, section, "a namespace", keys.NAMESPACE, keys.LABEL_MAX):
        out[name] = Namespace(name, _on_node(read, at, keys.NAMESPACE_KEYS) or "")
    return out


def _bridges(read: Reader, top: tree.Mapping) -> dict[str, Bridge]:
    out = {}
    section = top.get("bridges")
    for name, at in _named(
        read, section, "a bridge", keys.INTERFACE, keys.INTERFACE_MAX, taken=reserved.LINKS
    ):
        out[name] = Bridge(name, _on_node(read, at, keys.BRIDGE_KEYS) or "")
    return out


def _faults(read: Reader, top: tree.Mapping) -> dict[str, Fault]:
    out = {}
    section = read.table(top.get("faults"))
    for entry in section.entries.values() if section else ():
        name = read.name(entry.key, "a fault", keys.LABEL, keys.LABEL_MAX)
        if name in RESERVED:
            wanted = "a name for a fault that is no word of `testbed fault` itself"
            hint = f"{', '.join(RESERVED)} are taken; choose another"
            read.problems.add(entry.key, wanted, quote(name), hint)
        words = read.text(entry.value, "a fault in words, like 'loss node1:node2 20%'")
        if words is None:
            continue
        try:
            out[entry.key.text] = parse(words.split())
        except Unreadable as error:
            read.problems.add(entry.value, error.wanted, error.seen, error.hint)
    return out


def _veths(read: Reader, top: tree.Mapping) -> tuple[Veth, ...]:
    # One per item of the file, even for an invalid one, because positions are indices.
    return tuple(_veth(read, at) for at in read.items(top.get("veths"), "a list of pairs"))


def _veth(read: Reader, at: Tree) -> Veth:
    nothing = VethEnd("")
    body = read.mapping(at, keys.VETH)
    if body is None:
        return Veth("", (nothing, nothing))
    node = _node_of(read, body) or ""
    section = body.get("ends")
    ends = [_veth_end(read, item) for item in read.items(section, "a list of two ends")]
    if isinstance(section, tree.Sequence) and len(ends) != 2:
        hint = "a veth pair has two ends, each with a name"
        read.problems.add(section, "two ends", str(len(ends)), hint)
    first, second = (*ends, nothing, nothing)[:2]
    return Veth(node, (first, second))


def _veth_end(read: Reader, at: Tree) -> VethEnd:
    body = read.mapping(at, keys.VETH_END)
    if body is None:
        return VethEnd("")
    named = body.get("name")
    return VethEnd(
        name=(
            named
            and read.name(
                named, "an interface", keys.INTERFACE, keys.INTERFACE_MAX, taken=reserved.LINKS
            )
        )
        or "",
        namespace=read.text(body.get("namespace"), "the name of a namespace"),
        bridge=read.text(body.get("bridge"), "the name of a bridge"),
        address=read.interface(body.get("address")),
    )

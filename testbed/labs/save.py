"""Write a running lab, with what was changed on it by hand, as a topology.

Only what can be told from what `up` sets is looked for. What a topology file cannot say is listed,
in commands of ip(8) where there are some.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

from testbed.errors import LabError, TopologyError, UsageError
from testbed.exports.base import comment, dump
from testbed.faults.model import LINK_KINDS, QUEUE_KINDS
from testbed.nodes import netstate, wiring
from testbed.registry import ROLES
from testbed.topology import iproute
from testbed.topology.load import load_data
from testbed.topology.model import MTU
from testbed.topology.variables import escaped

if TYPE_CHECKING:
    from testbed.faults.model import Fault
    from testbed.nodes.base import Node
    from testbed.steps.context import Context
    from testbed.topology.model import Topology
    from testbed.topology.ports import Port

#: Protocols of routes that people, or programs without one of their own, have set (rtnetlink(7)).
OWN_PROTOCOLS = ("boot", "static", None)
#: Preferences of the rules that each network namespace has from the start (ip-rule(8)).
FIRST_RULES = (0, 32766, 32767)
FORWARDING = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
#: Sysctls that change with others, have a random value or count something.
UNSTABLE = re.compile(r".*(forwarding|_key|accept_redirects|\.mtu|_mem|stable_secret|ip_forward)")
ADDRESSED = ("subnet", "subnet6", "addresses")  # keys of a link for the addresses of its ends
#: Kinds of links that people create; those of roles are left out by their names.
LINKS = (
    "dummy",
    "vlan",
    "vxlan",
    "gre",
    "bond",
    "bridge",
    "macvlan",
    "ipvlan",
    "wireguard",
    "ipip",
)
#: Prints the sysctls of the network stack here, and in a new network namespace; the details of
#: links; and their queues.
LOOK = """\
sysctl -a -r '^net\\.' 2> /dev/null; printf '\\0'
unshare --net sysctl -a -r '^net\\.' 2> /dev/null; printf '\\0'
ip -j -d link; printf '\\0'
tc -j qdisc show 2> /dev/null; printf '\\0'
"""


@dataclass(frozen=True, slots=True)
class Found:
    """Something that was changed by hand: the path of its key in a file and the value there.

    The value None removes the key. ``words`` say it where the file cannot. A list extends one that
    is there, unless it is to ``replace`` it. A command of the node's ``run`` with all ``tokens``
    makes the change itself.
    """

    path: tuple[str | int, ...]
    value: Any
    words: str
    replace: bool = False
    tokens: tuple[str | int, ...] = ()


@dataclass(slots=True)
class Saved:
    """A topology as data, and in words what it cannot say."""

    data: dict[str, Any]
    unsaid: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Return the topology file."""
        lines = [f"# The running lab {self.data['name']}, saved by testbed."]
        if self.unsaid:
            lines.append("# A topology file cannot say what is left:")
            lines += [f"#   {comment(words)}" for words in self.unsaid]
        return "\n".join([*lines, dump(escaped(self.data))])

    def add_all(self, some: Iterable[Found]) -> None:
        """Change values, in an order in which each is valid; list the others as unsaid."""
        waiting = list(some)
        while waiting:
            failed = [(one, why) for one in waiting if (why := self._add(one))]
            if len(failed) == len(waiting):
                self.unsaid += [f"{one.words} ({why})" for one, why in failed]
                return
            waiting = [one for one, _ in failed]

    def _add(self, found: Found) -> str:
        """Change a value; return why the topology would be invalid, empty if it is valid."""
        if not found.path:
            self.unsaid.append(found.words)
            return ""
        changed = copy.deepcopy(self.data)
        try:
            _put(changed, found.path, found.value, replace=found.replace)
            load_data(changed, "the saved lab")
        except TopologyError as error:
            return error.problems[0].words
        except TypeError as error:
            return str(error)
        self.data = changed
        return ""


def _put(data: Any, path: Sequence[str | int], value: Any, *, replace: bool = False) -> None:
    """Set a value; extend a list that is there, and a mapping whose other values are the same.

    A number in the path is the index of an entry that is there.
    """
    *folders, name = path
    for folder in folders:
        data = data[folder] if isinstance(folder, int) else data.setdefault(folder, {})
    there = data[name] if isinstance(name, int) else data.get(name)
    if value is None:
        data.pop(name, None)
    elif replace:
        data[name] = value
    elif isinstance(value, list) and isinstance(there, list):
        data[name] = [*there, *(one for one in value if one not in there)]
    elif isinstance(value, dict) and isinstance(there, dict):
        differing = {key for key in {*value, *there} if value.get(key) != there.get(key)}
        if not all(isinstance(one.get(key), list) for key in differing for one in (value, there)):
            raise TypeError(f"{name} exists with other settings")
        for key in differing:
            _put(there, (key,), value[key])
    else:
        data[name] = value


def save(context: Context, faults: Iterable[Fault] = (), *, file: str = "") -> Saved:
    """Return a running lab as a topology.

    ``faults`` are those in force, ``file`` is the one that the lab came from. Raises LabError if
    a node does not run, UsageError for a lab that another tool's file describes.
    """
    topology = context.topology
    if topology.foreign is not None:
        raise UsageError(
            f"lab {topology.name} was read from a file of {topology.foreign.format}",
            hint=f"`testbed export {topology.name}` writes the files of other tools",
        )
    saved = Saved(topology.to_dict())
    changes = [one for name in topology.nodes for one in _of_node(context, context.node(name))]
    changes += _link_ends(context) if topology.links else []
    saved.add_all([*changes, *_faults(topology, faults)])
    saved.data = load_data(saved.data, "the saved lab").to_dict()  # in its own order
    nodes = topology.nodes.values()
    paths = [file.source for node in nodes for file in node.files.values() if file.source]
    paths += [path for node in nodes for path in node.compose]
    paths += [bind.source for node in nodes for bind in node.binds]
    relative = [path for path in paths if not path.startswith("/")]
    if relative:
        folder = file.rpartition("/")[0] or "the folder of the first file"
        saved.unsaid.append(f"paths such as {relative[0]} are relative: keep this file in {folder}")
    return saved


def _of_node(context: Context, node: Node) -> Iterator[Found]:
    """Yield what was changed by hand on a node, and not by its own commands at start."""
    return (
        found
        for found in _seen_on(context, node)
        if not _is_of_commands(context.topology, node.name, found.tokens)
    )


def _is_of_commands(topology: Topology, node: str, tokens: Sequence[str | int]) -> bool:
    """Tell whether a node's own commands at start have all of these words."""
    own = json.dumps(topology.nodes[node].to_dict().get("run", []))
    return bool(tokens) and all(
        re.search(rf"(?<![\w.:/-]){re.escape(str(one))}(?![\w.-])", own) for one in tokens
    )


def _seen_on(context: Context, node: Node) -> Iterator[Found]:
    topology, spec = context.topology, context.topology.nodes[node.name]
    yield from _addresses(topology, node, topology.to_dict())
    seen = netstate.look(node)
    yield from _routes(topology, node, seen)
    yield from _rules(topology, node, seen)
    sysctls, fresh, links, queues = node.run(["sh", "-c", LOOK]).stdout.split("\0")[:4]
    yield from _sysctls(topology, node.name, _values(sysctls), _values(fresh))
    yield from _links(topology, node.name, json.loads(links or "[]"))
    yield from _queues(node.name, json.loads(queues or "[]"))
    for role in spec.roles:
        try:
            for path, value, words in ROLES[role].by_hand(topology, node):
                named = path[:1] in (("containers",), (role,)) and value is not None
                yield Found(path, value, words, tokens=path[-1:] if named else ())
        except LabError as error:
            yield Found((), None, f"{node.name}: parts of {role} are not known: {error.message}")


# -- addresses and links ---------------------------------------------------------------------


def _addresses(topology: Topology, node: Node, data: Mapping[str, Any]) -> Iterator[Found]:
    """Yield the addresses and MTUs of ports that differ from the file."""
    seen = wiring.look(node.network)
    for port in topology.nodes[node.name].ports:
        link = seen.links.get(port.name)
        if link is None or link.state == "down":
            how = "missing" if link is None else "down"
            yield Found((), None, f"{node.name}: the link {port.name} is {how}")
            continue
        there = _there(port, link)
        mtu = link.mtu if link.mtu not in (0, port.mtu or MTU) else None
        if port.peer is not None:
            if mtu is not None:
                yield Found((), None, f"ip link set {port.name} mtu {mtu}, on {node.name}")
            continue
        if there == [*map(str, port.subnetted)] and mtu is None:
            continue
        words = f"ip address add {', '.join(there) or 'none'} dev {port.name}"
        words += f" mtu {mtu}" if mtu else ""
        network = topology.networks[port.network]
        lengths = [f"/{one.prefixlen}" for one in (network.subnet, network.subnet6) if one]
        path = ("nodes", node.name, "networks", port.network)
        bodies = data["nodes"][node.name]["networks"][port.network]
        body = _port(bodies[port.item] if isinstance(bodies, list) else bodies)
        given = [_without(lengths, one) for one in there]
        body |= {"address": given[0]} if len(given) == 1 else {"addresses": given}
        body |= {"mtu": mtu} if mtu else {}
        value: Any = {key: one for key, one in body.items() if one}
        value = value["address"] if value.keys() == {"address"} else value
        if isinstance(bodies, list):
            value = [value if at == port.item else one for at, one in enumerate(bodies)]
        more = tuple(one for one in there if one not in map(str, port.subnetted))
        yield Found(path, value, f"{words}, on {node.name}", replace=True, tokens=more)


def _there(port: Port, link: wiring.Link) -> list[str]:
    """Return the addresses of a link, those of the file first."""
    wanted, seen = [*map(str, port.subnetted)], (*link.addresses, *link.addresses6)
    return [*(one for one in wanted if one in seen), *(one for one in seen if one not in wanted)]


def _without(lengths: Sequence[str], address: str) -> str:
    """Return an address without the prefix length of its port's network."""
    return next((address.removesuffix(one) for one in lengths if address.endswith(one)), address)


def _link_ends(context: Context) -> Iterator[Found]:
    """Yield the addresses of links whose ends differ from the file, each for both ends."""
    topology = context.topology
    bodies = topology.to_dict().get("links", [])
    looks: dict[str, wiring.Seen] = {}
    for index, (link, body) in enumerate(zip(topology.links, bodies, strict=True)):
        found, words = [], []
        for node, name in link.ends:
            seen = looks.setdefault(node, wiring.look(context.node(node).network))
            port = next(one for one in topology.nodes[node].ports if one.name == name)
            own = [*map(str, port.subnetted)]
            there = _there(port, seen.links[name]) if name in seen.links else own
            more = [one for one in there if one not in own]
            if _is_of_commands(topology, node, more):
                there = [one for one in there if one in own]
            found.append(there[0] if len(there) == 1 else there)
            if there != own:
                words.append(f"ip address add {', '.join(there) or 'none'} dev {name}, on {node}")
        if words:
            given = body if isinstance(body, Mapping) else {"ends": body}
            rest = {key: one for key, one in given.items() if key not in ADDRESSED}
            addresses = {"addresses": found} if any(found) else {}
            yield Found(("links", index), rest | addresses, "; ".join(words), replace=True)


def _port(body: Any) -> dict[str, Any]:
    """Return a port of a file as a mapping, without its addresses."""
    given = dict(body) if isinstance(body, Mapping) else {}
    return {key: one for key, one in given.items() if key not in ("address", "addresses")}


def _own_links(topology: Topology, node: str) -> set[str]:
    """Return the links of a node that its file or its roles create."""
    spec = topology.nodes[node]
    of_roles = {link.name for role in spec.roles for link in ROLES[role].links(topology, node)}
    return {
        "lo", *(port.name for port in spec.ports), *of_roles,
        *(name for name, bridge in topology.bridges.items() if bridge.node == node),
    }  # fmt: skip


def _links(topology: Topology, node: str, entries: Sequence[Mapping[str, Any]]) -> Iterator[Found]:
    own = _own_links(topology, node)
    for entry in entries:
        kind = (entry.get("linkinfo") or {}).get("info_kind")
        name = str(entry.get("ifname"))
        if kind in LINKS and name not in own and not re.fullmatch(r"br-[0-9a-f]{12}", name):
            words = f"ip link add {name} type {kind}, on {node}"
            yield Found((), None, words, tokens=(name,))


def _queues(node: str, entries: Sequence[Mapping[str, Any]]) -> Iterator[Found]:
    for entry in entries:
        if entry.get("kind") in ("netem", "tbf", "htb", "prio", "ingress", "clsact"):
            words = f"tc qdisc add dev {entry.get('dev')} root {entry['kind']}, on {node}"
            yield Found((), None, f"{words}: {json.dumps(entry.get('options', {}))}")


# -- routes, rules, sysctls ------------------------------------------------------------------


def _routes(topology: Topology, node: Node, seen: netstate.Seen) -> Iterator[Found]:
    spec = topology.nodes[node.name]
    path = ("nodes", node.name, "routes")
    entries = [(family, one) for family in netstate.FAMILIES for one in seen.routes[family]]
    yield from _removed(path, f"routes of {node.name}", spec.routes, entries)
    own = _own_links(topology, node.name) - {"lo", *(port.name for port in spec.ports)}
    overlays = _overlays(topology)
    six = topology.gateway6_of(node.name)
    gateways = {str(topology.gateway_of(node.name)), str(six[0]) if six else ""}
    for family, entry in entries:
        if (
            entry.get("protocol") not in OWN_PROTOCOLS
            or entry.get("table") == "local"
            or entry.get("dev") in own
            or any(route.matches(entry) for route in spec.routes)
            or (entry.get("dst") == "default" and entry.get("gateway") in gateways)
            or any(_is_in(str(entry.get("dst")), one) for one in overlays)
        ):
            continue
        text = _route_text(entry)
        words = f"ip -{family} route add {text}, on {node.name}"
        tokens = (str(entry["dst"]),)
        with contextlib.suppress(iproute.Unreadable):
            if iproute.route(text).matches(entry):
                yield Found(path, [text], words, tokens=tokens)
                continue
        yield Found((), None, words, tokens=tokens)


def _removed(
    path: tuple[str, ...],
    what: str,
    own: Sequence[iproute.Route] | Sequence[iproute.Rule],
    entries: Sequence[tuple[Any, Mapping[str, Any]]],
) -> Iterator[Found]:
    """Yield the routes or rules of the file that are left, if some are gone."""
    kept = [one for one in own if any(one.matches(entry) for _, entry in entries)]
    if len(kept) < len(own):
        yield Found(path, None, f"{what} were removed")
        if kept:
            yield Found(path, [one.text for one in kept], what)


def _overlays(topology: Topology) -> list[str]:
    """Return the overlay networks of a lab; their routes are the roles'."""
    found = (ROLES[role].overlay(topology) for role in topology.roles)
    return [str(one[key]) for one in found if one for key in ("network", "network6") if key in one]


def _is_in(destination: str, network: str) -> bool:
    try:
        inner, outer = ip_network(destination), ip_network(network)
        return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]  # of one version
    except ValueError:  # default
        return False


def _route_text(entry: Mapping[str, Any]) -> str:
    """Return a route of ``ip -j route`` in the words of ip-route(8)."""
    kind = entry.get("type", "unicast")
    words = [kind] if kind != "unicast" else []
    words.append(str(entry["dst"]))
    via = entry.get("via") or {}
    for word, value in (
        ("via", entry.get("gateway") or via.get("host")),
        ("dev", entry.get("dev")),
    ):
        words += [word, str(value)] if value and kind == "unicast" else []
    for hop in entry.get("nexthops", ()):
        words += ["nexthop", *_hop(hop)]
    words += ["src", str(entry["prefsrc"])] if "prefsrc" in entry else []
    metric = entry.get("metric")
    words += ["metric", str(metric)] if metric not in (None, 0, 1024) else []
    table = str(entry.get("table", "main"))
    words += ["table", table] if table != "main" else []
    words += ["onlink"] if "onlink" in entry.get("flags", ()) else []
    return " ".join(words)


def _hop(hop: Mapping[str, Any]) -> Iterator[str]:
    for word, key in (("via", "gateway"), ("dev", "dev")):
        if hop.get(key):
            yield from (word, str(hop[key]))
    if hop.get("weight", 1) != 1:
        yield from ("weight", str(hop["weight"]))


def _rules(topology: Topology, node: Node, seen: netstate.Seen) -> Iterator[Found]:
    spec = topology.nodes[node.name]
    path = ("nodes", node.name, "rules")
    entries = [(family, one) for family in netstate.FAMILIES for one in seen.rules[family]]
    yield from _removed(path, f"rules of {node.name}", spec.ip_rules, entries)
    for family, entry in entries:
        if entry.get("priority") in FIRST_RULES or any(r.matches(entry) for r in spec.ip_rules):
            continue
        text = _rule_text(entry)
        words = f"ip -{family} rule add {text}, on {node.name}"
        values = (entry.get(key) for key in ("src", "dst", "fwmark", "table"))
        tokens = tuple(str(one) for one in values if one not in (None, "all"))
        with contextlib.suppress(iproute.Unreadable):
            if iproute.rule(text).matches(entry):
                yield Found(path, [text], words, tokens=tokens)
                continue
        yield Found((), None, words, tokens=tokens)


def _rule_text(entry: Mapping[str, Any]) -> str:
    """Return a rule of ``ip -j rule`` in the words of ip-rule(8)."""
    words = []
    for word, key in (("from", "src"), ("to", "dst")):
        if key in entry:
            length = entry.get(f"{key}len")
            words += [word, str(entry[key]) + (f"/{length}" if length is not None else "")]
    if "fwmark" in entry:
        mask = entry.get("fwmask")
        words += ["fwmark", str(entry["fwmark"]) + (f"/{mask}" if mask else "")]
    for word in ("iif", "oif"):
        words += [word, str(entry[word])] if word in entry else []
    words += ["lookup", str(entry["table"])] if "table" in entry else [str(entry.get("action"))]
    return " ".join([*words, "priority", str(entry["priority"])])


def _values(text: str) -> dict[str, str]:
    """Return the sysctls that sysctl(8) prints, by name."""
    pairs = (line.partition(" = ") for line in text.splitlines())
    return {name: " ".join(value.split()) for name, equals, value in pairs if equals}


def _sysctls(
    topology: Topology, node: str, seen: Mapping[str, str], fresh: Mapping[str, str]
) -> Iterator[Found]:
    """Yield the sysctls that differ from those of a new network namespace.

    Only those of the stack, and of the node's own ports: a role sets others.
    """
    spec = topology.nodes[node]
    of_testbed = {
        name.replace("/", "."): value for name, value in wiring.settings6(topology, node).items()
    }
    for role in spec.roles:
        of_testbed |= ROLES[role].sysctls(topology, node)
    if not fresh:
        yield Found((), None, f"{node}: sysctls were not compared, it has no unshare(1)")
        return
    if seen.get(FORWARDING[0]) == "1" and not spec.forwards and not spec.roles:
        words = f"sysctl -w {FORWARDING[0]}=1, on {node}"
        yield Found(("nodes", node, "forward"), value=True, words=words)
    places = "|".join(["all", "default", *(re.escape(port.name) for port in spec.ports)])
    own = re.compile(
        rf"net\.ipv[46]\.conf\.(?P<place>{places})\.\w+|net\.ipv[46]\.(?!conf|neigh|route)[\w.]+"
    )
    for name, value in seen.items():
        found = own.fullmatch(name)
        if found is None or UNSTABLE.fullmatch(name):
            continue
        if value == spec.sysctls.get(name, of_testbed.get(name)):
            continue
        place = found["place"]
        first = (
            name if place in (None, "all", "default") else name.replace(f".{place}.", ".default.")
        )
        if first in fresh and (value != fresh[first] or name in spec.sysctls):
            plain = int(value) if value.isdecimal() else value
            words = f"sysctl -w {name}={value}, on {node}"
            yield Found(("nodes", node, "sysctls", name), plain, words)


# -- faults ----------------------------------------------------------------------------------


def _faults(topology: Topology, faults: Iterable[Fault]) -> Iterator[Found]:
    """Yield the faults of links and queues, as named faults: a lab begins without any."""
    known = {fault.words for fault in topology.faults.values()}
    number = 0
    for fault in faults:
        if fault.kind not in (*LINK_KINDS, *QUEUE_KINDS) or fault.words in known:
            continue
        number += 1
        while f"saved-{number}" in topology.faults:
            number += 1
        yield Found(("faults", f"saved-{number}"), fault.words, f"testbed fault {fault.words}")

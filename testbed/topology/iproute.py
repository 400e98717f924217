"""Routes and rules in the words of ip-route(8) and ip-rule(8).

A text is parsed as far as it says which route or rule it is: what ``ip -j`` prints of the kernel's
is then compared with it.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
)
from typing import TYPE_CHECKING, Any, TypeVar

from testbed.topology.shapes import Shape
from testbed.topology.tree import nearest, quote

if TYPE_CHECKING:
    from testbed.topology.read import Reader
    from testbed.topology.tree import Tree

T = TypeVar("T")
Address = IPv4Address | IPv6Address
Net = IPv4Network | IPv6Network

#: Types of routes with no next hop (ip-route(8)); ``unicast`` is the default.
DEAD_ENDS = ("blackhole", "unreachable", "prohibit", "throw")
#: Types whose table is ``local``, unless another one is said.
LOCAL_TYPES = ("local", "broadcast", "anycast")
TYPES = ("unicast", *DEAD_ENDS, *LOCAL_TYPES, "multicast")
MAIN, LOCAL = "main", "local"
#: Names of tables that every machine has, and their numbers (ip-route(8)).
TABLES = {"255": LOCAL, "254": MAIN, "253": "default"}
TABLE_MAX = 0xFFFFFFFF
#: Words of a route with one value. The aliases are those of ip-route(8).
ROUTE_WORDS = (
    "via", "dev", "table", "metric", "src", "proto", "scope", "mtu", "advmss", "window", "rtt",
    "rttvar", "rto_min", "cwnd", "initcwnd", "initrwnd", "ssthresh", "reordering", "hoplimit",
    "congctl", "features", "quickack", "realms", "weight", "vrf", "pref", "expires", "tos",
    "fastopen_no_cookie", "ttl-propagate",
)  # fmt: skip
ALIASES = {
    "preference": "metric", "priority": "metric", "protocol": "proto", "dsfield": "tos",
    "oif": "dev", "t": "table",
}  # fmt: skip
FLAGS = ("onlink", "pervasive")
NEXT_HOP = "nexthop"
#: Words of a rule with one value, as ``ip -j rule`` names them.
RULE_WORDS = (
    "from", "to", "tos", "fwmark", "iif", "oif", "priority", "table", "uidrange", "ipproto",
    "sport", "dport", "tun_id", "goto", "suppress_prefixlength", "suppress_ifgroup", "protocol",
    "realms",
)  # fmt: skip
RULE_ALIASES = {
    "lookup": "table", "pref": "priority", "preference": "priority", "order": "priority",
    "dev": "iif", "dsfield": "tos", "proto": "protocol",
    "sup_pl": "suppress_prefixlength", "suppress_prefixlen": "suppress_prefixlength",
}  # fmt: skip
RULE_FLAGS = ("not", "l3mdev", "nop", *DEAD_ENDS[:3])
LOCAL6 = IPv6Network("fe80::/10")


class Unreadable(ValueError):
    """A text that ip(8) would not accept: wanted, seen, hint."""

    def __init__(self, wanted: str, seen: str, hint: str) -> None:
        super().__init__(wanted)
        self.wanted, self.seen, self.hint = wanted, seen, hint


@dataclass(frozen=True, slots=True)
class Hop:
    """A next hop; without an address the destination is on the link."""

    via: Address | None = None
    dev: str = ""
    weight: int = 1

    def __str__(self) -> str:
        words = [f"via {self.via}"] if self.via else []
        return " ".join([*words, *([f"dev {self.dev}"] if self.dev else [])])


@dataclass(frozen=True, slots=True)
class Route:
    """A route; ``text`` is what the file says.

    ``to`` None is the default route. ``family`` is 4 or 6. ``metric`` None is the kernel's default.
    """

    text: str
    to: Net | None
    family: int
    kind: str = "unicast"
    hops: tuple[Hop, ...] = ()
    table: str = MAIN
    metric: int | None = None
    src: Address | None = None
    mtu: int | None = None
    onlink: bool = False

    @property
    def destination(self) -> str:
        """The destination as ``ip -j route`` prints it."""
        if self.to is None:
            return "default"
        short = self.to.prefixlen == self.to.max_prefixlen
        return str(self.to.network_address if short else self.to)

    @property
    def kernel_metric(self) -> int:
        """Its metric, or the kernel's default: 0, with IPv6 1024 (ip6_fib.c), also for 0."""
        return self.metric or (1024 if self.family == 6 else 0)

    @property
    def devices(self) -> tuple[str, ...]:
        """The links that it names."""
        return tuple(dict.fromkeys(hop.dev for hop in self.hops if hop.dev))

    @property
    def gateways(self) -> tuple[Address, ...]:
        """The next hops that it names."""
        return tuple(hop.via for hop in self.hops if hop.via)

    def is_of_kind(self, entry: Mapping[str, Any]) -> bool:
        """Tell whether an entry of ``ip -j route`` has the destination, table and metric."""
        metric = self.kernel_metric
        return (
            entry.get("dst") == self.destination
            and str(entry.get("table", MAIN)) == self.table
            and int(entry.get("metric", 0)) == metric
        )

    def matches(self, entry: Mapping[str, Any]) -> bool:
        """Tell whether an entry of ``ip -j route`` is this route."""
        return (
            self.is_of_kind(entry)
            and entry.get("type", "unicast") == self.kind
            and (self.kind != "unicast" or self._hops_match(entry))
            and (self.src is None or entry.get("prefsrc") == str(self.src))
            and (self.mtu is None or _mtu(entry) == self.mtu)
        )

    def _hops_match(self, entry: Mapping[str, Any]) -> bool:
        there = hops_of(entry)
        if len(there) != len(self.hops):
            return False
        return all(
            mine.via == one.via
            and mine.dev in ("", one.dev)
            and (len(there) == 1 or mine.weight == one.weight)
            for mine, one in zip(self.hops, there, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule for the choice of a table; ``text`` is what the file says.

    ``values`` are by the words of ``ip -j rule``, those of ``table`` and ``priority`` included.
    """

    text: str
    family: int
    values: Mapping[str, str] = field(default_factory=dict)
    flags: frozenset[str] = frozenset()

    @property
    def table(self) -> str:
        return self.values.get("table", "")

    def matches(self, entry: Mapping[str, Any]) -> bool:
        """Tell whether an entry of ``ip -j rule`` is this rule."""
        there = _printed(entry)
        for word in RULE_WORDS:
            wanted, seen = self.values.get(word, ""), there.get(word, "")
            # What the kernel chooses itself, unless it is said, is any.
            if wanted != seen and not (word in ("priority", "protocol") and not wanted):
                return False
        flags = {flag for flag in ("not", "nop", "l3mdev") if flag in entry}
        if "action" in entry:
            flags.add(entry["action"])
        return flags == self.flags


def _printed(entry: Mapping[str, Any]) -> dict[str, str]:
    """Return the values of an entry of ``ip -j rule`` by the words of ip-rule(8)."""
    found = {word: str(entry[word]) for word in RULE_WORDS if word in entry}
    found |= {"from": _prefix(entry, "src"), "to": _prefix(entry, "dst"), "fwmark": _mark(entry)}
    if "suppress_prefixlen" in entry:
        found["suppress_prefixlength"] = str(entry["suppress_prefixlen"])
    for word, name in (("sport", "sport"), ("dport", "dport"), ("uidrange", "uid")):
        if f"{name}_start" in entry:
            found[word] = f"{entry[f'{name}_start']}-{entry[f'{name}_end']}"
    if "flow_to" in entry:
        before = f"{entry['flow_from']}/" if "flow_from" in entry else ""
        found["realms"] = f"{before}{entry['flow_to']}"
    return {word: _plain(word, value) for word, value in found.items()}


def _plain(word: str, value: str) -> str:
    """Return a value of a rule in one of its forms: protocols as numbers, for example."""
    if word == "ipproto" and not value.isdecimal():
        with contextlib.suppress(OSError):
            return str(socket.getprotobyname(value))
    if word == "tos":
        with contextlib.suppress(ValueError):
            return str(int(value, 0))
    return value


def hops_of(entry: Mapping[str, Any]) -> list[Hop]:
    """Return the next hops of an entry of ``ip -j route``."""
    return [
        Hop(_gateway(one), one.get("dev", ""), int(one.get("weight", 1)))
        for one in entry.get("nexthops") or [entry]
    ]


def _gateway(entry: Mapping[str, Any]) -> Address | None:
    text = entry.get("gateway") or entry.get("via", {}).get("host")
    return ip_address(text) if text else None


def _mtu(entry: Mapping[str, Any]) -> int | None:
    found = [one["mtu"] for one in entry.get("metrics", ()) if "mtu" in one]
    return int(found[0]) if found else None


def _prefix(entry: Mapping[str, Any], word: str) -> str:
    text = str(entry.get(word, "all"))
    if text == "all":
        return ""
    interface = ip_interface(f"{text}/{entry[f'{word}len']}" if f"{word}len" in entry else text)
    return str(interface.network)


def _mark(entry: Mapping[str, Any]) -> str:
    if "fwmark" not in entry:
        return ""
    mask = int(str(entry.get("fwmask", "0xffffffff")), 16)
    return _mark_text(int(str(entry["fwmark"]), 16), mask)


def _mark_text(mark: int, mask: int) -> str:
    return f"{mark:#x}/{mask:#x}"


def route(text: str) -> Route:
    """Parse a route as ``ip route add`` takes it.  Raises Unreadable."""
    words = text.split()
    _no_command(words, "route", "a destination, like '10.2.0.0/16 via 10.1.0.1'")
    kind = words.pop(0) if words and words[0] in TYPES else "unicast"
    if words[:1] == ["to"]:
        words.pop(0)
    if not words:
        raise Unreadable("a destination", "none", "like '10.2.0.0/16 via 10.1.0.1'")
    to = None if words[0] == "default" else _network(words[0])
    to_family = 0 if to is None else int(to.version)
    if to is not None and to.prefixlen == 0:
        to = None
    first, *rest = _split_hops(words[1:])
    given, flags = _pairs(first, ROUTE_WORDS, ALIASES, FLAGS)
    hops = [_hop(given, said=True)] if {"via", "dev"} & given.keys() else []
    for part in rest:
        more, _ = _pairs(part, ("via", "dev", "weight", "realms"), ALIASES, FLAGS)
        hops.append(_hop(more, said=bool(more)))
    src = _one_address(given["src"], "a source address") if "src" in given else None
    families: list[int] = [hop.via.version for hop in hops if hop.via]
    families += [src.version] if src else []
    family = to_family or (families[0] if families else 4)
    if src is not None and src.version != family:
        raise Unreadable(f"a source address of IPv{family}", str(src), "change it")
    if family == 6 and 4 in families:
        raise Unreadable("a next hop of IPv6", text, "an IPv6 route has an IPv6 next hop")
    if kind in DEAD_ENDS and hops:
        hint = f"remove it: a {kind} route leads nowhere"
        raise Unreadable(f"a {kind} route without a next hop", str(hops[0]), hint)
    if kind == "unicast" and not hops:
        raise Unreadable("a next hop or a link", quote(text), "add 'via ADDRESS' or 'dev LINK'")
    table = given.get("table", LOCAL if kind in LOCAL_TYPES else MAIN)
    return Route(
        text, to, family, kind, tuple(hops), _table(table),
        _number(given["metric"], "a metric") if "metric" in given else None, src,
        _number(given["mtu"], "an MTU") if "mtu" in given else None, "onlink" in flags,
    )  # fmt: skip


def rule(text: str) -> Rule:
    """Parse a rule as ``ip rule add`` takes it.  Raises Unreadable."""
    words = text.split()
    _no_command(words, "rule", "a selector, like 'from 10.1.0.0/24 lookup 100'")
    given, flags = _pairs(words, RULE_WORDS, RULE_ALIASES, RULE_FLAGS)
    families, values = [], {}
    for word, value in given.items():
        if word in ("from", "to"):
            if value in ("all", "any", "default"):
                continue
            network = _network(value)
            families.append(network.version)
            values[word] = str(network)
        elif word == "table":
            values[word] = _table(value)
        elif word == "fwmark":
            values[word] = _given_mark(value)
        elif word == "priority":
            values[word] = str(_number(value, "a priority"))
        else:
            values[word] = _plain(word, value)
    if len(set(families)) > 1:
        raise Unreadable("addresses of one family", quote(text), "write two rules")
    actions = flags & {"l3mdev", "nop", *DEAD_ENDS}
    if "table" not in values and "goto" not in values and not actions:
        raise Unreadable("an action", quote(text), "add 'lookup TABLE', or prohibit, unreachable")
    return Rule(text, families[0] if families else 4, values, frozenset(flags))


def _no_command(words: Sequence[str], what: str, hint: str) -> None:
    """Refuse the beginning of a command line: only what comes after ``add`` belongs here."""
    begun = [word for word in words[:3] if word in ("ip", what, "add", "replace", "append", "-6")]
    if begun:
        raise Unreadable(
            f"a {what} without the words of a command", quote(" ".join(words)),
            f"remove {' '.join(begun)!r}",
        )  # fmt: skip
    if not words:
        raise Unreadable(f"a {what}", "an empty text", hint)


def _split_hops(words: Sequence[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word == NEXT_HOP:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _pairs(
    words: Sequence[str], known: Sequence[str], aliases: Mapping[str, str], flags: Sequence[str]
) -> tuple[dict[str, str], set[str]]:
    """Return the values by word, and the words without a value."""
    values: dict[str, str] = {}
    found: set[str] = set()
    left = list(words)
    while left:
        word = left.pop(0)
        name = aliases.get(word, word)
        if name in flags:
            found.add(name)
            continue
        if name not in known:
            hint = nearest(word, [*known, *aliases, *flags])
            raise Unreadable("a word of ip(8)", quote(word), hint)
        if left and (name, left[0]) in (("mtu", "lock"), ("via", "inet"), ("via", "inet6")):
            left.pop(0)
        if not left:
            raise Unreadable(f"a value after {word}", "none", "add it")
        if name in values:
            raise Unreadable(f"{word} once", "twice", "remove one of them")
        values[name] = left.pop(0)
    return values, found


def _hop(given: Mapping[str, str], *, said: bool) -> Hop:
    if not said:
        raise Unreadable("a next hop", "none", "add 'via ADDRESS' or 'dev LINK' after nexthop")
    via = _one_address(given["via"], "a next hop") if "via" in given else None
    weight = _number(given["weight"], "a weight") if "weight" in given else 1
    return Hop(via, given.get("dev", ""), weight)


def _network(text: str) -> Net:
    try:
        interface: IPv4Interface | IPv6Interface = ip_interface(text)
    except ValueError:
        hint = "write it like 10.2.0.0/16 or fd00:2::/64, or 'default'"
        raise Unreadable("a destination", quote(text), hint) from None
    if interface.ip != interface.network.network_address:  # ip(8): Invalid argument
        hint = f"write {interface.network}; the bits after the prefix are for hosts"
        raise Unreadable("a network's own address", quote(text), hint)
    return interface.network


def _one_address(text: str, what: str) -> Address:
    try:
        return ip_address(text)
    except ValueError:
        hint = "write an address without a prefix, like 10.1.0.1"
        raise Unreadable(what, quote(text), hint) from None


def _number(text: str, what: str) -> int:
    if not text.isdecimal() or int(text) > TABLE_MAX:
        raise Unreadable(f"{what} as a number", quote(text), f"write one from 0 to {TABLE_MAX}")
    return int(text)


def _table(text: str) -> str:
    if text.isdecimal():
        found = str(_number(text, "a table"))
        return TABLES.get(found, found)
    return text


def _given_mark(text: str) -> str:
    mark, slash, mask = text.partition("/")
    try:
        return _mark_text(int(mark, 0), int(mask, 0) if slash else 0xFFFFFFFF)
    except ValueError:
        raise Unreadable("a mark, like 0x1 or 0x1/0xff", quote(text), "write a number") from None


class RouteText(Shape[Route]):
    """A route in the words of ip-route(8)."""

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1}

    def read(self, read: Reader, at: Tree | None) -> Route | None:
        return _read(read, at, "a route, like '10.2.0.0/16 via 10.1.0.1'", route)

    def plain(self, value: Route) -> str:
        return value.text


class RuleText(Shape[Rule]):
    """A rule in the words of ip-rule(8)."""

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1}

    def read(self, read: Reader, at: Tree | None) -> Rule | None:
        return _read(read, at, "a rule, like 'from 10.1.0.0/24 lookup 100'", rule)

    def plain(self, value: Rule) -> str:
        return value.text


def _read(read: Reader, at: Tree | None, wanted: str, parse: Callable[[str], T]) -> T | None:
    text = read.text(at, wanted)
    if at is None or text is None:
        return None
    try:
        return parse(text)
    except Unreadable as error:
        read.problems.add(at, error.wanted, error.seen, error.hint)
        return None

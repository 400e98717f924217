"""The words of a walk, shared by all its forms: names of hops, changes, rules and facts."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from testbed.walk.model import Change, Fact, Hop, Leg, Origin, Rule, View, Walk

Translate = Callable[[str], str]
#: What stays on one line: text in quotes, an option or a keyword of ip(8) with its value, a port
#: of ss(8), and a negation.
TOGETHER = re.compile(
    r'"[^"]*"|(?<!\S)(?:! )?--?[A-Za-z][\w-]*(?: (?:"[^"]*"|(?![-!])\S+))?'
    r"|(?<!\S)(?:via|dev|proto|scope|src|metric|table|MTU|TTL|id) \S+"
)
JOINED = "\N{NO-BREAK SPACE}"
#: A sign for each origin of a fact; a legend explains them.
SIGNS: Mapping[Origin, str] = {"seen": "●", "asked": "?", "inferred": "~"}
MEANINGS: Mapping[Origin, str] = {
    "seen": "seen: captured or traced",
    "asked": "asked: the kernel's answer there",
    "inferred": "inferred: the only way between",
}
#: Names of header fields, as a reader knows them.
FIELDS: Mapping[str, str] = {
    "src": "source", "dst": "destination", "sport": "source port", "dport": "destination port",
    "echo": "echo id",
    "src_mac": "source MAC", "dst_mac": "destination MAC", "ttl": "TTL", "ip_id": "IP id",
    "mark": "mark", "length": "length", "flags": "flags", "protocol": "protocol",
}  # fmt: skip
#: Words that are translated through a variable.
SPOKEN = (*FIELDS.values(), "there", "back", "in", "out", "route", "conntrack")
PROTOCOLS = {"icmp": "ICMP", "icmpv6": "ICMPv6", "tcp": "TCP", "udp": "UDP", "arp": "ARP"}

NoteKind = Literal["change", "rule", "drop", "fact"]


@dataclass(frozen=True, slots=True)
class Note:
    """A line about a hop. ``sign`` stands before it: a fact's origin, or a rule's number."""

    kind: NoteKind
    text: str
    sign: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Hops one after another on one machine, or on one network between machines."""

    machine: str
    fabric: bool
    spaces: tuple[tuple[str, tuple[Hop, ...]], ...]

    @property
    def hops(self) -> list[Hop]:
        return [hop for _, hops in self.spaces for hop in hops]


def wrapped(text: str, width: int, *, most: int | None = None) -> list[str]:
    """Return the lines of a text, of which each has at most ``width`` characters.

    An option stays beside its value where both fit on a line. Of more than ``most`` lines the rest
    is left out, and the last one ends with an ellipsis.

    >>> wrapped("-A INPUT -m comment -j ACCEPT", 21)
    ['-A INPUT -m comment', '-j ACCEPT']
    """

    def joined(found: re.Match[str]) -> str:
        whole = found.group()
        return whole.replace(" ", JOINED) if len(whole) <= width else whole

    lines = textwrap.wrap(
        TOGETHER.sub(joined, text), width, max_lines=most, placeholder=" …", break_on_hyphens=False
    )
    return [line.replace(JOINED, " ") for line in lines]


def pieces(text: str) -> list[str]:
    """Return a text in pieces that stay on a line if they fit; a space joins them."""
    joined = TOGETHER.sub(lambda found: found.group().replace(" ", JOINED), text)
    return [piece.replace(JOINED, " ") for piece in joined.split(" ")]


def groups(leg: Leg) -> list[Group]:
    """Group the hops of a leg by machine, and within one by network namespace."""
    found = []
    for (machine, fabric), hops in groupby(
        leg.hops, lambda one: (one.spot.machine, one.spot.fabric)
    ):
        spaces = groupby(list(hops), lambda one: one.spot.space)
        found.append(Group(machine, fabric, tuple((space, tuple(one)) for space, one in spaces)))
    return found


def name(hop: Hop, _: Translate = str) -> str:
    """Return the name of a hop within its machine and namespace."""
    if hop.kind == "device":
        device = hop.spot.interface or hop.spot.machine
        return f"{device} {_(hop.point)}".rstrip() if hop.point else device
    if hop.kind == "chain" and hop.rules:
        rule = hop.rules[0]
        family = f"{rule.family} " if rule.family not in ("ip", "ip6", "inet") else ""
        return f"{family}{rule.table} {rule.chain}"
    if hop.kind == "end":
        return _("LOST")
    if hop.kind == "blind":
        return f"{hop.spot.interface} {_('not visible')}".lstrip()
    if hop.kind == "process" and not hop.point:
        return _("process")
    return f"{_(hop.kind)} {hop.point}".rstrip()


def place(hop: Hop) -> str:
    """Return where a hop is, within the lab."""
    spot = str(hop.spot)
    if hop.rules and hop.kind in ("chain", "end"):
        return f"{spot}, {hop.rules[0].table} {hop.rules[0].chain}"
    return f"{spot}, {hop.point}" if hop.kind == "end" and hop.point else spot


def milliseconds(seconds: float | None) -> str:
    """Format a time since the start.

    >>> milliseconds(0.0000123), milliseconds(0.25), milliseconds(12.5)
    ('0.012 ms', '250.0 ms', '12500 ms')
    """
    if seconds is None:
        return ""
    value = seconds * 1000
    digits = 3 if abs(value) < 10 else 1 if abs(value) < 1000 else 0
    return f"{value:.{digits}f} ms"


def presence(hop: Hop) -> Origin | None:
    """Return how it is known that the packet was at a device or a chain; None for other hops."""
    if hop.kind not in ("device", "chain"):
        return None
    return "seen" if hop.seconds is not None or any(map(_is_proof, hop.facts)) else "inferred"


def _is_proof(fact: Fact) -> bool:
    """Tell whether a fact of a device or a chain only says that the packet was there."""
    return fact.origin == "seen"


def notes(hop: Hop, _: Translate = str) -> list[Note]:
    """Return what is known of a hop: changes, then rules, then facts.

    A proof that the packet was there is left out: :func:`presence` has it.
    """
    found = [Note("change", text) for text in changes(hop, _)]
    found += [_rule(rule, hop.rules[0]) for rule in hop.rules]
    placed = presence(hop) is not None
    found += [
        Note("fact", one.text, SIGNS[one.origin], one.source)
        for one in hop.facts
        if not (placed and _is_proof(one))
    ]
    return found


def _rule(rule: Rule, first: Rule) -> Note:
    text = rule.text or f"{rule.table} {rule.chain}"
    if not text.startswith("-") and rule.chain != first.chain:
        text = f"{rule.chain}: {text}"  # nft prints a rule without its chain
    word = rule.verdict.rpartition(" ")[2]
    if word.lower() not in text.lower().replace(",", " ").split():
        text += f" → {rule.verdict}"
    kind: NoteKind = "drop" if word.lower() in ("drop", "reject") else "rule"
    return Note(kind, text, f"#{rule.position}" if rule.position else "")


def changes(hop: Hop, _: Translate = str) -> Iterator[str]:
    """Yield what changed in the packet against the hop before."""
    carried = next((one for one in hop.changes if one.field == "carrier"), None)
    if carried:
        if carried.after:
            outer = f": {ends(hop.view)} {protocol(hop.view)}" if hop.view else ""
            yield f"{_('wrapped in')} {carried.after}{outer}"
        else:
            yield f"{_('unwrapped from')} {carried.before}"
        return  # every other field differs, because it is another header
    macs = {one.field: one for one in hop.changes if one.field in ("src_mac", "dst_mac")}
    for one in hop.changes:
        if one.field not in macs:
            yield _change(one, hop.view, _)
    if macs and not any(one.after for one in macs.values()):
        yield _("without a frame")  # a device that takes bare packets, such as TUN
    elif len(macs) == 2:
        yield f"MAC {macs['src_mac'].after} → {macs['dst_mac'].after}"
    else:
        yield from (_change(one, hop.view, _) for one in macs.values())


def _change(one: Change, view: View | None, _: Translate) -> str:
    inside, _dot, field = one.field.rpartition(".")
    if field == "sport" and view and view.protocol in ("icmp", "icmpv6"):
        field = "echo"
    words = _(FIELDS.get(field, field))
    if inside:
        words = f"{_('inner')} {words}"
    return f"{words} {one.before or '–'} → {one.after or '–'}"


def protocol(view: View) -> str:
    """Return the protocol of a packet, with TCP's flags or the id of an echo."""
    words = PROTOCOLS.get(view.protocol, view.protocol)
    if view.flags:
        words += f" {'+'.join(view.flags)}"
    if view.protocol in ("icmp", "icmpv6") and view.sport:
        words += f" id {view.sport}"
    return words


def ends(view: View, names: Mapping[str, str] | None = None) -> str:
    """Return source and destination of a packet, with ports, and with owners by ``names``."""

    def end(address: str, port: int) -> str:
        host = f"[{address}]" if ":" in address and port else address
        text = f"{host}:{port}" if port else host
        owner = (names or {}).get(address)
        return f"{text} ({owner})" if owner and owner != address else text

    ported = view.protocol in ("tcp", "udp")
    source = end(view.src, view.sport if ported else 0)
    return f"{source} → {end(view.dst, view.dport if ported else 0)}"


def summary(leg: Leg, names: Mapping[str, str]) -> str:
    """Describe the packet of a leg as it was at its first place with a capture."""
    view = next((hop.view for hop in leg.hops if hop.view and hop.view.src), None)
    if view is None:
        return ""
    words = [ends(view, names), protocol(view)]
    words += [f"TTL {view.ttl}"] if view.ttl else []
    return ", ".join(words)


def loss(leg: Leg) -> tuple[str, str]:
    """Return where a packet was lost, and the first reason; both empty if it arrived."""
    if leg.arrived:
        return "", ""
    end = next((hop for hop in reversed(leg.hops) if hop.kind == "end"), None)
    if end is None:
        return (place(leg.hops[-1]) if leg.hops else "", "")
    reason = next((fact.text for fact in end.facts), "")
    return place(end), reason or next((rule.text for rule in end.rules), "")


def beyond(leg: Leg) -> Hop | None:
    """Return the last hop that was seen, of a leg that arrived where nothing is seen."""
    if not leg.arrived or [hop.kind for hop in leg.hops[-2:]] != ["blind", "process"]:
        return None
    return next((hop for hop in reversed(leg.hops) if hop.kind == "device"), leg.hops[0])


def duration(leg: Leg) -> str:
    """Return the time at which a packet came to its last place; "" if it is not known."""
    if beyond(leg) is not None:
        return ""
    timed = [hop for hop in leg.hops if hop.kind == "device" or hop.seconds is not None]
    last = timed[-1].seconds if timed else None
    return milliseconds(last) if last is not None else ""


def origins(walk: Walk) -> list[Origin]:
    """Return the origins that a walk has, for the legend."""
    hops = [hop for leg in walk.legs for hop in leg.hops]
    found = {fact.origin for hop in hops for fact in hop.facts} | {presence(hop) for hop in hops}
    return [origin for origin in SIGNS if origin in found]

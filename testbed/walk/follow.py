"""Put the sightings of a packet in the order of cause and effect, and make hops of them.

Everything here is pure. The order follows from the frames: what a device sent is received,
unchanged, at the other end of its link; what a namespace received it hands on. Times order the
sightings of one clock alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

from testbed.observe.capture import PROTOCOLS
from testbed.observe.graph import TUNNELS
from testbed.walk.frames import Direction, Dropped, Sighting, Signature, view
from testbed.walk.model import Change, Fact, Hop, Rule, Spot, View
from testbed.walk.rules import BUILT_IN, Ruleset
from testbed.walk.watch import TABLE

if TYPE_CHECKING:
    from testbed.observe.capture import Packet
    from testbed.observe.conntrack import Connection
    from testbed.observe.inventory import Link
    from testbed.observe.trace import TraceEvent

HOOKS = ("ingress", "prerouting", "input", "forward", "output", "postrouting", "egress")
#: Priorities of the tables of iptables, in the order of a hook (linux/netfilter_ipv4.h).
PRIORITY = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
SOURCE_NAT = 100
NAMED = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100}
#: Devices whose frames come out at a known place. What a tunnel sends is carried by other packets,
#: which nobody sees if they are encrypted (wireguard).
LEADING = TUNNELS | {"veth"}
#: Fields of a view that a hop compares with the hop before.
COMPARED = tuple(
    one.name
    for one in fields(View)
    if one.name not in {"inside", "frame", "flags", "length", "mark"}
)


@dataclass(frozen=True, slots=True)
class Seen:
    """The sightings, events and rules of one network namespace.

    ``clock`` is the same for namespaces of one kernel. ``bridged`` tells that netfilter sees
    what a bridge forwards (br_netfilter). ``fabric`` is the network's name by interface, for the
    namespace of the networks' bridges. ``drops`` are those of the kernel in this namespace, and in
    one that it did not tell; ``no_drops`` tells why it reports none.
    """

    machine: str
    space: str
    clock: str = ""
    links: Mapping[str, Link] = field(default_factory=dict)
    sightings: Sequence[Sighting] = ()
    events: Sequence[TraceEvent] = ()
    connections: Sequence[Connection] = ()
    rules: Ruleset = field(default_factory=Ruleset)
    bridged: bool = False
    fabric: Mapping[str, str] | None = None
    drops: Sequence[Dropped] = ()
    no_drops: str = ""

    @property
    def place(self) -> tuple[str, str]:
        return self.machine, self.space

    @property
    def addresses(self) -> set[str]:
        return {one.partition("/")[0] for link in self.links.values() for one in link.addresses}

    def master(self, device: str) -> str:
        link = self.links.get(device)
        return link.master if link else ""

    def spot(self, device: str = "") -> Spot:
        if self.fabric is not None:
            return Spot(self.fabric.get(device, self.machine), "", device, fabric=True)
        return Spot(self.machine, self.space, device)


@dataclass(slots=True)
class Visit:
    """A packet in a base chain: the events there, and in the chains that it jumped to."""

    hook: str
    priority: int
    kind: str
    events: list[TraceEvent]

    @property
    def packet(self) -> Packet | None:
        return next((one.packet for one in self.events if one.packet), None)

    @property
    def devices(self) -> tuple[str, str]:
        """The devices at which it came in and goes out, "" where there is none."""
        seen = next((one.seen for one in self.events if one.seen), None)
        return (seen.indev, seen.outdev) if seen else ("", "")

    @property
    def is_legacy(self) -> bool:
        """True for events of iptables-legacy."""
        return bool(self.events[0].number)

    @property
    def key(self) -> tuple[object, ...]:
        """The chain, devices and addresses: a packet has each once between two devices."""
        first, packet = self.events[0], self.packet
        ends = (packet.src, packet.dst, packet.protocol) if packet else ()
        return (self.is_legacy, first.family, first.table, first.chain, self.devices, ends)


@dataclass(frozen=True, slots=True)
class Trail:
    """The sightings of one packet on its way, and those beside it."""

    direction: Direction
    steps: tuple[Sighting, ...]
    beside: tuple[Sighting, ...] = ()
    copies: int = 0


# -- the order of sightings --------------------------------------------------------


def trail(
    direction: Direction,
    places: Mapping[tuple[str, str], Seen],
    origin: tuple[str, str] | None = None,
    target: tuple[str, str] | None = None,
) -> Trail:
    """Return the way of the first packet of a direction.

    It ends in the namespace ``target`` if it was seen there, and otherwise as far as it came.
    """
    ours, copies = _first(direction, places, origin)
    parents: dict[int, Sighting | None] = {}
    consumed: set[int] = set()
    for one in ours:
        parent = _parent(one, ours, places, consumed)
        parents[id(one)] = parent
        if parent is not None and one.point == "in" and parent.point == "out":
            consumed.add(id(parent))
    passed = {id(one) for one in parents.values()}
    ways = [_way(one, parents) for one in ours if id(one) not in passed]
    if not ways:
        return Trail(direction, (), copies=copies)

    def rank(way: tuple[Sighting, ...]) -> tuple[bool, bool, bool, int]:
        last = way[-1]
        return (
            last.place == target and last.point == "in",
            way[0].place == origin,
            not last.foreign,
            len(way),
        )

    best = max(ways, key=rank)
    if best[0].place != origin:  # something in between cannot be seen
        before = [
            way
            for way in ways
            if way[0].place == origin and way[-1].point == "out" and way[-1] not in best
        ]
        best = max(before, key=len, default=()) + best
    on_it = {id(one) for one in best}
    beside = tuple(one for one in ours if id(one) not in on_it)
    return Trail(direction, best, beside, copies)


def _first(
    direction: Direction,
    places: Mapping[tuple[str, str], Seen],
    origin: tuple[str, str] | None,
) -> tuple[list[Sighting], int]:
    """Return the sightings of a direction's first packet, and the number of further ones.

    A later packet has another IP id where it begins, or was seen before at the same device with the
    same headers. An id that was not seen there was given to the packet on its way.
    """
    found = [
        one for seen in places.values() for one in seen.sightings if one.direction == direction
    ]
    if not found:
        return [], 0
    at_origin = [one for one in found if one.place == origin] or found
    first = min(at_origin, key=lambda one: (one.stamp, one.order))
    ident = first.packet.ip_id
    kept, known, later = [], set(), {one.packet.ip_id for one in at_origin} - {ident}
    repeated: dict[tuple[object, ...], int] = {}
    for one in sorted(found, key=lambda one: (one.stamp, one.order)):
        if one.packet.ip_id in later:
            continue
        key = (one.place, one.device, one.point, one.view.src, one.view.dst,
               one.packet.src, one.packet.dst, one.packet.ttl, one.view.dst_mac,
               one.packet.ip_id)  # fmt: skip
        if key in known:
            repeated[key] = repeated.get(key, 0) + 1
        else:
            known.add(key)
            kept.append(one)
    same = max((times for key, times in repeated.items() if key[-1] == ident), default=0)
    return kept, max(len(later) + same, *repeated.values(), 0)


def _way(one: Sighting, parents: Mapping[int, Sighting | None]) -> tuple[Sighting, ...]:
    way = [one]
    while (parent := parents[id(way[-1])]) is not None and parent not in way:
        way.append(parent)
    return tuple(reversed(way))


def _headers(packet: Packet) -> tuple[object, ...]:
    return (packet.src, packet.dst, packet.sport, packet.dport, packet.ttl, packet.ip_id)


def _forwarded(packet: Packet) -> tuple[object, ...]:
    return (packet.src, packet.dst, packet.sport, packet.dport, packet.ip_id)


def _same_frame(one: Sighting, other: Sighting) -> bool:
    """Tell whether two sightings are of one frame, at the two ends of a link."""
    if len(one.packets) != len(other.packets):
        return False
    a, b = one.packets[0], other.packets[0]
    macs = not (a.src_mac and b.src_mac) or (a.src_mac, a.dst_mac) == (b.src_mac, b.dst_mac)
    return macs and all(
        _headers(x) == _headers(y) for x, y in zip(one.packets, other.packets, strict=True)
    )


def _parent(
    one: Sighting,
    ours: Sequence[Sighting],
    places: Mapping[tuple[str, str], Seen],
    consumed: set[int],
) -> Sighting | None:
    """Return the sighting that caused another one; None if it was not seen."""
    seen = places[one.place]
    here = [o for o in ours if o.place == one.place and o.order < one.order]
    here.sort(key=lambda o: o.order)
    if one.point == "out":
        for other in reversed(here):
            if other.point == "out" and _beside(seen, other, one):
                continue  # another port to which the bridge flooded the same frame
            return other
        return None
    for other in reversed(here):
        if other.point == "in" and _handed_up(seen, other, one):
            return other
    candidates = []
    for other in ours:
        if other.point != "out" or id(other) in consumed or not _same_frame(other, one):
            continue
        if places[other.place].clock == seen.clock and other.stamp > one.stamp:
            continue
        candidates.append(other)
    peers = [other for other in candidates if _joined(places, other, one)]
    loops = [o for o in candidates if (o.place, o.device) == (one.place, one.device)]
    chosen = loops or peers or [o for o in candidates if o.place != one.place] or candidates
    return chosen[-1] if chosen else None


def _beside(seen: Seen, other: Sighting, one: Sighting) -> bool:
    master = seen.master(one.device)
    return (
        bool(master)
        and seen.master(other.device) == master
        and other.device != one.device
        and _same_frame(other, one)
    )


def _handed_up(seen: Seen, below: Sighting, above: Sighting) -> bool:
    """Tell whether a device handed a packet up to another: a port to its bridge, a tunnel."""
    link = seen.links.get(above.device)
    if len(below.packets) == len(above.packets):
        master = seen.master(below.device)
        lower = link.lower if link is not None else ""
        # What netfilter translates on the way from a port to its bridge has other addresses then.
        return above.device in {master, *([above.device] if lower == below.device else [])} and (
            below.packet.ip_id, below.packet.ttl, below.packet.protocol
        ) == (above.packet.ip_id, above.packet.ttl, above.packet.protocol)  # fmt: skip
    # A program that unwraps packets (flannel's udp backend) forwards them, so the TTL differs.
    return len(below.packets) == len(above.packets) + 1 and all(
        _forwarded(x) == _forwarded(y)
        for x, y in zip(below.packets[1:], above.packets, strict=True)
    )


def _joined(places: Mapping[tuple[str, str], Seen], sender: Sighting, receiver: Sighting) -> bool:
    """Tell whether the inventory has a link between two devices."""
    link = places[sender.place].links.get(sender.device)
    peer = link.peer if link else None
    return peer is not None and (peer.machine, peer.space, peer.link) == (
        receiver.machine, receiver.space, receiver.device,
    )  # fmt: skip


# -- visits of chains --------------------------------------------------------------


def visits(seen: Seen) -> list[Visit]:
    """Return the visits of base chains in a namespace, in the order of the events."""
    found: list[Visit] = []
    current: dict[int, Visit] = {}
    legacy: Visit | None = None
    for event in seen.events:
        if event.table.startswith(TABLE):
            current.pop(event.id, None)
            continue
        if event.number:
            base = BUILT_IN.get(event.chain)
            if legacy is None or (base and _other(legacy, event)):
                legacy = _visit(seen, event)
                found.append(legacy)
            else:
                legacy.events.append(event)
        elif event.seen is not None:
            current[event.id] = _visit(seen, event)
            found.append(current[event.id])
        elif event.id in current:
            current[event.id].events.append(event)
    return found


def _other(visit: Visit, event: TraceEvent) -> bool:
    """Tell whether an event of iptables-legacy begins another visit."""
    first, last = visit.events[0], visit.events[-1]
    if (first.table, visit.hook) != (event.table, BUILT_IN[event.chain]) or last.kind == "policy":
        return True
    # A packet passes the rules of a chain in their order: this is another packet.
    latest = max(one.number for one in visit.events if one.chain == event.chain)
    if event.number <= latest or first.family != event.family:
        return True
    a, b = first.seen, event.seen
    return a is not None and b is not None and (a.indev, a.outdev) != (b.indev, b.outdev)


def _visit(seen: Seen, event: TraceEvent) -> Visit:
    chain = seen.rules.chain(event)
    hook = chain.hook if chain is not None and chain.hook else BUILT_IN.get(event.chain, "")
    kind = chain.kind if chain is not None and chain.kind else event.table
    priority = PRIORITY.get(event.table, 0)
    if chain is not None and chain.priority:
        priority = _priority(chain.priority)
    elif event.table == "nat" and hook in {"postrouting", "input"}:
        priority = SOURCE_NAT
    return Visit(hook, priority, kind, [event])


def _priority(text: str) -> int:
    """Return a priority of nft(8) as a number: "dstnat - 10" is -110."""
    words = text.split()
    number = NAMED.get(words[0])
    if number is None:
        number = int(words[0]) if words[0].lstrip("-").isdecimal() else 0
    if len(words) == 3 and words[2].isdecimal():
        number += int(words[2]) * (-1 if words[1] == "-" else 1)
    return number


def _rank(hook: str) -> int:
    """Return the place of a hook in :data:`HOOKS`; one that is not known is the last."""
    return HOOKS.index(hook) if hook in HOOKS else len(HOOKS)


class Visits:
    """The visits of a namespace that are still to be placed on a trail."""

    def __init__(self, seen: Seen, signature: Signature, direction: Direction) -> None:
        self._seen = seen
        self._signature = signature
        self._left = [
            one
            for one in visits(seen)
            if one.packet is not None
            and signature.tell(one.packet) in {direction, None}
        ]  # fmt: skip

    def take(self, before: Sighting | None, after: Sighting | None) -> list[Visit]:
        """Return and remove the visits between two sightings, the latter in their order."""
        nft, legacy = (
            self._next(before, after, is_legacy=is_legacy) for is_legacy in (False, True)
        )  # each in its own order
        taken = [*nft, *legacy]
        self._left = [one for one in self._left if all(one is not other for other in taken)]
        order = {id(one): number for number, one in enumerate(taken)}
        if nft and legacy:
            taken.sort(key=lambda one: (_rank(one.hook), one.priority, order[id(one)]))
        return taken

    def _next(
        self, before: Sighting | None, after: Sighting | None, *, is_legacy: bool
    ) -> list[Visit]:
        """Return the next visits that fit between two sightings, of one kind of events."""
        found: list[Visit] = []
        for one in self._left:
            if one.is_legacy is not is_legacy:
                continue
            if self._fits(one, before, after) and not _is_again(one, found):
                found.append(one)
            elif found and one.packet and self._signature.tell(one.packet) is not None:
                break  # others may be in between: the ICMP error that the next rule sends
        return found

    def rest(self) -> list[Visit]:
        """Return the visits of the request's first packet that are left."""
        found: list[Visit] = []
        for one in self._left:
            if one.packet is not None and self._signature.tell(one.packet) is not None:
                if _is_again(one, found):
                    break
                found.append(one)
        return found

    def _fits(self, visit: Visit, before: Sighting | None, after: Sighting | None) -> bool:
        into, out = visit.devices
        packet = visit.packet
        assert packet is not None
        up_to_bridge = after is not None and after.device == self._bridge(before)
        if up_to_bridge and not self._seen.bridged and visit.events[0].family != "bridge":
            return False
        sides = [one for one in (before, after) if one is not None]
        told = self._signature.tell(packet) is not None
        if not any(_is_layer(packet, one, told=told) for one in sides):
            return False
        if visit.hook in {"prerouting", "input", "forward", "ingress"} and (
            before is None or not self._meets(into, before)
        ):
            return False
        # A new destination, set in the hook output, may lead to another device.
        return visit.hook not in {"forward", "postrouting", "egress"} or (
            after is None or self._meets(out, after)
        )

    def _bridge(self, one: Sighting | None) -> str | None:
        return (self._seen.master(one.device) or None) if one is not None else None

    def _meets(self, device: str, one: Sighting) -> bool:
        return device in {one.device, self._seen.master(one.device), ""}


def _is_again(visit: Visit, before: Sequence[Visit]) -> bool:
    """Tell whether a visit is that of a packet that was sent again (IPv6 has no id of packets)."""
    return any(visit.key == one.key for one in before)


def _is_layer(packet: Packet, one: Sighting, *, told: bool) -> bool:
    """Tell whether a packet in an event may be one at a device, before or after translation.

    Without an id, as in IPv6, another source and destination are those of the request only if
    it is ``told`` by its data: an ICMP error about it is not.
    """
    return any(
        packet.protocol == layer.protocol and packet.ip_id == layer.ip_id
        and (packet.src == layer.src or packet.dst == layer.dst)
        for layer in one.packets
    ) or (
        bool(packet.ip_id or told)
        and (packet.ip_id, packet.protocol) == (one.packet.ip_id, one.packet.protocol)
    )  # fmt: skip


# -- hops --------------------------------------------------------------------------


def hops(
    found: Trail,
    places: Mapping[tuple[str, str], Seen],
    signature: Signature,
    sent: int,
    *,
    clock: str = "",
    origin: tuple[str, str] | None = None,
) -> list[Hop]:
    """Return the hops of a trail: devices, chains, translations and looks at routing tables.

    ``sent`` is the time of the request in nanoseconds since the epoch, on ``clock``. The hop of a
    chain has the rules that the packet met. Each hop says what differs from the one before. Of a
    packet that no device has seen, the hops are those of its ``origin``.
    """
    waiting = {
        place: Visits(seen, signature, found.direction) for place, seen in places.items()
    }  # fmt: skip
    made: list[Hop] = []
    before: Sighting | None = None
    for one in found.steps:
        made += _between(before, one, places, waiting)
        seen = places[one.place]
        seconds = (one.stamp - sent) / 1e9 if seen.clock == clock else None
        facts = (Fact("frame captured", "seen", "packet socket"), *_flooded(seen, one, found))
        made.append(
            Hop("device", seen.spot(one.device), one.point, seconds, one.view, (), (), facts)
        )
        before = one
    if before is not None:
        made += _between(before, None, places, waiting)
    elif origin in waiting and (taken := waiting[origin].rest()):
        made += _chains(places[origin], taken, None, None, routed=True)
    return list(changed(made))


def _flooded(seen: Seen, one: Sighting, found: Trail) -> list[Fact]:
    """Return that a bridge sent a frame to other ports as well."""
    ports = [
        other.device
        for other in found.beside
        if one.point == other.point == "out"
        and other.place == one.place
        and _beside(seen, other, one)
    ]
    text = f"the bridge sent it to {', '.join(ports)} as well"
    return [Fact(text, "seen", "packet socket")] if ports else []


def _between(
    before: Sighting | None,
    after: Sighting | None,
    places: Mapping[tuple[str, str], Seen],
    waiting: Mapping[tuple[str, str], Visits],
) -> list[Hop]:
    """Return the hops between two sightings, or before the first, or after the last one."""
    if before is not None and after is not None and before.place != after.place:
        found = _end(before, places, waiting) if before.point == "in" else []
        link = places[before.place].links.get(before.device)
        elsewhere = link is not None and link.kind in LEADING and not _joined(places, before, after)
        if before.point == "in" or elsewhere or not _same_frame(before, after):
            text = f"what is between {before.device} and {after.device} is not watched"
            blind = (Fact(text, "inferred"),)
            found.append(Hop("blind", places[after.place].spot(), "", facts=blind))
        return found
    if before is not None and after is None:
        return _end(before, places, waiting)
    anchor = after or before
    assert anchor is not None
    if before is None and anchor.point == "in":
        text = f"what is before {anchor.device} is not watched"
        return [Hop("blind", places[anchor.place].spot(), "", facts=(Fact(text, "inferred"),))]
    seen = places[anchor.place]
    taken = waiting[anchor.place].take(before, after)
    routed = before is None or _is_routed(seen, before, after)
    made = _chains(seen, taken, before, after, routed=routed)
    if before is None or after is None or len(before.packets) == len(after.packets):
        return made
    wraps = len(after.packets) > len(before.packets)
    tunnel = (before if wraps else after).device
    if (link := seen.links.get(tunnel)) is None or link.kind != "tun":
        return made
    text = f"the program at {tunnel} {'wraps' if wraps else 'unwraps'} it"
    program = Hop("process", seen.spot(), facts=(Fact(text, "inferred"),))
    return [program, *made] if wraps else [*made, program]


def _end(
    before: Sighting,
    places: Mapping[tuple[str, str], Seen],
    waiting: Mapping[tuple[str, str], Visits],
) -> list[Hop]:
    if before.point == "out":
        return []
    seen = places[before.place]
    taken = waiting[before.place].take(before, None)
    bridge = bool(seen.master(before.device)) and not taken
    routed = not bridge and _is_routed(seen, before, None)
    return _chains(seen, taken, before, None, routed=routed)


def unseen(made: Sequence[Hop], start: Spot, seen: Seen | None) -> Hop:
    """Return the hop in place of the rest of a way, of which nothing is seen.

    ``start`` is where the way begins, ``seen`` the last namespace that saw the packet.
    """
    last = made[-1] if made else None
    text = "the rest of the way is not visible"
    if last is not None and last.kind == "device" and last.point == "out":
        link = seen.links.get(last.spot.interface) if seen else None
        if link is None or link.peer is None:
            text = f"what is behind {last.spot.interface} is not watched"
    spot = replace(last.spot, interface="") if last is not None else start
    return Hop("blind", spot, facts=(Fact(text, "inferred"),))


def _is_routed(seen: Seen, before: Sighting, after: Sighting | None) -> bool:
    """Tell whether the routing table was asked between two sightings of a namespace."""
    if after is None:
        link = seen.links.get(before.device)
        # What the loopback brings back has its route from the way out.
        return before.point == "in" and not (link is not None and link.loopback)
    if before.point == "in" and after.point == "in":
        return len(before.packets) > len(after.packets)  # delivered to a tunnel
    if before.point == "out" and after.point == "out":
        return len(after.packets) > len(before.packets)  # wrapped
    if before.point == "out":
        return False  # loopback
    master = seen.master(before.device)
    return not (master and master == seen.master(after.device))


def _chains(
    seen: Seen,
    taken: Sequence[Visit],
    before: Sighting | None,
    after: Sighting | None,
    *,
    routed: bool,
) -> list[Hop]:
    """Return the hops of visits, with a look at the routing table, and with translations."""
    early = [one for one in taken if one.hook in {"ingress", "prerouting"}]
    late = taken[len(early) :]
    found: list[Hop] = [_chain_hop(seen, one) for one in early]
    start = _layer_view(before, after, first=True)
    end = _layer_view(after, before, first=False)
    if routed:
        device = before.device if before is not None and before.point == "in" else ""
        found.append(Hop("route", seen.spot(device), "", view=None))
    found += [_chain_hop(seen, one) for one in late]
    return _translated(seen, found, start, end)


def _layer_view(one: Sighting | None, other: Sighting | None, *, first: bool) -> View | None:
    """Return the headers that netfilter sees of a packet at a device.

    Where a tunnel wraps it between two sightings, these are the outer ones.
    """
    if one is None:
        return None
    if other is not None and first and len(other.packets) > len(one.packets):
        return None  # the outer packet begins in between
    if other is not None and not first and len(other.packets) > len(one.packets):
        return None
    return one.view


def _chain_hop(seen: Seen, visit: Visit) -> Hop:
    first = visit.events[0]
    # The end of a chain is no rule: what follows says where the packet went on.
    rules = tuple(
        rule
        for rule, event in ((seen.rules.rule(one), one) for one in visit.events)
        if event.kind == "policy" or rule.position or event.handle
    )
    packet = visit.packet
    shown = None
    if packet is not None:
        shown = replace(view([packet], [], first.mark), frame=b"", length=0)
    source = "nftables' trace" if not first.number else "trace of iptables-legacy"
    facts = [Fact(f"hook {visit.hook}, priority {visit.priority}", "seen", source)]
    if seen.rules.has_nft and any(event.handle and not seen.rules.rule(event).position
                                  for event in visit.events):  # fmt: skip
        text = "a rule is no longer in the list: its text is not known"
        facts.append(Fact(text, "asked", "nft -a list ruleset"))
    if any(
        one.number and (one.family, one.table, one.chain) in seen.rules.unsure
        for one in visit.events
    ):
        text = "the chain was changed meanwhile: the text may be that of another rule"
        facts.append(Fact(text, "asked", "iptables-legacy-save"))
    family = seen.rules.rule(first).family
    base = Rule(family, first.table, first.chain, 0, "", "")
    if not rules or (rules[0].table, rules[0].chain) != (base.table, base.chain):
        rules = (base, *rules)
    return Hop("chain", seen.spot(), visit.hook, None, shown, (), rules, tuple(facts))


def _flow(one: View) -> tuple[str, str, int, int]:
    return one.src, one.dst, one.sport, one.dport


def _translated(seen: Seen, found: list[Hop], start: View | None, end: View | None) -> list[Hop]:
    """Insert a hop where addresses or ports changed on the way through a namespace.

    A new destination is set before the route is looked up, a new source after it
    (https://www.netfilter.org/documentation/HOWTO/NAT-HOWTO-6.html).
    """
    made: list[Hop] = []
    current = start
    for index, hop in enumerate(found):
        if hop.kind == "route":
            later = next((one.view for one in found[index:] if one.view), end)
            if later is None and current is not None:  # nothing has seen it after that
                later = _redirected(made, current)
            if current and later and _destination(current) != _destination(later):
                changed_view = replace(current, dst=later.dst, dport=later.dport)
                made.append(_translation(seen, current, changed_view))
                current = changed_view
            made.append(hop)
            continue
        if hop.view is not None:
            made += _turned(seen, made, current, hop.view)
            current = hop.view
        made.append(hop)
    if end is None and current is not None and not any(one.kind == "route" for one in found[-1:]):
        end = _redirected(made, current)
    if end is not None and current is not None and current.protocol == end.protocol:
        made += _turned(seen, made, current, end)
    return made


#: The new destination in a rule of iptables, or of nftables, that sets a single one.
DESTINATION = re.compile(
    r"(?:--to-destination|\bdnat(?: ip6?)? to) "
    r"(?:\[(?P<six>[^]]+)\]|(?P<four>[\d.]+)|(?P<plain>[\da-f:]+))(?::(?P<port>\d+))?(?: |$)"
)


def _redirected(made: Sequence[Hop], current: View) -> View | None:
    """Return the headers of a packet that the last rule has given another destination."""
    chain = made[-1] if made and made[-1].kind == "chain" else None
    if chain is None or chain.rules[-1].verdict not in {"DNAT", "dnat"}:
        return None
    found = DESTINATION.search(chain.rules[-1].text)
    if found is None:
        return None
    address = found["six"] or found["four"] or found["plain"]
    return replace(current, dst=address, dport=int(found["port"] or current.dport))


def _turned(seen: Seen, made: Sequence[Hop], before: View | None, after: View) -> Iterator[Hop]:
    """Yield the hop of a translation.

    In the hook output, a second look at the routing table follows it.
    """
    if before is None or _flow(before) == _flow(after):
        return
    yield _translation(seen, before, after)
    last = next((one.point for one in reversed(made) if one.kind == "chain"), "")
    if last == "output" and _destination(before) != _destination(after):
        yield Hop("route", seen.spot())


def _destination(one: View) -> tuple[str, int]:
    return one.dst, one.dport


def _translation(seen: Seen, before: View, after: View) -> Hop:
    """Return the hop of a translation, with the connection that conntrack reported."""
    new = replace(before, src=after.src, dst=after.dst, sport=after.sport, dport=after.dport)
    for one in seen.connections:
        ends = {one.original.src, one.original.dst, one.reply.src, one.reply.dst}
        ports = {one.original.sport, one.original.dport, one.reply.sport, one.reply.dport}
        if (
            one.translated
            and PROTOCOLS.get(one.original.protocol) == before.protocol
            and {before.src, before.dst, after.src, after.dst} <= ends
            and {before.sport, before.dport, after.sport, after.dport} <= ports
        ):
            text = f"conntrack has {one.original}, answered as {one.reply}"
            fact = Fact(text, "seen", "conntrack -E")
            break
    else:
        fact = Fact("conntrack translates this connection", "inferred")
    changes = tuple(
        Change(name, str(getattr(before, name)), str(getattr(new, name)))
        for name in ("src", "dst", "sport", "dport")
        if getattr(before, name) != getattr(new, name)
    )
    return Hop("conntrack", seen.spot(), "", None, replace(new, frame=b""), changes, (), (fact,))


def changed(made: Iterable[Hop]) -> Iterator[Hop]:
    """Yield the hops, each with what differs from the hops before.

    Where a tunnel wraps or unwraps the packet, the request's own headers are compared.
    """
    known: View | None = None
    mark, place = 0, ("", "")
    for hop in made:
        now = hop.view
        if hop.kind == "device" or (hop.spot.machine, hop.spot.space) != place:
            mark, place = 0, (hop.spot.machine, hop.spot.space)
        if now is None:
            yield hop
        elif hop.kind == "device":
            yield replace(hop, changes=tuple(_differences(known, now)) if known else ())
            known = now
        elif hop.kind == "conntrack":
            if known is not None and known.inside is None:
                known = replace(known, src=now.src, dst=now.dst, sport=now.sport, dport=now.dport)
            yield hop
        else:
            marked = (Change("mark", hex(mark), hex(now.mark)),) if mark != now.mark else ()
            mark = now.mark
            yield replace(hop, changes=marked)


def _differences(before: View, after: View) -> Iterator[Change]:
    old, new = _depth(before), _depth(after)
    if old != new:
        yield Change("carrier", before.carrier, after.carrier)
    prefix = ""
    while _depth(after) > old and after.inside is not None:
        after, prefix = after.inside, prefix + "inside."
    while _depth(before) > new and before.inside is not None:
        before = before.inside
    for name in COMPARED:
        a, b = getattr(before, name), getattr(after, name)
        if a != b and (a or b) and (name != "carrier" or old == new):
            yield Change(prefix + name, str(a), str(b))
    if before.inside is not None and after.inside is not None:
        for one in _differences(before.inside, after.inside):
            yield Change(f"{prefix}inside.{one.field}", one.before, one.after)


def _depth(one: View) -> int:
    return 1 + _depth(one.inside) if one.inside is not None else 0

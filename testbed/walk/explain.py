"""The reasons of a walk's hops: the kernel's answers in each namespace, and why a packet ended.

The answers are asked in two steps, so that each namespace runs one command:
:func:`questions` says what to ask, :func:`explained` puts the answers in.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from testbed.walk.drops import UNSPECIFIED
from testbed.walk.model import Fact, Hop, Spot, View
from testbed.walk.request import PORT_MAX

if TYPE_CHECKING:
    from testbed.observe.inventory import Link
    from testbed.walk.follow import Seen
    from testbed.walk.frames import Direction

SEPARATOR = "\036"
DROPS = {"drop", "DROP", "REJECT", "reject", "policy drop"}
#: What `ip route get ... iif` answers when the packet would be dropped (net/ipv4/route.c).
CROSS_DEVICE = "Invalid cross-device link"
NO_HOST = "No route to host"
UNREACHABLE = "Network is unreachable"
INVALID = "Invalid argument"
NO_ROUTE = (CROSS_DEVICE, NO_HOST, UNREACHABLE, INVALID)
REFUSING = {"blackhole", "unreachable", "prohibit", "throw"}  # types of routes


@dataclass(frozen=True, slots=True)
class Question:
    """A command to run in a namespace; ``about`` names what its output tells."""

    place: tuple[str, str]
    about: str
    argv: tuple[str, ...]

    @property
    def text(self) -> str:
        return shlex.join(self.argv)


Answers = Mapping[Question, str]


def command(asked: Sequence[Question]) -> list[str]:
    """Return the command that answers questions of one namespace."""
    script = "for one do eval \"$one\" 2>&1; printf '\\036'; done"
    return ["sh", "-c", script, "sh", *(one.text for one in asked)]


def answers(asked: Sequence[Question], printed: str) -> dict[Question, str]:
    """Return the output of :func:`command` by question."""
    parts = printed.split(SEPARATOR)
    return {one: part.strip() for one, part in zip(asked, parts, strict=False)}


def questions(hops: Sequence[Hop], places: Mapping[Spot, Seen]) -> list[list[Question]]:
    """Return what to ask for each hop. ``places`` has the namespace of each spot of a hop."""
    found: list[list[Question]] = []
    for index, hop in enumerate(hops):
        seen = places[hop.spot]
        if hop.kind == "route":
            found.append(list(_route(hops, index, seen)))
        elif hop.kind == "device" and hop.point == "out":
            found.append(list(_leaving(hops, index, seen)))
        else:
            found.append([])
    return found


def _around(hops: Sequence[Hop], index: int) -> tuple[View | None, Hop | None, View | None]:
    """Return the headers before a hop, the device it came in by, and the headers after it."""
    before = next((one.view for one in reversed(hops[:index]) if one.view), None)
    after = next((one.view for one in hops[index:] if one.view), None)
    came = None
    for one in reversed(hops[:index]):
        if one.kind == "device":
            came = (
                one if one.point == "in" and one.spot.machine == hops[index].spot.machine else None
            )
            break
    return before, came, after


def _route(hops: Sequence[Hop], index: int, seen: Seen) -> Iterator[Question]:
    before, came, after = _around(hops, index)
    wanted = before if came is not None else after
    if wanted is None:
        return
    argv = ["ip", *(["-6"] if ":" in wanted.dst else []), "-o", "route", "get", wanted.dst]
    if came is not None:
        argv += ["from", wanted.src, "iif", came.spot.interface]
    elif wanted.src in seen.addresses:
        argv += ["from", wanted.src]
    if wanted.mark:
        argv += ["mark", hex(wanted.mark)]
    yield Question(seen.place, "route", (*argv, "fibmatch"))


def _leaving(hops: Sequence[Hop], index: int, seen: Seen) -> Iterator[Question]:
    """Ask why a frame left by a device with this destination MAC."""
    hop = hops[index]
    view, device = hop.view, hop.spot.interface
    if view is None or not view.dst_mac:
        return
    link = seen.links.get(device)
    if link is not None and link.master:
        yield Question(seen.place, "fdb", ("bridge", "fdb", "show", "br", link.master))
    elif link is not None and link.kind == "vxlan":
        yield Question(seen.place, "vtep", ("bridge", "fdb", "show", "dev", device))
    if link is None or not (link.master or link.loopback):
        version = ("-6",) if ":" in view.dst else ()
        yield Question(seen.place, "neighbour", ("ip", *version, "neigh", "show", "dev", device))


def explained(
    hops: Sequence[Hop], asked: Sequence[Sequence[Question]], answered: Answers
) -> list[Hop]:
    """Return the hops with the facts that the answers give."""
    found: list[Hop] = []
    for index, (hop, some) in enumerate(zip(hops, asked, strict=True)):
        before = next((one for one in reversed(found) if one.kind == "route"), None)
        facts = [fact for one in some if (fact := _fact(hop, one, answered.get(one, ""), before))]
        if hop.kind == "route" and not facts:
            facts = [_unasked(hops, index)]
        found.append(replace(hop, facts=(*hop.facts, *facts)))
    return found


def _unasked(hops: Sequence[Hop], index: int) -> Fact:
    after = next((one for one in hops[index:] if one.kind == "device"), None)
    there = f"leaves by {after.spot.interface}" if after else "is delivered here"
    return Fact(f"the packet {there}", "inferred")


def _fact(hop: Hop, question: Question, text: str, route: Hop | None) -> Fact | None:
    if question.about == "route":
        return _route_fact(question, text)
    view = hop.view
    if view is None or not text:
        return None
    wanted = next_hop(route, view)
    # Several addresses may be at one MAC: that of the next hop first.
    for line in sorted(text.splitlines(), key=lambda one: not one.startswith(f"{wanted} ")):
        if view.dst_mac not in line:
            continue
        words = line.split()
        if question.about == "fdb" and f"dev {hop.spot.interface} " in f"{line} ":
            return Fact(f"{view.dst_mac} is behind this port", "asked", question.text)
        if question.about == "vtep" and "dst" in words:
            remote = words[words.index("dst") + 1]
            return Fact(f"{view.dst_mac} is behind {remote}", "asked", question.text)
        if question.about == "neighbour":
            return Fact(
                f"{words[0]} is at {view.dst_mac} ({_state(words)})", "asked", question.text
            )
    if question.about == "fdb":
        return Fact(f"the bridge does not know {view.dst_mac}: all ports get the frame", "asked",
                    question.text)  # fmt: skip
    return None


def _state(words: Sequence[str]) -> str:
    """Return the state in an entry of ip-neighbour(8), which the origin may follow."""
    return words[-3] if words[-2:-1] == ["proto"] else words[-1]


def _route_fact(question: Question, text: str) -> Fact | None:
    if not text:
        return None
    # Without who asked, and what is kept of the route.
    words = re.sub(r"( uid \d+)?( \\ cache.*)?$", "", " ".join(text.split()))
    if "RTNETLINK answers: " in words:
        words = words.partition("RTNETLINK answers: ")[2]
    return Fact(words, "asked", question.text)


# -- the end of the way -------------------------------------------------------------------


def has_arrived(hops: Sequence[Hop], addresses: Collection[str], *, answered: bool = False) -> bool:
    """Tell whether the last namespace of the hops delivers the packet to a program.

    ``addresses`` are those of that namespace. The routing table may refuse a packet to one of
    them, for its source; not one that was ``answered``.
    """
    at = next((index for index in reversed(range(len(hops))) if hops[index].kind == "device"), None)
    view = hops[at].view if at is not None else None
    if at is None or view is None or hops[at].point != "in" or is_dropped(hops):
        return False
    routes = [one.text for hop in hops[at:] if hop.kind == "route" for one in hop.facts]
    if not answered and any(text.startswith(NO_ROUTE) for text in routes):
        return False
    if view.inside is None:  # otherwise nothing has unwrapped it, and routes are of what carries it
        # A route may make more addresses local than devices have (ip-route(8), type local).
        if any(text.startswith("local ") for text in routes):
            return True
        view = next((hop.view for hop in reversed(hops[at:]) if hop.view), view)
    return innermost(view).dst in addresses


def innermost(view: View) -> View:
    """Return the headers of the request itself in what carries it."""
    while view.inside is not None:
        view = view.inside
    return view


def is_answered(outcome: str, errors: Collection[str], address: str) -> bool:
    """Tell whether an address answered a request, by the outcome that its sender saw.

    "refused" may come of an ICMP error of another machine: ``errors`` are the sources of those
    that were seen.
    """
    if outcome == "refused":
        return not errors or address in errors
    return outcome == "answered"


#: Arguments: an option and a filter of ss(8). Prints the state of each socket, its local end, and
#: the command line of its process: of several that of the first one, which has started the others.
SOCKETS = r"""
ss -Hnp "$1" "$2" | while read -r state _ _ here _ users; do
    pid=$(printf '%s' "$users" | grep -o 'pid=[0-9]*' | cut -d= -f2 | sort -n | head -n1)
    printf '%s %s ' "$state" "$here"; tr '\0' ' ' < "/proc/$pid/cmdline" 2>/dev/null; echo
done
"""
LONGEST = 160  # characters of a command line
LISTENING = {"tcp": "-lt", "udp": "-lu"}  # options of ss(8)


def listeners(hops: Sequence[Hop]) -> list[str]:
    """Return the command that lists who listens at the port that a packet arrived at.

    Empty for a packet without ports.
    """
    view = next((hop.view for hop in reversed(hops) if hop.kind == "device" and hop.view), None)
    if view is None or view.protocol not in LISTENING:
        return []
    return ["sh", "-c", SOCKETS, "sockets", LISTENING[view.protocol], f"sport = :{view.dport}"]


def listening(command: Sequence[str], printed: str) -> list[Fact]:
    """Return who listens, as far as it can be seen.

    A proxy (docker-proxy) names its own target in its command line.
    """
    found: dict[str, list[str]] = {}
    for line in dict.fromkeys(printed.splitlines()):
        address, _, words = line.partition(" ")[2].partition(" ")
        if words.strip():
            found.setdefault(_named(words)[:LONGEST], []).append(address)
    source = f"ss -np {command[-2]} {command[-1]}"
    return [
        Fact(f"{words} listens on {' and '.join(addresses)}", "asked", source)
        for words, addresses in found.items()
    ]


def _named(command: str) -> str:
    """Return a command line with its program by name, not by path."""
    program, blank, rest = command.strip().partition(" ")
    return f"{program.rpartition('/')[2]}{blank}{rest}"


def onward(
    printed: str, own: Collection[str], known: Collection[str]
) -> tuple[str, int, frozenset[str]] | None:
    """Return where a listener passes connections on to, if its command line says so.

    That is an address of the lab (``known``), not of the listener's own namespace, followed by
    a port: "docker-proxy ... -container-ip 172.17.0.2 -container-port 80". The result is the
    address, the port, and the command lines of the listeners that have both.
    """
    found: dict[tuple[str, int], set[str]] = {}
    for line in printed.splitlines():
        command = line.split(" ", 2)[2].strip() if line.count(" ") > 1 else ""
        words = command.split()
        for index, word in enumerate(words):
            if word in known and word not in own:
                ports = [int(one) for one in words[index + 1 : index + 3] if one.isdecimal()]
                if ports and 0 < ports[0] <= PORT_MAX:
                    found.setdefault((word, ports[0]), set()).add(command)
                    break
    if not found:
        return None
    (address, port), commands = next(iter(found.items()))
    return address, port, frozenset(commands)


# -- where and why a packet was lost ----------------------------------------------


def lost(
    hops: Sequence[Hop],
    answered: Answers,
    errors: Sequence[Fact] = (),
    links: Mapping[str, Link] | None = None,
    drops: Sequence[Fact] = (),
) -> Hop:
    """Return the hop "end" of a packet that did not arrive, with the reason as far as known.

    ``errors`` are facts on the ICMP errors that were seen, ``links`` the devices of the last
    namespace by name, ``drops`` those of :func:`drops`.
    """
    spot = hops[-1].spot if hops else Spot("")
    if (end := _dropped(hops)) is not None:
        return replace(end, facts=(*end.facts, *errors))
    about = {question.about: (question, text) for question, text in answered.items()}
    found = [*_unroutable(hops, about), *errors]
    last = next((one for one in reversed(hops) if one.kind == "device"), None)
    if last is not None and last.point == "out":
        found = found or _on_the_link(last, about, (links or {}).get(last.spot.interface))
    elif not found:
        if last is not None and hops[-1].kind in {"device", "route"}:
            found += _refused_at_ingress(last, about)
        device, neighbour = _way(hops, about)
        found += _no_neighbour(device, neighbour, about) or _down(device, about)
        found += _queue(device, about)
    if "route" in about:  # no device has seen it
        question, text = about["route"]
        fact = _route_fact(question, text)
        found = [*found, *([fact] if fact else [])]
    found = _with_drops(found, drops)
    return Hop("end", spot, hops[-1].point if hops else "", facts=tuple(found))


def _with_drops(found: Sequence[Fact], drops: Sequence[Fact]) -> list[Fact]:
    """Return the reasons of a loss with those of the kernel.

    What the kernel said of this packet comes first, unless it has no word for the reason. That it
    says nothing matters where nothing else is known.
    """
    told = [one for one in drops if one.origin == "seen"]
    known = [one for one in found if one.origin != "inferred"]
    if not told:
        found = found or [Fact("nothing more was seen of the packet", "inferred")]
        return [*found, *([] if known else drops)]
    first = [one for one in told if not any(word in one.text for word in VAGUE)]
    return [*first, *known, *(one for one in told if one not in first),
            *(one for one in found if one not in known)]  # fmt: skip


#: Reasons that say less than the answers of the kernel: IP_INADDRERRORS is that of a machine which
#: does not forward, too (ip_error, net/ipv4/route.c).
VAGUE = (UNSPECIFIED, "IP_INADDRERRORS")
#: Reasons of the kernel in other words (include/net/dropreason-core.h).
REASONS = {
    "NO_SOCKET": "nothing listens",
    "SOCKET_FILTER": "a filter of the socket",
    "SOCKET_RCVBUFF": "the buffer of the socket is full",
    "NETFILTER_DROP": "a rule of netfilter",
    "OTHERHOST": "the MAC is that of another machine",
    "IP_RPFILTER": "the route back to the source leaves by another device",
    "UNICAST_IN_L2_MULTICAST": "a unicast packet in a broadcast frame",
    "TCP_LISTEN_OVERFLOW": "too many connections wait to be accepted",
    "IP_OUTNOROUTES": "no route",
    "IP_INNOROUTES": "no route",
    "IPV6DISABLED": "IPv6 is disabled here",
    "NEIGH_CREATEFAIL": "no entry for the neighbour",
    "NEIGH_FAILED": "the neighbour does not answer",
    "NEIGH_QUEUEFULL": "too many packets wait for the neighbour",
    "NEIGH_DEAD": "the entry of the neighbour was removed",
    "TC_EGRESS": "a filter of tc on the way out",
    "TC_INGRESS": "a filter of tc on the way in",
    "XDP": "a program of XDP",
    "QDISC_DROP": "the queue of the device",
    "QDISC_OVERLIMIT": "the queue of the device is full",
    "QUEUE_PURGE": "the queue that it waited in was emptied",
    "CPU_BACKLOG": "the queue of the processor is full",
    "FULL_RING": "the queue of the device is full",
    "UNHANDLED_PROTO": "nothing here handles the protocol",
    "DEV_READY": "the device is not ready",
    "IP_INADDRERRORS": "the destination is not valid here",
    "IP_LOCAL_SOURCE": "the source is an address of this namespace itself",
    "IP_INVALID_SOURCE": "the source is not valid",
    "IP_INVALID_DEST": "the destination is not valid",
    "IP_LOCALNET": "a loopback address from outside",
    "PKT_TOO_BIG": "it is larger than the MTU",
    "BPF_CGROUP_EGRESS": "a program of a control group",
    "VXLAN_VNI_NOT_FOUND": "no device has the VNI",
    "VXLAN_ENTRY_EXISTS": "the forwarding entry of VXLAN leads nowhere",
    "NO_TX_TARGET": "no device to send it by",
    "BRIDGE_INGRESS_STP_STATE": "the port of the bridge does not forward",
}
TRACEPOINT = "tracepoint skb:kfree_skb"


def drops(
    hops: Sequence[Hop], places: Mapping[tuple[str, str], Seen], last: Seen, direction: Direction
) -> list[Fact]:
    """Return why the kernel dropped the packet, in the last namespace that it was seen in.

    After a device that it left by, that may be the namespace of the other end, too. Without a
    report of the kernel, a fact tells why there is none.
    """
    near = [last]
    if hops and hops[-1].kind == "device" and hops[-1].point == "out":
        link = last.links.get(hops[-1].spot.interface)
        peer = places.get((link.peer.machine, link.peer.space)) if link and link.peer else None
        near += [peer] if peer is not None else []
    told = [one for place in near for one in place.drops if one.direction == direction]
    told = [one for one in told if one.space] or told
    found = []
    for one in told:
        word = f"{one.reason} in {one.function}" if one.function else one.reason
        text = f"{words} ({word})" if (words := REASONS.get(one.reason)) else word
        found.append(Fact(f"the kernel dropped it: {text}", "seen", TRACEPOINT))
    if not found and last.no_drops:
        text = f"the kernel does not report drops here: {last.no_drops}"
        found.append(Fact(text, "inferred", TRACEPOINT))
    return list(dict.fromkeys(found))


def is_dropped(hops: Sequence[Hop]) -> bool:
    """Tell whether a rule has dropped the packet in the last chain."""
    return _dropped(hops) is not None


def _dropped(hops: Sequence[Hop]) -> Hop | None:
    """Return the hop "end" of a packet that a rule has dropped; None if none has."""
    last = next((hop for hop in reversed(hops) if hop.kind in {"chain", "device"}), None)
    if last is None or last.kind != "chain" or last.rules[-1].verdict not in DROPS:
        return None
    rule = last.rules[-1]
    what = f"rule {rule.position}" if rule.position else "a rule"
    what = "the policy" if rule.verdict.startswith("policy") else what
    text = f"dropped by {what} of {rule.table} {rule.chain}"
    fact = Fact(text, last.facts[0].origin, last.facts[0].source)
    return Hop("end", last.spot, last.point, rules=(rule,), facts=(fact,))


About = Mapping[str, tuple[Question, str]]


def _unroutable(hops: Sequence[Hop], about: About) -> list[Fact]:
    """Return why the routing table of the last namespace refuses the packet."""
    last = next((hop for hop in reversed(hops) if hop.kind in {"route", "device"}), None)
    if last is None or last.kind != "route":
        return []
    fact = next((one for one in last.facts if one.origin == "asked"), None)
    if fact is None:
        return []
    question, text = about.get("match", (None, ""))
    for line in text.splitlines():
        if question is not None and line.split()[:1] and line.split()[0] in REFUSING:
            words = f"the route refuses it: {' '.join(line.split())}"
            return [Fact(words, "asked", question.text)]
    if CROSS_DEVICE in fact.text or INVALID in fact.text:
        return _refused_source(last.spot.interface, fact, about)
    settings = about.get("settings", (None, ""))
    name = f"{_of_sysctl(last.spot.interface)}.forwarding"
    if NO_HOST in fact.text and _setting(settings[1], name) == "0":
        words = f"{last.spot.interface} does not forward: {settings[1].splitlines()[0]}"
        return [Fact(words, "asked", settings[0].text if settings[0] else "")]
    if UNREACHABLE in fact.text or NO_HOST in fact.text:
        return [Fact(f"no route: {fact.text}", "asked", fact.source)]
    return []


def _of_sysctl(device: str) -> str:
    """Return a device as sysctl(8) names it, with a slash for each dot: "eth0/100"."""
    return device.replace(".", "/")


def _setting(text: str, name: str) -> str:
    """Return the value of the setting that ends in a name, as sysctl(8) prints it."""
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key.strip().endswith(name):
            return value.strip()
    return ""


def _refused_source(device: str, fact: Fact, about: About) -> list[Fact]:
    """Return why a packet's source is refused where it came in.

    rp_filter refuses a source to which the route does not leave by the same device
    (ip-sysctl.rst). Some kernels answer so themselves (EXDEV), others with EINVAL.
    """
    asked, settings = about.get("settings", (None, ""))
    question, back = about.get("reverse", (None, ""))
    words = back.split()
    values = [_setting(settings, f"{one}.rp_filter") for one in ("all", _of_sysctl(device))]
    source = question.text if question else ""
    if words[:1] == ["local"] and "RTNETLINK" not in back:
        return [Fact("the source is an address of this namespace itself", "asked", source)]
    leaves = words[words.index("dev") + 1] if "dev" in words else "no device"
    if CROSS_DEVICE in fact.text or ({*values} & {"1", "2"} and leaves != device):
        found = f"rp_filter: the route back to the source leaves by {leaves}, not by {device}"
        lines = ", ".join(line for line in settings.splitlines() if "rp_filter" in line)
        return [Fact(found, "asked", source), Fact(lines, "asked", asked.text if asked else "")]
    return [Fact(f"source or destination is not valid here: {fact.text}", "asked", fact.source)]


def _way(hops: Sequence[Hop], about: About) -> tuple[str, str]:
    """Return the device by which the last route leaves, and its next hop; "" if not known.

    For a packet that no device has seen, this is the route that its sender has.
    """
    route = next((hop for hop in reversed(hops) if hop.kind == "route" and hop.facts), None)
    text = route.facts[0].text if route is not None else about.get("route", (None, ""))[1]
    view = next((one.view for one in reversed(hops) if one.view), None)
    words = text.split()
    if "dev" not in words[:-1]:
        return "", ""
    return words[words.index("dev") + 1], _gateway(words) or (view.dst if view else words[0])


def _no_neighbour(device: str, neighbour: str, about: About) -> list[Fact]:
    """Return that the next hop does not answer ARP or NDP."""
    question, text = about.get("neighbours", (None, ""))
    for line in text.splitlines():
        words = line.split()
        if question is None or words[:3] != [neighbour, "dev", device]:
            continue  # another device may have an entry for the same address
        if _state(words) in {"FAILED", "INCOMPLETE"}:
            found = [Fact(f"no neighbour: {' '.join(words)}", "asked", question.text)]
            return [*_down(device, about), *found]
    return []


def next_hop(route: Hop | None, view: View | None) -> str:
    """Return the address of the next hop: the gateway of a route, or the destination."""
    words = route.facts[0].text.split() if route is not None and route.facts else []
    return _gateway(words) or (view.dst if view else "")


def _gateway(words: Sequence[str]) -> str:
    """Return the gateway of a route; "" without one."""
    for word in ("via", "inet6"):  # of IPv4: "via inet6 fe80::1"
        if word in words and words[words.index(word) + 1] != "inet6":
            return words[words.index(word) + 1]
    return ""


def _down(device: str, about: About) -> list[Fact]:
    question, text = about.get("links", (None, ""))
    for line in text.splitlines():
        words = line.split()
        name = words[1].rstrip(":").partition("@")[0] if len(words) > 2 else ""
        if question is not None and name == device and not {"LOWER_UP"} <= _flags(words[2]):
            return [Fact(f"{device} is down: {words[2]}", "asked", question.text)]
    return []


def _flags(text: str) -> set[str]:
    return {*text.strip("<>").split(",")}


def _refused_at_ingress(last: Hop, about: About) -> list[Fact]:
    """Return a filter of tc(8) that drops frames before netfilter sees them.

    It is not known whether it has dropped this one.
    """
    question, text = about.get("ingress", (None, ""))
    lines = [" ".join(line.split()) for line in text.splitlines() if "drop" in line]
    if question is None or not lines:
        return []
    text = f"a filter of tc at the ingress of {last.spot.interface} drops: {lines[0]}"
    return [Fact(text, "asked", question.text)]


def _on_the_link(last: Hop, about: About, link: Link | None) -> list[Fact]:
    """Return why the other end of a link did not receive a frame."""
    device = last.spot.interface
    text = f"{device} sent it, and the other end did not receive it"
    if link is None or link.peer is None:
        text = f"{device} sent it, and what is behind {device} is not watched"
    return [*_down(device, about), Fact(text, "inferred"), *_queue(device, about)]


def _queue(device: str, about: About) -> list[Fact]:
    """Return the queue of a device if it loses packets by intention (tc-netem(8))."""
    question, text = about.get("queue", (None, ""))
    return [
        Fact(f"the queue of {device}: {' '.join(line.split())}", "asked", question.text)
        for line in text.splitlines()
        if question is not None and f" dev {device} " in line and "loss" in line
    ]


def loss_questions(hops: Sequence[Hop], seen: Seen, address: str) -> list[Question]:
    """Return what to ask in the last namespace that a lost packet was seen in.

    ``address`` is the target's, for a packet that no device has seen.
    """
    asked = [
        Question(seen.place, "links", ("ip", "-o", "link", "show")),
        Question(seen.place, "queue", ("tc", "qdisc", "show")),
    ]
    last = next((one for one in reversed(hops) if one.kind == "device"), None)
    view = last.view if last is not None else None
    version = ("-6",) if ":" in (view.dst if view is not None else address) else ()
    ip = ("ip", *version, "-o")
    asked.append(Question(seen.place, "neighbours", ("ip", *version, "neigh", "show")))
    if last is None or view is None:
        if not address:
            return asked
        return [*asked, Question(seen.place, "route", (*ip, "route", "get", address))]
    if last.point == "out":
        return asked
    device, conf = last.spot.interface, f"net.{'ipv6' if version else 'ipv4'}.conf"
    names = [f"{conf}.{_of_sysctl(device)}.forwarding"]
    if not version:
        names += [f"{conf}.{_of_sysctl(device)}.rp_filter", f"{conf}.all.rp_filter"]
    return [
        *asked,
        Question(seen.place, "settings", ("sysctl", *names)),
        Question(seen.place, "match", (*ip, "route", "show", "match", view.dst)),
        Question(seen.place, "reverse", (*ip, "route", "get", view.src)),
        Question(seen.place, "ingress", ("tc", "filter", "show", "dev", device, "ingress")),
    ]

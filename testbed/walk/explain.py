"""The reasons of a walk's hops: the kernel's answers in each namespace, and why a packet ended.

The answers are asked in two steps, so that each namespace runs one command:
:func:`questions` says what to ask, :func:`explained` puts the answers in.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from testbed.walk.model import Fact, Hop, Spot, View

if TYPE_CHECKING:
    from testbed.walk.follow import Seen

SEPARATOR = "\036"
DROPS = {"drop", "DROP", "REJECT", "reject", "policy drop"}
#: What `ip route get ... iif` answers when the packet would be dropped (net/ipv4/route.c).
CROSS_DEVICE = "Invalid cross-device link"
NO_HOST = "No route to host"
UNREACHABLE = "Network is unreachable"
INVALID = "Invalid argument"


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
    script = "set -f; for one do $one 2>&1; printf '\\036'; done"
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
    found = []
    for index, (hop, some) in enumerate(zip(hops, asked, strict=True)):
        facts = [fact for one in some if (fact := _fact(hop, one, answered.get(one, "")))]
        if hop.kind == "route" and not facts:
            facts = [_unasked(hops, index)]
        found.append(replace(hop, facts=(*hop.facts, *facts)))
    return found


def _unasked(hops: Sequence[Hop], index: int) -> Fact:
    after = next((one for one in hops[index:] if one.kind == "device"), None)
    there = f"leaves by {after.spot.interface}" if after else "is delivered here"
    return Fact(f"the packet {there}", "inferred")


def _fact(hop: Hop, question: Question, text: str) -> Fact | None:
    if question.about == "route":
        return _route_fact(question, text)
    view = hop.view
    if view is None or not text:
        return None
    for line in text.splitlines():
        if view.dst_mac not in line:
            continue
        words = line.split()
        if question.about == "fdb" and f"dev {hop.spot.interface} " in f"{line} ":
            return Fact(f"{view.dst_mac} is behind this port", "asked", question.text)
        if question.about == "vtep" and "dst" in words:
            remote = words[words.index("dst") + 1]
            return Fact(f"{view.dst_mac} is behind {remote}", "asked", question.text)
        if question.about == "neighbour":
            return Fact(f"{words[0]} is at {view.dst_mac} ({words[-1]})", "asked", question.text)
    if question.about == "fdb":
        return Fact(f"the bridge does not know {view.dst_mac}: all ports get the frame", "asked",
                    question.text)  # fmt: skip
    return None


def _route_fact(question: Question, text: str) -> Fact | None:
    if not text:
        return None
    words = " ".join(text.split())
    if "RTNETLINK answers: " in words:
        words = words.partition("RTNETLINK answers: ")[2]
    return Fact(words, "asked", question.text)


# -- where and why a packet was lost ----------------------------------------------


def lost(hops: Sequence[Hop], answered: Answers, errors: Sequence[Fact] = ()) -> Hop:
    """Return the hop "end" of a packet that did not arrive, with the reason as far as known.

    ``errors`` are facts on the ICMP errors that were seen.
    """
    spot = hops[-1].spot if hops else Spot("")
    if (end := _dropped(hops)) is not None:
        return replace(end, facts=(*end.facts, *errors))
    about = {question.about: (question, text) for question, text in answered.items()}
    found = [*_unroutable(hops, about), *errors]
    if "route" in about:  # it was not seen at all
        question, text = about["route"]
        fact = _route_fact(question, text)
        found = [*([fact] if fact else []), *found]
    last = next((one for one in reversed(hops) if one.kind == "device"), None)
    if not found and last is not None and last.point == "out":
        found += _on_the_link(last, about)
    elif not found:
        found += _no_neighbour(hops, about)
    if not found:
        found = [Fact("nothing more was seen of the packet", "inferred")]
    return Hop("end", spot, hops[-1].point if hops else "", facts=tuple(found))


def _dropped(hops: Sequence[Hop]) -> Hop | None:
    """Return the hop "end" of a packet that a rule has dropped; None if none has."""
    last = next((hop for hop in reversed(hops) if hop.kind in {"chain", "device"}), None)
    if last is None or last.kind != "chain" or last.rules[-1].verdict not in DROPS:
        return None
    rule = last.rules[-1]
    what = f"rule {rule.position}" if rule.position else "the policy"
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
    device = last.spot.interface
    question, settings = about.get("settings", (None, ""))
    set_to = dict(line.replace(" ", "").split("=", 1) for line in settings.splitlines()
                  if "=" in line)  # fmt: skip

    def setting(name: str) -> str:
        return next((value for key, value in set_to.items() if key.endswith(name)), "")

    source = question.text if question else ""
    if CROSS_DEVICE in fact.text:
        values = ", ".join(f"{key} = {value}" for key, value in set_to.items() if "rp_f" in key)
        words = f"rp_filter: the way back to the source does not leave by {device}"
        return [Fact(words, "asked", fact.source), Fact(values, "asked", source)]
    if NO_HOST in fact.text and setting(f"{device}.forwarding") == "0":
        words = f"{device} does not forward: {next(iter(set_to))} = 0"
        return [Fact(words, "asked", source)]
    if UNREACHABLE in fact.text or NO_HOST in fact.text:
        return [Fact(f"no route: {fact.text}", "asked", fact.source)]
    if fact.text.split()[0] in {"blackhole", "unreachable", "prohibit", "throw"}:
        return [Fact(f"the route refuses it: {fact.text}", "asked", fact.source)]
    if INVALID in fact.text:
        return [Fact(f"the kernel takes source or destination for wrong: {fact.text}", "asked",
                     fact.source)]  # fmt: skip
    return []


def _no_neighbour(hops: Sequence[Hop], about: About) -> list[Fact]:
    """Return that the next hop does not answer ARP or NDP."""
    route = next((hop for hop in reversed(hops) if hop.kind == "route"), None)
    question, text = about.get("neighbours", (None, ""))
    if route is None or question is None or not route.facts:
        return []
    words = route.facts[0].text.split()
    view = next((one.view for one in reversed(hops) if one.view), None)
    wanted = words[words.index("via") + 1] if "via" in words else (view.dst if view else "")
    for line in text.splitlines():
        if line.split()[:1] == [wanted] and line.split()[-1] in {"FAILED", "INCOMPLETE"}:
            return [Fact(f"no neighbour: {' '.join(line.split())}", "asked", question.text)]
    return []


def _on_the_link(last: Hop, about: About) -> list[Fact]:
    """Return why the other end of a link did not receive a frame."""
    device = last.spot.interface
    question, text = about.get("link", (None, ""))
    if question is not None and ("NO-CARRIER" in text or "state DOWN" in text):
        return [Fact(f"{device} is down: {' '.join(text.split()[1:9])}", "asked", question.text)]
    question, text = about.get("queue", (None, ""))
    found = [Fact(f"{device} sent it, and the other end did not receive it", "inferred")]
    if question is not None:
        found += [
            Fact(" ".join(line.split()), "asked", question.text)
            for line in text.splitlines()
            if "loss" in line
        ]
    return found


def loss_questions(hops: Sequence[Hop], seen: Seen, address: str) -> list[Question]:
    """Return what to ask in the last namespace that a lost packet was seen in.

    ``address`` is the target's, for a packet that was not seen at all.
    """
    last = next((one for one in reversed(hops) if one.kind == "device"), None)
    if last is None or last.view is None:
        version = ("-6",) if ":" in address else ()
        return [Question(seen.place, "route", ("ip", *version, "-o", "route", "get", address))]
    device = last.spot.interface
    if last.point == "out":
        return [
            Question(seen.place, "link", ("ip", "-o", "link", "show", "dev", device)),
            Question(seen.place, "queue", ("tc", "-s", "qdisc", "show", "dev", device)),
        ]
    version = ("-6",) if ":" in last.view.dst else ()
    family = "ipv6" if version else "ipv4"
    conf = f"net.{family}.conf"
    names = [f"{conf}.{device}.forwarding"]
    if not version:
        names += [f"{conf}.{device}.rp_filter", f"{conf}.all.rp_filter"]
    return [
        Question(seen.place, "neighbours", ("ip", *version, "neigh", "show")),
        Question(seen.place, "settings", ("sysctl", *names)),
    ]

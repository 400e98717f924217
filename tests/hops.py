"""Walks of real labs, held against captures of tcpdump and rules read independently."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.observe.capture import captures
from testbed.observe.inventory import inventory
from testbed.polling import until
from testbed.walk.run import walk

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node, Result, Running
    from testbed.nodes.place import Place
    from testbed.observe.capture import Capture
    from testbed.walk.model import Hop, Leg, Rule, Walk
    from testbed.walk.request import Request


def fine(found: Walk) -> Leg:
    assert found.arrived, [hop.facts for hop in found.legs[-1].hops[-1:]]
    return found.legs[0]


def labels(leg: Leg) -> list[str]:
    return [hop.label for hop in leg.hops]


def end(found: Walk) -> Hop:
    """The end of a packet that was lost."""
    assert not found.legs[0].arrived
    last = found.legs[0].hops[-1]
    assert last.kind == "end"
    return last


def devices(leg: Leg) -> list[str]:
    """The devices of a leg, without the random part of their names."""
    shown = [hop.label for hop in leg.hops if hop.kind == "device"]
    return [re.sub(r"veth\w+", "veth*", label) for label in shown]


def changed(hop: Hop) -> dict[str, tuple[str, str]]:
    """Return the fields that changed at a hop, each with its values before and after."""
    return {one.field: (one.before, one.after) for one in hop.changes}


def rules(leg: Leg) -> list[Rule]:
    """The rules that a packet met, without the ends of chains."""
    return [rule for hop in leg.hops for rule in hop.rules if rule.position]


def why(hop: Hop) -> str:
    return " ".join(fact.text for fact in hop.facts)


@dataclass(frozen=True)
class Inside:
    """A network namespace of a node: of a container or a Pod."""

    node: Node
    path: str

    @property
    def name(self) -> str:
        return f"{self.node.name}:{self.path}"

    @property
    def slowness(self) -> float:
        return self.node.slowness

    def _argv(self, argv: Sequence[str]) -> list[str]:
        return ["nsenter", f"--net={self.path}", *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float = 60,
        check: bool = True,
    ) -> Result:
        return self.node.run(self._argv(argv), input=input, timeout=timeout, check=check)

    def spawn(self, argv: Sequence[str]) -> Running:
        return self.node.spawn(self._argv(argv))


def places(lab: LiveLab) -> Callable[[Hop], Place]:
    """Return a function that finds the place of a hop."""
    there = inventory(lab)

    def place_of(hop: Hop) -> Place:
        if hop.spot.fabric:
            assert lab.fabric is not None
            return lab.fabric
        machine = there.machine(hop.spot.machine)
        space = machine.space(hop.spot.space) if machine and hop.spot.space else None
        if space is not None:
            return Inside(lab.node(hop.spot.machine), space.path)
        return lab.network(hop.spot.machine)

    return place_of


def checked(lab: LiveLab, source: str, target: str, request: Request) -> Walk:
    """A walk whose frames tcpdump has captured, too, on each of its devices.

    Each device must have seen just the frame that the hop shows, and as often as the walk says.
    """
    place_of = places(lab)
    first = walk(lab, source, target, request, reply=True)
    points = {str(hop.spot): (place_of(hop), hop.spot.interface, "") for hop in at_devices(first)}
    with captures(*points.values()) as captured:
        seen = dict(zip(points, captured, strict=True))
        found = walk(lab, source, target, request, reply=True)
        assert found.hops == first.hops
        for hop in at_devices(found):  # tcpdump of another kernel may be late
            if not until(functools.partial(times, seen, hop), 30):
                one = seen[str(hop.spot)]
                one.stop()  # raises an error if there was no room for packets
                raise AssertionError(f"{hop.label} {hop.view}, not among\n{one.lines()}")
    for hop in at_devices(found):
        assert times(seen, hop) == (2 if hop.spot.interface == "lo" else 1), hop  # out, and in
    return found


def at_devices(found: Walk) -> list[Hop]:
    return [hop for leg in found.legs for hop in leg.hops if hop.kind == "device"]


def times(seen: Mapping[str, Capture], hop: Hop) -> int:
    """Return how often tcpdump has seen the frame of a hop at its device."""
    assert hop.view is not None
    return [packet.frame for packet in seen[str(hop.spot)].packets].count(hop.view.frame)


def listed(node: Place, table: str, chain: str, family: str, kind: str) -> list[str]:
    """The rules of a chain, as the program that wrote them lists them."""
    if kind == "nftables":
        text = node.run(["nft", "-s", "list", "chain", family, table, chain]).stdout
        inner = [line.strip() for line in text.splitlines()[2:-2]]
        of_chain = ("type ", "comment ")  # a rule begins with neither
        lines = [line for line in inner if not line.startswith(of_chain)]
        return [re.sub(r"\s*\bcounter\b", "", line).strip() for line in lines]
    program = f"{kind}-save"
    text = node.run([program, "-t", table]).stdout
    return [line for line in text.splitlines() if line.startswith(f"-A {chain} ")]


def counted(node: Place, kind: str) -> dict[str, int]:
    """The packets of each rule of iptables."""
    text = node.run([f"{kind}-save", "-c"]).stdout
    found = re.findall(r"^\[(\d+):\d+\] (-A .*)$", text, re.MULTILINE)
    return {rule: int(count) for count, rule in found}


def all_listed(lab: LiveLab, leg: Leg, kind_of: Callable[[Rule], str]) -> None:
    """Check that each rule of a leg is listed with this text at this position.

    ``kind_of`` returns the kind of a rule, see :func:`listed`.
    """
    place_of = places(lab)
    known: dict[tuple[str, str, str, str], list[str]] = {}
    for hop in leg.hops:
        for rule in (one for one in hop.rules if one.position):
            key = (str(hop.spot), rule.family, rule.table, rule.chain)
            if key not in known:
                place = place_of(hop)
                known[key] = listed(place, rule.table, rule.chain, rule.family, kind_of(rule))
            assert known[key][rule.position - 1] == rule.text, (known[key], rule)

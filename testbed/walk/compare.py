"""Differences of two walks, as differences of their paths.

Two runs of the same request never give the same bytes: times, MACs, IP ids, source ports, and
the names that an engine invents for interfaces and Pods differ. A :class:`Path` leaves these out,
and has the names of the lab in place of its addresses, so that two paths are equal if the packets
went the same way for the same rules.

Only the first packet of a flow meets the chains of NAT. That of the request is the first of its
flow, but the flow of a tunnel that carries it may be older. So the chains of NAT that a carrying
packet met, and that left it alone, are not part of a path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from testbed.walk.model import Hop, Leg, Walk

ADDRESS = re.compile(
    r"(?<![\w.:])(?:\d+(?:\.\d+){3}(?!\w|\.\d)|[0-9a-f]*:[0-9a-f]*:[0-9a-f:.]*(?![\w:]))"
)
MAC = re.compile(r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", re.IGNORECASE)
#: Names that a program made from a hash or at random: veth1a2b3c4, br-0123456789ab,
#: KUBE-SEP-ABCDEFGHIJKLMNOP, web-7c5ddbdf54-x2v9k.
INVENTED = (
    (re.compile(r"\b([a-z0-9-]+)-[0-9a-z]{8,10}-[a-z0-9]{5}\b"), r"\1-*"),
    (re.compile(r"\b([a-z]+?-?)(?=[0-9a-f]*\d)[0-9a-f]{6,15}(?![\w])"), r"\1*"),
    (re.compile(r"\b((?:[A-Z]+-)+)[A-Z2-7]{16}\b"), r"\1*"),
)
#: Fields of a packet that differ from one run to the next.
PASSING = {"src_mac", "dst_mac", "sport", "ip_id", "length", "frame"}
NUMBER = re.compile(r"\b\d+(?:\.\d+)? ?(?:ns|us|µs|ms|s)\b")

RUN = 2  # lines of a run in a short difference
DETAIL = " " * 4  # before a detail of a place, within a leg

Sign = Literal[" ", "-", "+"]


@dataclass(frozen=True, slots=True)
class Step:
    """A hop without what differs from run to run. ``place`` says where, ``details`` what."""

    place: str
    details: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        return [self.place, *(f"    {detail}" for detail in self.details)]


ARRIVED, LOST = Step("arrived"), Step("LOST")


@dataclass(frozen=True, slots=True)
class Path:
    """The way of a walk: the steps of each leg, to compare."""

    legs: tuple[tuple[str, tuple[Step, ...]], ...]

    @property
    def end(self) -> str:
        """The result in a few words: that the packets arrived, or where one was lost."""
        for _, steps in self.legs:
            if steps and steps[-1] == LOST:
                return "LOST at " + steps[-2].place.removesuffix(" LOST") if steps[1:] else "LOST"
        return ARRIVED.place


@dataclass(frozen=True, slots=True)
class Difference:
    """Two paths side by side; true if they differ.

    ``lines`` are those of both, each with its sign: " " for both, "-" for the first alone, "+"
    for the second alone.
    """

    lines: tuple[tuple[Sign, str], ...]

    def __bool__(self) -> bool:
        return any(sign != " " for sign, _ in self.lines)

    def __str__(self) -> str:
        return "\n".join(f"{sign} {text}".rstrip() for sign, text in self.lines)

    def short(self) -> list[str]:
        """Return the lines that differ, each run below its place, long runs cut."""
        found: list[str] = []
        place = ""
        for sign, run in groupby(self.lines, lambda line: line[0]):
            texts = [text for _, text in run]
            lines = [f"{sign} {text}".rstrip() for text in texts]
            if sign == " ":
                places = [text for text in texts if not text.startswith(DETAIL)]
                place = f"  {places[-1]}" if places else ""
                continue
            found += [place] if place else []
            found += lines[:RUN]
            if more := len(lines[RUN:]):
                found.append(f"{sign}   ... {more} more {'line' if more == 1 else 'lines'}")
            place = ""
        return found

    def to_dict(self) -> dict[str, Any]:
        lines = [{"sign": sign.strip(), "text": text} for sign, text in self.lines]
        return {"different": bool(self), "lines": lines}


def compare(before: Walk, after: Walk) -> Difference:
    """Return the difference of two walks' paths."""
    return difference(path(before), path(after))


def path(walk: Walk) -> Path:
    """Return the path of a walk."""
    return Path(tuple((leg.direction, tuple(_steps(leg, walk.names))) for leg in walk.legs))


def _steps(leg: Leg, names: Mapping[str, str]) -> Iterator[Step]:
    carrying = {(hop.view.src, hop.view.dst) for hop in leg.hops if hop.view and hop.view.carrier}
    for hop in leg.hops:
        if hop.view and (hop.view.src, hop.view.dst) in carrying and _is_idle_nat(hop):
            continue
        yield Step(plain(_place(hop), names), tuple(plain(one, names) for one in _details(hop)))
    yield ARRIVED if leg.arrived else LOST


def _is_idle_nat(hop: Hop) -> bool:
    """Tell whether a hop is a chain of NAT that did not translate."""
    return hop.kind == "chain" and not hop.changes and all(r.table == "nat" for r in hop.rules)


def plain(text: str, names: Mapping[str, str]) -> str:
    """Replace what differs from run to run, and addresses by the names of their owners.

    >>> plain("veth1a2b3c4 to 10.0.0.2/32", {"10.0.0.2": "web"})
    'veth* to web/32'
    """
    text = MAC.sub("MAC", text)
    text = ADDRESS.sub(lambda found: names.get(found[0], found[0]), text)
    for pattern, by in INVENTED:
        text = pattern.sub(by, text)
    return text


def _place(hop: Hop) -> str:
    if hop.kind == "device":
        return f"{hop.spot} {hop.point}".rstrip()
    what = {"end": "LOST"}.get(hop.kind, hop.label)
    if hop.kind == "blind" and hop.spot.interface:
        return f"{hop.spot} blind"
    return f"{hop.spot} {what}" + (f" {hop.point}" if hop.kind == "route" and hop.point else "")


def _details(hop: Hop) -> Iterator[str]:
    for change in hop.changes:
        if change.field.rpartition(".")[2] not in PASSING:
            yield f"{change.field} {change.before or '-'} -> {change.after or '-'}"
    for rule in hop.rules:
        words = rule.text or f"{rule.table} {rule.chain}"
        told = rule.verdict.rpartition(" ")[2].lower() in words.lower()
        yield words if told else f"{words} [{rule.verdict}]"
    if hop.kind == "end":
        yield from (NUMBER.sub("TIME", fact.text) for fact in hop.facts)


def difference(before: Path, after: Path) -> Difference:
    """Return the difference of two paths."""
    old, new = dict(before.legs), dict(after.legs)
    lines: list[tuple[Sign, str]] = []
    for direction in dict.fromkeys([*old, *new]):
        sign: Sign = " " if direction in old and direction in new else "-"
        sign = "+" if direction not in old else sign
        lines.append((sign, f"{direction}:"))
        found = _steps_apart(old.get(direction, ()), new.get(direction, ()))
        lines += [(one, f"  {text}") for one, text in found]
    return Difference(tuple(lines))


def _steps_apart(old: tuple[Step, ...], new: tuple[Step, ...]) -> Iterator[tuple[Sign, str]]:
    places = SequenceMatcher(
        None, [one.place for one in old], [one.place for one in new], autojunk=False
    )
    for tag, a, b, c, d in places.get_opcodes():
        if tag != "equal":
            yield from (("-", line) for step in old[a:b] for line in step.lines())
            yield from (("+", line) for step in new[c:d] for line in step.lines())
            continue
        for one, other in zip(old[a:b], new[c:d], strict=True):
            yield from _details_apart(one, other)


def _details_apart(one: Step, other: Step) -> Iterator[tuple[Sign, str]]:
    """Compare two steps at the same place."""
    old, new = one.lines(), other.lines()
    for tag, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            yield from ((" ", line) for line in old[a:b])
        else:
            yield from (("-", line) for line in old[a:b])
            yield from (("+", line) for line in new[c:d])

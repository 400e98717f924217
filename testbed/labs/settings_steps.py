"""Kernel settings, routes and rules of a running node: read, compare, set, remove.

The mark of the node (:mod:`testbed.labs.own_mark`) notes what ``up`` has set, so that a later one
removes what the file no longer has. A node without such keys costs no command.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.errors import LabError
from testbed.labs import file_steps, own_mark, program_steps
from testbed.labs.own_mark import SETTINGS
from testbed.labs.placed import placed
from testbed.nodes import wiring
from testbed.nodes.base import Bind
from testbed.nodes.netstate import FAMILIES, Seen, look
from testbed.roles.part import Part
from testbed.spelling import counted
from testbed.steps.step import Step
from testbed.topology import iproute

if TYPE_CHECKING:
    from testbed.labs.own_mark import OwnMark
    from testbed.nodes.base import Node, Result
    from testbed.nodes.wiring import Difference
    from testbed.steps.context import Context
    from testbed.topology.iproute import Route, Rule
    from testbed.topology.model import Node as NodeModel
    from testbed.topology.model import Topology

FORWARDING6 = "net.ipv6.conf.all.forwarding"


@dataclass(slots=True)
class _Set:
    """Settings of a node by ``up``; ``sysctls`` are the values before, ``values`` those set."""

    sysctls: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    routes: list[str] = field(default_factory=list)
    rules: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.sysctls or self.routes or self.rules)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The settings that the file gives a node."""

    sysctls: dict[str, str]
    routes: tuple[Route, ...]
    rules: tuple[Rule, ...]

    def __bool__(self) -> bool:
        return bool(self.sysctls or self.routes or self.rules)


def about(topology: Topology, node: NodeModel) -> list[str]:
    """Return the settings of a node for the plan."""
    found = ["forwards packets"] if node.forward else []
    found += [f"sysctl {name}={value}" for name, value in node.sysctls.items()]
    found += [f"file {path}" for path in node.files]
    found += [f"bind {one}" for one in node.binds]
    found += [f"route {one.text}" for one in node.routes if not is_late(topology, node.name, one)]
    return found + [f"rule {one.text}" for one in node.ip_rules]


def binds(topology: Topology, node: NodeModel) -> tuple[Bind, ...]:
    """Return the binds of a node, with absolute paths on this machine."""
    return tuple(
        Bind(topology.folder / Path(one.source).expanduser(), one.target, one.read_only)
        for one in node.binds
    )


def wanted(topology: Topology, node: str) -> Wanted:
    """Return the settings of a node, except those that :mod:`testbed.nodes.wiring` has."""
    spec = topology.nodes[node]
    sysctls = {}
    if spec.forward and _has_ipv6(topology, node):
        sysctls[FORWARDING6] = "1"
    return Wanted(sysctls | dict(spec.sysctls), spec.routes, spec.ip_rules)


def _has_ipv6(topology: Topology, node: str) -> bool:
    routes = topology.nodes[node].routes
    return any(net.version == 6 for net in topology.connected(node)) or any(
        route.family == 6 for route in routes
    )


def is_late(topology: Topology, node: str, route: Route) -> bool:
    """Tell whether a route needs a link that only a role or a command creates."""
    known = [*(port.name for port in topology.nodes[node].ports), "lo"]
    subnets = topology.connected(node)
    return any(
        hop.dev not in known
        if hop.dev
        else hop.via is not None and not any(hop.via in net for net in subnets)
        for hop in route.hops
    )


def differences(topology: Topology, node: str, seen: Seen) -> list[Difference]:
    """Return the settings of a node that are missing or differ from the file."""
    return [
        *_sysctls(topology, node, seen),
        *_routes(topology, node, seen),
        *_rules(topology, node, seen),
    ]


def _sysctls(topology: Topology, node: str, seen: Seen) -> list[Difference]:
    return [
        wiring.Difference("setting", f"{name}={value}", seen.sysctls.get(name) or "missing")
        for name, value in wanted(topology, node).sysctls.items()
        if seen.sysctls.get(name) != value
    ]


def _routes(topology: Topology, node: str, seen: Seen) -> list[Difference]:
    found = []
    for route in topology.nodes[node].routes:
        there = seen.routes[route.family]
        if not any(map(route.matches, there)):
            others = [one for one in there if route.is_of_kind(one)]
            found.append(wiring.Difference("route", route.text, _route_words(others)))
    return found


def _route_words(entries: Sequence[Mapping[str, Any]]) -> str:
    if not entries:
        return "missing"
    kind = entries[0].get("type", "unicast")
    return ", ".join(map(str, iproute.hops_of(entries[0]))) if kind == "unicast" else str(kind)


def _rules(topology: Topology, node: str, seen: Seen) -> list[Difference]:
    return [
        wiring.Difference("rule", rule.text, "missing")
        for rule in topology.nodes[node].ip_rules
        if not any(map(rule.matches, seen.rules[rule.family]))
    ]


def parts(context: Context, node: Node) -> dict[str, list[Part]]:
    """Return the state of a running node's settings, by kind, for ``status``."""
    topology, name = context.topology, node.name
    goal = wanted(topology, name)
    files = file_steps.parts(topology, node)
    found: dict[str, list[Part]] = {"file": files} if files else {}
    if mine := binds(topology, topology.nodes[name]):
        gone = node.unbound(mine)
        states = ((one, "missing" if one in gone else "present") for one in mine)
        found["bind"] = [
            Part(one.target, state, one not in gone, str(one.source)) for one, state in states
        ]
    if not goal:
        return found
    seen = look(node, goal.sysctls)
    wrong = {one.what: one.seen for one in differences(topology, name, seen)}
    for setting, value in goal.sysctls.items():
        there = wrong.get(f"{setting}={value}")
        words = "" if there is None else f"wanted {value}"
        found.setdefault("sysctl", []).append(Part(setting, there or value, there is None, words))
    for kind, texts in (("route", goal.routes), ("rule", goal.rules)):
        for text in (one.text for one in texts):
            there = wrong.get(text)
            state = "present" if there is None else "missing"
            words = f"instead {there}" if there not in (None, "missing") else ""
            found.setdefault(kind, []).append(Part(text, state, there is None, words))
    return found


def apply(context: Context, node: Node, own: OwnMark) -> tuple[list[str], list[str]]:
    """Set what is missing on a node, and remove what the file no longer has.

    Return a few words about its settings, and the changes of a node that is not fresh. Routes
    over links that do not exist yet are left to :func:`late_steps`. Raises LabError for a setting
    that the kernel refuses.
    """
    files = file_steps.apply(context.topology, node, own)  # they may name tables
    words, told = _apply(context, node, own)
    spec = context.topology.nodes[node.name]
    if spec.binds:
        words.append(counted(len(spec.binds), "bind"))
        told += [] if own.fresh else [f"restored bind {one.target}" for one in _bind(context, node)]
    told += program_steps.remove_old(context.topology, node, own)
    count = len(context.topology.nodes[node.name].files)
    words += [counted(count, "file")] if count else []
    return words, [] if own.fresh else [*files, *told]


def _apply(context: Context, node: Node, own: OwnMark) -> tuple[list[str], list[str]]:
    goal = wanted(context.topology, node.name)
    noted = {**_forwarding(context.topology, node.name), **goal.sysctls}
    before = _Set(**own.get(SETTINGS))
    if not goal and not noted and not before:
        return [], []
    seen = look(node, {**noted, **before.sysctls})
    early = [one for one in goal.routes if not is_late(context.topology, node.name, one)]
    now = _now(before, seen, noted, goal, early)
    if now != before:  # a failure half-way must not hide what has been set, and what was before
        own.keep(SETTINGS, asdict(_both(before, now)))
    told = _remove(context.topology, node, noted, before)
    told += _set_sysctls(context.topology, node, goal.sysctls, seen, before)
    told += _set_rules(context.topology, node, goal.rules, seen, before)
    told += _set_routes(context.topology, node, early, seen, before)
    if now != before:
        own.keep(SETTINGS, asdict(now) if now else {})
    return _words(context.topology, node.name, goal), told


def late_steps(topology: Topology, node: NodeModel, needs: tuple[str, ...]) -> Iterator[Step]:
    """Yield the step for routes over links that roles or commands of a node create."""
    late = [one for one in node.routes if is_late(topology, node.name, one)]

    def act(context: Context) -> tuple[str, bool]:
        machine = context.node(node.name)
        own = own_mark.of(machine)
        before = _Set(**own.get(SETTINGS))
        told = _set_routes(topology, machine, late, look(machine), before)
        routes = dict.fromkeys([*before.routes, *(one.text for one in late)])
        if [*routes] != before.routes:
            own.keep(SETTINGS, asdict(replace(before, routes=[*routes])))
        return ", ".join(told) or ", ".join(one.text for one in late), bool(told)

    if late:
        words = "; ".join(f"route {one.text}" for one in late)
        yield Step(f"routes {node.name}", words, needs, act=act)


def _now(
    before: _Set, seen: Seen, noted: Mapping[str, str], goal: Wanted, early: Sequence[Route]
) -> _Set:
    """Return what is set once this change is done."""
    known = {**seen.sysctls, wiring.FORWARDING: "0", **before.sysctls}
    late = [one for one in before.routes if one in {route.text for route in goal.routes}]
    return _Set(
        {name: known.get(name, "") for name in noted},
        dict(noted),
        [*dict.fromkeys([*(one.text for one in early), *late])],
        [one.text for one in goal.rules],
    )


def _both(before: _Set, now: _Set) -> _Set:
    """Return what may be set while a change is being made."""
    return _Set(
        {**now.sysctls, **before.sysctls},
        before.values,
        [*dict.fromkeys([*before.routes, *now.routes])],
        [*dict.fromkeys([*before.rules, *now.rules])],
    )


def _bind(context: Context, node: Node) -> list[Bind]:
    return node.bind(binds(context.topology, context.topology.nodes[node.name]))


def _forwarding(topology: Topology, node: str) -> dict[str, str]:
    """Return the sysctl of ``forward``, which is set with the node's links."""
    return wiring.settings(topology, node) if topology.nodes[node].forward else {}


def _words(topology: Topology, node: str, goal: Wanted) -> list[str]:
    spec = topology.nodes[node]
    counts = ((len(goal.routes), "route"), (len(goal.rules), "rule"), (len(spec.sysctls), "sysctl"))
    found = ["forwards"] if spec.forward else []
    return found + [counted(n, what) for n, what in counts if n]


def _remove(topology: Topology, node: Node, sysctls: Mapping[str, str], before: _Set) -> list[str]:
    spec = topology.nodes[node.name]
    told = []
    for kind, parse, texts, kept in (
        ("route", iproute.route, before.routes, {one.text for one in spec.routes}),
        ("rule", iproute.rule, before.rules, {one.text for one in spec.ip_rules}),
    ):
        gone = [text for text in texts if text not in kept]
        for family in FAMILIES:
            lines = [f"{kind} del {text}" for text in gone if parse(text).family == family]
            if lines:  # one that somebody has removed already is no error
                _ip(node, family, lines, "-force")
        told += [f"removed {kind} {text}" for text in gone]
    for name, value in before.sysctls.items():
        if name in sysctls:
            continue
        # The software of a role may need it, whatever it was before.
        if value and not (name == wiring.FORWARDING and (spec.gateway or spec.roles)):
            node.network.run(["sysctl", "-q", "-w", f"{name}={value}"])
        told.append(f"removed sysctl {name}")
    return told


def _set_sysctls(
    topology: Topology, node: Node, sysctls: Mapping[str, str], seen: Seen, before: _Set
) -> list[str]:
    told = []
    for name, value in sysctls.items():
        there = seen.sysctls.get(name, "")
        if there == value:
            continue
        result = node.network.run(["sysctl", "-q", "-w", f"{name}={value}"], check=False)
        if not result.ok:
            with placed(topology, "nodes", node.name, "sysctls", name):
                raise LabError(
                    f"{node.name} refuses the sysctl {name}={value}: {result.stderr.strip()}",
                    hint="check its name and value, and that the link it names exists",
                )
        told.append(
            _told("sysctl", f"{name}={value}", there, known=before.values.get(name) == value)
        )
    return told


def _told(kind: str, what: str, seen: str, *, known: bool) -> str:
    """Describe a setting that was made: it was lost, or is new in the file."""
    return f"restored {kind} {what} ({seen or 'missing'})" if known else f"set {kind} {what}"


def _set_rules(
    topology: Topology, node: Node, rules: Sequence[Rule], seen: Seen, before: _Set
) -> list[str]:
    gone = [one for one in rules if not any(map(one.matches, seen.rules[one.family]))]
    for family in FAMILIES:
        if lines := {f"rule add {one.text}": one for one in gone if one.family == family}:
            _add(topology, node, family, lines)
    return [_told("rule", one.text, "", known=one.text in before.rules) for one in gone]


def _set_routes(
    topology: Topology, node: Node, routes: Sequence[Route], seen: Seen, before: _Set
) -> list[str]:
    gone = [one for one in routes if not any(map(one.matches, seen.routes[one.family]))]
    for family in FAMILIES:
        if lines := {f"route replace {one.text}": one for one in gone if one.family == family}:
            _add(topology, node, family, lines)
    if gone:
        _leave_gateway(topology, node, seen)
    told = []
    for one in gone:
        others = [entry for entry in seen.routes[one.family] if one.is_of_kind(entry)]
        known = one.text in before.routes
        told.append(_told("route", one.text, _route_words(others), known=known))
    return told


def _leave_gateway(topology: Topology, node: Node, seen: Seen) -> None:
    """Remove the route to the lab's gateway from a node with a default route of its own.

    It is there if the node was connected before it got that route.
    """
    gateway = topology.offered_gateway(node.name)
    if gateway is None or topology.gateway_of(node.name) is not None:
        return
    line = f"default via {gateway}"
    there = any(map(iproute.route(line).matches, seen.routes[4]))
    if there and all(one.metric for one in topology.nodes[node.name].routes if one.to is None):
        _ip(node, 4, [f"route del {line}"], "-force")


def _ip(node: Node, family: int, lines: Iterable[str], *options: str) -> Result:
    argv = ["ip", f"-{family}", *options, "-batch", "-"]
    return node.network.run(argv, input="\n".join(lines).encode(), check=False)


def _add(topology: Topology, node: Node, family: int, lines: Mapping[str, Route | Rule]) -> None:
    """Add routes or rules, by their lines for ip(8).  Raises LabError for one that is refused."""
    result = _ip(node, family, lines)
    if result.ok:
        return
    said = result.stderr.strip()
    number = re.search(r"Command failed -:(\d+)", said)
    index = int(number[1]) - 1 if number else 0
    line, one = [*lines.items()][index]
    spec = topology.nodes[node.name]
    key, all_of_them = ("routes", spec.routes) if one in spec.routes else ("rules", spec.ip_rules)
    with placed(topology, "nodes", node.name, key, [*all_of_them].index(one)):
        raise LabError(
            f"{node.name} refuses `ip {line}`: {said.partition('Command failed')[0].strip()}",
            hint="check the next hop, and that the links that it names exist",
        )

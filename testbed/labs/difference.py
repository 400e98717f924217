"""The difference between a running lab and a topology, before `up` applies it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from testbed.errors import TopologyError
from testbed.labs import base_steps
from testbed.registry import ROLES

if TYPE_CHECKING:
    from testbed.labs.lab import Lab
    from testbed.labs.state import Record
    from testbed.labs.status import Status
    from testbed.nodes.base import Node
    from testbed.topology.model import Topology

Action = Literal["created", "created again", "removed", "changed in place", "restored"]
CREATED: Action = "created"
AGAIN: Action = "created again"
REMOVED: Action = "removed"
IN_PLACE: Action = "changed in place"
RESTORED: Action = "restored"

#: Settings of a node's digest that are its own or of other parts of a file, not of a section.
NOT_OF_ROLES = frozenset(
    ("form", "provider", "node", "networks", "gateway", "namespaces", "bridges", "veths",
     "foreign", "interface")
)  # fmt: skip
PARTS = frozenset(("namespaces", "bridges", "veths"))
KINDS = {"nodes": "node", "networks": "network", "links": "link"}  # of named parts, by section
WIDTH = 100  # columns for a value in words; --json has all of it
MOST = 10  # lines for one value


@dataclass(frozen=True, slots=True)
class Change:
    """One value: the path of its key in a file, before and after; None if it is not set."""

    path: tuple[str, ...]
    old: Any
    new: Any

    @property
    def key(self) -> str:
        return ".".join(self.path)

    def lines(self) -> list[str]:
        """Return the change in words. Of long lists and texts only entries that differ are shown.

        >>> Change(("a", "mtu"), None, 1400).lines()
        ['a.mtu: not set -> 1400']
        >>> Change(("a",), [{"b": 1}, {"c": 1}], [{"b": 1}, {"c": 2}]).lines()
        ['a[1].c: 1 -> 2']
        """
        old, new = (_entries(one) for one in (self.old, self.new))
        words = f"{self.key}: {_shown(self.old)} -> {_shown(self.new)}"
        if old is None or new is None:
            return [f"{self.key}: {_cut(_shown(self.old))} -> {_cut(_shown(self.new))}"]
        entries = (*old, *new)
        if len(words) <= WIDTH and not any(isinstance(one, Mapping | list) for one in entries):
            return [words]
        pairs = [*zip(old, new, strict=False)]
        if len(old) == len(new) and all(
            a == b or (isinstance(a, Mapping) and isinstance(b, Mapping)) for a, b in pairs
        ):
            found = (
                line
                for index, (a, b) in enumerate(pairs)
                for change in changes(a, b, (*self.path[:-1], f"{self.path[-1]}[{index}]"))
                for line in change.lines()
            )
        else:
            gone, more = ([x for x in a if x not in b] for a, b in ((old, new), (new, old)))
            marked = [*(("-", one) for one in gone), *(("+", one) for one in more)]
            found = (f"{self.key}: {sign} {_cut(_shown(one))}" for sign, one in marked)
        lines = [*found] or [f"{self.key}: {_cut(_shown(self.old))} -> {_cut(_shown(self.new))}"]
        left = len(lines) - MOST
        return lines if left <= 0 else [*lines[:MOST], f"{self.key}: ... and {left} more"]


@dataclass(frozen=True, slots=True)
class Effect:
    """A change of a part by `up`: its kind and name, the action, and the reasons.

    ``kind`` is node, container, network, link, lab, or a kind of part that `status` shows.
    ``words`` is a reason that is no value of the file.
    """

    kind: str
    name: str
    action: Action
    changes: tuple[Change, ...] = ()
    words: str = ""

    def to_dict(self) -> dict[str, Any]:
        found = asdict(self)
        found["changes"] = [
            {"key": one.key, "old": one.old, "new": one.new} for one in self.changes
        ]
        return found

    def lines(self) -> list[str]:
        """Return the effect in words, one line for each reason."""
        sign = {CREATED: "+", REMOVED: "-"}.get(self.action, "~")
        words = f" ({self.words})" if self.words else ""
        first = f"{sign} {self.kind} {self.name}: {self.action}{words}".replace(" :", ":")
        return [first, *(f"    {line}" for change in self.changes for line in change.lines())]


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    plain = isinstance(value, str) and value and value.isprintable()
    return str(value) if plain else json.dumps(value, ensure_ascii=False)


def _cut(words: str) -> str:
    return words if len(words) <= WIDTH else f"{words[: WIDTH - 4]} ..."


def _entries(value: Any) -> list[Any] | None:
    """Return the entries of a list, or the lines of a text of several; else None."""
    if isinstance(value, str):
        return value.splitlines() if "\n" in value else None
    return value if isinstance(value, list) else None


def changes(old: Any, new: Any, path: tuple[str, ...] = ()) -> Iterator[Change]:
    """Yield the values that differ in two mappings; lists are compared as a whole."""
    sides = [{} if one is None else one for one in (old, new)]  # a mapping that one side lacks
    if all(isinstance(one, Mapping) for one in sides):
        before, after = sides
        for name in [*before, *(name for name in after if name not in before)]:
            yield from changes(before.get(name), after.get(name), (*path, str(name)))
    elif old != new:
        yield Change(path, old, new)


def compare(
    record: Record | None, new: Topology, nodes: Mapping[str, Node], left: Collection[str] = ()
) -> list[Effect]:
    """Return what `up` of a topology does to a lab, apart from what has gone on its nodes.

    ``nodes`` are those that run, ``left`` the ones that stay stopped. Without a record the reasons
    are not known.
    """
    if (
        record is not None
        and nodes.keys() | {*left} >= new.nodes.keys()
        and all(base_steps.is_as_wanted(new, node) for node in nodes.values())
        and record.topology == new.to_dict()
    ):
        return []
    stopped = record.stopped if record else ()
    return _Comparison(_recorded(record), new, nodes, stopped).effects(left)


def _recorded(record: Record | None) -> Topology | None:
    if record is None:
        return None
    from testbed.topology.load import load_data

    try:
        return load_data(record.topology, f"the record of lab {record.lab}")
    except TopologyError:  # of another version
        return None


class _Comparison:
    def __init__(
        self,
        old: Topology | None,
        new: Topology,
        nodes: Mapping[str, Node],
        stopped: Collection[str],
    ) -> None:
        self._old = old
        self._new = new
        self._nodes = nodes
        found = changes(_by_name(old), _by_name(new)) if old else ()
        self._all = [change for change in found if change.path != ("name",)]
        self._used: set[tuple[str, ...]] = set()
        self._stopped = stopped

    def effects(self, left: Collection[str]) -> list[Effect]:
        found = [*self._node_effects(left), *self._container_effects()]
        found += self._again_by_roles([one.name for one in found if one.kind == "node"])
        rest = list(self._rest())
        # A node that is created again gets all of its changes with that.
        also = {one.name: one.changes for one in rest if one.kind == "node"}
        anew = {one.name for one in found if one.kind == "node" and one.action == AGAIN}
        return [
            *(
                replace(one, changes=one.changes + also.get(one.name, ()))
                if one.kind == "node" and one.name in anew
                else one
                for one in found
            ),
            *(one for one in rest if not (one.kind == "node" and one.name in anew)),
        ]

    def _node_effects(self, left: Collection[str]) -> Iterator[Effect]:
        for name in self._new.nodes:
            node = self._nodes.get(name)
            if node is None:
                self._use("nodes", name)
                if name not in left:
                    known = self._old is not None and name in self._old.nodes
                    why = "stopped by hand" if name in self._stopped else "does not run"
                    yield Effect("node", name, CREATED, words=why if known else "")
            elif not base_steps.is_as_wanted(self._new, node):
                yield self._again(name, node)
        for name in self._nodes:
            if name not in self._new.nodes:
                self._use("nodes", name)
                yield Effect("node", name, REMOVED)
        for name in self._old.nodes if self._old else ():
            if name not in self._new.nodes:
                self._use("nodes", name)

    def _again(self, name: str, node: Node) -> Effect:
        old = self._old
        if old is None or name not in old.nodes or old.node_digest(name) != node.digest:
            self._use("nodes", name)
            return Effect("node", name, AGAIN, words="the record does not have its settings")
        before, after = old.node_parts(name), self._new.node_parts(name)
        raw = list(changes(before, after))
        why = [change for change in self._all if self._explains(change, name, before, after)]
        self._used |= {change.path for change in why}
        return Effect("node", name, AGAIN, tuple(why or (_named(one, name) for one in raw)))

    def _explains(
        self, change: Change, node: str, before: Mapping[str, Any], after: Mapping[str, Any]
    ) -> bool:
        """Tell whether a change of the file is one of the settings that the node is made of."""
        differing = {key for key in {*before, *after} if before.get(key) != after.get(key)}
        first, *rest = change.path
        if first == "nodes":
            if rest[:1] != [node]:
                return bool(rest[1:2] == ["gateway"] and "gateway" in differing)
            own = {one.path[0] for one in changes(before["node"], after["node"])}
            return bool(rest[1] in own or (rest[1] == "provider" and "provider" in differing))
        if first == "networks":
            one, other = (parts["networks"].get(rest[0]) for parts in (before, after))
            return bool(one != other)
        if first == "links":
            return node in self._ends(rest[0]) and bool(differing & {"links", "networks"})
        if first in PARTS or first == "provider":
            return first in differing and (first == "veths" or self._is_on(rest[:1], first, node))
        others = {*self._new.nodes, *(self._old.nodes if self._old else ())} - {node}
        return first in self._new.sections and bool(
            differing - NOT_OF_ROLES and not others & {*rest}
        )

    def _ends(self, link: str) -> set[str]:
        """Return the nodes at the ends of a link, by its name."""
        links = [*self._new.links, *(self._old.links if self._old else ())]
        return {node for one in links if one.name == link for node, _ in one.ends}

    def _is_on(self, name: Sequence[str], kind: str, node: str) -> bool:
        """Tell whether a namespace or bridge is, or was, on a node; a provider is on all."""
        if kind == "provider":
            return True
        found = (getattr(one, kind).get(name[0]) for one in (self._old, self._new) if one)
        return any(part is not None and part.node == node for part in found)

    def _container_effects(self) -> Iterator[Effect]:
        old = self._old.containers if self._old else {}
        for name, container in self._new.containers.items():
            before = old.get(name)
            if before is None:
                if self._old is not None:
                    yield Effect("container", f"{container.node}/{name}", CREATED)
            elif before.to_dict() != container.to_dict():
                why = tuple(one for one in self._all if one.path[:2] == ("containers", name))
                yield Effect("container", f"{container.node}/{name}", AGAIN, why)
            self._use("containers", name)
        for name, before in old.items():
            if name not in self._new.containers:
                self._use("containers", name)
                if before.node in self._new.nodes:
                    yield Effect("container", f"{before.node}/{name}", REMOVED)

    def _again_by_roles(self, nodes: Collection[str]) -> list[Effect]:
        """Return the parts that are created again because of values elsewhere in the file.

        ``nodes`` are created again with all of their parts.
        """
        if self._old is None:
            return []
        reasons: dict[tuple[str, str], dict[tuple[str, ...], Change]] = {}
        for role in sorted(self._new.roles):
            for again in ROLES[role].created_again(self._old, self._new):
                why = [one for one in self._all if one.path[: len(again.path)] == again.path]
                name = again.name
                if again.kind == "container":
                    if (node := self._new.containers[name].node) in nodes:
                        continue
                    name = f"{node}/{name}"
                reasons.setdefault((again.kind, name), {}).update({one.path: one for one in why})
        self._used |= {path for some in reasons.values() for path in some}
        return [
            Effect(kind, name, AGAIN, tuple(some.values()))
            for (kind, name), some in reasons.items()
        ]

    def _rest(self) -> Iterator[Effect]:
        """Yield the changes for which nothing is created again, by node, network or lab."""
        groups: dict[tuple[str, str], list[Change]] = {}
        for change in self._all:
            if change.path in self._used:
                continue
            first, *rest = change.path
            owner = (KINDS[first], rest[0]) if first in KINDS and rest else ("lab", self._new.name)
            groups.setdefault(owner, []).append(change)
        for (kind, name), some in groups.items():
            yield Effect(kind, name, IN_PLACE, tuple(some))

    def _use(self, section: str, name: str) -> None:
        """Leave out the values of a part that is created or removed as a whole."""
        self._used |= {one.path for one in self._all if one.path[:2] == (section, name)}
        if section == "nodes":
            self._used |= {
                one.path
                for one in self._all
                if one.path[0] == "links" and name in self._ends(one.path[1])
            }


def _by_name(topology: Topology) -> dict[str, Any]:
    """Return the data of a topology, with its links by their names instead of a list."""
    data = topology.to_dict()
    if topology.links:
        data["links"] = {link.name: link.to_dict() for link in topology.links}
    return data


def strangers(effects: Sequence[Effect]) -> set[str]:
    """Return the nodes that are removed, or created again."""
    return {one.name for one in effects if one.kind == "node" and one.action in (AGAIN, REMOVED)}


def _named(change: Change, node: str) -> Change:
    """Return a setting of a node's digest with the key that it has in a file, if it has one."""
    if change.path[0] == "node":
        return Change(("nodes", node, *change.path[1:]), change.old, change.new)
    return change


def _at(node: str, part: str) -> str:
    """Return the name of a part of a node; a file has a path."""
    return f"{node}:{part}" if part.startswith("/") else f"{node}/{part}"


def gone(status: Status, effects: Sequence[Effect]) -> list[Effect]:
    """Return what `up` restores: parts of the lab that are not as its record says.

    Nodes that are created again are left out.
    """
    anew = {one.name for one in effects if one.kind == "node" and one.action != IN_PLACE}
    anew |= {one.name for one in effects if one.kind == "container"}
    networks = (part for part in status.networks if not part.ok)
    found = [Effect("network", part.name, RESTORED, words=part.state) for part in networks]
    for node in status.nodes:
        if node.state != "up" or node.name in anew:
            continue
        kinds = (
            ("link", node.links), ("route", node.routes), ("sysctl", node.settings),
            ("service", node.services), ("container", node.containers), *node.more.items(),
        )  # fmt: skip
        found += [
            Effect(kind, _at(node.name, part.name), RESTORED, words=part.state)
            for kind, parts in kinds
            for part in parts
            if not part.ok and f"{node.name}/{part.name}" not in anew
        ]
    return found


def of_lab(lab: Lab, topology: Topology) -> list[Effect]:
    """Return what `up` of a topology changes on a lab that runs.  Raises NoSuchLab."""
    from testbed.labs.status import status

    record, there = lab.record(), lab.context()
    effects = compare(record, topology, there.nodes)
    return effects + gone(status(there, lab.stopped(), record.stopped), effects)

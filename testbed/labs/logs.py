"""Logs of a lab's services and containers: find them, and read what is new in them."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from testbed.errors import NoSuchService, UsageError
from testbed.nodes.base import no_service
from testbed.registry import ROLES
from testbed.roles.container import LogLine
from testbed.spelling import nearest

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node

AGO = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h|d))+")
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}  # seconds
#: A point in time near the beginning of a line (RFC 3339; a space may stand for the T).
STAMP = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[-+]\d\d:?\d\d)?")
#: The first words of a line of klog, without the year: I1130 04:02:51.123456.
KLOG = re.compile(r"[IWEF](?P<date>\d{4}) (?P<time>\d\d:\d\d:\d\d)\.(?P<part>\d{1,6})")
NEAR = 80  # characters of a line in which its time is


def since(text: str, now: float) -> float:
    """Return the point in time of ``--since``, in Unix seconds.

    It is a duration such as ``10m`` before ``now``, or a date and time; without a zone it is this
    machine's time. Raises UsageError.

    >>> since("1h30m", 10000.0), since("1970-01-01T00:00:05Z", 0.0)
    (4600.0, 5.0)
    """
    if AGO.fullmatch(text):
        parts = re.findall(r"([0-9.]+)(ms|s|m|h|d)", text)
        return now - sum(float(number) * UNITS[unit] for number, unit in parts)
    found = STAMP.fullmatch(text)
    at = None if found is None else _time(found)
    if at is None:
        raise UsageError(
            "wanted a duration or a date and time",
            where=f"--since {text}",
            hint="like 10m, 1h30m or 2026-11-30T04:00:00Z",
        )
    return at


def time_of(line: str, now: float) -> float | None:
    """Return the time that a line of a daemon begins with, in Unix seconds, or None.

    ``now`` gives the year for lines of klog.
    """
    head = line[:NEAR]
    if found := STAMP.search(head):
        return _time(found)
    if found := KLOG.match(head):
        year = datetime.fromtimestamp(now, UTC).year
        text = f"{year}{found['date']} {found['time']}.{found['part']}"
        try:
            return datetime.strptime(text, "%Y%m%d %H:%M:%S.%f").astimezone().timestamp()
        except ValueError:
            return None
    return None


def _time(found: re.Match[str]) -> float | None:
    """Return the Unix time of a point in time; without a zone it is a local one."""
    try:
        return datetime.fromisoformat(found[0]).astimezone().timestamp()
    except ValueError:
        return None


class Log(ABC):
    """One log: the name of its owner, and what is new in it."""

    def __init__(self, node: str, name: str) -> None:
        self.node = node
        self.name = name

    @property
    def target(self) -> str:
        return f"{self.node}/{self.name}"

    @abstractmethod
    def fresh(self) -> list[LogLine]:
        """Return the lines since the last call; at first, all.  Raises LabError."""


class _OfService(Log):
    def __init__(self, machine: Node, name: str) -> None:
        super().__init__(machine.name, name)
        self._machine = machine
        self._read = 0

    def fresh(self) -> list[LogLine]:
        text = self._machine.logs(self.name)
        new, self._read = text[self._read :], len(text)
        now = datetime.now(UTC).timestamp()
        return [LogLine(line, time_of(line, now)) for line in new.splitlines()]


class _OfContainer(Log):
    def __init__(self, machine: Node, name: str, role: str) -> None:
        super().__init__(machine.name, name)
        self._machine = machine
        self._role = role
        self._read = 0

    def fresh(self) -> list[LogLine]:
        lines, self._read = ROLES[self._role].log(self._machine, self.name, self._read)
        return lines


def of_targets(lab: LiveLab, targets: Sequence[str]) -> list[Log]:
    """Return the logs of targets: NODE (all of its services), NODE/SERVICE, NODE/CONTAINER.

    Raises NotFound.
    """
    found = {log.target: log for text in targets for log in _of_target(lab, text)}
    return list(found.values())


def everything(lab: LiveLab) -> list[Log]:
    """Return the logs of all services and containers of the nodes that run."""
    return [
        log
        for name in lab.topology.nodes
        if name in lab.nodes
        for log in (*_services(lab.nodes[name]), *_containers(lab, lab.nodes[name]).values())
    ]


def _of_target(lab: LiveLab, text: str) -> Iterator[Log]:
    node, slash, name = text.partition("/")
    machine = lab.node(node)
    if not slash:
        yield from _services(machine)
        return
    known = machine.services()
    if name in known:
        yield _OfService(machine, name)
        return
    containers = _containers(lab, machine)
    if name in containers:
        yield containers[name]
        return
    if not containers:
        raise no_service(name, node, known)
    there = [*known, *containers]
    raise NoSuchService(
        f"{node} has no service or container {name!r}",
        name=name,
        known=there,
        hint=nearest(name, there, f"{node} has {', '.join(there)}"),
    )


def _services(machine: Node) -> list[Log]:
    return [_OfService(machine, name) for name in sorted(machine.services())]


def _containers(lab: LiveLab, machine: Node) -> Mapping[str, Log]:
    spec = lab.topology.nodes.get(machine.name)
    return {
        name: _OfContainer(machine, name, role)
        for role in (() if spec is None else spec.roles)
        for name in ROLES[role].logged(machine)
    }


def newer(lines: Sequence[LogLine], start: float) -> list[LogLine]:
    """Return the lines from a point in time on.

    A line without a time belongs to the one before it. All lines are returned if none has a time.
    """
    if all(line.time is None for line in lines):
        return list(lines)
    found, is_new = [], False
    for line in lines:
        is_new = is_new if line.time is None else line.time >= start
        if is_new:
            found.append(line)
    return found

"""A fault as a value, parsed from words and written as words.

It has a kind, a target and an amount. ``partition node1:node2``, ``loss node2 20%``, ``kill
node1/flanneld``: the words are the same on the command line, in the ``faults`` section of a
topology, and in a test. This module does not access a machine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from testbed.registry import ROLES
from testbed.spelling import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from testbed.topology.model import Topology

Kind = Literal["partition", "loss", "rate", "delay", "kill", "stop", "break"]


@dataclass(frozen=True, slots=True)
class About:
    """A kind of fault: its arguments, its effect and its healing."""

    form: str
    does: str
    healed: str
    example: str


KINDS: Mapping[Kind, About] = {
    "partition": About(
        "NODE[:PEER]",
        "drop every frame between a node and all others, or between two nodes",
        "frames pass again",
        "partition node1:node2",
    ),
    "loss": About(
        "NODE[:PEER] PERCENT",
        "drop random frames to and from a node, or between two nodes",
        "no frames are dropped",
        "loss node1:node2 20%",
    ),
    "rate": About(
        "NODE RATE",
        "limit the bit rate of traffic to a node",
        "the queue is removed",
        "rate node2 10mbit",
    ),
    "delay": About(
        "NODE TIME [JITTER]",
        "delay the traffic to a node",
        "the queue is removed",
        "delay node2 50ms 5ms",
    ),
    "kill": About(
        "NODE/SERVICE",
        "kill the daemon of a service (SIGKILL)",
        "`up` restarts it and everything that died with it",
        "kill node1/flanneld",
    ),
    "stop": About(
        "NODE[/SERVICE]",
        "stop every process of a node, or the daemon of a service (SIGSTOP)",
        "the processes continue",
        "stop node2",
    ),
    "break": About(
        "NODE WHAT",
        "remove or block one requirement of the overlay on a node",
        "it is restored",
        "break node1 route",
    ),
}

LINK_KINDS: tuple[Kind, ...] = ("partition", "loss")
QUEUE_KINDS: tuple[Kind, ...] = ("rate", "delay")
#: Names that a fault in a topology cannot have, because they are commands of ``testbed fault``.
RESERVED = (*KINDS, "apply", "heal", "ls")

#: The name of a node or a service, which need not exist.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|[a-z0-9-]+")  # of other tools, too
UNITS: Mapping[str, int] = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
#: Bits per second.  A slower queue would delay a full frame by more than a second.
MIN_RATE, MAX_RATE = 8_000, 100 * 10**9
#: Milliseconds.  A minute is longer than the timeouts of all protocols here.
MAX_DELAY = 60_000.0
#: From one frame in a hundred thousand to all but one: 0 % and 100 % are not random loss.
MIN_PERCENT, MAX_PERCENT = 0.001, 99.999


class Unreadable(ValueError):
    """The words are not a fault, or not one of this lab.

    The fields say what was wanted, what was seen, and what to do.
    """

    def __init__(self, wanted: str, seen: str, hint: str) -> None:
        super().__init__(f"wanted {wanted}, saw {seen}; {hint}")
        self.wanted = wanted
        self.seen = seen
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault.

    ``peer`` is the other end of a link, ``service`` a daemon of the node; both may be empty.
    ``percent`` belongs to ``loss``, ``rate`` is in bits per second, ``delay`` and ``jitter`` are
    in milliseconds, ``what`` is a word of :func:`breakable`.
    """

    kind: Kind
    node: str
    peer: str = ""
    service: str = ""
    percent: float = 0.0
    rate: int = 0
    delay: float = 0.0
    jitter: float = 0.0
    what: str = ""

    @property
    def target(self) -> str:
        """The target: ``node1``, ``node1:node2`` or ``node1/flanneld``."""
        if self.peer:
            return f"{self.node}:{self.peer}"
        return f"{self.node}/{self.service}" if self.service else self.node

    @property
    def amount(self) -> str:
        """The words after the target; empty if there are none."""
        if self.kind == "loss":
            return f"{self.percent:g}%"
        if self.kind == "rate":
            return bits(self.rate)
        if self.kind == "delay":
            return f"{self.delay:g}ms" + (f" {self.jitter:g}ms" if self.jitter else "")
        return self.what

    @property
    def words(self) -> str:
        """The fault in its written form.

        >>> parse(["loss", "node2:node1", "20.0%"]).words
        'loss node1:node2 20%'
        """
        return " ".join(filter(None, (self.kind, self.target, self.amount)))

    @property
    def key(self) -> tuple[str, str, str]:
        """Kind and target without the amount.

        Only one fault per key can be active.
        """
        return (self.kind, self.target, self.what)

    def __str__(self) -> str:
        return self.words


def bits(rate: int) -> str:
    """Return a rate in the largest unit that gives a whole number.

    >>> bits(10_000_000), bits(1_500_000), bits(8001)
    ('10mbit', '1500kbit', '8001bit')
    """
    unit = max((u for u, size in UNITS.items() if rate % size == 0), key=lambda u: UNITS[u])
    return f"{rate // UNITS[unit]}{unit}"


def parse(words: Sequence[str]) -> Fault:
    """Return a fault from its words.  Raises Unreadable.

    >>> parse("delay node2 1.5s 5ms".split()).amount
    '1500ms 5ms'
    """
    if not words:
        raise Unreadable("a fault", "nothing", f"such as `{KINDS['partition'].example}`")
    kind = _word("a kind of fault", words[0], tuple(KINDS))
    about = KINDS[cast("Kind", kind)]
    least = sum(not part.startswith("[") for part in about.form.split())
    if not least <= len(words) - 1 <= len(about.form.split()):
        seen = " ".join(words[1:]) or "nothing"
        raise Unreadable(f"{kind} {about.form}", repr(seen), f"such as `{about.example}`")
    target, amounts = words[1], words[2:]
    node, colon, peer = target.partition(":")
    node, slash, service = node.partition("/")
    given = [node, *([peer] if colon else []), *([service] if slash else [])]
    whole = all(NAME.fullmatch(name) for name in given) and not (colon and slash)
    if (colon and ":" not in about.form) or (slash and "/" not in about.form) or not whole:
        wanted = f"{about.form.split()[0]} after {kind}"
        raise Unreadable(wanted, repr(target), f"such as `{about.example}`")
    if kind == "kill" and not service:
        hint = f"for example `{about.example}`; only `stop` works on a whole node"
        raise Unreadable("NODE/SERVICE after kill", repr(target), hint)
    if peer:
        node, peer = sorted((node, peer))  # a link has no direction: one name per fault
        if node == peer:
            raise Unreadable("two nodes", repr(target), "name two different nodes")
    return _with_amount(cast("Kind", kind), node, peer, service, amounts)


def _with_amount(kind: Kind, node: str, peer: str, service: str, amounts: Sequence[str]) -> Fault:
    if kind == "loss":
        return Fault(kind, node, peer, percent=_percent(amounts[0]))
    if kind == "rate":
        return Fault(kind, node, rate=_rate(amounts[0]))
    if kind == "delay":
        delay, jitter = (*map(_milliseconds, amounts), 0.0)[:2]
        if jitter > delay:
            hint = "lower the jitter"
            raise Unreadable("a jitter of at most the delay", repr(amounts[1]), hint)
        return Fault(kind, node, delay=delay, jitter=jitter)
    if kind == "break":
        return Fault(kind, node, what=_word("what breaks", amounts[0], tuple(breakable())))
    return Fault(kind, node, peer, service)


def _word(what: str, word: str, known: Sequence[str]) -> str:
    if word in known:
        return word
    hint = nearest(word, known, "choose one of them")
    raise Unreadable(f"{what}: {', '.join(known)}", repr(word), hint)


def _number(text: str, units: str) -> tuple[float, str] | None:
    found = re.fullmatch(rf"([0-9]{{1,9}}(?:\.[0-9]{{1,3}})?)({units})", text)
    return (float(found[1]), found[2]) if found else None


def _percent(text: str) -> float:
    found = _number(text, "%")
    if found is None or not MIN_PERCENT <= found[0] <= MAX_PERCENT:
        hint = "`partition` drops all frames" if found and found[0] >= 100 else "such as 20%"
        raise Unreadable(f"{MIN_PERCENT}% to {MAX_PERCENT}%", repr(text), hint)
    return found[0]


def _rate(text: str) -> int:
    found = _number(text, "|".join(UNITS))
    rate = round(found[0] * UNITS[found[1]]) if found else 0
    if not MIN_RATE <= rate <= MAX_RATE:
        wanted = f"a rate from {bits(MIN_RATE)} to {bits(MAX_RATE)}"
        raise Unreadable(wanted, repr(text), "for example 10mbit (bits per second, powers of 1000)")
    return rate


def _milliseconds(text: str) -> float:
    found = _number(text, "ms|s")
    delay = found[0] * (1000 if found[1] == "s" else 1) if found else 0.0
    if not 0 < delay <= MAX_DELAY:
        raise Unreadable("a time up to 60s", repr(text), "for example 50ms or 1.5s")
    return delay


def require(fault: Fault, topology: Topology) -> None:
    """Raise Unreadable if the topology does not have the fault's target."""
    if topology.attached:
        hint = "bring up a lab of the same file with `testbed up FILE --name NAME`"
        seen = f"{topology.name}, which testbed is only attached to"
        raise Unreadable("a lab that testbed has created", seen, hint)
    for name in filter(None, (fault.node, fault.peer)):
        if name not in topology.nodes:
            raise Unreadable("the name of a node", repr(name), nearest(name, topology.nodes))
    node, segments = topology.nodes[fault.node], topology.segments_of(fault.node)
    if fault.peer and segments.isdisjoint(topology.segments_of(fault.peer)):
        hint = "they share no network; name two nodes that do"
        raise Unreadable("two nodes on one network", repr(fault.target), hint)
    if fault.kind in (*LINK_KINDS, *QUEUE_KINDS) and not segments:
        raise Unreadable("a node on a network", repr(fault.node), "name another")
    if fault.service:
        known = [name for role in node.roles for name in ROLES[role].services]
        known += node.services
        if fault.service not in known:
            wanted = f"a service of {fault.node}: {', '.join(known) or 'it has none'}"
            raise Unreadable(
                wanted,
                repr(fault.service),
                nearest(fault.service, known, "" if known else "its roles start none"),
            )
    if fault.what:
        _require_breakable(fault, topology)


def breakable() -> dict[str, str]:
    """Return the words of ``break`` of all roles, and the effect of each."""
    found: dict[str, str] = {}
    for role in ROLES.usable().values():
        found |= role.breakable
    return found


def _require_breakable(fault: Fault, topology: Topology) -> None:
    roles = [ROLES[name] for name in topology.nodes[fault.node].roles]
    owners = [role for role in roles if fault.what in role.breakable]
    if not owners:
        names = [one.name for one in ROLES.usable().values() if fault.what in one.breakable]
        wanted = f"a node with the role {' or '.join(names)}"
        raise Unreadable(wanted, repr(fault.node), f"name {wanted}")
    for role in owners:
        if why := role.unbreakable(topology, fault.node, fault.what):
            raise Unreadable(*why)

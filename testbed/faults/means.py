"""The commands that cause, detect and heal faults, and their parsers.

nftables rules in the fabric's bridges cut links and drop frames. The queue of a node's port on
the fabric delays and limits frames to the node. Both are described as a whole: for all faults
that shall be active, the commands produce this state from any other one. Entries that are broken
on a node are compared with those that flannel sets. This module does not access a machine.
"""

from __future__ import annotations

import json
import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from testbed.faults.model import QUEUE_KINDS, Fault, Unreadable, parse

if TYPE_CHECKING:
    from testbed.nodes.base import Node

TABLE = ("bridge", "testbed-faults")
#: The range of nft's random numbers: a hundred thousandth is the smallest loss.
MODULUS = 100_000

RATE_HANDLE, DELAY_HANDLE = "fa1:", "fa2:"  # unique among the queues on the fabric
#: TCP sends frames of up to 64 KiB to a port (GSO).  A smaller bucket would split them; a much
#: larger one would not limit a short transfer.
BURST = 32 << 10
#: The longest time of a frame in a full queue; further frames are dropped.
LATENCY = "50ms"
#: The limit of netem, in packets: its default of 1000 would drop most of a fast stream.
LIMIT = 10_000

COMMENT = "testbed fault"  #: the comment of our rules on a node

#: The names of the ports of each node on the fabric.
Ports = Mapping[str, Sequence[str]]


# -- links: nftables ---------------------------------------------------------


def _set(names: Iterable[str]) -> str:
    return "{ " + ", ".join(f'"{name}"' for name in names) + " }"


def link_rules(ports: Ports, faults: Iterable[Fault]) -> str:
    """Return the input of ``nft -f -`` for exactly these faults of links.

    It is one transaction, so no frame is handled by an intermediate state.
    """
    name = " ".join(TABLE)
    lines = [f"add table {name}", f"delete table {name}"]  # delete fails without it
    wanted = list(faults)
    if wanted:
        hook = "type filter hook forward priority 0; policy accept;"
        lines += [f"add table {name}", f"add chain {name} links {{ {hook} }}"]
    for fault in wanted:
        if not ports[fault.node] or (fault.peer and not ports[fault.peer]):
            continue  # its links lead directly to other nodes
        mine = _set(ports[fault.node])
        theirs = _set(ports[fault.peer]) if fault.peer else ""
        for here, there in (("iifname", "oifname"), ("oifname", "iifname")):
            match = f"{here} {mine}" + (f" {there} {theirs}" if theirs else "")
            rule = f'{match}{chance(fault)} counter drop comment "{fault.words}"'
            lines.append(f"add rule {name} links {rule}")
    return "\n".join(lines) + "\n"


def chance(fault: Fault) -> str:
    """Return the nftables match that lets a share of packets be lost; empty for all of them."""
    if fault.kind != "loss":
        return ""
    return f" numgen random mod {MODULUS} < {round(fault.percent / 100 * MODULUS)}"


def node_table(node: str) -> tuple[str, str]:
    """Return the nftables table on a node for its links that lead directly to another one.

    Each node has its own, because two nodes of another tool can be in one network namespace.
    """
    return "netdev", f"testbed-faults-{sha256(node.encode()).hexdigest()[:8]}"


def end_rules(node: str, ends: Mapping[str, str], faults: Iterable[Fault]) -> str:
    """Return the input of ``nft -f -`` on a node for exactly these faults of its direct links.

    ``ends`` are its interfaces that lead to another node, each with that node's name. Frames are
    dropped as they come in, at both ends of a link.
    """
    name = " ".join(node_table(node))
    lines = [f"add table {name}", f"delete table {name}"]
    rules = [
        f'add rule {name} end{number}{chance(fault)} counter drop comment "{fault.words}"'
        for fault in faults
        for number, peer in enumerate(ends.values())
        if fault.node in (node, peer) and fault.peer in ("", node, peer)
    ]
    if rules:
        lines.append(f"add table {name}")
        for number, interface in enumerate(ends):
            hook = f'type filter hook ingress device "{interface}" priority 0; policy accept;'
            lines.append(f"add chain {name} end{number} {{ {hook} }}")
    return "\n".join([*lines, *rules]) + "\n"


@dataclass(frozen=True, slots=True)
class Seen:
    """An active fault, and the evidence of it on the machine."""

    fault: Fault
    how: str


def links_seen(*listings: str) -> list[Seen]:
    """Return the faults in outputs of ``nft -j list table``.

    Their evidence is the number of dropped frames.
    """
    dropped: dict[str, int] = {}
    for entry in (one for text in listings for one in json.loads(text)["nftables"]):
        rule = entry.get("rule")
        if rule and "comment" in rule:
            counted = (part["counter"]["packets"] for part in rule["expr"] if "counter" in part)
            dropped[rule["comment"]] = dropped.get(rule["comment"], 0) + sum(counted)
    return [
        Seen(fault, f"{count} frames dropped")
        for words, count in dropped.items()
        if (fault := _read(words)) is not None
    ]


def _read(words: str) -> Fault | None:
    try:
        return parse(words.split())
    except Unreadable:  # a rule of another version of testbed
        return None


# -- queues: tc --------------------------------------------------------------

#: Exits with status 0 if the kernel has netem.  Nothing uses the fabric's ``lo``.
PROBE_NETEM = ("tc", "qdisc", "replace", "dev", "lo", "root", "netem", "delay", "1us")
UNPROBE = ("tc", "qdisc", "del", "dev", "lo", "root")


def has_queue(node: str, faults: Iterable[Fault]) -> bool:
    """Tell whether one of the faults is a queue for the traffic to a node."""
    return any(fault.kind in QUEUE_KINDS and fault.node == node for fault in faults)


def queue_lines(ports: Sequence[str], node: str, faults: Iterable[Fault], *, there: bool) -> str:
    """Return the input of ``tc -batch -`` for these faults of a node.

    ``there`` tells whether the ports have such queues now, which are removed first. A limit in
    addition to a delay is a child of the delay's queue (tc-netem(8)).
    """
    wanted = {fault.kind: fault for fault in faults if fault.node == node}
    lines = []
    for name in ports:
        if there:
            lines.append(f"qdisc del dev {name} root")
        where = "root"
        if delay := wanted.get("delay"):
            lines.append(f"qdisc add dev {name} {where} handle {DELAY_HANDLE} {_netem(delay)}")
            where = f"parent {DELAY_HANDLE}1"
        if rate := wanted.get("rate"):
            lines.append(f"qdisc add dev {name} {where} handle {RATE_HANDLE} {_tbf(rate)}")
    return "".join(f"{line}\n" for line in lines)


def shaping_lines(name: str, faults: Iterable[Fault]) -> list[str]:
    """Return lines for ``tc -batch`` that give a link a rate, a delay and a loss for good.

    They replace what is there.
    """
    wanted = {fault.kind: fault for fault in faults}
    lines, where = [], "root"
    if {"delay", "loss"} & wanted.keys():
        delay = wanted.get("delay", Fault("delay", ""))
        loss = f" loss {wanted['loss'].percent:g}%" if "loss" in wanted else ""
        lines.append(f"qdisc replace dev {name} {where} handle ba1: {_netem(delay)}{loss}")
        where = "parent ba1:1"
    if rate := wanted.get("rate"):
        lines.append(f"qdisc replace dev {name} {where} handle ba2: {_tbf(rate)}")
    return lines


def _netem(fault: Fault) -> str:
    jitter = f" {fault.jitter:g}ms" if fault.jitter else ""
    return f"netem limit {LIMIT} delay {fault.delay:g}ms{jitter}"


def _tbf(fault: Fault) -> str:
    # The kernel adds tokens at each tick: the bucket must hold those of one tick (tc-tbf(8)).
    burst = max(BURST, fault.rate // 8 // 100)
    return f"tbf rate {fault.rate}bit burst {burst}b latency {LATENCY}"


def queues_seen(listing: str, ports: Ports) -> list[Seen]:
    """Return the faults in the output of ``tc -j qdisc show``."""
    owners = {names[0]: node for node, names in ports.items() if names}
    found = []
    for entry in json.loads(listing or "[]"):
        node, options = owners.get(entry["dev"]), entry.get("options", {})
        if node is None:
            continue
        if entry["handle"] == RATE_HANDLE and entry["kind"] == "tbf":
            fault = Fault("rate", node, rate=options["rate"] * 8)
            found.append(Seen(fault, f"{entry['kind']} on the port {entry['dev']}"))
        elif entry["handle"] == DELAY_HANDLE and entry["kind"] == "netem":
            held = options.get("delay", {})
            fault = Fault("delay", node, delay=_ms(held, "delay"), jitter=_ms(held, "jitter"))
            found.append(Seen(fault, f"{entry['kind']} on the port {entry['dev']}"))
    return found


def _ms(delay: Mapping[str, Any], name: str) -> float:
    # Seconds, which the kernel has rounded to ticks of 64 ns.
    return round(float(delay.get(name, 0)) * 1000, 3)


# -- entries on a node -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Look:
    """A command that lists entries, and commands that change them.

    ``entries`` are the expected lines of the output. ``gone`` are the commands that cause the
    fault, ``back`` those that heal it, one per entry. ``breaks`` is True if the presence of the
    entries is the fault, False if their absence is.
    """

    argv: tuple[str, ...]
    entries: tuple[str, ...]
    gone: tuple[tuple[str, ...], ...]
    back: tuple[tuple[str, ...], ...]
    breaks: bool = False

    def is_broken(self, output: str) -> bool:
        """Tell whether the command's output shows the fault."""
        lines = [" ".join(line.split()) for line in output.splitlines()]
        there = [any(_begins(line, entry) for line in lines) for entry in self.entries]
        return any(there) if self.breaks else bool(there) and not all(there)

    def seen(self, output: str) -> str:
        """Describe each missing entry as gone or changed.

        A changed entry has its current value. Return an empty string if all entries are gone.
        """
        lines = [" ".join(line.split()) for line in output.splitlines()]
        said = []
        for index in self.missing(output):
            entry = self.entries[index]
            others = [line for line in lines if _begins(line, entry.split()[0])]
            said.append(f"changed: {', '.join(others)}" if others else f"gone: {entry}")
        whole = len(said) == len(self.entries) and all(one.startswith("gone") for one in said)
        return "" if whole else "; ".join(said)

    def missing(self, output: str) -> list[int]:
        """Return the indices of the entries that are not in the output."""
        lines = [" ".join(line.split()) for line in output.splitlines()]
        return [
            index
            for index, entry in enumerate(self.entries)
            if not any(_begins(line, entry) for line in lines)
        ]


def _begins(line: str, entry: str) -> bool:
    return line == entry or line.startswith(f"{entry} ")


def joined(first: Look, second: Look) -> Look:
    """Return the commands for the entries of both, which are broken and healed together."""
    return Look(
        ("sh", "-c", 'sh -c "$1"; sh -c "$2"', "sh", *map(shlex.join, (first.argv, second.argv))),
        first.entries + second.entries,
        first.gone + second.gone,
        first.back + second.back,
        first.breaks,
    )


def rule(chain: str, *match: str, program: str = "iptables") -> Look:
    """Return the commands for a rule that drops what it matches.

    ``program`` is ``ip6tables`` for packets of IPv6.
    """
    words = (*match, "-m", "comment", "--comment", COMMENT, "-j", "DROP")
    shown = " ".join(("-A", chain, *words[:-4], "--comment", f'"{COMMENT}"', *words[-2:]))
    return Look(
        (program, "-w", "-S", chain),
        (shown,),
        ((program, "-w", "-I", chain, "1", *words),),
        ((program, "-w", "-D", chain, *words),),
        breaks=True,
    )


class Breakage(ABC):
    """The parts of a role on a running lab that the fault ``break`` removes."""

    #: What is required if there is nothing to break.
    hint = "the role's services must run"

    @abstractmethod
    def look(self, node: Node, what: str) -> Look | None:
        """Return the commands for a word of ``break``; None if it cannot apply now."""


# -- processes ---------------------------------------------------------------


def is_stopped(stat: str) -> bool:
    """Tell whether a signal has stopped a process.

    The state is the third field of /proc/PID/stat (proc(5)).
    """
    return stat.rpartition(")")[2].split()[:1] == ["T"]

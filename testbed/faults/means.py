"""How faults are made and how they show: command lines, and the reading of what they print.

Links are cut, and lose frames, by rules of nftables in the fabric's bridges; what goes to a
node is held up and limited by the queue of its port there.  Both are described as a whole:
given all faults that shall be in force, the words are those that bring it about, whatever was
there before.  What can be broken on a node is compared with what flannel had set.
Nothing here touches a machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from testbed.faults.model import Fault, Unreadable, parse

if TYPE_CHECKING:
    from testbed.topology.model import Flannel, Topology

TABLE = ("bridge", "testbed-faults")
#: What nft's random numbers are taken from: a hundred thousandth is the least loss.
MODULUS = 100_000

RATE_HANDLE, DELAY_HANDLE = "fa1:", "fa2:"  # no other queue on the fabric has them
#: A port's frames may be 64 KiB large, as TCP makes them (GSO); a bucket of less cuts them up,
#: one of much more would let a short transfer through unlimited.
BURST = 32 << 10
#: So long the slowest frame waits in a full queue before the next is dropped.
LATENCY = "50ms"
#: Of netem, in packets: its own default of 1000 would drop most of a fast stream.
LIMIT = 10_000

COMMENT = "testbed fault"  #: of a rule on a node

#: The names of the ports of each node on the fabric.
Ports = Mapping[str, Sequence[str]]


# -- links: nftables ---------------------------------------------------------


def _set(names: Iterable[str]) -> str:
    return "{ " + ", ".join(f'"{name}"' for name in names) + " }"


def link_rules(ports: Ports, faults: Iterable[Fault]) -> str:
    """The input of ``nft -f -`` after which these faults of links are in force, and no others.

    It is one transaction: no frame sees half of it.
    """
    name = " ".join(TABLE)
    lines = [f"add table {name}", f"delete table {name}"]  # the first lest the second fail
    wanted = list(faults)
    if wanted:
        hook = "type filter hook forward priority 0; policy accept;"
        lines += [f"add table {name}", f"add chain {name} links {{ {hook} }}"]
    for fault in wanted:
        mine = _set(ports[fault.node])
        theirs = _set(ports[fault.peer]) if fault.peer else ""
        chance = ""
        if fault.kind == "loss":
            chance = f" numgen random mod {MODULUS} < {round(fault.percent / 100 * MODULUS)}"
        for here, there in (("iifname", "oifname"), ("oifname", "iifname")):
            match = f"{here} {mine}" + (f" {there} {theirs}" if theirs else "")
            rule = f'{match}{chance} counter drop comment "{fault.words}"'
            lines.append(f"add rule {name} links {rule}")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class Seen:
    """A fault that is in force, and what of it is seen on the machine."""

    fault: Fault
    how: str


def links_seen(listing: str) -> list[Seen]:
    """What ``nft -j list table`` says of the faults of links, with what each has dropped."""
    dropped: dict[str, int] = {}
    for entry in json.loads(listing)["nftables"]:
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
    except Unreadable:  # a rule of another version's
        return None


# -- queues: tc --------------------------------------------------------------

#: Ends with status 0 where the kernel has netem; of the fabric's ``lo`` nobody makes use.
PROBE_NETEM = ("tc", "qdisc", "replace", "dev", "lo", "root", "netem", "delay", "1us")
UNPROBE = ("tc", "qdisc", "del", "dev", "lo", "root")


def queue_lines(ports: Sequence[str], node: str, faults: Iterable[Fault], *, there: bool) -> str:
    """The input of ``tc -batch -`` after which a node's ports have the queues of these faults.

    ``there`` says whether they have queues of ours now: those go first.  A limit below a
    delay is the delay's child, as tc-netem(8) has it.
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


def _netem(fault: Fault) -> str:
    jitter = f" {fault.jitter:g}ms" if fault.jitter else ""
    return f"netem limit {LIMIT} delay {fault.delay:g}ms{jitter}"


def _tbf(fault: Fault) -> str:
    # Tokens come at the kernel's ticks: what one lets pass must fit into the bucket (tc-tbf(8)).
    burst = max(BURST, fault.rate // 8 // 100)
    return f"tbf rate {fault.rate}bit burst {burst}b latency {LATENCY}"


def queues_seen(listing: str, ports: Ports) -> list[Seen]:
    """What ``tc -j qdisc show`` says of the faults that are queues."""
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
    # Seconds, of which the kernel has kept whole ticks of 64 ns.
    return round(float(delay.get(name, 0)) * 1000, 3)


# -- what is broken on a node ------------------------------------------------


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node of the overlay, as a node's entries name it; ``mac`` is its VTEP's."""

    name: str
    address: str
    subnet: str
    mac: str = ""

    @property
    def vtep(self) -> str:
        """The address of its flannel.N: the first of its subnet."""
        return self.subnet.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Look:
    """A command whose output tells whether something is there, and those that change it.

    ``gone`` and ``back`` are each a list of commands, ``entries`` what must be in the
    output; ``breaks`` says whether its being there is the fault, or its absence.
    """

    argv: tuple[str, ...]
    entries: tuple[str, ...]
    gone: tuple[tuple[str, ...], ...]
    back: tuple[tuple[str, ...], ...]
    breaks: bool = False

    def is_broken(self, output: str) -> bool:
        """Whether the fault shows in what the command has printed."""
        lines = [" ".join(line.split()) for line in output.splitlines()]
        there = [any(_begins(line, entry) for line in lines) for entry in self.entries]
        return any(there) if self.breaks else bool(there) and not all(there)

    def seen(self, output: str) -> str:
        """Entries that are missing: each as gone or, with what is there instead, as changed.

        Empty where all are gone.
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
        """Which of the entries are not in the output."""
        lines = [" ".join(line.split()) for line in output.splitlines()]
        return [
            index
            for index, entry in enumerate(self.entries)
            if not any(_begins(line, entry) for line in lines)
        ]


def _begins(line: str, entry: str) -> bool:
    return line == entry or line.startswith(f"{entry} ")


def device(flannel: Flannel) -> str:
    """The device of an overlay on each of its nodes; empty where it has none (host-gw)."""
    return {"vxlan": f"flannel.{flannel.vni}", "udp": "flannel0"}.get(flannel.backend, "")


def look(topology: Topology, what: str, peers: Sequence[Peer]) -> Look:
    """How to see, make and undo one thing of :data:`testbed.faults.model.BREAKABLE`."""
    flannel = topology.flannel
    assert flannel is not None, "checked before"
    if what == "forward":
        return _rule("FORWARD")
    if what == "port":
        return _rule("INPUT", "-p", "udp", "-m", "udp", "--dport", str(flannel.port))
    name = device(flannel)
    if what == "neighbour":
        entries = [(f"{p.vtep} lladdr {p.mac}", p.vtep, p.mac) for p in peers]
        return Look(
            ("ip", "neigh", "show", "dev", name, "nud", "permanent"),
            tuple(shown for shown, *_ in entries),
            tuple(("ip", "neigh", "del", vtep, "dev", name) for _, vtep, _ in entries),
            tuple(
                ("ip", "neigh", "replace", vtep, "lladdr", mac, "dev", name, "nud", "permanent")
                for _, vtep, mac in entries
            ),
        )
    if what == "fdb":
        words = [(p.mac, "dev", name, "dst", p.address) for p in peers]
        return Look(
            ("bridge", "fdb", "show", "dev", name),
            tuple(f"{p.mac} dst {p.address}" for p in peers),
            tuple(("bridge", "fdb", "del", *entry) for entry in words),
            tuple(("bridge", "fdb", "append", *entry) for entry in words),
        )
    routes = _routes(flannel, peers)
    return Look(
        ("ip", "route", "show"),
        tuple(shown for shown, _ in routes),
        tuple(("ip", "route", "del", shown.split()[0]) for shown, _ in routes),
        tuple(("ip", "route", "replace", *shown.split(), *more) for shown, more in routes),
    )


def _routes(flannel: Flannel, peers: Sequence[Peer]) -> list[tuple[str, tuple[str, ...]]]:
    """The routes that flannel sets for other nodes: as shown, and what shows elsewhere."""
    name = device(flannel)
    if flannel.backend == "udp":
        return [(f"{flannel.network} dev {name}", ())]
    if flannel.backend == "vxlan":
        return [(f"{p.subnet} via {p.vtep} dev {name}", ("onlink",)) for p in peers]
    return [(f"{p.subnet} via {p.address}", ()) for p in peers]


def _rule(chain: str, *match: str) -> Look:
    words = (*match, "-m", "comment", "--comment", COMMENT, "-j", "DROP")
    shown = " ".join(("-A", chain, *words[:-4], "--comment", f'"{COMMENT}"', *words[-2:]))
    return Look(
        ("iptables", "-w", "-S", chain),
        (shown,),
        (("iptables", "-w", "-I", chain, "1", *words),),
        (("iptables", "-w", "-D", chain, *words),),
        breaks=True,
    )


# -- processes ---------------------------------------------------------------


def is_stopped(stat: str) -> bool:
    """Whether a process is stopped by a signal: the third field of /proc/PID/stat (proc(5))."""
    return stat.rpartition(")")[2].split()[:1] == ["T"]

"""Traces of daemons in a machine's network, and the commands that remove them.

All functions are pure. Rules are read as ``iptables-save`` prints them, and removed by
``iptables-restore --noflush``, which changes a table at once or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from testbed.nodes.footprint import Footprint

FORWARD = "FORWARD"
#: Tables that iptables-nft creates at the first rule (iptables-nft(8)), as ``nft`` names them.
OF_IPTABLES = ("filter", "nat", "mangle", "raw", "security")
#: Types of routes without a network of their own (ip-route(8)).
TYPES = ("unicast", "local", "broadcast", "multicast", "blackhole", "unreachable", "prohibit")


def tables(saved: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each table in the output of ``iptables-save`` with its lines."""
    name = ""
    lines: list[str] = []
    for line in saved.splitlines():
        if line.startswith("*"):
            name, lines = line[1:], []
        elif line == "COMMIT":
            yield name, lines
        elif name and not line.startswith("#"):
            lines.append(line)


def policies(saved: str) -> dict[str, str]:
    """Return the policy of the chain FORWARD in the output of ``iptables-save``, by table."""
    found = {}
    for table, lines in tables(saved):
        for line in lines:
            chain, _, rest = line.partition(" ")
            if chain == f":{FORWARD}":
                found[table] = rest.split(" ")[0]
    return found


def is_ours(line: str, footprint: Footprint) -> bool:
    """Tell whether a line of ``iptables-save`` is a chain or a rule of the daemons."""
    return footprint.has_chain(_chain(line)) or footprint.has_rule(line)


def _chain(line: str) -> str:
    """Return the chain of a line of ``iptables-save``, a chain or a rule."""
    return line.removeprefix("-A ").removeprefix(":").partition(" ")[0]


def rules(saved: str, footprint: Footprint) -> list[str]:
    """Return the chains and rules of the daemons, each as ``TABLE LINE``."""
    return [
        f"{table} {line}"
        for table, lines in tables(saved)
        for line in lines
        if is_ours(line, footprint)
    ]


def restored(saved: str, footprint: Footprint, before: Mapping[str, str]) -> str:
    """Return the input of ``iptables-restore --noflush`` that removes the daemons' rules.

    ``before`` has the policies of FORWARD (:func:`policies`) from before; a table without one had
    no rules, and accepted. The result is empty if there is nothing to remove.
    """
    out: list[str] = []
    for table, lines in tables(saved):
        mine = [name for line in lines if footprint.has_chain(name := _chain(line))]
        mine = list(dict.fromkeys(mine))
        # Rules that lead to a chain first, and its own last: only an empty, unused chain goes.
        others = [
            line.replace("-A ", "-D ", 1)
            for line in lines
            if line.startswith("-A ") and _chain(line) not in mine and footprint.has_rule(line)
        ]
        words = [*others, *(f"-F {chain}" for chain in mine), *(f"-X {chain}" for chain in mine)]
        policy, wanted = policies(saved).get(table), before.get(table, "ACCEPT")
        # dockerd sets it to DROP with its first rules, and never back (moby, iptables.go).
        if words and policy and policy != wanted:
            words.append(f"-P {FORWARD} {wanted}")
        if words:
            out += [f"*{table}", *words, "COMMIT"]
    return "".join(f"{line}\n" for line in out)


def left_tables(saved: str, listed: Iterable[str], before: Iterable[str]) -> list[str]:
    """Return the nftables tables that iptables has created and that have no rules any more.

    ``saved`` is the output of ``iptables-save`` for one family, now; ``listed`` and ``before`` are
    that family's tables, as names, now and before.
    """
    used = {
        table
        for table, lines in tables(saved)
        if any(line.startswith("-A ") or _is_own(line) or _drops(line) for line in lines)
    }
    there = {*listed} - {*before} - used
    return [name for name in OF_IPTABLES if name in there]


def _is_own(line: str) -> bool:
    """Tell whether a line is a chain that somebody has created: it has no policy."""
    return line.startswith(":") and line.split(" ")[1] == "-"


def _drops(line: str) -> bool:
    return line.startswith(":") and line.split(" ")[1] == "DROP"


def links(there: Iterable[str], footprint: Footprint, before: Iterable[str]) -> list[str]:
    """Return the links of the daemons, from the names of all links now and before."""
    return [name for name in there if name not in {*before} and footprint.made_link(name)]


def routes(shown: str, footprint: Footprint) -> list[str]:
    """Return the routes of the daemons, from the output of ``ip route``.

    Those are the routes to a part of the footprint's networks.
    """
    networks = [ip_network(one) for one in footprint.routes]
    found = []
    for line in shown.splitlines():
        words = line.split()
        target = next((word for word in words if word not in TYPES), "")
        try:
            network = ip_network(target)
        except ValueError:  # default
            continue
        if any(network.version == one.version and network.subnet_of(one) for one in networks):  # type: ignore[arg-type]  # of one version
            found.append(line.strip())
    return found

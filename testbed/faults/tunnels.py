"""Faults of networks that are tunnels by UDP, such as VXLAN (RFC 7348), from node to node.

Rules and queues are where the tunnels' own packets pass, outside of the node's networks. A link is
cut at one end, in both directions, by nftables rules on these packets. Traffic to a node comes from
many peers, so it is limited where it arrives: its packets take a way through an ifb device, whose
queue delays them. This module changes nothing but by the places that it is given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from testbed.errors import CommandError, LabError, MachineError
from testbed.faults import means
from testbed.faults.links import Links, delays, need_netem
from testbed.limits import FILES_PER_NODE, at_once

if TYPE_CHECKING:
    from testbed.faults.means import Seen
    from testbed.faults.model import Fault
    from testbed.nodes.base import Result
    from testbed.nodes.place import Runs

TABLE = ("ip", "testbed-faults")  #: for links
ARRIVING = ("netdev", "testbed-faults")  #: for traffic to a node
DEVICE = "fault0"  #: the ifb device, which exists while there is a queue
LIST = ("nft", "-j", "list", "table", *TABLE)
NOT_FOUND = 127  # status of a program that is missing, as of a shell
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Tunnels:
    """The tunnels of a lab: ``port`` is the UDP port at which they arrive.

    ``addresses`` are their ends, ``outside`` the places where their packets pass, both by node,
    for those that run.
    """

    port: int
    addresses: Mapping[str, str]
    outside: Mapping[str, Runs]


def _peers(node: str) -> str:
    """Return the name of the set with the addresses of a node."""
    return f"node-{node}"


def link_rules(node: str, tunnels: Tunnels, faults: Iterable[Fault]) -> str:
    """Return the input of ``nft -f -`` outside of a node for exactly its faults of these.

    A fault is caused at its first node alone, so a packet is dropped by chance once.  The addresses
    of peers are in sets, which :func:`follow` changes.
    """
    name = " ".join(TABLE)
    lines = [f"add table {name}", f"delete table {name}"]  # delete fails without it
    wanted = [fault for fault in faults if fault.node == node]
    if wanted:
        lines.append(f"add table {name}")
        for chain in ("input", "output"):
            hook = f"type filter hook {chain} priority 0; policy accept;"
            lines.append(f"add chain {name} {chain} {{ {hook} }}")
    for peer in sorted({fault.peer for fault in wanted if fault.peer}):
        lines.append(f"add set {name} {_peers(peer)} {{ type ipv4_addr; }}")
        lines += _elements(peer, tunnels.addresses)
    for fault in wanted:
        for chain, far in (("input", "saddr"), ("output", "daddr")):
            match = f"udp dport {tunnels.port}"
            match += f" ip {far} @{_peers(fault.peer)}" if fault.peer else ""
            rule = f'{match}{means.chance(fault)} counter drop comment "{fault.words}"'
            lines.append(f"add rule {name} {chain} {rule}")
    return "\n".join(lines) + "\n"


def _elements(peer: str, addresses: Mapping[str, str]) -> list[str]:
    if peer not in addresses:  # it does not run
        return []
    return [f"add element {' '.join(TABLE)} {_peers(peer)} {{ {addresses[peer]} }}"]


def follow(place: Runs, addresses: Mapping[str, str]) -> None:
    """Let the faults of a node know the present addresses of its peers.

    ``place`` is outside of the node.
    """
    listed = place.run(LIST, check=False)
    if not listed.ok:
        return
    lines = []
    for entry in json.loads(listed.stdout)["nftables"]:
        peer = entry.get("set", {}).get("name", "").removeprefix(_peers(""))
        if peer in addresses and entry["set"].get("elem") != [addresses[peer]]:
            lines += [f"flush set {' '.join(TABLE)} {_peers(peer)}", *_elements(peer, addresses)]
    if lines:
        place.run(["nft", "-f", "-"], input="\n".join([*lines, ""]).encode())


def arriving_rules(device: str, port: int) -> str:
    """Return the input of ``nft -f -`` that leads arriving packets through :data:`DEVICE`.

    ``device`` is the one on which they arrive.  A packet comes back there and is received.  Only
    the first fragment of a packet has a port.
    """
    name = " ".join(ARRIVING)
    hook = f'type filter hook ingress device "{device}" priority 0; policy accept;'
    return "\n".join(
        [
            f"add table {name}",
            f"delete table {name}",
            f"add table {name}",
            f"add chain {name} arriving {{ {hook} }}",
            f'add rule {name} arriving udp dport {port} fwd to "{DEVICE}"',
            f'add rule {name} arriving ip protocol udp ip frag-off & 0x1fff != 0 fwd to "{DEVICE}"',
            "",
        ]
    )


class TunnelLinks(Links):
    """Links that are tunnels.  ``tunnels`` has those of all nodes of a lab."""

    def __init__(self, tunnels: Tunnels) -> None:
        self._tunnels = tunnels

    def _each(self, look: Callable[[str, Runs], _T]) -> list[_T]:
        outside = self._tunnels.outside
        with ThreadPoolExecutor(at_once(min(8, len(outside)), files=FILES_PER_NODE)) as pool:
            return list(pool.map(look, outside.keys(), outside.values()))

    def links(self) -> list[Seen]:
        listed = self._each(lambda _, place: place.run(LIST, check=False))
        return means.links_seen(*(one.stdout for one in listed if one.ok))

    def set_links(self, present: Sequence[Fault], wanted: Sequence[Fault]) -> None:
        for node in sorted({fault.node for fault in (*present, *wanted)}):
            rules = link_rules(node, self._tunnels, wanted)
            place = self._outside(node)
            _nft(place, place.run(["nft", "-f", "-"], input=rules.encode(), check=False))

    def queues(self) -> list[Seen]:
        show = ["tc", "-j", "qdisc", "show"]
        found = self._each(
            lambda node, place: means.queues_seen(place.run(show).stdout, {node: [DEVICE]})
        )
        return [seen for one in found for seen in one]

    def set_queues(self, node: str, present: Sequence[Fault], wanted: Sequence[Fault]) -> None:
        place = self._outside(node)
        if not means.has_queue(node, wanted):
            # Packets for a device that is gone would be dropped.
            rules = f"add table {' '.join(ARRIVING)}\ndelete table {' '.join(ARRIVING)}\n"
            place.run(["nft", "-f", "-"], input=rules.encode())
            place.run(["ip", "link", "delete", "dev", DEVICE])
            return
        if delays(node, wanted):
            need_netem(place)
        there = means.has_queue(node, present)
        if not there:
            self._insert(node, place)
        # The queue comes last: it is what is found as the fault.
        lines = means.queue_lines([DEVICE], node, wanted, there=there)
        place.run(["tc", "-batch", "-"], input=lines.encode())

    def _insert(self, node: str, place: Runs) -> None:
        """Lead what arrives through the ifb device; create nothing if the kernel cannot."""
        if not place.run(["ip", "link", "show", "dev", DEVICE], check=False).ok:
            made = place.run(["ip", "link", "add", DEVICE, "type", "ifb"], check=False)
            if not made.ok:
                raise MachineError(
                    f"the kernel of {node} has no ifb (CONFIG_IFB), which limits what arrives",
                    hint="load it there (modprobe ifb), or use the faults `partition` and `loss`",
                )
        place.run(["ip", "link", "set", "dev", DEVICE, "up"])
        rules = arriving_rules(self._device(node, place), self._tunnels.port)
        done = place.run(["nft", "-f", "-"], input=rules.encode(), check=False)
        if not done.ok:
            place.run(["ip", "link", "delete", "dev", DEVICE])
        _nft(place, done)

    def _outside(self, node: str) -> Runs:
        try:
            return self._tunnels.outside[node]
        except KeyError:
            raise LabError(
                f"{node} does not run, and faults of its links are caused there",
                hint="`testbed up` starts it",
            ) from None

    def _device(self, node: str, place: Runs) -> str:
        """Return the device on which a node's tunnels arrive."""
        address = self._tunnels.addresses[node]
        (found,) = json.loads(place.run(["ip", "-j", "address", "show", "to", address]).stdout)
        return str(found["ifname"])


def _nft(place: Runs, done: Result) -> None:
    """Raise MachineError or CommandError for a refusal of nft."""
    if done.ok:
        return
    if done.status == NOT_FOUND:
        raise MachineError(
            f"{place.name} has no nft, which cuts and limits links",
            hint="use an image with nftables: `testbed image build` makes one",
        )
    if "not supported" in done.stderr or "No such file" in done.stderr:
        raise MachineError(
            f"the kernel of {place.name} lacks nftables for faults of links: {done.stderr.strip()}",
            hint="use a kernel with CONFIG_NF_TABLES_IPV4, CONFIG_NF_TABLES_NETDEV, "
            "CONFIG_NFT_NUMGEN and CONFIG_NFT_FWD_NETDEV",
        )
    raise CommandError(
        done.argv, where=place.name, status=done.status, stdout=done.stdout, stderr=done.stderr
    )

"""The packet filter for Docker, and the rule that lets an overlay pass.

A node has its own /etc. Links in its /etc/alternatives select the variant of iptables, as
``update-alternatives --set`` does. All programs on the node, including flanneld and the checks,
use the same variant.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from testbed.errors import LabError
from testbed.roles.flannel.section import FlannelSection

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.roles.docker.section import Firewall
    from testbed.topology.families import Network
    from testbed.topology.model import Topology

#: Kernel features that a packet filter needs, by their names in :mod:`testbed.kernel`.
KERNEL: Mapping[Firewall, tuple[str, ...]] = {
    "iptables-legacy": ("iptables-legacy",),
    "iptables-nft": ("nf_tables",),
    "nftables": ("nf_tables",),
}
#: Programs on the node that write the rules, with their Debian packages.
PROGRAMS: Mapping[Firewall, Mapping[str, str]] = {
    "iptables-legacy": {"iptables-legacy": "iptables"},
    "iptables-nft": {"iptables-nft": "iptables"},
    "nftables": {"nft": "nftables"},
}
#: The variant that ``iptables --version`` prints in brackets.
SAYS: Mapping[str, str] = {"iptables-legacy": "(legacy)", "iptables-nft": "(nf_tables)"}

# Argument 1 is the variant.  Each link points to the program with the variant's own name.
CHOOSE = """
set -e
for family in iptables ip6tables; do
    for suffix in '' -save -restore; do
        name=$family-$1$suffix
        program=$(command -v "$name") || { echo "no program $name" >&2; exit 1; }
        ln -sfn "$program" "/etc/alternatives/$family$suffix"
    done
done
iptables --version
"""

IPV4 = 4

#: Tables of nftables that are written on a node: by the engine's own back end (moby,
#: libnetwork/drivers/bridge), and below.
TABLES = ("docker-bridges", "testbed")

#: The mark of packets that the engine's own nftables rules accept into its bridges.
MARK = "0x1000/0x1000"


def choose(machine: Node, firewall: Firewall) -> None:
    """Select the variant of iptables on a node.

    Do nothing for other packet filters. Raises LabError if one of its programs is missing, or if
    ``iptables`` is not managed by Debian's alternatives.
    """
    if firewall not in SAYS:
        return
    variety = firewall.removeprefix("iptables-")
    says = machine.run(["sh", "-c", CHOOSE, "sh", variety]).stdout
    if SAYS[firewall] not in says:
        raise LabError(
            f"{machine.name}: {firewall} is selected, but iptables is {says.strip()}",
            hint="check that iptables is a link to /etc/alternatives/iptables on this machine",
        )


def admit(
    machine: Node, topology: Topology, firewall: Firewall, bridge: str, *, closed: bool
) -> None:
    """Accept an overlay's packets to containers; ``firewall`` is the node's.

    ``closed`` tells that the engine drops packets from other interfaces to unpublished ports
    before flannel's own forward rules apply, as it does from 28 on (moby #48724). Flannel writes
    no rules for its further networks, so that these need some with any engine. Each packet filter
    has a place for the user's rules: the chain DOCKER-USER with iptables, a firewall mark with
    nftables, where an accept in one table does not end the evaluation in others.
    """
    flannel = FlannelSection.of(topology)
    further = list(flannel.further().values())
    native = firewall == "nftables"
    add = functools.partial(_add_nftables if native else _add_iptables, machine, bridge)
    add(flannel.network, [one.network for one in further], closed=closed)
    mine = flannel.ipv6.network if flannel.ipv6 else None
    others = [one.ipv6.network for one in further if one.ipv6]
    if mine or others:
        add(mine, others, closed=closed)


def _add_nftables(
    machine: Node, bridge: str, main: Network | None, further: Sequence[Network], *, closed: bool
) -> None:
    """Mark the packets to the main network, if there is one, and to further ones, of one family."""
    del closed  # such an engine is
    mark, mask = MARK.split("/")
    set_mark = f"meta mark set meta mark & {~int(mask, 16) & 0xFFFFFFFF:#x} | {mark}"
    family = "ip" if (main or further[0]).version == IPV4 else "ip6"
    places = [f"iifname != {bridge} {family} daddr {main}"] if main else []
    places += [f"{family} daddr {network}" for network in further]
    rules = [
        f"add table {family} testbed",
        f"flush table {family} testbed",
        f"add chain {family} testbed overlay {{ type filter hook forward priority filter - 1; }}",
        *(f"add rule {family} testbed overlay {place} {set_mark}" for place in places),
    ]
    machine.run(["nft", "-f", "-"], input="".join(f"{rule}\n" for rule in rules).encode())


def _add_iptables(
    machine: Node, bridge: str, main: Network | None, further: Sequence[Network], *, closed: bool
) -> None:
    """Accept the packets to the main network, if there is one, and to further ones, of one family.

    Without ``closed``, flannel's own rules accept those to the main network.
    """
    program = "iptables" if (main or further[0]).version == IPV4 else "ip6tables"
    script = (
        'program=$1; shift; "$program" -w -N DOCKER-USER 2> /dev/null; '
        '"$program" -w -C DOCKER-USER "$@" 2> /dev/null || "$program" -w -I DOCKER-USER "$@"'
    )
    rules = [("!", "-i", bridge, "-d", str(main), "-j", "ACCEPT")] if main and closed else []
    for rule in [*rules, *(("-d", str(network), "-j", "ACCEPT") for network in further)]:
        machine.run(["sh", "-c", script, "sh", program, *rule])

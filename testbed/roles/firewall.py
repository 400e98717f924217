"""The packet filter for Docker, and the rule that lets an overlay pass.

A node has its own /etc. Links in its /etc/alternatives select the variant of iptables, as
``update-alternatives --set`` does. All programs on the node, including flanneld and the checks,
use the same variant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from testbed.errors import LabError
from testbed.roles.docker.section import firewall_of
from testbed.roles.flannel.section import FlannelSection

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.roles.docker.section import Firewall
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


def admit(machine: Node, topology: Topology, bridge: str, *, closed: bool) -> None:
    """Accept an overlay's packets to containers.

    ``closed`` tells that the engine drops packets from other interfaces to unpublished ports
    before flannel's own forward rules apply, as it does from 28 on (moby #48724). Flannel writes
    no rules for its further networks, so that these need some with any engine. Each packet filter
    has a place for the user's rules: the chain DOCKER-USER with iptables, a firewall mark with
    nftables, where an accept in one table does not end the evaluation in others.
    """
    flannel = FlannelSection.of(topology)
    further = [str(one.network) for one in flannel.networks.values()]
    if firewall_of(topology, machine.name) == "nftables":
        mark, mask = MARK.split("/")
        set_mark = f"meta mark set meta mark & {~int(mask, 16) & 0xFFFFFFFF:#x} | {mark}"
        places = [f"iifname != {bridge} ip daddr {flannel.network}"]
        places += [f"ip daddr {network}" for network in further]
        rules = [
            "add table ip testbed",
            "flush table ip testbed",
            "add chain ip testbed overlay { type filter hook forward priority filter - 1; }",
            *(f"add rule ip testbed overlay {place} {set_mark}" for place in places),
        ]
        machine.run(["nft", "-f", "-"], input="".join(f"{rule}\n" for rule in rules).encode())
        return
    main = [("!", "-i", bridge, "-d", str(flannel.network), "-j", "ACCEPT")] if closed else []
    script = (
        "iptables -w -N DOCKER-USER 2> /dev/null; "
        'iptables -w -C DOCKER-USER "$@" 2> /dev/null || iptables -w -I DOCKER-USER "$@"'
    )
    for rule in [*main, *(("-d", network, "-j", "ACCEPT") for network in further)]:
        machine.run(["sh", "-c", script, "sh", *rule])

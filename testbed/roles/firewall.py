"""The packet filter that Docker's rules are written to, and the way past it for an overlay.

A node has an /etc of its own, so which of the two iptables it has is a matter of
links in its /etc/alternatives, as ``update-alternatives --set`` makes them; what
else runs on the node, flanneld and checks included, finds the same one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from testbed.errors import LabError

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.topology.model import Firewall, Topology

#: What a packet filter needs of the kernel, as :mod:`testbed.kernel` names it.
KERNEL: Mapping[Firewall, tuple[str, ...]] = {
    "iptables-legacy": ("iptables-legacy",),
    "iptables-nft": ("nf_tables",),
    "nftables": ("nf_tables",),
}
#: The programs of the node that write it, by Debian package.
PROGRAMS: Mapping[Firewall, Mapping[str, str]] = {
    "iptables-legacy": {"iptables-legacy": "iptables"},
    "iptables-nft": {"iptables-nft": "iptables"},
    "nftables": {"nft": "nftables"},
}
#: What ``iptables --version`` says in brackets.
SAYS: Mapping[str, str] = {"iptables-legacy": "(legacy)", "iptables-nft": "(nf_tables)"}

# Argument 1 is the variety.  The program of a link is where the variety's own name is found.
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

#: The mark of packets that an engine's own nftables rules shall let into its bridges.
MARK = "0x1000/0x1000"


def choose(machine: Node, firewall: Firewall) -> None:
    """Make a variety of iptables the node's own; nothing for the others.

    Raises LabError where a program of it is missing, and where ``iptables`` is not
    one of Debian's alternatives.
    """
    if firewall not in SAYS:
        return
    variety = firewall.removeprefix("iptables-")
    says = machine.run(["sh", "-c", CHOOSE, "sh", variety]).stdout
    if SAYS[firewall] not in says:
        raise LabError(
            f"{machine.name}: {firewall} was chosen, and iptables is {says.strip()}",
            hint="see whether iptables is a link to /etc/alternatives/iptables on this machine",
        )


def admit(machine: Node, topology: Topology, bridge: str) -> None:
    """Let an overlay's packets into docker0 on a node whose engine is 28 or later.

    Those engines drop what another interface brings for a port that is not published
    before flannel's own forward rules have a say (moby #48724).  Each packet
    filter has its door for rules of the user's own: the chain DOCKER-USER of iptables; a
    firewall mark with nftables, where an accept in one table does not bind another.
    """
    assert topology.flannel is not None
    network = str(topology.flannel.network)
    if topology.docker.firewall == "nftables":
        mark, mask = MARK.split("/")
        rules = (
            "add table ip testbed\n"
            "flush table ip testbed\n"
            "add chain ip testbed overlay { type filter hook forward priority filter - 1; }\n"
            f"add rule ip testbed overlay iifname != {bridge} ip daddr {network}"
            f" meta mark set meta mark & {~int(mask, 16) & 0xFFFFFFFF:#x} | {mark}\n"
        )
        machine.run(["nft", "-f", "-"], input=rules.encode())
        return
    rule = ("!", "-i", bridge, "-d", network, "-j", "ACCEPT")
    script = (
        "iptables -w -N DOCKER-USER 2> /dev/null; "
        'iptables -w -C DOCKER-USER "$@" 2> /dev/null || iptables -w -I DOCKER-USER "$@"'
    )
    machine.run(["sh", "-c", script, "sh", *rule])

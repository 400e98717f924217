"""The faster way is made slower: its packets traverse thousands of rules."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sabotage.means import lying
from sabotage.trials import sabotage
from testbed.suites.measuring import ECHO_PORT
from testbed.suites.overlay import ends

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node
    from testbed.suites.cluster import Pod

RULES = 20000


@contextlib.contextmanager
def slow(node: Node | Pod, hook: str, match: str) -> Iterator[None]:
    """Matching packets traverse thousands of rules at a hook."""
    rule = "meta mark 0x12345678 drop\n"
    text = (
        "table ip slow {\n"
        f"chain many {{\n{rule * RULES}}}\n"
        f"chain way {{ type filter hook {hook}; {match} jump many; }}\n"
        "}"
    )
    node.run(["nft", "-f", "-"], input=text.encode())
    try:
        yield
    finally:
        node.run(["nft", "delete", "table", "ip", "slow"])


@sabotage("docker-single", "nat-performance-cost", "mode-host-faster", slows=True)
def host_mode_is_slow(lab: LiveLab) -> Iterator[None]:
    """Packets to the server in host mode traverse thousands of rules."""
    with slow(lab.node("host"), "input priority 0", f"tcp dport {ECHO_PORT}"):
        yield


@sabotage("docker-single", "nat-performance-cost", "mode-host-faster", slows=True)
def translation_is_slow_and_the_link_is_not(lab: LiveLab) -> Iterator[None]:
    """Packets to translate traverse thousands of rules, and `tc` slows no link down."""
    before_nat = "prerouting priority -150"
    with (
        slow(lab.node("host"), before_nat, "tcp dport 7202"),
        lying(lab.node("outside"), tc="exit 0"),
    ):
        yield


@sabotage("three-node-udp", "flannel-udp-slowest", "flannel-udp-crossings-cost", slows=True)
def vxlan_is_slow(lab: LiveLab) -> Iterator[None]:
    """Packets that a host sends by the kernel's own VXLAN traverse thousands of rules."""
    with contextlib.ExitStack() as stack:
        for end in ends(lab):
            stack.enter_context(slow(end.node, "output priority 0", "udp dport 4789"))
        yield

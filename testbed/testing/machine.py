"""The contract of nodes that are machines of their own, with a kernel and an identity each.

Derive a class from :class:`MachineContract` and give it a fixture ``pair``: a provider, and the
two connected nodes of a lab that :func:`two_machines` creates.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from testbed.testing.provider import TWO, spec, until
from testbed.topology import load_text

if TYPE_CHECKING:
    from testbed.nodes.base import Node, Provider

LAB = "contract"

Pair = tuple["Provider", "list[Node]"]


def two_machines(provider: Provider) -> Iterator[Pair]:
    """Yield a provider with two connected nodes; remove them at the end.

    Both are created at the same time.
    """
    topology = load_text(TWO, "contract.yaml")
    try:
        provider.create_fabric(LAB, topology)
        with ThreadPoolExecutor() as pool:
            names = ("node1", "node2")
            made = list(pool.map(lambda name: provider.create_one(LAB, spec(name)), names))
        for node in made:
            provider.connect(LAB, topology, node)
        yield provider, made
    finally:
        provider.destroy(LAB)


def told(node: Node, path: str) -> str:
    """Return the text of a file on a node."""
    return node.get(path).decode().strip()


class MachineContract:
    """Each node is a machine, and not the same one as its peer."""

    def test_each_has_a_kernel_of_its_own(self, pair: Pair) -> None:
        boots = {told(node, "/proc/sys/kernel/random/boot_id") for node in pair[1]}
        ours = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        assert ours not in boots

    @pytest.mark.parametrize(
        "path", ["/etc/hostname", "/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key.pub",
                 "/root/.ssh/authorized_keys", "/proc/sys/kernel/hostname"],
    )  # fmt: skip
    def test_nothing_that_names_it_is_the_others_too(self, pair: Pair, path: str) -> None:
        one, two = (told(node, path) for node in pair[1])
        assert one != two
        assert one

    def test_both_draw_other_numbers(self, pair: Pair) -> None:
        # Each call advances the kernel's key: from the same key come the same numbers, though one
        # machine may have advanced further than the other.
        calls = ["dd", "if=/dev/urandom", "bs=32", "count=2000", "status=none"]
        one, two = (node.run(calls).out for node in pair[1])
        drawn = [{data[at : at + 32] for at in range(0, len(data), 32)} for data in (one, two)]
        assert [len(numbers) for numbers in drawn] == [2000, 2000]
        assert not drawn[0] & drawn[1]

    def test_the_clock_is_right(self, pair: Pair) -> None:
        for node in pair[1]:
            assert abs(float(node.run(["date", "+%s"]).stdout) - time.time()) < 30

    def test_addresses_are_the_topologys(self, pair: Pair) -> None:
        topology = load_text(TWO, "contract.yaml")
        for node in pair[1]:
            links = {one["ifname"]: one for one in node.run(["ip", "-j", "address"]).json()}
            for port in topology.nodes[node.name].ports:
                link = links[port.name]
                assert str(port.address) in [one["local"] for one in link["addr_info"]]

    def test_they_reach_each_other(self, pair: Pair) -> None:
        assert pair[1][0].run(["ping", "-c1", "-W5", "10.168.0.3"]).ok
        assert pair[1][1].run(["ping", "-c1", "-W5", "10.168.0.2"]).ok

    def test_one_is_made_anew_and_joined_again(self, pair: Pair) -> None:
        provider, made = pair
        before = made[1].run(["cat", "/sys/class/net/eth0/address"]).stdout
        provider.destroy(LAB, ["node2"])
        made[1] = provider.create_one(LAB, spec("node2"))
        provider.connect(LAB, load_text(TWO, "contract.yaml"), made[1])
        # With the same MAC address, its peer's cached neighbour entry stays valid.
        assert made[1].run(["cat", "/sys/class/net/eth0/address"]).stdout == before
        # The kernel may take a second to notice that a new link is up.
        ping = ["ping", "-c1", "-W5", "10.168.0.3"]
        assert until(lambda: made[0].run(ping, check=False).ok, 30)

"""The way out of a lab: its networks with ``uplink`` reach what this machine reaches.

One more namespace of the lab is the gateway of these networks. Its link ``out`` ends in the program
slirp4netns, which carries connections on by sockets of its own, as any program of this machine
does. So this machine has no interface, route, packet filter rule or kernel setting for the lab. The
program is in the pid namespace of the gateway and ends with it.

The program refuses connections to this machine's loopback addresses. It has no IPv6.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

from testbed.errors import CommandError, LabError
from testbed.nodes import wiring
from testbed.nodes.base import LOGS
from testbed.nodes.links import port_name
from testbed.nodes.netns.provider import NAT, UPLINK, bridge_of, veth
from testbed.process import run
from testbed.topology.model import MTU
from testbed.topology.ports import hardware_of

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.nodes.netns.node import NetnsNode
    from testbed.topology.model import Network, Topology

OUT = "out"  # the link of the program; it exists as long as the program runs
READY = "/run/testbed/uplink"  # on the gateway, once it is complete
TABLE = "ip uplink"
#: The subnet of ``out`` is in one of these, which no host outside has: link-local (RFC 3927), and
#: for benchmarks (RFC 2544) if the lab has all of the first itself.
POOLS = (IPv4Network("169.254.0.0/16"), IPv4Network("198.18.0.0/15"))
#: Numbers of addresses on ``out``: slirp4netns(1), --cidr.
NAT_HOST, DNS_HOST, GUEST_HOST = 2, 3, 100
#: Arguments: a log file, the cgroups to join, "--", and the command of the program.  It runs in the
#: background, and its first output tells that it is ready; without one it has ended.
START = """\
log=$1; shift
while [ "$1" != -- ]; do
    echo 0 > "$1/cgroup.procs" || exit
    shift
done
shift
said=$({ "$@" --ready-fd=3 < /dev/null > /dev/null 2> "$log" & } 3>&1 > /dev/null)
[ "$said" = 1 ] || { tail -n 3 "$log" >&2; exit 1; }
"""


class Uplink:
    """The gateway of a topology's networks with an uplink."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._networks = topology.uplinks
        self._subnet = self._free()
        text = "\n".join([*self._lines(), self._rules(), *map(str, self._networks)])
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:12]

    def _free(self) -> IPv4Network:
        """Return a subnet for ``out`` that the lab does not have.  Raises LabError."""
        subnets = {one for name in self._topology.nodes for one in self._topology.connected(name)}
        taken = [one for one in subnets if isinstance(one, IPv4Network)]
        taken += [network.subnet for network in self._networks if network.subnet]
        for pool in POOLS:
            _, *found = pool.subnets(new_prefix=24)
            for one in found:
                if not any(map(one.overlaps, taken)):
                    return one
        raise LabError(
            f"no subnet for the uplink of lab {self._topology.name}: its networks have all of "
            f"{' and '.join(map(str, POOLS))}",
            hint="change the subnet of a network",
        )

    def ports(self) -> list[str]:
        """Return the names of its ports on the fabric."""
        return [port_name(UPLINK, index) for index, _ in enumerate(self._networks)]

    def plugs(self, gateway: NetnsNode) -> list[str]:
        """Return the ``ip -batch`` lines that connect it to the fabric."""
        lines = []
        for index, (name, network) in enumerate(zip(self.ports(), self._networks, strict=True)):
            inside = f"eth{index} address {hardware_of(_way_out(network))} "
            inside += f"netns {gateway.init.pid}"
            lines.append(veth(name, inside, network.mtu))
            lines.append(f"link set dev {name} master {bridge_of(network.name)} up")
        return lines

    def set_up(self, gateway: NetnsNode, program: Path, cgroups: Sequence[Path]) -> None:
        """Start the program, and set what the gateway needs."""
        pid = gateway.init.pid
        log = f"{LOGS}/{NAT}.log"
        gateway.put(b"", log)
        argv = [
            "nsenter",
            f"--pid=/proc/{pid}/ns/pid",
            "sh",
            "-c",
            START,
            "sh",
            gateway.socket(log),
        ]
        argv += [*map(str, cgroups), "--", str(program), "--netns-type=path"]
        argv += [f"--cidr={self._subnet}", "--disable-host-loopback", f"--mtu={MTU}"]
        try:
            run([*argv, "--enable-sandbox", f"/proc/{pid}/ns/net", OUT], timeout=60)
        except CommandError as error:
            raise LabError(
                f"the uplink of lab {gateway.init.lab} does not start: {error.stderr.strip()}",
                hint="remove `uplink` of the networks, or try the command by hand",
            ) from None
        gateway.run(["ip", "-batch", "-"], input="\n".join(self._lines()).encode())
        gateway.run(["nft", "-f", "-"], input=self._rules().encode())
        gateway.run(["sysctl", "-q", "-w", f"{wiring.FORWARDING}=1"])
        gateway.put(b"", READY)

    def _lines(self) -> list[str]:
        """Return the ``ip -batch`` lines that set up its links and routes."""
        lines = [
            f"address add {self._subnet[GUEST_HOST]}/{self._subnet.prefixlen} dev {OUT}",
            f"link set dev {OUT} up",
            f"route add default via {self._subnet[NAT_HOST]}",
        ]
        for index, network in enumerate(self._networks):
            lines.append(f"address add {_address(network)} broadcast + dev eth{index}")
            lines.append(f"link set dev eth{index} up")
            lines += self._routes(network)
        return lines

    def _routes(self, network: Network) -> list[str]:
        """Return the routes back to the subnets behind the network's nodes that forward packets."""
        found: dict[str, str] = {}
        mine = [one.subnet for one in self._networks]
        for node in self._topology.nodes.values():
            via = next(
                (
                    one.ip
                    for port in node.on(network.name)
                    for one in port.interfaces
                    if one.ip in (network.subnet or ())
                ),
                None,
            )
            if via is None or not node.forwards:
                continue
            for subnet in self._topology.connected(node.name):
                if isinstance(subnet, IPv4Network) and subnet not in mine:
                    found.setdefault(str(subnet), f"route replace {subnet} via {via}")
        return list(found.values())

    def _rules(self) -> str:
        """Return the input of ``nft -f -``: NAT of what leaves, and nothing else passes."""
        dns = [
            f"  ip daddr {network.way_out} {protocol} dport 53 dnat to {self._subnet[DNS_HOST]}"
            for network in self._networks
            for protocol in ("udp", "tcp")
        ]
        return "\n".join(
            [
                f"table {TABLE} {{",
                " chain dns {",
                "  type nat hook prerouting priority dstnat",
                *dns,
                " }",
                " chain leave {",
                "  type nat hook postrouting priority srcnat",
                f'  oifname "{OUT}" masquerade',
                " }",
                " chain pass {",
                "  type filter hook forward priority filter; policy drop",
                f'  oifname "{OUT}" accept',
                f'  iifname "{OUT}" ct state established,related accept',
                " }",
                "}",
                "",
            ]
        )

    def missing(
        self, gateway: NetnsNode | None, fabric: Mapping[str, Mapping[str, str]]
    ) -> dict[str, str]:
        """Return the networks whose uplink is not whole, each with what is wrong.

        ``fabric`` are the links of the fabric by name, each with its ``state`` and ``master``.
        """
        if gateway is None or not self._networks:
            return {network.name: "no uplink" for network in self._networks} or {"": "removed"}
        wrong = self._wrong(gateway)
        found = {}
        for name, network in zip(self.ports(), self._networks, strict=True):
            port = fabric.get(name, {"state": "missing", "master": ""})
            if port["state"] != "up" or port["master"] != bridge_of(network.name):
                found[network.name] = "uplink not connected"
            elif wrong:
                found[network.name] = f"no uplink: {wrong}"
        return found

    def _wrong(self, gateway: NetnsNode) -> str:
        """Return what is wrong on the gateway itself; empty if nothing is."""
        if gateway.digest != self.digest:
            return "other settings"
        try:
            seen = wiring.look(gateway)
            if OUT not in seen.links:
                return f"{NAT} does not run"
            if gateway.run(["test", "-e", READY], check=False).status:
                return "not complete"
            if not gateway.run(["nft", "list", "chain", *TABLE.split(), "leave"], check=False).ok:
                return "no NAT"
        except LabError:
            return "its gateway has ended"
        lost = [str(self._subnet[NAT_HOST])] if not seen.gateways else []
        for index, network in enumerate(self._networks):
            link = seen.links.get(f"eth{index}")
            if link is None or link.state == "down" or _address(network) not in link.addresses:
                lost.append(_address(network))
        return f"{', '.join(lost)} missing" if lost else ""


def _way_out(network: Network) -> IPv4Address:
    assert network.way_out is not None
    return network.way_out


def _address(network: Network) -> str:
    """Return the gateway's address on a network, with the prefix length."""
    assert network.subnet is not None
    return f"{network.way_out}/{network.subnet.prefixlen}"

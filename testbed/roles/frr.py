"""FRR: routing daemons with the configuration of a file, or with one that is written."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.errors import LabError
from testbed.limits import Takes
from testbed.nodes.base import Service
from testbed.nodes.marks import mark, marked
from testbed.roles.base import digest_of, start
from testbed.roles.router import NEEDS, RouterRole
from testbed.steps.step import Step, packages_step

if TYPE_CHECKING:
    from testbed.nodes.base import Node as Machine
    from testbed.nodes.base import ServiceState
    from testbed.roles.routing import RouterOfNode
    from testbed.steps.context import Context
    from testbed.topology.check.look import Look
    from testbed.topology.model import Node, Topology

ROLE = "frr"
CONFIG = "/etc/frr/frr.conf"
RUN = "/run/frr"
STARTER = f"{RUN}/testbed-start"
CONFIGURED = "frr"  # mark: the digest of the configuration that all daemons have accepted
#: Starts a daemon and gives it its part of the configuration, as watchfrr.sh of FRR does. So it
#: has it also when somebody else starts it again.
START = f"""\
#!/bin/sh
name=$1
done={RUN}/$name.configured
shift
rm -f "$done" "{RUN}/$name.vty"
(
    (
        while [ ! -S "{RUN}/$name.vty" ] && kill -0 $$; do sleep 0.02; done
        vtysh -b -n -d "$name" >"$done.new" 2>&1 || echo "exit status $?" >>"$done.new"
        mv "$done.new" "$done"
    ) &
)
exec "/usr/lib/frr/$name" "$@"
"""
#: Prints the output of vtysh for a daemon, as soon as it is there; else ends after half a second.
LOOK = """\
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25; do
    [ ! -e "$1" ] || exec cat "$1"
    sleep 0.02
done
exit 75
"""
#: Daemons that always run. From FRR 9 on, mgmtd has the configuration of others.
BASE = ("zebra", "staticd")
#: Other daemons, each with the lines of a configuration that need it (docs.frrouting.org).
PROTOCOLS: Mapping[str, str] = {
    "ospfd": r"router ospf( |$)|ip ospf ",
    "bgpd": r"router bgp( |$)",
    "ospf6d": r"router ospf6|ipv6 ospf6 ",
    "isisd": r"router isis |ip(v6)? router isis ",
    "ripd": r"router rip$",
    "ripngd": r"router ripng$",
    "eigrpd": r"router eigrp ",
    "babeld": r"router babel",
    "pimd": r"ip pim|ip igmp|router pim",
    "bfdd": r"bfd$|neighbor \S+ bfd|ip ospf bfd",
    "vrrpd": r"vrrp ",
    "pbrd": r"pbr-map |pbr-policy ",
    "nhrpd": r"ip nhrp ",
    "ldpd": r"mpls ldp",
}
#: zebra's buffer for netlink, as in Debian's /etc/frr/daemons.
OPTIONS: Mapping[str, tuple[str, ...]] = {"zebra": ("-s", "90000000")}
#: A router of a lab tells a change after 0.1 s. By default it waits 5 s between two (RFC 2328,
#: appendix B, MinLSInterval), and others drop what comes within 1 s (MinLSArrival).
SOON = (" timers throttle lsa all 100", " timers lsa min-arrival 50")
PROBLEM = r"(?m)^line (\d+): (?:% )?([^\[:\n]+)"
#: What vtysh says of a line that a daemon refuses. The daemon's reason is lost (vtysh.c).
REFUSED = "Failure to communicate"


def base() -> tuple[str, ...]:
    """Return the daemons that always run, in the order of their start."""
    from testbed.artifacts import release

    return BASE if release.this().suite == "bookworm" else ("mgmtd", *BASE)


def daemons(text: str) -> tuple[str, ...]:
    """Return the daemons that a configuration needs, in the order of their start.

    >>> daemons("router bgp 65001")[-1]
    'bgpd'
    """
    found = [
        name
        for name, lines in PROTOCOLS.items()
        if re.search(rf"^\s*({lines})", text, re.MULTILINE)
    ]
    return (*base(), *found)


class Frr(RouterRole):
    name = ROLE
    title = "FRR"
    version = ("vtysh", "-c", "show version")
    version_form = r"FRRouting (\d\S*)"
    needs: ClassVar[dict[str, str]] = {ROLE: "a node with FRR", **NEEDS}
    fact_names = (ROLE,)
    packages = ("frr",)
    services = ("mgmtd", *BASE, *PROTOCOLS)
    processes = services
    folders = ("/etc/frr", "/var/lib/frr")

    def services_on(self, topology: Topology, node: str) -> tuple[str, ...]:
        return daemons(self.text(topology, topology.nodes[node]))

    def takes(self, topology: Topology, node: str) -> Takes:
        return Takes(files=256, tasks=4 * len(self.services_on(topology, node)))

    def speaks(self, text: str) -> set[str]:
        found = daemons(text)
        return {word for word in NEEDS if f"{word}d" in found}

    @property
    def checks(self) -> tuple[type[Look], ...]:  # type: ignore[override]  # loaded when a file names it
        from testbed.roles.routing import FrrChecks

        return (FrrChecks,)

    def neighbors(self, machine: Machine) -> Iterable[tuple[str, str]]:
        return neighbors(machine)

    def written(self, router: RouterOfNode, topology: Topology, node: Node) -> str:
        return written(router, topology, node)

    def steps(self, topology: Topology, node: Node) -> Iterable[Step]:
        from testbed.roles import routing

        text = self.text(topology, node)
        names = daemons(text)

        def act(context: Context) -> tuple[str, bool]:
            machine = context.node(node.name)
            changed = bring_up(context, machine, node, text, names)
            return ", ".join(names), changed

        about = (
            f"{', '.join(names)}; {routing.in_words(routing.router_of(ROLE, node), topology, node)}"
        )
        needs = (packages_step(node.name),)
        yield Step(f"{ROLE} {node.name}", about, needs, files=((CONFIG, text),), act=act)


def bring_up(
    context: Context, machine: Machine, node: Node, text: str, names: tuple[str, ...]
) -> bool:
    """Start the daemons of a node with a configuration, or find that they run with it.

    Return True if anything was changed. All start again with zebra, as with watchfrr(8).
    """
    digest = digest_of(text, START, OPTIONS)
    running = machine.services()
    current = all(_is_current(running.get(name), digest) for name in names)
    if current and marked(machine, CONFIGURED) == digest:
        return _stop_others(machine, running, names)
    check(machine, node, text)
    _stop_others(machine, running, ())
    machine.put(text.encode(), CONFIG, mode=0o640)
    machine.put(START.encode(), STARTER, mode=0o755)
    for name in names:
        argv = (STARTER, name, "-A", "127.0.0.1", "--log", "stdout", *OPTIONS.get(name, ()))
        start(machine, Service(name, argv, digest=digest, unit=ROLE), context=context)
        if name in base():
            configured(context, machine, node, text, name)
    for name in names:
        configured(context, machine, node, text, name)
    mark(machine, CONFIGURED, digest)
    return True


def _is_current(state: ServiceState | None, digest: str) -> bool:
    return state is not None and state.state != "dead" and state.digest == digest


def _stop_others(
    machine: Machine, running: Mapping[str, ServiceState], names: tuple[str, ...]
) -> bool:
    """Stop the daemons of FRR that are not named; the first ones last."""
    others = [
        name
        for name in reversed(Frr.services)
        if name in running and name not in names and running[name].state != "dead"
    ]
    for name in others:
        machine.stop(name)
    return bool(others)


def check(machine: Machine, node: Node, text: str) -> None:
    """Let vtysh(1) check a configuration.  Raises LabError with the lines that it refuses."""
    from testbed.roles import routing

    path = f"{RUN}/testbed-check.conf"
    machine.put(text.encode(), path, mode=0o600)
    said = machine.run(["vtysh", "-C", "-f", path], check=False)
    found = {int(number): what for number, what in re.findall(PROBLEM, said.stdout + said.stderr)}
    routing.refuse_config(ROLE, node, text, found, "vtysh")
    if not said.ok:
        raise LabError(f"vtysh cannot check the configuration of {node.name}\n{said.stderr}")


def configured(context: Context, machine: Machine, node: Node, text: str, name: str) -> None:
    """Wait until a daemon has its configuration.  Raises LabError if it refuses a line."""
    from testbed.roles import routing

    def look() -> str | None:
        argv = ["sh", "-c", LOOK, "sh", f"{RUN}/{name}.configured"]
        done = machine.run(argv, check=False)
        return done.stdout if done.ok else None

    said = routing.wait_until(context, machine, name, look)
    found = {
        int(number): f"not accepted by {name}" if what == REFUSED else what
        for number, what in re.findall(PROBLEM, said)
    }
    routing.refuse_config(ROLE, node, text, found, name)
    if "exit status" in said:
        raise LabError(f"{name} on {machine.name} refuses its configuration\n    {said.strip()}")


def neighbors(machine: Machine) -> list[tuple[str, str]]:
    """Return the neighbours of a router by OSPF and BGP, each with its state."""
    found: list[tuple[str, str]] = []
    running = {name for name, one in machine.services().items() if one.state == "ready"}
    for daemon, command, read in (
        ("ospfd", "show ip ospf neighbor json", _ospf_neighbors),
        ("bgpd", "show bgp summary json", _bgp_neighbors),
    ):
        if daemon in running:
            said = machine.run(["vtysh", "-d", daemon, "-c", command], check=False)
            with contextlib.suppress(ValueError):
                found += read(said.json() or {})
    return found


def _ospf_neighbors(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"OSPF {router} on {one.get('ifaceName', '?')}", str(one.get("nbrState") or one["state"]))
        for router, some in said.get("neighbors", {}).items()
        for one in some
    ]


def _bgp_neighbors(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"BGP {peer}", f"{one['state']}, AS {one['remoteAs']}")
        for family in said.values()
        for peer, one in family.get("peers", {}).items()
    ]


def written(router: RouterOfNode, topology: Topology, node: Node) -> str:
    """Return frr.conf for the settings of a node.

    OSPF announces changes soon. BGP announces and accepts all prefixes, as before RFC 8212, uses
    equally long paths through different AS at once, and connects again each second.
    """
    from testbed.roles import routing

    lines = [f"hostname {node.name}", "ip forwarding", "ipv6 forwarding"]
    number = routing.router_id(router, node)
    ospf, bgp = router.ospf, router.bgp
    if ospf:
        passive = {port.name for port in routing.ports_of(node, ospf.passive)}
        for port in routing.ospf_ports(ospf, node):
            lines.append(f"interface {port.name}")
            if not ospf.networks:
                lines.append(f" ip ospf area {ospf.area}")
            if port.name in passive:
                lines.append(" ip ospf passive")
            else:
                lines.append(f" ip ospf network {routing.network_type(ospf, topology, port)}")
                lines += [f" ip ospf hello-interval {ospf.hello}"] * (ospf.hello is not None)
                lines += [f" ip ospf dead-interval {ospf.dead}"] * (ospf.dead is not None)
            lines.append("exit")
        lines += ["router ospf", f" ospf router-id {number}", *SOON]
        lines += [f" network {prefix} area {ospf.area}" for prefix in ospf.networks]
        lines.append("exit")
    if bgp:
        lines += [
            f"router bgp {bgp.asn}",
            f" bgp router-id {number}",
            " no bgp ebgp-requires-policy",
            " bgp bestpath as-path multipath-relax",
        ]
        if bgp.keepalive is not None or bgp.hold is not None:
            lines.append(f" timers bgp {bgp.keepalive or 60} {bgp.hold or 180}")
        for one in bgp.neighbors:
            name = routing.neighbor_name(node, one)
            link = "" if one.is_address else " interface"
            lines.append(f" neighbor {name}{link} remote-as {one.asn or 'external'}")
            lines.append(f" neighbor {name} timers connect 1")
        lines.append(" address-family ipv4 unicast")
        lines += [f"  network {prefix}" for prefix in routing.prefixes(bgp, topology)]
        lines += [" exit-address-family", "exit"]
    return "\n".join(lines) + "\n"

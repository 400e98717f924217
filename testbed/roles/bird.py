"""BIRD: a routing daemon with the configuration of a file, or with one that is written."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar

from testbed.errors import LabError
from testbed.limits import Takes
from testbed.nodes.base import Service
from testbed.roles.base import digest_of, start
from testbed.roles.router import NEEDS, RouterRole
from testbed.steps.step import Step, packages_step

if TYPE_CHECKING:
    from testbed.nodes.base import Node as Machine
    from testbed.roles.routing import Bgp, Ospf, RouterOfNode
    from testbed.steps.context import Context
    from testbed.topology.check.look import Look
    from testbed.topology.model import Node, Topology

ROLE = "bird"
CONFIG = "/etc/bird/bird.conf"
RUN = "/run/bird"
SOCKET = f"{RUN}/bird.ctl"  # where birdc(8) looks by default
PROGRAM = "/usr/sbin/bird"
#: A message of bird -p: file, line and column, words.
PROBLEM = r"(?m)^bird: \S*?:(\d+):\d+ (.+)$"
PROTOCOLS: Mapping[str, str] = {"ospf": r"protocol\s+ospf\b", "bgp": r"(protocol|template)\s+bgp\b"}
BIRD_TYPES: Mapping[str, str] = {"broadcast": "bcast", "point-to-point": "ptp"}
#: Sources of routes that the kernel gets (bird.network.cz, user's guide, "RTS_").
SOURCES = "RTS_STATIC, RTS_OSPF, RTS_OSPF_IA, RTS_OSPF_EXT1, RTS_OSPF_EXT2, RTS_BGP"


class Bird(RouterRole):
    name = ROLE
    title = "BIRD"
    version = (PROGRAM, "--version")
    version_form = r"BIRD version (\d\S*)"
    needs: ClassVar[dict[str, str]] = {ROLE: "a node with BIRD", **NEEDS}
    fact_names = (ROLE,)
    packages = ("bird2",)
    services = (ROLE,)
    processes = services
    folders = ("/etc/bird",)

    def takes(self, topology: Topology, node: str) -> Takes:  # noqa: ARG002  all alike
        return Takes(files=128, tasks=2)

    def speaks(self, text: str) -> set[str]:
        return {word for word, form in PROTOCOLS.items() if re.search(form, text)}

    @property
    def checks(self) -> tuple[type[Look], ...]:  # type: ignore[override]  # loaded when a file names it
        from testbed.roles.routing import BirdChecks

        return (BirdChecks,)

    def neighbors(self, machine: Machine) -> Iterable[tuple[str, str]]:
        return neighbors(machine)

    def written(self, router: RouterOfNode, topology: Topology, node: Node) -> str:
        return written(router, topology, node)

    def steps(self, topology: Topology, node: Node) -> Iterable[Step]:
        from testbed.roles import routing

        text = self.text(topology, node)

        def act(context: Context) -> tuple[str, bool]:
            machine = context.node(node.name)
            return "bird", bring_up(context, machine, node, text)

        about = routing.in_words(routing.router_of(ROLE, node), topology, node)
        needs = (packages_step(node.name),)
        yield Step(f"{ROLE} {node.name}", about, needs, files=((CONFIG, text),), act=act)


def bring_up(context: Context, machine: Machine, node: Node, text: str) -> bool:
    """Start the daemon with a configuration, or find that it runs with it."""
    from testbed.roles import routing

    argv = (PROGRAM, "-f", "-c", CONFIG, "-s", SOCKET, "-P", f"{RUN}/bird.pid")
    digest = digest_of(argv, text)
    there = machine.services().get(ROLE)
    if there is None or there.state == "dead" or there.digest != digest:
        check(machine, node, text)
        machine.put(text.encode(), CONFIG, mode=0o640)
        machine.run(["rm", "-f", SOCKET])
    changed = start(machine, Service(ROLE, argv, digest=digest), context=context)
    if changed:

        def look() -> str | None:
            return "" if machine.run(["test", "-S", SOCKET], check=False).ok else None

        routing.wait_until(context, machine, ROLE, look)
    return changed


def check(machine: Machine, node: Node, text: str) -> None:
    """Let bird(8) check a configuration.  Raises LabError with the line that it refuses."""
    from testbed.roles import routing

    path = f"{RUN}/testbed-check.conf"
    machine.put(text.encode(), path, mode=0o600)
    done = machine.run([PROGRAM, "-p", "-c", path], check=False)
    said = done.stdout + done.stderr
    found = {int(number): what for number, what in re.findall(PROBLEM, said)}
    routing.refuse_config(ROLE, node, text, found, "bird")
    if not done.ok:
        raise LabError(f"bird cannot read the configuration of {node.name}\n    {said.strip()}")


def neighbors(machine: Machine) -> list[tuple[str, str]]:
    """Return the protocols with neighbours, each with its state."""
    said = machine.run(["birdc", "-s", SOCKET, "show", "protocols"], check=False).stdout
    found = []
    for line in said.splitlines():
        words = line.split()
        with contextlib.suppress(IndexError):
            if words[1] in ("BGP", "OSPF"):
                found.append((f"{words[1]} {words[0]}", " ".join(words[5:]) or words[3]))
    return found


def written(router: RouterOfNode, topology: Topology, node: Node) -> str:
    """Return bird.conf for the settings of a node."""
    from testbed.roles import routing

    number = routing.router_id(router, node)
    lines = [
        f"# {node.name}",
        "log stderr all;",
        *([f"router id {number};"] if number else []),
        "protocol device { scan time 2; }",
        "protocol direct { ipv4; }",
        "protocol kernel {",
        "  merge paths;",
        f"  ipv4 {{ import none; export where source ~ [ {SOURCES} ]; }};",
        "}",
    ]
    if router.ospf:
        lines += _ospf(router.ospf, topology, node)
    if router.bgp:
        lines += _bgp(router.bgp, topology)
    return "\n".join(lines) + "\n"


def _ospf(ospf: Ospf, topology: Topology, node: Node) -> list[str]:
    from testbed.roles import routing

    passive = {port.name for port in routing.ports_of(node, ospf.passive)}
    lines = [
        "protocol ospf v2 lan {",
        "  ipv4 { import all; export none; };",
        f"  area {ospf.area} {{",
    ]
    for port in routing.ospf_ports(ospf, node):
        if port.name in passive:
            lines.append(f'    interface "{port.name}" {{ stub; }};')
            continue
        words = [f"type {BIRD_TYPES[routing.network_type(ospf, topology, port)]};"]
        words += [f"hello {ospf.hello};"] * (ospf.hello is not None)
        words += [f"dead {ospf.dead};"] * (ospf.dead is not None)
        lines.append(f'    interface "{port.name}" {{ {" ".join(words)} }};')
    return [*lines, "  };", "}"]


def _bgp(bgp: Bgp, topology: Topology) -> list[str]:
    from testbed.roles import routing

    own = ", ".join(routing.prefixes(bgp, topology))
    mine = f"net ~ [ {own} ] || " if own else ""
    lines = []
    for count, one in enumerate(bgp.neighbors, 1):
        timers = [f"keepalive time {bgp.keepalive};"] * (bgp.keepalive is not None)
        timers += [f"hold time {bgp.hold};"] * (bgp.hold is not None)
        lines += [
            f"protocol bgp peer{count} {{",
            f"  local as {bgp.asn};",
            f"  neighbor {one.peer} as {one.asn};",
            f"  {' '.join(['connect delay time 1; connect retry time 1;', *timers])}",
            f"  ipv4 {{ import all; export where {mine}source = RTS_BGP; next hop self; }};",
            "}",
        ]
    return lines

"""The role ``docker``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.artifacts.engines import BUILT
from testbed.errors import UsageError
from testbed.limits import Takes
from testbed.nodes.engine import CONTAINERD, SERVICE, words_of
from testbed.nodes.footprint import Footprint
from testbed.requirement import Feature, program
from testbed.roles import firewall
from testbed.roles.base import Again, Offer, OwnLink, Role, not_built
from testbed.roles.docker.checks import DockerChecks
from testbed.roles.docker.network_checks import NetworkChecks
from testbed.roles.docker.networks import ON_LINKS
from testbed.roles.docker.section import (
    DEFAULT_ENGINE,
    DEFAULT_FIREWALL,
    ENGINE_ALIASES,
    ENGINES,
    FIREWALLS,
    MIXED,
    ROLE,
    DockerOfNode,
    DockerSection,
    daemon_of,
    engine_of,
    engines,
    firewall_of,
    firewalls,
    own,
)
from testbed.roles.flannel.section import FlannelSection
from testbed.topology.variant import Option

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node as Machine
    from testbed.requirement import Requirement
    from testbed.roles.container import ContainerProcess, Control, LogLine
    from testbed.roles.part import Part
    from testbed.steps.context import Context
    from testbed.steps.step import Step
    from testbed.topology.model import Node as Spec
    from testbed.topology.model import Topology

BRIDGE = "docker0"
SWARM_BRIDGE = "docker_gwbridge"  # from overlay networks to the node
#: Names that dockerd gives the bridge of a network, the parent of a macvlan or ipvlan network
#: without a link, and the outer ends of containers' links (moby, libnetwork/drivers).
BRIDGE_OF_NETWORK, PARENT_OF_NETWORK, END = "br-[0-9a-f]{12}", "dm-[0-9a-f]{12}", "veth[0-9a-f]{7}"
#: The rule by which a container reaches its own published port.
HAIRPIN = r"^-A POSTROUTING -s (\S+) -d \1 .*-j MASQUERADE$"
#: Settings of the network that dockerd may change (moby, libnetwork).
SYSCTLS = (
    "net.ipv4.ip_forward",
    "net.ipv6.conf.all.forwarding",
    "net.ipv6.conf.default.forwarding",
    "net.bridge.bridge-nf-call-iptables",
    "net.bridge.bridge-nf-call-ip6tables",
)
#: With br_netfilter the packets of all bridges pass iptables (ip-sysctl.rst, bridge-nf-call-*).
FILTERS = ("br_netfilter",)
MODULES = ("overlay", "bridge", "veth", *FILTERS)
#: Programs for users of a node and their tools.
COMMANDS = (
    "docker", "dockerd", "docker-proxy", "docker-init",
    "containerd", "containerd-shim-runc-v2", "ctr", "runc",
)  # fmt: skip
#: The file is there once the kernel's part is loaded.
IP_VS = """\
test -e /proc/net/ip_vs || { command -v modprobe > /dev/null && modprobe -n -q ip_vs; } ||
{ echo no /proc/net/ip_vs; false; }"""
#: Tasks for each published port after the first one of a container: docker-proxy is a process for
#: each of IPv4 and IPv6, of some threads of Go.
PROXY_TASKS = 14
COMPOSE = "compose"  # the artifact; built only on request
PLUGINS = "/usr/libexec/docker/cli-plugins"  # one of the client's search folders
#: Folders of this machine to hide on nodes: client plugins, helpers of its daemon, and root's
#: client settings (other hosts, contexts, proxies).
OWN = (
    *(f"/usr/{name}/docker" for name in ("lib", "libexec", "local/lib", "local/libexec")),
    "/root/.docker",
)
#: A client plugin must describe itself (docker/cli, cli-plugins/metadata).
METADATA = """\
if [ "$1" = docker-cli-plugin-metadata ]; then
  echo '{{"SchemaVersion": "0.1.0", "Vendor": "testbed", "ShortDescription": "not built"}}'
  exit
fi
"""
NO_COMPOSE = not_built("Docker Compose", COMPOSE, METADATA)


def _set(key: str) -> Callable[[dict[str, Any], Topology, Any], None]:
    """Return the change of a key of the section."""

    def change(data: dict[str, Any], topology: Topology, value: str) -> None:
        if all(getattr(own(node), key) is not None for node in topology.with_role(ROLE)):
            raise UsageError(
                f"each Docker node of {topology.name} sets its own {key}, so {value} would "
                "have no effect",
                hint="change the nodes in a copy of the file",
            )
        data.setdefault(ROLE, {})[key] = value

    return change


OPTIONS = (
    Option(
        "docker",
        f"Docker Engine: debian (20.10, or 26.1 on Debian 13), {', '.join(BUILT)}.",
        _set("engine"),
        "no node with Docker, so engine {value} would have no effect",
        "the role docker, like docker-single",
        "engine",
        ENGINES,
        ENGINE_ALIASES,
        metavar="ENGINE",
    ),
    Option(
        "firewall",
        f"Firewall back end of Docker: {', '.join(FIREWALLS)}.",
        _set("firewall"),
        "no node with Docker, so firewall {value} would have no effect",
        "the role docker, like docker-single",
        "packet filter",
        FIREWALLS,
    ),
)


class Docker(Role):
    name = ROLE
    section = DockerSection
    node_section = DockerOfNode
    options = OPTIONS
    checks = (DockerChecks, NetworkChecks)
    creates = ("containers", "compose")
    seen = True
    needs: ClassVar[dict[str, str]] = {
        "docker": "a node with Docker",
        "plain-docker": "a node with Docker, and no flannel",
        "two-docker-nodes": "two nodes with Docker, or more",
    }
    fact_names = ("docker", "firewall")
    programs: ClassVar[dict[str, str]] = {
        "iptables": "iptables",
        "nsenter": "util-linux",
        "curl": "curl",
    }
    kernel = (
        "overlay", "iptables variant", "iptables nat", "iptables conntrack", "iptables addrtype",
    )  # fmt: skip
    optional_kernel: ClassVar[dict[str, str]] = {
        "nf_tables": "docker with firewall iptables-nft or nftables",
        "iptables-legacy": "docker with firewall iptables-legacy",
        "br_netfilter": "docker with --icc=false",
        "vxlan": "overlay networks of a swarm",
        "ip_vs": "virtual addresses and ingress ports of a swarm's services (without it: "
        "--endpoint-mode dnsrr, --publish mode=host)",
        "macvlan": "macvlan networks",
        "ipvlan": "ipvlan networks",
    }
    trials = (
        Feature("ip_vs", IP_VS, "CONFIG_IP_VS"),
        Feature("macvlan", "ip link add t5 link t0 type macvlan mode bridge", "CONFIG_MACVLAN"),
        Feature("ipvlan", "ip link add t6 link t1 type ipvlan mode l2", "CONFIG_IPVLAN"),
    )
    services = (CONTAINERD, SERVICE)
    processes = (*services, "docker-proxy", "runc")
    folders = ("/var/lib/docker", "/var/lib/containerd")
    offers = (
        *(Offer(name) for name in COMMANDS),
        Offer("docker-compose", f"{PLUGINS}/docker-compose", NO_COMPOSE),
        Offer("docker-compose", "/usr/bin/docker-compose", NO_COMPOSE),  # the name of version 1
    )
    hides = OWN

    def offers_on(self, topology: Topology, node: str) -> tuple[Offer, ...]:
        if not topology.nodes[node].compose:
            return self.offers
        return tuple(replace(one, stand_in="") for one in self.offers)  # `up` needs them all

    def images(self, store: Store, topology: Topology, *, build: bool) -> Iterable[str]:
        if not any(node.compose for node in topology.nodes.values()):
            return ()
        from testbed.roles.docker import compose

        return compose.images_of(store, topology, build=build)

    def summary(self, topology: Topology) -> str:
        from testbed.artifacts import release

        def words(node: Spec) -> str:
            engine, firewall = engine_of(topology, node.name), firewall_of(topology, node.name)
            # Debian's engine depends on the Debian release.
            name = release.this().engine if engine == DEFAULT_ENGINE else words_of(engine)
            return name + ("" if firewall == DEFAULT_FIREWALL else f" with {firewall}")

        return " and ".join(dict.fromkeys(words(node) for node in topology.with_role(ROLE)))

    def features(self, topology: Topology) -> AbstractSet[str]:
        plain = FlannelSection.find(topology) is None
        found = {"plain-docker": plain, "two-docker-nodes": len(topology.with_role(ROLE)) > 1}
        return {ROLE, *(word for word, has in found.items() if has)}

    def facts(self, context: Context) -> Mapping[str, str]:
        from testbed.roles.docker import daemon

        return daemon.facts(context)

    def kernel_for(self, topology: Topology) -> Iterable[str]:
        more = (firewall.KERNEL.get(one, ()) for one in firewalls(topology))
        found = [*self.kernel, *(name for names in more for name in names)]
        nodes = topology.with_role(ROLE)
        if any(daemon_of(topology, node.name).get("icc") is False for node in nodes):
            found.append("br_netfilter")  # a bridge's own packets pass iptables only with it
        if DockerSection.of(topology).swarm:
            found.append("vxlan")
        drivers = {one.driver for one in DockerSection.of(topology).networks.values()}
        return [*found, *(name for name in ON_LINKS if name in drivers)]

    def requirements(self, store: Store) -> Iterable[Requirement]:  # noqa: ARG002  none is an artifact
        from testbed import kernel
        from testbed.artifacts import debian

        yield from kernel.cgroups((ROLE,))
        yield kernel.may_raise_limits(("privileged containers",))
        yield program("ps", "procps", ("docker top",), required=False)
        yield from debian.libraries((ROLE,))

    def programs_for(self, topology: Topology) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for one in firewalls(topology):
            found |= firewall.PROGRAMS.get(one, {})
        return {**found, **self.programs}

    def status(self, context: Context, machine: Machine) -> Mapping[str, list[Part]]:
        from testbed.roles.docker import status

        found = {"container": status.containers(context, machine)}
        if networks := status.networks(context, machine):
            found["network"] = networks
        if DockerSection.of(context.topology).swarm:
            found["swarm"] = status.swarm(context, machine)
        return found

    def containers(self, machine: Machine) -> Mapping[str, ContainerProcess]:
        from testbed.roles.docker import processes

        return processes.containers(machine)

    def control(self, machine: Machine) -> Control:
        from testbed.roles.docker.control import DockerControl

        return DockerControl(machine)

    def logged(self, machine: Machine) -> Iterable[str]:
        from testbed.roles.docker import logs

        return logs.names(machine)

    def log(self, machine: Machine, container: str, begin: int) -> tuple[list[LogLine], int]:
        from testbed.roles.docker import logs

        return logs.read(machine, container, begin)

    def created_again(self, old: Topology, new: Topology) -> Iterable[Again]:
        from testbed.roles.docker.network_steps import created_again

        return created_again(old, new)

    def by_hand(
        self, topology: Topology, machine: Machine
    ) -> Iterable[tuple[tuple[str, ...], Any, str]]:
        from testbed.roles.docker import by_hand

        return by_hand.changes(topology, machine)

    def drawn(self, lab: LiveLab, node: str) -> Iterable[Mapping[str, Any]]:
        from testbed.roles.docker import drawn

        return drawn.containers(lab.node(node))

    def link_names(self, lab: LiveLab, node: str) -> Mapping[str, str]:
        from testbed.roles.docker import drawn
        from testbed.roles.docker.networks import on_node

        return drawn.bridges(lab.node(node)) if on_node(lab.topology, node) else {}

    def described(self, facts: Mapping[str, str]) -> Iterable[str]:
        if version := facts.get("docker"):
            yield "several versions of Docker" if version == MIXED else f"Docker {version}"
        if filters := facts.get("firewall"):
            yield "several packet filters" if filters == MIXED else filters

    def links(self, topology: Topology, node: str) -> Iterable[OwnLink]:
        bip = DockerSection.of(topology).bip.get(node)
        yield OwnLink(BRIDGE, "Docker's bridge", bip and bip.ip)
        if DockerSection.of(topology).swarm:
            yield OwnLink(SWARM_BRIDGE, "the swarm's bridge")

    def footprint(self, topology: Topology, node: str) -> Footprint:
        from testbed.roles.docker.networks import BRIDGE_NAME, on_node

        named = (one.driver_opts.get(BRIDGE_NAME) for one in on_node(topology, node))
        bridges = (BRIDGE, SWARM_BRIDGE, BRIDGE_OF_NETWORK, *(re.escape(n) for n in named if n))
        published = [one for c in topology.containers_on(node) for p in c.publish for one in p.each]
        return Footprint(
            daemons=(SERVICE,),
            ports=tuple(f"{one.protocol}/{one.host_port}" for one in published if one.host_port),
            links=(*bridges, PARENT_OF_NETWORK),
            ends=(END,),
            chains=("DOCKER", "DOCKER-.*"),
            rules=(rf"-[io] ({'|'.join(bridges)})\b", r"-j DOCKER\b", HAIRPIN),
            tables=firewall.TABLES,
            sysctls=SYSCTLS,
            modules=MODULES,
            filters=FILTERS,
        )

    def parts(self, topology: Topology, node: str) -> tuple[str, ...]:
        from testbed.nodes.engine import parts_of

        return (*parts_of(engine_of(topology, node)), COMPOSE)

    def versioned(self, topology: Topology) -> tuple[str, ...]:  # noqa: ARG002  (all alike)
        # Not containerd: its artifact reports the version of Debian's docker.io, which may differ.
        return ("dockerd", "docker", "runc")

    def fetch(self, store: Store, topology: Topology) -> None:
        from testbed.nodes.engine import PROGRAMS, program

        for engine in engines(topology):
            for name in PROGRAMS:
                program(store, engine, name)
        if any(daemon_of(topology, node.name) for node in topology.with_role(ROLE)):
            from testbed.roles.docker import validate

            validate.refuse_invalid(store, topology)

    def noticed(self, machine: Machine, running: AbstractSet[str]) -> str:
        if SERVICE not in running:
            return ""
        asked = machine.run(["docker", "version", "--format={{.Server.Version}}"], check=False)
        return f"Docker {asked.stdout.strip()}" if asked.ok else SERVICE

    def service_needs(self, topology: Topology, node: str) -> Mapping[str, tuple[str, ...]]:  # noqa: ARG002  (all alike)
        return {SERVICE: (f"{node}/{CONTAINERD}",)}

    def takes(self, topology: Topology, node: str) -> Takes:
        mine = topology.containers_on(node)
        more = sum(max(0, sum(port.count for port in c.publish) - 1) for c in mine)
        return Takes(files=256, tasks=22 + 14 * len(mine) + PROXY_TASKS * more)

    def ahead(self, store: Store, topology: Topology, node: str) -> list[str]:
        from testbed.roles.docker import daemon

        return daemon.ahead(store, topology, node)

    def lab_steps(self, topology: Topology) -> Iterable[Step]:
        from testbed.roles.docker.containers import reach_steps

        return reach_steps(topology)

    def steps(self, topology: Topology, node: Spec) -> Iterable[Step]:
        from testbed.roles.docker import daemon

        return daemon.steps(topology, node)

"""Create, find and remove nodes that are Pods of an existing Kubernetes cluster.

The cluster is the current context of ``$KUBECONFIG``, as for kubectl.  A lab is a Pod for each
node, and a Job that owns them (:mod:`testbed.nodes.kubernetes.manifests`), in a namespace.  Nothing
of the cluster itself is changed.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from testbed.errors import LabError, MachineError, UsageError
from testbed.nodes import wiring
from testbed.nodes.base import Node, NodeSpec, Provider, Setup, has_ended
from testbed.nodes.kubernetes import CONTEXT, IMAGE, KEEP_ALIVE
from testbed.nodes.kubernetes.remembered import Remembered
from testbed.nodes.kubernetes.sites import Sites

# Modules for clusters are imported where needed: other labs don't load them.

if TYPE_CHECKING:
    from testbed.faults.tunnels import Tunnels
    from testbed.leftover import Judge, Leftover
    from testbed.nodes.base import Running
    from testbed.nodes.kubernetes.networks import Underlay
    from testbed.nodes.kubernetes.node import PodNode
    from testbed.nodes.kubernetes.pods import Pod
    from testbed.nodes.kubernetes.site import Janitor, Site
    from testbed.nodes.wiring import Difference
    from testbed.requirement import Requirement
    from testbed.topology.model import Topology
    from testbed.topology.ports import Port

PYTHON = "/usr/bin/python3"  # in the image of nodes
UDP = 10.0  # seconds for packets between two Pods
THREADS = 16


class KubernetesProvider(Provider):
    """Nodes as Pods of a cluster."""

    name = "kubernetes"
    hosts = True
    shapes = True
    options = (IMAGE, KEEP_ALIVE)

    def __init__(self, setup: Setup) -> None:
        self._store = setup.store
        self._state = setup.state
        self._chosen = setup.chosen
        self._remembered = Remembered(setup.state)
        self._sites = Sites(self._remembered)
        self._topologies: dict[str, Topology] = {}  # of labs that are created or updated
        self._reached: dict[str, PodNode] = {}  # by the Pod's UID
        self._addresses: dict[str, dict[str, str]] = {}  # of Pods by node, of each lab
        self._lock = threading.Lock()

    @classmethod
    def of(cls, setup: Setup) -> Self:
        return cls(setup)

    def probe(self) -> list[Requirement]:
        from testbed.nodes.kubernetes import needs, settings

        return needs.probe(self._sites.cluster(settings.of()), self.name)

    # -- finding ----------------------------------------------------------

    def nodes(self, lab: str) -> dict[str, Node]:
        site = self._sites.find(lab)
        if site is None:
            return {}
        found = {name: pod for name, pod in site.used().items() if pod.running}
        self._addresses[lab] = {name: pod.address for name, pod in found.items()}
        if found:
            self._sites.keep_used(site)
        return {name: self._reach(site, pod) for name, pod in found.items()}

    def _reach(self, site: Site, pod: Pod) -> PodNode:
        from testbed.nodes.kubernetes.node import PodNode

        with self._lock:
            if pod.uid not in self._reached:
                self._reached[pod.uid] = PodNode(
                    site.entrance(
                        pod,
                        agent=lambda: self._store.binary("testbed-agent"),
                        ended=lambda why: has_ended(pod.node, site.lab, why),
                    ),
                    lab=site.lab,
                    folder=self._remembered.folder(site.lab),
                    init=lambda: self._store.binary("testbed-init"),
                )
            return self._reached[pod.uid]

    def ended(self, lab: str) -> dict[str, str]:
        site = self._sites.find(lab)
        return {p.node: p.ended for p in site.pods().values() if p.ended} if site else {}

    def labs(self) -> list[str]:
        # A lab with a record and no place is one of another provider: `down` is not to remove
        # the lab of this name that another machine has created.
        there = self._sites.elsewhere()
        others = {lab for lab in there if not (self._state / f"{lab}.json").exists()}
        return sorted({*self._remembered.labs(), *others})

    def fabric(self, lab: str) -> Node | None:
        del lab
        return None

    @classmethod
    def leftovers(cls, judge: Judge) -> Iterable[Leftover]:
        yield from Remembered(judge.own).leftovers(judge)
        if CONTEXT in os.environ:
            from testbed.nodes.kubernetes import left

            yield from left.abandoned({place.namespace for _, place in Remembered(judge.own)})

    # -- making -----------------------------------------------------------

    def prepare(self, lab: str, specs: Sequence[NodeSpec]) -> None:
        del lab
        if specs:
            self._store.binary("testbed-agent")
            self._store.binary("testbed-init")

    def create_fabric(self, lab: str, topology: Topology) -> None:
        from testbed.nodes.kubernetes import networks

        networks.refuse(topology)
        self._topologies[lab] = topology
        site = self._sites.find(lab)
        janitor = site.janitor() if site is not None else None
        if site is not None and janitor is not None:
            self._refuse_other(lab, janitor)
            site.find_hosts(topology)
            if self._remembered.place(lab) is None:  # another machine has created it
                place = replace(site.place, context=site.cluster.current())
                self._remembered.keep(lab, place)
            for node in self.nodes(lab).values():
                self._introduce(lab, topology, node)
            return
        from testbed.nodes.kubernetes import settings

        self._sites.make(
            lab,
            settings.of(self._chosen),
            expired=site,
            privileged=bool(privileged_nodes(topology)),
            specs=[NodeSpec(one.name, "", one.cpus, one.memory) for one in topology.nodes.values()],
            check=lambda site: site.find_hosts(topology),
        )

    def _refuse_other(self, lab: str, janitor: Janitor) -> None:
        """Raise UsageError for an option that a lab could only have from its beginning."""
        from testbed.nodes.kubernetes import settings

        given = settings.of(self._chosen)
        for option, wanted, there in (
            (IMAGE, given.image, janitor.image),
            (KEEP_ALIVE, given.terms.idle, janitor.idle),
        ):
            if option.name in self._chosen and wanted != there:
                unit = " s" if option is KEEP_ALIVE else ""
                raise UsageError(
                    f"lab {lab} was created with {there}{unit}",
                    where=f"--{option.name}",
                    hint=f"leave it out, or `testbed down {lab}` first",
                )

    def together(self, node: str) -> bool:
        del node
        return True  # one look at all Pods while they start

    def create(self, lab: str, specs: Sequence[NodeSpec]) -> dict[str, Node]:
        site, topology = self._sites.find(lab), self._topologies.get(lab)
        if site is None:
            raise LabError(
                f"lab {lab} has no place in a cluster", hint=f"`testbed up -l {lab}` creates it"
            )
        privileged = privileged_nodes(topology) if topology else {spec.name for spec in specs}
        site.create(specs, privileged)
        started = site.started([spec.name for spec in specs])
        made = {name: self._reach(site, pod) for name, pod in started.items()}
        there = self.nodes(lab)
        with ThreadPoolExecutor(THREADS) as pool:
            own = dict(zip(made, pool.map(self._underlay, made.values()), strict=True))
        for spec in specs:
            node = made[spec.name]
            node.about = f"on {node.pod.worker}, MTU {own[spec.name].inner}"
            if given := defaults(spec, node.pod):
                node.about += f", {given} by the namespace's defaults"
        self._try_udp(made, own)
        if topology is not None:
            for name, other in there.items():
                if name not in made:
                    self._introduce(lab, topology, other)
        return dict(made)

    def _underlay(self, node: PodNode) -> Underlay:
        return self._look(node)[0]

    @staticmethod
    def _look(node: PodNode) -> tuple[Underlay, list[Mapping[str, object]]]:
        """Return a Pod's own interface, and the routes of its main table."""
        import json

        from testbed.nodes.kubernetes import networks

        links, routes = node.outside.run(networks.LOOK).out.split(b"\0")
        found = networks.underlay(node.pod.address, json.loads(links))
        return found, json.loads(routes.strip() or b"[]")

    def _try_udp(self, nodes: Mapping[str, PodNode], own: Mapping[str, Underlay]) -> None:
        """Check that UDP passes between the Pods, each to the next, before anything else.

        Raises LabError with the two Pods, and what to do.
        """
        if len(nodes) < 2:
            return
        from testbed.nodes.kubernetes import networks

        listening: list[Running] = []
        with contextlib.ExitStack() as stack:
            for node in nodes.values():
                argv = [PYTHON, "-S", "-c", networks.LISTEN, node.pod.address]
                listening.append(stack.enter_context(node.outside.spawn(argv)))
            ring = sorted(nodes.values(), key=lambda node: (node.pod.worker, node.name))
            pairs = list(zip(ring, [*ring[1:], ring[0]], strict=True))
            with ThreadPoolExecutor(THREADS) as pool:
                for one in pool.map(lambda pair: self._ask_udp(pair[0], pair[1], own), pairs):
                    if one is not None:
                        raise one

    @staticmethod
    def _ask_udp(a: PodNode, b: PodNode, own: Mapping[str, Underlay]) -> LabError | None:
        from testbed.nodes.kubernetes import networks

        most = min(own[a.name].mtu, own[b.name].mtu) - 28  # headers of IPv4 and UDP
        argv = [PYTHON, "-S", "-c", networks.ASK, a.pod.address, b.pod.address]
        said = a.outside.run([*argv, str(most), str(UDP)], timeout=UDP + 30).stdout.split()
        if str(most) in said:
            return None
        pair = f"from {a.name} on {a.pod.worker} to {b.name} on {b.pod.worker}"
        if said:
            return LabError(
                f"packets of {most + 28} bytes, the MTU of the Pods, do not pass {pair}",
                hint="set the MTU of the cluster's network plugin to what its hosts' network takes",
            )
        return LabError(
            f"UDP to port {networks.PORT} does not pass {pair}",
            hint=f"allow UDP {networks.PORT} between Pods: look for NetworkPolicies in the "
            "namespace, and for firewalls between the cluster's nodes",
        )

    # -- networks ---------------------------------------------------------

    def connect(self, lab: str, topology: Topology, node: Node) -> None:
        from testbed.faults.links import need_netem
        from testbed.nodes.kubernetes import networks

        pod = pod_of(node)
        if "netem" in map(wiring.queue_of, topology.nodes[node.name].ports):
            need_netem(pod)
        own, routes = self._look(pod)
        lines = [] if pod.pod.privileged else networks.aside(own, routes)
        _create_links(pod, own, topology.nodes[node.name].ports, lines)
        self._introduce(lab, topology, node)
        wiring.set_up(topology, node)

    def _introduce(self, lab: str, topology: Topology, node: Node) -> None:
        """Tell a node's networks where its peers are, as far as it does not know it."""
        from testbed.faults.tunnels import follow
        from testbed.nodes.kubernetes import networks

        if node.name not in topology.nodes:
            return  # of an older file; it is removed
        wanted = networks.peers(topology, node.name, self._addresses.get(lab, {}))
        there = networks.entries(node.run(networks.LOOK_PEERS).out)
        if lines := networks.corrections(wanted, there):
            node.run(["bridge", "-batch", "-"], input="\n".join(lines).encode())
            follow(pod_of(node).outside, self._addresses.get(lab, {}))

    def restore(
        self, lab: str, topology: Topology, node: Node, differences: Sequence[Difference]
    ) -> None:
        missing = {one.index for one in differences if one.kind == "link" and one.seen == "missing"}
        if missing:
            pod, ports = pod_of(node), topology.nodes[node.name].ports
            _create_links(pod, self._underlay(pod), [ports[index] for index in sorted(missing)])
        self._introduce(lab, topology, node)
        wiring.restore(topology, node, differences, missing)

    def tunnels(self, nodes: Mapping[str, Node]) -> Tunnels:
        from testbed.faults.tunnels import Tunnels
        from testbed.nodes.kubernetes.networks import PORT

        pods = {name: pod_of(node) for name, node in nodes.items()}
        return Tunnels(
            PORT,
            {name: node.pod.address for name, node in pods.items()},
            {name: node.outside for name, node in pods.items()},
        )

    def pause(self, lab: str, node: str) -> None:
        raise MachineError(
            f"{node} of {lab} cannot be stopped: the Kubernetes API cannot pause a Pod",
            hint="stop a service (NODE/SERVICE), or cut the node off (`testbed fault partition`)",
        )

    # -- removing ---------------------------------------------------------

    def destroy(self, lab: str, nodes: Iterable[str] | None = None) -> None:
        names = None if nodes is None else set(nodes)
        site = self._sites.find(lab)
        if site is None:
            return
        if names is None:
            self._sites.remove(site)
        elif names:
            site.remove_nodes(names)
        self._close(site, names)

    def _close(self, site: Site, names: Collection[str] | None) -> None:
        """Close the connections to Pods that are gone."""
        with self._lock:
            gone = [
                uid
                for uid, node in self._reached.items()
                if node.lab == site.lab and (names is None or node.name in names)
            ]
            nodes = [self._reached.pop(uid) for uid in gone]
        for node in nodes:
            node.close()


def privileged_nodes(topology: Topology) -> set[str]:
    """Return the nodes that need a privileged Pod; the others need a few capabilities.

    Kernel settings are read-only in other Pods, and daemons of roles create namespaces and mounts.
    """
    of_parts = {space.node for space in topology.namespaces.values()}
    of_parts |= {bridge.node for bridge in topology.bridges.values()}
    of_parts |= {veth.node for veth in topology.veths}
    return of_parts | {
        name
        for name, node in topology.nodes.items()
        if node.roles
        or node.sysctls
        or wiring.settings(topology, name)
        or wiring.settings6(topology, name)
    }


def defaults(spec: NodeSpec, pod: Pod) -> str:
    """Return the limits of a Pod that a LimitRange has set, in words; empty for none."""
    asked = {"cpu": spec.cpus, "memory": spec.memory}
    return ", ".join(f"{name} {most}" for name, most in pod.limits if asked.get(name) is None)


def pod_of(node: Node) -> PodNode:
    """Return a node with its precise type."""
    from testbed.nodes.kubernetes.node import PodNode

    assert isinstance(node, PodNode), node
    return node


def _create_links(
    node: PodNode, own: Underlay, ports: Iterable[Port], first: Sequence[str] = ()
) -> None:
    """Create the VXLAN devices of ports.  ``first`` are ``ip -batch`` lines to run before."""
    from testbed.nodes.kubernetes import networks

    place = "netns 1 " if node.pod.privileged else ""
    lines = [*first, *(networks.link(port, own, place) for port in ports)]
    if lines:
        node.outside.run(["ip", "-batch", "-"], input="\n".join(lines).encode())

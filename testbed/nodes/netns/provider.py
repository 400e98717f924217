"""Create, find and remove namespace nodes and the fabric that connects them.

The fabric is a namespace node too, without an uplink: it holds one bridge per
network (``br-NETWORK``), and a port for each node, named after the node.  No part
of a lab is ever in the machine's own network namespace.  Links are set by
iproute2 in batches, one process per node: importing a netlink library would take
a quarter of a lab's whole start.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from testbed.errors import CommandError, LabError
from testbed.limits import Takes
from testbed.nodes import wiring
from testbed.nodes.base import Node, NodeSpec, OneByOne, Setup
from testbed.nodes.keeper import COMMANDS
from testbed.nodes.links import link_name, port_name
from testbed.nodes.netns import cgroups, find, vlans
from testbed.nodes.netns.node import (
    HELPERS,
    PROGRAMS,
    NetnsNode,
    is_hidden,
    path_folders,
    program_folders,
)
from testbed.nodes.request import ENVIRONMENT
from testbed.nodes.wiring import Difference
from testbed.process import run
from testbed.requirement import Requirement

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.leftover import Judge, LabPart, Leftover
    from testbed.nodes.place import Place
    from testbed.topology.model import Topology
    from testbed.topology.ports import Port

FABRIC = "fabric"
MACHINE_ID = Path("/etc/machine-id")
#: Start-up files of shells in root's home folder; they would set this machine's PATH.
START_UP = (".profile", ".bash_profile", ".bash_login", ".bashrc", ".zshenv", ".zprofile", ".zshrc")
#: The way out of a lab (:mod:`testbed.nodes.netns.uplink`): its program, and its name as a node,
#: which no other node can have.
UPLINK = "fabric.uplink"
NAT = "slirp4netns"
TEMPORARY = "_"  # begins names of links that are about to be renamed
LAYERS = "layers"  # folder of an unpacked image (testbed.artifacts.image_tree)
BUSY_SECONDS = 30.0  # how long a cgroup may stay busy after all of its node was killed


def _no_images(image: str) -> Path:
    raise LabError(f"no place for the layers of {image}", hint="remove the image")


def _layers(store: Store, image: str) -> Path:
    """Return the folder with the layers of an image; unpack them first if necessary."""
    from testbed.artifacts.image_tree import ImageTree

    tree = ImageTree(image, store.image(image))
    return store.keep(tree.name, tree)


def _no_nat() -> Path:
    raise LabError(f"no program {NAT}, which a lab with an uplink needs", hint="remove the uplink")


class NetnsProvider(OneByOne):
    """Nodes as namespaces of this machine.

    ``state`` is the state folder; labs of other state folders are ignored.
    ``init`` returns the path of the ``testbed-init`` program when it is first needed.
    ``exposed`` returns the folders of this machine with programs and images for nodes.
    ``kind`` distinguishes a lab's machines from the nodes that virtual machines run in.
    ``nat`` returns the path of slirp4netns, for labs with an uplink.
    ``layers`` returns the folder with the layers of an image.
    """

    name = "netns"
    shares_kernel = True
    shares_programs = True
    shapes = True
    uplinks = True
    vlans = True
    packages = True
    images = True
    binds = True
    takes = Takes(tasks=2)  # pid 1, and a command
    processes = (os.fsdecode(find.PROGRAM), NAT)

    @classmethod
    def running(cls) -> Iterable[tuple[str, Path]]:
        return {(init.lab, Path(init.state)) for init in find.inits()}

    @classmethod
    def leftovers(cls, judge: Judge) -> Iterable[Leftover]:
        from testbed.nodes.netns.leftovers import Search

        search = Search(judge)
        yield from search.processes()
        yield from search.cgroups()

    @classmethod
    def lab_parts(cls) -> Iterable[LabPart]:
        from testbed.leftover import LabPart

        before = list(find.inits())
        folders = [
            (h.mount / cgroups.TOP, cgroups.folders(h.mount / cgroups.TOP))
            for h in cgroups.hierarchies()
        ]
        # Labs of others have started and ended since the first look at the processes.
        inits = [*before, *find.inits()]
        for init in dict.fromkeys(inits):
            name = f"{init.kind} {init.lab}/{init.node}"
            yield LabPart("process", name, Path(init.state), init.pid)
        owners = {cgroups.folder_name(one.lab, Path(one.state)): Path(one.state) for one in inits}
        for top, labs in folders:
            if not labs and top.is_dir():
                yield LabPart("cgroup", str(top), None)
            for lab in sorted(labs):
                yield LabPart("cgroup", str(top / lab), owners.get(lab))

    @classmethod
    def task_limits(cls) -> list[tuple[str, int, int]]:
        return [(str(file), most, used) for file, most, used in cgroups.task_limits()]

    @classmethod
    def of(cls, setup: Setup) -> Self:
        store = setup.store
        return cls(
            setup.state,
            lambda: store.binary("testbed-init"),
            lambda: store.folders,
            nat=lambda: store.binary(NAT),
            layers=functools.partial(_layers, store),
        )

    def __init__(
        self,
        state: Path,
        init: Callable[[], Path],
        exposed: Callable[[], Iterable[Path]] = tuple,
        *,
        kind: find.Kind = "node",
        nat: Callable[[], Path] = _no_nat,
        layers: Callable[[str], Path] = _no_images,
    ) -> None:
        self._state = state.resolve()
        self._kind: find.Kind = kind
        self._init = init
        self._nat = nat
        self._layers = layers
        self._exposed = exposed
        self._fabrics: dict[str, NetnsNode] = {}  # those found, by lab
        self._linking = threading.Lock()

    def probe(self) -> list[Requirement]:
        root = os.geteuid() == 0
        return [
            Requirement(
                "root",
                root,
                "only root can create namespaces, links and mounts",
                "" if root else "run testbed as root, for example with sudo",
                needed_by=("netns",),
            )
        ]

    # -- finding ----------------------------------------------------------

    def _ours(self, lab: str | None = None) -> list[find.Init]:
        return list(find.inits(state=str(self._state), lab=lab))

    def nodes(self, lab: str) -> dict[str, Node]:
        return dict(self.found(lab))

    def found(self, lab: str) -> dict[str, NetnsNode]:
        """Return :meth:`nodes` with their precise type."""
        return {i.node: NetnsNode(i) for i in self._ours(lab) if i.kind == self._kind}

    def fabric(self, lab: str) -> NetnsNode | None:
        known = self._fabrics.get(lab)
        if known is not None and known.init.alive():  # every node asks: no search for each
            return known
        for init in self._ours(lab):
            if init.kind == "fabric":
                self._fabrics[lab] = NetnsNode(init)
                return self._fabrics[lab]
        return None

    def labs(self) -> list[str]:
        names = {init.lab for init in self._ours()}
        for folder in cgroups.labs():
            name = folder.rpartition(".")[0]
            if cgroups.folder_name(name, self._state) == folder:
                names.add(name)
        return sorted(names)

    # -- making -----------------------------------------------------------

    def prepare(self, lab: str, specs: Sequence[NodeSpec]) -> None:
        del lab
        for image in {spec.image for spec in specs if spec.image}:
            self._layers(image)

    def ports(self, topology: Topology, node: str) -> list[str]:
        ports = topology.nodes[node].ports
        return [port_name(node, one.index) for one in ports if not self._far(topology, one)]

    def direct(self, topology: Topology, node: str) -> dict[str, str]:
        ports = topology.nodes[node].ports
        return {one.name: far.node for one in ports if (far := self._far(topology, one))}

    def _launch(self, kind: str, lab: str, spec: NodeSpec, *more: str) -> NetnsNode:
        folder = cgroups.folder_name(lab, self._state)
        exposed = [path for path in self._folders() if is_hidden(path)]
        argv: list[str | Path] = [self._init(), kind, lab, spec.name, spec.digest, str(self._state)]
        argv += ["machine-id", machine_id(self._state, lab, spec.name)]
        image = self._layers(spec.image) if spec.image else None
        if image is not None:
            argv += ["image", image / LAYERS]
        elif kind == "node":
            argv += own_programs((*spec.hidden, *COMMANDS), spec.layers)
            argv += [word for layer in spec.layers for word in ("layer", str(layer))]
        if kind == "node":
            for bind in spec.binds:
                argv += ["bind-ro" if bind.read_only else "bind", bind.source]
            exposed = [] if image else [*tops_of_programs(), *self._folders()]
        try:
            argv += cgroups.create(folder, spec.name, cpus=spec.cpus, memory=spec.memory)
            done = run(
                [*argv, *more, *(word for path in exposed for word in ("expose", path))],
                timeout=60,
            )
        except LabError:
            cgroups.remove(folder, spec.name)
            raise
        init = find.at(int(done.stdout))
        if init is None:
            raise LabError(f"node {spec.name} of lab {lab} ended right after it was created")
        node = NetnsNode(init)
        if image is not None:
            from testbed.artifacts.image_tree import environment

            node.keep_environment(environment(image))
        elif kind == "node":
            node.offer(dict.fromkeys(COMMANDS, self._init()))
        if spec.binds:
            node.bind(spec.binds)
        return node

    def network_of(self, lab: str, node: Node) -> Place:
        del lab
        return node.network if isinstance(node, NetnsNode) else node

    def _folders(self) -> list[Path]:
        """Return the folders with files for nodes, except this machine's program folders."""
        given = (path.resolve() for path in self._exposed())
        mine = tops_of_programs()
        return [path for path in given if path.is_dir() and not any(map(path.is_relative_to, mine))]

    def create_fabric(self, lab: str, topology: Topology) -> None:
        fabric = self.fabric(lab)
        if fabric is None:
            fabric = self._launch("fabric", lab, NodeSpec(FABRIC, "-"))
        lines = []
        there = _links(fabric)
        filtered = vlans.networks(topology)
        for network in self._bridged(topology):
            bridge = bridge_of(network)
            filters = vlans.FILTERS if network in filtered else ""
            if bridge not in there:
                lines.append(f"link add name {bridge} type bridge mcast_snooping 0 {filters}")
            elif filters != there[bridge]["filters"]:  # a kernel without the filter refuses both
                lines.append(f"link set dev {bridge} type bridge {filters or vlans.PLAIN}")
            if bridge not in there or there[bridge]["state"] == "down":
                lines.append(f"link set dev {bridge} up")
        if lines:
            self._batch(fabric.init.pid, FABRIC, lines)
        if topology.uplinks or UPLINK in there:
            self._keep_uplink(lab, topology, fabric)

    def _keep_uplink(self, lab: str, topology: Topology, fabric: NetnsNode) -> None:
        """Create the uplink of a lab again if a part of it is missing, or remove it."""
        from testbed.nodes.netns.uplink import Uplink

        wanted = Uplink(topology)
        there = self._uplink(lab)
        if there and not wanted.missing(there, _links(fabric)):
            return
        folder = cgroups.folder_name(lab, self._state)
        if there:
            self._kill(lab, [there.init])
            cgroups.remove(folder, UPLINK)
        if not topology.uplinks:
            return
        program = self._nat()
        made = self._launch("uplink", lab, NodeSpec(UPLINK, wanted.digest))
        self._plug(fabric, wanted.ports(), wanted.plugs(made))
        wanted.set_up(made, program, cgroups.places(folder, UPLINK))

    def _uplink(self, lab: str) -> NetnsNode | None:
        return next((NetnsNode(one) for one in self._ours(lab) if one.kind == "uplink"), None)

    def differences(self, lab: str, topology: Topology) -> dict[str, list[Difference]]:
        fabric = self.fabric(lab)
        there = {} if fabric is None else _links(fabric)
        found: dict[str, list[Difference]] = {}
        if topology.uplinks:
            from testbed.nodes.netns.uplink import Uplink

            gone = Uplink(topology).missing(self._uplink(lab), there)
            found[""] = [Difference("network", name, seen) for name, seen in gone.items()]
        for network in self._bridged(topology):
            seen = there.get(bridge_of(network), {"state": "missing"})["state"]
            if seen in ("missing", "down"):
                found.setdefault("", []).insert(0, Difference("network", network, seen))
        filtered = vlans.networks(topology) if fabric else set()
        tagged = vlans.read(fabric.run(vlans.LOOK).json() or []) if fabric and filtered else {}
        for node in topology.nodes.values():
            for index, port in enumerate(node.ports):
                if self._far(topology, port):  # it is on no bridge
                    continue
                name = port_name(node.name, index)
                outside = there.get(name)
                if outside is None:
                    seen = "missing"
                elif outside["master"] != bridge_of(port.network):
                    seen = "detached"
                else:
                    seen = outside["state"]
                has = tagged.get(name, {})
                target = vlans.wanted(port) if port.network in filtered else has
                if seen not in ("missing", "detached") and has != target:
                    seen = f"VLANs {vlans.words(has)}, not {vlans.words(target)}"
                if seen in ("missing", "detached", "down") or seen.startswith("VLANs"):
                    what = f"port of {port.name} on {port.network}"
                    found.setdefault(node.name, []).append(Difference("port", what, seen, index))
        return found

    def restore(
        self, lab: str, topology: Topology, node: Node, differences: Sequence[Difference]
    ) -> None:
        assert isinstance(node, NetnsNode)
        anew = self.plug_in_again(lab, topology, node, differences)
        wiring.restore(topology, node, differences, anew)

    def create_one(self, lab: str, spec: NodeSpec) -> NetnsNode:
        return self._launch(self._kind, lab, spec)

    def create_tied(self, lab: str, spec: NodeSpec) -> NetnsNode:
        """Create one node that ends when this process ends, even if it is killed."""
        return self._launch(self._kind, lab, spec, "tied", str(os.getpid()))

    def connect(self, lab: str, topology: Topology, node: Node) -> None:
        assert isinstance(node, NetnsNode)
        self.plug_in(lab, topology, node)
        wiring.set_up(topology, node)

    def plug_in(
        self,
        lab: str,
        topology: Topology,
        node: NetnsNode,
        *,
        machine: str = "",
        inside: Callable[[int], str] | None = None,
        only: Collection[int] | None = None,
    ) -> None:
        """Connect a node to the fabric with each of its ports.

        ``machine`` is set if the node is the cell of a virtual machine of that name; ``inside``
        returns the name of a link in a cell by its number.  ``only`` limits the
        connection to these link numbers.
        """
        machine = machine or node.name
        fabric = self._need_fabric(lab)
        outside, ports = [], []
        for index, port in enumerate(topology.nodes[machine].ports):
            if only is not None and index not in only:
                continue
            if far := self._far(topology, port):
                self._link(fabric, topology, node, port, far)
                continue
            ports.append(port_name(machine, index))
            # The link between a virtual machine and the fabric needs no address.
            mac = f"address {port.hardware} " if self._kind == "node" else ""
            name, mtu = inside(index) if inside else port.name, topology.networks[port.network].mtu
            outside += [
                veth(ports[-1], f"{name} {mac}netns {node.init.pid}", mtu),
                f"link set dev {ports[-1]} master {bridge_of(port.network)} up",
            ]
        if outside:
            self._plug(fabric, ports, outside)
            self._set_vlans(fabric, topology, machine)

    def _set_vlans(self, fabric: NetnsNode, topology: Topology, machine: str) -> None:
        """Give the ports of a machine on the fabric their VLANs."""
        wanted = self._filtered(topology, machine)
        if not wanted:
            return
        seen = vlans.read(fabric.run(vlans.LOOK).json() or [])
        lines = [
            line
            for name, port in wanted.items()
            for line in vlans.lines(name, port, seen.get(name, {}))
        ]
        if lines:
            fabric.run(["bridge", "-batch", "-"], input="\n".join(lines).encode())

    @staticmethod
    def _filtered(topology: Topology, machine: str) -> dict[str, Port]:
        """Return a machine's ports on networks with VLANs, by their names on the fabric."""
        filtered = vlans.networks(topology)
        ports = topology.nodes[machine].ports
        return {port_name(machine, one.index): one for one in ports if one.network in filtered}

    def plug_in_again(
        self,
        lab: str,
        topology: Topology,
        node: NetnsNode,
        differences: Sequence[Difference],
        *,
        machine: str = "",
        inside: Callable[[int], str] | None = None,
    ) -> set[int]:
        """Restore links between a node and the fabric; return the numbers of recreated ones.

        ``machine`` and ``inside`` are as in :meth:`plug_in`.
        """
        machine = machine or node.name
        fabric = self._need_fabric(lab)
        ports = topology.nodes[machine].ports
        outside = [one for one in differences if one.kind == "port"]
        gone = {one.index for one in outside if one.seen == "missing"}
        if self._kind == "node":
            gone |= {
                one.index for one in differences if one.kind == "link" and one.seen == "missing"
            }
        for index in gone:
            if self._far(topology, ports[index]):
                continue
            # Only one end is in place: a user has moved or renamed the other.
            fabric.run(["ip", "link", "delete", "dev", port_name(machine, index)], check=False)
            name = inside(index) if inside else ports[index].name
            node.run(["ip", "link", "delete", "dev", name], check=False)
        lines = [
            f"link set dev {port_name(machine, one.index)} "
            f"master {bridge_of(ports[one.index].network)} up"
            for one in outside
            if one.index not in gone
        ]
        if lines:
            self._batch(fabric.init.pid, FABRIC, lines)
        if gone:
            self.plug_in(lab, topology, node, machine=machine, inside=inside, only=gone)
        elif outside:
            self._set_vlans(fabric, topology, machine)
        return gone

    def _far(self, topology: Topology, port: Port) -> Port | None:
        """Return the other end of a link between two nodes of ours, which is on no bridge."""
        far = topology.far(port)
        if far is None or self._kind != "node" or port.shaping:  # its queues are for faults
            return None
        makers = {topology.provider_of(one.node) for one in (port, far)}
        return far if makers == {self.name} else None

    def _bridged(self, topology: Topology) -> list[str]:
        """Return the networks and links that have a bridge on the fabric."""
        direct = {
            port.network
            for node in topology.nodes.values()
            for port in node.ports
            if port.peer and self._far(topology, port)
        }
        return [name for name in topology.networks if name not in direct]

    def _link(
        self, fabric: NetnsNode, topology: Topology, node: NetnsNode, port: Port, far: Port
    ) -> None:
        """Give a node its end of a link.

        A pair is created on the fabric, where the other end waits for its node. Both ends of a pair
        end with one of their nodes.
        """
        ends = {one: port_name(one.node, one.index) for one in (port, far)}
        with self._linking:
            lines = []
            peer = None
            if ends[port] not in _links(fabric):
                peer = self._unlinked(far, fabric.init.lab)
                lines.append(veth(ends[port], ends[far]))
            lines.append(_moved(ends[port], node, port))
            if peer:
                lines.append(_moved(ends[far], peer, far))
            self._batch(fabric.init.pid, FABRIC, lines)
            if peer:
                lines = [*wiring.lines_of(far), *wiring.default_route(topology, far.node)]
                self._batch(peer.init.pid, far.node, lines)

    def _unlinked(self, far: Port, lab: str) -> NetnsNode | None:
        """Remove the end of a broken link from its node, and return the node if it had one."""
        peer = self.found(lab).get(far.node)
        if peer is None:
            return None
        try:
            self._batch(peer.init.pid, far.node, [f"link delete dev {far.name}"])
        except CommandError:
            return None  # it waits for its end
        return peer

    def _need_fabric(self, lab: str) -> NetnsNode:
        fabric = self.fabric(lab)
        if fabric is None:
            raise LabError(
                f"the fabric of lab {lab} does not run", hint=f"`testbed up -l {lab}` restores it"
            )
        return fabric

    def _plug(self, fabric: NetnsNode, ports: list[str], lines: list[str]) -> None:
        try:
            self._batch(fabric.init.pid, FABRIC, lines)
        except CommandError as error:
            if "File exists" not in error.stderr:
                raise
            # A node of that name has just ended; the kernel removes its links a little later.
            for name in ports:
                fabric.run(["ip", "link", "delete", "dev", name], check=False)
            self._batch(fabric.init.pid, FABRIC, lines)

    def _batch(self, pid: int, where: str, lines: list[str]) -> None:
        # From this machine's pid namespace: the far end is named by a pid as seen here.
        argv = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-batch", "-"]
        try:
            run(argv, input="\n".join(lines).encode(), timeout=60)
        except CommandError as error:
            raise CommandError(
                ["ip", *_failed_line(error.stderr, lines).split()],
                where=where,
                status=error.status,
                stderr=error.stderr,
            ) from None

    # -- faults -----------------------------------------------------------

    def pause(self, lab: str, node: str) -> None:
        self._freeze(lab, node, on=True)

    def resume(self, lab: str, node: str) -> None:
        self._freeze(lab, node, on=False)

    def _freeze(self, lab: str, node: str, *, on: bool) -> None:
        cgroups.need_freezer().set(cgroups.folder_name(lab, self._state), node, on=on)

    def paused(self, lab: str) -> list[str]:
        freezer = cgroups.freezer()
        return [] if freezer is None else freezer.stopped(cgroups.folder_name(lab, self._state))

    # -- removing ---------------------------------------------------------

    def destroy(self, lab: str, nodes: Iterable[str] | None = None) -> None:
        wanted = None if nodes is None else sorted(set(nodes))
        folder = cgroups.folder_name(lab, self._state)
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            others = self._end(lab, wanted)
            try:
                for name in [None] if wanted is None else wanted:
                    if name not in others:
                        cgroups.remove(folder, name, timeout=0.5)
            except LabError:
                # A half-created node whose creator was killed; only a complete node counts.
                if time.monotonic() > deadline:
                    raise
            else:
                return

    def _end(self, lab: str, wanted: list[str] | None) -> set[str]:
        """Kill existing nodes and wait for their end; return the names of nodes of other kinds.

        A node of another kind belongs to another provider, but its cgroup is at the same place.
        """
        there = self._ours(lab)
        inits = [i for i in there if wanted is None or (i.kind == self._kind and i.node in wanted)]
        # The fabric last: connections that it cuts off before both ends are closed live on in the
        # kernel for minutes, and their nodes' network namespaces with them.
        self._kill(lab, [init for init in inits if init.kind != "fabric"])
        self._kill(lab, [init for init in inits if init.kind == "fabric"])
        return {i.node for i in there if i not in inits}

    def _kill(self, lab: str, inits: list[find.Init]) -> None:
        freezer = cgroups.freezer()
        folder = cgroups.folder_name(lab, self._state)
        for init in inits:
            init.kill()
            if freezer is not None and freezer.is_set(folder, init.node):
                # Version 1's freezer keeps even a killed process from ending.
                with contextlib.suppress(LabError):  # a concurrent `down` was faster
                    freezer.set(folder, init.node, on=False)
        for init in inits:
            if not init.wait_dead(30):
                raise LabError(
                    f"node {init.node} of lab {lab} did not end (pid {init.pid})",
                    hint=(
                        "a process of the node hangs in the kernel; look at "
                        "/proc/PID/stack of its children"
                    ),
                )


def own_programs(hidden: Iterable[str], layers: Sequence[Path] = ()) -> list[str]:
    """Return the options that tell a node's pid 1 its program folders and hidden programs.

    Nothing is hidden that a layer has: it is the node's own.
    """
    folders = path_folders()
    places = [Path(folder, name) for name in hidden for folder in folders]  # a path stays itself
    if layers:
        places = [p for p in places if not any(map(os.path.lexists, (f"{x}{p}" for x in layers)))]
    parents = {place.parent for place in places}
    changed = tuple(_changed(folder) for folder in sorted(parents))
    return list(_own_programs(tuple(dict.fromkeys(places)), folders, changed))


def tops_of_programs() -> list[Path]:
    """Return the top-level folders that contain all :func:`program_folders`."""
    return [Path(top) for top in dict.fromkeys(f"/{Path(f).parts[1]}" for f in program_folders())]


def _changed(folder: Path) -> int:
    """Return the time of the last change of a folder's entries in ns; 0 if it is missing."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(maxsize=1)
def _own_programs(
    hidden: tuple[Path, ...], folders: tuple[str, ...], _changed: tuple[int, ...]
) -> tuple[str, ...]:
    trees = {path: None for path in (PROGRAMS, HELPERS) if Path(path).is_dir()}
    words = []
    for place in hidden:
        folder = str(place.parent)
        if os.path.lexists(place):
            within = folder in folders or folder in trees
            words += ["hide" if within else "cover", str(place)]
            if within:
                trees[folder] = None
    for name in START_UP:
        words += ["cover", f"{ENVIRONMENT['HOME']}/{name}"]
    return (*(word for path in trees for word in ("tree", path)), *words)


def bridge_of(network: str) -> str:
    """Return the name of a network's bridge on the fabric."""
    return link_name(f"br-{network}")


def _moved(name: str, node: NetnsNode, port: Port) -> str:
    """Return the ``ip -batch`` line that moves a link of the fabric to a node, as a port."""
    size = f" mtu {port.mtu}" if port.mtu else ""
    moved = f"netns {node.init.pid} name {port.name} address {port.hardware}{size}"
    return f"link set dev {name} {moved}"


def veth(name: str, peer: str, mtu: int | None = None) -> str:
    """Return the ``ip -batch`` line that creates a veth pair; ``mtu`` None is the kernel's own.

    ``peer`` are the name and the settings of the other end.
    """
    size = f"mtu {mtu} " if mtu else ""  # of both ends: each drops what is larger than its own
    return f"link add name {name} {size}type veth peer {size}name {peer}"


def _links(fabric: NetnsNode) -> dict[str, dict[str, str]]:
    """Return the links of the fabric by name, each with its state and its bridge.

    Of a bridge, ``filters`` is its setting if it filters VLANs, else empty.
    """
    shown = fabric.run(["ip", "-j", "-d", "link"]).json() or []
    return {
        entry["ifname"]: {
            "state": wiring.state_of(entry["flags"]),
            "master": entry.get("master", ""),
            "filters": vlans.filters(entry),
        }
        for entry in shown
    }


def machine_id(state: Path, lab: str, node: str) -> str:
    """Return the machine-id(5) of a node: 32 hex digits, always the same for this node.

    It is derived from a hash that includes this machine's own id, so nodes of two machines
    differ, and the own id cannot be computed from it (sd_id128_get_machine_app_specific(3)).
    """
    try:
        own = MACHINE_ID.read_bytes().strip()
    except OSError:
        own = b""
    name = b"\0".join([own, os.fsencode(state), lab.encode(), node.encode()])
    digest = hashlib.sha256(name).hexdigest()
    # Like every machine-id, a UUID of version 4 (RFC 9562).
    return f"{digest[:12]}4{digest[13:16]}{'89ab'[int(digest[16], 16) % 4]}{digest[17:32]}"


def identities(topology: Topology, node: str) -> list[str]:
    """Return ``ip -batch`` lines that name a machine's links and set their MAC addresses.

    The machine has called them eth0, eth1 and so on, in the order of the ports.
    """
    ports = topology.nodes[node].ports
    renamed = [(f"eth{port.index}", port.name) for port in ports if port.name != f"eth{port.index}"]
    # The new name of one may be the first name of another.
    lines = [f"link set dev {old} name {TEMPORARY}{old}" for old, _ in renamed]
    lines += [f"link set dev {TEMPORARY}{old} name {new}" for old, new in renamed]
    return lines + [f"link set dev {port.name} address {port.hardware}" for port in ports]


def _failed_line(stderr: str, lines: list[str]) -> str:
    """Return the line that ``ip -batch`` names in ``Command failed -:N``."""
    _, found, rest = stderr.partition("Command failed -:")
    number = rest.split()[0] if found and rest.split() else ""
    return lines[int(number) - 1] if number.isdigit() and int(number) <= len(lines) else "-batch -"

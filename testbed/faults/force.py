"""Faults on a lab that is up: made, seen, undone.

Links and queues are on the lab's fabric, so faults of them are the same whatever makes
the nodes.  A node is stopped through its cgroup, a service and what is broken through the
node itself.  What is in force is read from the machine each time: nothing is remembered,
and whatever is taken down with the lab is gone with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from testbed.errors import LabError, MachineError, NoSuchLab, UsageError
from testbed.faults import means
from testbed.faults.means import Seen
from testbed.faults.model import (
    BREAKABLE,
    LINK_KINDS,
    OF_BACKENDS,
    QUEUE_KINDS,
    SERVICES,
    Fault,
    Unreadable,
    parse,
    require,
)
from testbed.lab.lab import Watch
from testbed.nodes.netns import cgroups
from testbed.process import which

if TYPE_CHECKING:
    from testbed.lab.lab import Lab, Outcome
    from testbed.nodes.base import Node
    from testbed.topology.model import Topology

__all__ = ["Faults", "fault_of"]


def fault_of(words: str | Sequence[str], topology: Topology) -> Fault:
    """The fault that words mean on a lab: its own, or the name of one of its topology.

    Raises UsageError.
    """
    given = words.split() if isinstance(words, str) else list(words)
    if len(given) == 1 and given[0] in topology.faults:
        return topology.faults[given[0]]
    try:
        fault = parse(given)
        require(fault, topology)
    except Unreadable as error:
        named = f"; faults of {topology.name}: {', '.join(topology.faults)}"
        hint = error.hint + (named if topology.faults and len(given) == 1 else "")
        raise UsageError(f"wanted {error.wanted}, saw {error.seen}", hint=hint) from None
    return fault


class Faults:
    """What is broken on purpose in one lab.  Each method looks anew, and is safe to repeat."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    @property
    def topology(self) -> Topology:
        """The topology that is up.  Raises NoSuchLab."""
        return self._lab.topology()

    # -- making -----------------------------------------------------------

    def apply(self, fault: Fault) -> bool:
        """Bring a fault about; False where it is in force already.

        One of the same kind and target takes the place of another.  Raises
        MachineError, before anything is changed, where the machine lacks what
        it takes; NoSuchLab, LabError.
        """
        with self._held(f"fault {fault.words}"):
            present = self._seen_of(fault)
            if fault in present:
                return False
            if fault.kind in LINK_KINDS:
                self._set_links([*(one for one in present if one.key != fault.key), fault])
            elif fault.kind in QUEUE_KINDS:
                self._set_queues(fault.node, present, [*_others(present, fault), fault])
            elif fault.kind == "break":
                self._change(fault, back=False)
            elif fault.service:
                self._signal(fault, "KILL" if fault.kind == "kill" else "STOP")
            else:
                self._freeze(fault.node, on=True)
        return True

    # -- looking ----------------------------------------------------------

    def in_force(self) -> list[Seen]:
        """All faults that are in force now, and what shows it.  Raises NoSuchLab."""
        topology = self.topology
        found: list[Seen] = []
        fabric = self._fabric()
        if fabric is not None:
            found += self._links(fabric)
            found += self._queues(fabric)
        stopped = self._lab.stopped()
        found += [Seen(Fault("stop", name), "its cgroup is frozen") for name in stopped]
        nodes = [node for name, node in self._nodes().items() if name not in stopped]
        looks: list[Callable[[], list[Seen]]] = []
        for node in nodes:
            if node.name in topology.nodes:
                looks.append(lambda node=node: self._services(node))  # type: ignore[misc]
                looks.append(lambda node=node: self._broken(node))  # type: ignore[misc]
        with ThreadPoolExecutor(max_workers=min(8, max(1, len(looks)))) as pool:
            for seen in pool.map(lambda look: look(), looks):
                found += seen
        return found

    # -- undoing ----------------------------------------------------------

    def heal(
        self, meant: Callable[[Fault], bool] = lambda _: True, watch: Watch | None = None
    ) -> list[Fault]:
        """Undo the faults that are meant, by default all; return them.

        A node goes on first, so that what is wrong on it can be seen and mended, too.
        Services that are dead are started by ``up``.
        """
        healed: list[Fault] = []
        with self._held("fault heal"):
            for name in self._lab.stopped():
                if meant(Fault("stop", name)):
                    self._freeze(name, on=False)
                    healed.append(Fault("stop", name))
            present = [seen.fault for seen in self.in_force()]
            due = [fault for fault in present if meant(fault) and fault not in healed]
            self._undo(present, due)
        if any(fault.kind == "kill" for fault in due):
            self._up(watch)
        return healed + due

    def _undo(self, present: Sequence[Fault], due: Sequence[Fault]) -> None:
        kept = [fault for fault in present if fault not in due]
        if any(fault.kind in LINK_KINDS for fault in due):
            self._set_links(fault for fault in kept if fault.kind in LINK_KINDS)
        for node in sorted({fault.node for fault in due if fault.kind in QUEUE_KINDS}):
            self._set_queues(node, present, kept)
        for fault in due:
            if fault.kind == "stop" and fault.service:
                self._signal(fault, "CONT")
        for fault in due:  # after the daemons that could be asked for what is to be put back
            if fault.kind == "break":
                self._change(fault, back=True)

    def _up(self, watch: Watch | None) -> Outcome:
        """What has died is started as ever: the plan knows what hangs on it."""
        record = self._lab.record()
        topology = dataclasses.replace(self.topology, source=record.source)
        return self._lab.up(topology, keep=True, watch=watch)

    # -- places -----------------------------------------------------------

    @contextlib.contextmanager
    def _held(self, purpose: str) -> Iterable[None]:  # type: ignore[misc]
        with self._lab.settings.state.lock(self._lab.name, purpose):
            yield

    def _nodes(self) -> dict[str, Node]:
        return self._lab.context().nodes

    def _node(self, name: str) -> Node:
        return self._lab.context().node(name)

    def _fabric(self) -> Node | None:
        return self._lab.settings.makers(self.topology).fabric(self._lab.name)

    def _need_fabric(self) -> Node:
        fabric = self._fabric()
        if fabric is None:
            makers = " and ".join(self.topology.providers)
            raise NoSuchLab(
                f"lab {self._lab.name} has no fabric here that a link could be cut in",
                hint=f"`testbed up {self._lab.name}` makes it, where {makers} has one",
            )
        return fabric

    def _seen_of(self, fault: Fault) -> list[Fault]:
        """What is in force of the faults that this one is made beside."""
        if fault.kind in LINK_KINDS:
            seen = self._links(self._need_fabric())
        elif fault.kind in QUEUE_KINDS:
            seen = self._queues(self._need_fabric())
        elif fault.kind == "break":
            seen = self._broken(self._node(fault.node))
        elif fault.service:
            seen = self._services(self._node(fault.node))
        else:
            seen = [Seen(Fault("stop", name), "") for name in self._lab.stopped()]
        return [one.fault for one in seen]

    # -- links ------------------------------------------------------------

    @staticmethod
    def _links(fabric: Node) -> list[Seen]:
        if which("nft") is None:  # then there are none of ours
            return []
        listed = fabric.run(["nft", "-j", "list", "table", *means.TABLE], check=False)
        return means.links_seen(listed.stdout) if listed.ok else []

    def _set_links(self, faults: Iterable[Fault]) -> None:
        if which("nft") is None:
            raise MachineError(
                "this machine lacks nft, which cuts links", hint="apt-get install nftables"
            )
        rules = means.link_rules(self.topology, faults)
        done = self._need_fabric().run(["nft", "-f", "-"], input=rules.encode(), check=False)
        if not done.ok and "Operation not supported" in done.stderr:
            raise MachineError(
                "the kernel here has no nftables for bridges (CONFIG_NF_TABLES_BRIDGE), "
                "which cuts links",
                hint="load it (modprobe nf_tables), or use a kernel that has it",
            )
        self._need_fabric().require(done)

    # -- queues -----------------------------------------------------------

    def _queues(self, fabric: Node) -> list[Seen]:
        listed = fabric.run(["tc", "-j", "qdisc", "show"])
        return means.queues_seen(listed.stdout, self.topology)

    def _set_queues(self, node: str, present: Iterable[Fault], wanted: Sequence[Fault]) -> None:
        fabric = self._need_fabric()
        if any(fault.kind == "delay" and fault.node == node for fault in wanted):
            self._need_netem(fabric)
        there = any(fault.kind in QUEUE_KINDS and fault.node == node for fault in present)
        lines = means.queue_lines(self.topology, node, wanted, there=there)
        fabric.run(["tc", "-batch", "-"], input=lines.encode())

    @staticmethod
    def _need_netem(fabric: Node) -> None:
        if not fabric.run(means.PROBE_NETEM, check=False).ok:
            raise MachineError(
                "the kernel here has no netem (CONFIG_NET_SCH_NETEM), which holds packets up",
                hint="load it (modprobe sch_netem), or use a kernel that has it; "
                "`rate` (tbf) and `loss` (nftables) do without",
            )
        fabric.run(means.UNPROBE)

    # -- nodes and services -----------------------------------------------

    def _freeze(self, node: str, *, on: bool) -> None:
        freezer = cgroups.freezer()
        if freezer is None:
            raise MachineError(
                "no cgroup hierarchy here can stop a node (version 2, or version 1's freezer)",
                hint="mount one below /sys/fs/cgroup; a service can be stopped without",
            )
        if on and node not in self._nodes():
            self._node(node)  # says that it does not run, and what does
        freezer.set(self._lab.cgroup, node, on=on)

    def _services(self, node: Node) -> list[Seen]:
        """The daemons of a node that are dead, or stopped by a signal."""
        roles = self.topology.nodes[node.name].roles
        known = {name for role in roles for name in SERVICES.get(role, ())}
        found = []
        for name, state in node.services().items():
            if name not in known:
                continue
            if state.state == "dead":
                how = f"exit status {state.status}" if state.status is not None else "dead"
                found.append(Seen(Fault("kill", node.name, service=name), how))
                continue
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if means.is_stopped(node.get(f"/proc/{state.pid}/stat").decode()):
                    stopped = Fault("stop", node.name, service=name)
                    found.append(Seen(stopped, f"pid {state.pid} is in state T"))
        return found

    def _signal(self, fault: Fault, signal: str) -> None:
        node = self._node(fault.node)
        state = node.services().get(fault.service)
        if state is None or state.state == "dead":
            if signal == "KILL":
                return
            raise LabError(
                f"{fault.service} on {fault.node} does not run",
                hint=f"`testbed up {self._lab.name}` starts it",
            )
        node.run(means.signal_argv(signal, state.pid))
        if signal == "KILL":
            _await(lambda: node.services()[fault.service].state == "dead", f"{fault} took effect")

    # -- what is broken ---------------------------------------------------

    def _look(self, node: str, what: str) -> means.Look:
        return means.look(self.topology, what, self._peers(node) if what != "forward" else ())

    def _peers(self, node: str) -> list[means.Peer]:
        """The other nodes of the overlay; with vxlan those whose VTEP is there."""
        topology = self.topology
        flannel = topology.flannel
        assert flannel is not None
        macs = self._macs() if flannel.backend == "vxlan" else {}
        return [
            means.Peer(name, str(topology.address(name)), str(subnet), macs.get(name, ""))
            for name, subnet in flannel.subnets.items()
            if name != node and (flannel.backend != "vxlan" or name in macs)
        ]

    def _macs(self) -> dict[str, str]:
        """The MAC address of each VTEP that runs, by node."""
        flannel = self.topology.flannel
        assert flannel is not None
        path = f"/sys/class/net/flannel.{flannel.vni}/address"
        found = {}
        stopped = self._lab.stopped()
        for name, node in self._nodes().items():
            if name in flannel.subnets and name not in stopped:
                read = node.run(["cat", path], check=False)
                if read.ok:
                    found[name] = read.stdout.strip()
        return found

    def _broken(self, node: Node) -> list[Seen]:
        flannel = self.topology.flannel
        if flannel is None or "flannel" not in self.topology.nodes[node.name].roles:
            return []
        found = []
        peers = self._peers(node.name)
        outputs: dict[tuple[str, ...], str] = {}
        for what in BREAKABLE:
            if flannel.backend not in OF_BACKENDS.get(what, (flannel.backend,)):
                continue
            look = means.look(self.topology, what, peers)
            if look.argv not in outputs:
                outputs[look.argv] = node.run(look.argv, check=False).stdout
            if look.is_broken(outputs[look.argv]):
                found.append(Seen(Fault("break", node.name, what=what), BREAKABLE[what]))
        return found

    def _change(self, fault: Fault, *, back: bool) -> None:
        node = self._node(fault.node)
        look = self._look(fault.node, fault.what)
        if not (look.entries or back):
            raise LabError(
                f"{fault.node} has no {fault.what} of another node that could be broken",
                hint="it takes two nodes of the overlay",
            )
        gone = look.missing(node.run(look.argv).stdout)
        for index in range(len(look.entries)):
            away = index in gone
            if look.breaks:
                away = not away  # a rule that is there is the fault
            if away is back:
                node.run((look.back if back else look.gone)[index])


def _others(present: Iterable[Fault], fault: Fault) -> list[Fault]:
    return [one for one in present if one.key != fault.key]


def _await(seen: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    import time

    deadline = time.monotonic() + seconds
    while not seen():
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not seen within {seconds:g} s")
        time.sleep(0.005)

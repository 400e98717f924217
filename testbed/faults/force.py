"""Faults on a running lab: cause, detect and heal them.

Links and queues are on the lab's fabric, or where its tunnels pass, so their faults are the same
for all providers. The provider stops a node. Faults of services and of a node's entries are caused
through the node itself. Active faults are read from the machine each time: nothing is stored, and
the removal of the lab removes its faults.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from testbed.errors import LabError, MachineError, UsageError
from testbed.faults import means
from testbed.faults.links import FabricLinks, Links
from testbed.faults.means import Seen
from testbed.faults.model import (
    KINDS,
    LINK_KINDS,
    QUEUE_KINDS,
    Fault,
    Unreadable,
    parse,
    require,
)
from testbed.faults.tunnels import TunnelLinks
from testbed.limits import FILES_PER_NODE, at_once
from testbed.polling import until
from testbed.registry import ROLES, link_faults

if TYPE_CHECKING:
    from testbed.labs.lab import Lab
    from testbed.labs.run import Watch
    from testbed.nodes.base import Node
    from testbed.topology.model import Topology

__all__ = ["Faults", "fault_of"]

DEAD_SECONDS = 20.0  # a killed process ends at once, unless it waits in the kernel


def fault_of(words: str | Sequence[str], topology: Topology) -> Fault:
    """Return the fault for its words, or for its name in the topology.

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
    """The faults of one lab.

    Each method reads the current state from the machine and can be repeated safely.
    """

    def __init__(self, lab: Lab, watch: Watch | None = None) -> None:
        self._lab = lab
        self._watch = watch

    def apply(self, fault: Fault) -> bool:
        """Cause a fault; return False if it is active already.

        It replaces a fault of the same kind and target. Raises MachineError, before any change,
        if the machine lacks a requirement of the fault; NotFound, LabError.
        """
        with self._held(f"fault {fault.words}"):
            return _Place(self._lab).apply(fault)

    def in_force(self) -> list[Seen]:
        """Return all active faults with their evidence.  Raises NoSuchLab.

        A lab that exists already (:attr:`Lab.attached`) has none.
        """
        if self._lab.attached:
            return []
        return _Place(self._lab).in_force()

    def heal(
        self,
        meant: Callable[[Fault], bool] = lambda _: True,
        *,
        kinds: Collection[str] = tuple(KINDS),
    ) -> list[Fault]:
        """Heal the faults that ``meant`` selects, by default all; return them.

        Only faults of these ``kinds`` are searched for, which saves time. Stopped nodes continue
        first, so that faults on them can be found and healed, too. ``up`` restarts dead services.
        """
        if self._lab.attached:
            return []

        def is_due(fault: Fault) -> bool:
            return fault.kind in kinds and meant(fault)

        looked_for = {*kinds}
        for together in (LINK_KINDS, QUEUE_KINDS):  # set as a whole, so all faults must be known
            if not looked_for.isdisjoint(together):
                looked_for |= {*together}
        with self._held("fault heal"):
            healed = _Place(self._lab).continue_nodes(is_due)
            place = _Place(self._lab)  # includes the nodes that continue
            present = [seen.fault for seen in place.in_force(looked_for)]
            due = [fault for fault in present if is_due(fault)]
            place.undo(present, due)
        if any(fault.kind == "kill" for fault in due):
            self._up()
        return healed + due

    def _up(self) -> None:
        """Restart what has died with ``up``.

        The plan of ``up`` includes all that depends on it.
        """
        record = self._lab.record()
        topology = self._lab.topology()
        self._lab.up(topology, keep=True, watch=self._watch, left=record.stopped)

    @contextlib.contextmanager
    def _held(self, purpose: str) -> Iterator[None]:
        def waiting(holder: str) -> None:
            if self._watch is not None:
                self._watch.words(f"waiting for {holder or 'another testbed'}")

        with self._lab.settings.state.lock(self._lab.name, purpose, waiting=waiting):
            yield


class _Place:
    """A snapshot of a lab's fabric and nodes, and operations on them."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        context = lab.remains()
        self.topology: Topology = context.topology
        self._context = context
        self._stopped = lab.stopped()
        self._by_hand = frozenset(lab.record().stopped)
        self._links = self._find_links()

    def _find_links(self) -> Links | None:
        provider, nodes = self._context.provider, self._context.nodes
        if fabric := provider.fabric(self._lab.name):
            return FabricLinks(fabric, self.topology, provider, nodes, self._stopped)
        if tunnels := provider.tunnels(nodes):
            return TunnelLinks(tunnels)
        return None

    def apply(self, fault: Fault) -> bool:
        present = self._seen_of(fault)
        if fault in present:
            return False
        others = [one for one in present if one.key != fault.key]
        if fault.kind in LINK_KINDS:
            self._need_links().set_links(present, [*others, fault])
        elif fault.kind in QUEUE_KINDS:
            self._need_links().set_queues(fault.node, present, [*others, fault])
        elif fault.kind == "break":
            self._change(fault, back=False)
        elif fault.service:
            self._signal(fault, "KILL" if fault.kind == "kill" else "STOP")
        else:
            self._context.node(fault.node)  # raises an error if it does not run
            self._stop(fault.node, on=True)
        return True

    def _seen_of(self, fault: Fault) -> list[Fault]:
        """Return the active faults that must be known to cause this one."""
        if fault.kind in LINK_KINDS:
            seen = self._need_links().links()
        elif fault.kind in QUEUE_KINDS:
            seen = self._need_links().queues()
        elif fault.kind == "break":
            seen = self._broken(self._context.node(fault.node))
        elif fault.service:
            seen = self._services(self._context.node(fault.node))
        else:
            seen = self._paused()
        return [one.fault for one in seen]

    def in_force(self, kinds: Collection[str] = tuple(KINDS)) -> list[Seen]:
        found: list[Seen] = []
        if self._links is not None and not {*LINK_KINDS}.isdisjoint(kinds):
            found += self._links.links()
        if self._links is not None and not {*QUEUE_KINDS}.isdisjoint(kinds):
            found += self._links.queues()
        looks: list[Callable[[Node], list[Seen]]] = []
        if not {"kill", "stop"}.isdisjoint(kinds):
            looks.append(self._services)
        if "break" in kinds:
            looks.append(self._broken)
        nodes = [node for node in self._answering() if node.name in self.topology.nodes]
        with ThreadPoolExecutor(at_once(min(8, len(nodes)), files=FILES_PER_NODE)) as pool:
            for look in looks:
                for seen in pool.map(functools.partial(self._unless_stopped, look), nodes):
                    found += seen
        found += self._paused()
        return [one for one in found if one.fault.kind in kinds]

    def _unless_stopped(self, look: Callable[[Node], list[Seen]], node: Node) -> list[Seen]:
        try:
            return look(node)
        except LabError:
            self._stopped = self._lab.stopped()
            if node.name not in self._stopped:
                raise
            return []  # it was stopped meanwhile, so nothing else can be found

    def continue_nodes(self, is_due: Callable[[Fault], bool]) -> list[Fault]:
        """Continue the stopped nodes whose fault is due; return these faults."""
        due = [seen.fault for seen in self._paused() if is_due(seen.fault)]
        for fault in due:
            self._stop(fault.node, on=False)
        return due

    def undo(self, present: Sequence[Fault], due: Sequence[Fault]) -> None:
        """Heal the faults that are due, and keep the other present ones."""
        kept = [fault for fault in present if fault not in due]
        if any(fault.kind in LINK_KINDS for fault in due):
            before, after = (
                [fault for fault in faults if fault.kind in LINK_KINDS]
                for faults in (present, kept)
            )
            self._need_links().set_links(before, after)
        for node in sorted({fault.node for fault in due if fault.kind in QUEUE_KINDS}):
            self._need_links().set_queues(node, present, kept)
        for fault in due:
            if fault.kind == "stop" and fault.service:
                self._signal(fault, "CONT")
            elif fault.kind == "break":
                self._change(fault, back=True)

    def _answering(self) -> list[Node]:
        return [node for node in self._context.nodes.values() if node.name not in self._stopped]

    # -- links ------------------------------------------------------------

    def _need_links(self) -> Links:
        if self._links is None and not link_faults(self.topology.provider):
            raise MachineError(
                f"links of lab {self._lab.name} cannot have faults: the provider "
                f"{self.topology.provider} does not support them",
                hint="stop a service instead (`testbed fault stop NODE/SERVICE`), or choose "
                "another provider",
            )
        if self._links is None:
            raise LabError(
                f"the fabric of lab {self._lab.name} does not run, so no link can be cut",
                hint=f"`testbed up -l {self._lab.name}` restores it",
            )
        return self._links

    # -- nodes and services -----------------------------------------------

    def _paused(self) -> list[Seen]:
        return [Seen(Fault("stop", name), "its processes are stopped") for name in self._stopped]

    def _stop(self, node: str, *, on: bool) -> None:
        provider = self._context.provider
        (provider.pause if on else provider.resume)(self._lab.name, node)

    def _services(self, node: Node) -> list[Seen]:
        """Return the faults of a node's daemons: dead, or stopped by a signal."""
        spec = self.topology.nodes[node.name]
        known = {name for role in spec.roles for name in ROLES[role].services} | {*spec.services}
        found = []
        for name, state in node.services().items():
            if name not in known or f"{node.name}/{name}" in self._by_hand:
                continue
            if state.state == "dead":
                found.append(
                    Seen(Fault("kill", node.name, service=name), f"exit status {state.status}")
                )
                continue
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                if means.is_stopped(node.get(f"/proc/{state.pid}/stat").decode()):
                    stopped = Fault("stop", node.name, service=name)
                    found.append(Seen(stopped, f"pid {state.pid} is in state T"))
        return found

    def _signal(self, fault: Fault, signal: str) -> None:
        node = self._context.node(fault.node)
        state = node.services().get(fault.service)
        if state is None or state.state == "dead":
            raise LabError(
                f"{fault.service} on {fault.node} does not run",
                hint=f"`testbed up -l {self._lab.name}` restarts it",
            )
        node.run(["kill", f"-{signal}", str(state.pid)])
        if signal != "KILL":
            return

        def dead() -> bool:
            return node.services()[fault.service].state == "dead"

        if not until(dead, DEAD_SECONDS, pause=0.005):
            raise LabError(
                f"{fault.service} on {fault.node} was killed and has not ended",
                hint="it hangs in the kernel; look at /proc/PID/stack",
            )

    # -- entries ----------------------------------------------------------

    @functools.cached_property
    def _breakages(self) -> dict[str, means.Breakage]:
        """The breakable parts of the lab's roles, by role."""
        found = {
            name: ROLES[name].breakage(self.topology, self._answering)
            for name in self.topology.roles
        }
        return {name: one for name, one in found.items() if one is not None}

    def _broken(self, node: Node) -> list[Seen]:
        found = []
        for role in self.topology.nodes[node.name].roles:
            for what, how in ROLES[role].breakable.items():
                look = self._breakages[role].look(node, what)
                if look is None:
                    continue
                output = node.run(look.argv, check=False).stdout
                if look.is_broken(output):
                    seen = (not look.breaks and look.seen(output)) or how
                    found.append(Seen(Fault("break", node.name, what=what), seen))
        return found

    def _change(self, fault: Fault, *, back: bool) -> None:
        node = self._context.node(fault.node)
        roles = self.topology.nodes[fault.node].roles
        role = next(name for name in roles if fault.what in ROLES[name].breakable)
        look = self._breakages[role].look(node, fault.what)
        if look is None:
            raise LabError(
                f"{fault.node} has no {fault.what} of another node to break",
                hint=f"{self._breakages[role].hint}; `testbed up -l {self._lab.name}` restarts it",
            )
        missing = look.missing(node.run(look.argv).stdout)
        for index in range(len(look.entries)):
            # The presence of a rule is the fault.
            broken = (index in missing) is not look.breaks
            if broken is back:
                node.run((look.back if back else look.gone)[index])

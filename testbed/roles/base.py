"""A role: software that is put on a node, as steps of the plan.

A role reaches nodes through their own interface only, so it works on every
provider.  A new role is one file, declared by an entry point of the group
``testbed.roles``.
"""

from __future__ import annotations

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from testbed.errors import ServiceError, ServiceNotReady
from testbed.limits import Takes
from testbed.nodes.base import killed_for_memory, name_unit

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.nodes.base import Node as Machine
    from testbed.nodes.base import Service
    from testbed.nodes.wiring import Lack
    from testbed.steps.context import Context
    from testbed.steps.step import Step
    from testbed.topology.model import Node, Topology


#: For daemons written in Go: collect garbage at five times the live heap, not at twice.  The
#: helpers that they start for each container then end before their first collection, and a lab
#: of thirty nodes comes up in a tenth less CPU, for a few megabytes a daemon.
GO = {"GOGC": "400"}
LOOK_SECONDS = 2.0  # between two looks at what a daemon waits for


#: A part of containerd's configuration (containerd, docs/garbage-collection.md).  It sets the time
#: between two looks for garbage from the length of one and this share of time.
COLLECT_SELDOM = """\
[plugins."io.containerd.gc.v1.scheduler"]
pause_threshold = 0.0001
"""


def start(
    machine: Machine,
    service: Service,
    *,
    timeout: float = 60.0,
    context: Context | None = None,
    seen: Callable[[], str] = lambda: "",
) -> bool:
    """Start a service and wait until it is ready; True unless it was running as it should.

    ``timeout`` is in seconds.  With a ``context`` it is told what is waited for, and the wait
    ends when the run gives up; ``seen`` is asked now and then for what keeps the service from
    being ready, and may raise.  Raises as :meth:`testbed.nodes.base.Node.start` does.
    """
    before = machine.services().get(service.name)
    try:
        _wait_on(machine, service, time.monotonic() + timeout, context, seen)
    except ServiceError as error:
        if killed := killed_for_memory(machine):
            error.hint = (
                f"for want of memory the kernel has killed {killed} processes of {machine.name}: "
                "give it more (`memory:`)"
            )
        raise
    if before is None:
        name_unit(machine, service)
    return before is None or before.state == "dead" or before.digest != service.digest


def _wait_on(
    machine: Machine,
    service: Service,
    deadline: float,
    context: Context | None,
    seen: Callable[[], str],
) -> None:
    began = time.monotonic()
    while not _is_ready(machine, service, deadline, context):
        log = machine.logs(service.name)
        if context is None or context.given_up.is_set() or time.monotonic() >= deadline:
            what = f"was not ready within {time.monotonic() - began:.0f} s"
            raise ServiceNotReady(service.name, machine.name, what, log)
        last = log.strip().rpartition("\n")[2]
        words = seen() or (f"it says last: {last}" if last else "it has said nothing yet")
        context.waiting(f"{service.name} on {machine.name} to be ready: {words}")
        if service.name in dead(machine):  # waiting on would start it again
            log = machine.logs(service.name)
            raise ServiceError(service.name, machine.name, "died before it was ready", log)


def _is_ready(machine: Machine, service: Service, deadline: float, context: Context | None) -> bool:
    """Start a service, or wait on, for a while."""
    left = max(0.0, deadline - time.monotonic())
    try:
        machine.start(service, timeout=left if context is None else min(LOOK_SECONDS, left))
    except ServiceNotReady:
        return False
    return True


def dead(machine: Machine) -> frozenset[str]:
    """The daemons of a node that have died and that nobody has started again yet."""
    return frozenset(one.name for one in machine.services().values() if one.state == "dead")


def still_alive(machine: Machine, *, others: AbstractSet[str] = frozenset()) -> None:
    """Raise ServiceError for a daemon of the node that has died: waiting on is no use.

    ``others`` had died before the waiting began: those are for other steps to start.
    """
    for state in machine.services().values():
        if state.state == "dead" and state.name not in others:
            raise ServiceError(state.name, machine.name, "has died", machine.logs(state.name))


def files(paths: Iterable[Path]) -> list[str]:
    """What tells these files from others at the same places."""
    facts = [(path, path.stat()) for path in paths]
    return [f"{path} {status.st_size} {status.st_mtime_ns}" for path, status in facts]


def settings(*said: object) -> str:
    """Twelve hex digits that change with what a service is told, whatever else its node is."""
    text = json.dumps(said, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Offer:
    """A program that a node has for those who work on it.

    ``name`` is the store's name of it.  ``place`` is its path on the node; by default it is
    on the node's PATH, by its name.  ``stand_in`` is a shell script that takes its place while
    it has not been built; a program without one is made before its lab.
    """

    name: str
    place: str = ""
    stand_in: str = ""

    @property
    def target(self) -> str:
        """Its absolute path on the node, or a bare name for a program on the PATH."""
        return self.place or self.name


#: A stand-in's text; ``{{lab}}`` is put in when it is written on a node.
NOT_BUILT = """\
#!/bin/sh
# Stands for {title}, which has not been built.
{first}cat >&2 <<END
{title} is not built. Run this where testbed runs, not on a node:
  testbed artifacts build {part} && testbed up -l {{lab}}
END
exit 127
"""


def not_built(title: str, part: str, first: str = "") -> str:
    """The script that stands for a program until its ``part`` has been built, and says how.

    ``first`` are lines of shell that it begins with.
    """
    return NOT_BUILT.format(title=title, part=part, first=first)


class Role(ABC):
    """One kind of software."""

    name: ClassVar[str]
    #: Programs that must be at hand before a plan with this role is carried out.
    artifacts: ClassVar[tuple[str, ...]] = ()
    #: Programs of the node that it calls, by Debian package.
    programs: ClassVar[dict[str, str]] = {}
    #: Features of the kernel that it needs, as :mod:`testbed.kernel` names them.
    kernel: ClassVar[tuple[str, ...]] = ()
    #: Daemons that it starts: ``status`` expects them to run.
    services: ClassVar[tuple[str, ...]] = ()
    #: Programs that its nodes have for those who work on them.
    offers: ClassVar[tuple[Offer, ...]] = ()
    #: Programs of this machine, by name, and folders, by path, that no node shows beside those
    #: of the same name as an offer: they are for this machine's own daemons.
    hides: ClassVar[tuple[str, ...]] = ()

    def offers_on(self, topology: Topology, node: str) -> tuple[Offer, ...]:  # noqa: ARG002  for roles that differ from node to node
        """The programs that a node has for those who work on it."""
        return self.offers

    def parts(self, topology: Topology) -> tuple[str, ...]:  # noqa: ARG002  for roles of several versions
        """The parts of the store that its programs come from; none: whichever brings each."""
        return ()

    def versioned(self, topology: Topology) -> tuple[str, ...]:  # noqa: ARG002  for roles whose programs depend on it
        """The programs whose versions a lab's record and report name."""
        return self.artifacts

    def fetch(self, store: Store, topology: Topology) -> None:  # noqa: ARG002  for roles whose programs depend on it
        """Make what must be at hand before a plan with this role is carried out."""
        for name in self.artifacts:
            store.binary(name)

    def ahead(self, store: Store, topology: Topology, node: str) -> list[str]:  # noqa: ARG002  for roles whose settings decide
        """All that decides what those of its steps come to that can be taken ahead."""
        return files(store.binary(name) for name in self.artifacts)

    def memory(self, topology: Topology, node: str) -> int:  # noqa: ARG002  for roles that need much
        """Bytes that it takes on a node at the least; 0 where it is not worth asking for."""
        return 0

    def takes(self, topology: Topology, node: str) -> Takes:  # noqa: ARG002  for roles with daemons
        """Its share of this machine's limits on a node that shares the kernel."""
        return Takes()

    def services_on(self, topology: Topology, node: str) -> tuple[str, ...]:  # noqa: ARG002  for roles that differ from node to node
        """The daemons that it starts on a node."""
        return self.services

    def lacks(self, topology: Topology, machine: Machine) -> list[Lack]:  # noqa: ARG002  for roles with links
        """Links of its own that a node should have, and that are not as the file says."""
        return []

    @abstractmethod
    def steps(self, topology: Topology, node: Node) -> Iterable[Step]:
        """The steps that put it on one node.  Pure: nothing is done yet."""

"""The contract of a role: software that steps of the plan install.

A role reaches a node only through :class:`testbed.nodes.base.Node`, so it works with every
provider. To add a role, write one module with a subclass of :class:`Role` and declare it as an
entry point of the group ``testbed.roles``.

The other functions here help to write steps: :func:`start` starts a daemon and waits for it,
:func:`still_alive` ends a wait that cannot succeed, :func:`digest_of` and :func:`files` compute
digests that detect a change.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from testbed.errors import ServiceError, ServiceNotReady
from testbed.files import fingerprint
from testbed.limits import Takes
from testbed.nodes.base import killed_for_memory, name_unit
from testbed.nodes.footprint import Footprint

if TYPE_CHECKING:
    from ipaddress import IPv4Address

    from testbed.artifacts import Store
    from testbed.faults.means import Breakage
    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node as Machine
    from testbed.nodes.base import Service
    from testbed.nodes.wiring import Difference
    from testbed.requirement import Feature, Requirement
    from testbed.roles.container import ContainerProcess, Control, LogLine
    from testbed.roles.part import Part
    from testbed.steps.context import Context
    from testbed.steps.step import Step
    from testbed.topology.check.look import Look
    from testbed.topology.declare import Block, Section
    from testbed.topology.model import Node, Topology
    from testbed.topology.variant import Option


LOOK_SECONDS = 2.0  # between two reports of why a daemon is not ready


def start(
    machine: Machine,
    service: Service,
    *,
    timeout: float = 60.0,
    context: Context | None = None,
    seen: Callable[[], str] = lambda: "",
) -> bool:
    """Start a service and wait until it is ready.

    Return False if the service was already running with these settings, otherwise True.

    ``timeout`` limits the wait, in seconds. With a ``context`` the wait is shown to the user,
    and ends early when the run gives up. ``seen`` is then called about every two seconds; it
    returns the reason why the service is not ready, or an empty string, and may raise an error
    to end the wait.

    Raises ServiceNotReady after the timeout, ServiceError when the service dies, LeftAlone if the
    service was stopped by hand and this run leaves it.
    """
    if context is not None:
        context.leave(f"{machine.name}/{service.name}")
    before = machine.services().get(service.name)
    try:
        _wait_on(machine, service, time.monotonic() + timeout, context, seen)
    except ServiceError as error:
        if killed := killed_for_memory(machine):
            error.hint = (
                f"the kernel has killed {killed} processes of {machine.name} (out of memory): "
                "raise `memory` of the node"
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
        words = seen() or (f"last log line: {last}" if last else "no log lines yet")
        context.waiting(f"{service.name} on {machine.name} to be ready: {words}")
        if service.name in dead(machine):  # the next attempt would start it again
            log = machine.logs(service.name)
            raise ServiceError(service.name, machine.name, "died before it was ready", log)


def _is_ready(machine: Machine, service: Service, deadline: float, context: Context | None) -> bool:
    """Start a service, or continue to wait; return False if not ready yet."""
    left = max(0.0, deadline - time.monotonic())
    try:
        machine.start(service, timeout=left if context is None else min(LOOK_SECONDS, left))
    except ServiceNotReady:
        return False
    return True


def dead(machine: Machine) -> frozenset[str]:
    """Return the node's daemons that have died and were not restarted."""
    return frozenset(one.name for one in machine.services().values() if one.state == "dead")


def still_alive(machine: Machine, *, others: AbstractSet[str] = frozenset()) -> None:
    """Raise ServiceError if a daemon of the node has died.

    Call it while waiting for something that a dead daemon can no longer do. ``others`` are
    daemons that were dead before the wait began; other steps restart them.
    """
    for state in machine.services().values():
        if state.state == "dead" and state.name not in others:
            raise ServiceError(state.name, machine.name, "has died", machine.logs(state.name))


def files(paths: Iterable[Path]) -> list[str]:
    """Return a fingerprint of each file.

    It consists of path, size in bytes, and modification time in ns; of the path alone if there is
    no such file.
    """
    return [fingerprint(path) for path in paths]


def digest_of(*said: object) -> str:
    """Return a digest of a service's settings, as twelve hex digits.

    The settings must be serializable as JSON. Two services with equal settings have equal
    digests, on any node.
    """
    text = json.dumps(said, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Offer:
    """A program that users find on a node, such as ``etcdctl``.

    ``name`` is the program's name in the artifact store. ``place`` is its absolute path on the
    node; empty means a directory of the node's PATH. ``stand_in`` is a shell script to install
    if the program has not been built; without one, ``up`` builds the program first.  A stand-in
    needs a ``place``.
    """

    name: str
    place: str = ""
    stand_in: str = ""

    def __post_init__(self) -> None:
        if self.stand_in and not self.place:
            raise ValueError(f"the stand-in for {self.name} has no place on the node")

    @property
    def target(self) -> str:
        """The absolute path on the node, or the bare name if on the PATH."""
        return self.place or self.name


#: Template of a stand-in; ``{{lab}}`` is filled in when the script is written to a node.
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
    """Return a stand-in script that explains how to build the program.

    ``title`` is the program's name in the message, ``part`` the artifact to build, ``first``
    lines of shell to run before the message.
    """
    return NOT_BUILT.format(title=title, part=part, first=first)


@dataclass(frozen=True, slots=True)
class OwnLink:
    """A link that a role creates on a node, which is not in the topology file.

    ``about`` says whose it is. ``address`` is its address, if it is known.
    """

    name: str
    about: str
    address: IPv4Address | None = None


class Again(NamedTuple):
    """A part that `up` creates again because a value elsewhere in the file has changed.

    ``kind`` is container or a word of the role, ``name`` its name in the file, and ``path`` leads
    to the value.
    """

    kind: str
    name: str
    path: tuple[str, ...]


class Role(ABC):
    """A kind of software that nodes can have, named in a node's ``roles``.

    A subclass must set ``name`` and implement :meth:`steps`. The class variables declare what
    every node with the role requires and gets. Override a method where this depends on the
    topology or on the node. ``topology`` is the whole lab; ``node`` is a node with this role.
    No method changes a node, and only :meth:`differences` queries one.
    """

    name: ClassVar[str]
    #: The role's keys of a topology file, in a mapping with the role's name: at the top of the
    #: file, and in a node.
    section: ClassVar[type[Section] | None] = None
    node_section: ClassVar[type[Block] | None] = None
    #: Options of ``up`` and ``plan`` that change a topology with the role.
    options: ClassVar[tuple[Option, ...]] = ()
    #: Rules for files that name the role.
    checks: ClassVar[tuple[type[Look], ...]] = ()
    #: Keys of the file whose parts the role creates on its nodes: ``containers``, ``compose``,
    #: ``namespaces``, ``bridges`` or ``veths``.  Parts on a node without such a role are refused.
    creates: ClassVar[tuple[str, ...]] = ()
    #: A node with the role forwards packets.
    forwards: ClassVar[bool] = False
    #: A node with the role must be on a network.
    networked: ClassVar[bool] = True
    #: The role can be looked at on a machine on which others have installed it, where testbed
    #: starts nothing (:attr:`testbed.nodes.base.Provider.existing`).
    seen: ClassVar[bool] = False
    #: Words of the mark ``needs`` that labs with the role can meet (:meth:`features`), and their
    #: meanings.  Without any, the role's name is such a word.
    needs: ClassVar[Mapping[str, str]] = {}
    #: Names of its facts (:meth:`facts`).
    fact_names: ClassVar[tuple[str, ...]] = ()
    #: Words of the fault ``break``, and the effect of each (:meth:`breakage`).
    breakable: ClassVar[Mapping[str, str]] = {}
    #: Names of optional parts of its software, such as plugins.  Some have a name of a role.
    includes: ClassVar[tuple[str, ...]] = ()
    #: Names of the artifacts that a plan with this role requires.
    artifacts: ClassVar[tuple[str, ...]] = ()
    #: Programs that the role runs on a node: program name to Debian package.
    programs: ClassVar[dict[str, str]] = {}
    #: Required kernel features, by their names in :mod:`testbed.kernel` or in ``trials``.
    kernel: ClassVar[tuple[str, ...]] = ()
    #: Kernel features that only some settings need, each with words for these in ``doctor``.
    optional_kernel: ClassVar[Mapping[str, str]] = {}
    #: Kernel features that :mod:`testbed.kernel` does not have, with the commands that try them.
    trials: ClassVar[tuple[Feature, ...]] = ()
    #: True for a role that few labs have: its requirements count in ``doctor --role`` only.
    on_request: ClassVar[bool] = False
    #: Names of the daemons that the role starts. ``status`` reports those that do not run.
    services: ClassVar[tuple[str, ...]] = ()
    #: Programs of its daemons, by the beginnings of their names. One that runs after its lab has
    #: ended is a leftover (``--check-machine``).
    processes: ClassVar[tuple[str, ...]] = ()
    #: Folders in which they write on a node. Those of this machine must not change.
    folders: ClassVar[tuple[str, ...]] = ()
    #: Debian packages that nodes with the role have, as by ``packages`` of a node.
    packages: ClassVar[tuple[str, ...]] = ()
    #: Programs that users find on nodes with the role.
    offers: ClassVar[tuple[Offer, ...]] = ()
    #: Programs (by name) and directories (by path) of this machine to hide on every node, because
    #: they are for its own daemons. Programs with the name of an offer are always hidden.
    hides: ClassVar[tuple[str, ...]] = ()

    def offers_on(self, topology: Topology, node: str) -> tuple[Offer, ...]:  # noqa: ARG002  for roles that differ from node to node
        """Return the programs that users find on a node."""
        return self.offers

    def summary(self, topology: Topology) -> str:  # noqa: ARG002  for roles with settings
        """Return the role's main settings in a few words, for the first line of ``up``.

        Without words, the default, the line does not name the role.
        """
        return ""

    def features(self, topology: Topology) -> AbstractSet[str]:  # noqa: ARG002  for roles with settings
        """Return the words of the mark ``needs`` that a lab with the role meets."""
        return {self.name}

    def facts(self, context: Context) -> Mapping[str, str]:  # noqa: ARG002  for roles with settings
        """Return facts of a running lab that the expectation of a claim may depend on."""
        return {}

    def status(self, context: Context, machine: Machine) -> Mapping[str, list[Part]]:  # noqa: ARG002  for roles with more than services
        """Return the state of the role's parts on a running node, by kind.

        A kind is a word such as ``container``. Services and links are shown without it.
        Raises LabError if the node ended.
        """
        return {}

    def containers(self, machine: Machine) -> Mapping[str, ContainerProcess]:  # noqa: ARG002  for roles with containers
        """Return the role's running containers on a node by name.

        They are found by what the kernel and files say, so that a daemon that is dead or hangs
        hides none. Raises NoSuchNode, and TimeoutExpired if the node itself does not answer.
        """
        return {}

    def control(self, machine: Machine) -> Control | None:  # noqa: ARG002  for roles with containers
        """Return the control of the role's containers on a node, or None."""
        return None

    def logged(self, machine: Machine) -> Iterable[str]:  # noqa: ARG002  for roles with containers
        """Return the role's containers on a node that have a log (:meth:`log`), running or not."""
        return ()

    def log(self, machine: Machine, container: str, begin: int) -> tuple[list[LogLine], int]:
        """Return the lines of a container's log from a place on, and the next place.

        The first place is 0. A role with :meth:`logged` has it. Raises LabError.
        """
        raise NotImplementedError

    def created_again(self, old: Topology, new: Topology) -> Iterable[Again]:  # noqa: ARG002  for roles whose parts depend on each other
        """Return the parts that an `up` of the edited topology creates again, for ``diff``.

        Containers whose own settings have changed, and parts of nodes that are created again, are
        known without it.
        """
        return ()

    def sysctls(self, topology: Topology, node: str) -> Mapping[str, str]:  # noqa: ARG002  for roles that set some
        """Return the kernel settings of the network that the role sets on a node, by name.

        ``save`` takes them for the role's, and not for changes by hand.
        """
        return {}

    def by_hand(
        self,
        topology: Topology,  # noqa: ARG002  for roles whose parts people create
        machine: Machine,  # noqa: ARG002  the same
    ) -> Iterable[tuple[tuple[str, ...], Any, str]]:
        """Return the role's parts on a node that differ from the topology, for ``save``.

        Each has the path of its key in a topology file, the value there (None for a part that was
        removed), and words that say it if the file cannot. An empty path is for what no file can
        say. Raises LabError.
        """
        return ()

    def drawn(self, lab: LiveLab, node: str) -> Iterable[Mapping[str, Any]]:  # noqa: ARG002  for roles with containers
        """Return the role's running containers on a node for the graph.

        Each has ``name``, ``pid`` (on the node), ``mode`` (its kind of network; ``host`` and
        ``container`` have no network namespace of their own), ``published`` (ports as
        ``8080:80/tcp``), and with the mode ``container`` the owner of the namespace as
        ``shares``. Instead of ``pid`` it may have ``addresses``, by which its namespace is found
        among the named ones of the node, and ``kind``: another word than "container".
        Raises LabError.
        """
        return ()

    def virtual_services(self, lab: LiveLab) -> Iterable[Mapping[str, Any]]:  # noqa: ARG002  for roles with load balancing
        """Return the addresses behind which the role balances load, for the graph.

        Each has ``name``, ``addresses``, ``ports`` (``80/tcp``, or ``80:30080/tcp`` with a port
        of every node) and ``backends`` (``10.244.1.2:8080``). Raises LabError.
        """
        return ()

    def link_names(self, lab: LiveLab, node: str) -> Mapping[str, str]:  # noqa: ARG002  for roles whose links have generated names
        """Return the names of networks by their links on a running node, for the graph.

        Raises LabError.
        """
        return {}

    def overlay(self, topology: Topology) -> Mapping[str, Any] | None:  # noqa: ARG002  for overlay networks
        """Return the role's overlay network for the graph, or None.

        It has ``name``, ``network`` and ``device`` (the link on each node; may be empty), and
        may have ``backend``, ``port`` and ``vni``.
        """
        return None

    def described(self, facts: Mapping[str, str]) -> Iterable[str]:  # noqa: ARG002  for roles with facts
        """Return a few words for each of the role's :attr:`fact_names` among these facts."""
        return ()

    def unbreakable(self, topology: Topology, node: str, what: str) -> tuple[str, str, str] | None:  # noqa: ARG002  for roles with variants
        """Return why a word of :attr:`breakable` does not apply to this lab: wanted, seen, hint."""
        return None

    def breakage(
        self,
        topology: Topology,  # noqa: ARG002  for roles with breakable parts
        nodes: Callable[[], Sequence[Machine]],  # noqa: ARG002  the same
    ) -> Breakage | None:
        """Return the parts of the role on a running lab that can be broken.

        ``nodes`` returns the nodes that answer. A role with :attr:`breakable` must return them.
        """
        return None

    def inside(self, lab: str) -> str:  # noqa: ARG002  for roles whose containers are not the topology's
        """Return a hint: how to run a command in the role's own containers."""
        return ""

    def kernel_for(self, topology: Topology) -> Iterable[str]:  # noqa: ARG002  for roles whose settings decide
        """Return the required kernel features."""
        return self.kernel

    def kernel_with(self, part: str) -> Iterable[str]:  # noqa: ARG002  for roles with parts
        """Return the kernel features of a lab with one of the parts that the role includes."""
        return ()

    def requirements(self, store: Store) -> Iterable[Requirement]:  # noqa: ARG002  for roles that need more
        """Return more requirements of this machine, for `doctor`; each is tried."""
        return ()

    def programs_for(self, topology: Topology) -> Mapping[str, str]:  # noqa: ARG002  for roles whose settings decide
        """Return the programs that the role runs on a node: program name to Debian package."""
        return self.programs

    def alternative(self, topology: Topology) -> str:  # noqa: ARG002  for roles with variants
        """Return a hint to a variant that needs other kernel features; empty if there is none."""
        return ""

    def links(self, topology: Topology, node: str) -> Iterable[OwnLink]:  # noqa: ARG002  for roles with links
        """Return the links that the role creates on a node.

        Other links of the node cannot have their names.
        """
        return ()

    def footprint(self, topology: Topology, node: str) -> Footprint:
        """Return what the role's daemons change on a machine whose network they share.

        It is for machines that exist already, on which the role is installed. Their own files and
        processes are not part of it.
        """
        names = (re.escape(link.name) for link in self.links(topology, node))
        return Footprint(links=tuple(names), sysctls=tuple(self.sysctls(topology, node)))

    def parts(self, topology: Topology, node: str) -> tuple[str, ...]:  # noqa: ARG002  for roles of several versions
        """Return the artifact store's parts that provide the role's programs on a node.

        Empty, the default, means that any part with the program may provide it.
        """
        return ()

    def versioned(self, topology: Topology) -> tuple[str, ...]:  # noqa: ARG002  for roles whose programs depend on it
        """Return the programs whose versions the record and the report list."""
        return self.artifacts

    def lacking(self, store: Store, topology: Topology) -> str:  # noqa: ARG002  for roles whose programs depend on it
        """Return why this machine cannot run such a lab: unbuilt or missing software.

        Empty if it can. Nothing is built.
        """
        return ""

    def fetch_part(self, store: Store, part: str) -> bool:  # noqa: ARG002  for roles with optional parts
        """Build the artifacts of an optional part of the role's software.

        Return False for a name that is no such part. Raises ArtifactError.
        """
        return False

    def fetch(self, store: Store, topology: Topology) -> None:  # noqa: ARG002  for roles whose programs depend on it
        """Download or build the artifacts that a plan with this role requires.

        Raises ArtifactError.
        """
        for name in self.artifacts:
            store.binary(name)

    def images(self, store: Store, topology: Topology, *, build: bool) -> Iterable[str]:  # noqa: ARG002  for roles that read more files
        """Return images that files beside the topology ask for.

        A program that reads them is built first; without ``build`` there are no images until it
        is. Raises UsageError for a wrong file.
        """
        return ()

    def ahead(self, store: Store, topology: Topology, node: str) -> list[str]:  # noqa: ARG002  for roles whose settings decide
        """Return the facts that determine the result of ``ahead`` steps.

        A snapshot of a node with these steps done is reused while the facts stay equal.
        See :attr:`testbed.steps.step.Step.ahead`.
        """
        return files(store.binary(name) for name in self.artifacts)

    def memory(self, topology: Topology, node: str) -> int:  # noqa: ARG002  for roles that need much
        """Return the memory that the role needs on a node, in bytes.

        Return 0 if the amount is negligible.
        """
        return 0

    def takes(self, topology: Topology, node: str) -> Takes:  # noqa: ARG002  for roles with daemons
        """Return the role's use of this machine's limits by one node.

        It counts for nodes that share this machine's kernel.
        """
        return Takes()

    def noticed(self, machine: Machine, running: AbstractSet[str]) -> str:  # noqa: ARG002  for roles that say more
        """Return words on the role's software on a machine that no lab has; empty without it.

        ``running`` are the names of the machine's processes. Raises LabError.
        """
        there = bool(self.services) and running >= {*self.services}
        return f"{', '.join(self.services)}" if there else ""

    def services_on(self, topology: Topology, node: str) -> tuple[str, ...]:  # noqa: ARG002  for roles that differ from node to node
        """Return the daemons that the role starts on a node."""
        return self.services

    def service_needs(self, topology: Topology, node: str) -> Mapping[str, tuple[str, ...]]:  # noqa: ARG002  for roles whose daemons need each other
        """Return the daemons on a node that are not ready without others, each with these.

        The others are NODE/SERVICE. A daemon that only works less well without them has none.
        """
        return {}

    def differences(self, topology: Topology, machine: Machine) -> list[Difference]:  # noqa: ARG002  for roles with links
        """Return the role's links on a running node that are missing or wrong.

        Return an empty list if all links are as the topology describes them.
        """
        return []

    def lab_steps(self, topology: Topology) -> Iterable[Step]:  # noqa: ARG002  for roles with such steps
        """Return the role's steps that belong to the whole lab and not to one node."""
        return ()

    @abstractmethod
    def steps(self, topology: Topology, node: Node) -> Iterable[Step]:
        """Return the steps that install and start the role on one node.

        The method only describes the steps; each step's ``act`` does the work later.
        """

"""The contract of a node and of a provider: what the rest of the house may assume.

A *node* is a machine: commands run on it, files go to and fro, services start
and stop.  A *provider* makes nodes, finds those that run, and removes them; it
knows nothing of Docker or flannel.  Roles and suites use nothing but what is
written here, so they run unchanged on every provider.
"""

from __future__ import annotations

import contextlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from testbed.errors import CommandError, MachineError, NoSuchLab, TimeoutExpired
from testbed.limits import Takes
from testbed.nodes import wiring
from testbed.nodes.links import port_name

if TYPE_CHECKING:
    import testinfra.host

    from testbed.artifacts import Store
    from testbed.nodes.wiring import Lack
    from testbed.requirement import Requirement
    from testbed.topology.model import Topology


@dataclass(frozen=True, slots=True)
class Result:
    """What a command on a node did.

    >>> Result(("true",), 0, b"", b"").ok
    True
    """

    argv: tuple[str, ...]
    status: int  #: exit status; minus the signal's number when one ended it
    out: bytes
    err: bytes
    seconds: float = 0.0  #: wall time from request to end

    @property
    def ok(self) -> bool:
        return self.status == 0

    @property
    def stdout(self) -> str:
        return self.out.decode(errors="replace")

    @property
    def stderr(self) -> str:
        return self.err.decode(errors="replace")

    def json(self) -> Any:
        """The standard output, decoded as JSON; empty output is None (as ``ip -j`` prints)."""
        return json.loads(self.out) if self.out.strip() else None


@dataclass(frozen=True, slots=True)
class Service:
    """A daemon, as systemd would see it.

    ``notify`` services tell when they are ready (sd_notify(3), READY=1); others
    count as ready once started.  ``digest`` is any string that says which
    settings it was started with, so that a later ``up`` can tell a change.
    ``unit`` is the name of its unit in Debian's package, where that is another.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    notify: bool = False
    digest: str = ""
    unit: str = ""


@dataclass(frozen=True, slots=True)
class ServiceState:
    """A service on a node as it is now."""

    name: str
    state: Literal["starting", "ready", "dead"]
    pid: int  #: as the node sees it; 0 when dead
    status: int | None  #: exit status of a dead one, minus the signal's number
    digest: str


@dataclass(frozen=True, slots=True)
class Ahead:
    """What can be done on a node before its lab is there, with the same outcome each time.

    A provider that keeps machines as they are may do it once, and hand out what it came to.
    ``key`` changes with the outcome; ``act`` does it, and is given the node.
    """

    key: str
    act: Callable[[Node], None] = field(compare=False)


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """All a provider needs to make one node of a lab."""

    name: str
    digest: str
    cpus: float | None = None
    memory: int | None = None
    interfaces: int = 0  #: how many ``ethN`` connect() will want; real machines are made with them
    #: Programs of this machine, by name, and folders, by path, that it does not show.  A machine
    #: with files of its own has none of them.
    hidden: tuple[str, ...] = ()
    #: For a provider that does it; others do not ask.
    ahead: Callable[[], Ahead] | None = field(default=None, compare=False)


class Running(ABC):
    """A command that was started on a node and may still run."""

    argv: tuple[str, ...]
    pid: int  #: as the node sees it

    @property
    @abstractmethod
    def out(self) -> bytes:
        """The standard output so far."""

    @property
    @abstractmethod
    def err(self) -> bytes:
        """The standard error so far."""

    @abstractmethod
    def wait(self, timeout: float | None = None) -> Result:
        """The result, once it has ended.  Raises TimeoutExpired; the command then goes on."""

    @abstractmethod
    def kill(self) -> None:
        """End the command and its children at once (SIGKILL)."""

    def still_running(self, node: str, timeout: float | None) -> TimeoutExpired:
        """What :meth:`wait` raises at its time-out."""
        return TimeoutExpired(
            f"on {node}: {' '.join(self.argv)}: still running after {timeout:g} s",
            hint=f"look at the node: testbed shell {node}",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def has_ended(node: str, lab: str, words: str = "") -> NoSuchLab:
    """What is raised where a node is asked for something, and is gone; ``words`` were its last."""
    lines = [f"node {node} of lab {lab} has ended", *(f"    {line}" for line in words.splitlines())]
    return NoSuchLab("\n".join(lines), hint=f"`testbed up -l {lab}` makes it anew")


def is_stopped(node: str, lab: str) -> NoSuchLab:
    """What is raised where a node is asked for something, and is stopped (a fault)."""
    return NoSuchLab(
        f"node {node} of lab {lab} is stopped",
        hint=f"`testbed fault heal -l {lab} stop {node}` lets it go on",
    )


class Node(ABC):
    """One machine of a lab.  Safe to use from several threads at once."""

    name: str
    digest: str  #: the settings that it was made with (``Topology.node_digest``)
    #: Whether this machine's files are on the node, too, so that nothing need be copied.
    shares_files: ClassVar[bool] = False
    #: Whether it runs on this machine's kernel, which is not to be changed for its sake.
    shares_kernel: ClassVar[bool] = False
    #: Whether it has an operating system of its own: systemd, a database of packages.
    has_system: ClassVar[bool] = True
    #: Whether it may wake with steps done that are done :class:`Ahead`.
    wakes: ClassVar[bool] = False
    #: How many times longer than on this machine something may take there: it may be emulated.
    slowness: ClassVar[float] = 1.0

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        check: bool = True,
    ) -> Result:
        """Run a command to its end and return what it did.

        ``timeout`` is in seconds; at its end the command and its children are
        killed.  Raises CommandError when ``check`` and the status is not 0,
        TimeoutExpired at the time-out, NoSuchLab when the node is gone.
        """
        with self.spawn(argv, input=input, env=env) as running:
            result = running.wait(timeout)
        return self.require(result) if check else result

    @abstractmethod
    def spawn(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Running:
        """Start a command and return at once.

        The command ends when the returned object is closed, by ``with`` or
        ``kill()``, and when this process ends.
        """

    @abstractmethod
    def attach(self, argv: Sequence[str], *, tty: bool, inside: int = 1) -> int:
        """Run a command on the caller's own terminal or pipes.

        Returns its exit status, 128 + N when signal N ended it. With ``tty`` the command leads
        a session on a new terminal of the node: it has a name there (/dev/pts/N), and takes
        over the size of the caller's terminal and its changes. ``inside`` is a process of the
        node, by the number that it has there: the terminal is one of the devpts that this
        process sees, where the provider can make one there. The caller's terminal is
        as it was once this has returned or raised.
        Raises NoSuchLab when the node ends meanwhile.
        """

    @abstractmethod
    def put(self, data: bytes, path: str, *, mode: int = 0o644) -> None:
        """Write a file on the node, its folders made; replaced in one step."""

    @abstractmethod
    def get(self, path: str) -> bytes:
        """Read a file of the node.  Raises FileNotFoundError."""

    @abstractmethod
    def provide(self, path: Path) -> str:
        """Make a file or folder of this machine readable on the node; return its path there."""

    @abstractmethod
    def offer(self, programs: Mapping[str, Path]) -> None:
        """Put programs of this machine on the node's PATH, before any other of the name.

        ``programs`` maps a name to the file.  A name that is an absolute path is the program's
        place itself; its folders are made, and what is there is replaced.
        """

    @abstractmethod
    def socket(self, path: str) -> str:
        """A path on this machine that reaches a unix socket of the node."""

    @abstractmethod
    def start(self, service: Service, *, timeout: float = 60.0) -> None:
        """Start a service and wait until it is ready.

        Raises ServiceError, with the end of its log, as soon as it dies.
        Starting one that runs with the same digest only waits for it; with
        another digest it is stopped first.
        """

    @abstractmethod
    def stop(self, service: str, *, grace: float = 5.0) -> None:
        """Stop a service: SIGTERM, and SIGKILL after ``grace`` seconds.  A dead one is fine."""

    @abstractmethod
    def services(self) -> dict[str, ServiceState]:
        """Every service ever started on the node, by name."""

    @abstractmethod
    def logs(self, service: str) -> str:
        """All that a service has written.  Raises NoSuchLab for an unknown one."""

    @property
    @abstractmethod
    def host(self) -> testinfra.host.Host:
        """The node as testinfra sees it."""

    def require(self, result: Result) -> Result:
        """Return a result that ended well, raise CommandError for any other."""
        if result.ok:
            return result
        raise CommandError(
            result.argv,
            where=self.name,
            status=result.status,
            stdout=result.stdout,
            stderr=result.stderr,
        )


#: Files on a node, each named after a unit and with the name of the service that it stands for.
UNITS = "/run/testbed/units"


#: Files on a node, each named after a package that the lab has brought programs of to it, with
#: the package's version where that is known.
PACKAGES = "/run/testbed/packages"


def note_packages(node: Node, packages: Mapping[str, str]) -> None:
    """Note on a node the packages, name to version, that programs were brought to it from."""
    for name, version in packages.items():
        node.put(version.encode(), f"{PACKAGES}/{name}")


def name_unit(node: Node, service: Service) -> None:
    """Let a service of a node be found by its unit's name, too."""
    if service.unit:
        node.put(service.name.encode(), f"{UNITS}/{service.unit}")


def service_of(node: Node, name: str) -> ServiceState | None:
    """A service of a node by its name, or by that of its unit; None for an unknown one."""
    states = node.services()
    if name not in states and "/" not in name:
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            name = node.get(f"{UNITS}/{name}").decode()
    return states.get(name)


#: Where a kernel counts what it has killed for want of memory: for a cgroup, by its version, and
#: for a machine (cgroup-v2.rst; cgroup-v1/memory.rst; proc_vmstat(5)).
KILLS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
KILLS_OF_A_MACHINE = ("/proc/vmstat",)


def killed_for_memory(node: Node) -> int:
    """How many of a node's own processes the kernel has killed because memory had run out."""
    for path in KILLS if node.shares_kernel else KILLS_OF_A_MACHINE:
        with contextlib.suppress(OSError, NoSuchLab):
            found = re.search(rb"^oom_kill (\d+)$", node.get(path), re.MULTILINE)
            if found:
                return int(found[1])
    return 0


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything that a provider is constructed from.

    ``state`` is the folder with the records of labs: labs of another folder belong to somebody
    else.  ``store`` has the programs and images.
    """

    state: Path
    store: Store


class Provider(ABC):
    """Creates, finds and removes the nodes of labs.

    An installed distribution declares one by an entry point of the group
    ``testbed.providers``, whose name is the provider's ``name``.
    """

    name: str
    #: The provider whose fabric the nodes are connected to, if not its own. Nodes of providers
    #: with the same fabric can be in one lab.
    fabric_of: str = ""
    #: Whether nodes run on the kernel of this machine: what their roles need of a kernel and of
    #: programs is then needed here.
    shares_kernel: ClassVar[bool] = False
    #: Kernel features that it needs on this machine, as :mod:`testbed.kernel` names them.
    kernel: ClassVar[tuple[str, ...]] = ()
    #: Programs that it calls on this machine, by Debian package.
    programs: ClassVar[Mapping[str, str]] = {}
    #: Share of this machine's limits for each node, without the node's roles.
    takes: ClassVar[Takes] = Takes()
    #: Maximum number of networks of one node.
    networks_max: ClassVar[int | None] = None

    @classmethod
    def of(cls, setup: Setup) -> Self:
        """Construct the provider; nothing is created or started."""
        del setup
        return cls()

    @abstractmethod
    def probe(self) -> list[Requirement]:
        """What this machine must have for the provider, each item tried, nothing changed."""

    def prepare(self, lab: str, specs: Sequence[NodeSpec]) -> None:
        """Make at hand what the making of those nodes takes; refuse what this machine cannot do.

        Called before anything of the lab is made, and may be interrupted: what takes long is
        done here, not in :meth:`create`.
        """
        del lab, specs

    @abstractmethod
    def create_fabric(self, lab: str, topology: Topology) -> None:
        """Make what joins the nodes, or what of it has gone.  The nodes' own joints stay as is."""

    @abstractmethod
    def create(self, lab: str, specs: Sequence[NodeSpec]) -> dict[str, Node]:
        """Create nodes that are not connected to anything yet; return them by name.

        May be called by several threads at once, for different nodes, and may assume that no
        node of those names runs.
        """

    def create_one(self, lab: str, spec: NodeSpec) -> Node:
        """Create one node."""
        return self.create(lab, [spec])[spec.name]

    def together(self, node: str) -> bool:
        """Whether all nodes like this one are to be created by one call of :meth:`create`.

        By default each is created by a call of its own, so that work on it begins at once.
        """
        del node
        return False

    @abstractmethod
    def connect(self, lab: str, topology: Topology, node: Node) -> None:
        """Join a new node to its networks: addresses, default route."""

    def lacks(self, lab: str, topology: Topology) -> dict[str, list[Lack]]:
        """Parts of the networks that are not as they should be, outside of the nodes.

        Under a node's name are its own joints, under "" the networks themselves.
        """
        del lab, topology
        return {}

    def mend(self, lab: str, topology: Topology, node: Node, lacks: Sequence[Lack]) -> None:
        """Put back what a node lacks of its wiring, inside and outside of it.

        ``lacks`` are those of :meth:`lacks` and of :func:`testbed.nodes.wiring.lacks`.
        Raises LabError where that is not possible.
        """
        del lab
        wiring.put_back(topology, node, lacks)

    @abstractmethod
    def nodes(self, lab: str) -> dict[str, Node]:
        """The nodes of a lab that run now, by name: read from the machine, not from a file."""

    def ended(self, lab: str) -> dict[str, str]:
        """The nodes that have ended by themselves and can still tell why: their last words."""
        del lab
        return {}

    @abstractmethod
    def labs(self) -> list[str]:
        """The labs of which anything runs now, read from the machine."""

    @abstractmethod
    def destroy(self, lab: str, nodes: Iterable[str] | None = None) -> None:
        """Remove the named nodes, or with None all of the lab; return when they are gone.

        What is not there is fine.  Nothing of another lab is touched, nor a node of
        that name which another provider has made.
        """

    @abstractmethod
    def fabric(self, lab: str) -> Node | None:
        """The place where the networks can be looked at, if the provider has one."""

    def ports(self, topology: Topology, node: str) -> list[str]:
        """The names of a node's ports on the fabric, in the order of its networks."""
        return [port_name(node, index) for index in range(len(topology.nodes[node].networks))]

    def pause(self, lab: str, node: str) -> None:
        """Stop every process of a node, until :meth:`resume`.

        Raises MachineError where this machine or the provider cannot do that, LabError where
        the node has not stopped in time.
        """
        del lab
        raise MachineError(
            f"{node} cannot be stopped: its provider is {self.name}",
            hint="a service can be stopped: NODE/SERVICE",
        )

    def resume(self, lab: str, node: str) -> None:
        """Let a paused node continue.  Raises as :meth:`pause` does."""
        self.pause(lab, node)

    def paused(self, lab: str) -> list[str]:
        """The paused nodes of a lab, those of other providers of the fabric possibly included."""
        del lab
        return []

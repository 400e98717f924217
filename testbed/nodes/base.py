"""The contract of nodes and providers.

A *node* is a machine: it runs commands, stores files, and starts and stops
services.  A *provider* creates nodes, finds running ones and removes them; it
knows nothing about Docker or flannel.  Roles and suites use only this contract,
so they run unchanged on every provider.

All times are in seconds and all sizes in bytes.  Paths on a node are absolute
strings; paths on this machine are :class:`pathlib.Path`.
"""

from __future__ import annotations

import contextlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from testbed.errors import (
    CommandError,
    MachineError,
    NodeNotRunning,
    NoSuchNode,
    NoSuchService,
    TimeoutExpired,
)
from testbed.limits import Takes
from testbed.nodes import wiring
from testbed.nodes.links import port_name

if TYPE_CHECKING:
    import testinfra.host

    from testbed.artifacts import Store
    from testbed.artifacts.source import Runner
    from testbed.faults.tunnels import Tunnels
    from testbed.leftover import Judge, LabPart, Leftover
    from testbed.nodes.attachable import Attachable, Listed
    from testbed.nodes.place import Place, Runs
    from testbed.nodes.wiring import Difference
    from testbed.requirement import Feature, Requirement
    from testbed.topology.declare import Block, Section
    from testbed.topology.model import Topology


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a command that ran on a node.

    >>> Result(("true",), 0, b"", b"").ok
    True
    """

    argv: tuple[str, ...]
    status: int  #: exit status, or -N when signal N killed it
    out: bytes
    err: bytes
    seconds: float = 0.0  #: wall time from request to exit

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
        """Decode the standard output as JSON.

        Empty output, which ``ip -j`` prints for an empty list, gives None.
        Raises ValueError for output that is not JSON.
        """
        return json.loads(self.out) if self.out.strip() else None


@dataclass(frozen=True, slots=True)
class Service:
    """A daemon to run on a node.

    ``argv`` is the command with its arguments, ``env`` adds environment variables.
    A ``notify`` service reports that it is ready (sd_notify(3), READY=1); any
    other is ready once started.  ``digest`` is a string that identifies the
    settings of the service, so that a later ``up`` detects a change.  ``unit`` is
    the name of its unit in the Debian package, if that differs from ``name``.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    notify: bool = False
    digest: str = ""
    unit: str = ""


#: Environment of daemons written in Go: collect garbage at five times the live heap instead of
#: twice. Their short-lived helpers for each container then exit before the first collection.
#: A lab of thirty nodes starts with a tenth less CPU, at a cost of a few megabytes per daemon.
GO = {"GOGC": "400"}


@dataclass(frozen=True, slots=True)
class ServiceState:
    """The current state of a service on a node."""

    name: str
    state: Literal["starting", "ready", "dead"]
    pid: int  #: in the node's pid namespace; 0 when dead
    status: int | None  #: exit status when dead, or -N when signal N killed it
    digest: str


@dataclass(frozen=True, slots=True)
class Ahead:
    """Setup that can run on a node before its lab exists, always with the same result.

    A provider that snapshots machines may run it once and reuse the result.
    ``act`` runs the setup on the node that it gets as argument; ``key`` identifies the result
    and differs when the result differs.
    """

    key: str
    act: Callable[[Node], None] = field(compare=False)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of one node at one moment, which its provider keeps under a name."""

    name: str
    created: float  #: Unix seconds
    size: int = 0  #: bytes


@dataclass(frozen=True, slots=True)
class Bind:
    """A file or folder of this machine that a node has at a path, and can change if it may."""

    source: Path
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """The settings from which a provider creates one node of a lab.

    ``digest`` identifies the node's settings (``Topology.node_digest``).  ``cpus`` and
    ``memory`` are limits: the number of CPUs, fractions allowed, and bytes; None means
    no limit, or the provider's default size.
    """

    name: str
    digest: str
    cpus: float | None = None
    memory: int | None = None
    interfaces: int = 0  #: number of ``ethN`` interfaces; virtual machines are created with them
    #: Programs (by name) and folders (by path) of this machine to hide from the node.  Ignored
    #: by nodes with their own file system.
    hidden: tuple[str, ...] = ()
    #: Trees of Debian packages to lay over this machine's files on the node (Provider.packages).
    layers: tuple[Path, ...] = ()
    binds: tuple[Bind, ...] = ()  #: files and folders of this machine (Provider.binds)
    image: str = ""  #: name of the image that is the node's file system (Provider.images)
    host: str = ""  #: name of the machine on which it must run (Provider.hosts)
    foreign: bool = False  #: another tool's file describes the node (``Topology.foreign``)
    #: Return setup to run ahead; called only by providers that support it (:attr:`Node.wakes`).
    ahead: Callable[[], Ahead] | None = field(default=None, compare=False)


class Running(ABC):
    """A command started on a node, running or finished."""

    argv: tuple[str, ...]
    pid: int  #: in the node's pid namespace

    @property
    @abstractmethod
    def out(self) -> bytes:
        """Standard output so far."""

    @property
    @abstractmethod
    def err(self) -> bytes:
        """Standard error so far."""

    @abstractmethod
    def wait(self, timeout: float | None = None) -> Result:
        """Wait until the command exits and return its result.

        ``timeout`` is in seconds; None waits without limit.  Raises TimeoutExpired at the
        timeout, and the command keeps running.
        """

    @abstractmethod
    def kill(self) -> None:
        """Kill the command and its children (SIGKILL)."""

    def still_running(self, node: str, timeout: float | None) -> TimeoutExpired:
        """Return the error that :meth:`wait` raises at its timeout."""
        return TimeoutExpired(
            f"on {node}: {' '.join(self.argv)}: still running after {timeout:g} s",
            hint=f"`testbed shell {node}` opens a shell there",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def has_ended(node: str, lab: str, words: str = "", *, attached: bool = False) -> NodeNotRunning:
    """Return the error for a request to a node that has ended.

    ``words`` are the last lines that the node wrote, for the error message.  ``attached`` tells
    that testbed has not created the lab.
    """
    hint = f"`testbed up -l {lab}` restarts it"
    if attached:
        hint = "start it with the tool that created the lab"
    return NodeNotRunning(f"node {node} of lab {lab} has ended", name=node, output=words, hint=hint)


def is_stopped(node: str, lab: str) -> NodeNotRunning:
    """Return the error for a request to a node that the ``stop`` fault has paused."""
    return NodeNotRunning(
        f"node {node} of lab {lab} is stopped by a fault",
        name=node,
        hint=f"`testbed fault heal -l {lab} stop {node}` continues it",
    )


def is_stopped_by_hand(node: str, lab: str) -> NodeNotRunning:
    """Return the error for a request to a node that `testbed stop` has removed."""
    return NodeNotRunning(
        f"node {node} of lab {lab} was stopped by hand",
        name=node,
        hint=f"`testbed start -l {lab} {node}` starts it",
    )


def no_service(service: str, node: str, known: Iterable[str]) -> NoSuchService:
    """Return the error for a service that a node does not have."""
    names = sorted(known)
    return NoSuchService(
        f"{node} has no service {service!r}",
        name=service,
        known=names,
        hint=f"services of {node}: {', '.join(names) or 'none'}",
    )


@dataclass(frozen=True, slots=True)
class Login:
    """The parameters of an SSH client on this machine for one node.

    ``key`` is the file of the private key, ``host_key`` the expected public host key
    ("ssh-ed25519 AAAA...").  ``join`` connects standard input and output to the node's server
    until one side closes them, and returns the exit status.
    """

    key: Path
    host_key: str
    join: Callable[[], int]
    user: str = "root"


class Node(ABC):
    """One machine of a lab.

    All methods are thread-safe.
    """

    name: str
    digest: str  #: identifies the settings it was created with (``Topology.node_digest``)
    #: Environment of its commands (:meth:`spawn`), besides that of all nodes.
    env: Mapping[str, str] = MappingProxyType({})
    #: Where its provider has created it, in words for ``up``; empty if there is nothing to say.
    about: str = ""
    #: True if the node sees this machine's programs and images, so that none need to be copied.
    shares_files: ClassVar[bool] = False
    #: True if the node runs on this machine's kernel, whose settings must not change.
    shares_kernel: ClassVar[bool] = False
    #: True if the node has its own operating system, with systemd and a package database.
    has_system: ClassVar[bool] = True
    #: True if the node may start from a snapshot in which its :class:`Ahead` has already run.
    wakes: ClassVar[bool] = False
    #: Factor for timeouts: how much slower than this machine the node may be (emulation).
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
        """Run a command, wait until it exits, and return its result.

        ``argv`` is the program with its arguments; no shell is involved.  ``input`` is its
        standard input, empty by default.  ``env`` adds environment variables.  After
        ``timeout`` seconds the command and its children are killed.

        Raises CommandError if ``check`` is true and the exit status is not 0,
        TimeoutExpired at the timeout, and NoSuchNode when the node has ended.
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
        """Start a command and return without waiting for it.

        ``argv``, ``input`` and ``env`` are as in :meth:`run`.  The command is killed
        when the returned object is closed (``with`` or ``kill()``) or this process ends.
        Raises NoSuchNode when the node has ended.
        """

    @abstractmethod
    def attach(self, argv: Sequence[str], *, tty: bool, inside: int = 1) -> int:
        """Run a command on the caller's terminal or pipes and return its exit status.

        The status is 128 + N when signal N killed the command.  With ``tty`` the command leads
        a session on a new terminal of the node (/dev/pts/N), which follows the size of the
        caller's terminal.  ``inside`` is the pid of a process in the node's pid namespace: if
        the provider supports it, the terminal is created in the devpts that this process sees.
        The caller's terminal settings are restored on return and on error.
        Raises NoSuchNode when the node ends meanwhile.
        """

    def pipe(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> int:
        """Run a command on open files of this process and return its exit status.

        The files are file descriptors; None is an empty input, or an output that is ignored.  The
        status is 128 + N when signal N killed the command.  ``env`` adds environment variables.
        By default input and output are held in memory; a provider that can pass them on without
        does so.  Raises NoSuchNode when the node ends meanwhile.
        """
        from testbed.nodes import terminal

        given = terminal.everything(stdin) if stdin is not None else None
        with self.spawn(argv, input=given, env=env) as running:
            result = running.wait()
        for file, data in ((stdout, result.out), (stderr, result.err)):
            if file is not None:
                terminal.write(file, data)
        return terminal.shell_status(result.status)

    @abstractmethod
    def put(self, data: bytes, path: str, *, mode: int = 0o644) -> None:
        """Write ``data`` to a file on the node.

        Missing parent folders are created; an existing file is replaced atomically.  ``mode``
        is the file's permission bits.
        """

    def own_folder(self, path: str) -> bool:
        """Make the folder of a path one of the node's own, with the files that it has.

        It is for a folder of this machine, in which a node can write nothing.  Return False if
        there is no need, or no folder.
        """
        del path
        return False

    @abstractmethod
    def get(self, path: str) -> bytes:
        """Return the content of a file on the node.

        Raises FileNotFoundError or IsADirectoryError.
        """

    @property
    def owns_kernel(self) -> bool:
        """True if the node's kernel is its own: not this machine's, and not its machine's.

        A node without a system of its own, such as a Pod, is a part of its machine.
        """
        return not self.shares_kernel and self.has_system

    @property
    def link_mtu(self) -> int | None:
        """The MTU, in bytes, of its links to networks that set none; None for the usual one.

        The usual one is 1500 (:meth:`Topology.link_mtu`). Networks that are tunnels have less.
        """
        return None

    def unbound(self, binds: Sequence[Bind]) -> list[Bind]:
        """Return those of the node's binds (:attr:`NodeSpec.binds`) that are not mounted."""
        return list(binds)

    def bind(self, binds: Sequence[Bind]) -> list[Bind]:
        """Mount those of the node's binds (:attr:`NodeSpec.binds`) that are not mounted.

        Return them.  Raises MachineError if the provider does not support it.
        """
        raise MachineError(
            f"{self.name} cannot have {binds[0].target}: the provider of this node has no binds",
            hint="copy it with `files`",
        )

    @abstractmethod
    def provide(self, path: Path) -> str:
        """Make a file or folder of this machine readable on the node.

        Return its path on the node, which may differ from ``path``.
        """

    @abstractmethod
    def offer(self, programs: Mapping[str, Path]) -> None:
        """Put programs of this machine on the node's PATH, ahead of others of the same name.

        ``programs`` maps a name to a file of this machine.  A name may be an absolute path: the
        program is then put there, missing folders are created and an existing file is replaced.
        """

    @abstractmethod
    def socket(self, path: str) -> str:
        """Return a path on this machine that connects to a unix socket of the node.

        If the node :attr:`shares_files`, it is the path of any file of the node.
        """

    @abstractmethod
    def start(self, service: Service, *, timeout: float = 60.0) -> None:
        """Start a service and wait until it is ready.

        If it already runs with the same digest, only wait until it is ready; if it
        runs with another digest, stop it first.  Raises ServiceError, with the end of
        the service's log, when it dies, and ServiceNotReady after ``timeout`` seconds.
        """

    def start_again(self, service: str, *, timeout: float = 60.0) -> None:
        """Start a service that has ended, with the settings of its last start; wait until ready.

        Starting a running service only waits.  Raises the errors of :meth:`start`, NoSuchService
        for one that was never started, and MachineError if the provider does not support it.
        """
        del timeout
        raise MachineError(
            f"{service} on {self.name} cannot be started by itself: the provider of this node "
            "does not support it",
            hint="`testbed up -l LAB` starts all services that do not run",
        )

    @abstractmethod
    def stop(self, service: str, *, grace: float = 5.0) -> None:
        """Stop a service: SIGTERM, then SIGKILL after ``grace`` seconds.

        Stopping a dead service does nothing.
        """

    @abstractmethod
    def services(self) -> dict[str, ServiceState]:
        """Return the state of every service ever started on the node, by name."""

    def logs(self, service: str) -> str:
        """Return the output of a service.  Raises NoSuchService, NoSuchNode."""
        known = self.services()
        if service not in known:
            raise no_service(service, self.name, known)
        return log_of(self, service)

    def keep(self, data: bytes, path: str) -> None:
        """Write a secret file that this machine can read as long as the node exists."""
        self.put(data, path, mode=0o600)

    def kept(self, path: str) -> Path:
        """Return the path on this machine of a file of :meth:`keep`."""
        return Path(self.socket(path))

    def login(self) -> Login | None:
        """Return how an SSH client logs in to the node; None if it has no SSH server."""
        return None

    @property
    def network(self) -> Runs:
        """A place in the node's network for ip(8), tc(8) and sysctl(8).

        By default it is the node itself. A node whose own files need not have these programs has a
        place outside.
        """
        return self

    @property
    def host(self) -> testinfra.host.Host:
        """The testinfra host of the node."""
        from testbed.nodes.testinfra_backend import host_of

        return host_of(self)

    def require(self, result: Result) -> Result:
        """Return ``result`` if its status is 0, else raise CommandError."""
        if result.ok:
            return result
        raise CommandError(
            result.argv,
            where=self.name,
            status=result.status,
            stdout=result.stdout,
            stderr=result.stderr,
        )


#: Folder on a node: the output of each service, in NAME.log.
LOGS = "/var/log/testbed"


def log_of(node: Node, service: str) -> str:
    """Return the output of a service; empty if there is none, or the node has ended."""
    with contextlib.suppress(OSError, NoSuchNode):
        return node.get(f"{LOGS}/{service}.log").decode(errors="replace")
    return ""


#: Folder on a node: one file per systemd unit name, holding the name of the lab's service.
UNITS = "/run/testbed/units"


#: Folder on a node: one file per package whose programs the lab has installed, holding the
#: package's version if known.
PACKAGES = "/run/testbed/packages"


def note_packages(node: Node, packages: Mapping[str, str]) -> None:
    """Record on a node the packages (name to version) of the programs installed on it."""
    for name, version in packages.items():
        node.put(version.encode(), f"{PACKAGES}/{name}")


def name_unit(node: Node, service: Service) -> None:
    """Record the unit name of a service on its node, for :func:`service_of`."""
    if service.unit:
        node.put(service.name.encode(), f"{UNITS}/{service.unit}")


def service_of(node: Node, name: str) -> ServiceState | None:
    """Return a service of a node by its name or its unit's name; None if unknown."""
    states = node.services()
    if name not in states and "/" not in name:
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            name = node.get(f"{UNITS}/{name}").decode()
    return states.get(name)


#: Files with the kernel's counter of out-of-memory kills: of a cgroup (version 2, version 1) and
#: of a machine (cgroup-v2.rst; cgroup-v1/memory.rst; proc_vmstat(5)).
KILLS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
KILLS_OF_A_MACHINE = ("/proc/vmstat",)


def killed_for_memory(node: Node) -> int:
    """Return the number of the node's processes that the kernel killed for lack of memory."""
    for path in KILLS_OF_A_MACHINE if node.owns_kernel else KILLS:
        with contextlib.suppress(OSError, NoSuchNode):
            found = re.search(rb"^oom_kill (\d+)$", node.get(path), re.MULTILINE)
            if found:
                return int(found[1])
    return 0


@dataclass(frozen=True, slots=True)
class Setup:
    """The arguments from which a provider is constructed.

    ``state`` is the folder with the records of labs; a provider ignores labs of other state
    folders.  ``store`` holds the programs and images.  ``chosen`` has the values of
    :attr:`Provider.options` on the command line, by their names.
    """

    state: Path
    store: Store
    chosen: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProviderOption:
    """An option of ``testbed up`` for labs with nodes of a provider, or of ``testbed attach``.

    Without it, the environment variable ``variable`` has the value.
    """

    name: str
    variable: str
    metavar: str
    help: str


class Provider(ABC):
    """Creates, finds and removes the nodes of labs.

    An installed distribution registers a provider with an entry point of the group
    ``testbed.providers``, whose name is the provider's ``name``.
    """

    name: str
    #: Name of the provider whose fabric the nodes are connected to; empty for its own fabric.
    #: Nodes of providers with the same fabric can be in one lab.
    fabric_of: str = ""
    #: Where its machines are, in words, if they exist already: testbed then creates, changes and
    #: removes nothing, and ``up`` only looks at them (:meth:`of_machines`).
    existing: ClassVar[str] = ""
    #: Its keys in a topology file, as mappings with the provider's name: at the top, and in nodes.
    section: ClassVar[type[Section] | None] = None
    node_section: ClassVar[type[Block] | None] = None
    #: True if nodes run on this machine's kernel. Kernel features that roles need are then
    #: required on this machine.
    shares_kernel: ClassVar[bool] = False
    #: True if nodes run this machine's programs. Programs that roles need are then required on
    #: this machine.
    shares_programs: ClassVar[bool] = False
    #: True if nodes can have Debian packages of their own (:attr:`NodeSpec.layers`).
    packages: ClassVar[bool] = False
    #: True if the file system of nodes can be an image (:attr:`NodeSpec.image`).
    images: ClassVar[bool] = False
    #: The file system of nodes where it cannot, for the error message.
    files: ClassVar[str] = ""
    #: True if nodes can have files and folders of this machine (:attr:`NodeSpec.binds`).
    binds: ClassVar[bool] = False
    #: True if its nodes run on several machines, one of which can be chosen
    #: (:attr:`NodeSpec.host`).
    hosts: ClassVar[bool] = False
    #: Its options of ``testbed up``; :attr:`Setup.chosen` has the values.
    options: ClassVar[tuple[ProviderOption, ...]] = ()
    #: Its options of ``testbed attach FILE``, for :meth:`listed`.
    list_options: ClassVar[tuple[ProviderOption, ...]] = ()
    #: Parts of a node that :meth:`snapshot` saves, in words; empty if there are no snapshots.
    snapshot_parts: tuple[str, ...] = ()
    #: Kernel features required on this machine, by their names in :mod:`testbed.kernel` or in
    #: ``trials``.
    kernel: ClassVar[tuple[str, ...]] = ()
    #: Kernel features that :mod:`testbed.kernel` does not have, with the commands that try them.
    trials: ClassVar[tuple[Feature, ...]] = ()
    #: Programs required on this machine, each with its Debian package.
    programs: ClassVar[Mapping[str, str]] = {}
    #: Use of this machine's limits by each node, its roles not included.
    takes: ClassVar[Takes] = Takes()
    #: Programs on this machine for its nodes, by the beginnings of their names. One that runs after
    #: its lab has ended is a leftover (``--check-machine``).
    processes: ClassVar[tuple[str, ...]] = ()
    #: Folders in which these programs write on a node. Those of this machine must not change.
    folders: ClassVar[tuple[str, ...]] = ()
    #: Maximum number of networks of one node; None for no maximum.
    networks_max: ClassVar[int | None] = None
    #: True if networks with nodes of this provider can have a rate, a delay and a loss.
    shapes: ClassVar[bool] = False
    #: True if ports of its nodes can be in VLANs.
    vlans: ClassVar[bool] = False
    #: True if networks with nodes of this provider can have an uplink.
    uplinks: ClassVar[bool] = False
    #: Largest MTU of a network with nodes of this provider, in bytes; None for no limit.
    mtu_max: ClassVar[int | None] = None

    @classmethod
    def running(cls) -> Iterable[tuple[str, Path]]:
        """Return the labs of all users of which a part runs here, each with its state folder.

        A provider that cannot see the labs of other state folders need not: :meth:`labs` has ours.
        """
        return ()

    @classmethod
    def leftovers(cls, judge: Judge) -> Iterable[Leftover]:  # noqa: ARG003  for those that can leave something
        """Return parts of nodes on this machine that belong to no live lab.

        Parts of live labs of other state folders are included as ``theirs``.
        """
        return ()

    @classmethod
    def lab_parts(cls) -> Iterable[LabPart]:
        """Return the parts of nodes of all users' labs on this machine, for ``--check-machine``.

        They are those that are no link, mount or file of this machine's own, which are compared
        anyway.
        """
        return ()

    @classmethod
    def task_limits(cls) -> list[tuple[str, int, int]]:
        """Return limits of processes and threads of this machine that hold for its nodes.

        Each has the place where it is set, the maximum, and the current number. Limits of the
        whole machine (sysctl) are known without it.
        """
        return []

    @classmethod
    def of(cls, setup: Setup) -> Self:
        """Construct the provider, without creating or starting anything."""
        del setup
        return cls()

    @abstractmethod
    def probe(self) -> list[Requirement]:
        """Return the provider's requirements of this machine, each with the outcome of its test.

        Nothing on the machine is changed.
        """

    @classmethod
    def summary(cls, cache: Path, *, full: bool, runner: Runner) -> Iterable[Requirement]:  # noqa: ARG003  for those that need much
        """Return the provider's requirements in a few lines, for ``doctor`` without a provider.

        ``full`` includes slow tests. ``runner`` runs commands, ``cache`` is the cache folder. They
        count as optional, and nothing is changed.
        """
        return ()

    @classmethod
    def attachable(cls) -> type[Attachable] | None:
        """Return the labs of the provider's own tool, for ``testbed attach``; None without any.

        The option of ``testbed attach`` has the provider's name.
        """
        return None

    @classmethod
    def listed(cls, path: str, text: str, chosen: Mapping[str, str]) -> Listed | None:
        """Return the machines that a file of another tool lists, for ``testbed attach FILE``.

        ``path`` is absolute, or empty for standard input. ``chosen`` has the values of
        :attr:`list_options` on the command line, by their names. None for a file of another kind.
        Only for providers with :attr:`existing`. Raises UsageError, MachineError, LabError.
        """
        del path, text, chosen
        return None

    def of_machines(self, topology: Topology) -> Provider:
        """Return the provider of the machines of a topology.

        Called only if they exist already (:attr:`existing`). Its :meth:`nodes` are all of them,
        and :meth:`ended` has those that do not answer. Nothing is asked or started.
        """
        del topology
        return self

    @classmethod
    def installs(cls, topology: Topology) -> Mapping[str, str]:
        """Return the nodes on whose existing machines (:attr:`existing`) roles are installed.

        Each has the folder of the machine with all that is installed. The nodes are created and
        removed like others, and :meth:`prepare` checks a machine without changing it.
        """
        del topology
        return {}

    def is_installed(self, lab: str, spec: NodeSpec) -> bool:
        """Tell whether a node of :meth:`installs` runs on its machine with these settings.

        Raises LabError if the machine cannot be reached.
        """
        return spec.name in self.nodes(lab)

    def prepare(self, lab: str, specs: Sequence[NodeSpec]) -> None:
        """Fetch or build everything that creating the nodes needs.

        Called before anything of the lab is created, and may be interrupted: slow work belongs
        here, not in :meth:`create`.  Raises an error for nodes that this machine cannot run.
        Machines that exist already need no ``specs``: it is called before the first look at them,
        and raises what keeps all of them from being reached.
        """
        del lab, specs

    def disconnect(self, lab: str) -> None:
        """Remove what this provider has added to reach machines that exist already.

        Called by ``down`` for each lab of such machines, and after the look of ``attach FILE``. A
        lab of other machines has nothing here.
        """
        del lab

    @abstractmethod
    def create_fabric(self, lab: str, topology: Topology) -> None:
        """Create the fabric that connects the nodes of a lab.

        If the fabric exists, create its missing parts only.  The links of existing nodes are
        left as they are.  In a lab of several providers, each is called, the fabric's own first.
        """

    @abstractmethod
    def create(self, lab: str, specs: Sequence[NodeSpec]) -> dict[str, Node]:
        """Create nodes without network connections and return them by name.

        Several threads may call this at the same time for different nodes.  No node of the same
        names runs when it is called.
        """

    def create_one(self, lab: str, spec: NodeSpec) -> Node:
        """Create one node."""
        return self.create(lab, [spec])[spec.name]

    def together(self, node: str) -> bool:
        """Tell whether to create all nodes like this one with one call of :meth:`create`.

        By default each node is created with a separate call, so that its next steps start
        earlier.
        """
        del node
        return False

    @abstractmethod
    def connect(self, lab: str, topology: Topology, node: Node) -> None:
        """Connect a new node to its networks: links, addresses and default route."""

    def differences(self, lab: str, topology: Topology) -> dict[str, list[Difference]]:
        """Return the missing or wrong parts of the fabric, by node name.

        The key "" holds the parts of the networks themselves, a node's name the links between
        this node and the fabric.  Parts inside the nodes are not checked here.
        """
        del lab, topology
        return {}

    def network_of(self, lab: str, node: Node) -> Place:
        """Return the place for programs such as ip(8) and tcpdump(8) that look at a node's network.

        By default it is the node itself. A provider whose nodes need not have such programs returns
        a place outside of the node, in the node's network.
        """
        del lab
        return node

    def restore(
        self, lab: str, topology: Topology, node: Node, differences: Sequence[Difference]
    ) -> None:
        """Restore missing or wrong parts of a node's wiring, inside and outside of the node.

        ``differences`` are the results of :meth:`differences` and
        :func:`testbed.nodes.wiring.differences` for
        this node.  Raises LabError if a part cannot be restored.
        """
        del lab
        wiring.restore(topology, node, differences)

    @abstractmethod
    def nodes(self, lab: str) -> dict[str, Node]:
        """Return the running nodes of a lab by name, as found on the machine, not in a record."""

    def outdated(self, lab: str, topology: Topology) -> Collection[str]:
        """Return the names of running nodes whose image has been replaced since their creation.

        The images of the topology are in the store.  ``up`` creates such nodes again.
        """
        del lab, topology
        return ()

    def ended(self, lab: str) -> dict[str, str]:
        """Return the last output of nodes that have ended unexpectedly, by node name."""
        del lab
        return {}

    @abstractmethod
    def labs(self) -> list[str]:
        """Return the names of all labs with a running part, as found on the machine."""

    @abstractmethod
    def destroy(self, lab: str, nodes: Iterable[str] | None = None) -> None:
        """Remove the named nodes, or the whole lab if ``nodes`` is None; wait until they are gone.

        Missing nodes are ignored.  Other labs are not touched, nor are nodes of the
        same name that belong to another provider.
        """

    @abstractmethod
    def fabric(self, lab: str) -> Node | None:
        """Return the node that holds the lab's networks, or None if there is none."""

    def ports(self, topology: Topology, node: str) -> list[str]:
        """Return the names of a node's ports on the fabric, in the order of its own."""
        return [port_name(node, index) for index, _ in enumerate(topology.nodes[node].ports)]

    def direct(self, topology: Topology, node: str) -> dict[str, str]:
        """Return the interfaces of a node that are joined to another node without the fabric.

        Each has the name of that node. Faults of such links are caused in the nodes.
        """
        del topology, node
        return {}

    def tunnels(self, nodes: Mapping[str, Node]) -> Tunnels | None:
        """Return the tunnels between running nodes, if their networks are such, without a fabric.

        Faults of links are caused there.
        """
        del nodes
        return None

    def pause(self, lab: str, node: str) -> None:
        """Stop every process of a node until :meth:`resume`.

        Raises MachineError if this machine or the provider does not support it, LabError if
        the node has not stopped in time.
        """
        del lab
        raise MachineError(
            f"{node} cannot be stopped: the provider {self.name} does not support it",
            hint="stop a service instead: NODE/SERVICE",
        )

    def resume(self, lab: str, node: str) -> None:
        """Continue a paused node.  Raises the errors of :meth:`pause`."""
        self.pause(lab, node)

    def paused(self, lab: str) -> list[str]:
        """Return the names of the paused nodes of a lab.

        Paused nodes of other providers of the same fabric may be included.
        """
        del lab
        return []

    def snapshot(self, lab: str, nodes: Collection[str], name: str) -> None:
        """Save the state of running nodes, all at the same moment, under a name.

        What :attr:`snapshot_parts` names is saved, and removed together with the node. No
        snapshot of this name exists. Raises MachineError if the provider does not support it or
        this machine lacks room, LabError if a node cannot be saved; no node then has the snapshot.
        """
        del lab, nodes, name
        raise MachineError(f"the provider {self.name} has no snapshots")

    def revert(self, lab: str, nodes: Collection[str], name: str) -> None:
        """Return running nodes to a snapshot that all of them have, all at the same moment.

        Their clocks are set to the present. Raises the errors of :meth:`snapshot`.
        """
        self.snapshot(lab, nodes, name)

    def drop_snapshot(self, lab: str, nodes: Collection[str], name: str) -> None:
        """Remove a snapshot from running nodes.  Raises the errors of :meth:`snapshot`."""
        self.snapshot(lab, nodes, name)

    def recover(self, lab: str, nodes: Collection[str]) -> list[str]:
        """Continue running nodes that a killed :meth:`snapshot` or :meth:`revert` left halted.

        Return their names. Paused nodes stay so. The caller holds the lock of the lab.
        """
        del lab, nodes
        return []

    def snapshots(self, lab: str) -> dict[str, list[Snapshot]]:
        """Return the snapshots of the running nodes of a lab, by node, the oldest first."""
        del lab
        return {}


class OneByOne(Provider):
    """A provider that creates each node by itself: it has :meth:`create_one` only."""

    def create(self, lab: str, specs: Sequence[NodeSpec]) -> dict[str, Node]:
        return {spec.name: self.create_one(lab, spec) for spec in specs}

    @abstractmethod
    def create_one(self, lab: str, spec: NodeSpec) -> Node:
        """Create one node without network connections."""

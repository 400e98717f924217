"""Replacements for testinfra modules that would be wrong for a node or a container.

A node has its own pid 1 that manages its daemons, it runs programs of packages that are
not installed, and a few of testinfra's modules mistake a failed command for an empty result.
"""

from __future__ import annotations

import functools
import signal
from typing import TYPE_CHECKING, Any, Protocol

from testinfra.modules.file import GNUFile
from testinfra.modules.package import Package
from testinfra.modules.pip import Pip
from testinfra.modules.service import Service, SystemdService, SysvService
from testinfra.modules.socket import Socket

from testbed.nodes.base import PACKAGES, UNITS, service_of

if TYPE_CHECKING:
    from testbed.nodes.base import Node, ServiceState

SUFFIX = ".service"
#: Ends of a service that count as success (systemd.service(5), SuccessExitStatus=).
CLEAN = (0, -signal.SIGHUP, -signal.SIGINT, -signal.SIGTERM, -signal.SIGPIPE)
UNIX = "unix://"  # prefix of the spec of a unix socket


class HasNode(Protocol):
    """A testinfra host whose back end leads to a node."""

    @property
    def backend(self) -> Any: ...


class NodeService(Service):  # type: ignore[misc]  # testinfra has no type information
    """A daemon of a node, by its unit name in Debian or its name in the lab.

    For all other units, the node's systemd is asked if it has one.
    """

    _host: HasNode

    @classmethod
    def get_module_class(cls, host: HasNode) -> type[NodeService]:
        """Return this class for every service manager."""
        del host
        return cls

    @functools.cached_property
    def _node(self) -> Node:
        node: Node = self._host.backend.node
        return node

    @property
    def _state(self) -> ServiceState | None:
        """Return the daemon's current state; None if it is not one of the lab's."""
        return service_of(self._node, self.name.removesuffix(SUFFIX))

    @property
    def _other(self) -> Any:
        """Return the unit of that name in the node's systemd; None if it has no systemd."""
        if not self._node.has_system:
            return None
        unit = type(SystemdService.__name__, (SystemdService,), {"_host": self._host})
        return unit(self.name)

    @property
    def exists(self) -> bool:
        """True for a daemon that the lab has started, even if it has ended."""
        return self._state is not None or bool(self._other and self._other.exists)

    @property
    def is_running(self) -> bool:
        """True while the daemon runs; one that is starting runs, too, as for systemd."""
        if (state := self._state) is not None:
            return state.state != "dead"
        return bool(self._other and self._other.is_running)

    @property
    def is_enabled(self) -> bool:
        """True for a daemon of the lab: a node starts them whenever it is created.

        Raises RuntimeError for an unknown one.
        """
        return bool(self._known("is_enabled", value=True))

    @property
    def is_masked(self) -> bool:
        """False for a daemon of the lab.  Raises RuntimeError for an unknown one."""
        return bool(self._known("is_masked", value=False))

    @property
    def is_valid(self) -> bool:
        """Tell whether the unit file is valid.  Raises RuntimeError for the lab's daemons."""
        if self._state is not None:
            raise RuntimeError(
                f"{self.name} on {self._node.name} runs without a unit file, "
                "so there is nothing to verify"
            )
        return bool(self._known("is_valid", value=True))

    @functools.cached_property
    def systemd_properties(self) -> dict[str, str]:
        """The properties of systemctl-show(1) that a node's pid 1 knows."""
        state = self._state
        if state is None:
            found: dict[str, str] = self._known("systemd_properties", value={})
            return found
        dead = state.state == "dead"
        failed = state.status not in (None, *CLEAN)
        active = "active" if state.state == "ready" else "activating"
        name = self.name.removesuffix(SUFFIX) + SUFFIX
        return {
            "Id": name,
            "Names": " ".join(dict.fromkeys([name, state.name + SUFFIX])),
            "LoadState": "loaded",
            "ActiveState": ("failed" if failed else "inactive") if dead else active,
            "SubState": ("failed" if failed else "dead") if dead else "running",
            "UnitFileState": "enabled",
            "MainPID": str(state.pid),
        } | ({"ExecMainStatus": str(state.status)} if state.status is not None else {})

    def _known(self, what: str, *, value: Any) -> Any:
        """Return ``value`` for a daemon of the lab, else the answer of the node's systemd."""
        if self._state is not None:
            return value
        if self._other is not None:
            return getattr(self._other, what)
        known = ", ".join(sorted(self._node.services())) or "none"
        raise RuntimeError(
            f"no service {self.name!r} on node {self._node.name}; its services: {known} "
            f"(other names are in {UNITS} of the node)"
        )


class ContainerService(Service):  # type: ignore[misc]  # testinfra has no type information
    """A service in a container, by testinfra's own module for the service manager there."""

    _host: Any

    @classmethod
    def get_module_class(cls, host: Any) -> type[ContainerService]:
        """Return this class; it looks for the container's service manager when needed."""
        del host
        return cls

    def __new__(cls, name: str) -> Any:
        """Create testinfra's own object.  Raises RuntimeError without a service manager."""
        found = Service.get_module_class(cls._host)
        if found is SysvService and not cls._host.exists("service"):
            raise RuntimeError(
                f"no service manager (systemctl, rc-service, service) in container "
                f"{cls._host.backend.get_hostname()}, so the state of {name!r} is unknown; "
                "use host.process"
            )
        return type(found.__name__, (found,), {"_host": cls._host})(name)


class NodePackage(Package):  # type: ignore[misc]  # testinfra has no type information
    """A package of a node.

    On a node that shares this machine's files, packages whose programs the lab has
    installed count as installed; all others are looked up in the machine's database.
    """

    _host: Any

    @classmethod
    def get_module_class(cls, host: Any) -> type[NodePackage]:
        """Return this class; it looks up the node's packages when needed."""
        del host
        return cls

    @functools.cached_property
    def _brought(self) -> str | None:
        """The version that the lab has installed, empty if unknown; None if it has not."""
        if self._host.backend.node.has_system:  # it has its own database
            return None
        try:
            version: bytes = self._host.backend.node.get(f"{PACKAGES}/{self.name}")
        except FileNotFoundError:
            return None
        return version.decode()

    @functools.cached_property
    def _other(self) -> Any:
        found = Package.get_module_class(self._host)
        return type(found.__name__, (found,), {"_host": self._host})(self.name)

    @property
    def is_installed(self) -> bool:
        """True for a package that is installed, or whose programs the lab runs."""
        return self._brought is not None or bool(self._other.is_installed)

    @property
    def version(self) -> str:
        """The version.  Raises RuntimeError if the lab does not know it."""
        if self._brought == "":
            raise RuntimeError(
                f"the lab provides programs of {self.name} but does not know their version; "
                "run the program to print it"
            )
        return self._brought or str(self._other.version)

    @property
    def release(self) -> str:
        """The release, from testinfra's module for the machine's package format."""
        return str(self._other.release)


class StrictFile(GNUFile):  # type: ignore[misc]  # testinfra has no type information
    """A file whose checksums raise an error if it cannot be read.

    testinfra pipes the program's output to cut(1), whose exit status hides a failure.
    """

    @classmethod
    def get_module_class(cls, host: Any) -> type[StrictFile]:
        """Return this class: nodes and containers are Linux."""
        del host
        return cls

    def _sum(self, program: str) -> str:
        line = str(self.check_output(f"{program} %s", self.path))
        return line.removeprefix("\\").split()[0]  # md5sum(1) marks a quoted name

    @property
    def md5sum(self) -> str:
        """The MD5 sum of the content.  Raises AssertionError for a file that cannot be read."""
        return self._sum("md5sum")

    @property
    def sha256sum(self) -> str:
        """The SHA-256 sum of the content.  Raises AssertionError as :attr:`md5sum` does."""
        return self._sum("sha256sum")


class RealSocket(Socket):  # type: ignore[misc]  # testinfra has no type information
    """A socket; a unix socket is looked up by its real path.

    The kernel lists ``/var/run/docker.sock`` as ``/run/docker.sock``, with links resolved.
    """

    _host: Any

    @classmethod
    def get_module_class(cls, host: Any) -> type[RealSocket]:
        """Return this class; it looks for the program that lists sockets when needed."""
        del host
        return cls

    @classmethod
    def _found(cls) -> Any:
        found = Socket.get_module_class(cls._host)
        return type(found.__name__, (found,), {"_host": cls._host})

    def __new__(cls, socketspec: str | None) -> Any:
        """Create testinfra's own object, for the real path of a unix socket."""
        if socketspec is not None and socketspec.startswith(UNIX + "/"):
            real = cls._host.run("realpath %s", socketspec.removeprefix(UNIX))
            if real.rc == 0:
                socketspec = UNIX + real.stdout.rstrip("\n")
        return cls._found()(socketspec)

    @classmethod
    def get_listening_sockets(cls) -> list[str]:
        """Return the specs of all listening sockets."""
        found: list[str] = cls._found().get_listening_sockets()
        return found


class StrictPip(Pip):  # type: ignore[misc]  # testinfra has no type information
    """A Python package whose version raises an error if the package is missing."""

    @property
    def version(self) -> str:
        """The version.  Raises AssertionError if the package, or pip itself, is missing."""
        lines = str(self.check_output("%s show %s", self.pip_path, self.name)).splitlines()
        return next(line.split()[1] for line in lines if line.startswith("Version:"))

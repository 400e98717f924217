"""Modules of testinfra that answer for a node or a container where its own would be wrong.

A node keeps its daemons with a pid 1 of its own, runs programs of packages that are
not installed, and a few of testinfra's own modules take no answer for an empty one.
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
#: How a service may end without having failed (systemd.service(5), SuccessExitStatus=).
CLEAN = (0, -signal.SIGHUP, -signal.SIGINT, -signal.SIGTERM, -signal.SIGPIPE)
UNIX = "unix://"  # what the spec of a socket that is a file begins with


class HasNode(Protocol):
    """A testinfra host whose back end leads to a node."""

    @property
    def backend(self) -> Any: ...


class NodeService(Service):  # type: ignore[misc]  # testinfra has no type information
    """A daemon of a node, by the name of its unit in Debian or by the lab's own name for it.

    A machine with a systemd of its own is asked for all other units.
    """

    _host: HasNode

    @classmethod
    def get_module_class(cls, host: HasNode) -> type[NodeService]:
        """Return this class, whatever service manager the host seems to have."""
        del host
        return cls

    @functools.cached_property
    def _node(self) -> Node:
        node: Node = self._host.backend.node
        return node

    @property
    def _state(self) -> ServiceState | None:
        """The daemon as it is now; None for a name that is none of the lab's."""
        return service_of(self._node, self.name.removesuffix(SUFFIX))

    @property
    def _other(self) -> Any:
        """The unit of that name as the machine's own systemd has it; None where there is none."""
        if not self._node.has_system:
            return None
        unit = type(SystemdService.__name__, (SystemdService,), {"_host": self._host})
        return unit(self.name)

    @property
    def exists(self) -> bool:
        """True for a daemon that the lab has started, also once it has ended."""
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
                f"{self.name} on {self._node.name} is started without a unit file, "
                "so there is none to verify"
            )
        return bool(self._known("is_valid", value=True))

    @functools.cached_property
    def systemd_properties(self) -> dict[str, str]:
        """The properties that systemctl-show(1) has and a node's pid 1 knows."""
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
        """``value`` for a daemon of the lab, else what the machine's systemd says."""
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
    """A service in a container, as testinfra has it, if there is anything to ask."""

    _host: Any

    @classmethod
    def get_module_class(cls, host: Any) -> type[ContainerService]:
        """Return this class: what the container has is looked up when it is needed."""
        del host
        return cls

    def __new__(cls, name: str) -> Any:
        """Make testinfra's own object.  Raises RuntimeError without a service manager."""
        found = Service.get_module_class(cls._host)
        if found is SysvService and not cls._host.exists("service"):
            raise RuntimeError(
                f"no service manager (systemctl, rc-service, service) in container "
                f"{cls._host.backend.get_hostname()}, so nothing is known of {name!r}; "
                "look at host.process"
            )
        return type(found.__name__, (found,), {"_host": cls._host})(name)


class NodePackage(Package):  # type: ignore[misc]  # testinfra has no type information
    """A package of a node.

    On a node that shares this machine's files those whose programs the lab has
    brought count as installed; of all others the machine's own database tells.
    """

    _host: Any

    @classmethod
    def get_module_class(cls, host: Any) -> type[NodePackage]:
        """Return this class: what the node has is looked up when it is needed."""
        del host
        return cls

    @functools.cached_property
    def _brought(self) -> str | None:
        """The version of what the lab has brought, empty if unknown; None if it has not."""
        if self._host.backend.node.has_system:  # it has a database that is its own
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
        """True for a package that is installed, or that the lab runs programs of."""
        return self._brought is not None or bool(self._other.is_installed)

    @property
    def version(self) -> str:
        """The version.  Raises RuntimeError where the lab has not noted that of its programs."""
        if self._brought == "":
            raise RuntimeError(
                f"the lab has brought programs of {self.name} and has not noted its version; "
                "ask the program itself"
            )
        return self._brought or str(self._other.version)

    @property
    def release(self) -> str:
        """The release, as testinfra has it for the machine's kind of package."""
        return str(self._other.release)


class StrictFile(GNUFile):  # type: ignore[misc]  # testinfra has no type information
    """A file whose sums are an error where it cannot be read.

    testinfra's own end in a pipe to cut(1), whose exit status hides that of the program.
    """

    @classmethod
    def get_module_class(cls, host: Any) -> type[StrictFile]:
        """Return this class: nodes and containers are Linux."""
        del host
        return cls

    def _sum(self, program: str) -> str:
        line = str(self.check_output(f"{program} %s", self.path))
        return line.removeprefix("\\").split()[0]  # md5sum(1) marks a name that it has quoted

    @property
    def md5sum(self) -> str:
        """The MD5 sum of the content.  Raises AssertionError for a file that cannot be read."""
        return self._sum("md5sum")

    @property
    def sha256sum(self) -> str:
        """The SHA-256 sum of the content.  Raises AssertionError as :attr:`md5sum` does."""
        return self._sum("sha256sum")


class RealSocket(Socket):  # type: ignore[misc]  # testinfra has no type information
    """A socket as testinfra has it; that of a file by the path that its program has bound.

    ``/var/run/docker.sock`` is ``/run/docker.sock`` to the kernel, which does not know links.
    """

    _host: Any

    @classmethod
    def get_module_class(cls, host: Any) -> type[RealSocket]:
        """Return this class: which program lists sockets is looked up when it is needed."""
        del host
        return cls

    @classmethod
    def _found(cls) -> Any:
        found = Socket.get_module_class(cls._host)
        return type(found.__name__, (found,), {"_host": cls._host})

    def __new__(cls, socketspec: str | None) -> Any:
        """Make testinfra's own object, for the real path of a file."""
        if socketspec is not None and socketspec.startswith(UNIX + "/"):
            real = cls._host.run("realpath %s", socketspec.removeprefix(UNIX))
            if real.rc == 0:
                socketspec = UNIX + real.stdout.rstrip("\n")
        return cls._found()(socketspec)

    @classmethod
    def get_listening_sockets(cls) -> list[str]:
        """The specs of all listening sockets."""
        found: list[str] = cls._found().get_listening_sockets()
        return found


class StrictPip(Pip):  # type: ignore[misc]  # testinfra has no type information
    """A Python package whose version is an error where there is none."""

    @property
    def version(self) -> str:
        """The version.  Raises AssertionError for a package, or a pip, that is not there."""
        lines = str(self.check_output("%s show %s", self.pip_path, self.name)).splitlines()
        return next(line.split()[1] for line in lines if line.startswith("Version:"))

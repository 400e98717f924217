"""A running container of a role, and how commands enter it.

Whatever has started a container, it is a process on its node with namespaces of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

SHORT = 6  # length of a short container ID


@dataclass(frozen=True, slots=True)
class ContainerProcess:
    """A running container.

    ``pid`` is its first process in the node's PID namespace. ``address`` is the address on its
    first network, empty if it has none of its own. ``env`` is the environment of its commands,
    as NAME=VALUE. ``addresses`` are those on each of its networks by name, without any on a network
    without IPv4. ``user`` is true if it has a user namespace of its own.
    """

    name: str
    id: str
    pid: int
    address: str
    env: tuple[str, ...] = ()
    addresses: Mapping[str, str] = field(default_factory=dict)
    user: bool = False


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a log, without its end; ``time`` is in Unix seconds, None if it is not known."""

    text: str
    time: float | None = None


class Control(ABC):
    """The containers of a role on one node, running or not, for work by hand."""

    @abstractmethod
    def states(self) -> Mapping[str, str]:
        """Return the state of each container by name, ``running`` for one that runs.

        Raises LabError if the daemon does not answer.
        """

    @abstractmethod
    def start(self, name: str) -> None:
        """Start a container that has ended, with its settings.  Raises LabError."""

    @abstractmethod
    def stop(self, name: str, grace: float) -> str:
        """Stop a container: its stop signal, then SIGKILL after ``grace`` seconds.

        Return how it has ended, such as ``exit status 0``. Raises LabError.
        """


def choose(containers: Mapping[str, ContainerProcess], name: str) -> ContainerProcess | None:
    """Return the container with a name, ID or ID prefix, or None."""
    if name in containers:
        return containers[name]
    meant = [one for one in containers.values() if len(name) >= SHORT and one.id.startswith(name)]
    return meant[0] if len(meant) == 1 else None


def without(env: Collection[str]) -> list[str]:
    """Return the command prefix for a command without the environment of its node's commands.

    A program of an image has that of the image.
    """
    return ["env", *(word for name in sorted(env) for word in ("-u", name))] if env else []


def enter(pid: int, *, mounts: bool = True, tty: bool = False, user: bool = False) -> Sequence[str]:
    """Return the command prefix that enters a container from its node.

    With ``mounts`` False the command enters only the container's network namespace, so it is
    the node's own program and need not be in the image. With ``tty`` the command leads a session
    of its own, as on a terminal. Otherwise nsenter(1) leads the session, and Ctrl-C ends nsenter
    before the command can handle it. ``user`` is for a container with a user namespace of its own,
    in which its programs run.
    """
    mapped = ("--user",) if user else ()
    target = f"--target={pid}"
    if not mounts:
        return ("nsenter", target, "--net")
    if not tty:
        return ("nsenter", target, *mapped, "--mount", "--uts", "--ipc", "--net", "--pid")
    # The mounts come last: setsid(1) and /proc with the target are the node's.
    outer = ("nsenter", target, "--uts", "--ipc", "--net", "--pid")
    return (*outer, "setsid", "--ctty", "nsenter", target, *mapped, "--mount")

"""The one door to the Engine API: the docker SDK on a node's own socket.

The SDK's import costs more than a container's start, so it is loaded while the
first daemon is starting, and by nothing that needs no daemon.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self, TypeVar

from testbed.artifacts.archive import full_name, local_name
from testbed.errors import LabError, NoAnswer

if TYPE_CHECKING:
    from docker import APIClient

    from testbed.artifacts import Store
    from testbed.nodes.base import Node
    from testbed.topology.model import Container, Healthcheck
    from testbed.topology.model import Engine as Release

T = TypeVar("T")

SOCKET = "/run/docker.sock"
DIGEST = "testbed.digest"  # label: the settings a container was made with
LAB = "testbed.labs"
#: The parts (:mod:`testbed.artifacts.catalog`) that each release is made of: the first brings
#: the daemon and tells the version, the first that has a helper brings that.
PARTS: Mapping[Release, tuple[str, ...]] = {
    "20.10": ("docker",),
    "29": ("docker-29", "docker-cli-29", "runc-1.5", "docker"),
}
PROGRAMS = ("dockerd", "containerd", "runc")  # without these no daemon starts
PATIENCE = 30.0  # seconds for a first word of a daemon: if it has none, it hangs
LIMIT = 300.0  # on a machine that is short of CPU a start takes as long as it takes
NAME_VARIABLE = "NAME"  # what the image's page calls itself


@dataclass(frozen=True, slots=True)
class ContainerState:
    """A container of a node, as its daemon sees it now.

    ``pid`` is that of its first process in the node's pid namespace, 0 when it
    does not run; ``address`` is empty where it has none of its own.
    """

    name: str
    id: str
    running: bool
    pid: int
    network: str
    address: str
    gateway: str
    image: str
    digest: str | None
    status: str
    exit: int = 0  #: exit status of one that has ended
    out_of_memory: bool = False  #: the kernel has killed it for that (OOMKilled)
    error: str = ""  #: why it did not start, in the daemon's words
    health: str = ""  #: healthy, unhealthy or starting; empty without a health check
    restarts: int = 0  #: how often the daemon has started it again


def preload() -> None:
    """Start to load the SDK beside whatever else goes on; the first Engine waits for it."""
    if "docker" not in sys.modules:
        threading.Thread(target=importlib.import_module, args=("docker",), daemon=True).start()


class Engine:
    """The daemon of one node.

    Whatever it answers, or does not, is told as LabError. ``patience`` is how long it may take
    to answer at all, ``limit`` how long any other call may take, both in seconds.
    """

    def __init__(self, node: Node, *, patience: float = PATIENCE, limit: float = LIMIT) -> None:
        self._node = node
        self.api = self.reading("connect", self._connect, patience)
        self.api.timeout = limit

    def _connect(self, patience: float) -> APIClient:
        import docker

        base = f"unix://{self._node.socket(SOCKET)}"
        return docker.APIClient(base_url=base, version="auto", timeout=patience)

    def close(self) -> None:
        self.api.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reading(self, what: str, method: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Return the result of ``method``, which asks the daemon and reads its answer.

        Raises LabError when there is no answer, when it is a no, and when ``method`` cannot
        make sense of it.
        """
        import docker.errors
        import requests.exceptions
        import urllib3.exceptions

        try:
            return method(*args, **kwargs)
        except LabError:
            raise
        except docker.errors.NotFound as error:
            raise LabError(
                f"dockerd on {self._node.name}: cannot {what}: {error.explanation}",
                hint="`testbed status LAB` shows what is there",
            ) from error
        except docker.errors.APIError as error:
            words = error.explanation or str(error)
            raise LabError(f"dockerd on {self._node.name}: cannot {what}: {words}") from error
        except (
            docker.errors.DockerException,
            requests.exceptions.RequestException,
            urllib3.exceptions.HTTPError,
            OSError,
        ) as error:
            raise no_answer(self._node.name, error) from error
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise no_sense(self._node.name, what, error) from error

    @functools.cached_property
    def version(self) -> dict[str, Any]:
        """``GET /version``, as the daemon gives it."""
        return self.reading("tell its version", self._version)

    def _version(self) -> dict[str, Any]:
        answer = dict(self.api.version())
        return {**answer, "Version": str(answer["Version"])}

    def has_image(self, name: str) -> bool:
        """Tell whether the daemon has an image of exactly this name and tag."""
        return bool(self.image_id(name))

    def image_id(self, name: str) -> str:
        """The ID of an image; empty if the daemon has none of that name or ID."""
        import docker.errors

        try:
            return self.reading("look for an image", self._inspect_image, local_name(name))
        except LabError as error:
            if isinstance(error.__cause__, docker.errors.NotFound):
                return ""
            raise

    def _inspect_image(self, name: str) -> str:
        return str(self.api.inspect_image(name)["Id"])

    def load(self, archive: Path, name: str) -> str:
        """Load an image from an archive, make sure that it has this name, and return its ID.

        An archive of one image may give it another name, or none.
        """
        what = f"load the image {name} from {archive}"
        with archive.open("rb") as file:
            errors, loaded = self.reading(what, self._load, file)
        for error in errors:
            free = f"see its free space: testbed exec {self._node.name} df /var/lib/docker"
            raise LabError(
                f"dockerd on {self._node.name}: cannot {what}: {error}",
                hint=free
                if "no space left" in error
                else "give an archive as `docker save` writes it",
            )
        wanted = full_name(local_name(name))
        images = {self.image_id(one) for one in loaded if full_name(one) == wanted}
        images = images or {self.image_id(one) for one in loaded}
        if len(images) != 1:
            raise LabError(
                f"{archive} has no image named {name}; it has {', '.join(loaded) or 'none'}",
                hint=f"save that image alone: docker save -o FILE {name}",
            )
        self.name_image(image := images.pop(), name)
        return image

    def name_image(self, image: str, name: str) -> None:
        """Make sure that an image, given by its ID, is the one that has this name."""
        if self.image_id(name) != image:
            repository, _, tag = full_name(local_name(name)).rpartition(":")
            self.reading(f"name the image {name}", self.api.tag, image, repository, tag)

    def _load(self, file: BinaryIO) -> tuple[list[str], list[str]]:
        """The errors that the daemon tells, last of all, and names or IDs of what it loaded."""
        told = list(self.api.load_image(file))
        said = "".join(words.get("stream", "") for words in told)
        loaded = re.findall(r"Loaded image(?: ID)?: (\S+)", said)
        return [words["error"] for words in told if "error" in words], list(dict.fromkeys(loaded))

    def names(self, *, label: str | None = None) -> set[str]:
        """The names of all containers, running or not; of those with a label ``key=value``."""
        return self.reading("list containers", self._names, {"label": label} if label else None)

    def _names(self, filters: Mapping[str, str] | None) -> set[str]:
        listed = as_list(self.api.containers(all=True, filters=filters))
        # One that is being removed has lost its name already.
        return {entry["Names"][0].lstrip("/") for entry in listed if entry["Names"]}

    def containers(self) -> dict[str, ContainerState]:
        """Every container of the daemon, running or not, by name."""
        return {name: self.inspect(name) for name in sorted(self.names())}

    def find(self, container: str) -> ContainerState | None:
        """The container of that name, or None."""
        import docker.errors

        try:
            return self.inspect(container)
        except LabError as error:
            if isinstance(error.__cause__, docker.errors.NotFound):
                return None
            raise

    def inspect_raw(self, container: str) -> dict[str, Any]:
        """``GET /containers/{id}/json``, as the daemon gives it."""
        return self.reading(
            f"inspect the container {container}",
            lambda: dict(self.api.inspect_container(container)),
        )

    def inspect(self, container: str) -> ContainerState:
        return self.reading(f"inspect the container {container}", self._inspect, container)

    def _inspect(self, container: str) -> ContainerState:
        data = self.inspect_raw(container)
        networks = data["NetworkSettings"]["Networks"] or {}
        first: Mapping[str, Any] = next(iter(networks.values()), {})
        return ContainerState(
            name=data["Name"].lstrip("/"),
            id=data["Id"],
            running=data["State"]["Running"],
            pid=data["State"]["Pid"],
            network=data["HostConfig"]["NetworkMode"],
            address=first.get("IPAddress") or "",
            gateway=first.get("Gateway") or "",
            image=data["Config"]["Image"],
            digest=(data["Config"]["Labels"] or {}).get(DIGEST),
            status=data["State"]["Status"],
            exit=data["State"]["ExitCode"],
            out_of_memory=data["State"]["OOMKilled"],
            error=data["State"]["Error"],
            health=_health(data["State"]),
            restarts=data["RestartCount"],
        )

    def logs(self, container: str, lines: int = 12) -> str:
        """The last lines that a container has written, of both outputs."""
        written: bytes = self.reading(
            f"read the log of the container {container}", self.api.logs, container, tail=lines
        )
        return written.decode(errors="replace")

    def start(self, lab: str, container: Container, digest: str) -> None:
        """Create a container and start it."""
        ports = [(p.container_port, p.protocol) for p in container.publish]
        bindings: dict[str, list[Any]] = {}
        for port in container.publish:
            where = (str(port.address), port.host_port) if port.address else port.host_port
            bindings.setdefault(f"{port.container_port}/{port.protocol}", []).append(where)
        shares = container.network == "host" or container.network.startswith("container:")
        config = self.api.create_host_config(
            network_mode=container.network, port_bindings=bindings or None
        )
        self.reading(
            f"create the container {container.name}",
            self.api.create_container,
            image=local_name(container.image),
            command=list(container.command) if container.command is not None else None,
            name=container.name,
            # A container that shares a network namespace shares its host name too.
            hostname=None if shares else container.name,
            environment={NAME_VARIABLE: container.name, **container.env},
            labels={DIGEST: digest, LAB: lab},
            ports=ports or None,
            host_config=config,
            healthcheck=_healthcheck(container.healthcheck),
        )
        self.reading(f"start the container {container.name}", self.api.start, container.name)

    def remove(self, container: str) -> None:
        """End a container at once and remove it."""
        self.reading(
            f"remove the container {container}", self.api.remove_container, container, force=True
        )


def _health(state: Mapping[str, Any]) -> str:
    """Docker says "none" of a check that was turned off."""
    word: str = (state.get("Health") or {}).get("Status", "")
    return "" if word == "none" else word


def _healthcheck(check: Healthcheck | None) -> dict[str, Any] | None:
    """A health check as the Engine API takes it: times in nanoseconds, 0 for the default."""
    if check is None:
        return None
    times = {
        "Interval": check.interval, "Timeout": check.timeout, "StartPeriod": check.start_period
    }  # fmt: skip
    return {
        "Test": list(check.test),
        "Retries": check.retries or 0,
        **{name: round((seconds or 0) * 1e9) for name, seconds in times.items()},
    }


def as_list(answer: Any) -> list[Any]:
    """An answer that is to be a list.  Raises TypeError."""
    if not isinstance(answer, list):
        raise TypeError(f"not a list but {type(answer).__name__}")
    return answer


def no_answer(node: str, error: Exception) -> NoAnswer:
    """The error for a daemon that does not answer, with what the connection says of why."""
    chain = list(_causes(error))
    if any(isinstance(one, ConnectionRefusedError | FileNotFoundError) for one in chain):
        why = f"it is not running (nobody listens on {SOCKET})"
        hint = f"its last words: testbed logs {node} dockerd; `testbed up -l LAB` restarts it"
    elif any(isinstance(one, TimeoutError) for one in chain):
        why = "it hangs (no answer in time)"
        hint = "`testbed fault ls` shows whether it is stopped, `testbed fault heal` resumes it"
    else:
        why = str(error) or type(error).__name__
        hint = f"`testbed logs {node} dockerd` may say why"
    return NoAnswer(f"dockerd on {node} does not answer: {why}", hint=hint)


def no_sense(node: str, what: str, error: Exception) -> LabError:
    """The error for a daemon whose answer is none of the Engine API's."""
    return LabError(
        f"dockerd on {node}: cannot {what}: its answer makes no sense ({error!r})",
        hint=f"is it Docker that listens on {SOCKET} there? `testbed logs {node} dockerd`",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it wraps."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def parse_version(text: str) -> tuple[int, int, int]:
    """The version in ``Docker version 20.10.24+dfsg1, build ...`` or in a bare number.

    A text without one counts as (0, 0, 0).

    >>> parse_version("Docker version 28.0.2, build 123")
    (28, 0, 2)
    """
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    if not found:
        return (0, 0, 0)
    return (int(found[1]), int(found[2]), int(found[3] or 0))


def program(store: Store, release: Release, name: str) -> Path:
    """A program of a release, made first if need be; the user's own where there is one."""
    return store.binary(name, *PARTS[release])


def engine_version(store: Store, machine: Node, release: Release) -> str:
    """The version of the dockerd that a node runs, or is to run.

    Asked of the program itself where it is the user's own.
    """
    if not store.is_users("dockerd"):
        return store.version(PARTS[release][0])
    argv = [machine.provide(store.binary("dockerd")), "--version"]
    return machine.run(argv).stdout.strip()


def enter(pid: int, *, mounts: bool = True, tty: bool = False) -> Sequence[str]:
    """The prefix that runs a command, on the node, inside a container.

    With ``mounts`` False only the network is the container's: the command is
    the node's own, which the image need not have. With ``tty`` the command leads a session of
    its own inside, as on a terminal: without, nsenter(1) would lead it, and Ctrl-C would end
    nsenter instead of being the command's to handle.
    """
    target = f"--target={pid}"
    if not mounts:
        return ("nsenter", target, "--net")
    if not tty:
        return ("nsenter", target, "--mount", "--uts", "--ipc", "--net", "--pid")
    # The mounts come last: setsid(1) is the node's. /proc, and so the target, is the node's too.
    outer = ("nsenter", target, "--uts", "--ipc", "--net", "--pid")
    return (*outer, "setsid", "--ctty", "nsenter", target, "--mount")

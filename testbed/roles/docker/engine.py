"""Client of the Engine API: the docker SDK on a node's own socket.

All access to the API goes through this module. To import the SDK takes longer than to start a
container, so it is loaded while the first daemon starts, and only by code that needs a daemon.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self, TypeVar

from testbed.artifacts.reference import full_name, local_name
from testbed.errors import LabError, NoAnswer
from testbed.nodes.engine import SOCKET
from testbed.roles.docker.networks import BRIDGE_NAME
from testbed.topology.attach import Attachment

if TYPE_CHECKING:
    from docker import APIClient

    from testbed.nodes.base import Node
    from testbed.roles.docker.networks import DockerNetwork
    from testbed.topology.containers import Container, Healthcheck

T = TypeVar("T")

DIGEST = "testbed.digest"  # label: the settings that a container or a network was made with
LAB = "testbed.labs"
PATIENCE = 30.0  # seconds until the first answer; a daemon that takes longer hangs
RELOAD = 15.0  # seconds until a daemon has read its configuration again
LIMIT = 300.0  # seconds; a start on a busy machine is slow
SSH = "docker.transport.sshconn"  # the SDK's adapter for ssh://
NAME_VARIABLE = "NAME"  # the variable with the name on the image's page


#: Engine API version from which a container is created on all its networks at once, with a MAC
#: address on each (docs.docker.com, "Engine API version history", 1.44).
AT_ONCE = (1, 44)

_loading = threading.Lock()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A container's place on a network; empty texts if the container does not run."""

    network: str  #: ID of the network
    address: str = ""
    address6: str = ""
    mac: str = ""


@dataclass(frozen=True, slots=True)
class NetworkState:
    """A network, as its daemon reports it.  ``digest`` is None for one that is not testbed's."""

    name: str
    id: str
    driver: str
    subnets: tuple[str, ...]
    internal: bool
    digest: str | None
    link: str = ""  #: the bridge on the node; empty for other drivers


@dataclass(frozen=True, slots=True)
class ContainerState:
    """The current state of a container, as its daemon reports it.

    ``pid`` is the container's first process in the node's PID namespace, 0 if it does not run.
    ``address`` is empty if the container has no address of its own.
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
    exit: int = 0  #: exit status of a container that has ended
    out_of_memory: bool = False  #: the kernel killed it for lack of memory (OOMKilled)
    error: str = ""  #: why it did not start, in the daemon's words
    health: str = ""  #: healthy, unhealthy or starting; empty without a health check
    restarts: int = 0  #: number of restarts by the daemon
    image_id: str = ""  #: ID of its image, whatever the image's name means now
    networks: Mapping[str, Endpoint] = field(default_factory=dict)  #: by name, its mode's first

    @property
    def address6(self) -> str:
        """Its IPv6 address on its mode's network; empty without one."""
        return next((one.address6 for one in self.networks.values()), "")


def preload() -> None:
    """Import the SDK in the background; the first Engine waits for it."""
    if "docker" not in sys.modules:
        threading.Thread(target=load, daemon=True).start()


def load() -> None:
    """Import the SDK; its adapter for ``ssh://`` is imported when somebody first uses it.

    No node needs that adapter, and its imports (paramiko) take as long as half of the SDK.
    """
    with _loading:
        if "docker" in sys.modules:
            return
        sys.modules[SSH] = None  # type: ignore[assignment]  # its import fails, which the SDK allows
        try:
            client = importlib.import_module("docker.api.client")
        finally:
            sys.modules.pop(SSH, None)
        vars(client)["SSHHTTPAdapter"] = _ssh_adapter


def _ssh_adapter(*args: Any, **options: Any) -> Any:
    return importlib.import_module(SSH).SSHHTTPAdapter(*args, **options)


@functools.cache
def _client() -> type[APIClient]:
    """Return the SDK's client for sockets of this machine.

    The SDK's own reads all variables of the environment twice for each request, to find proxies.
    That takes longer than the request itself.
    """
    load()
    import docker

    class Client(docker.APIClient):  # type: ignore[misc]  # the SDK has no types
        def merge_environment_settings(
            self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any
        ) -> dict[str, Any]:
            del url, verify, cert  # of TLS
            stream = self.stream if stream is None else stream
            return {"proxies": proxies, "stream": stream, "verify": self.verify, "cert": self.cert}

    return Client


class Engine:
    """A client of one node's daemon.

    Every failure is raised as LabError. ``patience`` is the time limit for the first answer,
    ``limit`` that for any other call, both in seconds.
    """

    def __init__(self, node: Node, *, patience: float = PATIENCE, limit: float = LIMIT) -> None:
        self._node = node
        self.api = self.reading("connect", self._connect, patience)
        self.api.timeout = limit

    def _connect(self, patience: float) -> APIClient:
        base = f"unix://{self._node.socket(SOCKET)}"
        return _client()(base_url=base, version="auto", timeout=patience)

    def close(self) -> None:
        self.api.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reading(self, what: str, method: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Return the result of ``method``, which sends a request.

        ``method`` also parses the response. Raises LabError if the daemon does not answer, if it
        refuses, or if ``method`` cannot parse the response.
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
                hint="`testbed status LAB` shows the state of the lab",
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
        """Return the response to ``GET /version``."""
        return self.reading("tell its version", self._version)

    def _version(self) -> dict[str, Any]:
        answer = dict(self.api.version())
        return {**answer, "Version": str(answer["Version"])}

    def reload(self, ask: Callable[[], object]) -> None:
        """Call ``ask``, which makes the daemon read its configuration again, and wait for that.

        Raises LabError if the daemon has not done it in time.
        """
        if not self.reading("reload its configuration", self._reload, ask):
            raise LabError(
                f"dockerd on {self._node.name} has not accepted its new configuration within "
                f"{RELOAD:g} s",
                hint=f"`testbed logs {self._node.name} dockerd` shows why",
            )

    def _reload(self, ask: Callable[[], object]) -> bool:
        since = datetime.fromisoformat(str(self.api.info()["SystemTime"])).timestamp()
        ask()
        only = {"type": "daemon", "event": "reload"}
        # The stream ends at its own limit, or with the first event.
        until = f"{since + RELOAD:.6f}"
        events = self.api.events(since=f"{since:.6f}", until=until, filters=only)
        with contextlib.closing(events):
            return any(True for _ in events)

    def has_image(self, name: str) -> bool:
        """Tell whether the daemon has an image of exactly this name and tag."""
        return bool(self.image_id(name))

    def image_id(self, name: str) -> str:
        """Return the ID of an image.

        It is empty if the daemon has no image of that name or ID.
        """
        import docker.errors

        # A name of hexadecimal digits without a tag might be taken for the beginning of an ID.
        one = name if name.startswith("sha256:") else full_name(local_name(name))
        try:
            return self.reading("look for an image", self._inspect_image, one)
        except LabError as error:
            if isinstance(error.__cause__, docker.errors.NotFound):
                return ""
            raise

    def _inspect_image(self, name: str) -> str:
        return str(self.api.inspect_image(name)["Id"])

    def load(self, archive: Path, name: str) -> str:
        """Load an image from an archive, give it this name, and return its ID.

        An archive with one image may contain another name, or none.
        """
        what = f"load the image {name} from {archive}"
        with archive.open("rb") as file:
            errors, loaded = self.reading(what, self._load, file)
        for error in errors:
            free = f"show its free space: testbed exec {self._node.name} df /var/lib/docker"
            raise LabError(
                f"dockerd on {self._node.name}: cannot {what}: {error}",
                hint=free if "no space left" in error else "use an archive of `docker save`",
            )
        wanted = {full_name(local_name(name)), full_name(name)}
        images = {self.image_id(one) for one in loaded if full_name(one) in wanted}
        images = images or {self.image_id(one) for one in loaded}
        if len(images) != 1:
            raise LabError(
                f"{archive} has no image named {name}; it has {', '.join(loaded) or 'none'}",
                hint=f"save that image alone: docker save -o FILE {name}",
            )
        self.name_image(image := images.pop(), name)
        return image

    def name_image(self, image: str, name: str) -> None:
        """Give this name to the image with this ID, if it does not have it yet."""
        if self.image_id(name) != image:
            repository, _, tag = full_name(local_name(name)).rpartition(":")
            self.reading(f"name the image {name}", self.api.tag, image, repository, tag)

    def _load(self, file: BinaryIO) -> tuple[list[str], list[str]]:
        """Load an archive; return errors, and names or IDs of its images."""
        told = list(self.api.load_image(file))
        said = "".join(words.get("stream", "") for words in told)
        loaded = re.findall(r"Loaded image(?: ID)?: (\S+)", said)
        return [words["error"] for words in told if "error" in words], list(dict.fromkeys(loaded))

    def names(self, *, label: str | None = None) -> set[str]:
        """Return the names of all containers, running or not.

        With a label, return those of containers that have it (``key=value``).
        """
        return self.reading("list containers", self._names, {"label": label} if label else None)

    def _names(self, filters: Mapping[str, str] | None) -> set[str]:
        listed = as_list(self.api.containers(all=True, filters=filters))
        # A container that is being removed no longer has a name.
        return {entry["Names"][0].lstrip("/") for entry in listed if entry["Names"]}

    def containers(self) -> dict[str, ContainerState]:
        """Return all containers of the daemon by name, running or not."""
        return {name: self.inspect(name) for name in sorted(self.names())}

    def find(self, container: str) -> ContainerState | None:
        """Return the container of exactly that name, or None.

        If no container has the name, Docker takes it for the beginning of an ID: ``d1`` may find
        any container (Engine API, ``GET /containers/{id}/json``).
        """
        import docker.errors

        try:
            found = self.inspect(container)
        except LabError as error:
            if isinstance(error.__cause__, docker.errors.NotFound):
                return None
            raise
        return found if found.name == container else None

    def inspect_raw(self, container: str) -> dict[str, Any]:
        """Return the response to ``GET /containers/{id}/json``."""
        return self.reading(
            f"inspect the container {container}",
            lambda: dict(self.api.inspect_container(container)),
        )

    def inspect(self, container: str) -> ContainerState:
        return self.reading(f"inspect the container {container}", self._inspect, container)

    def _inspect(self, container: str) -> ContainerState:
        data = self.inspect_raw(container)
        mode = data["HostConfig"]["NetworkMode"]
        networks = _mode_first(data["NetworkSettings"]["Networks"] or {}, mode)
        first: Mapping[str, Any] = next(iter(networks.values()), {})
        return ContainerState(
            name=data["Name"].lstrip("/"),
            id=data["Id"],
            running=data["State"]["Running"],
            pid=data["State"]["Pid"],
            network=mode,
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
            image_id=data["Image"],
            networks={
                name: Endpoint(
                    one.get("NetworkID") or "",
                    one.get("IPAddress") or "",
                    one.get("GlobalIPv6Address") or "",
                    one.get("MacAddress") or "",
                )
                for name, one in networks.items()
            },
        )

    def logs(self, container: str, lines: int = 12) -> str:
        """Return the last lines of a container's output and errors."""
        written: bytes = self.reading(
            f"read the log of the container {container}", self.api.logs, container, tail=lines
        )
        return written.decode(errors="replace")

    def start(self, lab: str, container: Container, digest: str) -> None:
        """Create a container and start it."""
        each = [port for published in container.publish for port in published.each]
        ports = [(p.container_port, p.protocol) for p in each]
        bindings: dict[str, list[Any]] = {}
        for port in each:
            where = (str(port.address), port.host_port) if port.address else port.host_port
            bindings.setdefault(f"{port.container_port}/{port.protocol}", []).append(where)
        shares = container.network == "host" or bool(container.shares)
        config = self.api.create_host_config(
            network_mode=container.network or next(iter(container.networks)),
            port_bindings=bindings or None,
            **_host_options(container),
        )
        now, later = self._endpoints(container)
        self.reading(
            f"create the container {container.name}",
            self.api.create_container,
            image=local_name(container.image),
            command=list(container.command) if container.command is not None else None,
            name=container.name,
            # Containers that share a network namespace share its host name too.
            hostname=container.hostname or (None if shares else container.name),
            environment={NAME_VARIABLE: container.name, **container.env},
            labels={**container.labels, DIGEST: digest, LAB: lab},
            ports=ports or None,
            host_config=config,
            healthcheck=_healthcheck(container.healthcheck),
            **_options(container),
            **now,
        )
        for name, endpoint in later.items():
            self.reading(
                f"connect the container {container.name} to the network {name}",
                self.api.connect_container_to_network,
                container.name,
                name,
                **endpoint,
            )
        self.reading(f"start the container {container.name}", self.api.start, container.name)

    def _endpoints(self, container: Container) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Return arguments for the networks of a container.

        The first ones are for its creation, the others for a connection to each further network.
        """
        networks = dict(container.networks)
        if container.mac_address:
            networks[container.network] = Attachment(
                container.network, mac_address=container.mac_address
            )
        if not networks:
            return {}, {}
        if self._api_version >= AT_ONCE:
            every = {name: _endpoint(one) for name, one in networks.items()}
            return {"networking_config": {"EndpointsConfig": every}}, {}
        first, *others = networks.values()
        now: dict[str, Any] = {"networking_config": {"EndpointsConfig": {}}}
        if container.networks:
            now["networking_config"]["EndpointsConfig"][first.name] = _endpoint(first)
        if first.mac_address:
            now["mac_address"] = first.mac_address
        later = {
            one.name: {
                "ipv4_address": _text(one.ipv4_address),
                "ipv6_address": _text(one.ipv6_address),
                "aliases": list(one.aliases) or None,
                "driver_opt": dict(one.driver_opts) or None,
            }
            for one in others
        }
        return now, later

    @property
    def _api_version(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.api.api_version.split("."))

    # -- networks -----------------------------------------------------------

    def networks(self) -> dict[str, NetworkState]:
        """Return all networks of the daemon by name."""
        return self.reading("list networks", self._networks)

    def _networks(self) -> dict[str, NetworkState]:
        return {one["Name"]: network_state(one) for one in as_list(self.api.networks())}

    def create_network(self, lab: str, network: DockerNetwork) -> NetworkState:
        """Create a network, and return it."""
        what = f"create the network {network.name}"
        pools = [
            {
                "Subnet": str(subnet),
                **({"Gateway": str(gateway)} if gateway else {}),
                **({"IPRange": str(part)} if part else {}),
                **({"AuxiliaryAddresses": aux} if (aux := network.aux_in(subnet)) else {}),
            }
            for subnet, gateway, part in network.pools()
        ]
        self.reading(
            what,
            self.api.create_network,
            network.name,
            driver=network.driver,
            options=dict(network.driver_opts) or None,
            ipam={"Driver": "default", "Config": pools} if pools else None,
            # Otherwise 20.10 would create a second one of the same name.
            check_duplicate=True,
            internal=network.internal,
            labels={DIGEST: network.digest, LAB: lab},
            enable_ipv6=network.ipv6,
            attachable=network.attachable or None,
        )
        return self.reading(what, self._network, network.name)

    def _network(self, name: str) -> NetworkState:
        return network_state(self.api.inspect_network(name))

    def remove_network(self, network: NetworkState) -> list[str]:
        """Remove a network.

        The lab's own containers on it are removed first, and returned. Others are disconnected.
        """
        what = f"remove the network {network.name}"
        return self.reading(what, self._remove_network, network.id)

    def _remove_network(self, network: str) -> list[str]:
        on_it = self.api.inspect_network(network)["Containers"] or {}
        removed = []
        for container in on_it:
            found = self._inspect(container)
            if found.digest is not None:
                self.api.remove_container(container, force=True)
                removed.append(found.name)
            else:
                self.api.disconnect_container_from_network(container, network, force=True)
        self.api.remove_network(network)
        return sorted(removed)

    def remove(self, container: str) -> None:
        """Kill a container and remove it."""
        self.reading(
            f"remove the container {container}", self.api.remove_container, container, force=True
        )


def _mode_first(networks: Mapping[str, T], mode: str) -> dict[str, T]:
    """Return networks by name, first the one that a container was created on."""
    return dict(sorted(networks.items(), key=lambda one: one[0] != mode))


def network_state(data: Mapping[str, Any]) -> NetworkState:
    """Return a network of a response of the Engine API."""
    driver, options = data["Driver"], data["Options"] or {}
    bridge = options.get(BRIDGE_NAME) or f"br-{data['Id'][:12]}"
    return NetworkState(
        data["Name"],
        data["Id"],
        driver,
        tuple(one["Subnet"] for one in data["IPAM"]["Config"] or () if one.get("Subnet")),
        data["Internal"],
        (data["Labels"] or {}).get(DIGEST),
        bridge if driver == "bridge" else "",
    )


#: Option of a container's place on a network: the name of its interface (moby, endpoint options).
IFNAME = "com.docker.network.endpoint.ifname"


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _endpoint(one: Attachment) -> dict[str, Any]:
    """Return a container's place on a network for the Engine API."""
    addresses = {"IPv4Address": one.ipv4_address, "IPv6Address": one.ipv6_address}
    fixed = {name: str(address) for name, address in addresses.items() if address is not None}
    found = {
        "IPAMConfig": fixed,
        "Aliases": list(one.aliases),
        "MacAddress": one.mac_address,
        "GwPriority": one.gw_priority,
        "DriverOpts": {
            **one.driver_opts,
            **({IFNAME: one.interface_name} if one.interface_name else {}),
        },
    }
    return {name: value for name, value in found.items() if value}


def _host_options(container: Container) -> dict[str, Any]:
    """Return the options of a container for the SDK's host configuration; only given ones."""
    restart, _, tries = (container.restart or "").partition(":")
    policy = {"Name": restart, **({"MaximumRetryCount": int(tries)} if tries else {})}
    found = {
        "privileged": container.privileged,
        "cap_add": list(container.cap_add),
        "cap_drop": list(container.cap_drop),
        "devices": list(container.devices),
        "sysctls": dict(container.sysctls),
        "ulimits": [
            {"Name": name, "Soft": one.soft, "Hard": one.hard}
            for name, one in container.ulimits.items()
        ],
        "nano_cpus": round((container.cpus or 0) * 1e9),
        "mem_limit": container.mem_limit,
        "pids_limit": container.pids_limit,
        "binds": list(container.volumes),
        "tmpfs": list(container.tmpfs),
        "dns": [str(one) for one in container.dns],
        "extra_hosts": list(container.extra_hosts),
        "restart_policy": policy if restart else None,
        "init": container.init,
    }
    return {name: value for name, value in found.items() if value}


def _options(container: Container) -> dict[str, Any]:
    """Return the options of a container for its creation; only given ones."""
    grace = container.stop_grace_period
    found = {
        "entrypoint": None if container.entrypoint is None else list(container.entrypoint),
        "user": container.user,
        "working_dir": container.working_dir,
        "stop_signal": container.stop_signal,
        "stop_timeout": None if grace is None else round(grace),
    }
    return {name: value for name, value in found.items() if value is not None}


def _health(state: Mapping[str, Any]) -> str:
    """Return the health of a container.

    It is empty for "none", a disabled health check.
    """
    word: str = (state.get("Health") or {}).get("Status", "")
    return "" if word == "none" else word


def _healthcheck(check: Healthcheck | None) -> dict[str, Any] | None:
    """Return a health check for the Engine API.

    Times are in nanoseconds, 0 for the default.
    """
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
    """Return a response that must be a list.  Raises TypeError."""
    if not isinstance(answer, list):
        raise TypeError(f"not a list but {type(answer).__name__}")
    return answer


def no_answer(node: str, error: Exception) -> NoAnswer:
    """Return the error for a daemon that does not answer.

    It contains the connection's reason.
    """
    chain = list(_causes(error))
    if any(isinstance(one, ConnectionRefusedError | FileNotFoundError) for one in chain):
        why = f"it is not running (nobody listens on {SOCKET})"
        hint = f"`testbed logs {node} dockerd` shows its log; `testbed up -l LAB` restarts it"
    elif any(isinstance(one, TimeoutError) for one in chain):
        why = "it hangs (no answer in time)"
        hint = "`testbed fault ls` shows whether it is stopped, `testbed fault heal` resumes it"
    else:
        why = str(error) or type(error).__name__
        hint = f"`testbed logs {node} dockerd` shows its log"
    message = f"dockerd on {node} does not answer: {why}"
    return NoAnswer(message, daemon="dockerd", node=node, reason=why, hint=hint)


def no_sense(node: str, what: str, error: Exception) -> LabError:
    """Return the error for a response that is invalid in the Engine API."""
    return LabError(
        f"dockerd on {node}: cannot {what}: its answer is invalid ({error!r})",
        hint=f"check that Docker listens on {SOCKET} there: `testbed logs {node} dockerd`",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and the errors that it wraps."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__

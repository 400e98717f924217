"""Containers on nodes: their keys, and the forms of values that only they have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias, cast

from testbed.topology import keys, options, reserved, tree
from testbed.topology.attach import Attachment, Attachments
from testbed.topology.declare import Block, Draft, Nested, key
from testbed.topology.families import AnyAddress, Mac
from testbed.topology.shapes import (
    IMAGE,
    NODE,
    Command,
    Cpus,
    Duration,
    Flag,
    Integer,
    Items,
    Memory,
    Name,
    Pattern,
    Shape,
    Variables,
    number,
    whole,
)
from testbed.topology.tree import quote

if TYPE_CHECKING:
    from testbed.topology.read import Reader
    from testbed.topology.tree import Tree

CONTAINER_NAME = Name("a container", keys.CONTAINER, keys.LABEL_MAX, reserved.CONTAINERS)
Protocol: TypeAlias = "Literal['tcp', 'udp', 'sctp']"
#: A port and its protocol.
Port: TypeAlias = "tuple[int, Literal['tcp', 'udp']]"


@dataclass(frozen=True, slots=True)
class Publish:
    """Published ports: ``[address:]host_port:container_port/protocol``.

    ``count`` is the length of a range. ``host_port`` and ``container_port`` are its first ports.
    """

    host_port: int
    container_port: int
    protocol: Protocol = "tcp"
    address: IPv4Address | IPv6Address | None = None
    count: int = 1

    def __str__(self) -> str:
        where = f"{self.address}:" if self.address else ""
        if isinstance(self.address, IPv6Address):
            where = f"[{self.address}]:"
        outer, inner = (self._ports(first) for first in (self.host_port, self.container_port))
        return f"{where}{outer}:{inner}/{self.protocol}"

    def _ports(self, first: int) -> str:
        return str(first) if self.count == 1 else f"{first}-{first + self.count - 1}"

    @property
    def each(self) -> tuple[Publish, ...]:
        """The ports one by one."""
        return tuple(
            replace(
                self, host_port=self.host_port + i, container_port=self.container_port + i, count=1
            )
            for i in range(self.count)
        )

    def collides(self, other: Publish) -> bool:
        """Tell whether both need the same port of the node."""
        if self.protocol != other.protocol:
            return False
        apart = max(self.host_port, other.host_port) - min(
            self.host_port + self.count, other.host_port + other.count
        )
        if apart >= 0:
            return False
        one, two = self.address, other.address
        # Without an address, a port is published on all addresses of both families.
        if one is None or two is None:
            return True
        return one.version == two.version and (
            one == two or one.is_unspecified or two.is_unspecified
        )


class _Published(Shape[Publish]):
    """Published ports."""

    def schema(self) -> dict[str, Any]:
        return whole(keys.PUBLISH)

    def read(self, read: Reader, at: Tree | None) -> Publish | None:
        wanted = "ports as [address:]host_port:container_port[/tcp|/udp|/sctp]"
        hint = 'like "8080:80", "10.168.0.2:8080:80/udp" or "[::1]:8000-8010:80-90"'
        value = read.matching(at, keys.PUBLISH, wanted, hint)
        if at is None or value is None:
            return None
        ports, _, protocol = value.partition("/")
        address, _, ports = ports.rpartition("]:") if "]" in ports else ("", "", ports)
        *before, host_ports, container_ports = ports.split(":")
        address = address.removeprefix("[") or "".join(before)
        outer = self._range(read, at, host_ports)
        inner = self._range(read, at, container_ports)
        if outer is None or inner is None:
            return None
        if outer[1] != inner[1]:
            seen = f"{outer[1]} for {inner[1]}"
            hint = "write two ranges of the same length"
            read.problems.add(at, "as many ports of the node as of the container", seen, hint)
            return None
        try:
            ip = ip_address(address) if address else None
        except ValueError:
            hint = "write four numbers from 0 to 255 with dots between, or [IPv6]"
            read.problems.add(at, "an IP address", quote(address), hint)
            return None
        # The default protocol is TCP, as in docker run.
        return Publish(outer[0], inner[0], cast("Protocol", protocol or "tcp"), ip, outer[1])

    def _range(self, read: Reader, at: Tree, text: str) -> tuple[int, int] | None:
        """Return the first port of a range, and the number of ports."""
        first, _, last = text.partition("-")
        low = number(read, at, first, "a port")
        high = number(read, at, last, "a port") if last else low
        if low is None or high is None:
            return None
        if high < low:
            read.problems.add(at, "a range from low to high", quote(text), f"write {last}-{first}")
            return None
        return low, high - low + 1

    def plain(self, value: Publish) -> str:
        return str(value)


class _Test(Shape[tuple[str, ...]]):
    """A health check's test; a single text is a shell command (CMD-SHELL), as in Compose."""

    hints: ClassVar[Mapping[str, str]] = {
        "CMD": "add a program after CMD",
        "CMD-SHELL": "write one line after CMD-SHELL, in quotes",
        "NONE": "write [NONE] alone to turn off the check",
    }

    def schema(self) -> dict[str, Any]:
        return {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
            ]
        }

    def read(self, read: Reader, at: Tree | None) -> tuple[str, ...] | None:
        if isinstance(at, tree.Scalar):
            line = read.text(at)
            if line == "":
                read.problems.add(at, "a command", "none", "leave it out for the image's own")
            return ("CMD-SHELL", line) if line else None
        words = tuple(read.text(item) or "" for item in read.items(at, "a command line, or a list"))
        first = words[0] if words else ""
        if at is None or read.problems.touched(*at.path):
            return None
        length = {"NONE": 1, "CMD-SHELL": 2}.get(first, max(2, len(words)))
        if first not in keys.TESTS or len(words) != length:
            wanted = "[CMD, PROGRAM, ARGUMENT...], [CMD-SHELL, LINE] or [NONE]"
            hint = self.hints.get(first, "put CMD before a program and its arguments")
            read.problems.add(at, wanted, quote(" ".join(words)) if words else "none", hint)
            return None
        return words

    def plain(self, value: tuple[str, ...]) -> list[str]:
        return list(value)


class _Listens(Shape[Port]):
    """A port, as a number or with its protocol."""

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 65535}, whole(keys.PORT)]}

    def read(self, read: Reader, at: Tree | None) -> Port | None:
        if isinstance(at, tree.Scalar) and isinstance(at.value, int):
            one = read.integer(at, "a port", 1, 65535)
            return (one, "tcp") if one else None
        value = read.matching(at, keys.PORT, "a port, like 80 or 53/udp", "like 80 or 53/udp")
        if at is None or value is None:
            return None
        digits, _, protocol = value.partition("/")
        found = number(read, at, digits, "a port")
        return (found, "udp" if protocol == "udp" else "tcp") if found else None

    def plain(self, value: Port) -> str:
        return f"{value[0]}/{value[1]}"


class _Expect(Shape[int]):
    """The exit status of a container that ends; ``running`` is no value."""

    def schema(self) -> dict[str, Any]:
        return whole(keys.EXPECT)

    def read(self, read: Reader, at: Tree | None) -> int | None:
        wanted = "running, or the exit status of a container that ends, like exit 0"
        value = read.matching(at, keys.EXPECT, wanted, "write 'expect: exit 0'")
        if at is None or value is None or value == "running":
            return None
        return number(read, at, value.removeprefix("exit "), "an exit status", low=0, high=255)

    def plain(self, value: int) -> str:
        return f"exit {value}"


@dataclass(frozen=True, slots=True)
class Healthcheck(Block):
    """Docker's health check of a container.

    None and () mean the image's or Docker's default. ``test`` begins with CMD, CMD-SHELL or NONE.
    Times are in seconds.
    """

    test: tuple[str, ...] = key(
        _Test(),
        "Command that checks the health of the container: a command line of a shell, or a "
        "list that begins with CMD or CMD-SHELL. [NONE] turns off the check of the image.",
        default=(),
    )
    interval: float | None = key(
        Duration(), "Time between two checks, like 1s or 1m30s.", default=None
    )
    timeout: float | None = key(Duration(), "Time limit of one check.", default=None)
    retries: int | None = key(
        Integer("a number of checks", 1, 1000),
        "Number of consecutive failures after which the container is unhealthy.",
        default=None,
    )
    start_period: float | None = key(
        Duration(0.0), "Time at the start in which a failed check does not count.", default=None
    )


@dataclass(frozen=True, slots=True)
class Ready(Block):
    """The readiness test of a container.

    It is ready when it listens on ``listens`` and ``command`` succeeds; only what is not None
    counts. ``timeout`` is in seconds.
    """

    rules: ClassVar[Mapping[str, Any]] = {
        "anyOf": [{"required": ["port"]}, {"required": ["command"]}]
    }

    listens: Port | None = key(
        _Listens(), "A port on which it listens: 80 or 53/udp.", name="port", default=None
    )
    command: tuple[str, ...] | None = key(
        Command("add a command, or leave the key out"),
        "Command and arguments that must succeed in the container.",
        default=None,
    )
    timeout: float = key(Duration(), "Time after which `up` fails.", default=keys.READY_SECONDS)

    @property
    def port(self) -> int:
        """The port, or 0 if only the command counts."""
        return self.listens[0] if self.listens else 0

    @property
    def protocol(self) -> str:
        return self.listens[1] if self.listens else "tcp"

    @classmethod
    def make(cls, given: dict[str, Any], draft: Draft) -> Self | None:
        if not {"port", "command"} & draft.body.entries.keys():
            hint = "like {port: 80}"
            draft.read.problems.add(draft.body, "a port or a command", "none", hint)
        return cls(**given)


@dataclass(frozen=True, slots=True)
class Container(Block):
    """A container on a node.

    ``network`` is ``bridge``, ``host``, ``none`` or ``container:NAME``, and empty for a container
    on Docker networks of the file, its ``networks``; ``command`` None means the image's default.
    ``expect`` is the expected exit status of a container that ends, None for a container that
    keeps running. None, () and empty mappings of the other keys mean Docker's default.
    """

    rules: ClassVar[Mapping[str, Any]] = {"not": {"required": ["network", "networks"]}}

    elsewhere: ClassVar[Mapping[str, str]] = {
        "build": "build the image before: docker build -t NAME, and write image: NAME",
        "container_name": "the key of the container is its name",
        "depends_on": "containers of a node start in the order of the file; `ready` and "
        "`healthcheck` make `up` wait",
        "deploy": "write cpus, mem_limit and pids_limit; `docker service create` has replicas in a "
        "swarm",
        "environment": "write env",
        "memory": "write mem_limit",
        "network_mode": "write network",
        "ports": "write publish",
    }

    name: str
    node: str = key(NODE, "Node that it is on.", required=True, default="")
    image: str = key(
        IMAGE,
        "Image of the container.",
        default=keys.DEFAULT_IMAGE,
    )
    network: str = key(
        Pattern(
            keys.NETWORK_MODE,
            "bridge, host, none or container:NAME",
            "leave it out for Docker's bridge; 'networks: [NAME]' is for networks of "
            "docker: {networks: {NAME: {}}}, and the lab's networks are joined by nodes alone",
        ),
        "Network mode: bridge, host, none, or container:NAME to share another container's.",
        default="bridge",
    )
    networks: Mapping[str, Attachment] = key(
        Attachments(),
        "Docker networks that it is on, instead of `network`: names of `docker.networks` in a "
        "list, or as a mapping with its address and names on each. `bridge` is docker0.",
        default={},
    )
    publish: tuple[Publish, ...] = key(
        Items(_Published(), "a list of ports", unique=True),
        "Published ports: [address:]host_port:container_port[/tcp|/udp|/sctp]; also ranges.",
        default=(),
    )
    command: tuple[str, ...] | None = key(
        Command(), "The command and its arguments, instead of the image's own.", default=None
    )
    env: Mapping[str, str] = key(Variables(), "Environment variables.", default={})
    expect: int | None = key(
        _Expect(),
        "Expected state: running, or `exit N` for a command that ends.",
        default=None,
        shown="running",
    )
    healthcheck: Healthcheck | None = key(
        Nested(Healthcheck),
        "Docker's health check, with Compose's keys; `up` waits until it is healthy.",
        default=None,
    )
    ready: Ready | None = key(
        Nested(Ready), "Readiness condition that `up` waits for.", default=None
    )
    entrypoint: tuple[str, ...] | None = key(
        Command("leave the key out for the image's own"),
        "The program that gets the command as arguments, instead of the image's own.",
        default=None,
    )
    hostname: str | None = key(
        options.HOST_NAME, "Host name. Default: the container's name.", default=None
    )
    user: str | None = key(options.USER, "User, or USER:GROUP, by name or number.", default=None)
    working_dir: str | None = key(options.FOLDER, "Folder of the command.", default=None)
    labels: Mapping[str, str] = key(options.LABELS, "Labels.", default={})
    privileged: bool = key(
        Flag(), "All capabilities, all devices of the node, and a writable /sys.", default=False
    )
    cap_add: tuple[str, ...] = key(
        options.CAPS, "Capabilities to add, like NET_ADMIN (capabilities(7)).", default=()
    )
    cap_drop: tuple[str, ...] = key(options.CAPS, "Capabilities to remove.", default=())
    devices: tuple[str, ...] = key(
        options.DEVICES, "Devices of the node: /dev/net/tun, or /dev/a:/dev/b:rw.", default=()
    )
    sysctls: Mapping[str, str] = key(
        options.OwnSysctls(),
        "Kernel settings of its namespaces: {net.ipv4.ip_forward: 1}.",
        default={},
    )
    pids_limit: int | None = key(
        Integer("a number of processes", 1, 1 << 22),
        "Number of its processes and threads. Default: no limit but that of the node.",
        default=None,
    )
    ulimits: Mapping[str, options.Ulimit] = key(
        options.Ulimits(),
        "Limits of its processes: {nofile: 1024, nproc: {soft: 100, hard: 200}}; -1 is no limit.",
        default={},
    )
    cpus: float | None = key(
        Cpus(), "Limit of CPUs; 0.5 is half a CPU. Default: no limit.", default=None
    )
    mem_limit: int | None = key(
        Memory(keys.MIN_CONTAINER_MEMORY),
        "Limit of memory in bytes, or like 64m, 1g. Default: no limit.",
        default=None,
    )
    volumes: tuple[str, ...] = key(
        options.VOLUMES,
        "Volumes: NAME:/path, or the node's /path:/path; with :ro for read-only.",
        default=(),
    )
    tmpfs: tuple[str, ...] = key(
        options.TMPFS, "File systems in memory: /run, or /run:size=64m.", default=()
    )
    dns: tuple[IPv4Address | IPv6Address, ...] = key(
        Items(AnyAddress(), "a list of addresses"), "Addresses of DNS servers.", default=()
    )
    extra_hosts: tuple[str, ...] = key(
        options.EXTRA_HOSTS,
        "More lines of /etc/hosts, as NAME:ADDRESS; NAME:host-gateway is the node.",
        default=(),
    )
    mac_address: str | None = key(
        Mac(), "MAC address on Docker's bridge. Others are set in `networks`.", default=None
    )
    restart: str | None = key(
        options.RESTART,
        "When Docker starts it again: always, unless-stopped, on-failure or on-failure:N.",
        default=None,
    )
    init: bool = key(Flag(), "Run an init process as its pid 1.", default=False)
    stop_signal: str | None = key(
        options.StopSignal(), "Signal that stops it. Default: SIGTERM.", default=None
    )
    stop_grace_period: float | None = key(
        Duration(1.0), "Time between this signal and SIGKILL. Default: 10s.", default=None
    )

    @classmethod
    def make(cls, given: dict[str, Any], draft: Draft) -> Self | None:
        del draft
        if given.get("networks"):
            given.setdefault("network", "")
        return cls(**given)

    @property
    def shares(self) -> str:
        """The name of the container whose network it shares; empty for others."""
        mode, _, other = self.network.partition(":")
        return other if mode == "container" else ""

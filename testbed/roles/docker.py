"""Docker: one daemon per node, with docker0's address as configured."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.errors import LabError
from testbed.limits import Takes
from testbed.nodes.base import Service, note_packages
from testbed.roles import firewall, images
from testbed.roles.base import (
    COLLECT_SELDOM,
    GO,
    Offer,
    Role,
    digest_of,
    files,
    not_built,
    start,
)
from testbed.roles.containers import container_steps
from testbed.roles.engine import (
    PARTS,
    PROGRAMS,
    SOCKET,
    engine_version,
    parse_version,
    preload,
    program,
)
from testbed.roles.settle import settle_steps
from testbed.steps.step import Step, node_step

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.nodes.base import Node
    from testbed.steps.context import Context
    from testbed.topology.model import Node as Spec
    from testbed.topology.model import Topology

SERVICE = "dockerd"
UNIT = "docker"  #: its unit in Debian's docker.io and in Docker's own packages
GROUP = "docker"  #: its members may use the daemon's socket (dockerd(8), --group)
CONFIG = "/etc/docker/daemon.json"
BRIDGE = "docker0"
CONTAINERD = "containerd"
CONTAINERD_FILE = "/etc/docker/containerd.toml"
CONTAINERD_SOCKET = "/run/docker/containerd/containerd.sock"
#: The configuration that dockerd writes for a containerd of its own, except for the last lines:
#: with the default (0.02) an idle containerd collects garbage eighty times a second.  CRI is
#: disabled because only Kubernetes uses it.
CONTAINERD_CONFIG = f"""\
version = 2
root = "/var/lib/docker/containerd/daemon"
state = "/run/docker/containerd/daemon"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{CONTAINERD_SOCKET}"
{COLLECT_SELDOM}"""
GROUP_COLONS = 3  # group(5): name, password, number, members
#: Programs for users of a node and their tools.
COMMANDS = (
    "docker", "dockerd", "docker-proxy", "docker-init",
    "containerd", "containerd-shim-runc-v2", "ctr", "runc",
)  # fmt: skip
COMPOSE = "compose"  # the artifact; built only on request
PLUGINS = "/usr/libexec/docker/cli-plugins"  # one of the client's search folders
#: Folders of this machine to hide on nodes: client plugins, helpers of its daemon, and root's
#: client settings (other hosts, contexts, proxies).
OWN = (
    *(f"/usr/{name}/docker" for name in ("lib", "libexec", "local/lib", "local/libexec")),
    "/root/.docker",
)
#: A client plugin must describe itself (docker/cli, cli-plugins/metadata).
METADATA = """\
if [ "$1" = docker-cli-plugin-metadata ]; then
  echo '{{"SchemaVersion": "0.1.0", "Vendor": "testbed", "ShortDescription": "not built"}}'
  exit
fi
"""
NO_COMPOSE = not_built("Docker Compose", COMPOSE, METADATA)
FORWARDING = ("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")


def docker_step(node: str) -> str:
    """Return the name of the step after which the node's daemon answers."""
    return f"docker {node}"


def daemon_config(topology: Topology, node: str, version: tuple[int, int, int]) -> dict[str, Any]:
    """Return the contents of the node's daemon.json.

    On flannel nodes only flanneld translates source addresses, where packets leave the overlay.
    This is how flannel's own mk-docker-opts.sh configures Docker.
    """
    config: dict[str, Any] = {
        "bip": str(topology.docker.bip[node]),
        "storage-driver": "overlay2",
        "hosts": [f"unix://{SOCKET}"],
        "data-root": "/var/lib/docker",
        "exec-root": "/run/docker",
        "pidfile": "/run/docker.pid",
    }
    if topology.docker.firewall == "nftables":
        config["firewall-backend"] = "nftables"
    if _in_overlay(topology, node):
        assert topology.flannel is not None
        config["mtu"] = topology.flannel.mtu
        config["ip-masq"] = False
        if version >= (28, 2, 0):
            # Since 28 Docker drops packets to a container from other interfaces, such as an
            # overlay's (moby #49325).  For earlier releases of 28 see daemon_env.
            config["allow-direct-routing"] = True
        if topology.docker.firewall == "nftables":
            config["bridge-accept-fwmark"] = firewall.MARK
    if version >= (29, 0, 0):
        # 29 stores images in containerd by default, but the image seed is for overlay2.
        config["features"] = {"containerd-snapshotter": False}
    return config


def daemon_env(
    topology: Topology, node: str, version: tuple[int, int, int], path: str
) -> dict[str, str]:
    """Return the daemon's environment.

    ``path`` is the PATH for its helper programs.
    """
    env = {"PATH": path, **GO}
    if _in_overlay(topology, node) and (28, 0, 0) <= version < (28, 2, 0):
        env["DOCKER_INSECURE_NO_IPTABLES_RAW"] = "1"  # moby 28.0 release notes
    return env


def _in_overlay(topology: Topology, node: str) -> bool:
    return topology.flannel is not None and node in topology.flannel.subnets


def told(node: Node) -> dict[str, Any]:
    """Return the daemon.json that a node's daemon was started with.

    Raises LabError without one.
    """
    try:
        return dict(json.loads(node.get(CONFIG)))
    except (OSError, ValueError, TypeError) as error:
        raise LabError(
            f"{CONFIG} of {node.name} cannot be read: {error}",
            hint="`testbed up -l LAB` writes it again if the lab is not complete",
        ) from error


def settings_digest(topology: Topology, node: str) -> str:
    """Return a digest of the settings of a node's daemon."""
    config = daemon_config(topology, node, parse_version(topology.docker.engine))
    return digest_of(config, CONTAINERD_CONFIG, topology.docker.engine, topology.docker.firewall)


def add_group(machine: Node, name: str) -> None:
    """Add a system group to a node unless it exists.

    The group ID is the highest free one below 1000, as groupadd(8) chooses with --system.
    """
    groups = ""
    with contextlib.suppress(FileNotFoundError):
        groups = machine.get("/etc/group").decode(errors="surrogateescape")
    lines = [line.split(":") for line in groups.splitlines() if line.count(":") >= GROUP_COLONS]
    if name in {line[0] for line in lines}:
        return
    taken = {line[2] for line in lines}
    number = next(n for n in range(999, 0, -1) if str(n) not in taken)
    end = "" if groups.endswith("\n") or not groups else "\n"
    added = f"{groups}{end}{name}:x:{number}:\n"
    machine.put(added.encode(errors="surrogateescape"), "/etc/group")


class Docker(Role):
    name = "docker"
    programs: ClassVar[dict[str, str]] = {
        "iptables": "iptables",
        "nsenter": "util-linux",
        "curl": "curl",
    }
    kernel = ("overlay", "iptables nat", "iptables conntrack", "iptables addrtype")
    services = (CONTAINERD, SERVICE)
    offers = (
        *(Offer(name) for name in COMMANDS),
        Offer("docker-compose", f"{PLUGINS}/docker-compose", NO_COMPOSE),
        Offer("docker-compose", "/usr/bin/docker-compose", NO_COMPOSE),  # the name of version 1
    )
    hides = OWN

    def parts(self, topology: Topology) -> tuple[str, ...]:
        return (*PARTS[topology.docker.engine], COMPOSE)

    def versioned(self, topology: Topology) -> tuple[str, ...]:  # noqa: ARG002  (all alike)
        # Not containerd: its artifact reports the version of Debian's docker.io, which may differ.
        return ("dockerd", "docker", "runc")

    def fetch(self, store: Store, topology: Topology) -> None:
        for name in PROGRAMS:
            program(store, topology.docker.engine, name)

    def takes(self, topology: Topology, node: str) -> Takes:
        return Takes(files=256, tasks=22 + 14 * len(topology.containers_on(node)))

    def ahead(self, store: Store, topology: Topology, node: str) -> list[str]:
        release = topology.docker.engine
        parts = [program(store, release, name) for name in PROGRAMS]
        parts += [store.image(name) for name in images.wanted(topology, node)]
        started = [topology.container_digest(c.name) for c in topology.containers_on(node)]
        # Containers are labelled with the name of the lab.
        return [topology.name, settings_digest(topology, node), *started, *files(parts)]

    def steps(self, topology: Topology, node: Spec) -> Iterable[Step]:
        bip = topology.docker.bip[node.name]

        def act(context: Context) -> tuple[str, bool]:
            return self._start(context, node.name)

        about = f"dockerd with docker0 at {bip}"
        needs = (node_step(node.name),)
        yield Step(docker_step(node.name), about, needs, heavy=True, ahead=True, act=act)
        yield from images.images_steps(topology, node.name, docker_step(node.name))
        steps = list(container_steps(topology, node.name, images.images_step(node.name)))
        yield from steps
        yield from settle_steps(topology, node.name, (step.name for step in steps))

    @staticmethod
    def _start(context: Context, node: str) -> tuple[str, bool]:
        topology = context.topology
        machine = context.node(node)
        release = topology.docker.engine
        version = engine_version(context.store, machine, release)
        number = parse_version(version)
        if SERVICE not in machine.services():  # its data root does not exist yet
            config = daemon_config(topology, node, number)
            machine.put(json.dumps(config, indent=1).encode(), CONFIG)
            machine.put(CONTAINERD_CONFIG.encode(), CONTAINERD_FILE)
            images.install_seed(context, machine, version)
            add_group(machine, GROUP)
            if not machine.has_system:
                note_packages(machine, context.store.packages(*PARTS[release]))
        firewall.choose(machine, topology.docker.firewall)
        if topology.docker.firewall == "nftables":
            # With nftables the daemon requires forwarding and does not turn it on itself.
            machine.run(FORWARDING)
        if _in_overlay(topology, node) and number >= (28, 0, 0):
            firewall.admit(machine, topology, BRIDGE)
        folders = [machine.provide(p) for p in context.store.path_dirs(*PARTS[release])]
        path = ":".join([*folders, "/usr/sbin", "/usr/bin", "/sbin", "/bin"])
        daemon = machine.provide(program(context.store, release, "dockerd"))
        preload()
        containerd = machine.provide(program(context.store, release, "containerd"))
        env = daemon_env(topology, node, number, path)
        digest = settings_digest(topology, node)
        changed = False
        for name, unit, words in (
            (CONTAINERD, "", (containerd, f"--config={CONTAINERD_FILE}")),
            (SERVICE, UNIT, (daemon, f"--containerd={CONTAINERD_SOCKET}")),
        ):
            argv = (*words, "--log-level=warn")
            service = Service(name, argv, env=env, notify=True, digest=digest, unit=unit)
            changed |= start(machine, service, timeout=180, context=context)
        return f"dockerd {version}, docker0 {topology.docker.bip[node]}", changed

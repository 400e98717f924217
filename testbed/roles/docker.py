"""Docker: one daemon a node, with docker0 where the topology wants it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.lab.step import Step, node_step
from testbed.nodes.base import Service
from testbed.roles import images
from testbed.roles.base import GO, Role, start
from testbed.roles.containers import container_steps
from testbed.roles.engine import SOCKET, engine_version, parse_version, preload

if TYPE_CHECKING:
    from testbed.lab.context import Context
    from testbed.topology.model import Node, Topology

SERVICE = "dockerd"
CONFIG = "/etc/docker/daemon.json"


def docker_step(node: str) -> str:
    """The name of the step after which the node's daemon answers."""
    return f"docker {node}"


def daemon_config(topology: Topology, node: str, version: tuple[int, int, int]) -> dict[str, Any]:
    """The node's daemon.json.

    Under flannel, addresses are translated by flanneld where they leave the
    overlay, and nowhere else, as flannel's own mk-docker-opts.sh sets it.
    """
    config: dict[str, Any] = {
        "bip": str(topology.docker.bip[node]),
        "storage-driver": "overlay2",
        "hosts": [f"unix://{SOCKET}"],
        "data-root": "/var/lib/docker",
        "exec-root": "/run/docker",
        "pidfile": "/run/docker.pid",
    }
    if topology.flannel and node in topology.flannel.subnets:
        config["mtu"] = topology.flannel.mtu
        config["ip-masq"] = False
        if version >= (28, 2, 0):
            # Since 28 packages for a container that come in by another interface are
            # dropped (moby #49792); an overlay is just that.  Earlier 28: see daemon_env.
            config["allow-direct-routing"] = True
    if version >= (29, 0, 0):
        # 29 keeps images in containerd unless told: the seed of images is for overlay2.
        config["features"] = {"containerd-snapshotter": False}
    return config


def daemon_env(
    topology: Topology, node: str, version: tuple[int, int, int], path: str
) -> dict[str, str]:
    """The daemon's environment; ``path`` is the PATH that its helpers are found on."""
    env = {"PATH": path, **GO}
    routed = topology.flannel is not None and node in topology.flannel.subnets
    if routed and (28, 0, 0) <= version < (28, 2, 0):
        env["DOCKER_INSECURE_NO_IPTABLES_RAW"] = "1"  # moby 28.0 release notes
    return env


class Docker(Role):
    name = "docker"
    artifacts = ("dockerd", "containerd", "runc")
    programs: ClassVar[dict[str, str]] = {
        "iptables": "iptables",
        "nsenter": "util-linux",
        "curl": "curl",
    }
    kernel = ("overlay", "iptables nat", "iptables conntrack", "iptables addrtype")
    services = (SERVICE,)

    def steps(self, topology: Topology, node: Node) -> Iterable[Step]:
        bip = topology.docker.bip[node.name]

        def act(context: Context) -> tuple[str, bool]:
            return self._start(context, node.name)

        about = f"dockerd with docker0 at {bip}"
        yield Step(docker_step(node.name), about, (node_step(node.name),), heavy=True, act=act)
        yield from images.images_steps(topology, node.name, docker_step(node.name))
        yield from container_steps(topology, node.name, images.images_step(node.name))

    @staticmethod
    def _start(context: Context, node: str) -> tuple[str, bool]:
        topology = context.topology
        machine = context.node(node)
        version = engine_version(context.store, machine)
        number = parse_version(version)
        if SERVICE not in machine.services():  # its data root is still to be made
            config = daemon_config(topology, node, number)
            machine.put(json.dumps(config, indent=1).encode(), CONFIG)
            images.install_seed(context, machine, version)
        folders = [machine.provide(p) for p in context.store.path_dirs("docker")]
        path = ":".join([*folders, "/usr/sbin", "/usr/bin", "/sbin", "/bin"])
        program = machine.provide(context.store.binary("dockerd"))
        preload()
        service = Service(
            SERVICE,
            (program, "--log-level=warn"),
            env=daemon_env(topology, node, number, path),
            notify=True,
            digest=topology.node_digest(node),
        )
        changed = start(machine, service, timeout=180)
        return f"dockerd {version}, docker0 {topology.docker.bip[node]}", changed

"""containerd on a node, and the images that it has."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from testbed.lab.marks import mark, marked
from testbed.nodes.base import Service
from testbed.roles.base import start
from testbed.roles.kubernetes import addons, config
from testbed.roles.seed import Layout, Seed, harvest, install, is_seeded, keep

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from testbed.lab.context import Context
    from testbed.nodes.base import Node
    from testbed.roles.kubernetes.plugins.base import Plugin
    from testbed.topology.model import Topology

SERVICE = "containerd"
PART = "docker"  # whose Debian packages bring containerd and runc
BINARIES = "/var/lib/cni/bin"
SECONDS = 180.0  # a busy emulated machine takes a minute for an image
LAYOUT = Layout(  # of containerd 1.6 with the overlayfs snapshotter
    root="/var/lib/containerd",
    parts=(
        "io.containerd.content.v1.content",
        "io.containerd.metadata.v1.bolt",
        "io.containerd.snapshotter.v1.overlayfs",
    ),
    linked=(
        "io.containerd.content.v1.content/blobs/sha256/*",
        "io.containerd.snapshotter.v1.overlayfs/snapshots/*/fs",
    ),
)
#: Readable by the kubelet, which asks for these values and would else write them; they are
#: the machine's, not a namespace's (kubelet, --protect-kernel-defaults).
SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
#: Arguments: the folder of sockets, whether the node shares our kernel; then sysctls, each with
#: its value.
PREPARE = """
set -eu
mkdir -p -m 700 "$1"
mkdir -p /etc/cni/net.d /run/flannel /run/testbed/sys /var/lib/kubelet /var/log/pods
sysctl -q -w net.ipv4.ip_forward=1
shift
if [ "$1" = shares ]; then
  # The kubelet asks for a kernel log: of the machine's it is told nothing.
  ln -sf null /dev/kmsg
fi
while [ $# -gt 2 ]; do
  file=/proc/sys/$2
  if [ "$1" = shares ]; then
    file=/run/testbed/sys/$(echo "$2" | tr / _)
    : > "$file"
    mount --bind "$file" "/proc/sys/$2"
  fi
  echo "$3" > "$file"
  kind=$1; shift 3; set -- "$kind" "$@"
done
"""
#: Arguments: the folder to fill, one with programs, more programs.  The machine's own is not the
#: node's to write.
GATHER = """
set -eu
if [ ! -w "$(dirname "$(dirname "$0")")" ]; then
  mount -t tmpfs testbed "$(dirname "$(dirname "$0")")"
fi
mkdir -p "$0"
from=$1; shift
ln -sf "$from"/* "$@" "$0"
"""


def path(context: Context, machine: Node) -> dict[str, str]:
    """The environment in which the runtime's programs are found."""
    folders = [machine.provide(folder) for folder in context.store.path_dirs(PART)]
    return {"PATH": ":".join([*folders, "/usr/sbin", "/usr/bin", "/sbin", "/bin"])}


def images(topology: Topology) -> list[str]:
    """What every node of the cluster has; what the first Pods need comes first."""
    from testbed.roles.kubernetes.plugins import plugin_of  # which starts daemons by this module

    mine = plugin_of(topology).images
    return [config.PAUSE, *mine, *addons.images(topology), "nginx"]


def start_containerd(context: Context, node: str, plugin: Plugin) -> tuple[str, bool]:
    machine = context.node(node)
    topology = context.topology
    version = context.store.version(PART)
    if marked(machine, "prepared") is None:
        words = [word for item in SYSCTLS.items() for word in item]
        kind = "shares" if machine.shares else "own"
        machine.run(["sh", "-c", PREPARE, "sh", config.RUN, kind, *words])
        if machine.shares:
            install(context.store, machine, _seed(context, version, bytes))
        mark(machine, "prepared")
    machine.run(["nft", "-f", "-"], input=plugin.masquerade(topology).encode())
    if network := plugin.network(topology, node):
        machine.put(json.dumps(network).encode(), f"{config.CNI}/10-pods.conflist")
    folder = _binaries(context, machine, plugin)
    machine.put(config.containerd(folder).encode(), config.CONTAINERD_FILE)
    service = Service(
        SERVICE,
        (
            machine.provide(context.store.binary("containerd", PART)),
            f"--config={config.CONTAINERD_FILE}",
            "--log-level=warn",
        ),
        env=path(context, machine),
        notify=True,
        digest=topology.node_digest(node),
    )
    changed = start(machine, service, timeout=SECONDS)
    return f"containerd of {version}", changed


def _binaries(context: Context, machine: Node, plugin: Plugin) -> str:
    """The folder of a node in which containerd finds the CNI plugins: it knows one alone."""
    (reference,) = context.store.path_dirs("cni-plugins")
    folder = machine.provide(reference)
    if not plugin.binaries and not plugin.folder:
        return folder
    found = [machine.provide(context.store.binary(name)) for name in plugin.binaries]
    target = plugin.folder or BINARIES
    machine.run(["sh", "-c", GATHER, target, folder, *found])
    return target


def load_images(context: Context, node: str) -> tuple[str, bool]:
    """Make sure of the images; the first time on this machine, keep what they have come to."""
    machine = context.node(node)
    names = images(context.topology)
    files = [context.store.image(name) for name in names]
    wanted = " ".join(f"{file} {file.stat().st_mtime_ns}" for file in files)
    if marked(machine, "images") == wanted:
        return f"{', '.join(names)} there", False
    missing = import_images(context, machine, names)
    unkept = ""
    if missing and machine.shares and not is_seeded(machine):
        unkept = _keep(context, machine)
    mark(machine, "images", wanted)
    how = f"{'loaded' if missing else 'there'}{unkept and f'; not kept: {unkept}'}"
    return f"{', '.join(names)} {how}", bool(missing)


def import_images(context: Context, machine: Node, names: Sequence[str]) -> list[str]:
    """Import those images that the node does not have; return their names."""
    there = set(_ctr(context, machine, "images", "list", "--quiet").split())
    missing = [name for name in names if not there & {_full(name), f"{_full(name)}:latest"}]
    for name in missing:
        _ctr(context, machine, "images", "import", machine.provide(context.store.image(name)))
    return missing


def _full(name: str) -> str:
    """An image's name as containerd has it: with its registry (docs.docker.com's, by default).

    >>> _full("nginx"), _full("testbed/pause:1"), _full("registry.k8s.io/pause:3.10.2")
    ('docker.io/library/nginx', 'docker.io/testbed/pause:1', 'registry.k8s.io/pause:3.10.2')
    """
    if "." in name.partition("/")[0]:
        return name
    return f"docker.io/{name}" if "/" in name else f"docker.io/library/{name}"


def _ctr(context: Context, machine: Node, *words: str) -> str:
    program = machine.provide(context.store.binary("ctr", PART))
    argv = [program, f"--address={config.CONTAINERD_SOCKET}", "--namespace=k8s.io", *words]
    return machine.run(argv, timeout=SECONDS).stdout


def _keep(context: Context, machine: Node) -> str:
    """Make the seed from a containerd that has the images and no container yet.

    Return why it cannot be kept, or an empty string.
    """
    if _ctr(context, machine, "containers", "list", "--quiet").strip():
        return ""
    seed = _seed(context, context.store.version(PART), lambda: harvest(machine, LAYOUT))
    return keep(context.store, seed)


def _seed(context: Context, version: str, of: Callable[[], bytes]) -> Seed:
    archives = [context.store.image(name) for name in images(context.topology)]
    return Seed(f"containerd of {version}", LAYOUT, archives, of)

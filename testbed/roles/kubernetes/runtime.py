"""containerd on a node, and its images."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from testbed.artifacts import archive
from testbed.artifacts.reference import Reference, full_name, local_name
from testbed.errors import LabError
from testbed.nodes.base import Service
from testbed.nodes.marks import mark, marked, note, noted
from testbed.nodes.seed import Harvest, Layout, Seed, harvest, install, is_seeded, keep
from testbed.roles.base import files, start
from testbed.roles.flannel.section import FORWARDING6
from testbed.roles.kubernetes import addons, config
from testbed.roles.kubernetes.section import KubernetesSection

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from testbed.artifacts import Store
    from testbed.nodes.base import Node
    from testbed.roles.kubernetes.plugins.base import Plugin
    from testbed.steps.context import Context
    from testbed.topology.model import Topology

SERVICE = "containerd"
LOADED = "image-files"  # mark: the files that images were imported from, by image name
PART = "docker"  # the artifact whose Debian packages contain containerd and runc
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
#: The values that the kubelet expects. It reads them, and would otherwise write them; they
#: belong to this machine, not to a namespace (kubelet, --protect-kernel-defaults).
SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
#: Arguments: the folder of sockets, whether the node shares this machine's kernel, then sysctls
#: with their values.
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
#: Arguments: the folder to fill, a folder with programs, more programs.  A node must not write
#: to this machine's own folder.
GATHER = """
set -eu
if [ ! -w "$(dirname "$(dirname "$0")")" ]; then
  mount -t tmpfs testbed "$(dirname "$(dirname "$0")")"
fi
mkdir -p "$0"
from=$1; shift
for file in "$from"/* "$@"; do
  # Beside what a plugin's Pods have put there, never instead of it.
  if [ ! -e "$0/${file##*/}" ]; then ln -sfn "$file" "$0"; fi
done
"""


def path(context: Context, machine: Node) -> dict[str, str]:
    """Return the environment for the runtime's programs, with their PATH."""
    folders = [machine.provide(folder) for folder in context.store.path_dirs(PART)]
    return {"PATH": ":".join([*folders, "/usr/sbin", "/usr/bin", "/sbin", "/bin"])}


def images(topology: Topology, store: Store | None = None) -> list[str]:
    """Return the images for every node of the cluster.

    Those of the first Pods come first. Without a ``store``, return only the images that are known
    without the user's own files.
    """
    from testbed.roles.kubernetes.plugins import plugin_of  # that package imports this module

    plugin = plugin_of(topology)
    mine = plugin.images if store is None else plugin.images_of(store)
    own = KubernetesSection.of(topology).images
    return list(dict.fromkeys([config.PAUSE, *mine, *addons.images(topology), "nginx", *own]))


def start_containerd(context: Context, node: str, plugin: Plugin) -> tuple[str, bool]:
    machine = context.node(node)
    topology = context.topology
    version = context.store.version(PART)
    if marked(machine, "prepared") is None:
        words = [word for item in SYSCTLS.items() for word in item]
        kind = "shares" if machine.shares_kernel else "own"
        machine.run(["sh", "-c", PREPARE, "sh", config.RUN, kind, *words])
        if machine.shares_files:
            install(context.store, machine, _seed(context, version))
        mark(machine, "prepared")
    if KubernetesSection.of(topology).ipv6:
        machine.run(FORWARDING6)
    machine.run(["nft", "-f", "-"], input=plugin.masquerade(topology).encode())
    if network := plugin.network(topology, node):
        machine.put(json.dumps(network).encode(), f"{config.CNI}/10-pods.conflist")
    folder = _binaries(context, machine, plugin)
    machine.put(config.containerd(folder).encode(), config.CONTAINERD_FILE)
    machine.put(config.CRICTL.encode(), config.CRICTL_FILE)
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
    changed = start(machine, service, timeout=SECONDS, context=context)
    return f"containerd of {version}", changed


def _binaries(context: Context, machine: Node, plugin: Plugin) -> str:
    """Create the node's folder of CNI plugins; return its path.

    containerd supports only one folder.
    """
    (reference,) = context.store.path_dirs("cni-plugins")
    folder = machine.provide(reference)
    if not plugin.binaries and not plugin.folder:
        return folder
    found = [machine.provide(context.store.binary(name)) for name in plugin.binaries]
    target = plugin.folder or BINARIES
    machine.run(["sh", "-c", GATHER, target, folder, *found])
    return target


def load_images(context: Context, node: str) -> tuple[str, bool]:
    """Load missing images; keep the result in the cache after the first time."""
    machine = context.node(node)
    names = images(context.topology, context.store)
    wanted = dict(zip(names, files(context.store.image(name) for name in names), strict=True))
    before = noted(machine, LOADED)
    if before == wanted:
        return f"{', '.join(names)} present", False
    others = {name for name in names if before.get(name, wanted[name]) != wanted[name]}
    missing = import_images(context, machine, names, others=others)
    for name in KubernetesSection.of(context.topology).images:
        name_image(context, machine, name, anew=name in missing)
    unkept = ""
    if missing and machine.shares_files and not is_seeded(machine):
        unkept = _keep(context, machine)
    note(machine, LOADED, wanted)
    how = f"{'loaded' if missing else 'present'}{unkept and f'; not kept: {unkept}'}"
    return f"{', '.join(names)} {how}", bool(missing)


def import_images(
    context: Context, machine: Node, names: Sequence[str], *, others: Collection[str] = ()
) -> list[str]:
    """Import the images that the node does not have; return their names.

    The archive of a user's own image may contain other names than ours. For images in
    ``others`` the node has a different image under the same name.
    """
    there = set(_ctr(context, machine, "images", "list", "--quiet").split())

    def is_there(name: str) -> bool:
        if name in others:
            return False
        if full_name(Reference.parse(name).pulled) in there:
            return True
        if not context.store.is_users_image(name):
            return False
        said = archive.names(context.store.image(name))
        return bool(said) and said <= there

    missing = [name for name in names if not is_there(name)]
    for name in missing:
        path = _visible(context, machine, name)
        _ctr(context, machine, "images", "import", machine.provide(path))
    return missing


def _visible(context: Context, machine: Node, name: str) -> Path:
    """Return the path of an image's archive that a node sees.

    A node does not see a user's file in a folder that it has for itself, such as /tmp, if the file
    was added to the configuration after the node was created. It sees the cache.
    """
    path = context.store.image(name)
    argv = ["test", "-e", machine.provide(path)]
    if machine.shares_files and not machine.run(argv, check=False).ok:
        return context.store.image_in_cache(name)
    return path


def name_image(context: Context, machine: Node, name: str, *, anew: bool) -> None:
    """Give an imported image the name by which Pods ask for it.

    A Pod's image with a digest is asked for by its digest, without its tag (containerd's CRI
    plugin, NormalizeImageRef). An archive has no such name, and a user's archive may have any.
    ``anew`` replaces the name's earlier image. Raises LabError if the archive has no name, or
    several others.
    """
    there = set(_ctr(context, machine, "images", "list", "--quiet").split())
    wanted = full_name(Reference.parse(name).pulled)
    if wanted in there and not anew:
        return
    said = archive.names(_visible(context, machine, name))
    source = full_name(local_name(name))
    if source not in said:
        if len(said) != 1:
            raise LabError(
                f"the archive of {name} has {', '.join(sorted(said)) or 'no name of an image'}",
                hint=f"save that image alone: docker save -o FILE {name}",
            )
        (source,) = said
    if wanted != source:
        _ctr(context, machine, "images", "tag", "--force", source, wanted)


def _ctr(context: Context, machine: Node, *words: str) -> str:
    program = machine.provide(context.store.binary("ctr", PART))
    argv = [program, f"--address={config.CONTAINERD_SOCKET}", "--namespace=k8s.io", *words]
    return machine.run(argv, timeout=SECONDS).stdout


def _keep(context: Context, machine: Node) -> str:
    """Create the seed from a containerd with images and no containers.

    Return why it cannot be kept, or an empty string.
    """
    if _ctr(context, machine, "containers", "list", "--quiet").strip():
        return ""
    seed = _seed(context, context.store.version(PART), harvest(machine, LAYOUT))
    return keep(context.store, seed)


def _seed(context: Context, version: str, of: Harvest | None = None) -> Seed:
    archives = [context.store.image(name) for name in images(context.topology, context.store)]
    return Seed(f"containerd of {version}", LAYOUT, archives, of)

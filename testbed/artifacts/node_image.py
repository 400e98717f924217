"""The image of nodes that are containers: a Debian machine without a kernel and systemd.

Its first program is ``testbed-init``, which keeps services.  The daemons of roles are not in it:
labs mount them from the cache.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from testbed.artifacts import bootstrap, release
from testbed.artifacts.cache import remove_tree
from testbed.artifacts.image import PATH, docker_image, write_layer
from testbed.artifacts.source import Job, Origin, Source

if TYPE_CHECKING:
    from pathlib import Path

NAME = "testbed/node:1"  #: name of the image, unless the user gives another
PART, TREE_PART, INIT_PART = "node-image", "node-tree", "testbed-init"
IMAGE, LAYER, MANIFEST = "image.tar", "layer.tar", "manifest.json"
ROOM = 2 << 30  # bytes of temporary space for building the tree
PACKAGES = (
    # programs that daemons of roles call, and libraries of those that come from Debian
    "ca-certificates", "iproute2", "ipset", "iptables", "libdevmapper1.02.1", "libseccomp2",
    "libsystemd0", "nftables", "tini", "util-linux",
    *bootstrap.TOOLS,
)  # fmt: skip
#: Files that would be the same on all machines, or that the engine and the first start create.
GONE = (
    "etc/fstab", "etc/hostname", "etc/machine-id", "etc/resolv.conf", "var/lib/dbus/machine-id",
    "var/cache/apt/archives", "var/cache/apt/pkgcache.bin", "var/cache/apt/srcpkgcache.bin",
    "var/cache/debconf", "var/cache/ldconfig", "var/lib/apt/lists", "var/log/apt",
    "var/log/alternatives.log", "var/log/bootstrap.log", "var/log/dpkg.log",
)  # fmt: skip
#: Contents of these belong to the kernel, or to a running machine.
EMPTY = ("dev", "proc", "run", "sys", "tmp", "boot")
INIT = "usr/local/lib/testbed/testbed-init"
COMMANDS = ("journalctl", "service", "systemctl")  # its other names, those of nodes/keeper.py
#: Folders for which the engine creates a volume: an engine in the container needs a file system
#: that is no overlay.
VOLUMES = ("/var/lib/containerd", "/var/lib/docker")


@dataclass(frozen=True)
class NodeTree(Source):
    """The layer of an image with a Debian tree of ``packages``.

    The default release is this machine's, because the store's programs need its libraries.
    """

    suite: str = field(default_factory=lambda: release.this().suite)
    packages: tuple[str, ...] = PACKAGES
    origin: ClassVar[Origin] = "debian"

    @property
    def names(self) -> list[str]:
        """The packages, named as in the tree's release."""
        return sorted({*release.packages(self.packages, release.named(self.suite))})

    def recipe(self) -> Mapping[str, object]:
        return {
            "suite": self.suite,
            "packages": self.names,
            "without": list(bootstrap.WITHOUT),
            "gone": [GONE, EMPTY],
            "form": 1,  # of the layer and the manifest
        }

    def version(self) -> str:
        return self.suite

    def whole(self, folder: Path) -> bool:
        return all((folder / name).is_file() for name in (LAYER, MANIFEST))

    def fill(self, job: Job) -> str:
        bootstrap.check(job.into, "the image of nodes", ROOM, bootstrap.lacking())
        root = job.into / "root"
        try:
            bootstrap.bootstrap(job, self.suite, self.names, root)
            job.say("write the layer")
            for place in GONE:
                bootstrap.remove(root, place)
            for place in EMPTY:
                for path in (root / place).iterdir():
                    bootstrap.remove(root, f"{place}/{path.name}")
            packages = bootstrap.installed(job, root)
            write_layer(root, job.into / LAYER, faithful=True)
        finally:
            remove_tree(root)
        manifest = {"suite": self.suite, "packages": {n: v for n, (v, _) in packages.items()}}
        (job.into / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), "utf-8")
        return self.suite


@dataclass(frozen=True)
class NodeImage(Source):
    """An archive for ``docker load``, with the image of a node under the name ``tag``.

    ``tree`` and ``init`` are the sources of its two parts.
    """

    tree: Source
    init: Source
    tag: str = NAME
    origin: ClassVar[Origin] = "image"

    def recipe(self) -> Mapping[str, object]:
        return {
            "tag": self.tag,
            "tree": self.tree.key(),
            "init": self.init.key(),
            "config": self._config(),
            "form": 1,  # of the layer with testbed-init
        }

    def version(self) -> str | None:
        return self.tree.version()

    def whole(self, folder: Path) -> bool:
        return (folder / IMAGE).is_file()

    def fill(self, job: Job) -> str:
        tree, init = job.part(TREE_PART), job.part(INIT_PART)
        job.say("write the image")
        root, layer = job.into / "root", job.into / "init.layer"
        root.mkdir()
        program = (init / "bin" / "testbed-init").read_bytes()
        bootstrap.write(root, INIT, program, 0o755)
        for name in COMMANDS:
            bootstrap.link(root, f"usr/local/bin/{name}", f"/{INIT}")
        write_layer(root, layer)
        docker_image([tree / LAYER, layer], job.into / IMAGE, tag=self.tag, config=self._config())
        remove_tree(root)
        layer.unlink()
        return self.version() or ""

    def _config(self) -> dict[str, object]:
        """Return the image's configuration (OCI image specification, "Properties", config)."""
        return {
            "Cmd": ["machine"],
            "Entrypoint": [f"/{INIT}"],
            "Env": [PATH],
            "StopSignal": "SIGTERM",
            "Volumes": {place: {} for place in VOLUMES},
            "WorkingDir": "/",
        }

"""Docker Engine on a node: programs, configuration and services of each release."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.artifacts.engines import BUILT, DEBIAN
from testbed.errors import CommandError, MachineError, TimeoutExpired
from testbed.nodes.base import Service
from testbed.process import run

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.nodes.base import Node

#: A release that testbed has, or the absolute path of a folder with the programs of another one.
Release = str
#: Artifacts (:mod:`testbed.artifacts.inventory`) of each release. The first one provides the daemon
#: and its version; a helper program comes from the first artifact that has it.
PARTS: Mapping[Release, tuple[str, ...]] = {
    "20.10": (DEBIAN,),
    **{release: built.parts for release, built in BUILT.items()},
}
#: Programs that a folder of one's own must have; others are Debian's.
OF_A_FOLDER = (
    "dockerd", "docker", "docker-proxy", "containerd", "containerd-shim-runc-v2", "runc",
)  # fmt: skip
OLDEST = (19, 3)  #: the first release whose containerd reads the configuration below
PROGRAMS = ("dockerd", "containerd", "runc")  # required to start a daemon
SERVICE, CONTAINERD = "dockerd", "containerd"  # names of the services
UNIT = "docker"  #: its unit in Debian's docker.io and in Docker's own packages
SOCKET = "/run/docker.sock"
CONFIG = "/etc/docker/daemon.json"
DATA = "/var/lib/docker"
CONTAINERD_FILE = "/etc/docker/containerd.toml"
CONTAINERD_SOCKET = "/run/docker/containerd/containerd.sock"
#: A part of containerd's configuration that makes garbage collection rare: the highest share of
#: time that it may take (containerd, docs/garbage-collection.md).
COLLECT_SELDOM = """\
[plugins."io.containerd.gc.v1.scheduler"]
pause_threshold = 0.0001
"""
#: The configuration that dockerd writes for a containerd of its own, except for the last lines:
#: with the default (0.02) an idle containerd collects garbage eighty times a second.  CRI is
#: disabled because only Kubernetes uses it.
CONTAINERD_CONFIG = f"""\
version = 2
root = "{DATA}/containerd/daemon"
state = "/run/docker/containerd/daemon"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{CONTAINERD_SOCKET}"
{COLLECT_SELDOM}"""


def parse_version(text: str) -> tuple[int, int, int]:
    """Return the version in a version line or in a bare number.

    A version line is ``Docker version 20.10.24+dfsg1, build ...``. Return (0, 0, 0) for a text
    without a version.

    >>> parse_version("Docker version 28.0.2, build 123")
    (28, 0, 2)
    """
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    if not found:
        return (0, 0, 0)
    return (int(found[1]), int(found[2]), int(found[3] or 0))


def is_folder(release: Release) -> bool:
    """Tell whether an engine is that of a folder."""
    return release.startswith("/")


def parts_of(release: Release) -> tuple[str, ...]:
    """Return the parts of a release, in which its programs are looked for in this order."""
    return (release, DEBIAN) if is_folder(release) else PARTS[release]


def version_in(folder: str) -> str:
    """Return the version line of the engine in a folder; empty if it does not run here."""
    program = Path(folder, "dockerd")
    try:
        return _version_line(str(program), program.stat().st_mtime_ns)
    except OSError:
        return ""


@functools.cache
def _version_line(program: str, _changed: int) -> str:
    try:
        return run([program, "--version"], timeout=60).stdout.strip()
    except (CommandError, TimeoutExpired, MachineError):
        return ""


def number_of(release: Release) -> tuple[int, int, int]:
    """Return the version number of a release, as far as its name or its program tells it."""
    return parse_version(version_in(release) if is_folder(release) else f"{release}.0")


def words_of(release: Release) -> str:
    """Return a release in words: its name, or the version and the folder of its programs."""
    if not is_folder(release):
        return release
    return f"{'.'.join(map(str, number_of(release)))} of {release}"


def version_of(store: Store, machine: Node, release: Release) -> str:
    """Return the version of a node's dockerd.

    If the program is the user's own, it is run to get its version.
    """
    if not store.is_users("dockerd"):
        if is_folder(release):
            return version_in(release)
        return store.version(PARTS[release][0])
    argv = [machine.provide(store.binary("dockerd")), "--version"]
    return machine.run(argv).stdout.strip()


def program(store: Store, release: Release, name: str) -> Path:
    """Return the path of a release's program, or of the user's own one.

    The program is built first if it is missing.
    """
    return store.binary(name, *parts_of(release))


def configuration(version: tuple[int, int, int]) -> dict[str, Any]:
    """Return the part of daemon.json that every daemon of this version needs."""
    config: dict[str, Any] = {
        "storage-driver": "overlay2",
        "hosts": [f"unix://{SOCKET}"],
        "data-root": DATA,
        "exec-root": "/run/docker",
        "pidfile": "/run/docker.pid",
    }
    if version >= (29, 0, 0):
        # 29 stores images in containerd by default, but the image seed is for overlay2.
        config["features"] = {"containerd-snapshotter": False}
    return config


def path(store: Store, machine: Node, release: Release) -> str:
    """Return the PATH of a daemon on a node, with its helper programs first."""
    folders = [machine.provide(folder) for folder in store.path_dirs(*parts_of(release))]
    return ":".join([*folders, "/usr/sbin", "/usr/bin", "/sbin", "/bin"])


def services(
    store: Store,
    machine: Node,
    release: Release,
    *,
    env: Mapping[str, str],
    digest: str,
    more: str = "",
    quiet: bool = True,
) -> tuple[Service, Service]:
    """Return the services of a node's engine in the order of their start: containerd, dockerd.

    Their configuration files must be in place.  ``digest`` identifies these, and ``more`` what
    only dockerd reads.  dockerd is ``quiet`` if its configuration does not set its log level.
    """
    containerd = machine.provide(program(store, release, "containerd"))
    daemon = machine.provide(program(store, release, "dockerd"))
    warnings = "--log-level=warn"
    heard = [warnings] if quiet else []
    return (
        Service(
            CONTAINERD,
            (containerd, f"--config={CONTAINERD_FILE}", warnings),
            env=env,
            notify=True,
            digest=digest,
        ),
        Service(
            SERVICE,
            (daemon, f"--containerd={CONTAINERD_SOCKET}", *heard),
            env=env,
            notify=True,
            digest=f"{digest}.{more}" if more else digest,
            unit=UNIT,
        ),
    )

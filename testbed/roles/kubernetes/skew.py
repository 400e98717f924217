"""The version skew policy: refuse incompatible programs.

The check runs before a cluster starts. The programs that testbed builds are compatible; a user's
own ones may not be (``--artifact kubelet=PATH``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from testbed.errors import MachineError
from testbed.process import run

if TYPE_CHECKING:
    from testbed.artifacts import Store

Version = tuple[int, int]  # major, minor: patch releases are always compatible
#: By how many minor versions each program may be older, and newer, than the API server
#: (kubernetes.io, "Version Skew Policy").
SKEW: Mapping[str, tuple[int, int]] = {
    "kube-controller-manager": (1, 0),
    "kube-scheduler": (1, 0),
    "kubelet": (3, 0),
    "kube-proxy": (3, 0),
    "kubectl": (1, 1),
}
API = "kube-apiserver"
SAYS: Mapping[str, tuple[str, ...]] = {
    "kubectl": ("version", "--client"),
    "containerd": ("--version",),
}
#: The first kubelet that requires the cgroup driver from the runtime, and the first containerd
#: that reports it (kubernetes.io, "Container Runtimes").
KUBELET, CONTAINERD = (1, 38), (2, 0)
VERSION = re.compile(r"\bv?(\d+)\.(\d+)\.\d+")
SECONDS = 20.0  # a program of a hundred megabytes may have to be read from disk


def version_of(text: str) -> Version | None:
    """Return the first version in a program's version output.

    >>> version_of("Kubernetes v1.36.3"), version_of("containerd github.com/x 1.6.20~ds1 1.6")
    ((1, 36), (1, 6))
    """
    found = VERSION.search(text)
    return (int(found[1]), int(found[2])) if found else None


def refuse(versions: Mapping[str, Version]) -> None:
    """Raise MachineError, with every pair, for incompatible programs."""
    wrong = []
    server = versions[API]
    for name, (older, newer) in SKEW.items():
        major, minor = versions[name]
        if major != server[0] or not server[1] - older <= minor <= server[1] + newer:
            lowest = _words((server[0], server[1] - older))
            highest = _words((server[0], server[1] + newer))
            wanted = lowest if lowest == highest else f"{lowest} to {highest}"
            wrong.append(
                f"{name} is {_words(versions[name])}, but {API} {_words(server)} requires {wanted}"
            )
    if versions["kubelet"] >= KUBELET and versions["containerd"] < CONTAINERD:
        wrong.append(
            f"containerd is {_words(versions['containerd'])}, and kubelet "
            f"{_words(versions['kubelet'])} wants {_words(CONTAINERD)} or later"
        )
    if wrong:
        raise MachineError(
            "the versions of the cluster's programs do not match\n"
            + "\n".join(f"    {pair}" for pair in wrong),
            hint="use other programs (--artifact NAME=PATH), or those of testbed",
        )


def check(store: Store) -> None:
    """Check the versions of the user's own programs.

    Raises MachineError for incompatible programs and for a program without a version.
    """
    names = (API, *SKEW, "containerd")
    if any(store.is_users(name) for name in names):
        refuse({name: _ask(store, name) for name in names})


def _ask(store: Store, name: str) -> Version:
    path = store.binary(name, *(("docker",) if name == "containerd" else ()))
    argv = [str(path), *SAYS.get(name, ("--version",))]
    said = run(argv, timeout=SECONDS, check=False)
    version = version_of(said.stdout)
    if version is None:
        raise MachineError(
            f"{path} does not print its version",
            hint=f"it should be {name}; `{' '.join(argv)}` says: {said.stdout or said.stderr}",
        )
    return version


def _words(version: Version) -> str:
    return ".".join(map(str, version))

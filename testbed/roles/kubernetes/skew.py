"""Which versions of a cluster's programs go together: refused before anything starts.

Those that testbed makes do; a user may bring others (``--artifact kubelet=PATH``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from testbed.errors import MachineError
from testbed.process import run

if TYPE_CHECKING:
    from testbed.artifacts import Store

Version = tuple[int, int]  # major, minor: patches go together always
#: Each with how many minors it may be older than the API server, and newer (kubernetes.io,
#: "Version Skew Policy").
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
#: The first kubelet that has to be told its cgroup driver by the runtime, and the first
#: containerd that tells (kubernetes.io, "Container Runtimes").
KUBELET, CONTAINERD = (1, 38), (2, 0)
VERSION = re.compile(r"\bv?(\d+)\.(\d+)\.\d+")
SECONDS = 20.0  # a program of a hundred megabytes that is read for the first time


def version_of(text: str) -> Version | None:
    """The first version in what a program says of itself.

    >>> version_of("Kubernetes v1.36.3"), version_of("containerd github.com/x 1.6.20~ds1 1.6")
    ((1, 36), (1, 6))
    """
    found = VERSION.search(text)
    return (int(found[1]), int(found[2])) if found else None


def refuse(versions: Mapping[str, Version]) -> None:
    """Raise MachineError, naming every pair, for programs that do not go together."""
    wrong = []
    server = versions[API]
    for name, (older, newer) in SKEW.items():
        major, minor = versions[name]
        if major != server[0] or not server[1] - older <= minor <= server[1] + newer:
            lowest = _words((server[0], server[1] - older))
            highest = _words((server[0], server[1] + newer))
            wanted = lowest if lowest == highest else f"{lowest} to {highest}"
            wrong.append(
                f"{name} is {_words(versions[name])}, and with {API} {_words(server)} goes {wanted}"
            )
    if versions["kubelet"] >= KUBELET and versions["containerd"] < CONTAINERD:
        wrong.append(
            f"containerd is {_words(versions['containerd'])}, and kubelet "
            f"{_words(versions['kubelet'])} wants {_words(CONTAINERD)} or later"
        )
    if wrong:
        raise MachineError(
            "programs of the cluster do not go together\n"
            + "\n".join(f"    {pair}" for pair in wrong),
            hint="bring others (--artifact NAME=PATH), or leave them to testbed",
        )


def check(store: Store) -> None:
    """Refuse programs of the user's that do not go together with the others.

    Raises MachineError, also for one that does not tell its version.
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
            f"{path} does not tell its version",
            hint=f"it should be {name}; `{' '.join(argv)}` says: {said.stdout or said.stderr}",
        )
    return version


def _words(version: Version) -> str:
    return ".".join(map(str, version))

"""Versions of a cluster's programs that go together, and those that do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.artifacts import Store
from testbed.errors import MachineError
from testbed.roles.kubernetes import skew

FIT = {
    "kube-apiserver": (1, 36),
    "kube-controller-manager": (1, 36),
    "kube-scheduler": (1, 35),
    "kubelet": (1, 33),
    "kube-proxy": (1, 34),
    "kubectl": (1, 37),
    "containerd": (1, 6),
}


def test_versions_that_go_together() -> None:
    skew.refuse(FIT)
    skew.refuse(dict.fromkeys(FIT, (1, 38)) | {"containerd": (2, 1)})


@pytest.mark.parametrize(
    ("name", "version", "goes"),
    [
        ("kubelet", (1, 37), "1.33 to 1.36"),  # newer than its server
        ("kubelet", (1, 32), "1.33 to 1.36"),
        ("kube-proxy", (2, 36), "1.33 to 1.36"),
        ("kube-scheduler", (1, 34), "1.35 to 1.36"),
        ("kube-controller-manager", (1, 37), "1.35 to 1.36"),
        ("kubectl", (1, 34), "1.35 to 1.37"),
    ],
)
def test_a_pair_that_does_not_is_named(name: str, version: tuple[int, int], goes: str) -> None:
    with pytest.raises(MachineError) as refused:
        skew.refuse({**FIT, name: version})
    said = f"{name} is {version[0]}.{version[1]}, but kube-apiserver 1.36 requires {goes}"
    assert said in str(refused.value)


def test_each_pair_that_does_not_has_a_line() -> None:
    with pytest.raises(MachineError) as refused:
        skew.refuse({**FIT, "kubelet": (1, 37), "kubectl": (1, 34)})
    _, *pairs = refused.value.message.splitlines()
    assert [pair.split()[0] for pair in pairs] == ["kubelet", "kubectl"]


def test_a_kubelet_that_wants_a_newer_runtime() -> None:
    newer = dict.fromkeys(FIT, (1, 38)) | {"containerd": (1, 7)}
    with pytest.raises(MachineError, match=r"containerd .*1\.7.* kubelet 1\.38 .*2\.0"):
        skew.refuse(newer)


def script(folder: Path, name: str, says: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return str(path)


def test_programs_of_the_users_are_asked(tmp_path: Path) -> None:
    said = {name: f"Kubernetes v{major}.{minor}.3" for name, (major, minor) in FIT.items()}
    said["kubectl"] = "Client Version: v1.36.3\nKustomize Version: v5.8.1"
    said["containerd"] = "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1"
    own = {name: script(tmp_path, name, words) for name, words in said.items()}
    skew.check(Store(tmp_path / "cache", own))
    own["kubelet"] = script(tmp_path, "kubelet", "Kubernetes v1.37.0")
    with pytest.raises(MachineError, match=r"kubelet is 1\.37"):
        skew.check(Store(tmp_path / "cache", own))
    own["kubelet"] = script(tmp_path, "kubelet", "usage: none")
    with pytest.raises(MachineError, match="version") as refused:
        skew.check(Store(tmp_path / "cache", own))
    assert "usage: none" in (refused.value.hint or "")

"""The versions that a lab's record has, and a report names: those of what the lab uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from testbed.artifacts import Store
from testbed.labs.lab import versions_of
from testbed.topology import Overrides, load

if TYPE_CHECKING:
    from pathlib import Path


class Whole(Store):
    """Knows the version of every part."""

    def version(self, part: str) -> str:
        return f"that of {part}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    config = tmp_path / "config.toml"
    config.touch()
    return Whole(tmp_path, config=config)


@pytest.mark.parametrize(
    ("name", "overrides", "parts"),
    [
        ("netns-experiments", Overrides(), set()),
        ("docker-single", Overrides(), {"docker", "nginx"}),
        (
            "docker-single",
            Overrides(docker="29"),
            {"docker-29", "docker-cli-29", "runc-1.5", "nginx"},
        ),
        ("two-node", Overrides(), {"docker", "etcd", "flanneld", "nginx"}),
        ("k8s-two-node", Overrides(), {"kubernetes", "etcd", "cni-plugins", "flanneld", "coredns"}),
        (
            "k8s-two-node",
            Overrides(cni="cilium"),
            {"kubernetes", "etcd", "cni-plugins", "cilium", "clang", "bpftool", "coredns"},
        ),
        (
            "k8s-two-node",
            Overrides(cni="kube-router"),
            {"kubernetes", "etcd", "cni-plugins", "kube-router", "coredns"},
        ),
        (
            "k8s-ingress",
            Overrides(),
            {"kubernetes", "etcd", "cni-plugins", "flanneld", "coredns", "contour", "envoy"},
        ),
    ],
)  # fmt: skip
def test_a_lab_has_the_versions_of_what_it_uses_alone(
    store: Store, name: str, overrides: Overrides, parts: set[str]
) -> None:
    found = versions_of(store, load(name, overrides))
    assert found == {part: f"that of {part}" for part in parts}


def test_a_program_of_the_users_is_named(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.touch()
    store = Whole(tmp_path, {"dockerd": str(tmp_path / "mine")}, config)
    found = versions_of(store, load("two-node"))
    assert set(found) == {"docker", "dockerd", "etcd", "flanneld", "nginx"}

"""The core names no role and no provider: a third one needs no change in it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import testbed
from testbed.registry import PROVIDERS, ROLES

PACKAGE = Path(testbed.__file__).parent
WORDS = {*PROVIDERS, *ROLES} - {"namespaces"}  # that is a key of topology files, too
ATTRIBUTES = {"docker", "flannel", "kubernetes", "etcd"}

#: Places that are about one of them, and why.
ROOMS = {
    "roles": "the rooms of the roles",
    "nodes/containerlab": "the room of a provider",
    "nodes/kubectl_debug": "the room of a provider",
    "nodes/kubernetes": "the room of a provider",
    "nodes/netns": "the room of a provider",
    "nodes/openssh": "the room of a provider",
    "nodes/qemu": "the room of a provider",
    "nodes/vagrant": "the room of a provider",
    "catalogues/shipped": "claims on Docker, flannel and Kubernetes, and their checks",
    "suites": "helpers of these checks",
    "conformance": "upstream's tests of Kubernetes",
    "artifacts": "names of programs and packages, not of roles",
    "testing": "stand-ins for the shipped programs and providers",
}
#: Words in the core, by file, and why each may stand there.
ALLOWED = {
    ("claims/model.py", "netns"): "a feature that every lab has",
    ("pytest_checks.py", "netns"): "a feature that every lab has",
    ("topology/keys.py", "netns"): "the default provider",
    ("nodes/fake.py", "netns"): "nodes in memory share the fabric of the default provider",
    ("exports/netlab.py", "frr"): "a kind of device, not the role",
    ("nodes/engine.py", "docker"): "an artifact and a systemd unit, not the role",
}


def files() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not any(name.startswith((f"{room}/", f"{room}.")) for room in ROOMS):
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def named(tree: ast.Module) -> set[str]:
    """The words that a module has as a text, or as an attribute of a topology or a node."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in WORDS:
            found.add(str(node.value))
        elif isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
            found.add(node.attr)
    return found


def test_the_core_names_no_role_and_no_provider_but_where_it_may() -> None:
    assert {(name, word) for name, tree in files() for word in named(tree)} == ALLOWED.keys()


def test_no_exception_is_left_over() -> None:
    assert all((PACKAGE / room).is_dir() for room in ROOMS)


@pytest.mark.parametrize("text", ['x == "docker"', "topology.flannel.backend", 'f(["netns"])'])
def test_each_form_is_found(text: str) -> None:
    assert named(ast.parse(text))


@pytest.mark.parametrize("text", ['"a docker lab"', "docker(1)", '"dockerd"'])
def test_other_words_are_not(text: str) -> None:
    assert not named(ast.parse(text))

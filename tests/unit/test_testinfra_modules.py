"""testinfra's modules on nodes and in containers: what a node's pid 1 and the lab know."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from testbed.artifacts import Store
from testbed.nodes.base import NodeSpec, Service, note_packages, service_of
from testbed.nodes.fake import Answer, FakeNode, FakeProvider
from testbed.nodes.testinfra_backend import host_of
from testbed.roles import base
from testbed.roles.docker import daemon
from testbed.testing.fakes import be_a_machine

ON_A_NODE = ("/bin/sh", "-c", "LINE")
LACKING = ("LANG", "TERM")  # variables of a node that a container has no value for
MISSING = Answer(status=127, err=b"not found\n")


@pytest.fixture
def provider() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
def node(provider: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    """A node that shares the machine's files, with dockerd and etcd."""
    be_a_machine(monkeypatch, False)
    made = provider.create_one("lab", NodeSpec("node1", "d"))
    base.start(made, Service("dockerd", ("dockerd",), unit="docker"))
    base.start(made, Service("etcd", ("etcd",)))
    return made


def answering(provider: FakeProvider, answers: dict[str, Answer]) -> None:
    """Let the shell answer commands by their beginnings, and say "not found" to all others."""

    def answer(call: Any) -> Answer:
        line = call.words[-1 if len(call.words) == len(ON_A_NODE) else -1 - len(LACKING)]
        return next((one for start, one in answers.items() if line.startswith(start)), MISSING)

    provider.script(["/bin/sh"], answer)


@pytest.mark.parametrize("name", ["docker", "dockerd", "docker.service", "etcd"])
def test_a_daemon_of_the_lab_by_each_of_its_names(name: str, node: FakeNode) -> None:
    service = node.host.service(name)
    assert (service.exists, service.is_running, service.is_enabled) == (True, True, True)
    assert service.is_masked is False
    properties = service.systemd_properties
    assert (properties["ActiveState"], properties["SubState"]) == ("active", "running")
    state = service_of(node, name.removesuffix(".service"))
    assert state is not None
    assert properties["MainPID"] == str(state.pid)


@pytest.mark.parametrize(
    ("status", "active"), [(1, "failed"), (-signal.SIGKILL, "failed"), (0, "inactive")]
)
def test_a_daemon_that_has_ended(status: int, active: str, node: FakeNode) -> None:
    node.end("dockerd", status)
    service = node.host.service("docker")
    assert (service.exists, service.is_running, service.is_enabled) == (True, False, True)
    properties = service.systemd_properties
    assert (properties["ActiveState"], properties["MainPID"]) == (active, "0")
    assert properties["ExecMainStatus"] == str(status)


def test_an_unknown_service_does_not_run_and_says_why_the_rest_is_not_known(
    node: FakeNode,
) -> None:
    service = node.host.service("nginx")
    assert (service.exists, service.is_running) == (False, False)
    for ask in ("is_enabled", "is_masked", "is_valid", "systemd_properties"):
        with pytest.raises(RuntimeError, match=r"'nginx' on node node1.* dockerd, etcd"):
            getattr(service, ask)


def test_no_unit_file_of_a_daemon_is_called_valid(node: FakeNode) -> None:
    with pytest.raises(RuntimeError, match="unit file"):
        _ = node.host.service("docker").is_valid


def test_a_machine_with_a_systemd_of_its_own_is_asked_for_other_units(
    provider: FakeProvider, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_a_machine(monkeypatch)
    answers = {
        "systemctl is-active ssh": Answer(out=b"active\n"),
        "systemctl is-active docker": Answer(status=3, out=b"inactive\n"),
        "systemctl is-enabled ssh": Answer(out=b"enabled\n"),
        "systemctl list-unit-files": Answer(),
    }
    answering(provider, answers)
    ssh = node.host.service("ssh")
    assert (ssh.exists, ssh.is_running, ssh.is_enabled) == (True, True, True)
    assert node.host.service("docker").is_running, "the lab's own daemon, not the machine's unit"


def test_a_container_without_a_service_manager_says_so(
    provider: FakeProvider, node: FakeNode
) -> None:
    no = Answer(status=1)
    linux = {"uname": Answer(out=b"Linux\n"), "test -d": no, "command -v": no, "which": no}
    answering(provider, linux)
    host = host_of(node, container="web", prefix=("/bin/sh", "-c", "in web"))
    for ask in ("exists", "is_running", "is_enabled"):
        with pytest.raises(RuntimeError, match=r"no service manager .* container node1/web"):
            getattr(host.service("nginx"), ask)


def test_the_commands_of_a_container_get_its_variables(
    provider: FakeProvider, node: FakeNode
) -> None:
    prefix = ("nsenter", "--target=7")
    env = {"PATH": "/app/bin", "NAME": "web"}
    host_of(node, container="web", prefix=prefix, env=env).run("env")
    (call,) = [call for call in provider.machine.calls if call.words[:1] == ("nsenter",)]
    assert call.words[:2] == prefix
    assert call.words[-5:] == ("sh", "/app/bin", "env", *LACKING)
    assert "PATH" not in call.env, "nsenter itself is looked for on the node's"
    assert call.env["NAME"] == "web"


def test_packages_that_the_lab_has_brought_and_others(
    provider: FakeProvider, node: FakeNode
) -> None:
    note_packages(node, {"docker.io": "20.10.24", "runc": ""})
    answers = {
        "uname": Answer(out=b"Linux\n"),
        "cat /etc/os-release": Answer(out=b"ID=debian\n"),
        "dpkg-query -f '${Status}' -W iproute2": Answer(out=b"install ok installed"),
        "dpkg-query -f '${Status}' -W nginx": Answer(status=1),
        "dpkg-query -f '${Status} ${Version}'": Answer(out=b"install ok installed 6.1"),
    }
    answering(provider, answers)
    package = node.host.package
    assert [package(name).is_installed for name in ("docker.io", "runc", "iproute2", "nginx")] == [
        True,
        True,
        True,
        False,
    ]
    assert package("docker.io").version == "20.10.24"
    assert package("iproute2").version == "6.1"
    with pytest.raises(RuntimeError, match="runc"):
        _ = package("runc").version


@pytest.mark.parametrize("program", ["md5sum", "sha256sum"])
def test_a_sum_of_a_file_that_cannot_be_read_is_an_error(
    program: str, provider: FakeProvider, node: FakeNode
) -> None:
    answers = {
        f"{program} /etc/passwd": Answer(out=b"0123abcd  /etc/passwd\n"),
        f"{program} '/a\\b'": Answer(out=b"\\4567  /a\\\\b\n"),
    }
    answering(provider, answers)
    assert getattr(node.host.file("/etc/passwd"), program) == "0123abcd"
    assert getattr(node.host.file("/a\\b"), program) == "4567"
    with pytest.raises(AssertionError):
        getattr(node.host.file("/no/such"), program)


def test_the_version_of_a_python_package_that_is_not_there_is_an_error(
    provider: FakeProvider, node: FakeNode
) -> None:
    answering(provider, {"pip show pip": Answer(out=b"Name: pip\nVersion: 23.0\n")})
    assert node.host.pip("pip").version == "23.0"
    with pytest.raises(AssertionError):
        _ = node.host.pip("nothing").version


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "docker:x:999:\n"),
        ("root:x:0:\n", "root:x:0:\ndocker:x:999:\n"),
        ("root:x:0:\na:x:999:\nb:x:998:u", "root:x:0:\na:x:999:\nb:x:998:u\ndocker:x:997:\n"),
        ("docker:x:5:u\n", "docker:x:5:u\n"),
        ("dockers:x:5:\n", "dockers:x:5:\ndocker:x:999:\n"),
    ],
)
def test_the_group_of_the_socket(before: str | None, after: str, provider: FakeProvider) -> None:
    made = provider.create_one("lab", NodeSpec("node1", "d"))
    if before is not None:
        made.put(before.encode(), "/etc/group")
    daemon.add_group(made, daemon.GROUP)
    assert made.get("/etc/group").decode() == after


def test_the_packages_of_a_part() -> None:
    """The version is that of the first (see DebianPackages)."""
    store = Store(overrides={})
    found: Callable[..., dict[str, str]] = store.packages
    assert list(found("etcd")) == ["etcd-server", "etcd-client"]
    assert found("etcd")["etcd-client"] == ""
    assert found("flanneld") == {}, "a Go module is no package of a distribution"


def test_a_socket_by_a_path_with_a_link_in_it(provider: FakeProvider, node: FakeNode) -> None:
    listed = b"""\
Netid State  Recv-Q Send-Q     Local Address:Port  Peer Address:Port
u_str LISTEN 0      4096    /run/docker.sock 17               * 0
"""
    answers = {
        "uname": Answer(out=b"Linux\n"),
        "command -v": Answer(out=b"/usr/bin/ss\n"),
        "realpath /var/run/docker.sock": Answer(out=b"/run/docker.sock\n"),
        "realpath /var/run/none": Answer(out=b"/run/none\n"),
        "/usr/bin/ss --numeric --listening": Answer(out=listed),
    }
    answering(provider, answers)
    socket = node.host.socket
    assert socket("unix:///var/run/docker.sock").is_listening
    assert not socket("unix:///var/run/none").is_listening
    assert socket.get_listening_sockets() == ["unix:///run/docker.sock"]

"""Machines that exist: sshd listens on nodes of a lab, and another lab has only addresses."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest
from commands import Said, call
from labs import brought_up

from testbed.errors import LabError
from testbed.nodes.base import Service
from testbed.nodes.ssh import keys, sshd
from testbed.settings import settings
from testbed.testing.provider import NodeContract, until
from testbed.testing.terminal import TerminalContract
from testbed.topology import load_text

if TYPE_CHECKING:
    from testbed.labs.lab import Lab
    from testbed.nodes.base import Node

HIDDEN, LAB = "existing-live", "existing"
TEXT = f"""\
name: {HIDDEN}
networks: {{lan: {{subnet: 10.59.0.0/24}}}}
nodes:
  gate: {{networks: {{lan: 10.59.0.2}}}}
  node1: {{networks: {{lan: 10.59.0.3}}, roles: [docker]}}
  node2: {{networks: {{lan: 10.59.0.4}}, packages: [sudo]}}
containers:
  front: {{node: node1, image: nginx, publish: ["8080:80"]}}
"""
FILE = f"""\
name: {LAB}
provider: ssh
ssh: {{config: ssh_config}}
networks: {{lan: {{subnet: 10.59.0.0/24}}}}
nodes:
  node1: {{networks: {{lan: 10.59.0.3}}, roles: [docker], ssh: {{address: 10.59.0.3}}}}
  node2: {{networks: {{lan: 10.59.0.4}}, ssh: {{address: 10.59.0.4}}}}
containers:
  front: {{node: node1, image: nginx, publish: ["8080:80"]}}
"""
#: The gate is entered without a network; the others are behind it, as behind any jump host.
CONFIG = """\
Host *
  IdentityFile {key}
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
Host gate
  ProxyCommand env TESTBED_STATE={state} {testbed} proxy -l {lab} gate
Host 10.59.0.*
  ProxyJump gate
"""
#: Of a user who is not root, with the same key.
OPS = """\
grep -q ^ops: /etc/passwd || echo ops:*:1500:1500::/:/bin/sh >> /etc/passwd
cp /run/testbed/ssh/authorized_keys /etc/ops_keys
chmod 644 /etc/ops_keys
"""
SETTINGS = f"{sshd.SETTINGS}".replace(
    f"AuthorizedKeysFile {sshd.AUTHORIZED}", "AuthorizedKeysFile /etc/ops_keys"
)
#: Processes and files that a visit must not leave.
LEFT = "ps -e -o args=; find /dev/shm /run /tmp /var/tmp /root -maxdepth 1 -name '.testbed-*'"


@dataclass(frozen=True)
class There:
    """The machines, as their owner has them, and the folder of a user who has their addresses."""

    lab: Lab
    folder: Path

    def testbed(self, *argv: str) -> Said:
        return call(self.folder, *argv, env={"TESTBED_STATE": str(self.folder / "state")})

    def write(self, text: str = FILE, name: str = "lab.yaml") -> str:
        (self.folder / name).write_text(text)
        return str(self.folder / name)

    def know(self, **hosts: str) -> None:
        """Make these public keys the known ones, by the last part of the address."""
        lines = [f"10.59.0.{number.lstrip('_')} {key}\n" for number, key in hosts.items()]
        (self.folder / "known_hosts").write_text("".join(lines) + f"gate {self.key('gate')}\n")

    def key(self, node: str) -> str:
        return self.lab.node(node).get(f"{sshd.HOST}.pub").decode().strip()

    def processes(self, node: str) -> str:
        return self.lab.node(node).run(["sh", "-c", LEFT]).stdout

    def is_clean(self, node: str) -> bool:
        """Tell whether no visit goes on, and nothing of one is left."""
        left = r"^/proc/\d+/fd/9|testbed-ready|^/.*/\.testbed-|sshd: \w+(@| \[)"
        return not re.search(left, self.processes(node), re.MULTILINE)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[There]:
    state = tmp_path_factory.mktemp("hidden")
    for lab in brought_up(load_text(TEXT, "hidden.yaml"), state):
        store, folder = settings().store, tmp_path_factory.mktemp("user")
        folder.chmod(0o755)
        for name in ("gate", "node1", "node2"):
            node = lab.node(name)
            login = sshd.login(node, store)
            server = node.get(sshd.SERVER).decode()
            node.run(["sh", "-c", OPS])
            node.put(SETTINGS.encode(), "/etc/listening")
            if name != "gate":
                argv = (server, "-D", "-f", "/etc/listening", "-E", "/run/listening.log")
                node.start(Service("sshd", argv))
            key = login.key
        (folder / "id").write_bytes(key.read_bytes())
        for name in ("node1", "node2", "gate"):  # one key opens all
            lab.node(name).put(lab.node("node2").get(sshd.AUTHORIZED), "/etc/ops_keys", mode=0o644)
            lab.node(name).put(lab.node("node2").get(sshd.AUTHORIZED), sshd.AUTHORIZED, mode=0o600)
        (folder / "id").write_bytes(sshd.login(lab.node("node2"), store).key.read_bytes())
        (folder / "id").chmod(0o600)
        words = {"folder": folder, "state": state, "key": folder / "id", "lab": HIDDEN}
        testbed = f"{sys.executable} -P -m testbed"
        (folder / "ssh_config").write_text(CONFIG.format(**words, testbed=testbed))
        yield There(lab, folder)


@pytest.fixture
def known(there: There) -> There:
    there.know(_3=there.key("node1"), _4=there.key("node2"))
    return there


@pytest.fixture
def up(known: There) -> Iterator[There]:
    done = known.testbed("up", known.write())
    assert done.status == 0, done.err
    yield known
    known.testbed("down", LAB)


@pytest.mark.seconds(20)
def test_machines_are_looked_at_and_forgotten(known: There) -> None:
    done = known.testbed("up", known.write())
    assert done.status == 0, done.err
    assert "containerd, dockerd run" in done.out
    assert known.testbed("up", known.write()).out.count("=") >= 2
    found = json.loads(known.testbed("status", LAB, "--json").out)
    assert found["ok"], found
    node1, node2 = found["nodes"]
    assert [one["name"] for one in node1["services"]] == ["containerd", "dockerd"]
    assert node1["containers"][0]["name"] == "front"
    assert node2["links"][0]["ok"]
    assert known.testbed("exec", "-l", LAB, "node2", "hostname").out == "node2\n"
    assert known.testbed("exec", "-l", LAB, "node1/front", "hostname").status == 0
    file = known.folder / "file"
    file.write_text("content")
    copied = known.testbed("cp", "-l", LAB, str(file), "node2:/tmp/copied")
    assert copied.status == 0, copied.err
    assert known.lab.node("node2").get("/tmp/copied") == b"content"
    drawn = known.testbed("graph", LAB).out
    assert "10.59.0.3/24" in drawn
    assert "front" in drawn, drawn
    walk = known.testbed("walk", "-l", LAB, "node2", "10.59.0.3", "--tcp", "8080")
    assert walk.status == 0, walk.err
    assert "DNAT" in walk.out
    assert known.testbed("down", LAB).status == 0
    assert known.testbed("status", LAB).status == 4
    assert until(lambda: known.is_clean("node1"))


def test_faults_and_changes_are_refused_by_name(up: There) -> None:
    for words in (
        ("fault", "kill", "-l", LAB, "node1/dockerd"),
        ("stop", "-l", LAB, "node1"),
        ("restart", "-l", LAB, "node1/dockerd"),
    ):
        said = up.testbed(*words)
        assert said.status == 2, said
        assert LAB in said.err


SUITE = """\
import pytest

def test_looks(lab, host):
    assert host.check_output("hostname") in lab.topology.nodes

@pytest.mark.testbed_changes
def test_changes(lab):
    lab.node("node2").run(["touch", "/tmp/changed"])

def test_breaks(fault):
    raise AssertionError
"""


@pytest.mark.seconds(20)
def test_a_suite_of_ones_own_looks_and_changes_only_where_allowed(up: There) -> None:
    (up.folder / "test_own.py").write_text(SUITE)
    file = str(up.folder / "test_own.py")
    assert up.testbed("verify", LAB, file).status == 0
    changed = up.lab.node("node2").run(["test", "-e", "/tmp/changed"], check=False)
    assert not changed.ok
    said = up.testbed("verify", LAB, file, "-k", "test_changes", "--allow-changes")
    assert said.status == 0, said.out
    up.lab.node("node2").run(["rm", "/tmp/changed"])


@pytest.mark.seconds(20)
def test_nothing_is_left_of_a_client_that_is_killed(up: There) -> None:
    argv = [sys.executable, "-P", "-m", "testbed", "exec", "-l", LAB, "node2", "--", "sleep", "999"]
    env = {**os.environ, "TESTBED_STATE": str(up.folder / "state")}
    with subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL) as client:
        try:
            assert until(lambda: "sleep 999" in up.processes("node2"))
            assert not re.search(r"^/.*/\.testbed-", up.processes("node2"), re.MULTILINE)
        finally:
            client.send_signal(signal.SIGKILL)
    assert until(lambda: up.is_clean("node2")), up.processes("node2")
    assert "sleep 999" not in up.processes("node2")


def test_a_host_key_that_is_unknown_or_another_one_is_refused(there: There) -> None:
    there.know(_3=there.key("node1"))
    said = there.testbed("up", there.write())
    assert said.status == 4
    assert "fingerprint" in said.err
    assert "node1 cannot" not in said.err
    there.know(_3=there.key("node1"), _4=there.key("node1"))
    said = there.testbed("up", there.write())
    assert said.status == 4
    assert "another host key" in said.err
    assert "line 2" in said.err
    assert there.testbed("status", LAB).status == 4  # nothing was recorded


def test_a_key_that_is_not_accepted_is_told(known: There) -> None:
    (known.folder / "other").write_text(keys.pair()[0])
    (known.folder / "other").chmod(0o600)
    text = FILE.replace("{config: ssh_config}", "{config: other_config, key: other}")
    config = (known.folder / "ssh_config").read_text()
    gate = f"Host gate\n  IdentityFile {known.folder}/id\n"
    config = config.replace(f"  IdentityFile {known.folder}/id\n", "").replace("Host gate\n", gate)
    (known.folder / "other_config").write_text(config)
    said = known.testbed("up", known.write(text))
    assert said.status == 4
    assert "publickey" in said.err


def test_a_machine_that_refuses_the_connection_is_told(known: There) -> None:
    text = FILE.replace("address: 10.59.0.4", "address: 10.59.0.4, port: 2222")
    said = known.testbed("up", known.write(text))
    assert said.status == 4
    assert "node2 cannot be reached" in said.err


@pytest.mark.thorough
@pytest.mark.seconds(10)
def test_a_user_who_is_not_root_has_sudo(known: There) -> None:
    text = FILE.replace("address: 10.59.0.", "user: ops, address: 10.59.0.")
    said = known.testbed("up", known.write(text))
    assert said.status == 4
    assert "no sudo" in said.err  # on node1
    assert "password" in said.err  # on node2
    rules = "/etc/sudoers.d/ops"
    known.lab.node("node2").put(b"ops ALL=(ALL) NOPASSWD: ALL\n", rules, mode=0o440)
    only = FILE[: FILE.index("  node1")] + FILE[FILE.index("  node2") : FILE.index("containers")]
    try:
        only = only.replace("address: 10.59.0.", "user: ops, address: 10.59.0.")
        said = known.testbed("up", known.write(only))
        assert said.status == 0, said.err
        assert known.testbed("exec", "-l", LAB, "node2", "--", "id", "-u").out == "0\n"
    finally:
        known.testbed("down", LAB)
        known.lab.node("node2").run(["rm", rules])


@pytest.mark.thorough
@pytest.mark.seconds(20)
def test_a_machine_that_goes_and_comes_is_seen(up: There) -> None:
    node = up.lab.node("node2")
    node.stop("sshd")
    try:
        said = up.testbed("status", LAB, "--json")
        found = {one["name"]: one for one in json.loads(said.out)["nodes"]}
        assert said.status == 1
        assert (found["node1"]["state"], found["node2"]["state"]) == ("up", "missing")
        assert "cannot be reached" in found["node2"]["words"]
        assert up.testbed("exec", "-l", LAB, "node1", "true").status == 0
        assert up.testbed("exec", "-l", LAB, "node2", "true").status == 4
    finally:
        node.start_again("sshd")
    assert up.testbed("status", LAB).status == 0


def test_a_connection_that_breaks_is_opened_again(up: There) -> None:
    reached = _machine(up, "node2")
    reached.run(["true"])
    with reached.spawn(["sleep", "999"]) as running:
        up.lab.node("node2").run(["pkill", "-f", "sshd: root"])
        with pytest.raises(LabError):
            running.wait(60)
    assert reached.run(["true"]).ok


def _machine(there: There, name: str) -> Node:
    topology = load_text(FILE, str(there.folder / "lab.yaml"))
    topology = dataclasses.replace(topology, file=str(there.folder / "lab.yaml"))
    return settings(state_folder=there.folder / "state").makers(topology).nodes(LAB)[name]


def _changes() -> dict[str, str]:
    words = re.compile(r"node\.(start|services|stop|logs|put|offer|provide|start_again)\b|service")
    return {
        name: "nothing is changed on a machine that exists"
        for name, test in inspect.getmembers(NodeContract, inspect.isfunction)
        if name.startswith("test_") and words.search(inspect.getsource(test))
    }


@pytest.mark.thorough
class TestContract(NodeContract):
    skips: ClassVar[Mapping[str, str]] = _changes()

    @pytest.fixture
    def node(self, known: There) -> Node:
        return _machine(known, "node1")


@pytest.mark.thorough
class TestTerminals(TerminalContract):
    @pytest.fixture
    def node(self, known: There) -> Node:
        return _machine(known, "node1")

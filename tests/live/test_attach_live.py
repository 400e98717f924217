"""A lab of the user's own containerlab, on a machine of a lab that plays the user's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import standins

from testbed.cli.common import make_settings
from testbed.labs.lab import Lab
from testbed.nodes.netns.node import NetnsNode
from testbed.topology import Overrides, load_text, vary

MACHINE = """\
name: attach-machine
networks: {lan: {subnet: 10.231.0.0/24}}
nodes: {machine: {networks: {lan: 10.231.0.2}, roles: [docker]}}
"""
OFFICE = """\
name: Office
topology:
  defaults: {kind: linux, image: "alpine:3"}
  nodes:
    left: {env: {COLOUR: blue}, exec: [ip address add 10.9.0.1/24 dev eth1]}
    right: {exec: [ip address add 10.9.0.2/24 dev eth1]}
  links:
    - endpoints: [left:eth1, right:eth1]
"""
CAPTURE = """\
from testbed.observe.capture import capture


def test_ping_crosses_the_link(lab):
    with capture(lab.network("right"), "eth1", "icmp") as seen:
        lab.node("left").run(["ping", "-c1", "10.9.0.2"])
    assert [packet.is_echo_request for packet in seen.packets] == [True, False]


def test_the_image_has_a_shell(lab):
    assert lab.node("left").host.file("/bin/sh").exists
"""
# Arguments: a pid of the machine, a folder, then a command.  The command has the processes and the
# network of the machine, and the files of this one: a copy of it in /tmp is not on the machine.
# Its engine is reached by the folder, on which this machine's /proc stays.
ON_THE_MACHINE = """
set -e
mount --make-rprivate /
mount -n --bind /proc "$2"
export DOCKER_HOST="unix://$2/$1/root/run/docker.sock"
exec nsenter --target="$1" --pid --net \
  sh -ec 'mount -n -t proc proc /proc; shift 2; exec "$@"' sh "$@"
"""
EVERYTHING = """
docker ps --all --quiet --no-trunc | sort | xargs docker inspect
for container in $(docker ps --all --quiet --no-trunc | sort); do docker diff "$container"; done
docker image ls --digests
docker volume ls
ip -o link
ip netns
iptables-save | grep -v '^#' | sed 's/\\[.*\\]//'
"""


@dataclass
class Machine:
    """The user's machine, with an engine, containerlab and a lab."""

    node: NetnsNode
    containerlab: str
    folder: Path

    def testbed(self, *words: str) -> tuple[int, str, str]:
        """The exit status and the output of a command there."""
        own = [str(self.node.init.pid), str(self.folder / "proc")]
        argv = ["unshare", "--mount", "sh", "-c", ON_THE_MACHINE, "sh", *own]
        done = subprocess.run(
            [*argv, sys.executable, "-m", "testbed", *words],
            env={**os.environ, "TESTBED_STATE": str(self.folder / "state")},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    def clab(self, command: str) -> None:
        argv = [self.containerlab, command, "--topo", f"{self.folder}/lab/office.clab.yml"]
        self.node.run(argv, env={"CLAB_VERSION_CHECK": "disable"}, timeout=300)

    def everything(self) -> str:
        return self.node.run(["sh", "-ec", EVERYTHING]).stdout


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    monkeypatch.setenv("TESTBED_STATE", str(tmp_path / "machines"))
    settings = make_settings()
    lab = Lab("attach-machine", settings)
    lab.up(vary(load_text(MACHINE, "machine.yaml"), Overrides(docker="29")))
    try:
        node = lab.node("machine")
        assert isinstance(node, NetnsNode)
        image = standins.image("alpine:3", tmp_path)
        node.run(["docker", "load"], input=Path(image).read_bytes())
        node.run(["sh", "-c", "cat /proc/modules > /run/testbed/modules || :"], check=False)
        (tmp_path / "proc").mkdir()
        (tmp_path / "lab").symlink_to(f"{tmp_path}/proc/{node.init.pid}/root{tmp_path}/lab")
        node.put(OFFICE.encode(), f"{tmp_path}/lab/office.clab.yml")
        made = Machine(node, node.provide(settings.store.binary("containerlab")), tmp_path)
        made.clab("deploy")
        yield made
    finally:
        lab.down()


def test_an_attached_lab_is_used_and_left_as_it_is(machine: Machine) -> None:
    (machine.folder / "test_own.py").write_text(CAPTURE)
    before = machine.everything()
    status, out, err = machine.testbed("attach", "--containerlab", "Office", "--json")
    assert status == 0, err
    assert json.loads(out)["nodes"] == {"left": True, "right": True}
    status, out, err = machine.testbed("status", "office", "--json")
    assert status == 0, out + err
    links = {
        node["name"]: [link["detail"] for link in node["links"]]
        for node in json.loads(out)["nodes"]
    }
    assert "to right:eth1, 10.9.0.1/24" in links["left"]
    argv = ["exec", "left", "sh", "-c", "echo $COLOUR; ping -c1 10.9.0.2"]
    status, out, err = machine.testbed(*argv)
    assert (status, out.partition("\n")[0]) == (0, "blue"), err
    status, out, err = machine.testbed("verify", "office", str(machine.folder / "test_own.py"))
    assert (status, re.findall(r"^  passed", out, re.MULTILINE)) == (0, ["  passed"] * 2), out + err
    assert machine.testbed("fault", "stop", "left")[0] == 2
    assert machine.everything() == before

    machine.clab("destroy")
    status, out, _ = machine.testbed("status", "office", "--json")
    assert status == 1
    assert [node["state"] for node in json.loads(out)["nodes"]] == ["missing", "missing"]
    assert machine.testbed("down", "office")[0] == 0
    assert machine.testbed("attach", "--containerlab", "Office")[0] == 4

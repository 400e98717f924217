"""Roles that are installed on machines that exist, and a machine that is as before in the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hidden import INSTALLED, LAB, Hidden, differences, ssh_config
from labs import brought_up, skip_unless_built

from testbed.artifacts.engines import BUILT
from testbed.nodes.base import Service
from testbed.testing.provider import until
from testbed.topology import load_text

if TYPE_CHECKING:
    from testbed.nodes.base import Node

HIDDEN = "rack-live"
FOLDER = f"/var/lib/testbed-{LAB}"
TEXT = f"""\
name: {HIDDEN}
networks: {{lan: {{subnet: 10.168.0.0/24}}}}
nodes:
  node1: {{networks: {{lan: 10.168.0.2}}}}
  node2: {{networks: {{lan: 10.168.0.3}}}}
"""
FILE = INSTALLED + '  container-2: {node: node2, image: nginx, publish: ["8080:80"]}\n'
SINGLE = f"""\
name: {LAB}
provider: ssh
networks: {{lan: {{subnet: 10.168.0.0/24}}}}
nodes:
  node1:
    networks: {{lan: 10.168.0.2}}
    roles: [docker]
    ssh: {{config: ssh_config, install: true}}
containers:
  front: {{node: node1, image: nginx, publish: ["8080:80"]}}
"""
#: Rules of the machine's owner, which are there before and after.
OWN = """\
iptables -A INPUT -p tcp --dport 9 -j DROP
iptables -N OWN; iptables -A FORWARD -i lo -j OWN; iptables -A OWN -j RETURN
sysctl -q -w net.ipv4.ip_forward=0
ip link add br-own type bridge
"""
CLAIMS = (
    "bridge-docker0-is-linux-bridge",
    "bridge-container-ip-from-subnet",
    "flannel-overlay-connects-all",
    "flannel-vxlan-route-entry",
)
#: A moment of an `up`, by what it leaves on a machine, from the first thing to the last.
MOMENTS = {
    "the record": f"test -e {FOLDER}/record.json",
    "the program": f"test -e {FOLDER}/testbed-init",
    "the node": f"test -e {FOLDER}/pid",
    "etcd": f"test -e {FOLDER}/lib/etcd/member",
    "dockerd": f"test -e {FOLDER}/lib/docker/image",
    "the bridge": "test -e /sys/class/net/docker0",
    "the overlay": "test -e /sys/class/net/flannel.1",
    "a container": "ip -o link | grep -q veth",
}

#: The same of a `down`, which ends soon.
ENDS = (
    f"test ! -d /proc/$(cat {FOLDER}/pid)",
    "test ! -e /sys/class/net/docker0",
    f"test ! -e {FOLDER}/lib",
)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hidden]:
    state = tmp_path_factory.mktemp("hidden")
    for lab in brought_up(load_text(TEXT, "hidden.yaml"), state):
        folder = tmp_path_factory.mktemp("user")
        folder.chmod(0o755)
        ssh_config(lab, folder, state)
        for name in ("node1", "node2"):
            lab.node(name).run(["sh", "-ec", OWN])
        yield Hidden(lab, folder)


@pytest.fixture
def before(there: Hidden) -> Iterator[Hidden]:
    """The machines, which must be the same in the end."""
    looked = {name: there.look(name) for name in ("node1", "node2")}
    yield there
    down = there.testbed("down", LAB)
    assert down.status == 0, down.err
    for name, parts in looked.items():
        assert not differences(parts, there.look(name)), name
    assert "OWN" in "".join(looked["node1"]["rules"])


def machine(there: Hidden) -> Node:
    return there.lab.node("node1")


@pytest.mark.seconds(40)
def test_two_machines_get_an_overlay_and_lose_it(before: Hidden) -> None:
    done = before.testbed("up", before.write(FILE))
    assert done.status == 0, done.err
    first, _, rest = done.out.partition("machine node1")
    assert FOLDER in first  # what is installed is listed before it begins
    assert "etcd node1" in rest
    found = json.loads(before.testbed("status", LAB, "--json").out)
    assert found["ok"], found
    assert before.testbed("up", before.write(FILE)).out.count("=") >= len(found["nodes"])
    said = before.testbed("exec", "-l", LAB, "node1", "docker", "ps", "--format", "{{.Names}}")
    assert said.out == "container-1\n", said.err
    chosen = [word for claim in CLAIMS for word in ("--claim", claim)]
    data = before.folder / "verify.json"
    verified = before.testbed("verify", LAB, "-q", *chosen, "--json", str(data))
    assert verified.status == 0, verified.out + verified.err
    (lab,) = json.loads(data.read_text())["labs"]
    verdicts = {one["claim"]: one["verdict"] for one in lab["findings"]}
    assert verdicts == dict.fromkeys(CLAIMS, "confirmed")


@pytest.mark.seconds(20)
def test_a_container_is_reached_from_another_machine(before: Hidden) -> None:
    done = before.testbed("up", before.write(SINGLE))
    assert done.status == 0, done.err
    peer = before.lab.node("node2")
    assert peer.run(["curl", "-s", "http://10.168.0.2:8080/"]).json()["name"] == "front"
    # Nothing of it is in the machine's own folders.
    for path in ("/run/docker.sock", "/var/lib/docker", "/etc/docker", "/usr/local/bin/docker"):
        assert not machine(before).run(["test", "-e", path], check=False).ok, path


@pytest.mark.thorough
@pytest.mark.seconds(90)
def test_down_removes_what_a_killed_up_has_left(before: Hidden) -> None:
    looked = before.look("node1")
    file = before.write(FILE)
    for moment, condition in MOMENTS.items():
        assert before.killed_when(["up", file], "node1", condition), moment
        down = before.testbed("down", LAB)
        assert down.status == 0, (moment, down.err)
        assert not differences(looked, before.look("node1")), moment


@pytest.mark.thorough
@pytest.mark.seconds(40)
def test_a_killed_down_is_repeated(before: Hidden) -> None:
    file = before.write(SINGLE)
    for condition in ENDS:
        assert before.testbed("up", file).status == 0
        assert before.killed_when(["down", LAB], "node1", condition), condition
        assert before.testbed("down", LAB).status == 0


@pytest.mark.thorough
@pytest.mark.seconds(30)
@pytest.mark.parametrize(
    "options",
    [
        ("--backend", "udp"),
        ("--backend", "host-gw"),
        ("--firewall", "iptables-legacy"),
        ("--docker", "29", "--firewall", "nftables"),
    ],
    ids=" ".join,
)
def test_each_back_end_leaves_a_machine_as_it_was(before: Hidden, options: tuple[str, ...]) -> None:
    if "29" in options:
        skip_unless_built(BUILT["29"])
    done = before.testbed("up", before.write(FILE), *options)
    assert done.status == 0, done.err
    assert before.testbed("status", LAB).status == 0


@pytest.mark.seconds(30)
def test_a_node_that_has_ended_is_started_again(before: Hidden) -> None:
    file = before.write(SINGLE)
    assert before.testbed("up", file).status == 0
    machine(before).run(["sh", "-c", f"kill -9 $(cat {FOLDER}/pid)"])
    assert before.testbed("status", LAB).status == 1
    again = before.testbed("up", file)
    assert again.status == 0, again.err
    assert before.testbed("status", LAB).status == 0


@pytest.mark.seconds(20)
def test_a_conflict_is_told_before_anything_is_made(before: Hidden) -> None:
    node = machine(before)
    node.run(["ip", "link", "add", "docker0", "type", "bridge"])
    listener = ("socat", "tcp-listen:8080,fork", "/dev/null")
    node.start(Service("web", listener))
    assert until(lambda: ":8080" in node.run(["ss", "-ltn"]).stdout)
    try:
        said = before.testbed("up", before.write(SINGLE))
        assert said.status == 4
        assert "docker0" in said.err
        assert "tcp/8080" in said.err
        assert not node.run(["test", "-e", FOLDER], check=False).ok
        assert before.testbed("status", LAB).status == 4  # nothing was recorded
    finally:
        node.stop("web")
        node.run(["ip", "link", "del", "docker0"])


@pytest.mark.seconds(20)
def test_a_machine_of_another_lab_is_left_to_it(before: Hidden) -> None:
    assert before.testbed("up", before.write(SINGLE)).status == 0
    other = SINGLE.replace(f"name: {LAB}\n", "name: other\n")
    said = before.testbed("up", before.write(other, "other.yaml"))
    assert said.status == 4
    assert FOLDER in said.err
    assert before.testbed("status", LAB).status == 0


@pytest.mark.seconds(20)
def test_a_failed_up_leaves_nothing(before: Hidden) -> None:
    text = SINGLE.replace("image: nginx", "image: nginx, command: [/no-such-program]")
    said = before.testbed("up", before.write(text))
    assert said.status == 4, said.err
    assert "no-such-program" in said.err
    assert "docker node1" in said.out  # it was there
    assert not machine(before).run(["test", "-e", FOLDER], check=False).ok

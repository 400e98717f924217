"""What a lab is made of, killed while it is up: ``status`` tells, ``up`` repairs just that."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crash.means import LONG, Bed, Count, Watch
from testbed.lab.lab import Lab
from testbed.lab.live import LiveLab
from testbed.nodes.netns import find
from testbed.settings import settings

if TYPE_CHECKING:
    from testbed.nodes.base import Node

LAB = "two-node"
#: What is killed, and on which node.
VICTIMS = {
    "init": "node2",
    "dockerd": "node2",
    "containerd": "node2",
    "flanneld": "node2",
    "etcd": "node1",
}
#: The service whose state tells of it.  dockerd starts containerd again by itself.
TELLS = {"dockerd": "dockerd", "flanneld": "flanneld", "etcd": "etcd"}
#: What ``up`` may have to do again: of the other node never anything.
REPAIRS = {
    "init": ("node node2", "docker node2", "flannel node2", "images node2", "container node2/"),
    "dockerd": ("docker node2", "container node2/"),
    "containerd": ("container node2/",),
    "flanneld": ("flannel node2",),
    "etcd": ("etcd node1", "flannel config"),
}
#: A process of a node by its name, killed from within: nothing of another node can be hit.
KILL = """
for process in /proc/[0-9]*; do
    read -r name < "$process/comm" 2> /dev/null || continue
    if [ "$name" = "$1" ]; then kill -KILL "${process##*/}" && echo "$1"; fi
done
"""


def lab(bed: Bed) -> LiveLab:
    return LiveLab(Lab(LAB, settings(state_folder=bed.state)).context())


def kill(bed: Bed, victim: str) -> None:
    node = VICTIMS[victim]
    if victim == "init":
        for init in find.inits():
            if (init.node, Path(init.state)) == (node, bed.state.resolve()):
                init.kill()
                assert init.wait_dead(30)
                return
        raise AssertionError(f"there is no {node}")
    said = lab(bed).node(node).run(["sh", "-c", KILL, "kill", victim]).stdout.split()
    assert victim in said, f"no {victim} runs on {node}"


def told(status: dict[str, object]) -> dict[str, str]:
    """What is not as it should be: the node, or its part, and its state."""
    found = {}
    for node in json.loads(json.dumps(status["nodes"])):
        if node["state"] != "up":
            found[node["name"]] = node["state"]
        for part in [*node["services"], *node["containers"]]:
            if not part["ok"]:
                found[f"{node['name']} {part['name']}"] = part["state"]
    return found


def lease(node: Node) -> bytes:
    return node.get("/run/flannel/subnet.env")


def check_one(bed: Bed, victims: tuple[str, ...]) -> None:
    pid = {name: node.init.pid for name, node in lab(bed).nodes.items()}  # type: ignore[attr-defined]
    before = lease(lab(bed).node("node1"))
    for victim in victims:
        kill(bed, victim)
    said = told(bed.status(LAB))
    for victim in victims:
        node = VICTIMS[victim]
        if "init" in victims and node == VICTIMS["init"]:
            assert said.get(node) == "missing", said
        elif victim in TELLS:
            assert said.get(f"{node} {TELLS[victim]}") == "dead", said
    done = json.loads(bed.must("up", LAB, "--json").stdout)
    allowed = tuple(itertools.chain.from_iterable(REPAIRS[v] for v in victims))
    strange = [step for step in done["changed"] if not step.startswith((*allowed, "reach"))]
    assert not strange, f"{victims}: {strange} had no need of repair"
    assert bed.status(LAB)["ok"]
    now = lab(bed)
    assert lease(now.node("node1")) == before
    stayed = {name for name in pid if not ("init" in victims and name == VICTIMS["init"])}
    for name in stayed:
        assert now.nodes[name].init.pid == pid[name]  # type: ignore[attr-defined]
    # It works, and does not just look as if it did.
    peer = now.container("container-2").address
    now.container("container-1").run(["ping", "-c", "1", "-W", "5", peer])
    now.close()


def pairs() -> list[tuple[str, ...]]:
    one = [(victim,) for victim in VICTIMS]
    two = list(itertools.combinations(VICTIMS, 2))
    return [*one, *two] if LONG else [*one, ("init", "etcd")]


def test_each_and_each_pair(bed: Bed, watch: Watch, count: Count) -> None:
    bed.must("up", LAB, "-q")
    for victims in pairs():
        check_one(bed, victims)
        count.add(" and ".join(victims))
    bed.must("down", LAB)
    watch.check()


@pytest.mark.parametrize("backend", ["vxlan", "host-gw", "udp"] if LONG else ["vxlan"])
def test_traffic_without_flanneld(bed: Bed, backend: str) -> None:
    """The kernel carries what flanneld has set up; only with udp it is in the way itself."""
    bed.must("up", LAB, "-q", "--backend", backend)
    live = lab(bed)
    leases = {name: lease(live.node(name)) for name in ("node1", "node2")}
    peer = live.container("container-2").address
    ping = ["ping", "-c", "1", "-W", "2", peer]
    assert live.container("container-1").run(ping, check=False).ok
    kill(bed, "flanneld")
    assert live.container("container-1").run(ping, check=False).ok is (backend != "udp")
    bed.must("up", LAB, "-q")
    assert live.container("container-1").run(ping, check=False).ok
    assert {name: lease(live.node(name)) for name in leases} == leases
    live.close()

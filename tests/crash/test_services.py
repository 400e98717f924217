"""Parts of a running lab are killed: ``status`` reports them, ``up`` repairs only them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crash.means import LONG, Bed, Count, Watch, lab, no_traceback
from testbed.nodes.netns import find
from testbed.roles.etcd import etcdctl
from testbed.testing.provider import until

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab

LAB = "two-node"
#: What is killed, and on which node.
VICTIMS = {
    "init": "node2",
    "dockerd": "node2",
    "containerd": "node2",
    "flanneld": "node2",
    "etcd": "node1",
}
#: The service whose state tells of it.
TELLS = {"dockerd": "dockerd", "containerd": "containerd", "flanneld": "flanneld", "etcd": "etcd"}
#: What ``up`` may have to do again: of the other node never anything.
REPAIRS = {
    "init": (
        "node node2",
        "programs node2",
        "docker node2",
        "flannel node2",
        "images node2",
        "container node2/",
    ),
    "dockerd": ("docker node2", "container node2/"),
    "containerd": ("docker node2", "container node2/"),
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


def kill(bed: Bed, victim: str) -> None:
    node = VICTIMS[victim]
    if victim == "init":
        for init in find.inits():
            if (init.node, Path(init.state)) == (node, bed.state.resolve()):
                init.kill()
                assert init.wait_dead(30)
                return
        raise AssertionError(f"there is no {node}")
    machine = lab(bed, LAB).node(node)
    argv = ["sh", "-c", KILL, "kill", victim]
    assert victim in machine.run(argv).stdout.split(), f"no {victim} on {node}"


def told(status: dict[str, object]) -> dict[str, str]:
    """Return the wrong nodes and parts with their states."""
    found = {}
    for node in json.loads(json.dumps(status["nodes"])):
        if node["state"] != "up":
            found[node["name"]] = node["state"]
        for part in [*node["services"], *node["containers"]]:
            if not part["ok"]:
                found[f"{node['name']} {part['name']}"] = part["state"]
    return found


def leases(live: LiveLab) -> dict[str, bytes]:
    """Return each flanneld's subnet, as its node has it and as etcd has it."""
    found = {name: live.node(name).get("/run/flannel/subnet.env") for name in ("node1", "node2")}
    argv = etcdctl(live.topology, live.context, "get", "--prefix", "/coreos.com/network/subnets/")
    return found | {"etcd": live.node("node1").run(argv).out}


def subnets(known: dict[str, bytes]) -> bytes:
    """The keys, without what they say of each node."""
    return b" ".join(word for word in known["etcd"].split() if word.startswith(b"/"))


def check_one(bed: Bed, victims: tuple[str, ...]) -> None:
    pid = {name: node.init.pid for name, node in lab(bed, LAB).nodes.items()}  # type: ignore[attr-defined]
    before = leases(lab(bed, LAB))
    for victim in reversed(victims):  # a node's first process is the last of it
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
    now = lab(bed, LAB)
    after = leases(now)
    if "init" in victims:  # a node made anew has another VTEP, and tells etcd of it
        before["etcd"], after["etcd"] = subnets(before), subnets(after)
    assert after == before
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


@pytest.mark.thorough
@pytest.mark.seconds(10)
def test_each_and_each_pair(bed: Bed, watch: Watch, count: Count) -> None:
    bed.must("up", LAB, "-q")
    for victims in pairs():
        check_one(bed, victims)
        count.add(" and ".join(victims))
    bed.must("down", LAB)
    watch.check()


@pytest.mark.parametrize(
    "backend",
    ["vxlan", *(pytest.param(one, marks=pytest.mark.thorough) for one in ("host-gw", "udp"))],
)
def test_traffic_without_flanneld(bed: Bed, watch: Watch, backend: str) -> None:
    """The kernel carries what flanneld has set up; only with udp it is in the way itself."""
    bed.must("up", LAB, "-q", "--backend", backend)
    live = lab(bed, LAB)
    before = leases(live)
    both = [live.container("container-1"), live.container("container-2")]

    def crosses() -> set[bool]:
        pairs = ((one, other.address) for one in both for other in both if one is not other)
        pings = ((one, ["ping", "-c", "1", "-W", "1", peer]) for one, peer in pairs)
        return {one.run(ping, check=False).ok for one, ping in pings}

    assert until(lambda: crosses() == {True})
    kill(bed, "flanneld")
    assert until(lambda: crosses() == {backend != "udp"})
    assert told(bed.status(LAB)) == {"node2 flanneld": "dead"}
    bed.must("up", LAB, "-q", "--backend", backend)
    assert until(lambda: crosses() == {True})
    assert leases(live) == before
    live.close()
    bed.must("down", LAB)
    watch.check()


TIGHT = """\
name: tight
networks:
  lan: {subnet: 10.168.0.0/24}
nodes:
  one: {networks: {lan: 10.168.0.2}, roles: [docker], memory: 256M}
  two: {networks: {lan: 10.168.0.3}, roles: [docker]}
containers:
  here: {node: one, image: nginx}
  there: {node: two, image: nginx}
"""
#: More than the node may have, and no more than that: where nothing limits it, it ends well.
EAT = ["sh", "-c", "head -c 512M /dev/zero | tail -c 512M > /dev/null"]


def test_memory_that_is_used_up(bed: Bed, watch: Watch, tmp_path: Path) -> None:
    file = tmp_path / "tight.yaml"
    file.write_text(TIGHT)
    bed.must("up", str(file), "-q")
    one = lab(bed, "tight").node("one")
    assert not one.run(EAT, check=False).ok, "who eats is killed, and nobody else"
    assert bed.status("tight")["ok"]
    # The next time the kernel is to choose the daemon first.
    pid = one.services()["dockerd"].pid
    one.run(["sh", "-c", f"echo 1000 > /proc/{pid}/oom_score_adj"])
    one.run(EAT, check=False)
    status = bed.status("tight")
    assert told(status)["one dockerd"] == "dead"
    assert not [name for name in told(status) if name.startswith("two")]
    (dockerd,) = [p for p in status["nodes"][0]["services"] if p["name"] == "dockerd"]
    assert dockerd["detail"].startswith("signal 9; the kernel has killed"), dockerd
    done = json.loads(bed.must("up", "tight", "--json").stdout)
    assert {step.partition("/")[0] for step in done["changed"]} <= {"docker one", "container one"}
    assert bed.status("tight")["ok"]
    bed.must("down", "tight")
    watch.check()


def test_too_little_memory_to_begin_with(bed: Bed, watch: Watch, tmp_path: Path) -> None:
    file = tmp_path / "tight.yaml"
    file.write_text(TIGHT.replace("256M", "32M"))
    done = bed.run("up", str(file), "-q")
    no_traceback(done.stderr)
    assert done.returncode == 4, done
    assert "`memory`" in done.stderr
    assert bed.labs() == []
    watch.check()

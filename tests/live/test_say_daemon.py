"""Two engines in one lab, each with its own daemon.json, and a swarm of Docker nodes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from labs import brought_up

from testbed.artifacts import Store
from testbed.labs.lab import Lab
from testbed.labs.live import LiveLab
from testbed.labs.status import status
from testbed.nodes.engine import OF_A_FOLDER, PARTS
from testbed.settings import settings
from testbed.topology import Topology, load, load_text

TEXT = """\
name: say-daemon
networks: {lan: {subnet: 10.168.0.0/24}}
nodes:
  old: {networks: {lan: 10.168.0.2}, roles: [docker]}
  new:
    networks: {lan: 10.168.0.3}
    roles: [docker]
    docker:
      engine: 29
      firewall: nftables
      daemon: {icc: null, default-address-pools: [{base: 10.50.0.0/16, size: 24}]}
docker: {daemon: {icc: false, userland-proxy: false}}
containers:
  one: {node: old, image: nginx, publish: ["8080:80"]}
  two: {node: old, image: nginx}
  three: {node: new, image: nginx}
  four: {node: new, image: nginx}
"""
HOST_FILES = ("/etc/passwd", "/etc/group", "/etc/subuid", "/etc/subgid")


def topology(text: str) -> Topology:
    return replace(load_text(text, "say-daemon.yaml"), file="/say/daemon.yaml")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    yield from brought_up(topology(TEXT), tmp_path_factory.mktemp("say-daemon"))


def live(lab: Lab) -> LiveLab:
    return LiveLab(lab.context())


def reaches(lab: Lab, client: str, server: str) -> bool:
    here = live(lab)
    url = f"http://{here.container(server).address}/"
    return here.container(client).run(["curl", "-fsSm2", url], check=False).ok


def change(lab: Lab, old: str, new: str) -> tuple[str, dict[str, int]]:
    """Bring the lab up after a change of its file; return what the daemon of `old` was told."""
    assert old in TEXT
    steps = {done.step.name: done for done in lab.up(topology(TEXT.replace(old, new))).steps}
    pids = {name: live(lab).container(name).pid for name in ("one", "two", "three", "four")}
    return steps["docker old"].words, pids


def test_each_node_has_its_own_engine_and_settings(lab: Lab) -> None:
    here = live(lab)
    versions = {name: here.engine(name).version["Version"] for name in ("old", "new")}
    clients = {
        name: lab.node(name).run(["docker", "version", "-f", "{{.Client.Version}}"]).stdout.strip()
        for name in ("old", "new")
    }
    assert not versions["old"].startswith("29")
    assert versions["new"].startswith("29")
    assert clients["new"].startswith("29")
    assert not clients["old"].startswith("29")
    assert here.facts["docker"] == here.facts["firewall"] == "mixed"
    # icc: containers of one node do not talk to each other; with null they do, as by default.
    assert not reaches(lab, "two", "one")
    assert reaches(lab, "four", "three")
    # Without the proxy a published port is a rule of the kernel alone.
    processes = lab.node("old").run(["ps", "-eo", "args"]).stdout
    assert "dockerd" in processes
    assert "docker-proxy" not in processes
    assert lab.node("new").run(["curl", "-fsSm2", "http://10.168.0.2:8080/"]).ok
    engine = here.engine("new").api
    made = engine.create_network("pooled")["Id"]
    (pool,) = engine.inspect_network(made)["IPAM"]["Config"]
    engine.remove_network(made)
    assert IPv4Network(pool["Subnet"]).subnet_of(IPv4Network("10.50.0.0/16"))
    assert IPv4Network(pool["Subnet"]).prefixlen == 24


def test_a_change_is_made_on_the_running_node(lab: Lab) -> None:
    node, before = lab.node("old").get("/etc/machine-id"), change(lab, "x", "x")[1]
    words, after = change(lab, "icc: false, userland", "icc: false, live-restore: true, userland")
    assert "live-restore" in words
    assert "reloaded" in words
    assert after == before
    assert live(lab).engine("old").api.info()["LiveRestoreEnabled"]
    # With live-restore, the containers run on while the daemon is started again.
    words, after = change(lab, "icc: false, userland", "live-restore: true, icc: true, userland")
    assert "restarted" in words
    assert after == before
    words, after = change(lab, "icc: false", "icc: true")
    # Without it, the engine has ended them, and they are started again.
    assert not any(after[name] == before[name] for name in after)
    assert reaches(lab, "two", "one")
    assert lab.node("old").get("/etc/machine-id") == node
    assert status(lab.context()).ok


def test_user_namespaces_are_the_nodes_own(lab: Lab) -> None:
    machine = {path: Path(path).read_bytes() for path in HOST_FILES}
    change(lab, "icc: false, userland", "userns-remap: default, userland")
    for node, container in (("old", "one"), ("new", "three")):
        pid = live(lab).container(container).pid
        mapped = lab.node(node).get(f"/proc/{pid}/uid_map").split()
        assert mapped[:2] == [b"0", b"100000"]
        inside = ["cat", "/proc/self/uid_map"]
        said = live(lab).container(container).run(inside, mounts=True).out.split()
        assert said[:2] == mapped[:2]
        assert b"dockremap:100000:" in lab.node(node).get("/etc/subuid")
    assert {path: Path(path).read_bytes() for path in HOST_FILES} == machine
    change(lab, "x", "x")
    assert status(lab.context()).ok


SWARM = """\
name: say-swarm
networks: {lan: {subnet: 10.0.0.0/24}}
nodes:
  m: {networks: {lan: 10.0.0.11}, roles: [docker], docker: {engine: 29}}
  w: {networks: {lan: 10.0.0.12}, roles: [docker]}
docker: {swarm: [m], images: [nginx]}
"""
SERVICE = (
    "docker", "service", "create", "--quiet", "--name=web", "--mode=global", "--network=over",
    "--endpoint-mode=dnsrr", "--publish=mode=host,target=80,published=8080", "nginx",
)  # fmt: skip


@pytest.mark.long
def test_services_of_a_swarm_answer_on_its_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTBED_STATE", str(tmp_path))
    lab = Lab("say-swarm", settings())
    try:
        lab.up(topology(SWARM))
        assert status(lab.context()).ok
        manager = lab.node("m")
        manager.run(["docker", "network", "create", "-d", "overlay", "--attachable", "over"])
        manager.run(SERVICE, timeout=300)
        pages = {
            json.loads(manager.run(["curl", "-fsSm9", f"http://10.0.0.{n}:8080/"]).stdout)["name"]
            for n in (11, 12)
        }
        assert len(pages) == 2
        # By the overlay network: both tasks answer to the service's name.
        asked = "for i in 1 2 3 4 5 6 7 8 9; do curl -fsSm9 http://web/ && echo; done"
        argv = ["docker", "run", "--rm", "--network=over", "nginx", "sh", "-c", asked]
        said = lab.node("w").run(argv, timeout=300).stdout
        over = {json.loads(line)["server"] for line in said.splitlines() if line}
        assert over
        # The lab has 10.0.0.0/24, where Docker's own overlay networks would be.
        assert all(one.startswith("10.1.") for one in over)
        assert lab.up(topology(SWARM)).changed == []
        # A node created again joins anew, in the place of its old entry.
        lab.up(topology(SWARM.replace("w: {", "w: {cpus: 1, ")))
        nodes = manager.run(["docker", "node", "ls", "--format", "{{.Hostname}} {{.Status}}"])
        assert sorted(nodes.stdout.splitlines()) == ["m Ready", "w Ready"]
        lab.up(topology(SWARM.replace("swarm: [m], ", "")))
        assert not manager.run(["docker", "node", "ls"], check=False).ok
    finally:
        lab.down()


OWN = """\
name: say-own-engine
networks: {lan: {subnet: 10.168.0.0/24}}
nodes:
  own: {networks: {lan: 10.168.0.2}, roles: [docker], docker: {engine: ./docker}}
containers: {web: {node: own}}
"""


def test_an_engine_by_the_folder_of_its_programs(tmp_path: Path) -> None:
    """Built as a static build is unpacked: all programs in one folder, here in /tmp."""
    store, folder = Store(), tmp_path / "docker"
    folder.mkdir()
    for name in OF_A_FOLDER:
        (folder / name).symlink_to(store.binary(name, *PARTS["29"]))
    file = tmp_path / "lab.yaml"
    file.write_text(OWN)
    for made in brought_up(load(file), tmp_path / "state"):
        with live(made) as here:
            version = here.node("own").run(["docker", "version", "-f", "{{.Server.Version}}"])
            assert version.stdout.startswith("29.")
            assert here.container("web").run(["curl", "-fsS", "http://127.0.0.1/"]).ok
        assert made.up(load(file)).changed == []

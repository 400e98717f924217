"""Docker networks and options of containers, said in the file, on both engines in one lab."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.cli.common import make_settings
from testbed.kernel import features
from testbed.labs.lab import Lab
from testbed.labs.live import LiveLab
from testbed.labs.status import status
from testbed.observe.graph import graph
from testbed.topology import Topology, load_text

DOCS = Path(__file__).parents[2] / "docs" / "topologies.md"
FILE = """
name: say-boxes
networks: {lan: {subnet: 10.168.0.0/24}}
nodes:
  old: {networks: {lan: 10.168.0.2}, roles: [docker]}
  new: {networks: {lan: 10.168.0.3}, roles: [docker], docker: {engine: 29}}
docker:
  networks:
    front: {subnet: [172.30.0.0/24, "fd00:30::/64"], gateway: 172.30.0.254,
      aux_addresses: {printer: 172.30.0.1, scanner: "fd00:30::2"}}
    back: {subnet: BACK, internal: true}
    aside: {nodes: [new], enable_ipv6: true}NEAR
containers:
  one:
    node: old
    networks:
      front:
        ipv4_address: 172.30.0.10
        ipv6_address: "fd00:30::10"
        mac_address: "02:00:00:00:00:10"
        aliases: [uno]
      back:
    cap_add: [NET_ADMIN]
    cpus: 0.5
    mem_limit: 64m
    pids_limit: 50
    sysctls: {net.ipv4.ip_default_ttl: 77}
    ulimits: {nofile: {soft: 100, hard: 200}}
    volumes: ["data:/data", "/etc/hostname:/srv/node:ro"]
    tmpfs: ["/scratch:size=1m"]
    dns: [10.9.9.9]
    extra_hosts: ["db.example:10.0.0.5"]
    hostname: uno.example
    labels: {tier: 1}
    restart: on-failure:3
    init: true
    publish: ["8000-8001:80-81", "[::1]:9090:80"]
  two: {node: old, networks: [front, bridge]}
  three:
    node: new
    networks:
      back: {ipv4_address: BACK3}
      front: {gw_priority: -1, mac_address: "02:00:00:00:00:30", interface_name: front0}
      aside: {gw_priority: 5, mac_address: "02:00:00:00:00:31"}
    entrypoint: [sh, -c]
    command: ["exec sleep 999"]
    user: "65534"
    working_dir: /tmp
    cap_drop: [ALL]
    stop_signal: SIGKILL
"""
NEAR = """
    near: {driver: macvlan, subnet: 10.168.0.0/24, gateway: 10.168.0.1, driver_opts: {parent: eth0}}
"""
NEAR_CONTAINERS = """\
  near-1: {node: old, networks: {near: {ipv4_address: 10.168.0.71}}}
  near-2: {node: new, networks: {near: {ipv4_address: 10.168.0.72}}}
"""
MACVLAN = any(one.name == "macvlan" and one.ok for one in features())


def topology(back: str = "172.31.0", *, aside: bool = True) -> Topology:
    text = FILE.replace("BACK3", f"{back}.3").replace("BACK", f"{back}.0/24")
    text = text.replace("NEAR", NEAR if MACVLAN else "") + (NEAR_CONTAINERS if MACVLAN else "")
    if not aside:
        text = re.sub(r"\n +aside: .*", "", text)
    return load_text(text, "say.yaml")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESTBED_STATE", str(tmp_path_factory.mktemp("state")))
        found = Lab("say-boxes", make_settings())
        found.up(topology())
        yield found
        found.down()


@pytest.fixture
def live(lab: Lab) -> Iterator[LiveLab]:
    found = LiveLab(lab.context())
    yield found
    found.close()


def said(live: LiveLab, container: str, *argv: str) -> str:
    return live.container(container).run(argv, mounts=True).stdout


def test_addresses_are_those_of_the_file(live: LiveLab) -> None:
    one, three = live.container("one"), live.container("three")
    assert (one.address, one.addresses["front"]) == ("172.30.0.10", "172.30.0.10")
    assert three.address == three.addresses["back"] == "172.31.0.3"
    links = said(live, "one", "ip", "addr")
    assert "fd00:30::10/64" in links
    assert "02:00:00:00:00:10" in links
    links = said(live, "three", "ip", "addr")
    assert "02:00:00:00:00:30" in links
    assert "02:00:00:00:00:31" in links
    assert re.search(r"inet6 fd[0-9a-f:]+/64", links), "of Docker's own choice"


def test_containers_reach_each_other_by_name_and_by_both_families(live: LiveLab) -> None:
    for url in ("http://uno/", "http://one/", "http://[fd00:30::10]/"):
        assert '"name": "one"' in said(live, "two", "curl", "-s", "--max-time", "5", url)


def test_names_of_interfaces_and_reserved_addresses(live: LiveLab) -> None:
    assert "02:00:00:00:00:30" in said(live, "three", "ip", "link", "show", "dev", "front0")
    assert live.container("two").addresses["front"] == "172.30.0.2", "172.30.0.1 is reserved"
    shown = live.node("old").run(["docker", "network", "inspect", "front"]).json()
    pools = shown[0]["IPAM"]["Config"]
    assert [one["AuxiliaryAddresses"] for one in pools] == [
        {"printer": "172.30.0.1"}, {"scanner": "fd00:30::2"},
    ]  # fmt: skip


def test_ports_are_published_in_ranges_and_on_ipv6(live: LiveLab) -> None:
    for url in ("http://10.168.0.2:8000/", "http://[::1]:9090/"):
        page = live.node("old").run(["curl", "-s", "--max-time", "5", url]).stdout
        assert '"name": "one"' in page
    listed = live.node("old").run(["docker", "port", "one"]).stdout
    assert "81/tcp -> 0.0.0.0:8001" in listed


def test_the_default_route_is_that_of_the_highest_priority(live: LiveLab) -> None:
    route = said(live, "three", "ip", "route", "show", "default")
    gateway = live.container("three").addresses["aside"].rpartition(".")[0] + ".1"
    assert f"via {gateway} " in route


def test_an_internal_network_has_no_way_out(live: LiveLab) -> None:
    back = next(iter({*live.container("one").addresses} - {"front"}))
    assert back == "back"
    assert "172.31.0." not in said(live, "one", "ip", "route", "show", "default")


def test_options_are_those_of_the_file(live: LiveLab) -> None:
    # NET_ADMIN is bit 12 (linux/capability.h), and none of Docker's default ones.
    caps = {
        name: int(re.search(r"CapBnd:\s+(\w+)", said(live, name, "cat", "/proc/1/status"))[1], 16)  # type: ignore[index]  # each process has it
        for name in ("one", "two", "three")
    }
    assert (caps["one"] >> 12 & 1, caps["two"] >> 12 & 1, caps["three"]) == (1, 0, 0)
    assert said(live, "one", "cat", "/proc/sys/net/ipv4/ip_default_ttl") == "77\n"
    limits = said(live, "one", "cat", "/proc/1/limits")
    assert re.search(r"Max open files +100 +200 ", limits)
    mounts = said(live, "one", "cat", "/proc/mounts")
    assert re.search(r"^tmpfs /scratch tmpfs .*size=1024k", mounts, re.MULTILINE)
    assert said(live, "one", "cat", "/srv/node").strip() == "old"
    assert "10.0.0.5\tdb.example" in said(live, "one", "cat", "/etc/hosts")
    assert said(live, "one", "cat", "/proc/1/comm") == "docker-init\n"
    found = live.engine("old").inspect_raw("one")
    # Docker takes the beginning of an ID for its container, if no other has that name.
    assert live.engine("old").inspect_raw(found["Id"][:6])["Id"] == found["Id"]
    assert live.engine("old").find(found["Id"][:6]) is None
    assert found["HostConfig"]["PidsLimit"] == 50
    assert said(live, "one", "sh", "-c", "cat /sys/fs/cgroup/pids.max "
                "/sys/fs/cgroup/pids/pids.max 2> /dev/null | head -1") == "50\n"  # fmt: skip
    assert found["Config"]["Hostname"] == "uno.example"
    assert found["Config"]["Labels"]["tier"] == "1"
    assert found["HostConfig"]["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert found["HostConfig"]["Dns"] == ["10.9.9.9"]
    assert (found["HostConfig"]["NanoCpus"], found["HostConfig"]["Memory"]) == (
        500_000_000,
        64 << 20,
    )
    assert "Uid:\t65534\t65534" in said(live, "three", "cat", "/proc/1/status")
    assert live.engine("new").inspect_raw("three")["Config"]["StopSignal"] == "SIGKILL"


@pytest.mark.skipif(not MACVLAN, reason="the kernel has no macvlan")
def test_containers_of_two_nodes_are_on_the_network_of_the_nodes(live: LiveLab) -> None:
    page = said(live, "near-1", "curl", "-s", "--max-time", "5", "http://10.168.0.72/")
    assert '"client": "10.168.0.71:' in page


def test_the_graph_names_the_networks(live: LiveLab) -> None:
    (old, new) = graph(live)["nodes"]
    assert (old["error"], new["error"]) == ("", "")
    named = {
        link["network"]: link["name"] for link in new["links"] if link["name"].startswith("br-")
    }
    assert {*named} == {"front", "back", "aside"}
    spaces = {space["name"]: space for space in old["spaces"]}
    assert len(spaces["one"]["links"]) == 2


def test_what_was_changed_by_hand_is_marked_and_comes_back(lab: Lab, live: LiveLab) -> None:
    assert status(lab.context()).ok
    assert lab.up(topology()).changed == []
    old, new = live.node("old"), live.node("new")
    said(live, "one", "touch", "/data/kept")
    old.run(["docker", "network", "disconnect", "back", "one"])
    new.run(["docker", "rm", "--force", "three"])
    new.run(["docker", "network", "rm", "back"])
    old.run(["docker", "network", "create", "mine"])
    wrong = {
        part.name
        for node in status(lab.context()).nodes
        for part in (*node.containers, *node.more["network"])
        if not part.ok
    }
    assert wrong == {"one", "three", "back"}
    done = {one.step.name for one in lab.up(topology()).changed}
    assert done == {"networks new", "container old/one", "container new/three"}
    assert status(lab.context()).ok
    assert said(live, "one", "ls", "/data").split() == ["kept"], "a volume stays"
    assert "mine" in old.run(["docker", "network", "ls"]).stdout


def test_a_changed_network_is_created_again_and_others_are_removed(lab: Lab) -> None:
    other = topology("172.32.0", aside=False)
    words = {one.step.name: one.words for one in lab.up(other, replace=True).changed}
    assert words.keys() >= {"networks old", "networks new", "container old/one"}
    assert "container old/two" not in words
    assert "one" in words["networks old"]
    live = LiveLab(lab.context())
    assert live.container("one").addresses["back"].startswith("172.32.0.")
    assert "aside" not in live.engine("new").networks()
    live.close()
    none = load_text(FILE[: FILE.index("docker:\n")], "say.yaml")
    lab.up(none, replace=True)
    live = LiveLab(lab.context())
    assert {*live.engine("old").networks()} == {"bridge", "host", "none", "mine"}
    assert live.engine("old").names() == set()
    live.close()


SWARM = """
name: say-span
networks: {lan: {subnet: 10.168.0.0/24}}
nodes:
  m: {networks: {lan: 10.168.0.2}, roles: [docker]}
  w: {networks: {lan: 10.168.0.3}, roles: [docker]}
docker: {swarm: [m], networks: {span: {driver: overlay, subnet: SPAN.0/24, attachable: true}}}
containers:
  one: {node: m, networks: {span: {ipv4_address: SPAN.10}}}
  two: {node: w, networks: [span]}
"""


@pytest.mark.long
def test_containers_of_two_nodes_are_on_a_network_of_the_swarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTBED_STATE", str(tmp_path))
    lab = Lab("say-span", make_settings())
    try:
        for span in ("172.28.0", "172.29.0"):
            topology = load_text(SWARM.replace("SPAN", span), "span.yaml")
            lab.up(topology, replace=True)
            live = LiveLab(lab.context())
            page = said(live, "two", "curl", "-s", "--max-time", "5", "http://one/")
            live.close()
            assert f'"server": "{span}.10:80"' in page
            assert lab.up(topology).changed == []
            assert status(lab.context()).ok
    finally:
        lab.down()


@pytest.mark.skipif(not MACVLAN, reason="the kernel has no macvlan")
@pytest.mark.long
def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = DOCS.read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(name: networks\n.*?)```", page, re.DOTALL)
    monkeypatch.setenv("TESTBED_STATE", str(tmp_path))
    lab = Lab("networks", make_settings())
    try:
        lab.up(load_text(text, "networks.yaml"))
        assert status(lab.context()).ok
    finally:
        lab.down()

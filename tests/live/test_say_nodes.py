"""Settings of nodes on real ones: routing, files, address translation, services."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from labs import brought_up

from testbed.labs.live import LiveLab
from testbed.labs.status import status
from testbed.polling import until
from testbed.topology import Topology, load_text

if TYPE_CHECKING:
    from testbed.labs.lab import Lab

#: Two routers with a /30 between them, and a host behind each.
TEXT = """
name: say-nodes
networks:
  a: {subnet: 195.11.14.0/24}
  b: {subnet: 100.0.0.8/30}
  c: {subnet: 200.1.1.0/24}
  outer: {subnet: 192.168.122.0/24}
  red1: {subnet: 10.0.0.0/24}
nodes:
  router:
    networks: {outer: 192.168.122.10, red1: 10.0.0.1}
    forward: true
    files:
      /etc/nat.nft:
        content: |
          table ip nat {
            chain out {
              type nat hook postrouting priority 100
              oifname "eth0" masquerade
            }
          }
    run:
      - {command: nft -f /etc/nat.nft, done: nft list table ip nat}
  cliente1:
    networks: {red1: 10.0.0.101}
    routes: [default via 10.0.0.1]
    binds: [FOLDER:/srv/data, FOLDER:/srv/same:ro, MANY]
  world:
    networks: {outer: 192.168.122.1}
    env: {PORT: "8000"}
    services:
      pages:
        command: exec python3 -u -m http.server $$PORT --directory /etc/testbed-pages
        ready: {port: 8000}
      beat:
        command: [sleep, "1000"]
        restart: always
    files: {/etc/testbed-pages/index.html: {content: "hello"}}
  r1:
    networks: {a: 195.11.14.1, b: 100.0.0.9}
    forward: true
    routes: [200.1.1.0/24 via 100.0.0.10]
  r2:
    networks: {c: 200.1.1.1, b: 100.0.0.10}
    forward: true
    routes: [195.11.14.0/24 via 100.0.0.9]
  pc1:
    networks: {a: 195.11.14.5}
    routes:
      - default via 195.11.14.1
      - 10.9.0.0/16 via 195.11.14.1 table 100 src 195.11.14.5 mtu 1400
      - blackhole 10.8.0.0/16 metric 7
      - fd09::/64 via fe80::1 dev eth0
      - unreachable fd08::/64
    sysctls: {net.ipv4.conf.eth0.rp_filter: 1, net.ipv4.tcp_rmem: 4096 8192 9000}
    rules:
      - from 195.11.14.5 to 10.9.0.0/16 lookup 100
      - not from 10.0.0.0/8 lookup main pref 40000
      - fwmark 0x1/0xff to 10.7.0.0/16 prohibit
      - to fd07::/64 lookup 9 pref 77
    files:
      /etc/motd: {content: "hi\\n", mode: 0640, owner: "root:adm"}
      /srv/a/b: {content: "deep", mode: 0755}
      /usr/share/testbed-say: {content: "of the node"}
  pc2:
    networks: {c: 200.1.1.7}
    routes: [default via 200.1.1.1]
"""


FOLDER = Path(tempfile.gettempdir()) / f"testbed-say-{os.getpid()}"  # of the user


def topology(text: str = TEXT) -> Topology:
    many = ", ".join(f"{FOLDER}:/srv/many{number}:ro" for number in range(70))
    found = load_text(text.replace("FOLDER", str(FOLDER)).replace("MANY", many), "say-nodes.yaml")
    return replace(found, file="/say/nodes.yaml")


@pytest.fixture(scope="module")
def users() -> Iterator[Path]:
    FOLDER.mkdir()
    (FOLDER / "one").write_text("1")
    yield FOLDER
    shutil.rmtree(FOLDER)


@pytest.fixture(scope="module")
def lab(users: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    del users
    yield from brought_up(topology(), tmp_path_factory.mktemp("state"))


def reaches(lab: Lab, address: str) -> bool:
    ping = ["ping", "-c1", "-W5", address]
    return lab.node("pc1").run(ping, check=False).ok


def test_the_routes_of_the_file_lead_through_both_routers(lab: Lab) -> None:
    assert reaches(lab, "200.1.1.7")
    assert status(lab.context()).ok
    assert lab.up(topology()).changed == [], "all of it is recognized in what the kernel shows"


def test_what_is_lost_is_restored(lab: Lab) -> None:
    lab.node("r1").run(["ip", "route", "replace", "200.1.1.0/24", "via", "195.11.14.5"])
    lab.node("pc1").run(["ip", "-6", "rule", "del", "to", "fd07::/64", "lookup", "9"])
    lab.node("pc1").run(["sysctl", "-q", "-w", "net.ipv4.conf.eth0.rp_filter=0"])
    lab.node("pc2").run(["ip", "link", "delete", "eth0"])  # and the route with it
    assert not reaches(lab, "200.1.1.7")
    found = {node.name: node for node in status(lab.context()).nodes}
    assert [name for name, node in found.items() if not node.ok] == ["r1", "pc1", "pc2"]
    (route,) = [part for part in found["r1"].routes if not part.ok]
    assert "195.11.14.5" in route.detail
    said = {done.step.name: done.words for done in lab.up(topology()).changed}
    assert "restored route 200.1.1.0/24 via 100.0.0.10" in said["node r1"]
    assert "restored rule to fd07::/64" in said["node pc1"]
    assert "restored sysctl net.ipv4.conf.eth0.rp_filter=1 (0)" in said["node pc1"]
    assert "default via 200.1.1.1" in said["node pc2"]
    assert reaches(lab, "200.1.1.7")
    assert status(lab.context()).ok


def test_files_of_the_node_are_not_those_of_this_machine(lab: Lab) -> None:
    node = lab.node("pc1")
    stat = ["stat", "-c", "%a %U:%G", "/etc/motd", "/srv/a/b", "/usr/share/testbed-say"]
    assert node.run(stat).stdout.split("\n") == [
        "640 root:adm",
        "755 root:root",
        "644 root:root",
        "",
    ]
    assert not Path("/srv/a").exists()
    assert not Path("/usr/share/testbed-say").exists()
    motd = Path("/etc/motd")
    assert node.get("/etc/motd") == b"hi\n" != (motd.read_bytes() if motd.exists() else b"")
    node.run(["rm", "/srv/a/b"])
    node.run(["chmod", "600", "/etc/motd"])
    found = {one.name: one for one in status(lab.context()).nodes}["pc1"]
    files = found.more["file"]
    assert {part.name: part.state for part in files if not part.ok} == {
        "/etc/motd": "mode 0600", "/srv/a/b": "missing",
    }  # fmt: skip
    said = {done.step.name: done.words for done in lab.up(topology()).changed}
    assert "restored file /srv/a/b (missing)" in said["node pc1"]
    without = "\n".join(line for line in TEXT.splitlines() if "/etc/motd" not in line)
    try:
        lab.up(topology(without))
        there = node.run(["cat", "/etc/motd"], check=False)
        assert there.out == (motd.read_bytes() if motd.exists() else b"")
    finally:
        lab.up(topology())


def fetched(lab: Lab) -> str:
    ask = ["curl", "-s", "-m5", "http://192.168.122.1:8000/"]
    return lab.node("cliente1").run(ask, check=False).stdout


def test_a_router_of_the_file_translates_addresses(lab: Lab) -> None:
    assert fetched(lab) == "hello"
    assert "192.168.122.10 " in lab.node("world").logs("pages"), "world has no route to 10.0.0.0"
    lab.node("router").run(["nft", "flush", "ruleset"])
    assert fetched(lab) == ""
    found = {node.name: node for node in status(lab.context()).nodes}
    assert [part.state for part in found["router"].more["run"]] == ["not done"]
    (done,) = lab.up(topology()).changed
    assert done.step.name == "run router"
    assert fetched(lab) == "hello"


def test_services_of_the_file_are_kept(lab: Lab) -> None:
    node = lab.node("world")
    pages, beat = (node.services()[name].pid for name in ("pages", "beat"))
    below = node.run(["pgrep", "-P", str(beat)]).stdout.split()
    node.run(["kill", "-9", str(pages)])
    node.run(["kill", *below])
    assert until(lambda: node.services()["pages"].state == "dead", 30)
    assert until(lambda: "is started again" in node.logs("beat"), 30), "by itself"
    found = {one.name: one for one in status(lab.context()).nodes}["world"].services
    assert {part.name: part.ok for part in found} == {"pages": False, "beat": True}
    (done,) = lab.up(topology()).changed
    assert (done.step.name, "restarted" in done.words) == ("service world/pages", True)
    assert fetched(lab) == "hello"
    node.run(["kill", "-9", str(beat)])
    assert until(lambda: node.run(["pgrep", "-x", "sleep"], check=False).status == 1, 30)
    lab.up(topology())
    before = node.services()["beat"].pid
    try:
        said = lab.up(topology(TEXT.replace('"1000"', '"999"').replace("8000", "8001")))
        assert {done.step.name for done in said.changed} == {
            "service world/pages", "service world/beat",
        }  # fmt: skip
    finally:
        lab.up(topology())
    assert node.services()["beat"].pid not in (0, before)
    with LiveLab(lab.context()) as live:
        assert live.node("world").run(["printenv", "PORT"]).stdout == "8000\n"
    assert status(lab.context()).ok


def test_a_folder_of_the_user_changes_as_far_as_the_node_may(lab: Lab, users: Path) -> None:
    node = lab.node("cliente1")
    assert sorted(path.name for path in users.iterdir()) == ["one"], "nothing by testbed itself"
    assert node.get("/srv/same/one") == node.get("/srv/many69/one") == b"1"
    assert "Read-only" in node.run(["touch", "/srv/same/two"], check=False).stderr
    node.run(["sh", "-c", "echo 2 > /srv/data/two"])
    assert (users / "two").read_text() == "2\n"
    node.run(["umount", "/srv/data"])
    assert not status(lab.context()).ok
    (done,) = lab.up(topology()).changed
    assert "restored bind /srv/data" in done.words
    assert node.get("/srv/data/two") == b"2\n"
    assert status(lab.context()).ok


def test_an_edited_file_changes_the_running_nodes(lab: Lab) -> None:
    before = {name: lab.node(name).digest for name in ("r1", "pc1")}
    pids = lab.node("pc1").run(["stat", "-c", "%Y", "/proc/1"]).out
    edited = TEXT.replace("sysctls: {", "forward: true\n    sysctls: {")
    edited = edited.replace("      - blackhole 10.8.0.0/16 metric 7\n", "").replace(
        "    forward: true\n    routes: [200.1.1.0/24 via 100.0.0.10]\n", ""
    )
    try:
        said = {done.step.name: done.words for done in lab.up(topology(edited)).changed}
        assert "removed route blackhole 10.8.0.0/16 metric 7" in said["node pc1"]
        assert not reaches(lab, "200.1.1.7"), "r1 has no route, and forwards no more"
        forwarding = ["cat", "/proc/sys/net/ipv4/ip_forward"]
        assert [lab.node(one).run(forwarding).out for one in ("r1", "pc1")] == [b"0\n", b"1\n"]
        assert status(lab.context()).ok
    finally:
        lab.up(topology())
    assert reaches(lab, "200.1.1.7")
    assert before == {name: lab.node(name).digest for name in before}
    assert lab.node("pc1").run(["stat", "-c", "%Y", "/proc/1"]).out == pids, "no node is new"


ANOTHERS = """
name: say-others
provider: containerlab
networks: {lan: {subnet: 10.77.1.0/24}}
nodes:
  r1:
    networks: {lan: 10.77.1.1}
    env: {WHO: me}
    forward: true
    routes: [10.99.0.0/16 via 10.77.1.2]
    rules: [from 10.99.0.0/16 lookup 100]
    sysctls: {net.ipv4.conf.all.rp_filter: 2}
    files: {/etc/app.conf: {content: "x", mode: 0600}, /srv/a/b: {content: "deep"}}
    run: [{command: "echo $$WHO > /etc/who", done: test -e /etc/who}]
    services: {pages: {command: [python3, -m, http.server, "8000"], ready: {port: 8000}}}
  r2: {networks: {lan: 10.77.1.2}, provider: netns}
"""


@pytest.fixture
def others(tmp_path: Path) -> Iterator[Lab]:
    yield from brought_up(another(), tmp_path)


def another() -> Topology:
    return replace(load_text(ANOTHERS, "others.yaml"), file="/say/others.yaml")


@pytest.mark.long
def test_the_same_on_a_node_of_another_provider(others: Lab) -> None:
    lab, wanted = others, another()
    assert lab.up(wanted).changed == []
    node = lab.node("r1")
    assert node.get("/etc/who") == b"me\n"
    assert node.get("/srv/a/b") == b"deep"
    node.run(["sh", "-c", "rm /etc/who /etc/app.conf; ip route del 10.99.0.0/16"])
    node.run(["kill", "-9", str(node.services()["pages"].pid)])
    assert until(lambda: node.services()["pages"].state == "dead", 30)
    (wrong,) = [one for one in status(lab.context()).nodes if not one.ok]
    assert wrong.name == "r1"
    names = {done.step.name for done in lab.up(wanted).changed}
    assert names == {"node r1", "run r1", "service r1/pages"}
    assert status(lab.context()).ok
    plain = wanted.nodes["r1"].__class__("r1", ports=wanted.nodes["r1"].ports)
    assert lab.up(replace(wanted, nodes={**wanted.nodes, "r1": plain})).changed
    assert "/etc/app.conf" not in node.run(["find", "/etc", "-name", "app.conf"]).stdout
    assert node.services()["pages"].state == "dead"
    assert status(lab.context()).ok

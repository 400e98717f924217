"""Topology files of containerlab, deployed by containerlab itself, with stand-ins for images."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import archives
import pytest
import standins
from clabfiles import module
from commands import Said, call
from hops import checked, devices, end, fine, why

from testbed.cli.common import make_settings
from testbed.errors import StepsFailed
from testbed.faults.force import Faults, fault_of
from testbed.labs.lab import Lab
from testbed.labs.live import LiveLab
from testbed.labs.state import State
from testbed.labs.status import status
from testbed.nodes.containerlab.cell import FULL
from testbed.nodes.netns.provider import NetnsProvider
from testbed.polling import until
from testbed.topology import Overrides, Topology, load
from testbed.walk.request import Request
from testbed.walk.run import walk

SMALL = """\
name: Small_Lab
topology:
  defaults: {kind: linux, image: "alpine:3"}
  nodes:
    Left:
      binds: [data:/data, ../beside.txt:/beside.txt]
      env: {COLOUR: "${TESTBED_COLOUR:=blue}"}
      exec: [sh -c 'echo $COLOUR > /data/colour', ip link set eth1 alias by-exec]
    Right: {cmd: sleep 1000}
    br-small: {kind: bridge}
  links:
    - endpoints: [Left:eth1, Right:eth1]
      ipv4: [10.9.0.1/24, 10.9.0.2/24]
      ipv6: ["2001:db8:9::1/64", "2001:db8:9::2/64"]
    - endpoints: [Right:eth2, br-small:p1]
"""
ENDS = """\
name: ends
topology:
  nodes:
    fine: {kind: linux, image: "alpine:3"}
    gone:
      kind: linux
      image: alpine:3
      restart-policy: "no"
      cmd: sh -c 'echo last words; exit 3'
"""
FAULTS = """\
name: faults
topology:
  defaults: {kind: linux, image: "alpine:3"}
  nodes:
    left: {}
    right: {network-mode: none}
    third: {}
    br-f: {kind: bridge}
  links:
    - endpoints: [left:eth1, right:eth1]
      ipv4: [10.9.0.1/24, 10.9.0.2/24]
    - endpoints: [left:eth2, br-f:p1]
      ipv4: [10.8.0.1/24]
    - endpoints: [right:eth2, br-f:p2]
      ipv4: [10.8.0.2/24]
    - endpoints: [third:eth2, br-f:p3]
      ipv4: [10.8.0.3/24]
"""
ROW = """\
name: row
topology:
  defaults: {kind: linux, image: "alpine:3"}
  nodes:
    left:
      exec: [ip address add 10.1.0.2/24 dev eth1, ip route add 10.2.0.0/24 via 10.1.0.1]
    middle:
      exec:
        - sysctl -w net.ipv4.ip_forward=1
        - ip address add 10.1.0.1/24 dev eth1
        - ip address add 10.2.0.1/24 dev eth2
        - ip route del default
    right:
      exec: [ip address add 10.2.0.2/24 dev eth1, ip route add 10.1.0.0/24 via 10.2.0.1]
  links:
    - endpoints: [left:eth1, middle:eth1]
    - endpoints: [middle:eth2, right:eth1]
"""
TEMPLATE = """\
name: templated
topology:
  defaults:
    kind: linux
    image: "alpine:3"
    binds: ["../__clabNodeName__.txt:/own.txt"]
    exec: [sh -c 'echo __clabNodeName__ __clabLabName__ ${WORD:=none} > /said']
  nodes:
{{- range $n := seq 1 .count }}
    n{{ $n }}: {}
{{- end }}
  links:
    - endpoints: ["n1:eth1", "n2:eth1"]
"""
#: Files of containerlab, each with the images that it asks for, and whether it takes long.
SMOKE = "tests/01-smoke"
FILES = {
    f"{SMOKE}/01-linux-single-node.clab.yml": False,
    f"{SMOKE}/03-linux-nodes-to-bridge-and-host.clab.yml": False,
    f"{SMOKE}/05-docker-bridge.clab.yml": True,
    f"{SMOKE}/07-linux-single-node.clab.yml": True,
    f"{SMOKE}/10-internal-ca.clab.yml": True,
    f"{SMOKE}/12-tools-veth.clab.yaml": True,
    f"{SMOKE}/16-mgmtnetinterface.clab.yml": True,
    f"{SMOKE}/24-basic-groups.clab.yaml": False,
    f"{SMOKE}/24-bridge-in-ns.clab.yaml": True,
    f"{SMOKE}/30-bridge-reconcile.clab.yml": True,
    f"{SMOKE}/macvlan.clab.yml": True,
    f"{SMOKE}/netmodes.clab.yml": True,
    f"{SMOKE}/node-filter.clab.yml": True,
    f"{SMOKE}/stages-race.clab.yml": True,
    f"{SMOKE}/stages.clab.yml": True,
    "tests/06-ext-container/02-shared-namespace-ext.clab.yaml": True,
    "tests/08-vxlan/03-vxlan-tools.clab.yml": True,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., None]]:
    """Configures stand-ins for images of these names."""
    folder = tmp_path_factory.mktemp("images")
    with pytest.MonkeyPatch.context() as patch:

        def have(*names: str) -> None:
            patch.setenv("TESTBED_CONFIG", str(standins.config(names, folder)))

        yield have


@pytest.fixture
def folder(
    tmp_path: Path, images: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A user's folder with the file of the small lab; its labs are removed in the end."""
    images("alpine:3")
    state = tmp_path / "state"
    monkeypatch.setenv("TESTBED_STATE", str(state))
    own = tmp_path / "own"
    (own / "data").mkdir(parents=True)
    (own / "small.clab.yml").write_text(SMALL)
    (tmp_path / "beside.txt").write_text("beside\n")
    yield own
    for lab in State(state).labs():
        Lab(lab, make_settings()).down()


def up(file: Path, **given: str) -> tuple[Lab, Topology]:
    topology = load(file, Overrides(**given) if given else None)
    lab = Lab(topology.name, make_settings())
    lab.up(topology)
    return lab, topology


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_file_is_deployed_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTBED_COLOUR", "red")
    before = files(folder)
    lab, topology = up(folder / "small.clab.yml")
    assert (lab.name, [*topology.nodes]) == ("small-lab", ["Left", "Right"])
    found = status(lab.context())
    assert found.ok, found
    left = lab.node("Left")
    assert left.run(["cat", "/beside.txt", "/data/colour"]).stdout == "beside\nred\n"
    assert "by-exec" in left.run(["ip", "link", "show", "eth1"]).stdout
    assert left.run(["ping", "-c1", "-W5", "10.9.0.2"]).ok
    # A new address of IPv6 is tentative for a while.
    assert until(lambda: left.run(["ping", "-c1", "-W1", "2001:db8:9::2"], check=False).ok, 30)
    place = LiveLab(lab.context()).network("Left")
    with place.spawn(["tcpdump", "--list-interfaces"]) as running:  # the image has no tcpdump
        assert "eth1" in running.wait(60).stdout
    assert files(folder) == before  # of what a node writes, nothing reaches the user's folder
    assert lab.up(load(folder / "small.clab.yml")).changed == []


def test_an_edited_file_changes_what_differs(folder: Path) -> None:
    file = folder / "small.clab.yml"
    lab, _ = up(file)
    before = lab.node("Left").run(["hostname"])
    pid = getattr(lab.node("Left"), "pid", before)
    file.write_text(SMALL.replace("sleep 1000", "sleep 2000"))
    changed = {done.step.name for done in lab.up(load(file)).changed}
    # A node that keeps running may have got a new link to the one that was created again.
    assert "node Right" in changed <= {"node Left", "node Right"}
    assert getattr(lab.node("Left"), "pid", before) == pid
    assert "2000" in lab.node("Right").run(["cat", "/proc/1/cmdline"]).stdout
    assert status(lab.context()).ok
    file.write_text(SMALL.replace("    br-small", "    More: {}\n    br-small"))
    lab.up(load(file))
    assert sorted(lab.context().nodes) == ["Left", "More", "Right"]
    assert status(lab.context()).ok


def test_up_restores_links_and_addresses(folder: Path) -> None:
    file = folder / "small.clab.yml"
    lab, _ = up(file)
    lab.node("Left").run(["ip", "address", "flush", "dev", "eth1"])
    lab.node("Right").run(["ip", "link", "delete", "dev", "eth2"])
    wrong = {node.name: [link.name for link in node.links if not link.ok]
             for node in status(lab.context()).nodes}  # fmt: skip
    assert wrong == {"Left": ["eth1"], "Right": ["eth2"]}
    changed = {done.step.name for done in lab.up(load(file)).changed}
    assert changed == {"node Left", "node Right"}
    assert status(lab.context()).ok


@pytest.mark.thorough
def test_faults_of_links(folder: Path) -> None:
    file = folder / "faults.clab.yml"
    file.write_text(FAULTS)
    lab, topology = up(file)
    left, faults = lab.node("left"), Faults(lab)
    managed = {
        name: json.loads(lab.node(name).run(["ip", "-j", "-4", "address"]).stdout)
        for name in ("right", "third")
    }
    (third,) = (
        one["local"]
        for link in managed["third"]
        if link["ifname"] == "eth0"
        for one in link["addr_info"]
    )
    assert not any(link["ifname"] == "eth0" for link in managed["right"])
    addresses = {"link": "10.9.0.2", "bridge": "10.8.0.2", "other": "10.8.0.3", "managed": third}

    def lost() -> set[str]:
        ping = ["ping", "-c1", "-W1"]
        return {n for n, a in addresses.items() if not left.run([*ping, a], check=False).ok}

    assert lost() == set()
    for words, wanted in {
        "partition left:right": {"link", "bridge"},
        "partition third": {"other", "managed"},
        "partition left": {*addresses},
        "loss left:right 99.999%": {"link", "bridge"},
        "rate right 1mbit": set(),
    }.items():
        assert faults.apply(fault_of(words, topology))
        assert lost() == wanted, words
        assert [seen.fault.words for seen in faults.in_force()] == [words]
        assert [fault.words for fault in faults.heal()] == [words]
    assert lost() == set()
    faults.apply(fault_of("rate left 64kbit", topology))
    for node, device in (("right", "eth1"), ("right", "eth0")):
        place = LiveLab(lab.context()).network(node)
        shown = place.run(["tc", "qdisc", "show", "dev", device], check=False).stdout
        assert ("tbf" in shown) is (device == "eth1")
    faults.heal()
    assert "tbf" not in LiveLab(lab.context()).network("right").run(["tc", "qdisc", "show"]).stdout


def test_a_replaced_image_is_loaded_and_its_nodes_are_created_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new archive has another name inside, as one that the user has brought may have."""
    archive, config = tmp_path / "image.tar", tmp_path / "config.toml"
    config.write_text(f'[images."alpine:3"]\npath = "{archive}"\n')
    small = standins.image("alpine:3", tmp_path)
    archive.write_bytes(small.read_bytes())
    monkeypatch.setenv("TESTBED_CONFIG", str(config))
    lab, topology = up(folder / "small.clab.yml")
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("etc/newer"))
    archives.write(archive, "another:7", [layer.getvalue()], source=small)
    lab = Lab(lab.name, make_settings())  # a store remembers an image that it has found
    assert lab.up(topology).removed == ["Left", "Right"]
    assert lab.node("Right").run(["ls", "/etc/newer"]).ok
    assert status(lab.context()).ok
    assert lab.up(topology).changed == []


def test_a_full_disk_of_the_cell_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = NetnsProvider.create_fabric

    def small(provider: NetnsProvider, lab: str, topology: Topology) -> None:
        create(provider, lab, topology)
        fabric = provider.fabric(lab)
        assert fabric is not None
        fabric.run(["mount", "-o", "remount,size=300k", "/var/lib"])

    monkeypatch.setattr(NetnsProvider, "create_fabric", small)
    with pytest.raises(StepsFailed) as caught:
        up(folder / "small.clab.yml")
    assert "no space left on device" in str(caught.value).lower()
    assert FULL in str(caught.value)
    settings = make_settings()
    assert settings.state.labs() == []
    assert settings.providers["containerlab"].labs() == []


def test_copies_of_a_lab_stand_side_by_side(folder: Path) -> None:
    one, _ = up(folder / "small.clab.yml")
    two, _ = up(folder / "small.clab.yml", name="another")
    assert status(one.context()).ok
    assert status(two.context()).ok
    one.down()
    assert status(two.context()).ok


def test_a_node_that_exits_ends_up_with_its_last_lines(folder: Path) -> None:
    (folder / "ends.clab.yml").write_text(ENDS)
    said = call(folder, "up", "ends.clab.yml", "-q", env={"PWD": str(folder)})
    said = said if said.status != 2 else call(folder, "up", str(folder / "ends.clab.yml"), "-q")
    assert said.status == 4
    assert "last words" in said.err
    assert "gone" in said.err
    assert State(folder.parent / "state").labs() == []


def test_an_up_that_ends_in_the_middle_leaves_nothing(folder: Path) -> None:
    file = folder / "slow.clab.yml"
    file.write_text(SMALL.replace("cmd: sleep 1000", "startup-delay: 3600"))
    said = call(folder, "up", str(file), "-q", "--timeout", "10")
    assert said.status == 4
    settings = make_settings()
    assert settings.state.labs() == []
    assert settings.providers["containerlab"].labs() == []


def test_containerlabs_own_words_about_a_wrong_file(folder: Path) -> None:
    file = folder / "bad.clab.yml"

    def plan(text: str) -> Said:
        file.write_text(text)
        return call(folder, "plan", str(file))

    said = plan(SMALL.replace("kind: bridge", "kind: bridge, imag: x"))
    assert said.status == 2
    assert f"{file}:10" in said.err
    assert "field imag not found" in said.err
    said = plan(SMALL.replace("Right:eth2", "Nobody:eth2"))
    assert said.status == 2
    assert "Nobody" in said.err
    said = plan(SMALL.replace("kind: linux", "kind: nosuch"))
    assert said.status == 2
    assert "nosuch" in said.err


def test_a_template_has_the_values_beside_it_or_others(folder: Path) -> None:
    file, values = folder / "many.clab.gotmpl", folder / "values.json"
    file.write_text(TEMPLATE)
    (folder / "many.clab_vars.yaml").write_text("count: 3\n")
    for name in ("n1", "n2", "n3"):
        (folder.parent / f"{name}.txt").write_text(f"for {name}\n")
    assert [*load(file).nodes] == ["n1", "n2", "n3"]
    values.write_text('{"count": 2}')
    said = call(folder, "up", str(file), "-q", "--vars", str(values), "--set", "WORD=red")
    assert said.status == 0, said
    lab = Lab("templated", make_settings())
    for name in ("n1", "n2"):
        shown = lab.node(name).run(["cat", "/own.txt", "/said"]).stdout
        assert shown == f"for {name}\n{name} clab-templated red\n"
    assert status(lab.context()).ok
    same = load(file, variables={"CLAB_VARS": str(values), "WORD": "red"})
    assert lab.up(same).changed == []
    assert lab.record().variables == {"CLAB_VARS": str(values), "WORD": "red"}


def test_suites_and_claims_beside_the_file_run(folder: Path) -> None:
    (folder / "tests").mkdir()
    (folder / "tests" / "test_left.py").write_text(
        "def test_left(lab):\n"
        "    assert lab.node('Left').run(['hostname']).stdout.strip() == 'Left'\n"
    )
    (folder / "tests" / "test_theirs.py").write_text("def test_of_a_project(): raise ValueError\n")
    up(folder / "small.clab.yml")
    data, html = folder.parent / "run.json", folder.parent / "run.html"
    said = call(
        folder, "verify", str(folder / "small.clab.yml"), "--json", str(data), "--html", str(html)
    )
    assert said.status == 0, said.out + said.err
    (found,) = json.loads(data.read_text())["labs"]
    checks = [(check["name"], check["outcome"]) for check in found["checks"]]
    assert checks == [("tests/test_left.py::test_left", "passed")]
    assert "pic-wire" in html.read_text(), "the picture has the link"


def test_a_walk_through_a_row_of_nodes(folder: Path) -> None:
    (folder / "row.clab.yml").write_text(ROW)
    lab, _ = up(folder / "row.clab.yml")
    with LiveLab(lab.context()) as live:
        # Over the links of the file, not the network by which containerlab manages the nodes.
        found = checked(live, "left", "right", Request())
        there, back = found.legs
        assert fine(found) is there
        ways = [devices(leg) for leg in found.legs]
        assert ways[0] == ["left:eth1 out", "middle:eth1 in", "middle:eth2 out", "right:eth1 in"]
        assert ways[1] == ["right:eth1 out", "middle:eth2 in", "middle:eth1 out", "left:eth1 in"]
        for leg in (there, back):
            ttls = [hop.view.ttl for hop in leg.hops if hop.kind == "device" and hop.view]
            assert ttls == [64, 64, 63, 63]
        routes = [why(hop) for hop in there.hops if hop.kind == "route"]
        words = ["10.2.0.0/24 via 10.1.0.1 dev eth1", "10.2.0.0/24 dev eth2", "local 10.2.0.2"]
        assert all(text.startswith(word) for text, word in zip(routes, words, strict=True))
        view = [hop.view for hop in there.hops if hop.kind == "device"][-1]
        assert view is not None
        shown = live.network("right").run(["ip", "-j", "link", "show", "eth1"]).stdout
        assert view.dst_mac == json.loads(shown)[0]["address"]

        shown = live.network("right").run(["ip", "-j", "-4", "addr", "show", "eth0"]).stdout
        managed = json.loads(shown)[0]["addr_info"][0]["local"]
        there = fine(checked(live, "left", managed, Request()))
        assert devices(there) == [
            "left:eth0 out", "mgmt-net:veth* in", "mgmt-net:veth* out", "right:eth0 in",
        ]  # fmt: skip
        assert {hop.kind for hop in there.hops}.isdisjoint({"blind"})

        live.network("middle").run(["ip", "route", "del", "10.2.0.0/24"])
        last = end(walk(live, "left", "10.2.0.2", Request(seconds=0.3)))
        assert str(last.spot) == "middle:eth1"
        assert "no route: Network is unreachable" in why(last)
        assert "10.1.0.1 sent network unreachable" in why(last)


@pytest.mark.thorough
def test_routers_of_frr_find_their_neighbours(folder: Path, images: Callable[..., None]) -> None:
    file = module() / "lab-examples/frr01/frr01.clab.yml"
    images("quay.io/frrouting/frr:10.5.1", "wbitt/network-multitool:3.22.2")
    lab, _ = up(file)
    router, host = lab.node("router1"), lab.node("PC1")

    def routes() -> str:
        return router.run(["vtysh", "-c", "show ip route ospf"]).stdout

    # Hello and dead intervals are 10 s and 40 s (RFC 2328, appendix C.3), so it takes a while.
    assert until(lambda: "192.168.13.0/24" in routes() and "192.168.12.0/24" in routes(), 180)
    neighbours = router.run(["vtysh", "-c", "show ip ospf neighbor"]).stdout
    assert neighbours.count("Full") == 2
    # The other routers may learn the way back a little later.
    assert until(lambda: host.run(["ping", "-c1", "-W1", "192.168.13.2"], check=False).ok, 180)
    assert status(lab.context()).ok


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.long if long else ()) for name, long in FILES.items()],
)
def test_files_of_containerlab_come_up(
    name: str, folder: Path, images: Callable[..., None]
) -> None:
    images("alpine:3", "alpine:latest", "nginx:stable-alpine", "debian:bookworm-slim")
    del folder
    lab, topology = up(module() / name, name="theirs")
    found = status(lab.context())
    assert found.ok, found
    assert len(found.nodes) == len(topology.nodes) > 0
    assert lab.down()
    assert not lab.settings.providers["containerlab"].labs()


@pytest.mark.long
def test_a_file_with_a_certificate_of_the_users(folder: Path, images: Callable[..., None]) -> None:
    images("alpine:3")
    text = (module() / SMOKE / "09-external-ca.clab.yml").read_text()
    (folder / "09-external-ca.clab.yml").write_text(text)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=ca", "-keyout",
         folder / "rootCAKey.pem", "-out", folder / "rootCACert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    lab, _ = up(folder / "09-external-ca.clab.yml")
    assert status(lab.context()).ok


@pytest.mark.long
def test_all_kinds_of_links_but_dummy(folder: Path, images: Callable[..., None]) -> None:
    """The kernel need not have dummy links."""
    images("alpine:3", "nginx:stable-alpine")
    theirs = module() / SMOKE
    for name in ("01-test.txt", "01-test.json"):
        (folder / name).write_bytes((theirs / name).read_bytes())
    text = (theirs / "01-linux-nodes.clab.yml").read_text()
    before, dummy, _ = text.partition("    - type: dummy")
    assert dummy
    (folder / "01-linux-nodes.clab.yml").write_text(before)
    lab, _ = up(folder / "01-linux-nodes.clab.yml")
    found = status(lab.context())
    assert found.ok, found
    assert lab.node("l1").run(["cat", "/tmp/var"]).stdout == "MYVAR is SET\n"
    assert lab.node("l1").run(["cat", "/01-test.txt"]).out == (folder / "01-test.txt").read_bytes()


@pytest.mark.parametrize(
    ("name", "words", "wanted"),
    [
        (f"{SMOKE}/27-exited-container-cli.clab.yml", "nosuchcommand", 4),
        ("tests/06-ext-container/01-ext-container.clab.yml", "ext-container", 2),
        ("tests/06-ext-container/02-shared-namespace.clab.yaml", "ext-node", 2),
        ("tests/08-vxlan/vxlan-stitch-linux.clab.yml", "parent-interface", 4),
    ],
)
@pytest.mark.long
def test_files_that_cannot_run_say_why_and_what_to_do(
    name: str, words: str, wanted: int, folder: Path, images: Callable[..., None]
) -> None:
    images("alpine:3", "alpine:latest", "nginx:stable-alpine")
    said = call(folder, "up", str(module() / name), "-q")
    assert said.status == wanted, said.err
    assert words in said.err
    assert State(folder.parent / "state").labs() == []

"""The way out of a lab, into a namespace that stands for the network outside.

The whole of testbed runs in that namespace: no packet of these tests can reach a real network.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from outside import ADDRESS, LOOPBACK_PORT, NAME, Outside, outside

from testbed import machine_state
from testbed.artifacts import Store
from testbed.nodes.netns import find
from testbed.nodes.netns.node import NetnsNode
from testbed.polling import until
from testbed.process import run

if TYPE_CHECKING:
    from subprocess import CompletedProcess

LAB = "say-uplink"
#: A router between a network with an uplink and one without, and a host on each.
TEXT = """\
name: say-uplink
networks: {out: {subnet: 10.99.0.0/24, uplink: true}, lan: {subnet: 10.1.0.0/24}}
nodes:
  r: {networks: {out: 10.99.0.2, lan: 10.1.0.1}, gateway: true}
  a: {networks: {out: 10.99.0.3}}
  b: {networks: {lan: 10.1.0.2}}
  lone: {networks: {}}
"""
PROGRAM = "slirp4netns"


class Bed:
    """The commands of testbed with the network of a namespace."""

    def __init__(self, place: Outside, folder: Path) -> None:
        self.place, self.folder = place, folder
        self.state = folder / "state"
        self.file = folder / "lab.yaml"
        self.file.write_text(TEXT, encoding="utf-8")

    def __call__(self, *words: str) -> CompletedProcess[str]:
        argv = [sys.executable, "-m", "testbed", *words]
        return self.place.run(argv, TESTBED_STATE=str(self.state), TESTBED_LAB=LAB)

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json").stdout)

    def get(self, node: str, place: str) -> str:
        """Return the page that a node gets from a web server, or the words of curl's error."""
        got = self("exec", node, "curl", "-sS", "-m", "20", f"http://{place}/")
        return got.stdout or got.stderr

    def up(self) -> None:
        done = self("up", str(self.file))
        assert done.returncode == 0, done.stderr

    def gateway(self) -> NetnsNode:
        (found,) = [one for one in find.inits(state=str(self.state)) if one.kind == "uplink"]
        return NetnsNode(found)

    def programs(self) -> list[int]:
        """The pids of the lab's program on this machine."""
        return [pid for pid in _pids() if f"/proc/{self.gateway().init.pid}/ns/net" in _line(pid)]


def _pids() -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and PROGRAM in _line(int(entry.name)):
            yield int(entry.name)


def _line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    Store().binary(PROGRAM)  # from here, where Debian's archive is
    folder = tmp_path_factory.mktemp("uplink")
    with outside(folder) as place:
        found = Bed(place, folder)
        network = _machine(place)
        found.up()
        during = _machine(place)
        yield found
        assert found("down", LAB).returncode == 0
        assert not list(find.inits(state=str(found.state)))
        assert during == network == _machine(place)


def _machine(place: Outside) -> list[str]:
    """Return the settings that a lab could change of the network that it leaves by."""
    commands = ("ip -j -d address", "ip rule", "ip route show table all", "nft list ruleset",
                "sysctl -a --pattern ^net[.](ipv4[.](ip_forward|conf|ping)|bridge)")  # fmt: skip
    return [place.run(words.split()).stdout for words in commands]


@pytest.mark.parametrize("node", ["r", "a", "b"])
def test_nodes_reach_what_the_machine_reaches(bed: Bed, node: str) -> None:
    assert bed.get(node, NAME) == f"for {ADDRESS}\n"
    assert bed.get(node, ADDRESS) == f"for {ADDRESS}\n"


def test_other_nodes_reach_nothing(bed: Bed) -> None:
    assert "curl: (7)" in bed.get("lone", ADDRESS)


def test_loopback_of_the_machine_is_out_of_reach(bed: Bed) -> None:
    subnet = bed.gateway().run(["ip", "-j", "-4", "address", "show", "dev", "out"]).json()
    host = subnet[0]["addr_info"][0]["local"].rpartition(".")[0] + ".2"
    assert "curl: (7)" in bed.get("a", f"{host}:{LOOPBACK_PORT}")


def test_the_way_out_is_shown(bed: Bed) -> None:
    for words in (["plan", str(bed.file)], ["status", LAB], ["up", str(bed.file)]):
        assert "out has a way out" in bed(*words).stdout
    assert "has a way out" in bed("ls").stdout
    assert bed.json("ls")[0]["uplinks"] == ["out"]
    assert bed.json("status", LAB)["uplinks"] == ["out"]


def test_the_machine_is_as_before(bed: Bed) -> None:
    """The machine itself, outside of the namespace, has nothing of the lab but its processes."""
    shown = json.loads(run(["ip", "-j", "link"]).stdout)
    assert not [link for link in shown if link["ifname"] in ("out", "uplink")]
    assert PROGRAM[: machine_state.COMM_MAX] in {
        Path(f"/proc/{pid}/comm").read_text().strip() for pid in bed.programs()
    }
    (pid,) = bed.programs()
    inside = Path(f"/proc/{pid}/ns/pid").readlink()
    assert inside == Path(f"/proc/{bed.gateway().init.pid}/ns/pid").readlink(), "it ends with it"
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    assert int(status["CapEff"].strip(), 16) == 1 << 10, "CAP_NET_BIND_SERVICE alone"


LONG = pytest.mark.long


@pytest.mark.parametrize(
    "change",
    [
        "kill the program",
        pytest.param("kill the gateway", marks=LONG),
        pytest.param("nft flush ruleset", marks=LONG),
        "ip link set dev eth0 down",
        pytest.param("ip address flush dev eth0", marks=LONG),
        pytest.param("ip route del default", marks=LONG),
    ],
)
def test_what_is_lost_is_shown_and_restored(bed: Bed, change: str) -> None:
    before = bed.gateway().init.pid
    if change == "kill the program":
        (pid,) = bed.programs()
        os.kill(pid, signal.SIGKILL)
        assert until(lambda: not _line(pid), 60)
    elif change == "kill the gateway":
        gateway = bed.gateway().init
        gateway.kill()
        assert gateway.wait_dead(60)
    else:
        bed.gateway().run(change.split())
    shown = bed("status", LAB)
    assert (shown.returncode, "uplink" in shown.stdout) == (1, True)
    bed.up()
    assert bed("status", LAB).returncode == 0
    assert bed.get("b", NAME) == f"for {ADDRESS}\n"
    assert bed.gateway().init.pid != before
    assert len(bed.programs()) == 1


def _has_gateway(bed: Bed) -> bool:
    return any(one.kind == "uplink" for one in find.inits(state=str(bed.state)))


#: Arguments: a number, and those of testbed, which is killed before that call of what makes a lab.
KILLED = """
import os, signal, sys
from testbed import cli
from testbed.nodes.netns import node, provider, uplink
left = int(sys.argv.pop(1))
def counted(of, name):
    real = getattr(of, name)
    def call(*args, **more):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **more)
    setattr(of, name, call)
for of, name in ((provider.NetnsProvider, "_launch"), (provider.NetnsProvider, "_plug"),
                 (uplink, "run"), (node.NetnsNode, "run"), (node.NetnsNode, "put")):
    counted(of, name)
sys.exit(cli.run(sys.argv[1:]))
"""
SMALL = TEXT.partition("  r:")[0].replace("say-uplink", "say-killed")
SMALL += "  a: {networks: {out: 10.99.0.3}}\n"


@pytest.mark.parametrize(
    "number", [3, *(pytest.param(n, marks=LONG) for n in (1, 2, *range(4, 12)))]
)
def test_a_killed_up_leaves_nothing_after_down(bed: Bed, tmp_path: Path, number: int) -> None:
    """SIGKILL before a call that makes a part of the lab: the third is that of the program."""
    file, state = tmp_path / "lab.yaml", tmp_path / "state"
    file.write_text(SMALL, encoding="utf-8")

    def run(*words: str, killed: int = 0) -> subprocess.CompletedProcess[str]:
        before = [sys.executable, "-c", KILLED, str(killed)]
        return bed.place.run([*before, *words], TESTBED_STATE=str(state))

    def testbed(*words: str, killed: int = 0) -> int:
        return run(*words, killed=killed).returncode

    known = {*_pids()}
    status = testbed("up", str(file), killed=number)
    assert status == -signal.SIGKILL
    if number % 2:  # the next `up` completes it
        assert testbed("up", str(file)) == 0
        assert testbed("status", "say-killed") == 0
    testbed("down", "say-killed")
    assert not list(find.inits(state=str(state)))
    assert {*_pids()} <= known
    leaks = json.loads(run("doctor", "--leaks", "--json").stdout)
    mine = [leak for leak in leaks if "say-killed" in leak["about"] or str(state) in leak["about"]]
    assert mine == [], "others may have leftovers at this moment"


def test_the_uplink_goes_when_the_file_drops_it(bed: Bed) -> None:
    bed.file.write_text(TEXT.replace(", uplink: true", ""), encoding="utf-8")
    (pid,) = bed.programs()
    bed.up()
    assert not _has_gateway(bed)
    assert not _line(pid)
    assert bed("status", LAB).returncode == 0
    assert "curl: (7)" in bed.get("a", ADDRESS)
    bed.file.write_text(TEXT, encoding="utf-8")
    bed.up()
    assert bed.get("a", NAME) == f"for {ADDRESS}\n"

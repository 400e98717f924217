"""Faults on real labs: each does what it says, shows, is healed, and leaves nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import call

from testbed.testing.provider import until

TESTBED = [sys.executable, "-m", "testbed"]
PLAIN = """\
name: plain
networks:
  lan: {subnet: 10.168.0.0/24}
nodes:
  a: {networks: {lan: 10.168.0.2}}
  b: {networks: {lan: 10.168.0.3}}
  c: {networks: {lan: 10.168.0.4}}
faults:
  cut: partition a:b
"""
B, C = "10.168.0.3", "10.168.0.4"
NOTHING: list[str] = []


class Commands:
    """`testbed` with a state folder of its own."""

    def __init__(self, state: Path, lab: str) -> None:
        self.lab = lab
        self.own = {"TESTBED_STATE": str(state), "TESTBED_LAB": lab}
        self.env = os.environ | self.own
        self.said = state.with_name(f"{state.name}-said")
        self.said.mkdir()

    def __call__(self, *argv: str, status: int = 0) -> str:
        done = call(self.said, *argv, env=self.own)
        assert done.status == status, (argv, done)
        return done.out + done.err

    def in_force(self) -> list[str]:
        return [row["fault"] for row in json.loads(self("fault", "ls", "--json"))["faults"]]

    def comes_to_answer(self, where: str, address: str, count: int = 5) -> bool:
        """Wait until all requests are answered.

        A neighbour that did not answer is asked again after a second (arp(7), retrans_time_ms),
        and a busy machine may be late.
        """
        return until(lambda: self.answers(where, address, count) == count, 60)

    def answers(self, where: str, address: str, count: int = 5) -> int:
        """Return the number of answered echo requests."""
        argv = ["ping", "-q", "-n", "-c", str(count), "-i", "0.02", "-W", "0.5", address]
        done = call(self.said, "exec", where, "--", *argv, env=self.own)
        found = re.search(r"(\d+) received", done.out)
        assert found, done.err
        return int(found[1])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Three nodes without any software."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "plain.yaml").write_text(PLAIN)
    testbed = Commands(folder / "state", "plain")
    testbed("up", str(folder / "plain.yaml"), "-q")
    yield testbed
    testbed("down", "--all")


@pytest.fixture(scope="module", params=["vxlan", "udp", "host-gw"])
def overlay(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Commands]:
    """Two nodes with flannel, for each back end."""
    testbed = Commands(tmp_path_factory.mktemp("overlay"), f"two-{request.param}")
    testbed("up", "two-node", "--backend", request.param, "--name", testbed.lab, "-q")
    yield testbed
    testbed("down", "--all")


@pytest.fixture(autouse=True)
def _whole(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test begins with a lab in which nothing is broken, and leaves it so."""
    yield
    for name in {"plain", "overlay"} & set(request.fixturenames):
        testbed = request.getfixturevalue(name)
        testbed("fault", "heal")
        assert testbed.in_force() == NOTHING


# -- links ------------------------------------------------------------------------------


def test_a_link_is_cut_and_no_other(plain: Commands) -> None:
    assert plain.comes_to_answer("a", B)
    plain("fault", "partition", "b:a")
    assert plain.answers("a", B) == 0
    assert plain.comes_to_answer("a", C)
    assert plain.comes_to_answer("b", C)
    assert plain.in_force() == ["partition a:b"]
    plain("fault", "partition", "a:b")  # again: fine
    plain("fault", "heal", "partition", "a:b")
    assert plain.comes_to_answer("a", B)


def test_a_node_is_cut_off(plain: Commands) -> None:
    plain("fault", "partition", "b")
    assert [plain.answers("a", B), plain.answers("c", B)] == [0, 0]
    assert plain.comes_to_answer("a", C)
    plain("fault", "heal")
    assert plain.comes_to_answer("c", B)


def test_by_the_name_that_the_topology_gives(plain: Commands) -> None:
    plain("fault", "apply", "cut")
    assert plain.answers("a", B) == 0
    assert json.loads(plain("fault", "ls", "--json"))["faults"][0]["name"] == "cut"
    plain("fault", "heal", "cut")
    assert plain.comes_to_answer("a", B)


@pytest.mark.thorough
def test_frames_are_lost_by_chance(plain: Commands) -> None:
    plain("fault", "loss", "a:b", "50%")
    # A quarter comes back, of 200: none or all has a chance of less than one in 10**20.
    assert 0 < plain.answers("a", B, 200) < 200
    assert plain.comes_to_answer("a", C)
    (row,) = json.loads(plain("fault", "ls", "--json"))["faults"]
    assert int(row["seen"].split()[0]) > 0
    plain("fault", "heal", "loss")
    assert plain.comes_to_answer("a", B)
    assert plain.comes_to_answer("a", B, 50)


SERVER = (
    "import socket; s=socket.create_server(('0.0.0.0',9)); c,_=s.accept(); n=0\n"
    "while d:=c.recv(65536): n+=len(d)\nprint(n)"
)
CLIENT = (
    "import socket,time,sys\n"
    "for _ in range(2400):\n"
    " try: s=socket.create_connection((sys.argv[1],9)); break\n"
    " except OSError: time.sleep(.05)\n"
    "t=time.monotonic()\n"
    "s.sendall(b'x'*int(sys.argv[2])); s.shutdown(1); s.recv(1); print(time.monotonic()-t)"
)


def seconds(testbed: Commands, octets: int) -> float:
    """Return the seconds that a transfer from a to b takes."""
    # The environment's own is a link, and may be where a node has folders of its own: /tmp.
    python = str(Path(sys.executable).resolve())
    server = subprocess.Popen(
        [*TESTBED, "exec", "b", "--", python, "-c", SERVER], env=testbed.env, stdout=subprocess.PIPE
    )
    took = float(testbed("exec", "a", "--", python, "-c", CLIENT, B, str(octets)))
    out, _ = server.communicate(timeout=120)
    assert int(out) == octets
    return took


def test_what_goes_to_a_node_is_limited(plain: Commands) -> None:
    plain("fault", "rate", "b", "2mbit")
    # 400 kB are 3.2 Mbit, of which the bucket lets 32 KiB through at once: 1.4 s at least.
    assert seconds(plain, 400_000) > 1.4
    plain("fault", "rate", "b", "1gbit")
    assert plain.in_force() == ["rate b 1gbit"]
    plain("fault", "heal")


def test_a_delay_takes_netem_and_says_so(plain: Commands) -> None:
    has_netem = "netem" in Path("/proc/kallsyms").read_text()
    said = plain("fault", "delay", "b", "50ms", status=0 if has_netem else 3)
    if has_netem:
        found = plain("exec", "a", "--", "ping", "-c3", "-i0.2", B)
        assert min(map(float, re.findall(r"time=([\d.]+)", found))) >= 50
    else:
        assert "netem" in said
        assert "tbf" in said
        assert plain.in_force() == NOTHING


# -- for a time, and signals --------------------------------------------------------------


def test_for_a_time(plain: Commands) -> None:
    assert "is healed" in plain("fault", "partition", "a:b", "--for", "0.2")
    assert plain.in_force() == NOTHING


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_heals(plain: Commands, signum: int, status: int) -> None:
    running = subprocess.Popen(
        [*TESTBED, "fault", "partition", "a:b", "--for", "60"],
        env=plain.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while plain.in_force() == NOTHING:
        assert time.monotonic() < deadline
    running.send_signal(signum)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == status, errors
    assert "Traceback" not in errors
    assert plain.in_force() == NOTHING


def test_one_that_was_killed_is_seen_and_healed(plain: Commands) -> None:
    running = subprocess.Popen(
        [*TESTBED, "fault", "stop", "b", "--for", "60"], env=plain.env, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while plain.in_force() == NOTHING:
        assert time.monotonic() < deadline
    running.kill()
    running.wait()
    assert plain.in_force() == ["stop b"]
    plain("fault", "heal")


# -- nodes that are stopped ---------------------------------------------------------------


def test_a_stopped_node_says_so_and_goes_on(plain: Commands, tmp_path: Path) -> None:
    plain("exec", "b", "--", "true")
    plain("fault", "stop", "b")
    assert plain.in_force() == ["stop b"]
    assert "is stopped" in plain("exec", "b", "--", "true", status=4)
    assert "fault heal" in plain("status", status=1)
    (b,) = (n for n in json.loads(plain("status", "--json", status=1))["nodes"] if n["name"] == "b")
    assert b["state"] == "stopped"
    again = tmp_path / "plain.yaml"
    again.write_text(PLAIN)
    assert "is stopped" in plain("up", str(again), "--replace", status=4)
    plain("fault", "heal", "stop", "b")
    plain("exec", "b", "--", "true")
    plain("status")


def test_down_takes_a_broken_lab_away(tmp_path: Path) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text(PLAIN.replace("name: plain", "name: broken"))
    testbed = Commands(tmp_path / "state", "broken")
    testbed("up", str(path), "-q")
    testbed("fault", "stop", "a")
    testbed("fault", "partition", "b")
    testbed("fault", "rate", "c", "1mbit")
    testbed("down", "broken")
    assert json.loads(testbed("ls", "--json")) == []


# -- services and the overlay -------------------------------------------------------------


def reaches(testbed: Commands, count: int = 5) -> int:
    return testbed.answers("node1/container-1", "100.96.2.2", count)


def backend(testbed: Commands) -> str:
    return testbed.lab.removeprefix("two-")


def test_flanneld_is_killed_and_started(overlay: Commands) -> None:
    overlay("fault", "kill", "node2/flanneld")  # with udp its device goes, and the route with it
    assert overlay.in_force() == ["kill node2/flanneld"]
    overlay("status", status=1)
    assert reaches(overlay) == (0 if backend(overlay) == "udp" else 5)
    overlay("fault", "heal")
    overlay("status")
    assert reaches(overlay) == 5


def test_up_repairs_what_a_fault_broke_in_services(overlay: Commands) -> None:
    overlay("fault", "kill", "node1/etcd")
    overlay("fault", "kill", "node2/dockerd")
    assert set(overlay.in_force()) == {"kill node1/etcd", "kill node2/dockerd"}
    up = ("up", "two-node", "--backend", backend(overlay), "--name", overlay.lab, "--json")
    changed = set(json.loads(overlay(*up))["changed"])
    assert {"etcd node1", "docker node2", "container node2/container-2"} <= changed
    assert not any(step.startswith("node ") for step in changed)
    overlay("status")
    assert overlay.in_force() == NOTHING


def test_a_daemon_hangs_and_goes_on(overlay: Commands) -> None:
    overlay("fault", "stop", "node2/flanneld")
    assert overlay.in_force() == ["stop node2/flanneld"]
    assert reaches(overlay) == (0 if backend(overlay) == "udp" else 5)
    overlay("fault", "heal", "stop")
    assert reaches(overlay) == 5


@pytest.mark.parametrize("what", ["route", "neighbour", "fdb", "forward", "port"])
def test_what_is_broken_keeps_packets_from_passing(overlay: Commands, what: str) -> None:
    mine = {"neighbour": ("vxlan",), "fdb": ("vxlan",), "port": ("vxlan", "udp")}
    if backend(overlay) not in mine.get(what, (backend(overlay),)):
        assert "back end" in overlay("fault", "break", "node1", what, status=2)
        return
    # With host-gw flanneld puts a route back within ten seconds: not while it hangs.
    overlay("fault", "stop", "node1/flanneld")
    if backend(overlay) == "udp" and what != "route":
        overlay("fault", "heal")  # there it is what carries packets
    overlay("fault", "break", "node1", what)
    assert f"break node1 {what}" in overlay.in_force()
    assert reaches(overlay) == 0
    overlay("fault", "break", "node1", what)
    overlay("fault", "heal", "break", "node1", what)
    overlay("fault", "heal", "stop")
    assert overlay.in_force() == NOTHING
    assert reaches(overlay) == 5


# -- the fixture --------------------------------------------------------------------------

SUITE = """
import pytest

def answered(lab):
    argv = ["ping", "-q", "-c1", "-W0.3", "10.168.0.3"]
    return lab.node("a").run(argv, check=False).ok

def test_cut(lab, fault):
    assert answered(lab)
    fault("cut")
    assert not answered(lab)
    fault.heal()
    assert answered(lab)

def test_that_fails(lab, fault):
    fault("partition a:b")
    fault("stop b")
    assert False

def test_after_it(lab):
    assert answered(lab)
    lab.node("b").run(["true"])
"""


def test_the_fixture_heals_after_a_test_that_fails(plain: Commands, tmp_path: Path) -> None:
    path = tmp_path / "test_own.py"
    path.write_text(SUITE)
    said = plain("verify", "plain", str(path), status=1)
    assert re.search(r"3 other checks, 1 failed", said), said
    assert re.search(r"failed .*test_that_fails", said), said
    assert plain.in_force() == NOTHING

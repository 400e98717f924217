"""``testbed capture`` on nodes: order, filters, files, and how it ends."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.cli.common import make_settings
from testbed.labs.lab import Lab
from testbed.topology import load_text

FILE = """
name: capture
networks: {lan: {subnet: 10.168.0.0/24}}
nodes:
  a: {networks: {lan: 10.168.0.2}, roles: [namespaces]}
  b: {networks: {lan: 10.168.0.3}}
namespaces: {inner: {node: a}}
"""
SECONDS = 120.0  # for hanging only


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESTBED_STATE", str(tmp_path_factory.mktemp("state")))
        found = Lab("capture", make_settings())
        found.up(load_text(FILE, "capture.yaml"))
        yield found
        found.down()


def started(*argv: str) -> subprocess.Popen[str]:
    """A capture that listens already."""
    words = [sys.executable, "-m", "testbed", "capture", "-l", "capture", *argv]
    running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    line = running.stderr.readline()
    assert "listening" in line, line + running.stderr.read()
    return running


def ping(lab: Lab, target: str = "10.168.0.3") -> None:
    node = lab.context().node("a")
    node.run(["ping", "-c", "1", "-W", "5", target])


def test_places_are_in_the_order_of_the_packets_way(lab: Lab) -> None:
    running = started("a:eth0", "lan", "b", "--filter", "icmp", "--count", "6", "--json")
    ping(lab)
    out, err = running.communicate(timeout=SECONDS)
    assert running.returncode == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    assert [(one["place"], one["direction"]) for one in found] == [
        ("a:eth0", "out"), ("lan:a", "in"), ("b:eth0", "in"),
        ("b:eth0", "out"), ("lan:b", "in"), ("a:eth0", "in"),
    ]  # fmt: skip
    times = [one["time"] for one in found]
    assert times == sorted(times)
    assert ["request" in one["text"] for one in found] == [True] * 3 + [False] * 3


def test_a_namespace_and_its_loopback(lab: Lab) -> None:
    running = started("a/inner", "--filter", "icmp", "--count", "2")
    node = lab.context().node("a")
    node.run(["ip", "-n", "inner", "link", "set", "lo", "up"])
    node.run(["ip", "netns", "exec", "inner", "ping", "-c", "1", "127.0.0.1"])
    out, _ = running.communicate(timeout=SECONDS)
    assert out.count("a/inner:lo") == 2


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_a_whole_file(lab: Lab, tmp_path: Path, signum: int) -> None:
    path = tmp_path / "a.pcapng"
    running = started("a:eth0", "-w", str(path), "--filter", "icmp")
    ping(lab)
    # The file has both packets as soon as they are in order.
    other = started("a:eth0", "--filter", "icmp", "--count", "1")
    ping(lab)
    other.communicate(timeout=SECONDS)
    running.send_signal(signum)
    running.communicate(timeout=SECONDS)
    assert running.returncode == (0 if signum == signal.SIGINT else 128 + signum)
    if shutil.which("tshark"):
        argv = ["tshark", "-r", str(path), "-T", "fields", "-e", "frame.interface_name"]
        said = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=SECONDS)
        assert "cut short" not in said.stderr
        assert said.stdout.splitlines()[:2] == ["a:eth0"] * 2


def test_it_ends_when_its_reader_does_though_no_packet_comes(lab: Lab) -> None:
    running = started("b:lo")
    assert running.stdout is not None
    running.stdout.close()
    assert running.wait(SECONDS) == 141


def test_it_ends_when_its_node_does(lab: Lab) -> None:
    running = started("b")
    lab.down()
    _, err = running.communicate(timeout=SECONDS)
    assert running.returncode == 4, err
    assert "Traceback" not in err
    lab.up(load_text(FILE, "capture.yaml"))


def test_two_captures_of_one_place_see_the_same_packets(lab: Lab) -> None:
    both = [started("a:eth0", "--filter", "icmp", "--count", "2", "--json") for _ in range(2)]
    ping(lab)
    first, second = (one.communicate(timeout=SECONDS)[0] for one in both)
    texts = [[json.loads(line)["text"] for line in out.splitlines()] for out in (first, second)]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 2

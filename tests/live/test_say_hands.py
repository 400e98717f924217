"""Work by hand on a real lab: copies, restarts, logs, differences, and the lab as a file."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import Said, call
from labs import by_commands

LAB = "say-hands"
TEXT = """
name: say-hands
networks:
  lan: {subnet: 10.168.0.0/24}
nodes:
  a: {networks: {lan: 10.168.0.2}, roles: [docker]}
  b: {networks: {lan: 10.168.0.3}}
containers:
  web: {node: a, publish: ["8080:80"]}
"""

Testbed = Callable[..., Said]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("hands")
    (path / "lab.yaml").write_text(TEXT)
    with by_commands(path, str(path / "lab.yaml"), LAB):
        yield path


@pytest.fixture
def testbed(folder: Path) -> Testbed:
    def run(*argv: str) -> Said:
        return call(folder, *argv)

    return run


def fine(said: Said) -> str:
    assert said.status == 0, said
    return said.out


def test_a_command_on_every_node(testbed: Testbed) -> None:
    out = fine(testbed("exec", "--all", "-u", "nobody", "-w", "/tmp", "-e", "A=b", "sh", "-c",
                       "echo $(hostname) $(id -un) $(pwd) $A"))  # fmt: skip
    assert sorted(out.splitlines()) == ["a | a nobody /tmp b", "b | b nobody /tmp b"]
    inside = [
        "-u",
        "www-data",
        "-w",
        "/etc",
        "-e",
        "A=b",
        "a/web",
        "sh",
        "-c",
        "id -u; pwd; echo $A",
    ]
    assert fine(testbed("exec", *inside)).split() == ["33", "/etc", "b"]
    for where in ("b", "a/web"):
        for folder in ("/nosuch", "/etc/hostname"):
            said = testbed("exec", "-w", folder, where, "true")
            assert (said.status, folder in said.err) == (126, True), said
    assert testbed("exec", "-w", "/etc", "a/web", "nosuch").status == 127
    assert testbed("exec", "--all", "sh", "-c", "exit $(hostname | wc -c)").status == 2


@pytest.mark.parametrize("where", ["a/web:80", "b:10.168.0.2:8080"])
def test_a_port_is_reached_from_this_machine(testbed: Testbed, folder: Path, where: str) -> None:
    before = subprocess.run(["iptables-save"], capture_output=True, check=False).stdout
    words = [sys.executable, "-m", "testbed", "forward", "-l", LAB, where, "0", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=folder) as running:
        assert running.stdout is not None
        lines = [running.stdout.readline() for _ in range(6)]
        port = json.loads(b"".join(lines))["port"]
        try:
            for _ in range(3):
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as page:
                    assert json.load(page)["name"] == "web"
            with pytest.raises(OSError, match="refused"):
                socket.create_connection(("127.0.0.2", port), 5)
        finally:
            running.terminate()
    after = subprocess.run(["iptables-save"], capture_output=True, check=False).stdout
    assert re.sub(rb"#.*|\[.*", b"", after) == re.sub(rb"#.*|\[.*", b"", before)
    del testbed


def test_a_folder_goes_into_a_container_and_comes_back(testbed: Testbed, tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "deep").mkdir(parents=True)
    (site / "page").write_text("hello")
    (site / "page").chmod(0o640)
    (site / "link").symlink_to("/etc/hostname")
    fine(testbed("cp", str(site), "a/web:/tmp"))
    seen = fine(
        testbed("exec", "a/web", "stat", "-c", "%a %u %N", "/tmp/site/page", "/tmp/site/link")
    )
    assert re.findall(r"^(\d+) (\d+)", seen, re.MULTILINE) == [("640", "0"), ("777", "0")]
    fine(testbed("cp", "a/web:/tmp/site/.", str(tmp_path / "back")))
    assert (tmp_path / "back" / "page").read_text() == "hello"
    assert str((tmp_path / "back" / "link").readlink()) == "/etc/hostname"
    fine(testbed("cp", str(site / "page"), "a/web:/etc/hosts"))  # a mount point
    assert fine(testbed("exec", "a/web", "cat", "/etc/hosts")) == "hello"
    assert testbed("cp", str(site), "b:/usr").status == 4, "read-only"


def test_big_files_and_streams(testbed: Testbed, folder: Path, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(b"0123456789abcdef" * (1 << 20))
    fine(testbed("cp", str(big), "b:/tmp/"))
    fine(testbed("cp", "b:/tmp/big", str(tmp_path / "again")))
    assert (tmp_path / "again").read_bytes() == big.read_bytes()
    assert testbed("cp", "b:/etc/hosts", "-").status == 0
    listed = subprocess.run(["tar", "-tf", folder / "out"], capture_output=True, check=True)
    assert listed.stdout == b"hosts\n"


def test_a_dead_daemon_hides_no_container(testbed: Testbed, tmp_path: Path) -> None:
    """`fault kill` leaves the containers; only their daemon is dead."""
    fine(testbed("fault", "kill", "a/dockerd"))
    fine(testbed("cp", "a/web:/etc/passwd", str(tmp_path / "passwd")))
    assert "root" in (tmp_path / "passwd").read_text()
    assert testbed("logs", "a/web").status == 0
    fine(testbed("fault", "heal"))


def test_stop_start_and_restart(testbed: Testbed) -> None:
    fine(testbed("stop", "a/web", "a/dockerd", "b"))
    status = testbed("status", LAB)
    assert status.status == 1
    assert status.out.count("stopped by hand") == 3
    assert re.search(r"^  b +stopped by hand", status.out, re.MULTILINE)
    assert "a/dockerd a/web b" in status.out
    fine(testbed("start", "b"))
    assert testbed("status", LAB).status == 1, "the rest stays stopped"
    fine(testbed("start", "a/dockerd", "a/web"))
    fine(testbed("status", LAB))
    restarted = json.loads(fine(testbed("restart", "--json", "a/dockerd")))
    assert restarted["targets"][0]["affected"] == ["container web"]
    fine(testbed("up", "-l", LAB, "-q"))
    fine(testbed("exec", "b", "touch", "/tmp/changed"))
    fine(testbed("restart", "b"))
    assert testbed("exec", "b", "test", "-e", "/tmp/changed").status == 1, "it is a new machine"
    fine(testbed("status", LAB))


def test_logs_of_a_container_since_its_start(testbed: Testbed) -> None:
    fine(testbed("exec", "a", "docker", "run", "--name", "one", "nginx", "echo", "said"))
    assert fine(testbed("logs", "a/one", "--since", "10m")) == "said\n"
    rows = json.loads(fine(testbed("logs", "--json", "a/one", "a/dockerd")))
    assert {"log": "a/one", "line": "said"}.items() <= rows[0].items()
    fine(testbed("exec", "a", "docker", "rm", "one"))


def test_an_edited_file_is_compared_before_it_is_applied(testbed: Testbed, folder: Path) -> None:
    file = folder / "lab.yaml"
    assert testbed("diff", LAB).status == 0
    file.write_text(
        TEXT.replace("10.168.0.3}", "10.168.0.3}, sysctls: {net.ipv4.ip_default_ttl: 9}")
    )
    said = testbed("diff", str(file))
    assert said.status == 1
    assert "net.ipv4.ip_default_ttl: not set -> 9" in said.out
    up = fine(testbed("up", str(file))).splitlines()
    assert up[1:3] == said.out.splitlines()[1:]
    assert testbed("diff", LAB).status == 0
    fine(testbed("exec", "b", "ip", "link", "set", "eth0", "down"))
    assert "link b/eth0: restored (down)" in testbed("diff", LAB).out
    fine(testbed("up", str(file), "-q"))


def test_a_saved_lab_is_saved_as_the_same(testbed: Testbed, folder: Path) -> None:
    """`up` of the file, under another name, gives the same file again."""
    for line in (
        "b ip route add 10.9.0.0/16 via 10.168.0.2 metric 7",
        "b ip route add default via 10.168.0.2 table 77",
        "b ip -6 route add blackhole fd09::/64",
        "b ip rule add from 10.168.0.3 lookup 77",
        "b sysctl -qw net.ipv4.conf.eth0.rp_filter=2 net.ipv4.ip_forward=1",
        "b ip address add 10.168.0.33/24 dev eth0",
        "a docker network create --subnet 172.30.0.0/24 front",
        "a docker run -d --name other --network front --ip 172.30.0.10 -e A=b -p 8081:80 nginx",
        "a docker rm -f web",
    ):
        fine(testbed("exec", *line.split()))
    fine(testbed("fault", "loss", "a:b", "20%"))
    out = folder / "saved.yaml"
    fine(testbed("save", LAB, "-o", str(out)))
    text = out.read_text()
    assert "cannot say" not in text
    fine(testbed("plan", str(out)))
    try:
        fine(testbed("up", str(out), "--name", "say-hands-again", "-q"))
        again = fine(testbed("save", "say-hands-again"))
    finally:
        testbed("down", "say-hands-again", "-q")
    assert again.replace("say-hands-again", LAB) == text
    for word in ("rp_filter: 2", "forward: true", "fd09::/64", "10.168.0.33", "172.30.0.10",
                 "saved-1: loss a:b 20%"):  # fmt: skip
        assert word in text
    assert "web:" not in text

"""Namespace nodes on this machine: the common contract, and what is theirs alone."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest

from testbed.artifacts import Store
from testbed.errors import CommandError, LabError, NoSuchNode
from testbed.nodes.base import Node, NodeSpec, Provider, Service
from testbed.nodes.netns import cgroups, find
from testbed.nodes.netns.provider import BUSY_SECONDS, NetnsProvider
from testbed.process import run, which
from testbed.testing.provider import PYTHON, ProviderContract, spec, until
from testbed.testing.terminal import TerminalContract

if TYPE_CHECKING:
    from testbed.nodes.netns.node import NetnsNode
    from testbed.topology import Topology

LAB = "contract"


@pytest.fixture(scope="session")
def init() -> Path:
    return Store().binary("testbed-init")


@pytest.fixture
def provider(state: Path, init: Path) -> Iterator[NetnsProvider]:
    provider = NetnsProvider(state, lambda: init)
    yield provider
    for lab in provider.labs():
        provider.destroy(lab)


def mounts(node: Node) -> list[str]:
    return node.run(["cat", "/proc/self/mountinfo"]).stdout.splitlines()


def groups(lines: list[str]) -> set[str]:
    """The peer groups of mounts that mountinfo tells (mount_namespaces(7)), of both roles."""
    optional = [word for line in lines for word in line.split(" - ")[0].split()[6:]]
    return {word.partition(":")[2] for word in optional if ":" in word}


def another(provider: Provider) -> NetnsProvider:
    assert isinstance(provider, NetnsProvider)
    return NetnsProvider(provider._state, provider._init)


class TestContract(ProviderContract):
    def again(self, provider: Provider) -> Provider:
        return another(provider)

    @pytest.fixture
    def provider(self, state: Path, init: Path) -> Iterator[Provider]:
        provider = NetnsProvider(state, lambda: init)
        yield provider
        for lab in provider.labs():
            provider.destroy(lab)


ASK = "{ tty; stty size; } > /tmp/asked.new; mv /tmp/asked.new /tmp/asked; read -r line"


@pytest.fixture(scope="module")
def made(init: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetnsProvider]:
    """A node that all tests of terminals share."""
    provider = NetnsProvider(tmp_path_factory.mktemp("terminal"), lambda: init)
    provider.create_one(LAB, spec("node1"))
    yield provider
    provider.destroy(LAB)


class TestTerminal(TerminalContract):
    @pytest.fixture
    def node(self, made: NetnsProvider) -> Node:
        return made.nodes(LAB)["node1"]

    def test_the_node_has_the_terminal_as_a_file(self, node: Node) -> None:
        with self.attach(node, ["sh", "-c", "tty; read -r line"]) as user:
            name = user.see(b"\n").decode().strip()
            assert node.run(["sh", "-c", 'test -c "$1" && echo shown > "$1"', "sh", name]).ok
            user.see(b"shown")
            user.press(b"\r")
            assert user.end() == 0

    @pytest.mark.parametrize(
        ("program", "argv"),
        [
            ("tmux", ["tmux", "new-session"]),
            ("script", ["script", "-qe", "/dev/null", "-c"]),
            ("sudo", ["sudo", "-u", "nobody", "sh", "-c"]),
            ("screen", ["screen", "-c", "/dev/null", "sh", "-c"]),
        ],
    )
    def test_programs_that_make_terminals(self, node: Node, program: str, argv: list[str]) -> None:
        if which(program) is None:
            pytest.skip(f"this machine has no {program}")
        node.run(["rm", "-f", "/tmp/asked"])
        with self.attach(node, ["env", "TERM=xterm", *argv, ASK]) as user:
            assert until(lambda: node.run(["test", "-e", "/tmp/asked"], check=False).ok, 120)
            name, size = node.get("/tmp/asked").decode().splitlines()
            assert re.fullmatch(r"/dev/pts/\d+", name)
            assert size in {"31 97", "30 97"}  # tmux has a line of its own
            user.press(b"\r")
            assert user.end() == 0, user.seen

    def test_who_and_others_find_a_file_of_logins(self, node: Node) -> None:
        assert node.run(["who", "/run/utmp"]).ok

    def test_a_node_that_ends(self, node: Node, made: NetnsProvider) -> None:
        other = made.create_one(LAB, spec("node2"))
        with self.attach(other, ["sh", "-c", "echo ready; sleep 999"]) as user:
            user.see(b"ready")
            made.destroy(LAB, ["node2"])
            assert user.end() == 4
            assert b"node2" in user.seen
        assert node.run(["true"]).ok


class TestNetns:
    """A node is a machine as far as the kernel can make one."""

    topology = ProviderContract.topology

    @pytest.fixture
    def node(self, provider: NetnsProvider, topology: Topology) -> NetnsNode:
        provider.create_fabric(LAB, topology)
        return provider.create_one(LAB, spec("node1"))

    # -- what is private ----------------------------------------------------

    @pytest.mark.parametrize("folder", ["/etc", "/run", "/tmp", "/var/tmp", "/var/lib", "/var/log"])
    def test_folders_of_its_own(self, node: Node, folder: str) -> None:
        name = f"testbed-live-{os.getpid()}"
        node.put(b"node's", f"{folder}/{name}")
        assert not Path(folder, name).exists()
        Path("/tmp", name).write_text("host's", encoding="utf-8")
        try:
            assert node.get(f"{folder}/{name}") == b"node's"
        finally:
            Path("/tmp", name).unlink()

    @pytest.mark.parametrize("path", ["/usr/x", "/root/x", "/x", "/home/x", "/opt/x", "/srv/x"])
    def test_the_machines_files_cannot_be_written(self, node: Node, path: str) -> None:
        with pytest.raises(OSError, match="Read-only"):
            node.put(b"", path)
        assert not node.run(["touch", path], check=False).ok
        assert not Path(path).exists()

    def test_nor_through_a_link(self, node: Node, tmp_path: Path) -> None:
        here = tmp_path / "precious"
        here.write_text("host's", encoding="utf-8")
        node.put(b"", f"{tmp_path}/x")
        node.run(["ln", "-s", str(here), "/run/link"])
        node.put(b"node's", "/run/link")
        assert here.read_text(encoding="utf-8") == "host's"
        assert node.get("/run/link") == b"node's"
        # A link to a folder of the machine: what is there on the node is the node's own.
        node.run(["ln", "-s", str(tmp_path), "/run/folder"])
        node.put(b"node's", "/run/folder/precious")
        assert here.read_text(encoding="utf-8") == "host's"
        node.run(["ln", "-s", "/usr", "/run/usr"])
        with pytest.raises(OSError, match="Read-only"):
            node.put(b"", "/run/usr/x")

    @pytest.mark.parametrize("path", ["kernel/hostname", "vm/swappiness", "kernel/core_pattern"])
    def test_sysctls_outside_net_cannot_be_set(self, node: Node, path: str) -> None:
        before = Path("/proc/sys", path).read_text(encoding="utf-8")
        assert not node.run(["sh", "-c", f"echo 1 > /proc/sys/{path}"], check=False).ok
        assert Path("/proc/sys", path).read_text(encoding="utf-8") == before

    def test_sysctls_of_net_are_its_own(self, node: Node) -> None:
        before = Path("/proc/sys/net/ipv4/ip_forward").read_text(encoding="utf-8")
        for value in ("1", "0", "1"):
            node.run(["sysctl", "-q", "-w", f"net.ipv4.ip_forward={value}"])
            assert node.get("/proc/sys/net/ipv4/ip_forward").decode().strip() == value
            assert Path("/proc/sys/net/ipv4/ip_forward").read_text(encoding="utf-8") == before

    def test_a_host_name_of_its_own(self, node: Node) -> None:
        before = socket.gethostname()
        assert node.run(["hostname"]).stdout.strip() == "node1"
        node.run(["hostname", "changed"])
        assert socket.gethostname() == before

    def test_processes_of_its_own(self, node: Node) -> None:
        pids = node.run(["sh", "-c", "cd /proc; echo [0-9]*"]).stdout.split()
        assert "1" in pids
        assert len(pids) <= 3  # pid 1, the shell, and none else
        assert node.get("/proc/1/comm") == b"testbed-init\n"

    def test_every_command_leads_a_session(self, node: Node) -> None:
        # Otherwise a shell on a terminal has no job control.
        for _ in range(20):
            fields = node.run(["sh", "-c", "read -r line < /proc/self/stat; echo $line"])
            words = fields.stdout.split()
            assert words[0] == words[4] == words[5]

    def test_no_device_of_the_machine(self, node: Node) -> None:
        blocks = node.run(["find", "/dev", "-type", "b"]).stdout
        assert blocks == ""
        assert node.run(["head", "-c", "1", "/dev/zero"]).out == b"\0"

    def test_no_link_but_its_own(self, node: Node) -> None:
        links = node.run(["ip", "-j", "link"]).json()
        assert [link["ifname"] for link in links] == ["lo"]
        assert node.run(["ip", "route"]).stdout == ""

    # -- mounts -------------------------------------------------------------

    def test_mounts_are_shared_within_the_node_as_systemd_makes_them(self, node: Node) -> None:
        """Mounts are shared as a Pod with Bidirectional or HostToContainer mounts asks."""
        for line in mounts(node):
            assert "shared:" in line, line
        for kind, seen in (("slave", "in"), ("shared", "in"), ("private", "")):
            # One who has mounts of his own: a container. Below /mnt, which is the root's.
            script = f"""
            set -e
            mount -t tmpfs testbed /mnt
            mkdir /mnt/in /mnt/out
            mkfifo /mnt/go /mnt/done
            unshare --mount --propagation {kind} sh -c '
                mount -t tmpfs theirs /mnt/out
                : > /mnt/done
                : < /mnt/go
                findmnt -n -o SOURCE /mnt/in > /mnt/seen || :
                : > /mnt/done' &
            : < /mnt/done
            mount -t tmpfs ours /mnt/in
            : > /mnt/go
            : < /mnt/done
            wait
            echo "$(cat /mnt/seen) $(findmnt -n -o SOURCE /mnt/out)"
            umount --recursive /mnt
            """
            said = node.run(["sh", "-c", script]).stdout.strip("\n")
            assert said == f"{'ours' if seen else ''} {'theirs' if kind == 'shared' else ''}", kind

    def test_nobody_outside_shares_them(self, node: Node, provider: NetnsProvider) -> None:
        """Neither this machine nor another node is of the peer group of any of its mounts."""
        other = provider.create_one(LAB, spec("node2"))
        ours = groups(Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines())
        mine, others = groups(mounts(node)), groups(mounts(other))
        assert mine
        assert others
        assert not mine & ours
        assert not mine & others
        assert not others & ours

    # -- the fabric ---------------------------------------------------------

    def test_nodes_reach_each_other_and_nothing_else(
        self, provider: NetnsProvider, topology: Topology
    ) -> None:
        before = run(["ip", "-j", "link"]).stdout, run(["ip", "-j", "route"]).stdout
        provider.create_fabric(LAB, topology)
        nodes = {name: provider.create_one(LAB, spec(name)) for name in topology.nodes}
        for node in nodes.values():
            provider.connect(LAB, topology, node)
        ping = ["ping", "-n", "-c", "1", "-W"]
        assert nodes["node1"].run([*ping, "60", "10.168.0.3"], check=False).ok
        assert not nodes["node2"].run([*ping, "2", "10.169.0.2"], check=False).ok  # not on wan
        assert nodes["node1"].run([*ping, "60", "10.168.0.1"], check=False).ok
        nobody = "192.0.2.1"  # RFC 5737
        assert not nodes["outside"].run([*ping, "2", nobody], check=False).ok
        assert nodes["outside"].run(["ip", "route", "show", "default"]).stdout == ""
        assert "10.168.0.1" in nodes["node1"].run(["ip", "route", "show", "default"]).stdout
        fabric = provider.fabric(LAB)
        assert fabric is not None
        assert fabric.run(["ip", "route"]).stdout == ""
        links = {link["ifname"] for link in fabric.run(["ip", "-j", "link"]).json()}
        assert links == {"lo", "br-lan", "br-wan", "node1", "node1.1", "node2", "outside"}
        assert (run(["ip", "-j", "link"]).stdout, run(["ip", "-j", "route"]).stdout) == before

    def test_addresses_as_the_topology_says(
        self, provider: NetnsProvider, node: NetnsNode, topology: Topology
    ) -> None:
        provider.connect(LAB, topology, node)
        links = {link["ifname"]: link for link in node.run(["ip", "-j", "-4", "addr"]).json()}
        found = {
            name: [(a["local"], a["prefixlen"]) for a in link["addr_info"]]
            for name, link in links.items()
        }
        assert found == {
            "lo": [("127.0.0.1", 8)],
            "eth0": [("10.168.0.2", 24)],
            "eth1": [("10.169.0.2", 24)],
        }
        assert node.get("/etc/hostname") == b"node1\n"

    def test_a_node_made_anew_is_reached_at_once(
        self, provider: NetnsProvider, topology: Topology
    ) -> None:
        provider.create_fabric(LAB, topology)
        nodes = {name: provider.create_one(LAB, spec(name)) for name in ("node1", "node2")}
        for node in nodes.values():
            provider.connect(LAB, topology, node)
        ping = ["ping", "-n", "-c", "1", "-W", "60", "10.168.0.2"]
        assert nodes["node2"].run(ping, check=False).ok
        provider.destroy(LAB, ["node1"])
        provider.connect(LAB, topology, provider.create_one(LAB, spec("node1")))
        # Its peers' ARP caches are right still.
        assert nodes["node2"].run(ping, check=False).ok

    def test_connections_end_with_their_lab(
        self, provider: NetnsProvider, topology: Topology
    ) -> None:
        """The kernel would go on trying to close those that are cut off, for minutes."""
        provider.create_fabric(LAB, topology)
        nodes = {name: provider.create_one(LAB, spec(name)) for name in ("node1", "node2")}
        for node in nodes.values():
            provider.connect(LAB, topology, node)
        with (
            Path(f"/proc/{nodes['node1'].init.pid}/ns/net").open() as first,
            Path(f"/proc/{nodes['node2'].init.pid}/ns/net").open() as second,
            nodes["node1"].spawn([PYTHON, "-S", "-c", ACCEPTS]) as one,
            nodes["node2"].spawn([PYTHON, "-S", "-c", CONNECTS]) as two,
        ):
            assert until(lambda: one.out == two.out == b"40\n", 120), one.err + two.err
            provider.destroy(LAB)
            assert until(lambda: closing(first) + closing(second) < 20, 30)

    def test_only_a_gateway_forwards(self, provider: NetnsProvider, topology: Topology) -> None:
        provider.create_fabric(LAB, topology)
        for name, forwards in (("outside", b"1\n"), ("node2", b"0\n")):
            node = provider.create_one(LAB, spec(name))
            provider.connect(LAB, topology, node)
            assert node.get("/proc/sys/net/ipv4/ip_forward") == forwards

    def test_what_runs_on_a_node_ignores_no_signal(self, provider: NetnsProvider) -> None:
        """Even where who made it does, as after nohup(1), which execve(2) hands on."""
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            node = provider.create_one(LAB, spec("node1"))
        finally:
            signal.signal(signal.SIGHUP, before)
        node.start(Service("daemon", ("sleep", "60")))
        pid = node.services()["daemon"].pid
        assert until(lambda: node.get(f"/proc/{pid}/comm") == b"sleep\n")  # it may be pid 1's copy
        status = ["grep", "SigIgn:", "/proc/self/status", f"/proc/{pid}/status"]
        found = [line.split()[-1] for line in node.run(status).stdout.splitlines()]
        assert [int(mask, 16) for mask in found] == [0, 0]

    # -- limits -------------------------------------------------------------

    def test_limits_are_set(self, provider: NetnsProvider, topology: Topology) -> None:
        provider.create_fabric(LAB, topology)
        provider.create_one(LAB, NodeSpec("node1", "d", cpus=0.5, memory=64 << 20))
        folder = cgroups.folder_name(LAB, provider._state)
        seen = {}
        for hierarchy in cgroups.hierarchies():
            for file in (
                "cpu.max",
                "cpu.cfs_quota_us",
                "memory.max",
                "memory.limit_in_bytes",
            ):
                path = hierarchy.mount / "testbed" / folder / "node1" / file
                if path.exists():
                    seen[file.partition(".")[0]] = path.read_text(encoding="utf-8").split()[0]
        assert seen == {"cpu": "50000", "memory": str(64 << 20)}

    def test_memory_beyond_the_limit_is_not_had(
        self, provider: NetnsProvider, topology: Topology
    ) -> None:
        provider.create_fabric(LAB, topology)
        node = provider.create_one(LAB, NodeSpec("node1", "d", memory=64 << 20))
        eat = ["/usr/bin/python3", "-S", "-c", "x = bytearray(256 << 20); print(len(x))"]
        assert node.run(eat, check=False).status == -signal.SIGKILL
        assert node.run(["true"]).ok

    def test_a_node_that_could_not_be_made_leaves_no_folder(
        self, state: Path, topology: Topology, tmp_path: Path
    ) -> None:
        provider = NetnsProvider(state, lambda: Path("/bin/false"))
        with pytest.raises(CommandError):
            provider.create_one(LAB, spec("node1"))
        assert provider.labs() == []

    # -- the end ------------------------------------------------------------

    def test_all_of_a_node_ends_with_its_pid_1(
        self, provider: NetnsProvider, node: NetnsNode
    ) -> None:
        running = node.spawn(["sleep", "71"])
        (mine,) = [i for i in find.inits() if i.state == str(provider._state) and i.kind == "node"]
        sleeper = mine_children(mine.pid, "sleep")
        mine.kill()
        assert mine.wait_dead(60)
        assert until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in sleeper))
        assert provider.nodes(LAB) == {}
        with pytest.raises(NoSuchNode):
            running.wait(60)
        assert provider.labs() == [LAB]  # the fabric and the cgroup are there still
        provider.destroy(LAB)
        assert provider.labs() == []

    def test_destroy_leaves_no_process_folder_or_mount(
        self, provider: NetnsProvider, topology: Topology
    ) -> None:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8")
        provider.create_fabric(LAB, topology)
        pids = []
        for name in ("node1", "node2"):
            node = provider.create_one(LAB, spec(name))
            node.spawn(["setsid", "sleep", "72"])
            node.run(["mkdir", "-p", "/sys/fs/cgroup/memory/deep/deeper"], check=False)
            node.run(["mount", "-t", "tmpfs", "none", "/mnt"])
            pids.append(node.init.pid)
        provider.destroy(LAB)
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists() and not zombie(pid)]
        folder = cgroups.folder_name(LAB, provider._state)
        assert not [h for h in cgroups.hierarchies() if (h.mount / "testbed" / folder).exists()]
        assert Path("/proc/self/mounts").read_text(encoding="utf-8") == mounts
        assert not [i for i in find.inits() if i.state == str(provider._state)]

    def test_a_node_of_that_name_and_another_kind_is_anothers(
        self, provider: NetnsProvider, init: Path, topology: Topology
    ) -> None:
        cells = NetnsProvider(provider._state, lambda: init, kind="cell")
        provider.create_fabric(LAB, topology)
        cell = cells.create_one(LAB, spec("node1"))
        began = time.monotonic()
        provider.destroy(LAB, ["node1"])  # nor is its cgroup waited for
        assert time.monotonic() - began < BUSY_SECONDS
        assert (provider.found(LAB), list(cells.found(LAB))) == ({}, ["node1"])
        assert cell.run(["true"]).ok
        cells.destroy(LAB, ["node1"])
        node = provider.create_one(LAB, spec("node1"))
        cells.destroy(LAB, ["node1"])
        assert node.run(["true"]).ok

    def test_a_lab_of_another_state_folder_is_not_seen(
        self, provider: NetnsProvider, node: Node, init: Path, tmp_path: Path
    ) -> None:
        other = NetnsProvider(tmp_path / "other", lambda: init)
        assert other.labs() == []
        assert other.nodes(LAB) == {}
        other.destroy(LAB)
        assert node.run(["true"]).ok

    @pytest.mark.parametrize("after", [0.0, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032])
    def test_whoever_is_killed_leaves_whole_nodes_or_none(
        self, provider: NetnsProvider, topology: Topology, init: Path, after: float
    ) -> None:
        provider.create_fabric(LAB, topology)
        child = subprocess.Popen(
            [sys.executable, "-c", MAKER, str(provider._state), str(init)],
            stdout=subprocess.PIPE,
        )
        assert child.stdout
        child.stdout.readline()  # it makes nodes from now on
        time.sleep(0.02 + after)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()

        def all_whole() -> bool:
            nodes = provider.nodes(LAB)
            assert nodes
            with contextlib.suppress(NoSuchNode):  # one that was not whole is dying now
                return all(n.run(["hostname"]).stdout.strip() == n.name for n in nodes.values())
            return False

        assert until(all_whole)
        provider.destroy(LAB)
        assert provider.labs() == []

    def test_a_node_can_be_asked_while_others_are_made_and_removed(
        self, provider: NetnsProvider, node: NetnsNode
    ) -> None:
        stop = threading.Event()

        def churn() -> None:
            while not stop.is_set():
                provider.create_one(LAB, spec("node9"))
                provider.destroy(LAB, ["node9"])

        thread = threading.Thread(target=churn)
        thread.start()
        try:
            for _ in range(50):
                assert "node1" in provider.nodes(LAB)
                assert node.run(["true"]).ok
        finally:
            stop.set()
            thread.join()

    def test_a_limit_that_cannot_be_set_is_said_and_leaves_nothing(
        self, provider: NetnsProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        all_of_them = cgroups.hierarchies()
        some = [h for h in all_of_them if "memory" not in h.controllers and h.version == 1]
        if not some:
            pytest.skip("this machine has no cgroup v1 hierarchy without memory")
        monkeypatch.setattr(cgroups, "hierarchies", lambda: some)
        with pytest.raises(LabError, match="memory"):
            provider.create_one(LAB, NodeSpec("node1", "d", memory=64 << 20))
        monkeypatch.undo()
        assert provider.labs() == []


MAKER = """
import sys
from pathlib import Path
from testbed.nodes.base import NodeSpec
from testbed.nodes.netns.provider import BUSY_SECONDS, NetnsProvider

provider = NetnsProvider(Path(sys.argv[1]), lambda: Path(sys.argv[2]))
provider.create_one("contract", NodeSpec("first", "d"))
print("begun", flush=True)
for i in range(1000):
    provider.create_one("contract", NodeSpec(f"n{i}", "d"))
"""


#: Forty connections from node2 to node1.
ACCEPTS = """
import socket, time
server = socket.create_server(("", 7000), backlog=64)
kept = [server.accept() for _ in range(40)]
print(len(kept), flush=True)
time.sleep(600)
"""
CONNECTS = """
import socket, time
kept = []
while len(kept) < 40:
    try:
        kept.append(socket.create_connection(("10.168.0.2", 7000)))
    except ConnectionRefusedError:
        time.sleep(0.01)
print(len(kept), flush=True)
time.sleep(600)
"""


def closing(namespace: IO[str]) -> int:
    """The TCP connections of a network namespace whose end the other side has not confirmed."""
    enter = f"--net=/proc/{os.getpid()}/fd/{namespace.fileno()}"
    table = run(["nsenter", enter, "cat", "/proc/net/tcp"]).stdout.splitlines()[1:]
    states = {"04", "09", "0B"}  # FIN_WAIT1, LAST_ACK, CLOSING (include/net/tcp_states.h)
    return sum(line.split()[3] in states for line in table)


def mine_children(pid: int, program: str) -> list[int]:
    """The children of a process that run a program, as this machine numbers them."""
    found: list[int] = []

    def look() -> bool:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
        for word in words:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{word}/comm").read_text(encoding="utf-8").strip() == program:
                    found.append(int(word))
        return bool(found)

    assert until(look)
    return found


def zombie(pid: int) -> bool:
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
            == "Z"
        )
    except OSError:
        return True


def test_a_node_that_is_tied_ends_with_its_maker_however_that_ends(state: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from testbed.artifacts import Store; from testbed.nodes.base import NodeSpec\n"
        "from testbed.nodes.netns.provider import NetnsProvider\n"
        "made = NetnsProvider(Path(sys.argv[1]), lambda: Store().binary('testbed-init'))\n"
        "made.create_one('tied', NodeSpec('free', '-'))\n"
        "made.create_tied('tied', NodeSpec('tied', '-')).spawn(['sleep', '600'])\n"
        "print('made', flush=True); time.sleep(600)\n"
    )
    provider = NetnsProvider(state, lambda: Store().binary("testbed-init"))
    argv = [sys.executable, "-c", code, str(state)]
    try:
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as maker:
            assert maker.stdout
            assert maker.stdout.readline() == b"made\n"
            assert sorted(provider.found("tied")) == ["free", "tied"]
            tied = provider.found("tied")["tied"]
            maker.send_signal(signal.SIGKILL)
        assert tied.init.wait_dead(30)
        assert sorted(provider.found("tied")) == ["free"]
    finally:
        provider.destroy("tied")
    assert "tied" not in provider.labs()

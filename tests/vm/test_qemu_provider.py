"""Virtual machines of QEMU: how they come, are found and go, and what is theirs alone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest
from cells import CellContract
from machines import make

from testbed import machine_state
from testbed.artifacts import Store
from testbed.errors import LabError, MachineError, NodeNotRunning, ServiceError
from testbed.nodes.base import Service
from testbed.nodes.netns import find
from testbed.nodes.netns.provider import NetnsProvider
from testbed.nodes.qemu import cell as cells
from testbed.nodes.qemu import machine as machines
from testbed.nodes.qemu.command import Hardware
from testbed.nodes.qemu.provider import QemuProvider
from testbed.process import run
from testbed.testing.machine import LAB, Pair, two_machines
from testbed.testing.provider import TWO, FleetContract, spec, until
from testbed.topology import load_text

if TYPE_CHECKING:
    from testbed.nodes.base import Provider
    from testbed.nodes.netns.node import NetnsNode


@pytest.fixture
def provider(state: Path) -> Iterator[QemuProvider]:
    provider = make(state)
    yield provider
    for lab in provider.labs():
        provider.destroy(lab)


@pytest.mark.seconds(3)
class TestFleet(FleetContract):
    skips: ClassVar[Mapping[str, str]] = {
        "test_many_nodes_are_made_at_once": "eight machines, and nothing that two do not show",
        "test_a_node_is_removed_and_joined_again_at_once": "eight boots; below it is done once",
    }

    def again(self, provider: Provider) -> Provider:
        del provider
        return make(Path(os.environ["TESTBED_STATE"]))

    @pytest.fixture
    def provider(self, state: Path) -> Iterator[Provider]:
        provider = make(state)
        yield provider
        for lab in provider.labs():
            provider.destroy(lab)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    yield from two_machines(make(tmp_path_factory.mktemp("pair") / "state"))


class TestMachines(CellContract):
    kind: ClassVar[find.Kind] = "cell"


@pytest.mark.seconds(8)
class TestBadLuck:
    def cell(self, provider: QemuProvider) -> NetnsNode:
        return provider.cells.found(LAB)["node1"]

    @pytest.mark.parametrize("how", ["panic", "killed"])
    def test_a_machine_that_ends_by_itself_is_told_and_is_made_anew(
        self, provider: QemuProvider, how: str
    ) -> None:
        provider.create_fabric(LAB, load_text(TWO, "contract.yaml"))
        node = provider.create_one(LAB, spec("node1"))
        running = node.spawn(["sleep", "600"])
        if how == "panic":
            node.spawn(["sh", "-c", "echo c > /proc/sysrq-trigger"])
            words = "Kernel panic"
        else:
            cell = self.cell(provider)
            cell.run(["kill", "-KILL", str(cell.services()[cells.SERVICE].pid)])
            words = "QEMU: signal 9"
        # It hangs up in no way: only a look at QEMU can tell.
        with pytest.raises(NodeNotRunning) as caught:
            running.wait(60)
        assert (caught.value.name, words in caught.value.output) == ("node1", True)
        with pytest.raises(NodeNotRunning) as caught:
            node.run(["true"])
        assert words in caught.value.output
        assert provider.nodes(LAB) == {}
        assert words in provider.ended(LAB)["node1"]
        assert provider.labs() == [LAB]
        assert provider.create_one(LAB, spec("node1")).run(["true"]).ok
        assert provider.ended(LAB) == {}

    def test_a_shell_ends_with_the_machine(self, provider: QemuProvider, state: Path) -> None:
        provider.create_fabric(LAB, load_text(TWO, "contract.yaml"))
        provider.create_one(LAB, spec("node1"))
        code = (
            "import sys; from pathlib import Path; from machines import make\n"
            "node = make(Path(sys.argv[1])).nodes('contract')['node1']\n"
            "node.attach(['sh', '-c', 'tty; sleep 600'], tty=True)\n"
        )
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        ours, theirs = os.openpty()
        argv = [sys.executable, "-c", code, str(state)]
        with subprocess.Popen(argv, env=env, stdin=theirs, stdout=theirs, stderr=theirs) as user:
            os.close(theirs)
            seen = b""
            while b"/dev/pts/" not in seen:
                seen += os.read(ours, 1024)
            cell = self.cell(provider)
            cell.run(["kill", "-KILL", str(cell.services()[cells.SERVICE].pid)])
            with contextlib.suppress(OSError):  # the terminal ends with its last user
                while more := os.read(ours, 1024):
                    seen += more
            user.wait(60)
        os.close(ours)
        assert b"node1 of lab contract has ended" in seen

    def test_a_maker_that_is_killed_leaves_what_down_removes_and_up_makes_anew(
        self, provider: QemuProvider, state: Path
    ) -> None:
        code = (
            "import sys; from pathlib import Path; from machines import make\n"
            "from testbed.testing.provider import TWO, spec\n"
            "from testbed.topology import load_text\n"
            "provider = make(Path(sys.argv[1]))\n"
            "provider.create_fabric('contract', load_text(TWO, 'contract.yaml'))\n"
            "provider.create_one('contract', spec('node1'))\n"
        )
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        maker = subprocess.Popen([sys.executable, "-c", code, str(state)], env=env)
        try:
            assert until(lambda: "node1" in provider.cells.found(LAB), 60)
        finally:
            maker.send_signal(signal.SIGKILL)
            maker.wait()
        assert provider.labs() == [LAB]
        assert provider.nodes(LAB) == {}  # it never answered
        provider.destroy(LAB)
        assert provider.labs() == []
        state_of = [init.state for init in find.inits()]
        assert str(state.resolve()) not in state_of

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [("initramfs", "Kernel panic"), ("disk.qcow2", r"cannot mount the disk.*Kernel panic")],
    )
    def test_with_a_box_that_is_broken_the_console_says_why(
        self, provider: QemuProvider, tmp_path: Path, wrong: str, words: str
    ) -> None:
        store = Store()
        other = NetnsProvider(
            tmp_path / "s",
            lambda: store.binary("testbed-init"),
            lambda: [*store.folders, tmp_path],
            kind="cell",
        )
        parts = provider.parts()
        empty = tmp_path / "box"
        empty.mkdir()
        for name in {"disk.qcow2", "vmlinuz", "initramfs", "manifest.json"} - {wrong}:
            (empty / name).symlink_to(parts.box.folder / name)
        (empty / wrong).write_bytes(b"")
        if wrong == "disk.qcow2":
            run(["qemu-img", "create", "-q", "-f", "qcow2", empty / wrong, "64M"])
        try:
            cell = other.create_one(LAB, spec("node1"))
            bad = machines.Parts(
                parts.qemu, parts.acceleration, type(parts.box)(empty), parts.agent
            )
            with pytest.raises(ServiceError, match=rf"(?s)ended .*{words}"):
                machines.boot(cell, Hardware.of(spec("node1")), bad)
        finally:
            other.destroy(LAB)


def booting(state: Path) -> bool:
    """Tell whether the machine of a snapshot runs in its cell."""
    ours = [init for init in find.inits() if init.state == str(state.resolve())]
    return any(init.node.startswith("snapshot.") for init in ours)


@pytest.mark.long
class TestFirstUp:
    """A snapshot in the making: its machine goes with who makes it, and he can be interrupted."""

    # An amount of memory that nobody else asks for: its snapshot is not there.
    TOPOLOGY = """
name: first
networks: {lan: {subnet: 10.168.0.0/24}}
nodes:
  node1: {networks: {lan: 10.168.0.2}, memory: 555M}
"""

    @pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_one_that_is_ended_leaves_nothing_that_runs(
        self, state: Path, tmp_path: Path, sent: signal.Signals
    ) -> None:
        before = machine_state.snapshot(tmp_path)
        file = tmp_path / "first.yaml"
        file.write_text(self.TOPOLOGY, encoding="utf-8")
        kept = set(Store().folder.glob("vm-snapshot-*"))
        argv = [sys.executable, "-m", "testbed", "up", str(file), "--provider", "qemu"]
        with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as child:
            assert until(lambda: booting(state) or child.poll() is not None, 600)
            assert booting(state)
            child.send_signal(sent)
            status = child.wait(timeout=600)
        assert status == (-sent if sent == signal.SIGKILL else 128 + sent)
        ours = [init for init in find.inits() if init.state == str(state.resolve())]
        assert all(init.wait_dead(10) for init in ours)
        # Killed it leaves empty cgroups, by which `down` knows that there was something.
        left = [sys.executable, "-m", "testbed", "down", "--all"]
        assert ("first" in run(left, timeout=60).stdout) == (sent == signal.SIGKILL)
        assert machine_state.left(before, seconds=60, below=tmp_path) == []
        assert set(Store().folder.glob("vm-snapshot-*")) <= kept


#: A server that returns what it reads, and a client that counts on one connection.
ECHO = """
import socket
with socket.create_server(("", 7000)) as server:
    far = server.accept()[0]
    while data := far.recv(64):
        far.sendall(data)
"""
COUNT = """
import itertools, pathlib, socket, sys, time
with socket.create_connection((sys.argv[1], 7000)) as far:
    for number in itertools.count():
        far.sendall(b"%d\\n" % number)
        assert far.recv(64) == b"%d\\n" % number
        pathlib.Path("/run/count").write_text(str(number))
        time.sleep(0.05)
"""


@pytest.mark.seconds(12)
class TestSnapshots:
    def test_machines_return_together_with_the_connection_between_them(self, pair: Pair) -> None:
        provider, (client, server) = pair

        def count() -> int:
            return int(client.get("/run/count") or b"0")

        server.start(Service("echo", ("python3", "-c", ECHO)))
        assert until(lambda: server.run(["ss", "-Htln", "sport", "7000"]).out)
        client.start(Service("count", ("python3", "-c", COUNT, "10.168.0.3")))
        assert until(lambda: client.run(["test", "-s", "/run/count"], check=False).ok)
        names = [client.name, server.name]
        provider.snapshot(LAB, names, "first")
        before = count()
        client.stop("count")
        assert until(lambda: server.services()["echo"].state == "dead")
        provider.revert(LAB, names, "first")
        try:
            assert until(lambda: count() > before + 20)
            assert {one.services()[name].state for one, name in
                    ((client, "count"), (server, "echo"))} == {"ready"}  # fmt: skip
            clocks = [float(one.run(["date", "+%s"]).stdout) for one in (client, server)]
            assert all(abs(clock - time.time()) < 30 for clock in clocks)
            drawn = [one.run(["head", "-c16", "/dev/urandom"]).out for one in (client, server)]
            assert drawn[0] != drawn[1]
        finally:
            client.stop("count")
            provider.drop_snapshot(LAB, names, "first")

    def test_if_one_cannot_be_saved_none_is_and_all_go_on(
        self, pair: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        provider, nodes = pair
        names = [one.name for one in nodes]
        provider.snapshot(LAB, names[:1], "taken")  # QEMU refuses the name a second time
        with pytest.raises(LabError):
            provider.snapshot(LAB, names, "taken")
        assert provider.snapshots(LAB)[names[1]] == []
        for one in nodes:
            one.run(["true"])
        for name in names:
            assert [one.name for one in provider.snapshots(LAB)[name]] in ([], ["taken"])
        monkeypatch.setattr("testbed.memory.available", lambda: 1 << 20)
        with pytest.raises(MachineError, match="memory"):
            provider.snapshot(LAB, names, "other")

    def test_a_machine_that_a_killed_snapshot_has_halted_goes_on(self, pair: Pair) -> None:
        provider, nodes = pair
        names = [one.name for one in nodes]
        assert isinstance(provider, QemuProvider)
        assert provider.recover(LAB, names) == []
        with machines.monitor_of(provider.cells.found(LAB)[names[0]]) as monitor:
            monitor.do("stop")
        assert provider.recover(LAB, names) == names[:1]
        for one in nodes:
            one.run(["true"])

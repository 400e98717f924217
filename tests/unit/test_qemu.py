"""Virtual machines without QEMU: command lines, identities, the monitor."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from testbed import memory
from testbed.errors import LabError, MachineError, NodeNotRunning, ServiceError, TimeoutExpired
from testbed.labs import preflight
from testbed.nodes.base import Ahead, NodeSpec, ServiceState, Setup
from testbed.nodes.inside import LAST_LINES
from testbed.nodes.netns import find
from testbed.nodes.netns.node import NetnsNode
from testbed.nodes.netns.provider import NetnsProvider
from testbed.nodes.qemu import cell, identity, machine, snapshot, states
from testbed.nodes.qemu.command import MEMORY, Hardware, command
from testbed.nodes.qemu.machine import Parts
from testbed.nodes.qemu.provider import QemuProvider
from testbed.nodes.qemu.qmp import JOB, Monitor
from testbed.nodes.qemu.snapshot import Snapshot
from testbed.process import run
from testbed.testing.fakes import FakeStore
from testbed.topology import Overrides, load
from testbed.vm.accel import Acceleration
from testbed.vm.box import Built

if TYPE_CHECKING:
    from testbed.artifacts.source import Source

TCG = Acceleration("tcg", "", 0.0)


def after(line: Sequence[str], option: str) -> list[str]:
    return [line[i + 1] for i, word in enumerate(line) if word == option]


# -- the machine ------------------------------------------------------------------


def test_hardware_of_a_node() -> None:
    assert Hardware.of(NodeSpec("n", "d")) == Hardware(MEMORY, 1, 0)
    assert Hardware.of(NodeSpec("n", "d", 1.5, 1 << 30, 2)) == Hardware(1 << 30, 2, 2)


def test_every_interface_has_its_own_tap_and_address_and_ours_comes_last() -> None:
    line = command("qemu", TCG, Hardware(MEMORY, 1, 2), kernel="k", initrd="i")
    assert [net.split(",")[1] for net in after(line, "-netdev")] == [
        "id=tap0",
        "id=tap1",
        "id=mgmt",
    ]
    cards = [device for device in after(line, "-device") if device.startswith("virtio-net")]
    macs = [word for card in cards for word in card.split(",") if word.startswith("mac=")]
    assert len(set(macs)) == 3
    assert macs[-1] == f"mac={identity.GUEST_MAC}"


#: Options of qemu-system (qemu-system(1)), and those that stand alone.
OPTIONS = {
    "-display", "-machine", "-accel", "-cpu", "-smp", "-m", "-kernel", "-initrd", "-append",
    "-fw_cfg", "-drive", "-device", "-object", "-serial", "-qmp", "-netdev", "-incoming",
}  # fmt: skip
ALONE = {"-nodefaults", "-no-user-config", "-no-reboot"}


def test_the_command_line_is_made_of_qemus_options() -> None:
    program, *words = command("qemu", TCG, Hardware(3 << 20, 2, 1), kernel="k", initrd="i")
    assert program == "qemu"
    given: dict[str, list[str]] = {}
    left = iter(words)
    for word in left:
        assert word in OPTIONS | ALONE
        given.setdefault(word, []).append("" if word in ALONE else next(left))
    assert set(given) >= ALONE
    assert (given["-smp"], given["-m"]) == (["2"], ["3M"])
    assert (given["-kernel"], given["-initrd"], given["-display"]) == (["k"], ["i"], ["none"])
    # What a device stands on is there, under the name that it is asked for by.
    made = {
        field.removeprefix("id=")
        for name in ("-object", "-drive", "-netdev")
        for value in given[name]
        for field in value.split(",")
        if field.startswith("id=")
    }
    wanted = {
        field.partition("=")[2]
        for value in given["-device"]
        for field in value.split(",")
        if field.partition("=")[0] in ("drive", "rng", "netdev")
    }
    assert made == wanted == {"disk", "rng", "tap0", "mgmt"}


def test_a_cell_has_what_the_command_line_asks_for() -> None:
    lines = cell.taps(2)
    made = [line.split()[3] for line in lines if line.startswith("tuntap add")]
    assert sorted(made) == ["mgmt", "tap0", "tap1"]
    assert cell.joints(2) == ["link set dev eth0 master br0 up", "link set dev eth1 master br1 up"]


# -- who it is --------------------------------------------------------------------


def test_two_identities_have_nothing_in_common_but_the_form() -> None:
    one, two = identity.make_keys(), identity.make_keys()
    assert len({one.client, one.host, two.client, two.host}) == 4
    assert one.client.startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
    assert one.host_public.startswith("ssh-ed25519 ")


def test_the_script_says_what_the_machine_is(tmp_path: Path) -> None:
    keys = identity.make_keys()
    # Run here with every path below a folder, and a file for the kernel's pool.
    (tmp_path / "etc/ssh").mkdir(parents=True)
    (tmp_path / "dev").mkdir()
    (tmp_path / "root").mkdir()
    words = identity.script("node1", keys) + identity.seed()
    for top in ("/etc", "/root", "/dev"):
        words = words.replace(f" {top}/", f" {tmp_path}{top}/")
    run(["sh", "-e", "-c", words])
    assert (tmp_path / "etc/hostname").read_text() == "node1\n"
    assert (tmp_path / "root/.ssh/authorized_keys").read_text() == f"{keys.client_public}\n"
    host = tmp_path / "etc/ssh/ssh_host_ed25519_key"
    assert host.read_text() == keys.host
    assert host.stat().st_mode & 0o777 == 0o600
    assert len((tmp_path / "etc/machine-id").read_text()) == 33
    assert len((tmp_path / "dev/urandom").read_text()) == 128


def test_the_link_is_the_interface_after_the_networks() -> None:
    assert "eth2 name mgmt" in identity.link(2)


# -- the snapshot -----------------------------------------------------------------


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    manifest = {"files": {"disk.qcow2": {"sha256": "a" * 64}}, "programs": {}, "images": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    qemu = tmp_path / "qemu"
    qemu.write_text("#!/bin/sh\necho 'QEMU emulator version 7.2.22 (Debian 1:7.2)'\n")
    qemu.chmod(0o755)
    agent = tmp_path / "agent"
    agent.write_text("agent")
    return Parts(str(qemu), TCG, Built(tmp_path), lambda: agent)


def snapshot_of(parts: Parts, hardware: Hardware) -> snapshot.Snapshot:
    cells = NetnsProvider(Path("/nowhere"), lambda: pytest.fail("nothing is made here"))
    return snapshot.Snapshot(parts, hardware, cells, "lab")


def test_a_snapshot_belongs_to_one_qemu_hardware_processor_and_box(
    parts: Parts, tmp_path: Path
) -> None:
    plain = Hardware(MEMORY, 1, 1)
    keys = [snapshot_of(parts, plain).key()]
    keys += [snapshot_of(parts, Hardware(MEMORY, 1, 2)).key()]
    keys += [snapshot_of(parts, Hardware(MEMORY * 2, 1, 1)).key()]
    kvm = Parts(parts.qemu, Acceleration("kvm", "", 0.0), parts.box, parts.agent)
    keys += [snapshot_of(kvm, plain).key()]
    text = Path(parts.qemu).read_text()
    Path(parts.qemu).write_text(text.replace("7.2.22", "7.2.23"))
    keys += [snapshot_of(parts, plain).key()]
    manifest = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(manifest.replace("aaaa", "bbbb"))
    keys += [snapshot_of(parts, plain).key()]
    other = tmp_path / "other-agent"
    other.write_text("another")
    keys += [snapshot_of(dataclasses.replace(parts, agent=lambda: other), plain).key()]
    assert len(set(keys)) == len(keys)
    parts = dataclasses.replace(parts, agent=lambda: other)
    assert snapshot_of(parts, plain).key() == keys[-1]


def test_a_snapshot_without_one_of_its_files_is_none(parts: Parts, tmp_path: Path) -> None:
    mine = snapshot_of(parts, Hardware(MEMORY, 1, 1))
    for name in ("memory", "disk.qcow2", "key"):
        (tmp_path / name).touch()
    assert not mine.whole(tmp_path)
    (tmp_path / "host").touch()
    assert not mine.whole(tmp_path)
    assert snapshot.hardware_of(tmp_path) is None
    hardware = Hardware(MEMORY, 1, 1)
    mine.note(tmp_path)
    assert mine.whole(tmp_path)
    assert snapshot.hardware_of(tmp_path) == hardware
    assert snapshot.base_of(tmp_path) == mine.key()


def test_what_is_done_ahead_makes_another_snapshot(parts: Parts, tmp_path: Path) -> None:
    base = snapshot_of(parts, Hardware(MEMORY, 1, 1))

    def key(of: snapshot.Snapshot, ahead: str) -> str:
        return snapshot.Ready(of, Ahead(ahead, lambda _: None), tmp_path).key()

    other = snapshot_of(parts, Hardware(MEMORY, 1, 2))
    keys = [base.key(), key(base, "a"), key(base, "b"), key(other, "a")]
    assert len(set(keys)) == len(keys)
    assert key(base, "a") == keys[1]


# -- the monitor ------------------------------------------------------------------


class FakeQemu:
    """Answers on a socket, a line a command; ``states`` are those of query-status, in order."""

    def __init__(self, path: Path) -> None:
        self.path = str(path / "qmp")
        self.asked: list[str] = []
        self.told: dict[str, dict[str, Any]] = {}
        self.answers: dict[str, list[dict[str, Any]]] = {}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError), self._listener.accept()[0] as peer:
            self._talk(peer)

    def _talk(self, peer: socket.socket) -> None:
        peer.sendall(b'{"QMP": {}}\r\n')
        decoder, text = json.JSONDecoder(), ""
        while data := peer.recv(4096).decode():
            text += data
            while text:
                try:
                    request, used = decoder.raw_decode(text)
                except ValueError:
                    break
                text = text[used:]
                name = request["execute"]
                self.asked.append(name)
                self.told[name] = request["arguments"]
                left = self.answers.get(name, [{"return": {}}])
                answer = left.pop(0) if len(left) > 1 else left[0]
                if "hang" in answer:
                    return
                # An event may come at any time.
                lines = [{"event": "STOP"}, answer]
                peer.sendall(b"".join(json.dumps(line).encode() + b"\r\n" for line in lines))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(60)
        self._listener.close()
        assert not self._thread.is_alive(), "the monitor's connection was not closed"


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[FakeQemu]:
    fake = FakeQemu(tmp_path)
    yield fake
    fake.close()


def test_the_monitor_waits_for_a_state(qemu: FakeQemu) -> None:
    states = ["inmigrate", "inmigrate", "paused"]
    qemu.answers["query-status"] = [{"return": {"status": state}} for state in states]
    with Monitor(qemu.path) as monitor:
        monitor.wait_state("paused", 60)
        with pytest.raises(TimeoutExpired, match=r"paused.* running"):
            monitor.wait_state("running", 0.05)
    assert qemu.asked[:4] == ["qmp_capabilities", *["query-status"] * 3]


def test_a_refusal_is_an_error_in_qemus_words(qemu: FakeQemu) -> None:
    qemu.answers["cont"] = [{"error": {"desc": "not now"}}]
    with Monitor(qemu.path) as monitor, pytest.raises(LabError, match="cont: not now"):
        monitor.do("cont")


def test_a_job_of_a_killed_testbed_does_not_stop_the_next(qemu: FakeQemu) -> None:
    old, running, done = (
        {"return": jobs}
        for jobs in (
            [{"id": JOB, "status": "concluded"}],
            [{"id": JOB, "status": "running"}],
            [{"id": JOB, "status": "concluded", "error": "no room"}],
        )
    )
    qemu.answers["query-jobs"] = [old, running, done]
    with Monitor(qemu.path) as monitor, pytest.raises(LabError, match="no room"):
        monitor.job("snapshot-save", 60, tag="x")
    assert qemu.asked[1:] == [
        "query-jobs", "job-dismiss", "snapshot-save", "query-jobs", "query-jobs", "job-dismiss",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("state", "continued"),
    [("running", False), ("paused", True), ("restore-vm", True), ("internal-error", False)],
)
def test_a_machine_that_was_left_halted_goes_on(
    qemu: FakeQemu, monkeypatch: pytest.MonkeyPatch, state: str, *, continued: bool
) -> None:
    monkeypatch.setattr(states, "monitor_of", lambda _cell: Monitor(qemu.path))
    qemu.answers["query-status"] = [{"return": {"status": state}}]
    assert states.proceed(cast("NetnsNode", None)) is continued
    assert ("cont" in qemu.asked) is continued


def test_saving_stops_the_machine_first_and_waits_for_the_end(qemu: FakeQemu) -> None:
    qemu.answers["query-migrate"] = [
        {"return": {"status": "active"}},
        {"return": {"status": "completed"}},
    ]
    with Monitor(qemu.path) as monitor:
        monitor.save("/file", 60)
    assert qemu.asked[1] == "stop"
    assert qemu.asked[-3:] == ["migrate", "query-migrate", "query-migrate"]
    assert qemu.told["migrate-set-parameters"]["max-bandwidth"] >= 1 << 30  # bytes a second
    assert qemu.told["migrate"] == {"uri": "exec:cat > /file"}


def test_a_save_that_fails_says_so(qemu: FakeQemu) -> None:
    qemu.answers["query-migrate"] = [{"return": {"status": "failed"}}]
    with Monitor(qemu.path) as monitor, pytest.raises(LabError, match="could not save"):
        monitor.save("/file", 60)


def test_without_a_monitor_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="does not answer"):
        Monitor(str(tmp_path / "none"))


@pytest.mark.parametrize("said", [[1], "x", {"error": "odd"}, {"error": {"class": "odd"}}])
def test_what_is_no_answer_is_an_error_of_ours(qemu: FakeQemu, said: Any) -> None:
    qemu.answers["cont"] = [said]
    with Monitor(qemu.path) as monitor, pytest.raises(LabError, match="QEMU"):
        monitor.do("cont")


def test_a_status_that_says_none_is_waited_on(qemu: FakeQemu) -> None:
    qemu.answers["query-status"] = [{"return": []}, {"return": {}}, {"return": {"status": "x"}}]
    with Monitor(qemu.path) as monitor:
        monitor.wait_state("x", 5)


# -- what this machine must have --------------------------------------------------


def test_a_virtual_machine_asks_nothing_of_our_kernel_but_its_links() -> None:
    topology = load("two-node", Overrides(provider="qemu"))
    assert "tun" in preflight.kernel_features(topology)
    assert not {name for name in preflight.kernel_features(topology) if "iptables" in name}
    assert "qemu-img" in preflight.programs(topology)
    assert "curl" not in preflight.programs(topology)


class Cell(NetnsNode):
    """A cell with a console, and a QEMU that is some process of this machine, or none."""

    def __init__(self, console: str | None = None, *, pid: int = 1, said: str = "") -> None:
        self.name = "node1"
        began = find.started(os.getpid())
        assert began is not None
        self.init = find.Init(os.getpid(), "cell", "lab", "node1", "-", "/", began)
        self.console = console
        self.said = said
        self.monitor = ""
        self.state = ServiceState(cell.SERVICE, "ready", pid, None, "-")
        self.looks = 0
        self.third_look: Callable[[], object] = lambda: None

    def ends(self, status: int, said: str = "") -> None:
        self.said += said
        self.state = ServiceState(cell.SERVICE, "dead", 0, status, "-")

    def get(self, path: str) -> bytes:
        if self.console is None:
            raise FileNotFoundError(path)
        return self.console.encode()

    def logs(self, service: str) -> str:
        return self.said

    def services(self) -> dict[str, ServiceState]:
        self.looks += 1
        if self.looks == 3:
            self.third_look()
        return {cell.SERVICE: self.state}

    def socket(self, path: str) -> str:
        return self.monitor


def test_the_last_words_of_a_machine_are_those_before_its_registers() -> None:
    said = [f"line {number}" for number in range(20)]
    assert cell.last_words(Cell("\n".join(said))).splitlines() == said[-LAST_LINES:]
    reason = ["testbed: there is no disk /dev/vda", "[    1.2] Kernel panic - not syncing: init!"]
    text = "\r\n\n".join([*said, *reason, *("RAX: ffffffffffffffda" for _ in range(30))])
    assert cell.last_words(Cell(text)).splitlines()[-2:] == reason
    assert cell.last_words(Cell(None)) == ""


def test_qemus_own_words_and_end_come_after_the_consoles() -> None:
    one = Cell("\n".join(f"line {number}" for number in range(20)), said="a\nb\nc\nno luck\n")
    one.ends(-9)
    words = cell.last_words(one).splitlines()
    assert words[-4:] == ["line 19", "c", "no luck", "QEMU: signal 9"]
    assert len(words) == LAST_LINES


def test_a_machine_lives_as_long_as_its_qemu_and_no_longer() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        alive = cell.pulse(Cell(pid=child.pid))
        assert alive()
        child.kill()
        child.wait()
        assert not alive()


@pytest.mark.parametrize("gone", ["found dead", "ended meanwhile"])
def test_a_machine_that_has_ended_says_its_last_words(gone: str) -> None:
    with subprocess.Popen(["true"]) as child:
        child.wait()
    one = Cell("Kernel panic - not syncing", pid=child.pid)
    if gone == "found dead":
        one.ends(0)
    with pytest.raises(NodeNotRunning) as caught:
        cell.pulse(one)
    assert caught.value.name == "node1"
    assert "Kernel panic" in caught.value.output


# -- the way to the monitor -------------------------------------------------------


def test_a_monitor_is_waited_for_until_it_listens(tmp_path: Path) -> None:
    one = Cell(None)
    one.monitor = str(tmp_path / "qmp")
    with socket.socket(socket.AF_UNIX) as bound, contextlib.ExitStack() as stack:
        bound.bind(one.monitor)  # and does not listen yet

        def listen() -> None:
            Path(one.monitor).unlink()
            stack.callback(FakeQemu(tmp_path).close)

        one.third_look = listen
        with machine.monitor_of(one) as monitor:
            monitor.do("cont")


def test_a_qemu_that_ends_before_it_listens_says_why(tmp_path: Path) -> None:
    one = Cell(None)
    one.monitor = str(tmp_path / "qmp")
    one.third_look = partial(one.ends, 1, "qemu: could not load kernel\n")
    with pytest.raises(ServiceError, match=r"(?s)could not load kernel.*exit status 1"):
        machine.monitor_of(one).__enter__()


def test_a_qemu_that_ends_at_work_says_why(qemu: FakeQemu) -> None:
    one = Cell(None)
    one.monitor = qemu.path
    qemu.answers["cont"] = [{"hang": "up"}]
    one.third_look = partial(one.ends, 1, "qemu: load of migration failed\n")
    with (
        pytest.raises(ServiceError, match="load of migration failed"),
        machine.monitor_of(one) as monitor,
    ):
        monitor.do("cont")


# -- before machines are made -----------------------------------------------------


def test_too_little_memory_is_said_beforehand_and_what_runs_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Snapshot] = []

    class Keeps(FakeStore):
        def keep(self, name: str, source: Source) -> Path:
            assert isinstance(source, Snapshot)
            kept.append(source)
            return tmp_path

    provider = QemuProvider(Setup(tmp_path, Keeps()))
    monkeypatch.setattr(provider, "parts", lambda: Parts("qemu", TCG, Built(tmp_path), Path))
    monkeypatch.setattr(memory, "available", lambda: 2000 << 20)
    specs = [NodeSpec(f"node{n}", "-", memory=m << 20) for n, m in enumerate((768, 768, 512))]
    with pytest.raises(MachineError, match=r"^3 .* 2048 MiB .* 2000 MiB"):
        provider.prepare("lab", specs)
    assert not kept
    monkeypatch.setattr(provider, "nodes", lambda _: {"node0": None})
    provider.prepare("lab", specs)
    assert [one.hardware.memory >> 20 for one in kept] == [768, 512]  # of a kind, one will do
    assert {one.lab for one in kept} == {"lab"}


@pytest.mark.parametrize("dies", ["containerd", "dockerd"])
def test_a_daemon_that_dies_in_a_snapshot_is_told_with_its_words(tmp_path: Path, dies: str) -> None:
    """dockerd is given a containerd that runs already, however long that takes to start."""
    programs = {
        "modprobe": "exit 0",
        "ctr": f"test {dies} = dockerd",
        "docker": "exit 1",
        "containerd": "echo no containerd today >&2; exit 1" if dies == "containerd" else "exit 0",
        "dockerd": 'echo "no dockerd today, with $1" >&2; exit 1',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    script = snapshot.WARM.replace("/run", str(tmp_path))
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "IMAGES": "", "PROGRAMS": ""}
    done = subprocess.run(
        ["sh", "-ec", script], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"no {dies} today" in done.stderr
    assert ("--containerd=" in done.stderr) == (dies == "dockerd")

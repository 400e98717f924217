"""What can be told of virtual machines without one: command lines, identities, the monitor."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from testbed.errors import LabError, TimeoutExpired
from testbed.lab import preflight
from testbed.nodes.base import NodeSpec
from testbed.nodes.netns.node import NetnsNode
from testbed.nodes.qemu import cell, identity, snapshot
from testbed.nodes.qemu.command import MEMORY, Hardware, command
from testbed.nodes.qemu.machine import Parts
from testbed.nodes.qemu.qmp import Monitor
from testbed.process import run
from testbed.topology import Overrides, load
from testbed.vm.accel import Acceleration
from testbed.vm.box import Built

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
    words = identity.script("node1", keys)
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
    return Parts(str(qemu), TCG, Built(tmp_path), lambda: tmp_path)


def snapshot_of(parts: Parts, hardware: Hardware) -> snapshot.Snapshot:
    return snapshot.Snapshot(parts, hardware, lambda _: pytest.fail("nothing is made here"))


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
    assert len(set(keys)) == len(keys)
    assert snapshot_of(parts, plain).key() == keys[-1]


def test_a_snapshot_without_one_of_its_files_is_none(parts: Parts, tmp_path: Path) -> None:
    mine = snapshot_of(parts, Hardware(MEMORY, 1, 1))
    for name in ("memory", "disk.qcow2", "key"):
        (tmp_path / name).touch()
    assert not mine.whole(tmp_path)
    (tmp_path / "host").touch()
    assert mine.whole(tmp_path)


# -- the monitor ------------------------------------------------------------------


class FakeQemu:
    """Answers on a socket, a line a command; ``states`` are those of query-status, in order."""

    def __init__(self, path: Path) -> None:
        self.path = str(path / "qmp")
        self.asked: list[str] = []
        self.answers: dict[str, list[dict[str, Any]]] = {}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        peer, _ = self._listener.accept()
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
                left = self.answers.get(name, [{"return": {}}])
                answer = left.pop(0) if len(left) > 1 else left[0]
                # An event may come at any time.
                lines = [{"event": "STOP"}, answer]
                peer.sendall(b"".join(json.dumps(line).encode() + b"\r\n" for line in lines))

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[FakeQemu]:
    fake = FakeQemu(tmp_path)
    yield fake
    fake.close()


def test_the_monitor_waits_for_a_state(qemu: FakeQemu) -> None:
    states = ["inmigrate", "inmigrate", "paused"]
    qemu.answers["query-status"] = [{"return": {"status": state}} for state in states]
    with Monitor(qemu.path) as monitor:
        monitor.wait_state("paused", 5)
        with pytest.raises(TimeoutExpired, match=r"paused, not running"):
            monitor.wait_state("running", 0.05)
    assert qemu.asked[:4] == ["qmp_capabilities", *["query-status"] * 3]


def test_a_refusal_is_an_error_in_qemus_words(qemu: FakeQemu) -> None:
    qemu.answers["cont"] = [{"error": {"desc": "not now"}}]
    with Monitor(qemu.path) as monitor, pytest.raises(LabError, match="cont: not now"):
        monitor.do("cont")


def test_saving_stops_the_machine_first_and_waits_for_the_end(qemu: FakeQemu) -> None:
    qemu.answers["query-migrate"] = [
        {"return": {"status": "active"}},
        {"return": {"status": "completed"}},
    ]
    with Monitor(qemu.path) as monitor:
        monitor.save("/file", 5)
    assert qemu.asked[1] == "stop"
    assert qemu.asked[-3:] == ["migrate", "query-migrate", "query-migrate"]


def test_a_save_that_fails_says_so(qemu: FakeQemu) -> None:
    qemu.answers["query-migrate"] = [{"return": {"status": "failed"}}]
    with Monitor(qemu.path) as monitor, pytest.raises(LabError, match="could not save"):
        monitor.save("/file", 5)


def test_without_a_monitor_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="does not answer"):
        Monitor(str(tmp_path / "none"))


# -- what this machine must have --------------------------------------------------


def test_a_virtual_machine_asks_nothing_of_our_kernel_but_its_links() -> None:
    topology = load("two-node", Overrides(provider="qemu"))
    assert "tun" in preflight.kernel_features(topology)
    assert not {name for name in preflight.kernel_features(topology) if "iptables" in name}
    assert "qemu-img" in preflight.programs(topology)
    assert "curl" not in preflight.programs(topology)


class Console(NetnsNode):
    """A cell that has nothing but a console."""

    def __init__(self, text: str | None) -> None:
        self.text = text

    def get(self, path: str) -> bytes:
        if self.text is None:
            raise FileNotFoundError(path)
        return self.text.encode()


def test_the_last_words_of_a_machine_are_those_before_its_registers() -> None:
    said = [f"line {number}" for number in range(20)]
    assert cell.last_words(Console("\n".join(said))).splitlines() == said[-cell.LAST_LINES :]
    reason = ["testbed: there is no disk /dev/vda", "[    1.2] Kernel panic - not syncing: init!"]
    text = "\r\n\n".join([*said, *reason, *("RAX: ffffffffffffffda" for _ in range(30))])
    assert cell.last_words(Console(text)).splitlines()[-2:] == reason
    assert cell.last_words(Console(None)) == ""

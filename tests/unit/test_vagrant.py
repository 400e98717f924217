"""Vagrant's machines without Vagrant: descriptions, output, boxes, batches."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from testbed.artifacts import release
from testbed.artifacts.source import Job
from testbed.errors import (
    LabError,
    MachineError,
    NoSuchNode,
    ServiceError,
    TestbedError,
    TimeoutExpired,
)
from testbed.labs import preflight
from testbed.nodes.base import NodeSpec, Result, Running, Setup
from testbed.nodes.netns.node import NetnsNode
from testbed.nodes.qemu.command import MEMORY
from testbed.nodes.vagrant import client as clients
from testbed.nodes.vagrant import hypervisor, outside
from testbed.nodes.vagrant import provider as providers
from testbed.nodes.vagrant.client import Client, meant
from testbed.process import run
from testbed.testing.fakes import FakeStore
from testbed.topology import Overrides, load
from testbed.vm import package
from testbed.vm.accel import Acceleration
from testbed.vm.box import Built

if TYPE_CHECKING:
    from testbed.nodes.ssh.node import SshNode

# Vagrant 2.3.4 with vagrant-libvirt 0.11.2, two machines at once, one of which fails.
SAID = """\
==> node2: An error occurred. The error will be shown after all tasks complete.
An error occurred while executing multiple actions in parallel.
Any errors that occurred are shown below.

An error occurred while executing the action on the 'node2'
machine. Please handle this error then try again:

Error while connecting to Libvirt: Error making a connection to libvirt URI qemu:///system:
Call to virConnectOpen failed: Failed to connect socket to '/var/run/libvirt/libvirt-sock'
"""


class Ends(Running):
    """A command whose end a test decides."""

    def __init__(self, argv: Sequence[str], status: int | None, err: str = "") -> None:
        self.argv = tuple(argv)
        self.pid = 1
        self.status = status
        self.said = err
        self.killed = threading.Event()

    @property
    def out(self) -> bytes:
        return b""

    @property
    def err(self) -> bytes:
        return self.said.encode()

    def wait(self, timeout: float | None = None) -> Result:
        if self.status is None and not self.killed.wait(timeout):
            raise TimeoutExpired("still running")
        return Result(self.argv, -9 if self.status is None else self.status, b"", self.err)

    def kill(self) -> None:
        self.killed.set()


class Cell(NetnsNode):
    """A hypervisor that runs nothing."""

    def __init__(self, status: int | None = 0, err: str = "", out: str = "") -> None:
        self.name = hypervisor.NAME
        self.status, self.said, self.printed = status, err, out
        self.asked: list[tuple[str, ...]] = []
        self.files: dict[str, bytes] = {}
        self.init = self  # type: ignore[assignment]  # told from others by what it is
        self.pid = 4242

    def alive(self) -> bool:
        return True

    def spawn(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Any:
        del input, env
        self.asked.append(tuple(argv))
        made = Ends(argv, self.status, self.said)
        printed = self.printed

        class Prints(Ends):
            def wait(self, timeout: float | None = None) -> Result:
                result = made.wait(timeout)
                return Result(result.argv, result.status, printed.encode(), result.err)

            def kill(self) -> None:
                made.kill()

        return Prints(argv, self.status, self.said)

    def put(self, data: bytes, path: str, *, mode: int = 0o644) -> None:
        del mode
        self.files[path] = data

    def get(self, path: str) -> bytes:
        try:
            return self.files[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    def provide(self, path: Path) -> str:
        return str(path)

    def socket(self, path: str) -> str:
        return f"/proc/4242/root{path}"


# -- what Vagrant is told --------------------------------------------------------------------


def test_a_machine_is_described_as_the_node_wants_it() -> None:
    machine = hypervisor.Machine.of(NodeSpec("node1", "abc", 1.5, 512 << 20, 2))
    assert (machine.cpus, machine.memory) == (2, 512)
    assert hypervisor.Machine.of(NodeSpec("n", "d")).memory == MEMORY >> 20
    described = machine.described()
    assert described["bridges"] == ["node1.0", "node1.1"]
    assert described["digest"] == "abc"
    assert described["key"].startswith(f"{hypervisor.MACHINES}/node1/")


def test_links_of_the_longest_name_are_links() -> None:
    for name in (hypervisor.bridge("a" * 12, 9), hypervisor.joint("a" * 12, 9)):
        assert len(name) <= 15  # IFNAMSIZ, less the final NUL
    assert hypervisor.bridge("n", 0) != hypervisor.joint("n", 0)


def test_no_node_can_have_the_hypervisors_name() -> None:
    from testbed.topology import load_text

    with pytest.raises(TestbedError, match="_vagrant"):
        load_text(f"name: x\nnodes: {{{hypervisor.NAME}: {{}}}}\n", "x.yaml")


def test_what_is_written_is_read_again() -> None:
    cell = Cell()
    lab = hypervisor.about("tcg", kernel="/k", initrd="/i", release="1.2")
    hypervisor.write(cell, lab)
    assert hypervisor.read(cell) == lab
    assert (lab["driver"], lab["box"]["version"], lab["machines"]) == ("qemu", "1.2", {})
    assert hypervisor.about("kvm", kernel="", initrd="", release="")["driver"] == "kvm"


def test_the_keys_of_two_machines_have_nothing_in_common() -> None:
    cell = Cell()
    for name in ("node1", "node2"):
        hypervisor.introduce(cell, hypervisor.Machine(name, "d", 1, 512, 1))
    for word in ("key", "host", "identity"):
        one, two = (cell.files[f"{hypervisor.MACHINES}/{n}/{word}"] for n in ("node1", "node2"))
        assert one != two
    batch = [argv for argv in cell.asked if argv[:2] == ("ip", "-batch")]
    assert len(batch) == 2  # a bridge for each


def test_at_its_first_moment_a_machine_names_its_links_and_asks_for_an_address() -> None:
    words = hypervisor.start(2)
    assert "eth0 name mgmt" in words
    assert words.index("eth1 name eth0") < words.index("eth2 name eth1")
    assert "udhcpc -f" in words
    subprocess.run(["sh", "-n"], input=words.encode(), check=True)


def test_the_users_vagrant_is_another() -> None:
    names = hypervisor.environment()
    assert names["VAGRANT_HOME"].startswith(hypervisor.FOLDER)
    assert names["VAGRANT_CWD"] == hypervisor.FOLDER


def test_from_outside_sockets_and_keys_are_found_through_the_hypervisor() -> None:
    cell = Cell()
    lab = hypervisor.about("tcg", kernel="/k", initrd="/i", release="1")
    machine = hypervisor.Machine("node1", "d", 1, 512, 1)
    hypervisor.write(cell, {**lab, "machines": {"node1": machine.described()}})
    seen = outside.description(cell, [])
    assert seen["uri"].endswith(f"socket=/proc/4242/root{hypervisor.SOCKET}")
    assert seen["machines"]["node1"]["key"].startswith("/proc/4242/root/")
    # These are read by QEMU, which is inside.
    assert seen["machines"]["node1"]["identity"] == machine.described()["identity"]
    assert seen["kernel"] == "/k"
    assert "4242 %h %p" in seen["proxy"]


def test_a_lab_that_is_not_there_has_machines_that_are_not_created() -> None:
    seen = outside.description(None, [NodeSpec("node1", "d", interfaces=1)])
    assert seen["uri"] == outside.NOBODY
    assert list(seen["machines"]) == ["node1"]


def test_a_port_that_nobody_listens_on_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        outside.main(0, "127.0.0.1", 1)


# -- what Vagrant says -------------------------------------------------------------------------


def test_of_an_error_what_is_meant_is_shown() -> None:
    lines = meant(SAID)
    assert lines[0] == "node2:"
    assert lines[1].startswith("Error while connecting to Libvirt")
    assert len(lines) == 3
    assert meant("\n".join(str(number) for number in range(100)))[-1] == "99"
    assert len(meant("\n".join(str(number) for number in range(100)))) == clients.MOST


def test_a_failure_is_told_in_vagrants_words() -> None:
    with pytest.raises(LabError, match=r"(?s)vagrant up node1 .*status 1.*libvirt URI"):
        Client(Cell(1, SAID)).bring_up(["node1"], 5, lambda: None)


def test_machines_are_brought_up_by_one_vagrant() -> None:
    cell = Cell()
    Client(cell).bring_up(["node1", "node2"], 5, lambda: None)
    assert cell.asked == [
        ("vagrant", "up", "node1", "node2", "--no-provision", "--provider=libvirt")
    ]


def test_a_status_without_a_machine_is_an_error() -> None:
    with pytest.raises(LabError, match="no machine"):
        Client(Cell()).states()


def test_states_are_python_vagrants() -> None:
    said = "1,node1,provider-name,libvirt\n1,node1,state,shutoff\n1,node2,state,not_created\n"
    assert Client(Cell(out=said)).states() == {"node1": "poweroff", "node2": "not_created"}


def test_what_looks_now_and_then_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "LOOK", 0.01)

    def look() -> None:
        raise ServiceError("vagrant", "node1", "the machine ended", "Kernel panic")

    with pytest.raises(ServiceError, match="Kernel panic"):
        Client(Cell(None)).bring_up(["node1"], 60, look)


def test_one_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "LOOK", 0.01)
    with pytest.raises(TimeoutExpired, match=r"vagrant up node1 .* within 0\.1 s"):
        Client(Cell(None)).bring_up(["node1"], 0.1, lambda: None)


def test_it_can_be_ended_by_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "LOOK", 0.01)
    client = Client(Cell(None))

    def look() -> None:
        other = threading.Thread(target=client.end)
        other.start()
        other.join()

    with pytest.raises(NoSuchNode):
        client.bring_up(["node1"], 60, look)


# -- the provider ------------------------------------------------------------------------------


class Gathered(providers.VagrantProvider):
    """A provider whose hypervisor is a fake."""

    def __init__(self, tmp_path: Path) -> None:
        super().__init__(Setup(tmp_path, FakeStore()))
        self.box = lambda: Built(tmp_path)  # type: ignore[method-assign]
        self.cell = Cell()
        self.made: list[str] = []

    def announce(self, lab: str, specs: Sequence[NodeSpec]) -> NetnsNode:
        del lab, specs
        return self.cell

    def _machines(self, lab: str) -> dict[str, SshNode]:
        class Made:
            def wait_ssh(self, timeout: float) -> None:
                del timeout

        return {name: Made() for name in self.made}  # type: ignore[misc]

    def _acceleration(self) -> Acceleration:
        return Acceleration("tcg", "", 0.0)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    seen: list[list[str]] = []

    def bring_up(
        self: Client, names: Sequence[str], seconds: float, look: Callable[[], None]
    ) -> None:
        del self, seconds, look
        seen.append(sorted(names))
        if "bad" in names:
            raise LabError("no luck")

    monkeypatch.setattr(Client, "bring_up", bring_up)
    return seen


def test_machines_that_are_wanted_at_once_have_one_vagrant(
    tmp_path: Path, batches: list[list[str]]
) -> None:
    provider = Gathered(tmp_path)
    names = [f"node{number}" for number in range(5)]
    provider.made = names
    assert all(provider.together(name) for name in names)
    assert list(provider.create("lab", [NodeSpec(name, "d") for name in names])) == names
    assert batches == [names]
    provider.create_one("lab", NodeSpec("node0", "d"))
    assert batches[1:] == [["node0"]]
    assert not provider._runs


def test_one_vagrant_runs_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that begin at once both define the network of their machines, and one fails."""
    provider = Gathered(tmp_path)
    provider.made = ["node1"]
    alone: list[bool] = []
    monkeypatch.setattr(Client, "bring_up", lambda *_: alone.append(provider._vagrant.locked()))
    provider.create_one("lab", NodeSpec("node1", "d"))
    assert alone == [True]
    assert not provider._vagrant.locked()


def test_one_that_was_ended_before_its_turn_starts_nothing() -> None:
    cell = Cell()
    client = Client(cell)
    client.end()
    with pytest.raises(NoSuchNode):
        client.bring_up(["node1"], 5, lambda: None)
    assert cell.asked == []


def test_a_failure_is_that_of_all(tmp_path: Path, batches: list[list[str]]) -> None:
    provider = Gathered(tmp_path)
    with pytest.raises(LabError, match="no luck"):
        provider.create("lab", [NodeSpec("bad", "d"), NodeSpec("good", "d")])
    assert batches == [["bad", "good"]]
    assert not provider._runs


def test_a_machine_that_is_gone_at_once_is_an_error(
    tmp_path: Path, batches: list[list[str]]
) -> None:
    with pytest.raises(ServiceError) as caught:
        Gathered(tmp_path).create_one("lab", NodeSpec("node1", "d"))
    assert (caught.value.service, caught.value.node) == ("vagrant", "node1")
    assert batches == [["node1"]]


def test_without_the_plugin_nothing_is_begun(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listed = tmp_path / "plugins.json"
    monkeypatch.setattr(providers, "PLUGINS", (tmp_path / "none", listed))
    with pytest.raises(MachineError, match=r"(?s)no plugin for libvirt.*vagrant-libvirt"):
        providers.require_plugin()
    listed.write_text('{"installed": {"vagrant-libvirt": {}}}')
    providers.require_plugin()


def test_what_the_provider_needs_is_asked_before() -> None:
    topology = load("two-node", Overrides(provider="vagrant"))
    wanted = preflight.programs(topology)
    assert {"vagrant", "libvirtd", "qemu-img", "dnsmasq"} <= set(wanted)
    assert "curl" not in wanted
    for program, of in providers.PROGRAMS.items():
        assert wanted[program] == of


@pytest.mark.parametrize(
    ("version", "packages"),
    [
        ("12", ["libvirt-daemon"]),
        (
            "13",
            ["libvirt-daemon", *(f"libvirt-daemon-driver-{name}" for name in providers.DRIVERS)],
        ),
    ],
)
def test_a_libvirt_without_its_drivers_is_not_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, packages: list[str]
) -> None:
    """Debian 13's libvirt-daemon only recommends them."""
    monkeypatch.setattr(release, "facts", lambda: {"ID": "debian", "VERSION_ID": version})
    monkeypatch.setattr("testbed.process.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(providers, "LIBRARIES", tmp_path)
    lacking = providers.lacking()
    assert len(lacking) == len(providers.DRIVERS)
    assert sorted({*release.packages(lacking.values())}) == packages
    folder = tmp_path / "any-linux-gnu/libvirt/connection-driver"
    folder.mkdir(parents=True)
    for name in providers.DRIVERS:
        (folder / f"libvirt_driver_{name}.so").touch()
    assert providers.lacking() == {}


# -- the packed box ----------------------------------------------------------------------------


@pytest.fixture
def box(tmp_path: Path) -> Built:
    folder = tmp_path / "box"
    folder.mkdir()
    for name in ("disk.qcow2", "vmlinuz", "initramfs"):
        (folder / name).write_bytes(name.encode() * 100)
    manifest = {
        "suite": "bookworm",
        "kernel": "6.1.0-56-cloud-amd64",
        "disk": 4096 << 20,
        "files": {"disk.qcow2": {"sha256": "0000ff01" + "a" * 56}},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Built(folder)


def test_a_box_has_a_version_that_vagrant_takes(box: Built) -> None:
    # RubyGems' version: numbers and dots.
    assert box.release == "6.1.0.56.65281"


def test_a_packed_box_has_what_starts_it(box: Built, tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    job = Job(into, tmp_path, lambda _: None, run, threading.Event(), lambda _: tmp_path)
    made = package.Package(box)
    assert made.fill(job) == box.release
    assert made.whole(into)
    with tarfile.open(into / package.FILE) as tar:
        content = {
            member.name: file.read() if (file := tar.extractfile(member)) else b"" for member in tar
        }
    assert set(content) == {
        "metadata.json", "Vagrantfile", "identity", "box.img", "vmlinuz", "initramfs",
    }  # fmt: skip
    assert content["box.img"] == box.disk.read_bytes()
    about = json.loads(content["metadata.json"])
    assert about == {"provider": "libvirt", "format": "qcow2", "virtual_size": 4}
    subprocess.run(["sh", "-n"], input=content["identity"], check=True)

    packed = package.Packed(box, into)
    told = json.loads(packed.catalogue(packed.file))["versions"][0]
    assert told["version"] == box.release
    (provider,) = told["providers"]
    assert provider["url"] == packed.file.as_uri()
    assert provider["checksum"] == hashlib.sha256(packed.file.read_bytes()).hexdigest()


def test_another_box_is_packed_anew(box: Built) -> None:
    before = package.Package(box).key()
    text = (box.folder / "manifest.json").read_text()
    (box.folder / "manifest.json").write_text(text.replace("0000ff01", "0000ff02"))
    assert package.Package(box).key() != before


def test_only_the_links_of_that_machine_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = ["node1.0", "node1-0", "node1.1", "node1-1", "node1-2.0", "node1-2-0", "node11.0"]
    for name in there:
        (tmp_path / "net" / name).mkdir(parents=True)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "virsh").write_text("#!/bin/sh\n")
    (programs / "ip").write_text(f"#!/bin/sh\nrmdir {tmp_path}/net/$3\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    words = providers.REMOVE.replace("/sys/class/net", f"{tmp_path}/net")
    words = words.replace(hypervisor.FOLDER, str(tmp_path))
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    gone = tmp_path / "folder"
    run(["sh", "-c", words, "sh", "node1", gone, gone])
    left = sorted(path.name for path in (tmp_path / "net").iterdir())
    assert left == ["node1-2-0", "node1-2.0", "node11.0"]

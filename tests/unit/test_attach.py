"""Labs that exist already: found at an engine, recorded, never changed."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import click
import pytest

from testbed import cli
from testbed.cli.attach import command
from testbed.cli.common import to_update
from testbed.errors import MachineError, NodeNotRunning, NoSuchLab, NoSuchNode, UsageError
from testbed.exports.base import Subject
from testbed.faults.force import Faults, fault_of
from testbed.labs.attach import attach, attachables
from testbed.labs.lab import Lab, labs
from testbed.labs.state import Record, State
from testbed.labs.status import status
from testbed.leaks import leftovers
from testbed.nodes.attachable import Attachable, AttachedProvider
from testbed.nodes.base import NodeSpec, Service, Setup
from testbed.nodes.containerlab import attached
from testbed.nodes.containerlab.attached import AttachedNode, Containerlab
from testbed.nodes.containerlab.provider import ContainerlabProvider
from testbed.nodes.fake import FakeProvider
from testbed.nodes.ssh.export import SshConfig
from testbed.registry import EXPORTS, PROVIDERS
from testbed.testing.fakes import declare
from testbed.topology import load_text

if TYPE_CHECKING:
    from testbed.labs.lab import Settings
    from testbed.nodes.base import Node
    from testbed.testing.fakes import Bench
    from testbed.topology import Topology

PROVIDER = "containerlab"


class Answers(BaseHTTPRequestHandler):
    """The part of an engine's API that is asked."""

    protocol_version = "HTTP/1.1"
    server: Daemon

    def do_GET(self) -> None:
        path, containers = urlsplit(self.path), self.server.containers
        self.server.asked.append(f"{self.command} {path.path}")
        if path.path == "/containers/json":
            (label,) = json.loads(parse_qs(path.query)["filters"][0])["label"]
            key, equals, value = label.partition("=")
            found = [one for one in containers if key in one["Labels"]]
            self._say(200, [one for one in found if not equals or one["Labels"][key] == value])
            return
        wanted = path.path.split("/")[2]
        one = next((one for one in containers if one["Id"] == wanted), None)
        details = one and {"State": {"Pid": one["Pid"]}, "Config": {"Env": ["COLOUR=blue"]}}
        self._say(200 if one else 404, details)

    def _say(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return ""

    def log_message(self, *_: Any) -> None:
        """Write nothing."""


class Daemon(ThreadingUnixStreamServer):
    """An engine with containers; a test changes the list."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.socket_path = folder / "docker.sock"
        self.folder = folder / "clab-Office" / "left"
        self.containers: list[dict[str, Any]] = []
        self.asked: list[str] = []
        super().__init__(str(self.socket_path), Answers)

    def add(self, node: str, lab: str = "Office", **changes: Any) -> dict[str, Any]:
        labels = {
            "containerlab": lab, "clab-node-name": node, "clab-node-kind": "linux",
            "clab-topo-file": "/lab/office.clab.yml", "clab-node-lab-dir": str(self.folder),
        }  # fmt: skip
        made = {
            "Id": f"{node}-id", "Names": [f"/clab-{lab}-{node}"], "Image": "alpine:3",
            "State": "running", "Status": "Up 2 hours", "Labels": labels, "Pid": os.getpid(),
            **changes,
        }  # fmt: skip
        self.containers.append(made)
        return made


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """An engine with a lab of two nodes, whose processes are this one."""
    with Daemon(tmp_path) as made:
        made.add("left")
        made.add("right")
        made.containers.append({"Id": "other", "Labels": {}, "State": "running", "Pid": 1})
        monkeypatch.setenv("DOCKER_HOST", f"unix://{made.socket_path}")
        monkeypatch.setattr(attached, "_is_of", lambda _pid, _container: True)
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def settings(bench: Bench, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Settings:
    del daemon
    made = bench.settings
    provider = ContainerlabProvider.of(Setup(made.state.path, made.store))
    monkeypatch.setattr(made, "providers", {**made.providers, PROVIDER: provider})
    return made


def test_labs_are_found_by_their_labels(daemon: Daemon) -> None:
    daemon.add("x", "Other")
    assert Containerlab(None).labs() == ["Office", "Other"]  # type: ignore[arg-type]


def test_a_lab_is_recorded_as_it_is(settings: Settings, daemon: Daemon) -> None:
    daemon.folder.mkdir(parents=True)
    sides = {"a": "left", "z": "br"}
    ends = {side: {"node": node, "interface": "eth1"} for side, node in sides.items()}
    (daemon.folder.parent / "topology-data.json").write_text(
        json.dumps({"links": [{"endpoints": ends}]})
    )
    lab = attach(settings, PROVIDER, "Office")
    topology = lab.topology()
    assert lab.name == "office"
    assert [*topology.nodes] == ["left", "right"]
    assert topology.foreign is not None
    assert (topology.foreign.lab, topology.foreign.nodes["left"].image) == ("Office", "alpine:3")
    assert [str(end) for link in topology.foreign.links for end in link.ends] == [
        "left:eth1", "br:eth1",
    ]  # fmt: skip
    assert lab.record().source == "/lab/office.clab.yml"
    assert lab.attached == f"unix://{daemon.socket_path}" == topology.attached
    assert {one.split()[0] for one in daemon.asked} == {"GET"}


def test_the_engine_is_the_one_of_the_record(
    settings: Settings, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = attach(settings, PROVIDER, "Office")
    monkeypatch.setenv("DOCKER_HOST", "unix:///elsewhere")
    assert [*lab.context().nodes] == ["left", "right"]


@pytest.mark.parametrize("name", ["Offise", ""])
def test_no_such_lab_names_those_there_are(name: str, settings: Settings) -> None:
    with pytest.raises(NoSuchLab) as error:
        attach(settings, PROVIDER, name)
    assert [*error.value.known] == ["Office"]
    assert labs(settings) == []


@pytest.mark.parametrize("address", ["tcp://192.0.2.1:2375", "ssh://host", "unix:///nowhere/sock"])
def test_an_engine_that_cannot_be_used(
    address: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", address)
    with pytest.raises(MachineError) as error:
        attach(settings, PROVIDER, "Office")
    assert "DOCKER_HOST" in (error.value.hint or "")


def test_an_engine_in_a_virtual_machine_is_refused(
    settings: Settings, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attached, "_is_of", lambda _pid, _container: False)
    with pytest.raises(MachineError):
        attach(settings, PROVIDER, "Office")
    assert labs(settings) == []


def test_processes_are_told_by_their_cgroup() -> None:
    text = Path("/proc/self/cgroup").read_text()
    own = text.splitlines()[0].rpartition(":")[2]
    assert attached._is_of(os.getpid(), own)
    assert not attached._is_of(os.getpid(), "0123456789abcdef")


def test_a_name_that_is_taken(settings: Settings, daemon: Daemon) -> None:
    ours = load_text("name: office\nnodes: {n1: {}}\n", "t.yaml")
    settings.state.write(Record("office", ours.to_dict()))
    with pytest.raises(UsageError) as error:
        attach(settings, PROVIDER, "Office")
    assert "--name" in (error.value.hint or "")
    assert not Lab("office", settings).attached
    assert attach(settings, PROVIDER, "Office", "theirs").name == "theirs"
    daemon.add("x", "Other")
    with pytest.raises(UsageError):
        attach(settings, PROVIDER, "Other", "theirs")


def test_it_is_recorded_under_the_lock_of_its_name(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[tuple[str, bool]] = []
    real = State.write

    def write(state: State, record: Record) -> None:
        held.append((record.lab, state.holder(record.lab).startswith("testbed attach theirs")))
        real(state, record)

    monkeypatch.setattr(State, "write", write)
    attach(settings, PROVIDER, "Office", "theirs")
    assert held == [("theirs", True)]


def test_attaching_again_takes_what_is_there_now(settings: Settings, daemon: Daemon) -> None:
    attach(settings, PROVIDER, "Office")
    daemon.add("third")
    lab = attach(settings, PROVIDER, "Office")
    assert [*lab.topology().nodes] == ["left", "right", "third"]


def test_a_name_keeps_the_rules(settings: Settings) -> None:
    with pytest.raises(UsageError):
        attach(settings, PROVIDER, "Office", "No Name")


CHANGES: dict[str, Callable[[Lab], object]] = {
    "up": lambda lab: lab.up(lab.topology()),
    "up by name": to_update,
    "up of a file": lambda lab: lab.up(load_text("name: office\nnodes: {n: {}}\n", "t.yaml")),
    "stop": lambda lab: fault_of("stop left", lab.topology()),
    "partition": lambda lab: fault_of("partition left:right", lab.topology()),
    "pause": lambda lab: lab.context().provider.pause("office", "left"),
    "destroy": lambda lab: lab.context().provider.destroy("office"),
    "create": lambda lab: lab.context().provider.create("office", [NodeSpec("left", "")]),
    "service": lambda lab: lab.node("left").start(Service("s", ("sleep", "1"))),
    "ssh": lambda lab: SshConfig().export(
        Subject(lab.topology(), lambda: lab.context().nodes, lab.settings.store)
    ),
    "file": lambda lab: lab.node("left").put(b"", "/file"),
    "end of a service": lambda lab: lab.node("left").stop("s"),
    "program": lambda lab: lab.node("left").provide(Path("/usr/bin/true")),
    "programs": lambda lab: lab.node("left").offer({"true": Path("/usr/bin/true")}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_refused(change: str, settings: Settings, daemon: Daemon) -> None:
    lab = attach(settings, PROVIDER, "Office")
    with pytest.raises(UsageError):
        CHANGES[change](lab)
    assert {one.split()[0] for one in daemon.asked} == {"GET"}
    assert Lab("office", settings).attached


def test_there_are_no_faults(settings: Settings) -> None:
    faults = Faults(attach(settings, PROVIDER, "Office"))
    assert (faults.in_force(), faults.heal()) == ([], [])


def test_down_forgets_it_alone(settings: Settings, daemon: Daemon) -> None:
    lab = attach(settings, PROVIDER, "Office")
    daemon.asked.clear()
    assert lab.down()
    assert not lab.down()
    assert labs(settings) == []
    assert daemon.asked == []
    assert len(daemon.containers) == 3


def test_down_needs_no_engine(
    settings: Settings, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = attach(settings, PROVIDER, "Office")
    daemon.socket_path.unlink()
    with pytest.raises(MachineError):
        lab.context()
    assert labs(settings) == ["office"]
    assert lab.down()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"State": "exited", "Status": "Exited (137) 3 seconds ago", "Pid": 0}, "Exited (137)"),
        ({"State": "paused", "Status": "Up 2 hours (Paused)"}, "Paused"),
        (None, "not exist"),
    ],
)
def test_a_node_that_the_user_has_stopped(
    changes: dict[str, Any] | None, words: str, settings: Settings, daemon: Daemon
) -> None:
    lab = attach(settings, PROVIDER, "Office")
    if changes is None:
        del daemon.containers[1]
    else:
        daemon.containers[1].update(changes)
    context = lab.context()
    assert [*context.nodes] == ["left"]
    assert words in context.provider.ended("office")["right"]
    with pytest.raises(NoSuchNode) as error:
        lab.node("right")
    assert "testbed up" not in (error.value.hint or "")


def test_a_node_that_was_created_again_is_another(settings: Settings, daemon: Daemon) -> None:
    provider = attach(settings, PROVIDER, "Office").context().provider
    before = provider.nodes("office")
    assert provider.nodes("office")["left"] is before["left"]
    daemon.containers[0]["Id"] = "another"
    after = provider.nodes("office")
    assert after["left"] is not before["left"]
    assert after["right"] is before["right"]


def test_a_destroyed_lab(settings: Settings, daemon: Daemon) -> None:
    lab = attach(settings, PROVIDER, "Office")
    daemon.containers.clear()
    found = status(lab.remains())
    assert [node.state for node in found.nodes] == ["missing", "missing"]
    with pytest.raises(NoSuchLab) as error:
        lab.context()
    assert "testbed up" not in (error.value.hint or "")
    assert lab.down()


def test_it_is_no_leftover(
    settings: Settings, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach(settings, PROVIDER, "Office")
    monkeypatch.setattr("testbed.leaks.PROVIDERS", type("None_", (), {"usable": dict}))
    monkeypatch.setattr("testbed.leaks._temporary", list)
    monkeypatch.setattr("testbed.leaks._cache", lambda _: [])
    assert leftovers(lambda _: settings, bench.settings.state.path) == []


def test_a_container_that_ends_while_it_is_asked(settings: Settings, daemon: Daemon) -> None:
    lab = attach(settings, PROVIDER, "Office")
    daemon.containers[0]["Pid"] = 0
    assert [*lab.context().nodes] == ["right"]


def test_commands_have_the_environment_of_the_container(settings: Settings) -> None:
    node = attach(settings, PROVIDER, "Office").node("left")
    assert isinstance(node, AttachedNode)
    assert node.pid == os.getpid()
    assert node._env == {"COLOUR": "blue"}


def test_a_lost_connection_is_not_the_end_of_a_node(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = attach(settings, PROVIDER, "Office").node("left")
    assert isinstance(node, AttachedNode)
    monkeypatch.setattr("testbed.nodes.stream.container.ENDING", 0)
    assert not isinstance(node.lost_error(), NodeNotRunning)
    assert isinstance(node.ended_error(), NodeNotRunning)
    assert "testbed up" not in (node.ended_error().hint or "")


def test_an_attached_lab_of_a_provider_that_cannot(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = attach(settings, PROVIDER, "Office")
    monkeypatch.setattr(ContainerlabProvider, "attachable", lambda *_: None)
    with pytest.raises(MachineError):
        lab.context()
    assert lab.down()


class Halls(Attachable):
    """Labs of a tool without topology files, which run in memory."""

    about = "A hall."

    def labs(self) -> list[str]:
        return ["hall"]

    def read(self, lab: str) -> dict[str, Any]:
        nodes: dict[str, Any] = {"Box-1": {}}
        foreign = {"attached": "in memory", "lab": lab, "nodes": nodes}
        return {"name": lab, "provider": "halls", "nodes": nodes, "foreign": foreign}

    def provider(self, topology: Topology) -> AttachedProvider:
        return Hall([*topology.nodes])


class Hall(AttachedProvider):
    name = "halls"

    def __init__(self, names: list[str]) -> None:
        self._fake = FakeProvider()
        self._names = names

    def nodes(self, lab: str) -> dict[str, Node]:
        return self._fake.nodes(lab) or self._fake.create(
            lab, [NodeSpec(name, "") for name in self._names]
        )


class HallProvider(FakeProvider):
    name = "halls"
    fabric_of = ""

    @classmethod
    def attachable(cls) -> type[Attachable]:
        return Halls


def test_another_provider_brings_its_own_labs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    declare(monkeypatch, PROVIDERS, "halls", f"{__name__}:HallProvider")
    monkeypatch.setattr(bench.settings, "providers", {"halls": HallProvider()})
    lab = attach(bench.settings, "halls", "hall")
    assert [*lab.context().nodes] == ["Box-1"]
    assert lab.topology().attached == "in memory"
    with pytest.raises(UsageError):
        lab.up(lab.topology())
    with pytest.raises(UsageError) as error:
        EXPORTS["compose"].check(lab.topology())
    assert "mermaid" in (error.value.hint or "")
    assert lab.down()
    assert cli.run(["attach", "--help"]) == 0
    assert "--halls NAME" in capfd.readouterr().out


def test_names_of_labs_are_completed(settings: Settings, daemon: Daemon) -> None:
    daemon.add("x", "Other")
    context = click.Context(command)
    (option,) = (one for one in command.get_params(context) if f"--{PROVIDER}" in one.opts)
    assert [item.value for item in option.shell_complete(context, "O")] == ["Office", "Other"]
    daemon.socket_path.unlink()
    assert option.shell_complete(context, "O") == []


def test_providers_bring_the_options(capfd: pytest.CaptureFixture[str]) -> None:
    assert PROVIDER in attachables()
    assert cli.run(["attach", "--help"]) == 0
    assert f"--{PROVIDER} NAME" in capfd.readouterr().out
    assert cli.run(["attach"]) == 2
    assert f"--{PROVIDER}" in capfd.readouterr().err

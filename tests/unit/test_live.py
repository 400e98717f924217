"""A lab that is up, as suites look at it: its engines, its containers, what it depends on."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from testbed.errors import LabError, NoSuchContainer
from testbed.labs import live
from testbed.labs.lab import Lab
from testbed.labs.live import LiveContainer, LiveLab
from testbed.labs.state import Record
from testbed.nodes.base import NodeSpec
from testbed.nodes.fake import Answer, FakeProvider
from testbed.roles.container import ContainerProcess, enter
from testbed.roles.docker import daemon, processes
from testbed.roles.docker.engine import PATIENCE
from testbed.topology import load_text

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.testing.fakes import Bench

TEXT = """
name: t
networks: {lan: {subnet: 10.1.0.0/24}}
nodes:
  a: {networks: {lan: 10.1.0.2}, roles: [docker]}
  b: {networks: {lan: 10.1.0.3}, roles: [docker]}
  plain: {networks: {lan: 10.1.0.4}}
containers:
  web: {node: a, image: nginx}
  once: {node: a, image: nginx, expect: exit 0}
"""
STATE = ContainerProcess("web", "ab" * 32, 77, "172.17.0.2", ("A=b=c", "EMPTY=", "HOSTNAME=web"))


@pytest.fixture
def lab(bench: Bench) -> LiveLab:
    bench.provider.script(["iptables", "--version"], Answer(out=b"iptables v1.8.9 (nf_tables)"))
    topology = load_text(TEXT, "t.yaml")
    provider = bench.provider
    for name in topology.nodes:
        node = provider.create_one("t", NodeSpec(name, topology.node_digest(name)))
        provider.connect("t", topology, node)
    bench.state.write(Record("t", topology.to_dict()))
    return LiveLab(Lab("t", bench.settings).context())


class Engines:
    """Opens engines; those of ``dead`` do not answer."""

    def __init__(self) -> None:
        self.dead: set[str] = set()
        self.patience: list[tuple[str, float]] = []
        self.closed: list[str] = []

    def __call__(self, node: Node, *, patience: float, limit: float) -> object:
        assert limit == live.LIMIT
        self.patience.append((node.name, patience))
        if node.name in self.dead:
            raise LabError(f"dockerd on {node.name} does not answer")
        version = {"Version": f"20.10.{len(node.name)}"}
        return SimpleNamespace(version=version, close=lambda: self.closed.append(node.name))


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    made = Engines()
    monkeypatch.setattr(live, "Engine", made)
    return made


def test_an_engine_is_opened_once_and_closed(lab: LiveLab, engines: Engines) -> None:
    assert lab.engine("a") is lab.engine("a")
    lab.engine("b")
    assert [name for name, _ in engines.patience] == ["a", "b"]
    lab.close()
    assert engines.closed == ["a", "b"]
    lab.engine("a")
    assert len(engines.patience) == 3


def test_one_that_was_silent_is_not_waited_for_again(lab: LiveLab, engines: Engines) -> None:
    engines.dead = {"a"}
    for _ in range(2):
        with pytest.raises(LabError):
            lab.engine("a")
    lab.engine("b")
    assert engines.patience == [("a", PATIENCE), ("a", live.AGAIN), ("b", PATIENCE)]
    assert live.AGAIN < PATIENCE
    lab.close()  # of another use of the lab nothing is known
    with pytest.raises(LabError):
        lab.engine("a")
    assert engines.patience[-1] == ("a", PATIENCE)


@pytest.mark.parametrize(
    ("told", "says", "wanted"),
    [
        ({"firewall-backend": "nftables"}, b"iptables v1.8.9 (legacy)", "nftables"),
        ({"firewall-backend": "iptables"}, b"iptables v1.8.9 (legacy)", "iptables-legacy"),
        ({}, b"iptables v1.8.9 (nf_tables)", "iptables-nft"),
        ({}, b"iptables v1.8.9 (legacy)", "iptables-legacy"),
    ],
)
def test_the_facts_of_a_lab_with_docker(
    lab: LiveLab,
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    told: dict[str, str],
    says: bytes,
    wanted: str,
) -> None:
    monkeypatch.setattr(daemon, "told", lambda node: told if node.name == "a" else {})
    monkeypatch.setattr(daemon, "version_of", lambda *_: "20.10.24+dfsg1")
    bench.provider.script(["iptables", "--version"], Answer(out=says))
    assert lab.facts == {"provider": "netns", "docker": "20.10.24", "firewall": wanted}


def test_a_container_that_has_ended_as_the_file_says_is_told_so(lab: LiveLab) -> None:
    with pytest.raises(NoSuchContainer) as caught:
        lab.container("once")
    assert (caught.value.name, "`expect`" in caught.value.message) == ("once", True)
    with pytest.raises(NoSuchContainer) as caught:
        lab.container("web")
    assert "testbed up -l t" in str(caught.value.hint)


def test_a_container_that_nobody_knows_is_told_with_those_that_run(
    lab: LiveLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "containers", lambda _: {"mine": STATE, "web": STATE})
    with pytest.raises(NoSuchContainer) as caught:
        lab.container("db", node="a")
    assert "mine, web" in str(caught.value.hint)


def test_those_that_keep_running_are_looked_up(
    lab: LiveLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def containers(node: Node) -> dict[str, ContainerProcess]:
        asked.append(node.name)
        return {"web": STATE}

    monkeypatch.setattr(processes, "containers", containers)
    (found,) = lab.containers.values()
    assert asked == ["a"]
    assert found == LiveContainer(lab.node("a"), STATE)


# -- one container ------------------------------------------------------------


@pytest.fixture
def container() -> LiveContainer:
    provider = FakeProvider()
    return LiveContainer(provider.create_one("t", NodeSpec("a", "-")), STATE)


def _calls(container: LiveContainer) -> list[tuple[str, ...]]:
    machine = container.node._machine  # type: ignore[attr-defined]
    return [call.words for call in machine.calls if call.what == "run"]


@pytest.mark.parametrize(
    ("mounts", "prefix"), [(False, enter(77, mounts=False)), (True, enter(77))]
)
def test_a_command_runs_in_its_network_with_the_program_of_either(
    container: LiveContainer, mounts: bool, prefix: Sequence[str]
) -> None:
    container.run(["ip", "address"], mounts=mounts)
    with container.spawn(["ip", "address"], mounts=mounts):
        pass
    assert _calls(container) == [(*prefix, "ip", "address")] * 2
    container.run(["cat"])
    container.spawn(["cat"]).kill()
    assert _calls(container)[2:] == [(*enter(77, mounts=False), "cat")] * 2


def test_input_time_out_and_status_are_the_commands() -> None:
    provider = FakeProvider()
    provider.script(["nsenter"], lambda call: Answer(3, out=call.input or b""))
    container = LiveContainer(provider.create_one("t", NodeSpec("a", "-")), STATE)
    with pytest.raises(LabError):
        container.run(["cat"])
    result = container.run(["cat"], input=b"x", check=False)
    assert (result.out, result.status) == (b"x", 3)


def test_a_terminal_is_one_of_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    node = SimpleNamespace(attach=lambda *a, **k: (a, k), shares=True)
    container = LiveContainer(cast("Node", node), STATE)
    for tty in (True, False):
        told = cast("tuple[object, object]", container.attach(["sh"], tty=tty))
        assert told == (([*enter(77, tty=tty), "sh"],), {"tty": tty, "inside": 77})


def test_its_facts_are_those_of_its_process(container: LiveContainer) -> None:
    assert (container.name, container.pid, container.address) == ("web", 77, "172.17.0.2")
    assert container.env == {"A": "b=c", "EMPTY": "", "HOSTNAME": "web"}
    assert container.slowness is container.node.slowness

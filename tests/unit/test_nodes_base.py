"""Methods that every node and provider inherits: results, units, lack of memory, refusals."""

from __future__ import annotations

import pytest

from testbed.errors import CommandError, MachineError, NodeNotRunning
from testbed.nodes import base
from testbed.nodes.base import NodeSpec, Provider, Result, Service
from testbed.nodes.fake import Answer, FakeNode, FakeProvider
from testbed.testing.fakes import be_a_machine


@pytest.fixture
def node() -> FakeNode:
    return FakeProvider().create_one("lab", NodeSpec("n1", "-"))


@pytest.mark.parametrize(("status", "ok"), [(0, True), (1, False), (-9, False)])
def test_only_a_command_that_ended_with_zero_went_well(
    node: FakeNode, status: int, *, ok: bool
) -> None:
    result = Result(("x", "y"), status, b"out\xff", b"err")
    assert result.ok is ok
    assert (result.stdout, result.stderr) == ("out\ufffd", "err")
    if ok:
        assert node.require(result) is result
        return
    with pytest.raises(CommandError) as caught:
        node.require(result)
    error = caught.value
    assert (error.argv, error.where, error.status) == (("x", "y"), "n1", status)
    assert (error.stdout, error.stderr) == (result.stdout, "err")


@pytest.mark.parametrize(
    ("out", "data"), [(b'[{"a": 1}]\n', [{"a": 1}]), (b" \n", None), (b"", None)]
)
def test_json_that_was_printed(out: bytes, data: object) -> None:
    assert Result(("ip",), 0, out, b"").json() == data


def test_a_command_that_need_not_go_well() -> None:
    provider = FakeProvider()
    provider.script(["x"], lambda call: Answer(3, out=call.input or b""))
    node = provider.create_one("lab", NodeSpec("n1", "-"))
    assert node.run(["x"], input=b"in", check=False).out == b"in"
    with pytest.raises(CommandError):
        node.run(["x"])
    node.run(["y"], env={"A": "b"})
    assert [call.env for call in provider.calls if call.words == ("y",)] == [{"A": "b"}]


def test_what_runs_ends_with_the_block(node: FakeNode) -> None:
    with node.spawn(["sleep", "9"]) as running:
        assert running in node._running
    assert running not in node._running
    error = running.still_running("n1", 2.5)
    assert "2.5 s" in error.message
    assert "testbed shell n1" in str(error.hint)


@pytest.mark.parametrize(
    ("found", "words"), [(base.has_ended, "ended"), (base.is_stopped, "stopped")]
)
def test_a_node_that_does_not_answer_is_told_with_the_way_back(found: object, words: str) -> None:
    assert callable(found)
    error = found("n1", "lab")
    assert isinstance(error, NodeNotRunning)
    assert words in error.message
    assert "n1" in error.message
    assert "-l lab" in str(error.hint)


def test_the_last_words_of_a_node_are_below() -> None:
    error = base.has_ended("n1", "lab", "one\ntwo")
    assert error.message.splitlines()[1:] == ["    one", "    two"]


def test_a_service_is_found_by_its_name_and_by_its_unit(node: FakeNode) -> None:
    daemon = Service("dockerd", ("dockerd",), unit="docker")
    for service in (daemon, Service("etcd", ("etcd",))):
        node.start(service)
        base.name_unit(node, service)
    for name, found in (("dockerd", "dockerd"), ("docker", "dockerd"), ("etcd", "etcd")):
        state = base.service_of(node, name)
        assert state is not None
        assert state.name == found
    for name in ("sshd", "../units/docker", "", "."):
        assert base.service_of(node, name) is None
    assert sorted(path for path in node.files if path.startswith(base.UNITS)) == [
        f"{base.UNITS}/docker"
    ]


def test_an_unknown_service_is_told_with_those_of_the_node() -> None:
    error = base.no_service("sshd", "node1", ["etcd", "dockerd"])
    assert (error.name, list(error.known)) == ("sshd", ["dockerd", "etcd"])
    assert "node1" in error.message
    assert "sshd" in error.message
    assert "dockerd, etcd" in str(error.hint)
    assert "none" in str(base.no_service("sshd", "node1", []).hint)


#: As the kernel prints them.
V1 = b"oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"
V2 = b"low 0\noom 3\noom_kill 4\noom_group_kill 9\n"
MACHINE = b"nr_free_pages 7\noom_kill 5\n"


@pytest.mark.parametrize(
    ("files", "shares", "killed"),
    [
        ({base.KILLS[0]: V2}, True, 4),
        ({base.KILLS[1]: V1}, True, 2),
        ({base.KILLS[0]: b"low 0\n", base.KILLS[1]: V1}, True, 2),  # a kernel that does not count
        ({"/proc/vmstat": MACHINE}, True, 0),  # those of this machine are not the node's own
        ({"/proc/vmstat": MACHINE, base.KILLS[0]: V2}, False, 5),
        ({}, True, 0),
        ({}, False, 0),
    ],
)
def test_what_memory_ran_out_for_is_counted(
    node: FakeNode,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, bytes],
    *,
    shares: bool,
    killed: int,
) -> None:
    be_a_machine(monkeypatch, not shares)
    for path, text in files.items():
        node.put(text, path)
    assert base.killed_for_memory(node) == killed


def test_what_a_cluster_has_killed_for_others_is_not_a_pods_own(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeNode, "shares_kernel", False)
    node.put(MACHINE, "/proc/vmstat")
    assert base.killed_for_memory(node) == 0
    node.put(V2, base.KILLS[0])
    assert base.killed_for_memory(node) == 4


def test_of_a_node_that_has_ended_nothing_is_known(node: FakeNode) -> None:
    node.put(V2, base.KILLS[0])
    node.remove()
    assert base.killed_for_memory(node) == 0


class Plain(FakeProvider):
    """One that cannot stop nodes."""

    pause, resume, paused = Provider.pause, Provider.resume, Provider.paused


def test_a_provider_that_cannot_stop_a_node_says_so() -> None:
    provider = Plain(name="plain")
    for method in (provider.pause, provider.resume):
        with pytest.raises(MachineError, match="plain") as caught:
            method("lab", "n1")
        assert "n1" in caught.value.message
        assert caught.value.hint
    assert provider.paused("lab") == []

"""`stop`, `start` and `restart`: what they do, what stays stopped, and what tells it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click
import pytest
from hands import PLAIN, FakeControl, Hands, runs

from testbed.cli import common
from testbed.errors import LabError
from testbed.faults.force import Faults
from testbed.labs.lab import Lab
from testbed.nodes.fake import Answer
from testbed.roles.docker import glance
from testbed.roles.docker.control import DockerControl

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.testing.fakes import Bench


@pytest.fixture
def hands(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Hands:
    FakeControl.install(monkeypatch)
    made = Hands(bench, monkeypatch, capsys)
    made.up()
    return made


def states(hands: Hands) -> dict[str, str]:
    """The states that `status` shows, by NODE, NODE/SERVICE and NODE/CONTAINER."""
    found = {}
    for node in json.loads(hands("status", "plain", "--json").out)["nodes"]:
        found[node["name"]] = node["state"]
        parts = [*node["services"], *node["containers"]]
        found |= {f"{node['name']}/{part['name']}": part["state"] for part in parts}
    return found


BY_HAND = "stopped by hand"
UP = {
    "a": "up", "b": "up",
    "a/containerd": "ready", "a/dockerd": "ready", "a/web": "running",
}  # fmt: skip


def test_a_service_is_stopped_told_and_started_with_its_settings(hands: Hands) -> None:
    assert states(hands) == UP
    before = hands.node("a").services()["dockerd"]
    stopped = hands("stop", "a/dockerd")
    assert (stopped.status, stopped.err) == (0, "")
    assert stopped.out.startswith("a/dockerd: service dockerd stopped, SIGTERM (")
    assert states(hands) == UP | {"a/dockerd": BY_HAND}
    assert "`testbed start -l plain a/dockerd`" in hands("status", "plain").out
    assert hands("stop", "a/dockerd").out == "a/dockerd: was not running\n"
    assert hands("start", "a/dockerd").status == 0
    assert hands.node("a").services()["dockerd"].digest == before.digest
    assert states(hands) == UP
    assert hands("start", "a/dockerd").out == "a/dockerd: runs already\n"


def test_a_container_is_stopped_told_and_started(hands: Hands) -> None:
    assert hands("stop", "--grace", "3", "a/web").out.startswith(
        "a/web: container web stopped, exit status 0 of 3 ("
    )
    assert states(hands) == UP | {"a/web": BY_HAND}
    assert hands("start", "a/web").status == 0
    assert states(hands) == UP
    assert hands("restart", "a/web", "--json").status == 0
    assert hands.bench.engine_log == [
        ("a", "exited web"), ("a", "running web"), ("a", "exited web"), ("a", "running web"),
    ]  # fmt: skip


def test_a_node_ends_after_its_services_and_is_created_again(hands: Hands) -> None:
    said = hands("stop", "a")
    assert said.status == 0
    lines = [line.partition(" (")[0] for line in said.out.splitlines()]
    assert lines == [
        "a: service dockerd stopped, SIGTERM",
        "a: service containerd stopped, SIGTERM",
        "a: node a removed",
    ]
    assert [*hands.bench.provider.nodes("plain")] == ["b"]
    assert states(hands) == {"a": BY_HAND, "b": "up"}
    assert hands("stop", "a").out == "a: was not running\n"
    assert hands("start", "a").status == 0
    assert states(hands) == UP
    assert hands("start", "a").out == "a: runs already\n"


def test_restart_of_a_node_is_all_of_it(hands: Hands) -> None:
    before = hands.node("a")
    said = json.loads(hands("restart", "a", "--json").out)
    (target,) = said["targets"]
    assert (target["target"], target["kind"], target["changed"]) == ("a", "node", True)
    assert target["lines"][0].startswith("service dockerd stopped")
    assert "node a created again" in target["lines"][-1]
    assert hands.node("a") is not before
    assert states(hands) == UP


def test_what_ends_with_a_service_is_told(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(node: Node) -> dict[str, object]:
        alive = node.services()["dockerd"].pid == first
        return {"web": None} if alive else {}

    first = hands.node("a").services()["dockerd"].pid
    monkeypatch.setattr("testbed.roles.docker.processes.containers", ended)
    said = hands("restart", "a/dockerd")
    assert "no longer running because of this: container web" in said.out
    assert "`testbed up -l plain`" in said.out
    data = json.loads(hands("restart", "a/containerd", "--json").out)
    assert data["targets"][0]["affected"] == []
    assert data["targets"][0]["lines"][0].startswith("service containerd stopped")


# -- what stays stopped -----------------------------------------------------------------


def test_up_starts_all_that_was_stopped(hands: Hands) -> None:
    assert hands("stop", "a/web", "b", "a/dockerd").status == 0
    FakeControl(hands.node("a"))._here.pop("web")  # the new daemon has ended it
    assert hands("up", "-l", "plain", "-q").status == 0
    assert states(hands) == UP
    assert Lab("plain", hands.bench.settings).record().stopped == []


def test_start_of_a_node_leaves_the_rest_stopped(hands: Hands) -> None:
    assert hands("stop", "a/containerd", "a/web", "b").status == 0
    said = hands("start", "b")
    assert said.status == 0
    assert states(hands) == UP | {"a/containerd": BY_HAND, "a/web": BY_HAND}
    assert "a/containerd was stopped by hand" in said.out
    assert "left out: needs docker a" in said.out
    assert hands("stop", "b").status == 0
    assert hands("restart", "a", "-l", "plain").status == 0
    assert states(hands) == UP | {"b": BY_HAND}


def test_a_stopped_service_is_no_fault(hands: Hands) -> None:
    assert hands("stop", "a/dockerd").status == 0
    lab = Lab("plain", hands.bench.settings)
    hands.bench.provider.script(["nft"], Answer(1))
    hands.bench.provider.script(["tc"], Answer(out=b"[]"))
    hands.node("a").end("containerd", -9)
    assert [seen.fault.words for seen in Faults(lab).in_force()] == ["kill a/containerd"]
    Faults(lab).heal()
    assert states(hands)["a/containerd"] == "ready"
    assert states(hands)["a/dockerd"] == BY_HAND, "healing a fault starts no other service"


def test_a_part_that_runs_again_is_not_told_as_stopped(hands: Hands) -> None:
    assert hands("stop", "a/dockerd").status == 0
    hands.node("a").start_again("dockerd")
    assert states(hands) == UP


@pytest.mark.parametrize("argv", [["exec", "b", "true"], ["cp", "b:/etc/hosts", "x"]])
def test_a_command_on_a_stopped_node_says_how_to_start_it(argv: list[str], hands: Hands) -> None:
    assert hands("stop", "b").status == 0
    said = hands(*argv)
    assert said.status == 4
    assert "`testbed start -l plain b`" in said.err


@pytest.mark.parametrize("verb", ["start", "restart"])
def test_a_daemon_whose_own_daemon_is_stopped_is_refused_at_once(verb: str, hands: Hands) -> None:
    """It would be waited for in vain, and a restart would have stopped it before."""
    assert hands("stop", "a/containerd").status == 0
    hands.bench.forget()
    said = hands(verb, "a/dockerd")
    assert said.status == 4
    assert "a/dockerd needs a/containerd" in said.err
    assert "`testbed start -l plain a/containerd a/dockerd`" in said.err
    assert not hands.bench.provider.asked("stop")
    assert not hands.bench.provider.asked("start")
    assert hands("start", "a/containerd", "a/dockerd").status == 0
    assert hands(verb, "a/dockerd").status == 0


def test_daemons_of_other_nodes_count_too(hands: Hands) -> None:
    hands.bench.provider.destroy("plain")
    hands.up(PLAIN.replace("roles: [docker]", "roles: [docker, flannel]").replace(
        "{networks: {lan: 10.168.0.3}}", "{networks: {lan: 10.168.0.3}, roles: [etcd]}"
    ).replace("nodes:", "flannel: {}\nnodes:", 1))  # fmt: skip
    assert hands("stop", "b/etcd").status == 0
    said = hands("restart", "a/flanneld")
    assert (said.status, "a/flanneld needs b/etcd" in said.err) == (4, True)
    assert hands("stop", "b").status == 0
    assert hands("restart", "a/flanneld").status == 4


# -- wrong use ---------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["stop", "start", "restart"])
@pytest.mark.parametrize(
    ("target", "status"), [("nosuch", 4), ("a/nosuch", 4), ("nosuch/web", 4), ("a/", 2)]
)
def test_unknown_targets(verb: str, target: str, status: int, hands: Hands) -> None:
    said = hands(verb, target)
    assert (said.status, said.out) == (status, "")
    assert "-> " in said.err
    assert states(hands) == UP


def test_help_says_what_a_fault_is_instead(hands: Hands) -> None:
    assert "fault stop" in hands("stop", "--help").out
    assert "fault kill" in hands("restart", "--help").out


def test_a_daemon_that_does_not_answer_is_the_error_of_its_containers(
    hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(_: Node) -> dict[str, str]:
        raise LabError("dockerd on a does not answer")

    monkeypatch.setattr(FakeControl, "states", silent)
    assert "does not answer" in hands("stop", "a/web").err
    assert hands("stop", "a/dockerd").status == 0, "a service is found without it"


# -- the requests to Docker --------------------------------------------------------------


def test_requests_to_the_engine(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    answers = [(204, b""), (304, b""), (404, b'{"message": "No such container: x"}')]

    def request(_: Node, method: str, path: str, timeout: float) -> tuple[int, bytes]:
        asked.append((method, path, timeout))
        return answers.pop(0)

    monkeypatch.setattr(glance, "request", request)
    docker = DockerControl(hands.node("a"))
    assert docker.stop("web", 2.5) == "exit status 0"
    docker.start("a/b")
    with pytest.raises(LabError, match="No such container"):
        docker.start("x")
    assert [one[:2] for one in asked] == [
        ("POST", "/containers/web/stop?t=3"),
        ("POST", "/containers/a%2Fb/start"),
        ("POST", "/containers/x/start"),
    ]
    assert asked[0][2] > 60


def test_running_containers_are_found_without_their_daemon(
    hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(monkeypatch, "web")
    assert "because of this" not in hands("stop", "a/dockerd").out


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["exec", "b", "id"], 4),
        (["exec", "--all", "id"], 4),
        (["logs", "b"], 4),
        (["start", "b/any"], 4),
        (["cp", "b:/etc/hosts", "./x"], 4),
    ],
)
def test_of_a_stopped_node_each_command_tells_how_to_start_it(
    argv: list[str], status: int, hands: Hands
) -> None:
    assert hands("stop", "b").status == 0
    said = hands(*argv)
    assert said.status == status
    assert "`testbed start -l plain b`" in said.err


def test_parts_of_the_file_complete(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("testbed.settings.settings", lambda: hands.bench.settings)
    own = "{networks: {lan: 10.168.0.3}, services: {echo: {command: [sleep, inf]}}}"
    hands.bench.provider.destroy("plain")
    hands.up(PLAIN.replace("{networks: {lan: 10.168.0.3}}", own))
    context = click.Context(click.Command("stop"))
    context.params["lab_name"] = "plain"
    assert common.complete_parts(context, None, "b") == ["b", "b/echo"]
    assert common.complete_parts(context, None, "a/") == ["a/web", "a/containerd", "a/dockerd"]


def test_status_has_no_blanks_at_the_ends_of_lines(hands: Hands) -> None:
    hands.bench.provider.destroy("plain")
    hands.up(PLAIN.replace("0.3}", "0.3}, files: {/etc/x: {content: x}}"))
    assert hands("stop", "a").status == 0
    lines = hands("status").out.splitlines()
    assert any("/etc/x" in line for line in lines)
    assert lines == [line.rstrip() for line in lines]


def test_only_what_stops_has_a_grace(hands: Hands) -> None:
    said = hands("start", "a/web", "--grace", "1")
    assert (said.status, said.out) == (2, "")
    assert hands("restart", "a/web", "--grace", "1").status == 0

"""The last look at containers: what is fine, what is not, what is said; on fake nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from testbed.errors import ContainerError, LabError, NoSuchContainer, StepsFailed
from testbed.labs.lab import Lab, Outcome
from testbed.labs.live import LiveLab
from testbed.nodes.fake import Answer, Call
from testbed.roles.docker import settle
from testbed.testing.fakes import Bench, FakeEngine
from testbed.topology import Topology, load_text

if TYPE_CHECKING:
    from testbed.roles.docker.engine import ContainerState

HEAD = """
name: ends
networks: {lan: {subnet: 10.1.0.0/24}}
nodes: {a: {networks: {lan: 10.1.0.1}, roles: [docker]}}
containers:
"""
ENDED = {"running": False, "status": "exited", "pid": 0, "exit": 1, "address": ""}
#: /proc/net/tcp with a listener on port 80 and a connection from 8080 (proc(5)).
TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7001 1
   1: 020011AC:1F90 010011AC:A000 01 00000000:00000000 00:00000000 00000000     0        0 7002 1
   2: 0B00007F:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7003 1
"""


def lab(text: str) -> Topology:
    return load_text(HEAD + text, "ends.yaml")


def up(bench: Bench, topology: Topology) -> Outcome:
    return Lab("ends", bench.settings).up(topology)


def turn(monkeypatch: pytest.MonkeyPatch, **states: dict[str, Any]) -> None:
    monkeypatch.setattr(FakeEngine, "turns", states)


def failed(bench: Bench, topology: Topology) -> ContainerError:
    with pytest.raises(StepsFailed) as caught:
        up(bench, topology)
    ((step, error),) = caught.value.failures
    assert step == "containers a"
    assert isinstance(error, ContainerError)
    return error


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give a container other values of its state at each look; the last ones stay."""

    def turns(name: str, *states: dict[str, Any]) -> None:
        left = list(states)
        find = FakeEngine.find

        def found(self: FakeEngine, container: str) -> ContainerState | None:
            state = find(self, container)
            if state is not None and container == name:
                changes = left.pop(0) if len(left) > 1 else left[0]
                for key, value in changes.items():
                    object.__setattr__(state, key, value)
            return state

        monkeypatch.setattr(FakeEngine, "find", found)

    return turns


def test_a_container_that_has_ended_is_no_lab_that_is_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn(monkeypatch, web=ENDED)
    monkeypatch.setattr(FakeEngine, "written", {"web": "starting\nno such database\n"})
    error = failed(bench, lab("  web: {node: a}"))
    assert (error.container, error.node, error.status) == ("web", "a", 1)
    assert "no such database" in str(error)
    assert "expect: exit 1" in (error.hint or "")
    assert bench.provider.nodes("ends") == {}


def test_one_that_ends_a_moment_later(
    bench: Bench, later: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "MOMENT", 60.0)  # reached by none
    later("web", {}, {}, ENDED)
    assert failed(bench, lab("  web: {node: a, command: [sh]}")).status == 1


def test_all_that_ended_are_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    turn(monkeypatch, one=ENDED, two={**ENDED, "exit": 137})
    with pytest.raises(StepsFailed) as caught:
        up(bench, lab("  one: {node: a}\n  two: {node: a}\n  fine: {node: a}"))
    ((_, inner),) = caught.value.failures
    assert isinstance(inner, StepsFailed)
    assert [name for name, _ in inner.failures] == ["one", "two"]


AGAIN = {"running": False, "status": "restarting", "pid": 0, "exit": 1, "restarts": 1}
RUNS = {"running": True, "status": "running", "pid": 5, "exit": 0, "restarts": 2}


@pytest.mark.parametrize("restart", ["always", "unless-stopped", "on-failure", "on-failure:5"])
def test_one_that_docker_starts_again_until_it_runs(
    bench: Bench, later: Callable[..., None], restart: str
) -> None:
    """As a client that starts before its server."""
    later("web", AGAIN, {**AGAIN, "restarts": 2}, RUNS)
    up(bench, lab(f"  web: {{node: a, restart: '{restart}'}}"))


@pytest.mark.parametrize("keys", ["", ", restart: 'no'"])
def test_one_that_nobody_starts_again(bench: Bench, later: Callable[..., None], keys: str) -> None:
    later("web", AGAIN)
    assert failed(bench, lab(f"  web: {{node: a{keys}}}")).status == 1


def test_one_that_docker_has_given_up(bench: Bench, later: Callable[..., None]) -> None:
    later("web", AGAIN, {**ENDED, "restarts": 1})
    assert failed(bench, lab("  web: {node: a, restart: on-failure:1}")).status == 1


def test_one_that_docker_starts_again_and_again(
    bench: Bench, later: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "RESTART_SECONDS", 0.001)
    later("web", AGAIN)
    assert "restarted" in str(failed(bench, lab("  web: {node: a, restart: always}")))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({**ENDED, "exit": 137, "out_of_memory": True}, "out of memory"),
        ({**ENDED, "exit": 137}, "SIGKILL"),
        ({**ENDED, "exit": 127}, "not found"),
        ({**ENDED, "exit": 126}, "cannot be executed"),
        ({**ENDED, "exit": 255}, "255"),
        ({"running": True, "status": "restarting", "exit": 3, "restarts": 4}, "restarted"),
    ],
)
def test_the_reason_is_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, state: dict[str, Any], words: str
) -> None:
    turn(monkeypatch, web=state)
    error = failed(bench, lab("  web: {node: a}"))
    assert error.status == state["exit"]
    assert words in str(error)


def test_one_that_is_started_again_between_two_looks(
    bench: Bench, later: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "MOMENT", 60.0)
    later("web", {}, {"restarts": 1})
    assert "restarted" in str(failed(bench, lab("  web: {node: a, command: [sh]}")))


def test_a_program_for_another_processor(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    turn(monkeypatch, web=ENDED)
    monkeypatch.setattr(FakeEngine, "written", {"web": "exec /bin/x: exec format error\n"})
    assert "architecture" in (failed(bench, lab("  web: {node: a}")).hint or "")


def test_one_that_the_daemon_could_not_start(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    words = 'runc create failed: unable to start container process: exec: "x": not found: unknown'
    start = FakeEngine.start

    def refuses(self: FakeEngine, lab: str, container: Any, digest: str) -> None:
        start(self, lab, container, digest)
        raise LabError("dockerd on a: cannot start the container web")

    turn(monkeypatch, web={**ENDED, "status": "created", "exit": 127, "error": words})
    monkeypatch.setattr(FakeEngine, "start", refuses)
    with pytest.raises(StepsFailed) as caught:
        up(bench, lab("  web: {node: a}"))
    ((step, error),) = caught.value.failures
    assert step == "container a/web"
    assert isinstance(error, ContainerError)
    assert (error.status, error.log) == (127, 'exec: "x": not found')


# -- expect -----------------------------------------------------------------------


def test_one_that_ends_as_the_file_says(bench: Bench, later: Callable[..., None]) -> None:
    later("job", {}, {}, {**ENDED, "exit": 3})
    topology = lab("  job: {node: a, command: [sh], expect: exit 3}\n  web: {node: a}")
    outcome = up(bench, topology)
    (done,) = (done for done in outcome.steps if done.step.name == "containers a")
    assert done.words == "1 running, 1 ended as expected"
    assert up(bench, topology).changed == []  # it is not started again
    live = LiveLab(Lab("ends", bench.settings).context())
    with pytest.raises(NoSuchContainer, match="`expect`"):
        live.container("job")


@pytest.fixture(autouse=True)
def live_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("testbed.labs.live.Engine", FakeEngine)


@pytest.mark.parametrize("exit_status", [0, 4])
def test_one_that_ends_otherwise(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, exit_status: int
) -> None:
    turn(monkeypatch, job={**ENDED, "exit": exit_status})
    error = failed(bench, lab("  job: {node: a, expect: exit 3}"))
    assert error.status == exit_status
    assert f"expect: exit {exit_status}" in (error.hint or "")


def test_one_that_does_not_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "END_SECONDS", 0.02)
    error = failed(bench, lab("  job: {node: a, expect: exit 0}"))
    assert error.status is None
    assert "has not ended" in str(error)


def test_one_that_ended_otherwise_is_started_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    topology = lab("  job: {node: a, expect: exit 0}")
    turn(monkeypatch, job={**ENDED, "exit": 0})
    up(bench, topology)
    engine = FakeEngine(bench.provider.nodes("ends")["a"])
    object.__setattr__(engine.inspect("job"), "exit", 1)
    bench.forget()
    up(bench, topology)
    assert ("a", "start job") in bench.engine_log


# -- health and readiness ------------------------------------------------------------

CHECKED = "  web: {node: a, healthcheck: {test: curl localhost, interval: 1s}}"


def test_a_health_check_is_waited_for(bench: Bench, later: Callable[..., None]) -> None:
    later("web", {"health": "starting"}, {"health": "starting"}, {"health": "healthy"})
    assert up(bench, lab(CHECKED)).seconds < 30


def test_one_that_is_unhealthy(
    bench: Bench, later: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    later("web", {"health": "starting"}, {"health": "unhealthy"})
    log = [{"ExitCode": 0, "Output": "ok"}, {"ExitCode": 7, "Output": "refused"}]
    raw = {"Config": {"Healthcheck": {}}, "State": {"Health": {"Log": log}}}
    monkeypatch.setattr(FakeEngine, "inspect_raw", lambda *_: raw)
    error = failed(bench, lab(CHECKED))
    assert error.log == "refused"
    assert "exit status 7" in str(error)


def test_one_that_has_become_unhealthy_is_made_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    up(bench, lab(CHECKED))
    engine = FakeEngine(bench.provider.nodes("ends")["a"])
    object.__setattr__(engine.inspect("web"), "health", "unhealthy")
    bench.forget()
    up(bench, lab(CHECKED))
    assert ("a", "start web") in bench.engine_log


def test_a_health_check_is_bounded_by_its_own_times() -> None:
    second = 1_000_000_000
    check = {"Interval": second, "Timeout": 2 * second, "Retries": 3, "StartPeriod": 5 * second}
    wanted = 5 + (3 + 1) * (1 + 2) + settle.LATE
    assert settle._check_seconds({"Config": {"Healthcheck": check}}) == wanted
    # Docker's defaults: three checks, 30 s apart, of 30 s at most.
    assert settle._check_seconds({"Config": {"Healthcheck": {}}}) == 240 + settle.LATE


def listening(bench: Bench, monkeypatch: pytest.MonkeyPatch, tables: dict[str, str]) -> None:
    """Have each process of a node listen as these files of /proc/PID/net say."""
    from testbed.nodes.fake import FakeNode

    get = FakeNode.get

    def answer(self: FakeNode, path: str) -> bytes:
        name = path.rpartition("/")[2]
        if "/net/" in path and name in tables:
            return tables[name].encode()
        return get(self, path)

    monkeypatch.setattr(FakeNode, "get", answer)


def test_a_port_is_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    tables: dict[str, str] = {}
    listening(bench, monkeypatch, tables)
    error = failed(bench, lab("  web: {node: a, ready: {port: 80, timeout: 20ms}}"))
    assert "80/tcp" in str(error)
    tables["tcp"] = TCP
    assert up(bench, lab("  web: {node: a, ready: {port: 80, timeout: 20ms}}"))
    Lab("ends", bench.settings).down()
    failed(bench, lab("  web: {node: a, ready: {port: 8080, timeout: 20ms}}"))  # only connected
    failed(bench, lab("  web: {node: a, ready: {port: 53, timeout: 20ms}}"))  # Docker's own DNS
    failed(bench, lab("  web: {node: a, ready: {port: 80/udp, timeout: 20ms}}"))
    tables["udp6"] = TCP.replace(" 0A ", " 07 ")
    assert up(bench, lab("  web: {node: a, ready: {port: 80/udp, timeout: 20ms}}"))


def test_a_command_is_waited_for(bench: Bench) -> None:
    answers = [Answer(1, err=b"not yet\n"), Answer(1), Answer()]

    def check(call: Call) -> Answer:
        return (answers.pop(0) if answers else Answer()) if "check" in call.words else Answer()

    bench.provider.script(["env"], check)
    up(bench, lab("  web: {node: a, ready: {command: [check]}}"))
    assert answers == []
    bench.provider.script(["env"], Answer(2, err=b"bad\nno table\n"))
    Lab("ends", bench.settings).down()
    error = failed(bench, lab("  web: {node: a, ready: {command: [check], timeout: 20ms}}"))
    assert "exit status 2, no table" in str(error)


def test_what_takes_connections_needs_no_moment(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "MOMENT", 1e9)
    listening(bench, monkeypatch, {"tcp": TCP})
    up(bench, lab("  web: {node: a}"))


def test_a_socket_of_a_shared_network_must_be_its_own(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "MOMENT", 1e9)
    listening(bench, monkeypatch, {"tcp": TCP})
    shown: list[tuple[str, ...]] = []

    def fds(call: Call) -> Answer:
        shown.append(call.words)
        number = 7001 if len(shown) > 2 else 9
        return Answer(out=f"lrwx 1 root root 64 Jan 1 3 -> socket:[{number}]\n".encode())

    bench.provider.script(["ls"], fds)
    up(bench, lab("  web: {node: a, network: host}"))
    assert len(shown) == 3

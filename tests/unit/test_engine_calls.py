"""Requests to a daemon for a container, and its answers (Engine API, version 1.41)."""

from __future__ import annotations

import http.server
import json
import socketserver
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import docker.errors
import pytest
from topology_texts import DOCKER

from testbed.errors import LabError, NoAnswer
from testbed.nodes.base import NodeSpec
from testbed.nodes.fake import Answer, FakeProvider
from testbed.roles.container import ContainerProcess, choose, enter
from testbed.roles.docker import glance, processes
from testbed.roles.docker.engine import ContainerState, Endpoint, Engine, load, no_answer, preload
from testbed.topology import load_text

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.topology.containers import Container


class Api:
    """The SDK's low-level client, as far as it is used; keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.answers: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.asked.append((name, args, kwargs))
            answer = self.answers.get(name)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call

    def create_host_config(self, **kwargs: Any) -> dict[str, Any]:
        return kwargs

    def of(self, name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        ((args, kwargs),) = [(args, kwargs) for what, args, kwargs in self.asked if what == name]
        return args, kwargs


def engine() -> tuple[Engine, Any]:
    made = Engine.__new__(Engine)
    made._node = FakeProvider().create_one("lab", NodeSpec("node1", "-"))
    api: Any = Api()
    made.api = api
    return made, api


def container(settings: str) -> Container:
    return load_text(DOCKER + f"containers: {{web: {{node: n1{settings}}}}}\n", "t").containers[
        "web"
    ]


def created(settings: str) -> dict[str, Any]:
    made, api = engine()
    made.start("lab", container(settings), "d1")
    assert api.of("start") == (("web",), {})
    assert [what for what, _, _ in api.asked] == ["create_container", "start"]
    args, kwargs = api.of("create_container")
    assert args == ()
    found: dict[str, Any] = kwargs
    return found


def test_a_plain_container() -> None:
    assert created("") == {
        "image": "nginx",
        "command": None,
        "name": "web",
        "hostname": "web",
        "environment": {"NAME": "web"},
        "labels": {"testbed.digest": "d1", "testbed.labs": "lab"},
        "ports": None,
        "host_config": {"network_mode": "bridge", "port_bindings": None},
        "healthcheck": None,
    }


def test_its_command_and_variables() -> None:
    made = created(", command: [sh, -c, 'exit 0'], env: {A: b, NAME: mine}")
    assert made["command"] == ["sh", "-c", "exit 0"]
    assert made["environment"] == {"NAME": "mine", "A": "b"}


@pytest.mark.parametrize(
    ("network", "hostname"), [("bridge", "web"), ("none", "web"), ("host", None)]
)
def test_a_shared_network_has_its_host_name(network: str, hostname: str | None) -> None:
    made = created(f", network: {network}")
    assert (made["host_config"]["network_mode"], made["hostname"]) == (network, hostname)


def test_a_network_of_another_container() -> None:
    text = DOCKER + "containers: {a1: {node: n1}, web: {node: n1, network: 'container:a1'}}\n"
    made, api = engine()
    made.start("lab", load_text(text, "t").containers["web"], "d1")
    _, kwargs = api.of("create_container")
    assert kwargs["hostname"] is None
    assert kwargs["host_config"]["network_mode"] == "container:a1"


def test_published_ports() -> None:
    ports = '["8080:80", "10.168.0.2:8081:80", "53:5353/udp"]'
    made = created(f", publish: {ports}")
    assert made["ports"] == [(80, "tcp"), (80, "tcp"), (5353, "udp")]
    assert made["host_config"]["port_bindings"] == {
        "80/tcp": [8080, ("10.168.0.2", 8081)],
        "5353/udp": [53],
    }


def test_a_health_check_is_in_nanoseconds() -> None:
    check = "{test: [CMD, check], interval: 1500ms, timeout: 2s, retries: 4, start_period: 1m}"
    assert created(f", healthcheck: {check}")["healthcheck"] == {
        "Test": ["CMD", "check"],
        "Interval": 1_500_000_000,
        "Timeout": 2_000_000_000,
        "Retries": 4,
        "StartPeriod": 60_000_000_000,
    }
    # 0, and an empty test, are the image's own or Docker's default (HealthConfig).
    assert created(", healthcheck: {retries: 1}")["healthcheck"] == {
        "Test": [], "Interval": 0, "Timeout": 0, "Retries": 1, "StartPeriod": 0,
    }  # fmt: skip
    assert created(", healthcheck: {timeout: 1s}")["healthcheck"]["Retries"] == 0


def test_a_container_is_removed_at_once() -> None:
    made, api = engine()
    made.remove("web")
    assert api.of("remove_container") == (("web",), {"force": True})


INSPECTED: dict[str, Any] = {
    "Id": "f" * 64,
    "Name": "/web",
    "RestartCount": 2,
    "Image": "sha256:of the image",
    "State": {
        "Running": True, "Pid": 77, "Status": "running", "ExitCode": 0, "OOMKilled": False,
        "Error": "", "Health": {"Status": "healthy"},
    },
    "HostConfig": {"NetworkMode": "bridge"},
    "Config": {"Image": "nginx", "Labels": {"testbed.digest": "d1"}},
    "NetworkSettings": {
        "Networks": {"bridge": {"IPAddress": "172.17.0.2", "Gateway": "172.17.0.1"}}
    },
}  # fmt: skip


def inspected(**changes: Any) -> ContainerState:
    made, api = engine()
    api.answers["inspect_container"] = INSPECTED | changes
    state = made.inspect("web")
    assert api.of("inspect_container") == (("web",), {})
    return state


def test_a_container_is_read() -> None:
    assert inspected() == ContainerState(
        name="web", id="f" * 64, running=True, pid=77, network="bridge", address="172.17.0.2",
        gateway="172.17.0.1", image="nginx", digest="d1", status="running", exit=0,
        out_of_memory=False, error="", health="healthy", restarts=2, image_id="sha256:of the image",
        networks={"bridge": Endpoint("", "172.17.0.2")},
    )  # fmt: skip


def test_a_container_that_has_ended_is_read() -> None:
    state = INSPECTED["State"] | {
        "Running": False, "Pid": 0, "Status": "exited", "ExitCode": 137, "OOMKilled": True,
        "Error": "no memory",
    }  # fmt: skip
    found = inspected(State=state, NetworkSettings={"Networks": None})
    assert (found.running, found.pid, found.status) == (False, 0, "exited")
    assert (found.exit, found.out_of_memory, found.error) == (137, True, "no memory")
    assert (found.address, found.gateway) == ("", "")


@pytest.mark.parametrize(
    ("health", "word"),
    [(None, ""), ({}, ""), ({"Status": "none"}, ""), ({"Status": "unhealthy"}, "unhealthy")],
)
def test_the_health_of_a_container(health: Any, word: str) -> None:
    assert inspected(State=INSPECTED["State"] | {"Health": health}).health == word


@pytest.mark.parametrize("labels", [None, {}, {"other": "x"}])
def test_a_container_of_somebody_else_has_no_digest(labels: Any) -> None:
    assert inspected(Config={"Image": "nginx", "Labels": labels}).digest is None


def test_containers_are_listed_by_label() -> None:
    made, api = engine()
    api.answers["containers"] = [{"Names": ["/b", "/alias"]}, {"Names": []}, {"Names": ["/a"]}]
    assert made.names(label="testbed.labs=x") == {"a", "b"}
    assert api.of("containers") == ((), {"all": True, "filters": {"label": "testbed.labs=x"}})
    api.asked.clear()
    api.answers["inspect_container"] = INSPECTED
    assert list(made.containers()) == ["a", "b"]
    assert ("containers", (), {"all": True, "filters": None}) in api.asked
    assert [args for what, args, _ in api.asked if what == "inspect_container"] == [("a",), ("b",)]


def test_the_last_lines_of_a_log() -> None:
    made, api = engine()
    api.answers["logs"] = b"one\nt\xffwo\n"
    assert made.logs("web") == "one\nt\ufffdwo\n"
    assert api.of("logs") == (("web",), {"tail": 12})
    assert made.logs("web", 3)
    assert api.asked[-1][2] == {"tail": 3}


def test_one_that_is_not_there_is_none() -> None:
    made, api = engine()
    api.answers["inspect_container"] = docker.errors.NotFound("no such container")
    assert made.find("web") is None
    with pytest.raises(LabError):
        made.inspect("web")
    api.answers["inspect_container"] = docker.errors.APIError("broken")
    with pytest.raises(LabError):
        made.find("web")


def test_a_name_is_not_the_beginning_of_an_id() -> None:
    made, api = engine()
    api.answers["inspect_container"] = INSPECTED
    assert made.find("web") == made.inspect("web")
    assert made.find("ff") is None  # INSPECTED's id begins so
    api.answers["inspect_image"] = {"Id": "sha256:1"}
    made.image_id("cafe")
    assert api.of("inspect_image") == (("docker.io/library/cafe:latest",), {})


def test_an_image_is_known_by_its_id() -> None:
    made, api = engine()
    api.answers["inspect_image"] = {"Id": "sha256:1"}
    assert made.image_id("sha256:1") == "sha256:1"
    assert api.of("inspect_image") == (("sha256:1",), {})
    assert made.image_id("nginx") == "sha256:1"
    assert made.has_image("nginx")
    api.answers["inspect_image"] = docker.errors.ImageNotFound("no such image")
    assert made.image_id("nginx") == ""
    assert not made.has_image("nginx")
    api.answers["inspect_image"] = docker.errors.APIError("broken")
    with pytest.raises(LabError, match="broken"):
        made.image_id("nginx")


def test_a_no_is_told_with_its_reason() -> None:
    made, api = engine()
    api.answers["start"] = docker.errors.APIError("no", explanation="port is taken")
    with pytest.raises(LabError, match=r"node1.*start the container web.*port is taken"):
        made.start("lab", container(""), "d1")


@pytest.mark.parametrize(
    ("error", "words", "hint"),
    [
        (ConnectionRefusedError(), "not running", "testbed up"),
        (FileNotFoundError(), "not running", "testbed logs node1 dockerd"),
        (TimeoutError(), "hangs", "fault heal"),
        (OSError("odd"), "odd", "testbed logs node1 dockerd"),
        (OSError(), "OSError", "testbed logs node1 dockerd"),
    ],
)
def test_why_a_daemon_does_not_answer(error: Exception, words: str, hint: str) -> None:
    found = no_answer("node1", error)
    assert isinstance(found, NoAnswer)
    assert "node1" in str(found)
    assert words in str(found)
    assert hint in (found.hint or "")
    assert no_answer("node1", wrap(wrap(error))).hint == found.hint


def wrap(cause: Exception) -> Exception:
    error = RuntimeError("outer")
    error.__cause__ = cause
    return error


def test_causes_in_a_ring_end() -> None:
    one, other = OSError("one"), OSError("other")
    one.__cause__, other.__cause__ = other, one
    assert "one" in str(no_answer("node1", one))


# -- a quick look -------------------------------------------------------------------------

#: GET /containers/json: Status is in words for people (moby, daemon/container: State.String).
LISTED = [
    ({"Status": "Up 2 minutes"}, None, ""),
    ({"Status": "Up 2 minutes (healthy)"}, None, "healthy"),
    ({"Status": "Up 2 minutes (unhealthy)"}, None, "unhealthy"),
    ({"Status": "Up 1 second (health: starting)"}, None, "starting"),
    ({"Status": "Up 2 minutes (Paused)"}, None, ""),
    ({"Status": "Exited (3) 5 seconds ago"}, 3, ""),
    ({"Status": "Exited (137) 5 seconds ago"}, 137, ""),
    ({"Status": "Created"}, None, ""),
    ({"Status": ""}, None, ""),
    ({"Status": None}, None, ""),
    ({}, None, ""),
]


@pytest.mark.parametrize(("more", "status", "health"), LISTED)
def test_a_glance_at_a_container(more: dict[str, Any], status: int | None, health: str) -> None:
    networks = {"Networks": {"bridge": {"IPAddress": "172.17.0.2"}, "x": {"IPAddress": "1.1.1.1"}}}
    entry = {"Names": ["/web", "/a/web"], "State": "s", "NetworkSettings": networks, **more}
    addresses = {"bridge": ("172.17.0.2", ""), "x": ("1.1.1.1", "")}
    assert glance._glance(entry) == glance.Glance(
        "web", "s", "172.17.0.2", status, health, addresses
    )


@pytest.mark.parametrize(
    "networks", [None, {}, {"Networks": None}, {"Networks": {"bridge": {"IPAddress": None}}}]
)
def test_a_container_without_an_address(networks: Any) -> None:
    entry = {"Names": ["/web"], "State": "exited", "NetworkSettings": networks}
    assert glance._glance(entry).address == ""


# -- processes ---------------------------------------------------------------------------

FULL = (
    b'{"Name": "/web", "ID": "%s", "State": {"Pid": 77},'
    b' "Config": {"Hostname": "h", "Env": ["A=b", "C=d"]},'
    b' "NetworkSettings": {"Networks": {"bridge": {"IPAddress": "172.17.0.2"}}}}'
)
ONE, OTHER = "ab" * 32, "abcdef" + "0" * 58


def test_a_containers_process_has_its_environment() -> None:
    (found,) = processes._read(json.loads(FULL % ONE.encode()))
    assert found == ContainerProcess(
        "web", ONE, 77, "172.17.0.2", ("HOSTNAME=h", "A=b", "C=d"), {"bridge": "172.17.0.2"}
    )
    (bare,) = processes._read({"Name": "web", "ID": "1", "State": {"Pid": 1}, "Config": None})
    assert bare == ContainerProcess("web", "1", 1, "", ("HOSTNAME=",))


@pytest.mark.parametrize(
    ("mapped", "user"),
    [(b"0 100000 65536\n", True), (b"         0          0 4294967295\n", False), (None, True)],
)
def test_a_container_of_a_remapped_daemon_has_its_user_namespace(
    mapped: bytes | None, *, user: bool
) -> None:
    """Unless it was started with --userns=host."""
    record = json.loads(FULL % ONE.encode())
    (plain,) = processes._read(
        record | {"HostnamePath": f"/var/lib/docker/containers/{ONE}/hostname"}
    )
    assert not plain.user
    path = f"/var/lib/docker/100000.100000/containers/{ONE}/hostname"
    (found,) = processes._read(record | {"HostnamePath": path})
    assert found.user
    provider = FakeProvider()
    node = provider.create_one("lab", NodeSpec("node1", "-"))
    if mapped is not None:
        node.put(mapped, "/proc/77/uid_map")
    assert processes._with_user(node, found).user == user
    assert processes._with_user(node, plain) is plain
    node.put(ONE.encode(), "/proc/77/cgroup")
    provider.script(["find"], Answer(out=json.dumps(record | {"HostnamePath": path}).encode()))
    assert processes.containers(node)["web"].user == user


@pytest.mark.parametrize("tty", [False, True])
def test_the_images_programs_run_in_the_user_namespace(*, tty: bool) -> None:
    assert "--user" in enter(77, tty=tty, user=True)
    assert "--user" not in enter(77, tty=tty)
    # The node's own programs have the rights of the node.
    assert "--user" not in enter(77, mounts=False, user=True)


def node_with(*found: tuple[str, str, int]) -> Any:
    provider = FakeProvider()
    node = provider.create_one("lab", NodeSpec("node1", "-"))
    texts = []
    for name, identity, pid in found:
        texts.append(
            (FULL % identity.encode())
            .replace(b"/web", b"/" + name.encode())
            .replace(b"77", str(pid).encode())
        )
        node.put(f"0::/docker/{identity}\n".encode(), f"/proc/{pid}/cgroup")
    provider.script(list(processes.LIST), Answer(out=b"\0".join(texts)))
    return node


def test_a_container_is_found_by_name_and_by_the_beginning_of_its_id() -> None:
    node = node_with(("web", ONE, 70), ("db", OTHER, 71))
    assert list(processes.containers(node)) == ["db", "web"]
    for word, name in (("web", "web"), ("db", "db"), (ONE, "web"), (ONE[:6], "web"),
                       (OTHER[:6], "db")):  # fmt: skip
        found = choose(processes.containers(node), word)
        assert found is not None, word
        assert found.name == name
    assert choose(processes.containers(node), ONE[:5]) is None  # too short to mean one
    assert choose(processes.containers(node), ONE[1:9]) is None  # not its beginning
    assert choose(processes.containers(node), "other") is None


def test_an_id_that_two_begin_with_means_none() -> None:
    node = node_with(("web", ONE, 70), ("db", ONE[:10] + "0" * 54, 71))
    assert choose(processes.containers(node), ONE[:8]) is None
    found = choose(processes.containers(node), ONE[:12])
    assert found is not None
    assert found.name == "web"


def test_a_container_that_bears_the_id_of_another_is_found_by_name() -> None:
    node = node_with((ONE[:8], OTHER, 70), ("web", ONE, 71))
    found = choose(processes.containers(node), ONE[:8])
    assert found is not None
    assert found.id == OTHER


def test_a_daemon_is_known_by_its_version() -> None:
    made, api = engine()
    api.answers["version"] = {"Version": "20.10.24", "ApiVersion": "1.41"}
    assert made.version == {"Version": "20.10.24", "ApiVersion": "1.41"}
    assert made.version["Version"] == "20.10.24"
    assert len(api.asked) == 1


def test_an_engine_is_closed_by_its_block() -> None:
    made, api = engine()
    with made as same:
        assert same is made
    assert api.of("close") == ((), {})


@pytest.mark.parametrize("loaded", [True, False])
def test_the_sdk_is_loaded_once_beside_what_goes_on(
    monkeypatch: pytest.MonkeyPatch, *, loaded: bool
) -> None:
    threads: list[dict[str, Any]] = []

    def thread(**kwargs: Any) -> SimpleNamespace:
        threads.append(kwargs)
        return SimpleNamespace(start=lambda: None)

    monkeypatch.setattr("testbed.roles.docker.engine.threading.Thread", thread)
    if not loaded:
        monkeypatch.delitem(sys.modules, "docker")
    preload()
    assert len(threads) == (0 if loaded else 1)
    for one in threads:
        assert one["target"] is load
        assert one["daemon"]  # the end of the program does not wait for it


def test_the_sdk_is_loaded_without_ssh_which_is_there_when_asked_for() -> None:
    code = (
        "import sys\n"
        "from testbed.roles.docker.engine import load\n"
        "load()\n"
        "import docker\n"
        "assert 'paramiko' not in sys.modules\n"
        "from docker.transport import sshconn\n"
        "sshconn.SSHHTTPAdapter.__init__ = lambda *_, **__: sys.exit('asked for')\n"
        "docker.APIClient('ssh://nobody', version='1.41')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == "asked for\n"


class _Version(http.server.BaseHTTPRequestHandler):
    """Answers each request as an engine tells its version."""

    def do_GET(self) -> None:
        body = b'{"ApiVersion": "1.41", "Version": "20.10.24"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_no_request_looks_for_proxies_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked(*_: object, **__: object) -> None:
        raise AssertionError("a socket of this machine has no proxy")

    monkeypatch.setattr("requests.sessions.get_environ_proxies", looked)
    place = str(tmp_path / "docker.sock")
    server = socketserver.ThreadingUnixStreamServer(place, _Version)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    try:
        with Engine(cast("Any", SimpleNamespace(name="node1", socket=lambda _: place))) as made:
            assert made.version["Version"] == "20.10.24"
    finally:
        server.shutdown()
        server.server_close()

"""Nodes that are containers, entered by their process, on a real engine."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import docker
import pytest

from testbed.artifacts import Store
from testbed.artifacts.node_image import NAME as IMAGE
from testbed.errors import LabError, NodeNotRunning
from testbed.labs.lab import Lab
from testbed.labs.live import LiveLab
from testbed.nodes import engine
from testbed.nodes.base import GO, Service
from testbed.nodes.inside import Process
from testbed.nodes.stream.container import ContainerNode
from testbed.settings import settings
from testbed.testing.provider import NodeContract, until
from testbed.testing.terminal import TerminalContract, User
from testbed.topology import load_text

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.nodes.netns.node import NetnsNode

LAB = "engines"
TEXT = """
name: engines
networks: {lan: {subnet: 10.168.0.0/24}}
nodes: {host: {networks: {lan: 10.168.0.2}, roles: [docker]}}
docker: {engine: "29"}
containers:
  web: {node: host}
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveLab]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESTBED_STATE", str(tmp_path_factory.mktemp("state")))
        lab = Lab(LAB, settings())
        try:
            lab.up(load_text(TEXT, "engines.yaml"))
            found = LiveLab(lab.context())
            yield found
            found.close()
        finally:
            lab.down()


def host_of(live: LiveLab) -> NetnsNode:
    found: NetnsNode = live.node("host")  # type: ignore[assignment]  # of this provider
    return found


def node_of(
    live: LiveLab, container: str, mounts: Mapping[Path, str] | None = None
) -> ContainerNode:
    """The node that a container of the host is."""
    host, store = host_of(live), Store()
    about = live.engine("host").api.inspect_container(container)
    pid = about["State"]["Pid"]
    return ContainerNode(
        "node1",
        "digest-1",
        lab=LAB,
        pid=pid,
        start=host.duplex,
        agent=lambda: host.provide(store.binary("testbed-agent")),
        alive=Process(host.init.pid, pid).alive,
        init=lambda: store.binary("testbed-init"),
        env=dict(word.split("=", 1) for word in about["Config"]["Env"]),
        mounts=mounts,
        place=host.socket,
    )


@pytest.fixture(scope="module")
def web(live: LiveLab) -> Iterator[ContainerNode]:
    """A container of an image that knows nothing of us, and is not privileged."""
    made = node_of(live, "web")
    yield made
    made.close()


class TestTerminal(TerminalContract):
    stty = "busybox stty"

    @pytest.fixture
    def node(self, web: ContainerNode) -> Node:
        return web


def test_it_is_in_the_container_and_its_cgroup(live: LiveLab, web: ContainerNode) -> None:
    web.run(["mkdir", "/run/mine"])
    place = f"/proc/{web.pid}/root/run/mine"
    assert host_of(live).run(["test", "-d", place]).ok
    assert web.get("/proc/self/cgroup") == web.get("/proc/1/cgroup")
    assert web.run(["ip", "-br", "link", "show", "eth0"]).stdout.startswith("eth0@")
    assert web.run(["sh", "-c", "echo $NAME"]).stdout == "web\n"  # of the container's own


def test_services_beside_another_first_process(web: ContainerNode) -> None:
    assert web.services() == {}
    web.stop("none")
    web.start(Service("one", ("sh", "-c", "echo begun; exec sleep 300"), digest="d"))
    web.close()  # services outlive whoever started them
    state = web.services()["one"]
    assert (state.state, state.digest) == ("ready", "d")
    assert until(lambda: web.logs("one") == "begun\n")
    assert web.host.service("one").is_running
    assert web.run(["systemctl", "is-active", "one"]).stdout == "active\n"
    keeper = web.run(["sh", "-c", f"ps -o ppid= -p {state.pid}"]).stdout.strip()
    web.run(["kill", "-9", keeper])  # another one is started by the next service
    assert until(lambda: web.services() == {})
    web.start(Service("two", ("sleep", "300")))
    assert list(web.services()) == ["two"]
    web.stop("two")
    web.run(["kill", "-9", str(state.pid)])


def test_a_file_that_the_engine_mounts_is_written_in_place(web: ContainerNode) -> None:
    text = web.get("/etc/hosts")
    web.put(text + b"10.0.0.9 nine\n", "/etc/hosts")
    assert web.get("/etc/hosts") == text + b"10.0.0.9 nine\n"
    web.put(text, "/etc/hosts")
    assert web.get("/etc/hosts") == text
    assert b"testbed" not in web.run(["ls", "/etc"]).out


def test_what_runs_ends_with_its_caller(live: LiveLab, web: ContainerNode) -> None:
    other = node_of(live, "web")
    running = other.spawn(["sleep", "7117"])
    place = f"/proc/{running.pid}/cmdline"
    assert until(lambda: b"7117" in web.get(place))  # before, it is a copy of the agent
    other.close()
    with pytest.raises(LabError):
        running.wait(60)

    def gone() -> bool:
        try:
            return b"7117" not in web.get(place)
        except FileNotFoundError:
            return True

    assert until(gone)


def test_a_container_that_has_ended_says_so(live: LiveLab) -> None:
    engine = live.engine("host").api
    made = engine.create_container("nginx", command=["sleep", "600"], name="brief")
    engine.start(made)
    brief = node_of(live, "brief")
    with brief.spawn(["sleep", "600"]) as running:
        engine.kill("brief")
        with pytest.raises(NodeNotRunning):
            running.wait(60)
    with pytest.raises(NodeNotRunning):
        brief.run(["true"])
    engine.remove_container("brief")
    brief.close()


# -- our own image ---------------------------------------------------------------


@pytest.fixture(scope="module")
def started(live: LiveLab) -> Iterator[list[ContainerNode]]:
    """A privileged container of our image, as the only item; it may be replaced by another."""
    api, host, store = live.engine("host").api, host_of(live), Store()
    live.engine("host").load(store.image(IMAGE), IMAGE)
    mounts = {path.resolve(): str(path.resolve()) for path in store.folders}
    binds = [f"{host.provide(path)}:{place}:ro" for path, place in mounts.items()]
    host.run(["sh", "-c", "mkdir /tmp/kept && echo text > /tmp/kept/file"])
    binds.append("/tmp/kept:/run/some/kept")
    config = api.create_host_config(privileged=True, binds=binds)
    config["CgroupnsMode"] = "private"
    made = api.create_container(IMAGE, name="machine", hostname="machine", host_config=config)
    api.start(made)
    nodes = [node_of(live, "machine", mounts)]
    yield nodes
    nodes[0].close()
    api.remove_container("machine", force=True, v=True)


def restart(live: LiveLab, nodes: list[ContainerNode]) -> None:
    """Let the container boot again."""
    old = nodes[0]
    old.run(["rm", "-rf", "/var/log/testbed"])
    old.close()
    live.engine("host").api.restart("machine")
    nodes[0] = node_of(live, "machine", old._mounts)


class TestContract(NodeContract):
    @pytest.fixture
    def node(self, live: LiveLab, started: list[ContainerNode]) -> Iterator[Node]:
        """The node, left as it was found."""
        yield started[0]
        started[0].run(["sh", "-c", "rm -rf /run/deep /run/folder /run/file /run/testing"])
        if started[0].services():
            restart(live, started)


def test_a_terminal_is_made_in_another_mount_namespace(started: list[ContainerNode]) -> None:
    """As for a container that runs on the node."""
    node = started[0]
    script = "mount -t devpts -o newinstance,ptmxmode=0666 devpts /dev/pts; touch /run/mounted"
    with node.spawn(["unshare", "--mount", "sh", "-c", f"{script}; exec sleep 300"]) as running:
        assert until(lambda: node.run(["test", "-e", "/run/mounted"], check=False).ok)
        argv = ["nsenter", "--mount", "--target", str(running.pid), "tty"]
        with User(lambda: node.attach(argv, tty=True, inside=running.pid)) as user:
            assert user.end() == 0, user.seen
            assert user.seen.startswith(b"/dev/pts/0"), user.seen


def test_it_is_a_machine(live: LiveLab, started: list[ContainerNode]) -> None:
    node = started[0]
    assert node.get("/proc/1/comm") == b"testbed-init\n"
    assert node.run(["hostname"]).stdout == "machine\n"
    boot = node.get("/proc/sys/kernel/random/boot_id")
    assert boot != host_of(live).get("/proc/sys/kernel/random/boot_id")
    machine = node.get("/etc/machine-id")
    assert len(machine.strip()) == 32
    node.start(Service("old", ("sleep", "300")))
    # A daemon that reads this at its next start would find that process 1 runs.
    node.run(["sh", "-c", "mkdir -p /run/some/folder; echo 1 | tee /run/docker.pid /run/some/pid"])
    restart(live, started)
    node = started[0]
    assert node.services() == {}
    old = ["find", "/run", "-name", "*.pid", "-o", "-name", "pid"]
    assert until(lambda: node.run(old).stdout == "", 60), "its first process may just have begun"
    assert node.run(["find", "/run/some"]).stdout.split() == [
        "/run/some", "/run/some/kept", "/run/some/kept/file",
    ]  # fmt: skip
    assert node.get("/proc/sys/kernel/random/boot_id") != boot
    assert node.get("/etc/machine-id") == machine  # the same machine has booted again
    assert node.host.package("iproute2").is_installed
    assert node.run(["service", "--status-all"]).out == b""


@pytest.mark.parametrize(
    "line",
    [  # each would change nothing, even where it is possible
        "cd /proc/sys/vm; value=$(cat swappiness); echo $value > swappiness",
        "echo h > /proc/sysrq-trigger",
        "touch -r /sys/kernel /sys/kernel",
        'date -s "$(date)"',
    ],
)
def test_it_changes_nothing_of_this_machine(started: list[ContainerNode], line: str) -> None:
    assert not started[0].run(["sh", "-c", line], check=False).ok


@pytest.mark.parametrize("release", ["20.10", "29"])
def test_an_engine_runs_in_it(
    live: LiveLab, started: list[ContainerNode], release: engine.Release
) -> None:
    store, node = Store(), started[0]
    version = engine.parse_version(store.version(engine.PARTS[release][0]))
    config = {"bip": "172.29.0.1/24", **engine.configuration(version)}
    node.put(json.dumps(config).encode(), engine.CONFIG)
    node.put(engine.CONTAINERD_CONFIG.encode(), engine.CONTAINERD_FILE)
    env = {"PATH": engine.path(store, node, release), **GO}
    for service in engine.services(store, node, release, env=env, digest=release):
        node.start(service, timeout=180)
    with contextlib.closing(docker.APIClient(f"unix://{node.socket(engine.SOCKET)}")) as api:
        assert engine.parse_version(api.version()["Version"]) == version
    client = node.provide(store.binary("docker"))
    assert client == str(store.binary("docker").resolve())  # mounted, not copied
    node.run([client, "load", "--input", node.provide(store.image("nginx"))], timeout=180)
    node.run([client, "run", "--detach", "--memory=64m", "--name=inner", "nginx"])
    page = ["curl", "-sS", "--retry", "20", "--retry-connrefused", "http://172.29.0.2/"]
    assert node.run(page).json()["client"].startswith("172.29.0.1:")
    assert node.host.service("docker.service").exists is False  # nobody has named its unit
    node.run([client, "rm", "--force", "inner"])
    restart(live, started)
    started[0].run(["sh", "-c", "rm -rf /var/lib/docker/*"], timeout=180)


def test_flannel_runs_in_it(live: LiveLab, started: list[ContainerNode]) -> None:
    store, node = Store(), started[0]
    etcd = (node.provide(store.binary("etcd")), "--data-dir=/var/lib/etcd")
    node.start(Service("etcd", etcd, notify=True), timeout=180)
    config = json.dumps({"Network": "100.96.0.0/16", "Backend": {"Type": "vxlan"}})
    put = [node.provide(store.binary("etcdctl")), "put", "/coreos.com/network/config", config]
    node.run(put, env={"ETCDCTL_API": "3"})
    flanneld = (
        node.provide(store.binary("flanneld")), "-iface=eth0",
        "-etcd-endpoints=http://127.0.0.1:2379",
    )  # fmt: skip
    node.start(Service("flanneld", flanneld, notify=True), timeout=180)
    assert b"FLANNEL_SUBNET=100.96." in node.get("/run/flannel/subnet.env")
    assert node.host.interface("flannel.1").exists
    restart(live, started)

"""daemon.json and the daemon's environment, for the versions of Docker that differ."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import docker.errors
import pytest

from testbed.artifacts.reference import full_name, local_name
from testbed.errors import LabError
from testbed.labs.lab import Lab
from testbed.nodes.base import GO, NodeSpec, Service
from testbed.nodes.engine import CONTAINERD_CONFIG, CONTAINERD_SOCKET, parse_version, version_of
from testbed.nodes.fake import Answer, FakeNode, FakeProvider
from testbed.roles.container import enter
from testbed.roles.docker.daemon import daemon_config, daemon_env
from testbed.roles.docker.engine import Engine
from testbed.roles.docker.section import ENGINES
from testbed.roles.firewall import CHOOSE
from testbed.roles.kubernetes.config import containerd
from testbed.testing.fakes import VERSIONS, Bench, FakeStore, be_a_machine
from testbed.topology import Overrides, load, load_data

ALWAYS = {
    "storage-driver": "overlay2",
    "hosts": ["unix:///run/docker.sock"],
    "data-root": "/var/lib/docker",
    "exec-root": "/run/docker",
    "pidfile": "/run/docker.pid",
}
SNAPSHOTTER = {"features": {"containerd-snapshotter": False}}
DIRECT = {"allow-direct-routing": True}
RAW = {"DOCKER_INSECURE_NO_IPTABLES_RAW": "1"}
VERSION_TABLE = [
    # version, more in daemon.json under flannel, more in the environment under flannel
    ((20, 10, 24), {}, {}),
    ((27, 5, 1), {}, {}),
    ((28, 0, 0), {}, RAW),  # 28.0: packages to a container's address from outside are dropped
    ((28, 0, 1), {}, RAW),
    ((28, 1, 1), {}, RAW),
    ((28, 2, 0), DIRECT, {}),  # 28.2: the daemon has an option for it
    ((28, 5, 2), DIRECT, {}),
    ((29, 0, 0), {**DIRECT, **SNAPSHOTTER}, {}),  # 29: images are containerd's by default
    ((30, 1, 0), {**DIRECT, **SNAPSHOTTER}, {}),
]


@pytest.mark.parametrize(("version", "more", "env"), VERSION_TABLE)
def test_under_flannel(
    version: tuple[int, int, int], more: dict[str, object], env: dict[str, str]
) -> None:
    topology = load("two-node")
    # mk-docker-opts.sh: --bip of the subnet, the backend's --mtu, and --ip-masq=false when
    # flanneld masquerades (--ip-masq), for two would translate twice.
    assert daemon_config(topology, "node1", version) == {
        "bip": "100.96.1.1/24",
        "mtu": 1450,
        "ip-masq": False,
        **ALWAYS,
        **more,
    }
    assert daemon_env(topology, "node1", version, "/a:/b") == {**GO, "PATH": "/a:/b", **env}


@pytest.mark.parametrize("version", [version for version, _, _ in VERSION_TABLE])
def test_alone(version: tuple[int, int, int]) -> None:
    topology = load("docker-single")
    more = SNAPSHOTTER if version >= (29, 0, 0) else {}
    assert daemon_config(topology, "host", version) == {"bip": "172.17.0.1/16", **ALWAYS, **more}
    assert daemon_env(topology, "host", version, "/a") == {**GO, "PATH": "/a"}


@pytest.mark.parametrize(
    ("name", "mtu"), [("two-node-udp", 1472), ("two-node", 1450), ("two-node-host-gw", 1500)]
)
def test_the_mtu_is_the_backends(name: str, mtu: int) -> None:
    assert daemon_config(load(name), "node2", (20, 10, 24))["mtu"] == mtu


def test_the_mtu_is_less_on_links_that_carry_less() -> None:
    topology = load("two-node")
    assert daemon_config(topology, "node2", (20, 10, 24), 1400)["mtu"] == 1350  # RFC 7348: 50
    node = topology.to_dict() | {"networks": {"lan": {"subnet": "10.168.0.0/24", "mtu": 1300}}}
    given = load_data(node, "two-node.yaml")
    assert daemon_config(given, "node2", (20, 10, 24), 1400)["mtu"] == 1250  # as the file has it


def test_a_nodes_daemon_has_the_mtu_of_its_links(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeNode, "link_mtu", 1400)
    Lab("two-node", bench.settings).up(load("two-node"))
    node = bench.provider.nodes("two-node")["node2"]
    assert json.loads(node.get("/etc/docker/daemon.json"))["mtu"] == 1350


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("Docker version 20.10.24+dfsg1, build 297e128", (20, 10, 24)),
        ("Docker version 28.0.2, build 123", (28, 0, 2)),
        ("20.10.24+dfsg1-1+deb12u1", (20, 10, 24)),
        ("5:29.0.0-1~debian.12~bookworm", (29, 0, 0)),
        ("29.1", (29, 1, 0)),
        ("v28.2.0-rc.1", (28, 2, 0)),
        ("Docker version dev, build abc", (0, 0, 0)),
        ("", (0, 0, 0)),
        ("28", (0, 0, 0)),
    ],
)
def test_parse_version(text: str, version: tuple[int, int, int]) -> None:
    assert parse_version(text) == version


def test_the_version_of_the_stores_own_daemon_is_known() -> None:
    provider = FakeProvider()
    node = provider.create_one("two-node", NodeSpec("node1", "d"))
    assert version_of(FakeStore(), node, "20.10") == VERSIONS["docker"]
    assert version_of(FakeStore(), node, "29") == VERSIONS["docker-29"]
    assert provider.asked("run") == []


def test_a_users_own_daemon_is_asked() -> None:
    provider = FakeProvider()
    node = provider.create_one("two-node", NodeSpec("node1", "d"))
    store = FakeStore()
    store.own.add("dockerd")
    provider.script(["/nowhere/cache/dockerd", "--version"], Answer(out=b"Docker version 28.3.0\n"))
    for release in ENGINES:
        assert version_of(store, node, release) == "Docker version 28.3.0"


def test_what_is_put_on_the_node(bench: Bench) -> None:
    topology = load("two-node")
    Lab("two-node", bench.settings).up(topology)
    node = bench.provider.nodes("two-node")["node2"]
    config = json.loads(node.get("/etc/docker/daemon.json"))
    assert config == daemon_config(topology, "node2", (20, 10, 24))
    puts = bench.provider.asked("put", "node2")
    assert ("/etc/docker/daemon.json",) in puts
    calls = [(c.what, c.words) for c in bench.provider.calls if c.node == "node2"]
    assert calls.index(("put", ("/etc/docker/daemon.json",))) < calls.index(("start", ("dockerd",)))


def test_engine_29_is_made_of_several_parts(bench: Bench) -> None:
    topology = load("docker-single", Overrides(docker="29"))
    outcome = Lab("docker-single", bench.settings).up(topology)
    daemons = [c for c in bench.provider.calls if c.what == "start" and c.node == "host"]
    assert [daemon.words for daemon in daemons] == [("containerd",), ("dockerd",)]
    for daemon in daemons:
        assert daemon.env["PATH"].split(":")[:4] == [
            "/nowhere/cache/docker-29",
            "/nowhere/cache/docker-cli-29",
            "/nowhere/cache/runc-1.5",
            "/nowhere/cache/docker",
        ]
    assert any(VERSIONS["docker-29"] in done.words for done in outcome.steps)
    config = json.loads(
        bench.provider.nodes("docker-single")["host"].get("/etc/docker/daemon.json")
    )
    assert config["features"] == {"containerd-snapshotter": False}
    assert "firewall-backend" not in config


def test_an_overlay_is_let_in_by_engine_29(bench: Bench) -> None:
    Lab("two-node", bench.settings).up(load("two-node", Overrides(docker="29")))
    (run,) = [w for w in bench.provider.asked("run", "node1") if "DOCKER-USER" in " ".join(w)]
    assert run[-7:] == ("!", "-i", "docker0", "-d", "100.96.0.0/16", "-j", "ACCEPT")


def test_engine_20_lets_flannels_own_rules_decide(bench: Bench) -> None:
    Lab("two-node", bench.settings).up(load("two-node"))
    words = [" ".join(w) for w in bench.provider.asked("run", "node1")]
    assert not any("DOCKER-USER" in w or "nft" in w or "ip_forward" in w for w in words)


def test_nftables(bench: Bench) -> None:
    topology = load("two-node", Overrides(docker="29", firewall="nftables"))
    config = daemon_config(topology, "node1", (29, 8, 1))
    assert config["firewall-backend"] == "nftables"
    Lab("two-node", bench.settings).up(topology)
    calls = [(c.what, c.words) for c in bench.provider.calls if c.node == "node1"]
    started = calls.index(("start", ("dockerd",)))
    # The daemon refuses to start where forwarding is off, and takes packets with its mark.
    assert calls.index(("run", ("sysctl", "-q", "-w", "net.ipv4.ip_forward=1"))) < started
    assert calls.index(("run", ("nft", "-f", "-"))) < started
    assert int(config["bridge-accept-fwmark"].partition("/")[0], 16) > 0


@pytest.mark.parametrize("shares", [True, False])
def test_dockerd_uses_the_nodes_own_containerd(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, shares: bool
) -> None:
    started: list[Service] = []
    real = FakeNode.start

    def start(node: FakeNode, service: Service, *, timeout: float = 60) -> None:
        if node.name == "node2":
            started.append(service)
        real(node, service, timeout=timeout)

    monkeypatch.setattr(FakeNode, "start", start)
    be_a_machine(monkeypatch, not shares)
    Lab("two-node", bench.settings).up(load("two-node"))
    # flanneld's step runs beside this one.
    below, above = [service for service in started if service.name != "flanneld"]
    assert (below.name, above.name) == ("containerd", "dockerd")
    assert f"--containerd={CONTAINERD_SOCKET}" in above.argv
    (option,) = [word for word in below.argv if word.startswith("--config=")]
    file = option.removeprefix("--config=")
    written = bench.provider.nodes("two-node")["node2"].get(file).decode()
    assert tomllib.loads(written)["grpc"]["address"] == CONTAINERD_SOCKET


def test_a_containerd_that_has_died_is_started_and_dockerd_left_alone(bench: Bench) -> None:
    topology = load("two-node")
    lab = Lab("two-node", bench.settings)
    lab.up(topology)
    bench.provider.machine.nodes["two-node", "node2"].end("containerd", -9)
    del bench.provider.calls[:]
    outcome = lab.up(topology)
    assert [done.step.name for done in outcome.changed] == ["docker node2"]
    pids = {c.words for c in bench.provider.calls if c.what == "start" and c.node == "node2"}
    assert ("containerd",) in pids


@pytest.mark.parametrize(
    "text", [CONTAINERD_CONFIG, containerd("/opt/cni/bin")], ids=["docker", "kubernetes"]
)
def test_an_idle_containerd_seldom_looks_for_garbage(text: str) -> None:
    """Its interval is the time of one look divided by this share: 15 ms with the default, 0.02."""
    scheduler = tomllib.loads(text)["plugins"]["io.containerd.gc.v1.scheduler"]
    assert 0 < scheduler["pause_threshold"] <= 0.0005


def test_on_a_machine_of_its_own_containerd_comes_first_and_modules_before_flanneld(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_a_machine(monkeypatch)
    Lab("two-node", bench.settings).up(load("two-node"))
    calls = [(c.what, c.words) for c in bench.provider.calls if c.node == "node1"]
    assert calls.index(("start", ("containerd",))) < calls.index(("start", ("dockerd",)))
    (loaded,) = [i for i, (_, words) in enumerate(calls) if words[:1] == ("modprobe",)]
    assert loaded < calls.index(("start", ("flanneld",)))
    # Nothing is kept of what a machine made of its images: it would have to be copied back.
    assert not [words for _, words in calls if "tar" in words]


@pytest.mark.parametrize("variety", ["legacy", "nft"])
def test_the_variety_of_iptables_is_the_nodes(bench: Bench, variety: str) -> None:
    says = {"legacy": b"iptables v1.8.9 (legacy)\n", "nft": b"iptables v1.8.9 (nf_tables)\n"}
    bench.provider.script(["sh", "-c", CHOOSE, "sh", variety], Answer(out=says[variety]))
    topology = load("two-node", Overrides(firewall=f"iptables-{variety}"))
    Lab("two-node", bench.settings).up(topology)
    calls = [(c.what, c.words) for c in bench.provider.calls if c.node == "node1"]
    chosen = calls.index(("run", ("sh", "-c", CHOOSE, "sh", variety)))
    assert chosen < min(calls.index(("start", (name,))) for name in ("dockerd", "flanneld"))


def test_an_iptables_that_is_no_alternative_is_told(bench: Bench) -> None:
    bench.provider.script(["sh", "-c", CHOOSE, "sh", "legacy"], Answer(out=b"iptables v1.8.9 (nf_"))
    topology = load("docker-single", Overrides(firewall="iptables-legacy"))
    with pytest.raises(LabError, match="iptables-legacy"):
        Lab("docker-single", bench.settings).up(topology)


def test_the_way_into_a_container() -> None:
    assert cast("tuple[str, ...]", enter(42, mounts=False)) == ("nsenter", "--target=42", "--net")
    assert "--mount" in enter(42)
    # On a terminal the command leads a session of its own inside, and setsid is the node's.
    words = list(enter(42, tty=True))
    assert words.index("--pid") < words.index("setsid") < words.index("--mount")
    assert words[words.index("setsid") + 1] == "--ctty"


def test_an_image_is_loaded_once_the_daemon_has_told_all_of_it(tmp_path: Path) -> None:
    """It tells of an error when the answer has long begun (Engine API, POST /images/load)."""
    told: list[str] = []

    def load_image(_: object) -> Iterator[dict[str, str]]:
        for words in ({"stream": "Loading layer"}, {"error": "no space left on device"}):
            told.append(next(iter(words)))
            yield words

    engine = Engine.__new__(Engine)
    engine._node = FakeProvider().create_one("lab", NodeSpec("node1", "-"))
    engine.api = SimpleNamespace(load_image=load_image)
    archive = tmp_path / "nginx.tar"
    archive.touch()
    with pytest.raises(LabError, match=r"(?s)nginx\.tar: no space left on device.*node1 df"):
        engine.load(archive, "nginx")
    assert told == ["stream", "error"]


class Daemon:
    """The images of a daemon, and how it tells what it has loaded (POST /images/load)."""

    def __init__(self, **loads: str) -> None:
        self.loads = loads  # name or id, as told: id
        self.names: dict[str, str] = {}

    def load_image(self, _: object) -> list[dict[str, str]]:
        told = []
        for name, image in self.loads.items():
            self.names |= {image: image}
            if not name.startswith("sha256"):
                self.names[full_name(name)] = image
            kind = "Loaded image ID" if name.startswith("sha256") else "Loaded image"
            told.append({"stream": f"{kind}: {name}\n"})
        return told

    def inspect_image(self, name: str) -> dict[str, str]:
        if found := self.names.get(name) or self.names.get(full_name(name)):
            return {"Id": found}
        raise docker.errors.NotFound("no such image")

    def tag(self, image: str, repository: str, tag: str) -> bool:
        self.names[f"{repository}:{tag}"] = image
        return True


ID = f"sha256:{'1' * 64}"


@pytest.mark.parametrize("told", ["redis:7", "web:dev", ID])
@pytest.mark.parametrize(
    "name",
    [
        "redis:7",
        "localhost:5000/team/web:1.2",
        f"redis@sha256:{'0' * 64}",
        f"redis:7@sha256:{'0' * 64}",
        "redis",
    ],
)
def test_an_image_has_the_name_that_was_asked_for(tmp_path: Path, told: str, name: str) -> None:
    daemon = Daemon(**{told: ID})
    engine = Engine.__new__(Engine)
    engine._node = FakeProvider().create_one("lab", NodeSpec("node1", "-"))
    engine.api = daemon
    archive = tmp_path / "image.tar"
    archive.touch()
    assert not engine.has_image(name)
    engine.load(archive, name)
    assert engine.has_image(name)
    assert daemon.inspect_image(local_name(name)) == {"Id": ID}


def test_an_archive_of_several_images_must_have_the_name(tmp_path: Path) -> None:
    engine = Engine.__new__(Engine)
    engine._node = FakeProvider().create_one("lab", NodeSpec("node1", "-"))
    engine.api = Daemon(**{"a:1": ID, "b:1": f"sha256:{'2' * 64}"})
    archive = tmp_path / "image.tar"
    archive.touch()
    with pytest.raises(LabError, match="a:1, b:1"):
        engine.load(archive, "redis:7")
    engine.load(archive, "b:1")


def test_a_name_is_the_images_that_was_loaded_for_it(tmp_path: Path) -> None:
    """One archive may have the name of another's image: the last would win."""
    daemon = Daemon(nginx=ID)
    engine = Engine.__new__(Engine)
    engine._node = FakeProvider().create_one("lab", NodeSpec("node1", "-"))
    engine.api = daemon
    archive = tmp_path / "image.tar"
    archive.touch()
    first = engine.load(archive, "nginx")
    daemon.loads = {"nginx": f"sha256:{'2' * 64}"}
    second = engine.load(archive, "redis:7")
    assert first != second == engine.image_id("redis:7") == engine.image_id("nginx")
    engine.name_image(first, "nginx")
    assert (engine.image_id("nginx"), engine.image_id("redis:7")) == (first, second)

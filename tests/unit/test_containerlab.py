"""containerlab's cell, files and provider, as far as they need no kernel."""

from __future__ import annotations

import errno
import io
import json
import os
import socket
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self, cast

import pytest
import yaml

from testbed.artifacts import Store
from testbed.errors import (
    LabError,
    MachineError,
    NoAnswer,
    NodeNotRunning,
    ServiceError,
    TimeoutExpired,
    TopologyError,
)
from testbed.nodes import engine
from testbed.nodes.base import NodeSpec, Service, Setup, has_ended
from testbed.nodes.containerlab import FOLDER, READY, cell, clabfile, needs
from testbed.nodes.containerlab.cell import CONTAINERS, RECORD, Cell
from testbed.nodes.containerlab.provider import ContainerlabProvider
from testbed.nodes.containerlab.userfile import DIGESTS
from testbed.nodes.links import LONGEST
from testbed.nodes.unix_http import UnixConnection
from testbed.process import run
from testbed.registry import fabric_kind
from testbed.topology import Topology, load_text
from testbed.topology.foreign import Foreign, ForeignNode

if TYPE_CHECKING:
    from testbed.nodes.netns.node import NetnsNode

ID = "ab" * 32
HUB = "docker.io"
TWO_LOADED = "Loaded image: a:1\nLoaded image: b:1\n"


class Folder:
    """A namespace node of which only the files are there."""

    name = "fabric"
    init = SimpleNamespace(lab="lab", pid=1, alive=lambda: True)

    def __init__(self, root: Path) -> None:
        self.root = root

    def socket(self, path: str) -> str:
        return f"{self.root}{path}"

    def get(self, path: str) -> bytes:
        return Path(self.socket(path)).read_bytes()

    def put(self, data: bytes, path: str) -> None:
        self.write(path, data.decode())

    def write(self, path: str, text: str) -> None:
        place = Path(self.socket(path))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def made(folder: Folder, tmp_path: Path) -> Cell:
    return Cell(cast("NetnsNode", folder), Store(tmp_path / "cache"))


def record(**changes: Any) -> str:
    """The file in which dockerd records a container."""
    return json.dumps(
        {
            "ID": ID,
            "Name": "/clab-lab-node1",
            "State": {"Pid": 42, "ExitCode": 0},
            "Config": {
                "Image": "alpine:3",
                "Env": ["A=b"],
                "Labels": {"containerlab": "lab", "clab-node-name": "node1"},
            },
            **changes,
        }
    )


def test_a_container_is_read_from_the_engines_files(made: Cell, folder: Folder) -> None:
    folder.write(f"{CONTAINERS}/{ID}/{RECORD}", record())
    folder.write(f"{CONTAINERS}/other/{RECORD}", record(ID="other", Name="/mine", Config={}))
    folder.write(f"{CONTAINERS}/half/{RECORD}", '{"ID": "ha')
    one, other = made.containers()
    assert (one.name, one.pid, one.lab, one.node) == ("clab-lab-node1", 42, "lab", "node1")
    assert (one.env, one.image) == (("A=b",), "alpine:3")
    assert (other.name, other.lab, other.node) == ("mine", "", "")


@pytest.mark.parametrize(
    ("pid", "cgroup", "runs"),
    [(42, f"1:cpu:/docker/{ID}", True), (42, "1:cpu:/docker/other", False), (42, None, False),
     (0, None, False)],
)  # fmt: skip
def test_a_pid_that_another_process_has_is_not_the_containers(
    made: Cell, folder: Folder, pid: int, cgroup: str | None, runs: bool
) -> None:
    if cgroup is not None:
        folder.write(f"/proc/{pid}/cgroup", cgroup)
    (one,) = [cell._container(json.loads(record(State={"Pid": pid, "ExitCode": 1})))]
    assert made.runs(one) is runs


def test_the_last_words_of_a_container_are_its_log(made: Cell, folder: Folder) -> None:
    said = [f"line {number}\r\n" for number in range(20)]
    lines = [json.dumps({"log": text, "stream": "stdout"}) for text in said]
    folder.write(f"{CONTAINERS}/{ID}/{ID}-json.log", "\n".join([*lines, '{"log": "cut']))
    one = cell._container(json.loads(record()))
    words = made.last_words(one).splitlines()
    assert words[-1] == "line 19"
    assert len(words) < len(said)
    assert made.last_words(cell._container(json.loads(record(ID="none")))) == ""


def test_an_image_of_another_archive_is_replaced(made: Cell, tmp_path: Path) -> None:
    one, other = tmp_path / "one.tar", tmp_path / "other.tar"
    one.write_bytes(b"1")
    other.write_bytes(b"12")
    assert made.replaced({"a": one}) == [], "nothing is known of one of an earlier version"
    made.note_images({"a": one})
    made.note_images({"b:1": one})
    assert made.replaced({"a": one, "b:1": one, "c": one}) == []
    assert made.replaced({"a": other, "b:1": one}) == ["a"], "another path"
    one.write_bytes(b"123")
    assert made.replaced({"a": one, "b:1": one}) == ["a", "b:1"], "another content"


@pytest.mark.parametrize(
    ("loaded", "name", "tagged"),
    [
        (["Loaded image: alpine:3"], "alpine:3", ""),
        (["Loaded image: alpine:latest"], "docker.io/library/alpine", ""),
        (["The image a:1 already exists, renaming", "Loaded image: a:1"], "a:1", ""),
        (["Loaded image: x:1"], "alpine:3", f"x%3A1/tag?repo={HUB}%2Flibrary%2Falpine&tag=3"),
        (["Loaded image ID: sha256:01"], "r:5/a", "sha256%3A01/tag?repo=r%3A5%2Fa&tag=latest"),
        (["Loaded image: a:1", "Loaded image: b:1"], "b:1", ""),
    ],
)  # fmt: skip
def test_a_loaded_image_has_the_name_that_the_file_asks_for(
    loaded: list[str], name: str, tagged: str, made: Cell, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked: list[str] = []

    def ask(method: str, path: str, *_: object, **__: object) -> bytes:
        asked.append(f"{method} {path}")
        return "".join(json.dumps({"stream": f"{line}\n"}) + "\n" for line in loaded).encode()

    monkeypatch.setattr(made, "_ask", ask)
    (tmp_path / "a.tar").write_bytes(b"")
    made.load(tmp_path / "a.tar", name)
    assert asked[1:] == ([f"POST /images/{tagged}"] if tagged else [])


@pytest.mark.parametrize(
    "line",
    [{"error": "no space left on device"}, {"stream": TWO_LOADED}, {}],
)
def test_an_archive_without_the_image_is_refused(
    line: dict[str, str], made: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made, "_ask", lambda *_, **__: json.dumps(line).encode())
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(LabError) as caught:
        made.load(tmp_path / "a.tar", "c")
    assert str(tmp_path / "a.tar") in caught.value.message


def test_nodes_of_a_replaced_image_are_outdated(
    made: Cell, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, ids = tmp_path / "image.tar", {"a": "sha256:" + "0a" * 32, "b": "sha256:" + "0b" * 32}

    def save(digest: str) -> None:
        with tarfile.open(archive, "w") as tar:
            config, blob = b"{}", digest.partition(":")[2] + ".json"
            manifest = [{"Config": blob, "Layers": [], "RepoTags": ["x:1"]}]
            for name, data in ((blob, config), ("manifest.json", json.dumps(manifest).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

    for name, image in ids.items():
        labels = {"clab-node-name": name, "containerlab": "lab"}
        config = {"Image": "x:1", "Labels": labels}
        folder.write(f"{CONTAINERS}/{name}/{RECORD}", record(ID=name, Image=image, Config=config))
    provider = ContainerlabProvider.of(Setup(tmp_path / "state", Store(tmp_path / "cache")))
    monkeypatch.setattr(provider, "_cell", lambda _: made)
    monkeypatch.setattr(type(provider._store), "image", lambda *_: archive)
    nodes = {name: ForeignNode(name, image="x:1") for name in ids}
    topology = cast(
        "Topology", SimpleNamespace(foreign=Foreign("containerlab", nodes=nodes), images=("x:1",))
    )
    save(ids["a"])
    made.note_images({"x:1": archive})
    assert [*provider.outdated("lab", topology)] == []
    save(ids["b"])
    os.utime(archive, (1, 1))
    assert [*provider.outdated("lab", topology)] == ["a"], "the other has this very image"
    own = cast("Topology", SimpleNamespace(foreign=None, images=()))
    assert [*provider.outdated("lab", own)] == []


def test_a_refusal_has_containerlabs_own_words() -> None:
    said = (
        "\x1b[1m10:20:30\x1b[0m \x1b[32mINFO\x1b[0m Containerlab started version=0.79.0\n"
        "10:20:31 ERRO failed to create topology: no such file\n"
    )
    error = cell.refused(["deploy"], said, "")
    assert "no such file" in error.message
    assert "INFO" not in error.message
    assert "\x1b" not in error.message
    assert "only output" in cell.refused(["inspect"], "", "only output").message


# -- topology files -------------------------------------------------------------------

THREE = """
name: three
networks: {lan: {subnet: 10.168.0.0/24}, a-long-name: {subnet: 169.254.0.0/17}}
nodes:
  host: {networks: {lan: 10.168.0.2, a-long-name: 169.254.79.2}, cpus: 0.5, memory: 64M}
  host-node: {networks: {lan: 10.168.0.3}}
  alone: {}
"""
OPTIONS = clabfile.Options("testbed/node:1", {"/run/testbed/host/cache": "/cache"}, "/cache/init")


def of(topology: Topology, *names: str) -> list[NodeSpec]:
    """The specifications of nodes, all unless named."""
    nodes = topology.nodes.values()
    return [
        NodeSpec(node.name, f"digest of {node.name}", node.cpus, node.memory, len(node.ports))
        for node in nodes
        if not names or node.name in names
    ]


def test_a_file_has_the_nodes_their_bridges_and_links() -> None:
    topology = load_text(THREE, "three.yaml")
    written = clabfile.text(clabfile.document("three", of(topology), OPTIONS, topology))
    read = yaml.safe_load(written)
    nodes, links = read["topology"]["nodes"], read["topology"]["links"]
    kinds = {name: node.get("kind", "linux") for name, node in nodes.items()}
    assert kinds == {
        "host-node-2": "linux", "host-node": "linux", "alone": "linux",
        "br-lan": "bridge", "br-a-long-name": "bridge",
    }  # fmt: skip
    host = nodes["host-node-2"]
    assert (host["hostname"], host["cpu"], host["memory"]) == ("host", 0.5, f"{64 << 20}B")
    assert host["labels"] == {"testbed.node": "host", "testbed.digest": "digest of host"}
    ends = [[(end["node"], end["interface"]) for end in link["endpoints"]] for link in links]
    assert ends == [
        [("host-node-2", "eth0"), ("br-lan", "host")],
        [("host-node-2", "eth1"), ("br-a-long-name", "host.1")],
        [("host-node", "eth0"), ("br-lan", "host-node")],
    ]
    assert links[0]["endpoints"][0]["mac"] == topology.nodes["host"].ports[0].hardware
    assert {link["mtu"] for link in links} == {1500}
    assert all(len(end["interface"]) <= 15 for link in links for end in link["endpoints"])


def test_nodes_have_no_interface_but_those_of_the_topology_and_are_never_restarted() -> None:
    topology = load_text(THREE, "three.yaml")
    read = clabfile.document("three", of(topology), OPTIONS, topology)
    kind = read["topology"]["kinds"]["linux"]
    assert (kind["network-mode"], kind["restart-policy"]) == ("none", "no")
    assert kind["image-pull-policy"] == "never"
    node = read["topology"]["nodes"]["alone"]
    assert node["binds"] == ["/run/testbed/host/cache:/cache:ro"]
    assert node["image"] == "testbed/node:1"


def test_a_node_of_a_users_image_has_testbed_init_as_its_first_program_and_no_folder_of_ours() -> (
    None
):
    spec = NodeSpec("a", "digest", image="example.com/box@sha256:" + "0" * 64)
    node = clabfile.document("one", [spec], OPTIONS)["topology"]["nodes"]["a"]
    assert "@" not in node["image"], "the engine knows no digest of an image that it has loaded"
    assert (node["entrypoint"], node["cmd"], node["user"]) == (clabfile.INIT, "machine", "root")
    assert node["binds"] == [f"/cache/init:{clabfile.INIT}:ro"]


def test_the_management_network_is_none_of_the_labs() -> None:
    topology = load_text(THREE, "three.yaml")
    read = clabfile.document("three", of(topology), OPTIONS, topology)
    assert read["mgmt"]["ipv4-subnet"] == "169.254.128.0/24"
    assert str(clabfile.management([])) == "169.254.79.0/24"
    everything = IPv4Network("0.0.0.0/0")
    assert clabfile.management([everything]).prefixlen == 24


def test_no_node_has_the_name_of_the_management_bridge() -> None:
    document = clabfile.document("three", of(load_text(THREE, "three.yaml")), OPTIONS)
    bridge = document["mgmt"]["bridge"]
    assert len(bridge) <= LONGEST
    with pytest.raises(TopologyError):
        load_text(f"name: a\nnodes: {{{bridge}: {{}}}}\n", "a.yaml")


def test_without_a_topology_there_are_no_links_and_of_one_node_only_its_own() -> None:
    topology = load_text(THREE, "three.yaml")
    assert clabfile.document("three", of(topology), OPTIONS)["topology"]["links"] == []
    read = clabfile.document("three-2", of(topology, "host-node"), OPTIONS, topology)
    assert set(read["topology"]["nodes"]) == {"host-node", "br-lan"}
    assert len(read["topology"]["links"]) == 1


@pytest.mark.parametrize("name", sorted(clabfile.SPECIAL))
def test_a_node_with_the_name_of_a_special_end_of_links_gets_another(name: str) -> None:
    found = clabfile.names([name, "a"])
    assert found["a"] == "a"
    assert found[name] not in clabfile.SPECIAL
    assert clabfile.names([name, f"{name}-node"])[name] != f"{name}-node"


# -- versions -------------------------------------------------------------------------


def own(folder: Path, says: str, status: int = 0) -> Store:
    """A store with a containerlab of the user."""
    program = folder / "containerlab"
    program.write_text(f"#!/bin/sh\n# reads /run/testbed/modules\necho '{says}'\nexit {status}\n")
    program.chmod(0o755)
    return Store(folder / "cache", overrides={"containerlab": str(program)})


@pytest.mark.parametrize(
    ("says", "status", "ok"),
    [("0.79.0", 0, True), ("v0.81.2", 0, True), ("1.0.0", 0, True), ("0.78.9", 0, False),
     ("containerlab", 0, False), ("0.79.0", 1, False), ("", 0, False)],
)  # fmt: skip
def test_the_version_of_a_users_containerlab(
    tmp_path: Path, says: str, status: int, ok: bool
) -> None:
    store = own(tmp_path, says, status)
    found = needs.version(store, "containerlab")
    assert found.ok is ok
    assert found.needed_by == ("containerlab",)
    if ok:
        needs.require_version(store, "containerlab")
        return
    assert found.fix
    with pytest.raises(MachineError) as caught:
        needs.require_version(store, "containerlab")
    assert str(tmp_path) in caught.value.message


@pytest.mark.parametrize("has_list", [True, False])
def test_a_users_containerlab_needs_the_kernels_list_of_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_list: bool
) -> None:
    monkeypatch.setattr(needs, "MODULES", tmp_path / "modules")
    if has_list:
        (tmp_path / "modules").touch()
    store = own(tmp_path, "0.79.0")
    program = tmp_path / "containerlab"
    program.write_text(program.read_text().replace("/run/testbed", "/proc"))
    found = needs.version(store, "containerlab")
    assert found.ok is has_list
    if not has_list:
        assert str(tmp_path / "modules") in found.detail
        with pytest.raises(MachineError) as caught:
            needs.require_version(store, "containerlab")
        assert caught.value.hint == found.fix


def test_a_containerlab_that_cannot_run_is_a_requirement(tmp_path: Path) -> None:
    store = own(tmp_path, "0.79.0")
    (tmp_path / "containerlab").write_bytes(b"\x7fELF of another machine")
    found = needs.version(store, "containerlab")
    assert not found.ok
    assert found.detail
    with pytest.raises(MachineError):
        needs.require_version(store, "containerlab")


def test_a_containerlab_that_hangs_is_a_requirement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hangs(*_: object, **__: object) -> None:
        raise TimeoutExpired("killed after 60 s")

    monkeypatch.setattr(needs, "run", hangs)
    found = needs.version(own(tmp_path, "0.79.0"), "containerlab")
    assert not found.ok
    assert "60 s" in found.detail


def test_without_one_ours_is_right_and_nothing_is_built(tmp_path: Path) -> None:
    found = needs.version(Store(tmp_path), "containerlab")
    assert found.ok
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("built", [False, True])
def test_what_builds_the_image_is_needed_until_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: bool
) -> None:
    monkeypatch.setattr("testbed.artifacts.bootstrap.which", lambda _: None)
    store = Store(tmp_path)
    if built:
        monkeypatch.setattr(store, "unmade", lambda _: [])
    (found,) = [i for i in needs.probe(store, "containerlab") if i.name == "image of nodes"]
    assert found.ok is built
    assert ("mmdebstrap" in found.packages) is not built


def test_programs_of_the_cell_are_needed(tmp_path: Path) -> None:
    provider = ContainerlabProvider.of(Setup(tmp_path / "state", Store(tmp_path / "cache")))
    found = {item.name: item.needed_by for item in provider.probe()}
    assert {name: found.get(name) for name in provider.programs} == dict.fromkeys(
        provider.programs, ("containerlab",)
    )


# -- the provider ---------------------------------------------------------------------


def test_a_claimed_name_is_nobody_elses(made: Cell, folder: Folder) -> None:
    Path(folder.socket(FOLDER)).mkdir(parents=True)
    assert [made.claim("lab") for _ in range(3)] == ["lab", "lab-2", "lab-3"]


def test_a_lab_without_a_cell_has_no_nodes(tmp_path: Path) -> None:
    provider = ContainerlabProvider.of(Setup(tmp_path / "state", Store(tmp_path / "cache")))
    assert provider.nodes("nowhere") == {}
    assert provider.ended("nowhere") == {}
    assert provider.paused("nowhere") == []
    with pytest.raises(LabError):
        provider.create("nowhere", [NodeSpec("a", "-")])
    with pytest.raises(NodeNotRunning):
        provider.pause("nowhere", "a")


def test_its_ports_are_on_the_fabric_of_namespace_nodes(tmp_path: Path) -> None:
    topology = load_text(THREE.replace("name: three", "name: x\nprovider: containerlab"), "x.yaml")
    provider = ContainerlabProvider.of(Setup(tmp_path / "state", Store(tmp_path / "cache")))
    assert provider.together("host")
    assert provider.ports(topology, "host") == ["host", "host.1"]
    assert fabric_kind(provider) == "netns"


def test_other_labs_load_no_cell(tmp_path: Path) -> None:
    """Each command asks each provider for its nodes; loading HTTP takes longer than that."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from testbed.artifacts import Store\n"
        "from testbed.nodes.base import Setup\n"
        "from testbed.registry import PROVIDERS\n"
        f"setup = Setup(Path({str(tmp_path)!r}), Store(Path({str(tmp_path)!r})))\n"
        "assert PROVIDERS['containerlab'].of(setup).nodes('nowhere') == {}\n"
        "ours = 'testbed.nodes.containerlab.'\n"
        "loaded = {name for name in sys.modules if name.startswith(ours)}\n"
        "assert loaded == {ours + 'provider'}, loaded\n"
        "assert 'http.client' not in sys.modules\n"
    )
    done = run([sys.executable, "-c", code], check=False)
    assert done.status == 0, done.stderr


# -- the engine of a cell ---------------------------------------------------------------


class Engine:
    """An engine that gives each request the next of some answers; None for none, but it stays."""

    def __init__(self, folder: Folder, *answers: bytes | None) -> None:
        path = Path(folder.socket(engine.SOCKET))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._answers = answers
        self._open: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self.asked: list[bytes] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        for answer in self._answers:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # it was not asked so often
                return
            self._open.append(connection)
            if answer is None:
                continue
            self.asked.append(connection.recv(1 << 16).partition(b"\r\n")[0])
            size = b"Content-Length: %d\r\n\r\n" % len(answer)
            connection.sendall(b"HTTP/1.1 200 OK\r\n" + size + answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for connection in [*self._open, self._listener]:
            connection.close()


@pytest.fixture
def short() -> Iterator[Folder]:
    """A folder whose sockets have names that are short enough (unix(7))."""
    with tempfile.TemporaryDirectory() as folder:
        yield Folder(Path(folder))


class Running(Folder):
    """A node with services; each start is noted."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.said: list[str] = []

    def get(self, _: str) -> bytes:
        return b""  # the cell is ready

    def put(self, *_: object) -> None:
        return

    def start(self, service: Service, *, timeout: float) -> None:
        del timeout
        self.said.append(f"start {service.name}")

    def stop(self, name: str) -> None:
        self.said.append(f"stop {name}")


def starts(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Start the engine of a cell that has been started before; return what was asked of it."""
    services = (Service("containerd", ("c",)), Service("dockerd", ("d",)))
    monkeypatch.setattr(engine, "services", lambda *_, **__: services)
    monkeypatch.setattr(engine, "path", lambda *_: "/bin")
    node = Running(folder.root)
    Cell(cast("NetnsNode", node), Store(folder.root / "cache")).start()
    return node.said


def test_an_engine_that_hangs_is_restarted(short: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell, "ANSWER_SECONDS", 0.1)
    again = ["start containerd", "start dockerd"]
    with Engine(short, None):
        assert starts(short, monkeypatch) == [
            *again, "stop dockerd", "stop containerd", *again,
        ]  # fmt: skip


def test_an_engine_that_answers_runs_on(short: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(short, b"OK") as seen:
        assert starts(short, monkeypatch) == ["start containerd", "start dockerd"]
    assert seen.asked == [b"GET /_ping HTTP/1.1"]


@pytest.mark.parametrize("answer", [b"", b"null", b"[7]", b'{"a": 1}', b"<html>", b"[" * 100_000])
def test_nonsense_of_an_engine_is_an_error_of_the_lab(short: Folder, answer: bytes) -> None:
    made = Cell(cast("NetnsNode", short), Store(short.root / "cache"))
    with Engine(short, answer), pytest.raises(LabError):
        made.images()


@pytest.mark.parametrize("answer", [b'{"errorDetail": {}, "error": "no space left"}', b"null"])
def test_an_image_that_is_not_loaded_is_an_error(short: Folder, answer: bytes) -> None:
    made = Cell(cast("NetnsNode", short), Store(short.root / "cache"))
    archive = short.root / "image.tar"
    archive.write_bytes(b"")
    with Engine(short, b'{"stream": "layer"}\n' + answer), pytest.raises(LabError):
        made.load(archive, "a:1")


def test_an_engine_that_refuses_an_image_before_its_end_is_heard(short: Folder) -> None:
    """dockerd answers without reading the rest, and the connection breaks."""
    path = Path(short.socket(engine.SOCKET))
    path.parent.mkdir(parents=True, exist_ok=True)
    said = b'{"error": "write /x: no space left on device"}'
    archive = short.root / "image.tar"
    archive.write_bytes(bytes(8 << 20))  # more than any buffer of a socket

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            size = b"Content-Length: %d\r\n\r\n" % len(said)
            connection.sendall(b"HTTP/1.1 200 OK\r\n" + size + said)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        made = Cell(cast("NetnsNode", short), Store(short.root / "cache"))
        with pytest.raises(LabError) as caught:
            made.load(archive, "a:1")
        thread.join()
    assert not isinstance(caught.value, NoAnswer)
    assert "no space left on device" in caught.value.message


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (LabError("containerlab deploy: write /x: no space left on device.", hint="else"), True),
        (ServiceError("dockerd", "fabric", "died", "write /y: No space left on device"), True),
        (OSError(errno.ENOSPC, "No space left on device", "/z"), True),
        (LabError("containerlab deploy: no such image", hint="else"), False),
    ],
)
def test_a_full_disk_of_the_cell_has_its_hint(error: Exception, is_full: bool) -> None:
    with pytest.raises(LabError) as caught, cell.with_room():
        raise error
    assert (caught.value.hint == cell.FULL) is is_full
    with pytest.raises(FileNotFoundError), cell.with_room():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")


def test_an_image_may_take_longer_to_load_than_an_answer(
    short: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    class Connection(UnixConnection):
        def __init__(self, path: str, timeout: float) -> None:
            waited.append(timeout)
            super().__init__(path, timeout)

    monkeypatch.setattr(cell, "UnixConnection", Connection)
    made = Cell(cast("NetnsNode", short), Store(short.root / "cache"))
    archive = short.root / "image.tar"
    archive.write_bytes(b"image")
    with Engine(short, b"[]", b'{"stream": "Loaded image: a:1"}'):
        made.images()
        made.load(archive, "a:1")
    assert waited == [cell.ANSWER_SECONDS, cell.DEPLOY_SECONDS]
    assert cell.DEPLOY_SECONDS > cell.ANSWER_SECONDS


def test_a_dead_engine_is_no_answer(short: Folder) -> None:
    made = Cell(cast("NetnsNode", short), Store(short.root / "cache"))
    with pytest.raises(NoAnswer) as caught:
        made.images()
    assert (caught.value.daemon, caught.value.node) == ("dockerd", "fabric")
    assert "`testbed up -l lab`" in (caught.value.hint or "")


def test_of_a_long_log_only_the_end_is_read(
    made: Cell, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell, "TAIL", 100)
    lines = [json.dumps({"log": f"line {number}\n"}) for number in range(99)]
    folder.write(f"{CONTAINERS}/{ID}/{ID}-json.log", "\n".join(lines))
    words = made.last_words(cell._container(json.loads(record()))).splitlines()
    assert words[-1] == "line 98"
    assert len(words) < 5


# -- nodes of a lab that is up ------------------------------------------------------------


class Fabric(Running):
    """A fabric with a cell; its pid 1 is this process, and answers with an error if told to."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.fails: LabError | None = None
        self.init = SimpleNamespace(lab="lab", pid=os.getpid(), node="fabric", state=str(root))
        self.write(READY, "")

    def get(self, path: str) -> bytes:
        self.run()
        return Path(self.socket(path)).read_bytes()

    def run(self, *_: object, **__: object) -> None:
        if self.fails is not None:
            raise self.fails

    duplex = provide = run

    def container(self, name: str, pid: int, *, ours: bool = True, status: int = 0) -> None:
        """Write what an engine records of a node's container."""
        number = name.encode().hex() * 4
        labels = {"containerlab": "lab", "clab-node-name": name}
        labels |= {"testbed.node": name, "testbed.digest": "d1"} if ours else {}
        state = {"Pid": pid, "ExitCode": status}
        text = record(ID=number, State=state, Config={"Labels": labels})
        self.write(f"{CONTAINERS}/{number}/{RECORD}", text)
        self.write(f"{CONTAINERS}/{number}/{number}-json.log", json.dumps({"log": "its words\n"}))
        if pid:
            self.write(f"/proc/{pid}/cgroup", f"0::/docker/{number}")


@pytest.fixture
def fabric(tmp_path: Path) -> Fabric:
    return Fabric(tmp_path / "root")


@pytest.fixture
def provider(
    tmp_path: Path, fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ContainerlabProvider]:
    made = ContainerlabProvider.of(Setup(tmp_path / "state", Store(tmp_path / "cache")))
    monkeypatch.setattr(made.cells, "fabric", lambda _: fabric)
    monkeypatch.setattr("testbed.nodes.netns.cgroups.freezer", lambda: None)
    yield made
    for node in made._reached.values():
        node.close()


def test_nodes_of_a_fabric_that_has_just_ended_are_no_error(
    provider: ContainerlabProvider, fabric: Fabric
) -> None:
    fabric.container("a", os.getpid())
    fabric.fails = has_ended("fabric", "lab")
    assert provider.nodes("lab").keys() == {"a"}


def test_a_node_whose_file_was_deployed_again_stays_one_node(
    provider: ContainerlabProvider, fabric: Fabric
) -> None:
    """Another one would leave an agent behind."""
    fabric.container("a", os.getpid(), ours=False)
    before = provider.nodes("lab")["a"]
    assert before.digest == ""
    fabric.write(DIGESTS, json.dumps({"a": "d2"}))
    after = provider.nodes("lab")["a"]
    assert after is before
    assert after.digest == "d2"


def test_a_pid_that_is_taken_by_another_process_meanwhile_is_no_node(
    provider: ContainerlabProvider, fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    fabric.container("a", os.getpid())
    looks = iter([True, False])
    monkeypatch.setattr(Cell, "runs", lambda *_: next(looks))
    assert provider.nodes("lab") == {}


def test_nodes_that_have_ended_at_once_are_told_with_their_words(
    provider: ContainerlabProvider, fabric: Fabric
) -> None:
    fabric.container("a", os.getpid())
    fabric.container("b", 0, status=3)
    made = provider._cell("lab")
    assert made is not None
    assert provider._created(made, "lab", {"a"}).keys() == {"a"}
    for name, words in {"b": ["3", "its words"], "c": ["not created"]}.items():
        with pytest.raises(LabError) as caught:
            provider._created(made, "lab", {"a", name})
        assert name in caught.value.message
        assert all(word in caught.value.message for word in words)


@pytest.mark.parametrize("error", [TimeoutExpired("it hangs"), has_ended("fabric", "lab")])
def test_a_lab_whose_cell_hangs_is_removed(
    provider: ContainerlabProvider,
    fabric: Fabric,
    monkeypatch: pytest.MonkeyPatch,
    error: LabError,
) -> None:
    removed: list[str] = []
    monkeypatch.setattr(provider.cells, "destroy", removed.append)
    fabric.container("a", os.getpid())
    fabric.fails = error
    provider.destroy("lab")
    assert removed == ["lab"]


def test_nodes_can_be_looked_at_while_an_image_is_loaded(
    provider: ContainerlabProvider, fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    fabric.container("a", os.getpid())
    seen: list[set[str]] = []

    def start(*_: object, **__: object) -> None:
        look = threading.Thread(target=lambda: seen.append({*provider.nodes("lab")}), daemon=True)
        look.start()
        look.join(60)

    monkeypatch.setattr(Cell, "start", start)
    monkeypatch.setattr(Cell, "images", lambda _: set())
    provider._start("lab", [])
    assert seen == [{"a"}]

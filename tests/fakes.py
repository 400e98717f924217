"""Stand-ins for what a lab needs beside its nodes: the store, and the daemons' API."""

from __future__ import annotations

import itertools
import json
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.artifacts import Store
from testbed.errors import ArtifactError
from testbed.labs.lab import Settings
from testbed.labs.state import State
from testbed.nodes.fake import Answer, Call, FakeProvider
from testbed.roles import namespaces
from testbed.roles.engine import ContainerState, Engine

if TYPE_CHECKING:
    import pytest

    from testbed.artifacts.source import Source
    from testbed.nodes.base import Node
    from testbed.topology.model import Container

Containers = weakref.WeakKeyDictionary["Node", dict[str, ContainerState]]
VERSIONS = {
    "docker": "20.10.24+dfsg1",
    "docker-29": "29.8.1+v2.0.0",
    "etcd": "3.4.23",
    "flanneld": "0.25.7",
}


class FakeStore(Store):
    """Has everything, makes nothing."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.missing: Exception | None = None
        self.interrupted = 0
        self.own: set[str] = set()
        self.absent: set[str] = set()  # images
        self.unbuilt: set[str] = set()
        self.long: dict[str, list[str]] = {}  # what is not made yet, by the role

    @property
    def folder(self) -> Path:
        return Path("/nowhere/cache")

    def _path(self, name: str) -> Path:
        self.asked.append(name)
        if self.missing:
            raise self.missing
        return Path("/nowhere/cache", name)

    def is_users(self, name: str) -> bool:
        return name in self.own

    def binary(self, name: str, *parts: str) -> Path:
        return self._path(name)

    def made(self, name: str, *parts: str) -> Path | None:
        return None if name in self.unbuilt else self._path(name)

    def image(self, name: str) -> Path:
        return self._path(name)

    def path_dirs(self, *parts: str) -> list[Path]:
        return [Path("/nowhere/cache", part) for part in parts]

    def is_users_image(self, name: str) -> bool:
        return name in self.own

    def lacking_images(self, names: Iterable[str]) -> ArtifactError | None:
        absent = sorted(set(names) & self.absent)
        return ArtifactError(f"not available: {', '.join(absent)}") if absent else None

    def users_file(self, name: str) -> Path:
        return self._path(name)

    def unmade(self, role: str) -> list[str]:
        return self.long.get(role, [])

    def versions(self) -> dict[str, str]:
        return dict(VERSIONS)

    def versions_of(
        self, programs: Iterable[str], *parts: str, images: Iterable[str] = ()
    ) -> dict[str, str]:
        return self.versions()

    def packages(self, *parts: str) -> dict[str, str]:
        return {f"{part}.deb": self.version(part) for part in parts}

    def version(self, part: str) -> str:
        return VERSIONS.get(part, "")

    def keep(self, name: str, source: Source) -> Path:
        return self._path(name)

    def kept(self, name: str, source: Source) -> Path | None:
        return None

    def interrupt(self) -> None:
        self.interrupted += 1


class Files:
    """The files of a node, for a test of what is asked of it besides; it shares this machine's."""

    name = "node1"

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def get(self, path: str) -> bytes:
        try:
            return self.files[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    def put(self, data: bytes, path: str) -> None:
        self.files[path] = data

    def provide(self, path: Path) -> str:
        return str(path)


class FakeEngine(Engine):
    """A daemon's containers, kept with the node they are on."""

    _all: ClassVar[Containers] = weakref.WeakKeyDictionary()
    _images: ClassVar[weakref.WeakKeyDictionary[Node, set[str]]] = weakref.WeakKeyDictionary()
    _pids = itertools.count(1000)
    #: What was done, on which node: "load", "start NAME", "remove NAME".
    log: list[tuple[str, str]]
    refuse: Mapping[str, Exception] = {}
    #: What a container that is started turns out to be: other values of its state.
    turns: Mapping[str, Mapping[str, Any]] = {}
    #: What it has written.
    written: Mapping[str, str] = {}

    def __init__(self, node: Node) -> None:
        self._node = node
        self._here = self._all.setdefault(node, {})
        self._images.setdefault(node, set())

    def close(self) -> None:
        return

    def _note(self, what: str) -> None:
        self.log.append((self._node.name, what))

    @property
    def version(self) -> dict[str, Any]:
        return {"Version": VERSIONS["docker"]}

    def image_id(self, name: str) -> str:
        return f"sha256:{name}" if name in self._images[self._node] else ""

    def load(self, archive: Path, name: str) -> str:
        self._note(f"load {name}")
        self._images[self._node].add(name)
        return self.image_id(name)

    def names(self, *, label: str | None = None) -> set[str]:
        return set(self._here)

    def find(self, container: str) -> ContainerState | None:
        return self._here.get(container)

    def inspect(self, container: str) -> ContainerState:
        return self._here[container]

    def start(self, lab: str, container: Container, digest: str) -> None:
        if container.name in self.refuse:
            raise self.refuse[container.name]
        self._note(f"start {container.name}")
        pid = next(self._pids)
        network = container.network
        joined = network.removeprefix("container:")
        if joined != network:
            network = f"container:{self._here[joined].id}"
        self._here[container.name] = ContainerState(
            name=container.name,
            id=f"{pid:064x}",
            running=True,
            pid=pid,
            network=network,
            address=f"172.17.0.{len(self._here) + 2}" if network == "bridge" else "",
            gateway="172.17.0.1",
            image=container.image,
            digest=digest,
            status="running",
        )
        if container.name in self.turns:
            self._here[container.name] = replace(
                self._here[container.name], **self.turns[container.name]
            )

    def logs(self, container: str, lines: int = 12) -> str:
        return self.written.get(container, "")

    def inspect_raw(self, container: str) -> dict[str, Any]:
        return {"Config": {"Healthcheck": {}, "Env": []}, "State": {"Health": {"Log": []}}}

    def remove(self, container: str) -> None:
        self._note(f"remove {container}")
        del self._here[container]


def page(call: Call) -> Answer:
    """The page of a container, when a node is asked to fetch one."""
    if "curl" not in call.words:
        return Answer()
    return Answer(out=json.dumps({"name": "server", "client": "100.96.1.2:4711"}).encode())


class FakeLinks:
    """The namespaces and links that `ip` has made on a node, and that it lists."""

    def __init__(self) -> None:
        #: By node: the links of each namespace, by name; "" is the node itself.
        self.there: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}

    def of(self, node: str) -> dict[str, dict[str, dict[str, Any]]]:
        return self.there.setdefault(node, {"": {}})

    def ip(self, call: Call) -> Answer:
        """Do what `ip` was told, in its words or as a batch."""
        words = list(call.words[1:])
        inside = words[1] if words[0] == "-n" else ""
        words = words[2:] if inside else words
        lines = (call.input or b"").decode().splitlines() if words[0] == "-batch" else []
        for line in lines or [" ".join(words)]:
            self._do(self.of(call.node), inside, line.split())
        return Answer()

    def _do(
        self, here: dict[str, dict[str, dict[str, Any]]], inside: str, words: list[str]
    ) -> None:
        links = here.get(inside, {})
        match words:
            case ["netns", "add", str(name)]:
                here[name] = {"lo": {"flags": []}}
            case ["netns", "delete", name]:
                for link in here.get(name, {}).keys() - {"lo"}:
                    self._delete(here, name, link)
                here.pop(name, None)
            case ["link", "add", "name", name, "type", "bridge"]:
                links[name] = {"flags": []}
            case ["link", "add", "name", name, *rest] if "veth" in rest:
                near = (self._space(rest[: rest.index("type")]), name)
                peer = rest[rest.index("peer") + 1 :]
                other = (self._space(peer), peer[1])
                for (space, end), far in ((near, other), (other, near)):
                    assert end not in here[space], "File exists"
                    here[space][end] = {"flags": [], "peer": far}
            case ["link", "delete", "dev", name] | ["link", "delete", name] if name in links:
                self._delete(here, inside, name)
            case ["link", "set", "dev", name, *rest] if name in links:
                links[name]["flags"] = [] if "down" in rest else ["UP"]
                master = rest[rest.index("master") + 1] if "master" in rest else ""
                before = links[name].get("master", "")
                links[name]["master"] = "" if "nomaster" in rest else master or before
            case ["address", "add", address, "dev", name]:
                local, _, length = address.partition("/")
                one = {"family": "inet", "local": local, "prefixlen": int(length)}
                links[name].setdefault("addr_info", []).append(one)
            case ["address", "flush", "dev", name]:
                links[name]["addr_info"] = []

    @staticmethod
    def _space(words: list[str]) -> str:
        """The namespace that an end of a veth pair is made in."""
        return words[words.index("netns") + 1] if "netns" in words else ""

    @staticmethod
    def _delete(here: dict[str, dict[str, dict[str, Any]]], space: str, name: str) -> None:
        """A link goes with its peer, and a bridge leaves its ports alone."""
        far, other = here[space].pop(name).get("peer", ("", ""))
        here.get(far, {}).pop(other, None)
        for link in here[space].values():
            if link.get("master") == name:
                link["master"] = ""

    def look(self, call: Call) -> Answer:
        """The output of :data:`namespaces.LOOK`."""
        here = self.of(call.node)
        spaces = [here.get(name) for name in ("", *call.words[4:])]
        listed = [
            ""
            if links is None
            else json.dumps([{"ifname": n, **link} for n, link in links.items()])
            for links in spaces
        ]
        return Answer(out="\0".join(listed).encode())


def _providers(netns: FakeProvider) -> dict[str, FakeProvider]:
    """Those that there are, on one fabric."""
    return {"netns": netns, "qemu": FakeProvider(netns.machine, name="qemu")}


class Bench:
    """Settings with fakes all through, and what they were asked."""

    def __init__(self, folder: Path) -> None:
        self.state = State(folder)
        self.store = FakeStore()
        self.provider = FakeProvider(name="netns")
        self.provider.script(["nsenter"], page)
        self.links = FakeLinks()
        self.provider.script(["ip"], self.links.ip)
        self.provider.script(["sh", "-c", namespaces.LOOK], self.links.look)
        self.settings = Settings(self.state, self.store, _providers(self.provider))
        self.engine_log: list[tuple[str, str]] = []

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(FakeEngine, "log", self.engine_log, raising=False)
        for empty in ("refuse", "turns", "written"):
            patch.setattr(FakeEngine, empty, {})
        patch.setattr("testbed.roles.settle.MOMENT", 0.0)
        for module in ("containers", "images", "settle"):
            patch.setattr(f"testbed.roles.{module}.Engine", FakeEngine)
        patch.setattr("testbed.roles.docker.preload", lambda: None)
        patch.setattr("testbed.labs.preflight.check", lambda *_: None)

    def again(self) -> Settings:
        """As another process on the same machine would have it."""
        netns = FakeProvider(self.provider.machine, name="netns")
        return Settings(State(self.state.path), FakeStore(), _providers(netns))

    def forget(self) -> None:
        """Start the notes anew."""
        self.provider.machine.calls.clear()
        self.engine_log.clear()

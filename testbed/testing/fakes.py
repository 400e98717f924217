"""Stand-ins for the environment of a lab: store, container engines, links, programs of nodes.

With the nodes in memory of :mod:`testbed.nodes.fake`, a lab can be created and tested without
root and without programs: :class:`Bench` has everything together.
"""

from __future__ import annotations

import itertools
import json
import signal
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.artifacts import Store
from testbed.errors import ArtifactError, LabError
from testbed.labs.lab import Settings
from testbed.labs.state import State
from testbed.nodes.fake import Answer, Behaviour, Call, FakeMachine, FakeNode, FakeProvider
from testbed.registry import Declared, Registry
from testbed.roles import namespaces
from testbed.roles.docker.engine import ContainerState, Endpoint, Engine, NetworkState
from testbed.testing.provider import BOTH, DIES, NEVER, SIGNALLED

if TYPE_CHECKING:
    import pytest

    from testbed.artifacts.source import Source
    from testbed.nodes.base import Node
    from testbed.roles.docker.networks import DockerNetwork
    from testbed.topology.containers import Container

Containers = weakref.WeakKeyDictionary["Node", dict[str, ContainerState]]
VERSIONS = {
    "docker": "20.10.24+dfsg1",
    "docker-24": "24.0.2",
    "docker-26": "26.1.5",
    "docker-28": "28.5.2",
    "docker-29": "29.8.1+v2.0.0",
    "etcd": "3.4.23",
    "flanneld": "0.25.7",
}


#: The description of a tree of packages without any (testbed.artifacts.package_tree.about).
NO_PACKAGES: Mapping[str, Any] = {"versions": {}, "needs": [], "accounts": [], "folders": []}


class FakeStore(Store):
    """An artifact store that has every program and image, without files.

    ``asked`` lists the requested names.  ``missing`` is an error to raise at each request,
    ``own`` the names that are the user's, ``absent`` the images that are not available,
    ``unbuilt`` the programs that are not built yet, ``long`` those by role.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.missing: Exception | None = None
        self.interrupted = 0
        self.own: set[str] = set()
        self.absent: set[str] = set()
        self.unbuilt: set[str] = set()
        self.long: dict[str, list[str]] = {}

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

    def bring(self, names: Iterable[str]) -> dict[str, Path]:
        wanted = sorted(set(names))
        if error := self.lacking_images(wanted):
            raise error
        return {name: self.image(name) for name in wanted}

    def lacking_images(self, names: Iterable[str]) -> ArtifactError | None:
        absent = sorted(set(names) & self.absent)
        return ArtifactError(f"not available: {', '.join(absent)}") if absent else None

    def absent_images(self, names: Iterable[str]) -> dict[str, list[str]]:
        return {name: [] for name in sorted(set(names) & self.absent)}

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
    """A node that has files only, and sees this machine's files."""

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
    """A container engine in memory; each node has its own containers and images."""

    _all: ClassVar[Containers] = weakref.WeakKeyDictionary()
    _images: ClassVar[weakref.WeakKeyDictionary[Node, set[str]]] = weakref.WeakKeyDictionary()
    _networks_of: ClassVar[weakref.WeakKeyDictionary[Node, dict[str, NetworkState]]] = (
        weakref.WeakKeyDictionary()
    )
    _pids = itertools.count(1000)
    #: Actions in order: node, and "load NAME", "start NAME" or "remove NAME".
    log: list[tuple[str, str]]
    #: Errors to raise when a container is started, by name.
    refuse: Mapping[str, Exception] = {}
    #: Other values of the state of a started container, by name.
    turns: Mapping[str, Mapping[str, Any]] = {}
    #: Output of containers, by name.
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

    def reload(self, ask: Callable[[], object]) -> None:
        self._note("reload")
        ask()

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
        network = container.network or next(iter(container.networks))
        if container.shares:
            network = f"container:{self._here[container.shares].id}"
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
            networks={
                name: Endpoint(
                    self.networks()[name].id,
                    str(one.ipv4_address or ""),
                    str(one.ipv6_address or ""),
                    one.mac_address or "",
                )
                for name, one in container.networks.items()
            },
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

    def networks(self) -> dict[str, NetworkState]:
        own = NetworkState(
            "bridge", "0" * 64, "bridge", ("172.17.0.0/16",), internal=False, digest=None
        )
        return {"bridge": own, **self._networks_of.setdefault(self._node, {})}

    def create_network(self, lab: str, network: DockerNetwork) -> NetworkState:
        self._note(f"create network {network.name}")
        made = NetworkState(
            network.name,
            f"{next(self._pids):064x}",
            network.driver,
            tuple(map(str, network.subnet)),
            network.internal,
            network.digest,
        )
        self._networks_of.setdefault(self._node, {})[network.name] = made
        return made

    def remove_network(self, network: NetworkState) -> list[str]:
        on_it = sorted(name for name, one in self._here.items() if network.name in one.networks)
        for name in on_it:
            self.remove(name)
        self._note(f"remove network {network.name}")
        del self._networks_of[self._node][network.name]
        return on_it


def page(call: Call) -> Answer:
    """Answer curl with the page of a container of this package."""
    if "curl" not in call.words:
        return Answer()
    return Answer(out=json.dumps({"name": "server", "client": "100.96.1.2:4711"}).encode())


def kill(call: Call) -> Answer:
    """Let a service die at ``kill -KILL PID``."""
    assert call.at is not None
    for state in call.at.services().values():
        if call.words[1:] == ("-KILL", str(state.pid)):
            call.at.end(state.name, -signal.SIGKILL)
    return Answer()


class FakeLinks:
    """Network namespaces and links of nodes, as created with `ip`."""

    def __init__(self) -> None:
        #: By node: the links of each namespace by name; "" is the node's own.
        self.there: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}

    def of(self, node: str) -> dict[str, dict[str, dict[str, Any]]]:
        return self.there.setdefault(node, {"": {}})

    def ip(self, call: Call) -> Answer:
        """Answer a call of `ip`, with one command or a batch."""
        if call.at is not None and (said := call.at.kernel.answer(call)) is not None:
            return Answer(out=said)
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
        """Return the namespace of one end of a veth pair."""
        return words[words.index("netns") + 1] if "netns" in words else ""

    @staticmethod
    def _delete(here: dict[str, dict[str, dict[str, Any]]], space: str, name: str) -> None:
        """Delete a link with its peer; the ports of a bridge stay."""
        far, other = here[space].pop(name).get("peer", ("", ""))
        here.get(far, {}).pop(other, None)
        for link in here[space].values():
            if link.get("master") == name:
                link["master"] = ""

    def look(self, call: Call) -> Answer:
        """Answer :data:`testbed.roles.namespaces.LOOK`."""
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
    """Return two providers on one fabric."""
    return {"netns": netns, "qemu": FakeProvider(netns.machine, name="qemu")}


class Bench:
    """The settings of labs in memory.

    ``provider`` makes the nodes and records all calls; ``store``, ``links`` and ``engine_log``
    are what steps use besides.  Call :meth:`install` first: it replaces the container engines and
    the checks of this machine until the end of the test.
    """

    def __init__(self, folder: Path) -> None:
        self.state = State(folder)
        self.store = FakeStore()
        self.provider = FakeProvider(name="netns")
        self.provider.script(["nsenter"], page)
        self.links = FakeLinks()
        self.provider.script(["ip"], self.links.ip)
        self.provider.script(["kill"], kill)
        self.provider.script(["sh", "-c", namespaces.LOOK], self.links.look)
        self.settings = Settings(self.state, self.store, _providers(self.provider))
        self.engine_log: list[tuple[str, str]] = []

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Replace container engines and checks of this machine until the end of the test."""
        patch.setattr(FakeEngine, "log", self.engine_log, raising=False)
        for empty in ("refuse", "turns", "written"):
            patch.setattr(FakeEngine, empty, {})
        patch.setattr("testbed.roles.docker.settle.MOMENT", 0.0)
        patch.setattr("testbed.labs.program_steps.MOMENT", 0.0)
        for module in ("compose", "containers", "daemon", "images", "network_steps", "settle"):
            patch.setattr(f"testbed.roles.docker.{module}.Engine", FakeEngine)
        patch.setattr("testbed.roles.docker.daemon.preload", lambda: None)
        patch.setattr("testbed.labs.preflight.check", lambda *_: None)
        patch.setattr("testbed.labs.preflight._inotify_used", lambda: 0)
        patch.setattr("testbed.artifacts.package_tree.about", lambda _: dict(NO_PACKAGES))

    def again(self) -> Settings:
        """Return settings as another process on the same machine would have them."""
        netns = FakeProvider(self.provider.machine, name="netns")
        return Settings(State(self.state.path), FakeStore(), _providers(netns))

    def forget(self) -> None:
        """Forget all recorded calls."""
        self.provider.machine.calls.clear()
        self.engine_log.clear()


def _stat(call: Call) -> Answer:
    assert call.at is not None
    return Answer(out=f"{call.at.modes[call.words[-1]]:o}\n".encode())


def _list_folder(call: Call) -> Answer:
    assert call.at is not None
    top = call.words[-1].rstrip("/") + "/"
    names = {f.removeprefix(top).split("/")[0] for f in call.at.files if f.startswith(top)}
    return Answer(out="\n".join(sorted(names)).encode())


def _environment(call: Call) -> Answer:
    return Answer(out="\n".join(f"{key}={value}" for key, value in call.env.items()).encode())


def _printf(call: Call) -> Answer:
    return Answer(
        out=b"".join(w.encode("utf-8", "surrogateescape") + b"\0" for w in call.words[2:])
    )


def _shell(call: Call) -> Answer:
    assert call.at is not None
    path = call.words[-1].removeprefix("cat ")
    return Answer(out=call.at.files[path]) if path in call.at.files else Answer(127)


def _offered(call: Call) -> Answer:
    assert call.at is not None
    return Answer(0 if call.at.programs[call.words[0]].name != "false" else 1)


def _true(call: Call) -> Answer:
    if len(" ".join(call.words)) > 200_000:
        raise LabError("a command is too many bytes long")
    return Answer()


def teach(machine: FakeMachine) -> FakeMachine:
    """Teach nodes in memory the programs of the provider contract; return the machine."""
    machine.script(["true"], _true)
    machine.script(["cat"], lambda call: Answer(out=call.input or b""))
    machine.script(["echo"], lambda call: Answer(out=" ".join(call.words[1:]).encode()))
    machine.script(["printf"], _printf)
    machine.script(["env"], _environment)
    machine.script(["stat"], _stat)
    machine.script(["ls"], _list_folder)
    machine.script(["sh", "-c", "ulimit -Sn"], Answer(out=b"1024\n"))
    machine.script(["head"], lambda call: Answer(out=b"\0" * int(call.words[2])))
    machine.script(["sleep"], lambda call: Answer(seconds=float(call.words[1])))
    machine.script(["/bin/sh"], _shell)
    machine.script(["once"], _offered)
    machine.script(["/usr/libexec/deep/folder/once"], _offered)
    machine.script(BOTH, Answer(3, b"out\n", b"err\n"))
    machine.script(SIGNALLED, Answer(-15))
    machine.script(["sh", "-c", "echo begun; sleep 64"], Answer(out=b"begun\n", seconds=64))
    machine.behave("good", Behaviour(log="ready soon\n"))
    machine.behave(DIES, Behaviour(log="no luck\n", dies=7))
    machine.behave(NEVER, Behaviour(never_ready=True))
    return machine


def be_a_machine(monkeypatch: pytest.MonkeyPatch, yes: bool = True) -> None:
    """Give nodes in memory the traits of virtual machines, or those of namespaces.

    The traits hold until the end of the test.
    """
    for trait in ("shares_files", "shares_kernel"):
        monkeypatch.setattr(FakeNode, trait, not yes)
    for trait in ("has_system", "wakes"):
        monkeypatch.setattr(FakeNode, trait, yes)
    monkeypatch.setattr(FakeNode, "slowness", 5.0 if yes else 1.0)


def declare(
    monkeypatch: pytest.MonkeyPatch, registry: Registry[Any], name: str, *values: str
) -> None:
    """Register a provider or role until the end of the test, as an installed distribution does.

    ``registry`` is :data:`testbed.registry.PROVIDERS` or :data:`testbed.registry.ROLES`;
    ``values`` are entry points such as ``"rack:RackProvider"``, one for each distribution that
    declares the name.
    """
    points = [Declared(name, value, f"{name}-{n}") for n, value in enumerate(values)]
    made = {other: value for other, value in registry._made.items() if other != name}
    monkeypatch.setattr(registry, "_declared", {**registry.declared(), name: points})
    monkeypatch.setattr(registry, "_made", made)
    monkeypatch.setattr(registry, "_broken", None)

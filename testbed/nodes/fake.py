r"""Nodes in memory, for unit tests.

Nothing is executed.  By default a command succeeds without output and a service
becomes ready at once; a test can script other results.  Every call to the nodes
is recorded, in order, in :attr:`FakeMachine.calls`.

>>> provider = FakeProvider()
>>> provider.script(["uname", "-r"], Answer(out=b"6.1\n"))
>>> node = provider.create_one("lab", NodeSpec("node1", "digest"))
>>> node.run(["uname", "-r"]).stdout
'6.1\n'
"""

from __future__ import annotations

import copy
import errno
import itertools
import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from testbed.errors import ServiceError, ServiceNotReady, TimeoutExpired
from testbed.nodes import netstate, originals, wiring
from testbed.nodes.base import (
    Bind,
    Node,
    NodeSpec,
    OneByOne,
    Result,
    Running,
    Service,
    ServiceState,
    Snapshot,
    has_ended,
    no_service,
)
from testbed.requirement import Requirement
from testbed.topology import iproute

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.nodes.wiring import Difference
    from testbed.topology.model import Topology
    from testbed.topology.ports import Port


@dataclass(frozen=True, slots=True)
class Answer:
    """The scripted result of a command: status (-N for signal N), output, and delay."""

    status: int = 0
    out: bytes = b""
    err: bytes = b""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Call:
    """One recorded call of a node, or of the provider about a node.

    ``what`` is the method's name; ``words`` are its command, path or service name.
    """

    lab: str
    node: str
    what: str
    words: tuple[str, ...] = ()
    input: bytes | None = field(default=None, repr=False)
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    at: FakeNode | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Scripted behaviour of a service: ready after ``seconds``, dead with a status, or neither.

    ``log`` is its output.
    """

    log: str = ""
    dies: int | None = None
    never_ready: bool = False
    seconds: float = 0.0


Handler = Answer | Callable[[Call], Answer]
UNKNOWN = 127  # a shell's exit status for an unknown program


class FakeMachine:
    """The state that all providers of one machine share, like the kernel's namespaces.

    On a ``strict`` machine a command without a script fails like an unknown program.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self.lock = threading.RLock()
        self.nodes: dict[tuple[str, str], FakeNode] = {}
        self.fabrics: dict[str, FakeNode] = {}
        #: Missing parts of the networks, outside of the nodes, by lab and node.
        self.differences: dict[tuple[str, str], list[Difference]] = {}
        self.paused: set[tuple[str, str]] = set()
        self.calls: list[Call] = []
        self.pids = itertools.count(2)
        self._scripts: list[tuple[tuple[str, ...], str | None, Handler]] = []
        self._behaviours: dict[tuple[str, str | None], Behaviour] = {}
        self._faults: dict[tuple[str, str], Exception] = {}

    def script(self, argv: Sequence[str], answer: Handler, node: str | None = None) -> None:
        with self.lock:
            self._scripts.insert(0, (tuple(argv), node, answer))

    def behave(self, service: str, behaviour: Behaviour, node: str | None = None) -> None:
        with self.lock:
            self._behaviours[service, node] = behaviour

    def fail(self, method: str, node: str, error: Exception | None) -> None:
        with self.lock:
            if error is None:
                self._faults.pop((method, node), None)
            else:
                self._faults[method, node] = error

    def behaviour(self, service: str, node: str) -> Behaviour:
        with self.lock:
            common = self._behaviours.get((service, None), Behaviour())
            return self._behaviours.get((service, node), common)

    def note(self, call: Call) -> None:
        """Record a call; raise the error set with :meth:`fail`, if any."""
        with self.lock:
            self.calls.append(call)
            fault = self._faults.get((call.what, call.node))
        if fault is not None:
            raise fault

    def answer(self, call: Call) -> Answer:
        with self.lock:
            fitting = [
                handler
                for prefix, node, handler in self._scripts
                if node in (None, call.node) and call.words[: len(prefix)] == prefix
            ]
        if fitting:
            return fitting[0] if isinstance(fitting[0], Answer) else fitting[0](call)
        if call.words == wiring.LOOK and call.at is not None:
            return Answer(out=call.at.wiring.encode())
        if call.at is not None and (said := call.at.kernel.answer(call)) is not None:
            return Answer(out=said)
        if call.at is not None and (said := call.at.answer(call.words)) is not None:
            return Answer(out=said)
        if self.strict:
            return Answer(UNKNOWN, err=f"{call.words[0]}: not found\n".encode())
        return Answer()


@dataclass(slots=True)
class Wiring:
    """The links of a node: its addresses by name, those that are down, the default gateway."""

    addresses: dict[str, tuple[str, ...]] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    gateway: str = ""
    gateway6: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    ports: dict[str, Port] = field(default_factory=dict)

    def connect(self, topology: Topology, node: str) -> None:
        """Set links, addresses and gateway as the topology defines them."""
        gateway = topology.gateway_of(node)
        self.addresses = wiring.addresses(topology, node)
        self.ports = {port.name: port for port in topology.nodes[node].ports}
        self.down.clear()
        self.gateway = str(gateway) if gateway else ""
        six = topology.gateway6_of(node)
        self.gateway6 = str(six[0]) if six else ""
        self.settings |= wiring.settings(topology, node)

    def encode(self) -> bytes:
        """Return the output that :data:`wiring.LOOK` would print on the node."""
        links = [
            {
                "ifname": name,
                "flags": [] if name in self.down else ["UP"],
                "addr_info": [_address(address) for address in addresses],
                **_settings(self.ports.get(name)),
            }
            for name, addresses in self.addresses.items()
        ]
        routes = [{"dst": "default", "gateway": self.gateway, "dev": "eth0"}]
        parts = [
            json.dumps(links),
            json.dumps(routes if self.gateway else []),
            self.settings.get(wiring.FORWARDING, "0"),
        ]
        if self.gateway6:
            no, hop = "0" * 32, f"{int(IPv6Address(self.gateway6)):032x}"
            parts[2] += f"\n{no} 00 {no} 00 {hop} 00000400 00000001 00000000 00000003     eth0\n"
        return "\0".join(parts).encode()


@dataclass(slots=True)
class FakeKernel:
    """The routes, rules and sysctls of a node, as its file sets them."""

    sysctls: dict[str, str]
    routes: dict[int, list[dict[str, object]]] = field(default_factory=lambda: {4: [], 6: []})
    rules: dict[int, list[dict[str, object]]] = field(default_factory=lambda: {4: [], 6: []})

    def answer(self, call: Call) -> bytes | None:
        """Do a command as ip(8) and sysctl(8) would; None for all others."""
        words = call.words
        if words[:3] == ("sh", "-c", netstate.LOOK):
            return self._shown(words[4:])
        if words[:3] == ("sysctl", "-q", "-w"):
            self.sysctls |= dict(pair.split("=", 1) for pair in words[3:])
            return b""
        if words[0] == "ip" and words[1] in ("-4", "-6") and "-batch" in words:
            for line in (call.input or b"").decode().splitlines():
                self._do(int(words[1][1]), *line.split(" ", 2))
            return b""
        return None

    def _shown(self, paths: Sequence[str]) -> bytes:
        parts = [part for f in (4, 6) for part in (self.routes[f], self.rules[f])]
        names = (path.replace("/", ".") for path in paths)
        said = [*map(json.dumps, parts), *(self.sysctls.get(name, "0") for name in names)]
        return "".join(f"{one}\0" for one in said).encode()

    def _do(self, family: int, kind: str, verb: str, text: str) -> None:
        if kind == "route":
            route = iproute.route(text)
            there = self.routes[family]
            there[:] = [
                one for one in there
                if not (route.matches(one) if verb == "del" else route.is_of_kind(one))
            ]  # fmt: skip
            if verb != "del":
                there.append(_route_entry(route))
        else:
            rule = iproute.rule(text)
            there = self.rules[family]
            there[:] = [one for one in there if not rule.matches(one)]
            if verb != "del":
                there.append(_rule_entry(rule))


def _route_entry(route: iproute.Route) -> dict[str, object]:
    default = 1024 if route.family == 6 else 0
    hops: list[dict[str, object]] = [
        {"dev": hop.dev or "eth0", "weight": hop.weight}
        | ({"gateway": str(hop.via)} if hop.via else {})
        for hop in route.hops
    ]
    return {
        "type": route.kind, "dst": route.destination, "table": route.table,
        "metric": default if route.metric is None else route.metric,
        **({"prefsrc": str(route.src)} if route.src else {}),
        **({"metrics": [{"mtu": route.mtu}]} if route.mtu else {}),
        **(hops[0] if len(hops) == 1 else {"nexthops": hops} if hops else {}),
    }  # fmt: skip


def _rule_entry(rule: iproute.Rule) -> dict[str, object]:
    named = {"from": "src", "to": "dst"}
    entry: dict[str, object] = {named.get(k, k): v for k, v in rule.values.items()}
    if "fwmark" in rule.values:
        entry["fwmark"], entry["fwmask"] = rule.values["fwmark"].split("/")
    words = {flag: None for flag in rule.flags if flag in ("not", "nop", "l3mdev")}
    actions = [flag for flag in rule.flags if flag not in words]
    return entry | words | ({"action": actions[0]} if actions else {})


def _address(text: str) -> dict[str, object]:
    local, _, length = text.partition("/")
    family = "inet6" if ":" in local else "inet"
    return {"family": family, "local": local, "prefixlen": int(length)}


def _settings(port: Port | None) -> dict[str, object]:
    """Return the entries of a link as the file has it."""
    if port is None:
        return {}
    queue = wiring.queue_of(port) or "noqueue"
    return {"mtu": port.mtu or 1500, "address": port.hardware, "qdisc": queue}


class FakeRunning(Running):
    """A command that ends after its scripted delay."""

    def __init__(self, node: FakeNode, argv: Sequence[str], answer: Answer, pid: int) -> None:
        self.argv = tuple(argv)
        self.pid = pid
        self._node = node
        self._answer = answer
        self._began = time.monotonic()
        self._killed = threading.Event()
        self._result: Result | None = None

    @property
    def out(self) -> bytes:
        return self._answer.out

    @property
    def err(self) -> bytes:
        return self._answer.err

    def wait(self, timeout: float | None = None) -> Result:
        if self._result is None:
            left = max(0.0, self._began + self._answer.seconds - time.monotonic())
            enough = timeout is None or left <= timeout
            self._killed.wait(left if enough else timeout)
            self._node.require_there()
            if not enough and not self._killed.is_set():
                raise TimeoutExpired(
                    f"on {self._node.name}: {' '.join(self.argv)}: "
                    f"still running after {timeout:g} s"
                )
            self._end(-signal.SIGKILL if self._killed.is_set() else self._answer.status)
        assert self._result is not None
        return self._result

    def kill(self) -> None:
        self._killed.set()
        if self._result is None:
            self._end(-signal.SIGKILL)

    def let_go(self) -> None:
        """Wake all waiting threads because the node is gone."""
        self._killed.set()

    def _end(self, status: int) -> None:
        seconds = time.monotonic() - self._began
        self._result = Result(self.argv, status, self._answer.out, self._answer.err, seconds)
        self._node.ended(self)


class FakeNode(Node):
    """One node in memory.  ``files`` and ``modes`` are by absolute path."""

    shares_files = True
    shares_kernel = True
    has_system = False

    def __init__(
        self, machine: FakeMachine, lab: str, spec: NodeSpec, *, maker: str = "fake"
    ) -> None:
        self.maker = maker
        self.name = spec.name
        self.digest = spec.digest
        self.spec = spec
        self.lab = lab
        self.wiring = Wiring()
        self.kernel = FakeKernel(self.wiring.settings)
        self.files: dict[str, bytes] = {"/etc/machine-id": f"{uuid.uuid4().hex}\n".encode()}
        self.modes: dict[str, int] = {}
        self.owners: dict[str, str] = {}
        self.bound = list(spec.binds)
        self.replaced: dict[str, bytes] = {}
        self.programs: dict[str, Path] = {}
        self.gone = threading.Event()
        self._machine = machine
        self._running: set[FakeRunning] = set()
        self._services: dict[str, ServiceState] = {}
        self._logs: dict[str, str] = {}
        self._started: dict[str, Service] = {}  # the settings of the last start
        #: Files, their modes, and services, by the name of a snapshot.
        self.saved: dict[str, tuple[dict[str, bytes], dict[str, int], dict[str, ServiceState]]] = {}

    def __repr__(self) -> str:
        return f"<fake node {self.name} of {self.lab}>"

    def require_there(self) -> None:
        """Raise NoSuchNode once the node has been removed."""
        if self.gone.is_set():
            raise has_ended(self.name, self.lab)

    def _note(self, what: str, *words: str, env: Mapping[str, str] | None = None) -> None:
        self.require_there()
        self._machine.note(Call(self.lab, self.name, what, words, env=env or {}, at=self))

    def answer(self, words: Sequence[str]) -> bytes | None:
        """Do what some programs do with files; None for other commands."""
        if words[0] == "chown":
            self.owners[words[-1]] = words[1]
            return b""
        if words[: len(originals.STAT)] == originals.STAT:
            paths = [path for path in words[len(originals.STAT) :] if path in self.files]
            return "".join(map(self._stat, paths)).encode()
        if words[:3] == ("sh", "-c", originals.KEEP):
            there = {path: self.files[path] for path in words[5:] if path in self.files}
            self.replaced |= {
                path: data for path, data in there.items() if path not in self.replaced
            }
            return b""
        if words[:3] == ("sh", "-c", originals.REMOVE):
            for path in words[5:]:
                self.files.pop(path, None)
                if path in self.replaced:
                    self.files[path] = self.replaced.pop(path)
            return b""
        return None

    def _stat(self, path: str) -> str:
        user, _, group = self.owners.get(path, "root").partition(":")
        owner = f"{user}:{group or user}"
        return f"{self.modes.get(path, 0o644):o} {owner} {owner} {path}\n"

    # -- commands ---------------------------------------------------------

    def spawn(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> FakeRunning:
        self.require_there()
        _refuse_nul(argv)
        merged = {**self.env, **(env or {})}
        call = Call(self.lab, self.name, "run", tuple(argv), input, merged, self)
        self._machine.note(call)
        running = FakeRunning(self, argv, self._machine.answer(call), next(self._machine.pids))
        with self._machine.lock:
            self.require_there()
            self._running.add(running)
        return running

    def ended(self, running: FakeRunning) -> None:
        """Forget a command that has ended, so that it is not woken any more."""
        with self._machine.lock:
            self._running.discard(running)

    def attach(
        self,
        argv: Sequence[str],
        *,
        tty: bool,  # noqa: ARG002  (no terminal here)
        inside: int = 1,  # noqa: ARG002
    ) -> int:
        status = self.run(argv, check=False).status
        return status if status >= 0 else 128 - status

    # -- files ------------------------------------------------------------

    def put(self, data: bytes, path: str, *, mode: int = 0o644) -> None:
        self._note("put", path)
        with self._machine.lock:
            self._refuse_folder(path)
            self.files[path] = bytes(data)
            self.modes[path] = mode
            self.owners.pop(path, None)

    def get(self, path: str) -> bytes:
        self._note("get", path)
        with self._machine.lock:
            self._refuse_folder(path)
            try:
                return self.files[path]
            except KeyError:
                raise _os_error(errno.ENOENT, f"{self.name}:{path}") from None

    def _refuse_folder(self, path: str) -> None:
        below = str(PurePosixPath(path)).rstrip("/") + "/"
        if any(file.startswith(below) for file in self.files):
            raise _os_error(errno.EISDIR, f"{self.name}:{path}")

    def unbound(self, binds: Sequence[Bind]) -> list[Bind]:
        return [one for one in binds if one not in self.bound]

    def bind(self, binds: Sequence[Bind]) -> list[Bind]:
        missing = self.unbound(binds)
        self._note("bind", *(str(one.source) for one in missing))
        self.bound += missing
        return missing

    def provide(self, path: Path) -> str:
        return str(path)

    def offer(self, programs: Mapping[str, Path]) -> None:
        self._note("offer", *sorted(programs))
        with self._machine.lock:
            self.programs.update(programs)

    def socket(self, path: str) -> str:
        return f"/nowhere/{self.lab}/{self.name}{path}"

    # -- services ---------------------------------------------------------

    def start(self, service: Service, *, timeout: float = 60.0) -> None:
        _refuse_nul(service.argv)
        self._note("start", service.name, env=service.env)
        self._started[service.name] = service
        before = self._services.get(service.name)
        if before is not None and before.state != "dead" and before.digest != service.digest:
            self.stop(service.name)
        behaviour = self._machine.behaviour(service.name, self.name)
        with self._machine.lock:
            before = self._services.get(service.name)
            if before is None or before.state == "dead":
                self._logs[service.name] = self._logs.get(service.name, "") + behaviour.log
                self._set(service, "starting", None)
            elif before.state == "ready":
                return
        if service.notify:
            self._become_ready(service, behaviour, timeout)
        elif behaviour.dies is not None:
            self._set(service, "dead", behaviour.dies)
        else:
            self._set(service, "ready", None)

    def start_again(self, service: str, *, timeout: float = 60.0) -> None:
        if service not in self._started:
            raise no_service(service, self.name, self._started)
        self.start(self._started[service], timeout=timeout)

    def _become_ready(self, service: Service, behaviour: Behaviour, timeout: float) -> None:
        late = behaviour.never_ready or behaviour.seconds > timeout
        self.gone.wait(timeout if late else behaviour.seconds)
        self.require_there()
        log = self._logs[service.name]
        if late:
            raise ServiceNotReady(
                service.name, self.name, f"was not ready within {timeout:g} s", log
            )
        if behaviour.dies is not None:
            self._set(service, "dead", behaviour.dies)
            how = f"exit {behaviour.dies}" if behaviour.dies >= 0 else f"signal {-behaviour.dies}"
            raise ServiceError(service.name, self.name, f"died before it was ready ({how})", log)
        self._set(service, "ready", None)

    def _set(self, service: Service, state: str, status: int | None) -> None:
        with self._machine.lock:
            before = self._services.get(service.name)
            alive = before is not None and before.state != "dead"
            pid = before.pid if before is not None and alive else next(self._machine.pids)
            if state == "dead":
                new = ServiceState(service.name, "dead", 0, status, service.digest)
            else:
                ready = state == "ready"
                new = ServiceState(
                    service.name, "ready" if ready else "starting", pid, None, service.digest
                )
            self._services[service.name] = new

    def stop(self, service: str, *, grace: float = 5.0) -> None:  # noqa: ARG002  (it obeys at once)
        self._note("stop", service)
        self.end(service, -signal.SIGTERM)

    def end(self, service: str, status: int, log: str = "") -> None:
        """Make a service die with ``status`` after it has written ``log``."""
        with self._machine.lock:
            before = self._services.get(service)
            if before is not None and before.state != "dead":
                self._services[service] = ServiceState(service, "dead", 0, status, before.digest)
                self._logs[service] += log

    def services(self) -> dict[str, ServiceState]:
        self.require_there()
        with self._machine.lock:
            return dict(self._services)

    def logs(self, service: str) -> str:
        self.require_there()
        try:
            return self._logs[service]
        except KeyError:
            raise no_service(service, self.name, self._logs) from None

    def save(self, name: str) -> None:
        """Save the files and services under a name."""
        self.saved[name] = copy.deepcopy((self.files, self.modes, self._services))

    def load(self, name: str) -> None:
        """Return to the files and services of that name."""
        self.files, self.modes, self._services = copy.deepcopy(self.saved[name])

    def remove(self) -> None:
        """End the node, and every wait on it."""
        with self._machine.lock:
            self.gone.set()
            for running in self._running:
                running.let_go()


class FakeProvider(OneByOne):
    """Nodes in memory.

    Providers of one name with the same ``machine`` see the same nodes, those of
    another name see other nodes on the same fabric.
    """

    name = "fake"
    fabric_of = "netns"
    packages = True
    snapshot_parts = ("files", "services")

    def __init__(self, machine: FakeMachine | None = None, *, name: str = "") -> None:
        self.name = name or self.name
        self.machine = machine or FakeMachine()

    # -- scripting --------------------------------------------------------

    def script(self, argv: Sequence[str], answer: Handler, node: str | None = None) -> None:
        """Set the result of commands that begin with ``argv``, on all nodes or one.

        The latest matching script wins.
        """
        self.machine.script(argv, answer, node)

    def behave(self, service: str, behaviour: Behaviour, node: str | None = None) -> None:
        """Set the behaviour of a service, on all nodes or one."""
        self.machine.behave(service, behaviour, node)

    def fail(self, method: str, node: str, error: Exception | None) -> None:
        """Make a method (``create``, ``connect``, ``put``, ...) fail for a node.

        ``error`` is raised at each call; None removes the failure.
        """
        self.machine.fail(method, node, error)

    @property
    def calls(self) -> list[Call]:
        """Return all recorded calls, in order."""
        with self.machine.lock:
            return list(self.machine.calls)

    def asked(self, what: str, node: str | None = None) -> list[tuple[str, ...]]:
        """Return the words of all calls of one method."""
        return [c.words for c in self.calls if c.what == what and node in (None, c.node)]

    # -- the contract -----------------------------------------------------

    def probe(self) -> list[Requirement]:
        return [Requirement("memory", ok=True, detail="a fake node has no requirements")]

    def prepare(self, lab: str, specs: Sequence[NodeSpec]) -> None:
        self.machine.note(Call(lab, "", "prepare", tuple(spec.name for spec in specs)))

    def create_fabric(self, lab: str, topology: Topology) -> None:
        self.machine.note(Call(lab, "fabric", "create_fabric", tuple(topology.networks)))
        with self.machine.lock:
            if lab not in self.machine.fabrics:
                self.machine.fabrics[lab] = FakeNode(self.machine, lab, NodeSpec("fabric", "-"))
            self.machine.differences.pop((lab, ""), None)

    def create_one(self, lab: str, spec: NodeSpec) -> FakeNode:
        self.machine.note(Call(lab, spec.name, "create"))
        with self.machine.lock:
            assert (lab, spec.name) not in self.machine.nodes, f"{spec.name} runs already"
            node = FakeNode(self.machine, lab, spec, maker=self.name)
            self.machine.nodes[lab, spec.name] = node
        return node

    def connect(self, lab: str, topology: Topology, node: Node) -> None:
        words = tuple(str(a) for a in topology.nodes[node.name].addresses)
        self.machine.note(Call(lab, node.name, "connect", words))
        assert isinstance(node, FakeNode)
        node.wiring.connect(topology, node.name)

    def differences(self, lab: str, topology: Topology) -> dict[str, list[Difference]]:
        del topology
        with self.machine.lock:
            return {
                name: list(some)
                for (of, name), some in self.machine.differences.items()
                if of == lab
            }

    def restore(
        self, lab: str, topology: Topology, node: Node, differences: Sequence[Difference]
    ) -> None:
        self.machine.note(Call(lab, node.name, "restore", tuple(map(str, differences))))
        assert isinstance(node, FakeNode)
        node.wiring.connect(topology, node.name)
        with self.machine.lock:
            self.machine.differences.pop((lab, node.name), None)

    def nodes(self, lab: str) -> dict[str, Node]:
        with self.machine.lock:
            return {node: found for (of, node), found in self._mine() if of == lab}

    def _mine(self) -> list[tuple[tuple[str, str], FakeNode]]:
        return [(key, node) for key, node in self.machine.nodes.items() if node.maker == self.name]

    def labs(self) -> list[str]:
        with self.machine.lock:
            return sorted({lab for (lab, _), _ in self._mine()} | set(self.machine.fabrics))

    def destroy(self, lab: str, nodes: Iterable[str] | None = None) -> None:
        names = None if nodes is None else sorted(set(nodes))
        self.machine.note(Call(lab, "", "destroy", tuple(names or ())))
        with self.machine.lock:
            for key, node in self._mine():
                if key[0] == lab and (names is None or key[1] in names):
                    del self.machine.nodes[key]
                    node.remove()
            if names is None and lab in self.machine.fabrics:
                self.machine.fabrics.pop(lab).remove()

    def fabric(self, lab: str) -> Node | None:
        with self.machine.lock:
            return self.machine.fabrics.get(lab)

    def snapshot(self, lab: str, nodes: Collection[str], name: str) -> None:
        for node in nodes:
            self.machine.note(Call(lab, node, "snapshot", (name,)))
        with self.machine.lock:
            for node in nodes:
                self.machine.nodes[lab, node].save(name)

    def revert(self, lab: str, nodes: Collection[str], name: str) -> None:
        with self.machine.lock:
            for node in nodes:
                self.machine.note(Call(lab, node, "revert", (name,)))
                self.machine.nodes[lab, node].load(name)

    def drop_snapshot(self, lab: str, nodes: Collection[str], name: str) -> None:
        with self.machine.lock:
            for node in nodes:
                del self.machine.nodes[lab, node].saved[name]

    def snapshots(self, lab: str) -> dict[str, list[Snapshot]]:
        with self.machine.lock:
            return {
                name: [Snapshot(one, float(at)) for at, one in enumerate(node.saved)]
                for (of, name), node in self._mine()
                if of == lab
            }

    def pause(self, lab: str, node: str) -> None:
        with self.machine.lock:
            self.machine.paused.add((lab, node))

    def resume(self, lab: str, node: str) -> None:
        with self.machine.lock:
            self.machine.paused.discard((lab, node))

    def paused(self, lab: str) -> list[str]:
        with self.machine.lock:
            return sorted(node for of, node in self.machine.paused if of == lab)


def _refuse_nul(argv: Sequence[str]) -> None:
    if any("\0" in word for word in argv):
        raise ValueError("an argument contains a NUL character")


def _os_error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)

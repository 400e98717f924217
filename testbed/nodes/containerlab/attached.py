"""Labs that the user's own containerlab has deployed on this machine.

They are found by the labels of their containers, with the engine's API (Docker Engine API 1.24 and
later; Podman serves the same).  Nodes are entered by their processes, as in a cell, so nothing is
put into a container, and the engine is only ever asked.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

from testbed.errors import LabError, MachineError, NoSuchLab
from testbed.nodes.attachable import Attachable, AttachedProvider, refuse
from testbed.nodes.base import has_ended
from testbed.nodes.containerlab import topofile
from testbed.nodes.containerlab.cell import LAB, NODE, TOPOLOGY, belongs
from testbed.nodes.inside import Process
from testbed.nodes.outside import Outside
from testbed.nodes.stream.container import ContainerNode
from testbed.nodes.unix_http import UnixConnection
from testbed.process import Duplex

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.nodes.base import Node, Service
    from testbed.nodes.place import Place
    from testbed.topology.model import Topology

UNIX = "unix://"
SOCKET = f"{UNIX}/var/run/docker.sock"  # where Docker's client asks without DOCKER_HOST
SECONDS = 30.0  # timeout of each request
#: containerlab's other labels of a container (containerlab, constants/labels.go).
KIND, FOLDER = "clab-node-kind", "clab-node-lab-dir"
#: containerlab writes it beside the folders of the nodes (core/inventory.go, topology data).
DATA = "topology-data.json"


class Engine:
    """The API of an engine of this machine; nothing is changed by it.

    ``address`` is as in DOCKER_HOST.  Raises MachineError for one that is no unix socket.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        if not address.startswith(UNIX):
            raise MachineError(
                f"the engine at {address} may be on another machine: nodes are entered by their "
                "processes on this one",
                hint="run testbed there, or set DOCKER_HOST to a unix socket of this machine",
            )

    @classmethod
    def users(cls) -> Engine:
        """Return the engine that Docker's client would use."""
        return cls(os.environ.get("DOCKER_HOST") or SOCKET)

    def containers(self, lab: str | None = None) -> list[dict[str, Any]]:
        """Return the containers of a lab or of all labs, running or not, as the engine lists them.

        Raises MachineError.
        """
        label = LAB if lab is None else f"{LAB}={lab}"
        filters = quote(json.dumps({"label": [label]}))
        return list(self._get(f"/containers/json?all=1&filters={filters}") or ())

    def inspect(self, container: str) -> dict[str, Any] | None:
        """Return everything about a container; None if there is none.  Raises MachineError."""
        found = self._get(f"/containers/{container}/json")
        return None if found is None else dict(found)

    def _get(self, path: str) -> Any:
        connection = UnixConnection(self.address.removeprefix(UNIX), SECONDS)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            said = answer.read()
            if answer.status == http.client.NOT_FOUND:
                return None
            if answer.status != http.client.OK:
                words = said.decode(errors="replace").strip()
                raise MachineError(f"the engine at {self.address}: {path}: {words}")
            return json.loads(said)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, MachineError):
                raise
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise MachineError(
                f"no engine answers at {self.address}: {why}",
                hint="start it, or set DOCKER_HOST to its socket before `testbed attach`; "
                "Podman has one, too: unix:///run/podman/podman.sock",
            ) from error
        finally:
            connection.close()


class Containerlab(Attachable):
    """Labs of containerlab on an engine of this machine."""

    about = "A lab of containerlab on this machine's engine (DOCKER_HOST), by its name."

    def labs(self) -> list[str]:
        return sorted({_labels(one)[LAB] for one in Engine.users().containers()})

    def read(self, lab: str) -> dict[str, Any]:
        engine = Engine.users()
        found = {
            name: one for one in engine.containers(lab) if (name := _labels(one).get(NODE, ""))
        }
        if not found:
            there = self.labs()
            raise NoSuchLab(
                f"containerlab has no lab {lab} at {engine.address}",
                name=lab,
                known=there,
                hint=f"labs there: {', '.join(there) or 'none'}",
            )
        for one in found.values():
            _process(engine, one)
        labels = _labels(next(iter(found.values())))
        return {
            "name": topofile.lab_name(lab),
            "provider": topofile.PROVIDER,
            "nodes": {name: {} for name in sorted(found)},
            "foreign": {
                "format": topofile.PROVIDER,
                "attached": engine.address,
                "lab": lab,
                "file": labels.get(TOPOLOGY, ""),
                "nodes": {
                    name: {"kind": _labels(one).get(KIND, ""), "image": one.get("Image", "")}
                    for name, one in sorted(found.items())
                },
                "links": [{"ends": ends} for ends in _links(labels.get(FOLDER, ""))],
            },
        }

    def provider(self, topology: Topology) -> AttachedProvider:
        assert topology.foreign is not None
        foreign = topology.foreign
        return Deployed(self.setup.store, Engine(foreign.attached), foreign.lab, [*topology.nodes])


class Deployed(AttachedProvider):
    """The containers of one lab, named as in its topology file.

    ``names`` are the nodes that the lab had when testbed attached to it.
    """

    name = topofile.PROVIDER
    shares_kernel = True

    def __init__(self, store: Store, engine: Engine, theirs: str, names: Sequence[str]) -> None:
        self._store = store
        self._engine = engine
        self._theirs = theirs
        self._names = names
        self._reached: dict[str, AttachedNode] = {}  # by the container's id
        self._networks: dict[AttachedNode, Outside] = {}
        self._lock = threading.Lock()

    def nodes(self, lab: str) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for one in self._engine.containers(self._theirs):
            name = _labels(one).get(NODE, "")
            if name and (entered := self._reach(lab, name, one)) is not None:
                found[name] = entered
        return found

    def _reach(self, lab: str, name: str, listed: Mapping[str, Any]) -> AttachedNode | None:
        """Return a node; None if its container does not run."""
        with self._lock:
            known = self._reached.get(listed["Id"])
            if known is not None and known.alive() and _runs(listed):
                return known
            if known is not None:
                known.close()
            details = _process(self._engine, listed)
            if details is None:
                return None
            pid = details["State"]["Pid"]
            environment = details["Config"].get("Env") or ()
            with contextlib.suppress(OSError):  # it has just ended
                self._reached[listed["Id"]] = AttachedNode(
                    name,
                    "",
                    lab=lab,
                    pid=pid,
                    start=Duplex,
                    agent=lambda: str(self._agent()),
                    alive=Process(os.getpid(), pid).alive,
                    place=str,
                    init=lambda: self._store.binary("testbed-init"),
                    env=dict(pair.partition("=")[::2] for pair in environment),
                )
                return self._reached[listed["Id"]]
            return None

    def ended(self, lab: str) -> dict[str, str]:
        del lab
        there = {_labels(one).get(NODE): one for one in self._engine.containers(self._theirs)}
        words = dict.fromkeys(self._names, "its container does not exist any more")
        for name in self._names:
            if name in there and _runs(there[name]):
                del words[name]
            elif name in there:
                words[name] = str(there[name].get("Status") or there[name].get("State"))
        return words

    def network_of(self, lab: str, node: Node) -> Place:
        del lab
        assert isinstance(node, AttachedNode)
        with self._lock:
            if node not in self._networks:
                self._networks[node] = Outside(node, self._agent)
            return self._networks[node]

    def _agent(self) -> Path:
        return self._store.binary("testbed-agent")


class AttachedNode(ContainerNode):
    """A container of somebody else: testbed runs commands in it, and puts nothing there."""

    def ended_error(self) -> LabError:
        return has_ended(self.name, self._lab, attached=True)

    def start(self, service: Service, *, timeout: float = 60.0) -> None:
        del service, timeout
        self._refuse_change()

    def start_again(self, service: str, *, timeout: float = 60.0) -> None:
        del service, timeout
        self._refuse_change()

    def stop(self, service: str, *, grace: float = 5.0) -> None:
        del service, grace
        self._refuse_change()

    def put(self, data: bytes, path: str, *, mode: int = 0o644) -> None:
        del data, path, mode
        self._refuse_change()

    def provide(self, path: Path) -> str:
        del path
        self._refuse_change()

    def offer(self, programs: Mapping[str, Path]) -> None:
        del programs
        self._refuse_change()

    def _refuse_change(self) -> NoReturn:
        refuse(self._lab, "changed")


def _labels(listed: Mapping[str, Any]) -> Mapping[str, str]:
    return listed.get("Labels") or {}


def _runs(listed: Mapping[str, Any]) -> bool:
    """Tell whether commands can run in a container: not if it is paused or restarts."""
    return listed.get("State") == "running"


def _process(engine: Engine, listed: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return everything about a container that runs, None for another one.

    Raises MachineError if its process cannot be seen: an engine in a virtual machine, as Docker
    Desktop has it, or in another pid namespace.
    """
    details = engine.inspect(listed["Id"]) if _runs(listed) else None
    if details is None or not (pid := details["State"].get("Pid")):
        return None
    if not _is_of(pid, listed["Id"]):
        again = engine.inspect(listed["Id"])
        if again is None or again["State"].get("Pid") != pid:
            return None  # it has just ended
        raise MachineError(
            f"the processes of the engine at {engine.address} are not on this machine: "
            f"process {pid} is not that of its container {listed['Names'][0].lstrip('/')}",
            hint="run testbed where the engine runs",
        )
    return details


def _is_of(pid: int, container: str) -> bool:
    """Tell whether a process of this machine belongs to a container."""
    return belongs(Path(f"/proc/{pid}"), container)


def _links(folder: str) -> list[list[dict[str, str]]]:
    """Return the ends of the links of a deployed lab; none if containerlab's file is missing.

    ``folder`` is the one of any of its nodes.
    """
    found = []
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        data = json.loads((Path(folder).parent / DATA).read_bytes())
        for link in data["links"]:
            ends = [link["endpoints"][side] for side in ("a", "z")]
            found.append([{"at": end["node"], "interface": end["interface"]} for end in ends])
    return found

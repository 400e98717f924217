"""Compose files of a node, which Compose itself reads and runs.

Compose reads them on this machine, where the files that they name are, and prints what they come
to. That is put on the node, with the images and files that its services need, and Compose starts it
there.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.artifacts.reference import local_name
from testbed.errors import CommandError, ContainerError, LabError, TimeoutExpired, UsageError
from testbed.files import fingerprint
from testbed.nodes.marks import note, noted
from testbed.process import run
from testbed.roles.base import digest_of
from testbed.roles.docker.engine import LAB, Engine
from testbed.roles.docker.images import load
from testbed.steps.step import Step
from testbed.steps.wait import Wait

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.nodes.base import Node, Result
    from testbed.steps.context import Context
    from testbed.topology.model import Topology

PROGRAM = "docker-compose"
PART = "compose"  # the artifact
MARK = "compose"  # mark: the digest of the running project, and the states of its containers
LOADED = "compose-image-files"  # mark: the archives that its images were loaded from
PROJECT = "com.docker.compose.project"  # label that Compose gives to containers
FOLDER = "/var/lib/testbed/compose"  # on a node
MODEL = f"{FOLDER}/compose.json"
MAX_COPIED = 256 << 20  # bytes of the files that are copied to a node
READ_SECONDS = 60.0
UP_SECONDS = 600.0
STOP_SECONDS = 2
#: Keys of a service that have no further meaning on a node: their files have been read.
DONE = ("build", "pull_policy", "env_file", "label_file", "develop")
#: Prints those of its arguments that exist.
EXISTING = 'for path; do [ -e "$path" ] && printf "%s\\0" "$path"; done; true'
#: A line of Compose's own log (logfmt).
LOGGED = re.compile(r'time="[^"]*" level=(\w+) msg="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Bind:
    """A file or folder of this machine in the model: ``holder[key]`` is its path."""

    holder: dict[str, Any]
    key: str
    read_only: bool

    @property
    def path(self) -> Path:
        return Path(self.holder[self.key])


@dataclass(frozen=True, slots=True)
class Project:
    """The project of a node, read from its Compose files.

    ``model`` is in Compose's own form. ``env`` are variables that secrets take their values from.
    """

    model: dict[str, Any]
    binds: tuple[Bind, ...]
    env: Mapping[str, str]
    warnings: tuple[str, ...]

    @property
    def services(self) -> dict[str, dict[str, Any]]:
        return self.model.get("services") or {}

    @property
    def images(self) -> list[str]:
        return sorted({service["image"] for service in self.services.values()})


def images_of(store: Store, topology: Topology, *, build: bool) -> list[str]:
    """Return the images of all Compose files.

    Compose is built first, or without ``build`` there are none until it is. Raises the errors of
    :func:`read`.
    """
    nodes = [node.name for node in topology.nodes.values() if node.compose]
    if not nodes or not (build or store.made(PROGRAM, PART)):
        return []
    return sorted({name for node in nodes for name in read(store, topology, node).images})


def read(store: Store, topology: Topology, node: str) -> Project:
    """Read the Compose files of a node.

    Raises UsageError, with Compose's own words, for files that it refuses, and for services that
    have no image.
    """
    paths = [topology.folder / path for path in topology.nodes[node].compose]
    env = {**os.environ, **topology.variables}
    program = store.binary(PROGRAM, PART)
    model, warnings = _config(program, topology.name, paths, env)
    # With paths as they are written: absolute ones are those of the node.
    written, _ = _config(program, topology.name, paths, env, "--no-path-resolution")
    _refuse_builds(model, paths)
    binds = list(_binds(model, written))
    for service in model.get("services", {}).values():
        for name in DONE:
            service.pop(name, None)
        service["labels"] = {**(service.get("labels") or {}), LAB: topology.name}
    named = [
        one["environment"]
        for kind in ("secrets", "configs")
        for one in (model.get(kind) or {}).values()
        if one.get("environment")
    ]
    given = {name: env[name] for name in named if name in env}
    return Project(model, tuple(binds), given, warnings)


def _config(
    program: Path, name: str, paths: list[Path], env: Mapping[str, str], *options: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return what Compose reads from some files, and its warnings."""
    files = [word for path in paths for word in ("-f", str(path))]
    argv = [str(program), "-p", name, *files, "config", "--format", "json", *options]
    where = ", ".join(map(str, paths))
    try:
        done = run(argv, cwd=paths[0].parent, env=env, timeout=READ_SECONDS, check=False)
    except CommandError as error:  # its folder does not exist any more
        raise UsageError(error.stderr or error.message, where=where) from error
    logged = LOGGED.findall(done.stderr)
    if done.status:
        said = LOGGED.sub("", done.stderr).strip() or "\n".join(words for _, words in logged)
        raise UsageError(
            f"Docker Compose refuses it: {said}", where=where, hint="correct the Compose file"
        )
    warnings = (words.replace('\\"', '"') for level, words in logged if level == "warning")
    return json.loads(done.stdout), tuple(dict.fromkeys(warnings))


def _refuse_builds(model: Mapping[str, Any], paths: list[Path]) -> None:
    """Raise UsageError for services without an image, which only a build would give them."""
    services = (model.get("services") or {}).items()
    names = [name for name, service in services if not service.get("image")]
    if names:
        raise UsageError(
            f"{'services' if names[1:] else 'the service'} {', '.join(names)} would be built, and "
            "nodes have no network to build with",
            where=", ".join(map(str, paths)),
            hint="build the image with an engine of your own, name it with `image`, and add "
            "--images-from docker",
        )


def _binds(model: dict[str, Any], written: dict[str, Any]) -> Iterator[Bind]:
    """Yield the paths of this machine: those that are not absolute in the file."""

    def is_here(path: Any) -> bool:
        return isinstance(path, str) and not path.startswith("/")

    for name, service in (model.get("services") or {}).items():
        volumes = zip(
            service.get("volumes") or [],
            written["services"][name].get("volumes") or [],
            strict=True,
        )
        for volume, as_written in volumes:
            if volume.get("type") == "bind" and is_here(as_written.get("source")):
                yield Bind(volume, "source", bool(volume.get("read_only")))
    for name, volume in (model.get("volumes") or {}).items():
        options = volume.get("driver_opts") or {}
        as_written = written["volumes"][name].get("driver_opts") or {}
        # Compose makes a path of one that is not absolute, if the volume is a bind.
        if str(options.get("device")).startswith("/") and is_here(as_written.get("device")):
            yield Bind(options, "device", read_only=False)
    for kind in ("configs", "secrets"):
        for name, one in (model.get(kind) or {}).items():
            if "file" in one and is_here(written[kind][name].get("file")):
                yield Bind(one, "file", read_only=True)


def compose_steps(topology: Topology, node: str, after: str) -> Iterator[Step]:
    """Yield the step that starts a node's Compose project, or changes it.

    It comes after another step, that of the node's last container.
    """
    paths = ", ".join(topology.nodes[node].compose)

    def act(context: Context) -> tuple[str, bool]:
        return _up(context, context.node(node))

    needs = (after, f"programs {node}")
    yield Step(f"compose {node}", f"{paths}, by Docker Compose", needs, act=act)


def _up(context: Context, machine: Node) -> tuple[str, bool]:
    store, topology = context.store, context.topology
    project = read(store, topology, machine.name)
    seen = _seen(machine, project)
    copied = sorted({bind.path for bind in project.binds} - seen.keys())
    digest = digest_of(project.model, project.env, _fingerprints(copied))
    before = noted(machine, MARK)
    with Engine(machine) as engine:
        loaded, _ = load(context, engine, machine, project.images, LOADED)
        states = _states(engine, topology.name)
        as_before = json.dumps(states) == before.get("containers")
        if before.get("digest") == digest and as_before and not loaded:
            return _words(states, project), False
        note(machine, MARK, {**before, "digest": ""})  # until it is as wanted
        _place(machine, project, seen, copied)
        for service in project.services.values():
            service["image"] = local_name(service["image"])
        machine.put(json.dumps(project.model, indent=1).encode(), MODEL)
        argv = ["-f", MODEL, "up", "-d", "--wait", "--pull", "never", "--no-build"]
        done = _compose(context, machine, [*argv, "--remove-orphans"], project.env)
        if not done.ok:
            raise _failed(engine, topology, machine.name, done)
        states = _states(engine, topology.name)
    note(machine, MARK, {"digest": digest, "containers": json.dumps(states)})
    return _words(states, project), True


def _words(states: Mapping[str, str], project: Project) -> str:
    ended = sum(state == "exited" for state in states.values())
    running = len(states) - ended
    ended_too = f", {ended} ended" if ended else ""
    return "; ".join([f"{running} running{ended_too}", *project.warnings])


def _states(engine: Engine, project: str) -> dict[str, str]:
    """Return the state of each container of the project, by name."""
    names = sorted(engine.names(label=f"{PROJECT}={project}"))
    found = {name: engine.find(name) for name in names}
    return {name: one.health or one.status for name, one in found.items() if one is not None}


def _seen(machine: Node, project: Project) -> dict[Path, str]:
    """Return the files and folders that a node sees on this machine, with their paths there.

    They are those that no container writes to. Others are copied.
    """
    written = {bind.path for bind in project.binds if not bind.read_only}
    paths = {bind.path for bind in project.binds} - written
    if not (paths and machine.shares_files):
        return {}
    places = {path: machine.provide(path) for path in paths}
    said = machine.run(["sh", "-c", EXISTING, "sh", *places.values()]).stdout
    return {path: place for path, place in places.items() if place in said.split("\0")}


def _fingerprints(paths: Iterable[Path]) -> list[str]:
    return [fingerprint(one) for path in paths for one in (path, *sorted(path.rglob("*")))]


def _place(
    machine: Node, project: Project, seen: Mapping[Path, str], copied: Iterable[Path]
) -> None:
    """Copy the project's files to a node, and write the paths on the node into the model."""
    places = {path: f"{FOLDER}/{_short(path)}/{path.name}" for path in copied}
    written = {bind.path for bind in project.binds if not bind.read_only}
    total = 0
    for path, place in places.items():
        data = _packed(path)
        total += len(data)
        if total > MAX_COPIED:
            raise LabError(
                f"the files that Compose on {machine.name} binds have more than "
                f"{MAX_COPIED >> 20} MiB",
                hint="add :ro to a volume that no container writes to; it is not copied then",
            )
        parent = os.path.dirname(place)  # noqa: PTH120  a path on the node
        machine.run(["mkdir", "-p", parent if path.is_file() else place])
        if path.is_dir() and path not in written:  # what has gone here goes there, too
            machine.run(["find", place, "-mindepth", "1", "-delete"])
        if data:
            # In place: a file that a container has already bound stays the same.
            argv = ["tar", "-x", "--overwrite", "-p", "-f", "-", "-C", parent]
            machine.run(argv, input=data, timeout=UP_SECONDS)
    for bind in project.binds:
        bind.holder[bind.key] = {**places, **seen}[bind.path]


def _short(path: Path) -> str:
    return hashlib.sha256(str(path).encode()).hexdigest()[:8]


def _packed(path: Path) -> bytes:
    """Return a tar archive of a file or folder; nothing if it does not exist."""
    if not path.exists():  # Compose creates a folder then
        return b""
    written = io.BytesIO()
    try:
        with tarfile.open(fileobj=written, mode="w") as archive:
            archive.add(path, path.name)
    except OSError as error:
        raise LabError(
            f"{error.filename or path} cannot be copied: {error.strerror}",
            hint="check its permissions",
        ) from error
    return written.getvalue()


def _compose(context: Context, machine: Node, words: list[str], env: Mapping[str, str]) -> Result:
    """Run Compose on a node; the wait is shown, and ends when the run gives up."""
    argv = ["docker", "compose", "--ansi", "never", "-p", context.lab, *words]
    wait = Wait(context, f"Docker Compose on {machine.name}", UP_SECONDS)
    with machine.spawn(argv, env=env) as running:
        while True:
            try:
                return running.wait(0.2)
            except TimeoutExpired:
                wait.saw(running.err.decode(errors="replace").strip().rpartition("\n")[2].strip())
                wait.pause()


def _failed(engine: Engine, topology: Topology, node: str, done: Result) -> LabError:
    """Return the error of a failed start, with the log of a container that has failed."""
    paths = ", ".join(str(topology.folder / path) for path in topology.nodes[node].compose)
    said = [line for line in done.stderr.splitlines() if not line.startswith("time=")]
    message = f"Docker Compose on {node} cannot start {paths}: {' '.join(said[-1:]).strip()}"
    for name in sorted(engine.names(label=f"{PROJECT}={topology.name}")):
        state = engine.find(name)
        if state and (state.health == "unhealthy" or (not state.running and state.exit)):
            what = "is unhealthy" if state.running else f"ended with exit status {state.exit}"
            return ContainerError(name, node, f"{what}. {message}", engine.logs(name))
    return LabError(message, hint=f"testbed exec {node} docker compose -p {topology.name} ps -a")


def kept(engine: Engine, topology: Topology, machine: Node) -> set[str]:
    """Return the containers of the Compose project that a node should have.

    The project of a node without Compose files is removed: its containers, networks and volumes.
    Raises LabError.
    """
    if topology.nodes[machine.name].compose:
        return engine.names(label=f"{PROJECT}={topology.name}")
    if noted(machine, MARK):
        argv = ["docker", "compose", "--ansi", "never", "-p", topology.name, "-f", MODEL]
        down = ["down", "--volumes", "--remove-orphans", "--timeout", str(STOP_SECONDS)]
        machine.run([*argv, *down], timeout=UP_SECONDS)
        machine.run(["rm", "-rf", FOLDER])
        note(machine, MARK, {})
    return set()


def expected(machine: Node) -> dict[str, str]:
    """Return the states of a project's containers after the last `up`, by name."""
    return dict(json.loads(noted(machine, MARK).get("containers", "{}")))

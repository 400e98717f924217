"""A cell for containerlab: a namespace node with an engine, in which it deploys labs.

containerlab writes to its host: ``/etc/hosts``, ``/etc/ssh/ssh_config.d``, packet filter rules,
bridges, ``/run/netns`` and a folder for each lab.  In a cell all of it is the cell's, and is
removed with it; an engine of this machine is not used.  Any namespace node can become a cell.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote, urlencode

from testbed.artifacts.reference import full_name, local_name
from testbed.errors import LabError, NoAnswer, NoSuchNode, TestbedError
from testbed.files import fingerprint
from testbed.nodes import engine, seed
from testbed.nodes.base import GO
from testbed.nodes.containerlab import FOLDER, READY
from testbed.nodes.inside import LAST_LINES, lines
from testbed.nodes.marks import note, noted
from testbed.nodes.unix_http import UnixConnection
from testbed.polling import until

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.nodes.netns.node import NetnsNode

PROGRAM = "containerlab"
RELEASE: engine.Release = "29"
START_SECONDS = 60.0  # timeout for the engine, which needs half a second
ANSWER_SECONDS = 60.0  # timeout for an answer; an engine that takes longer hangs
DEPLOY_SECONDS = 600.0  # timeout for containerlab, and for the engine to load an image
TAIL = 1 << 16  # bytes of a container's log that are read for its last lines
KILL_SECONDS = 5.0  # for processes to end; the end of the cell ends all others
#: containerlab's labels of a container (containerlab, constants/labels.go).
LAB, NODE, TOPOLOGY = "containerlab", "clab-node-name", "clab-topo-file"
#: Below dockerd's data root (moby, daemon/container: configFileName).
CONTAINERS, RECORD = f"{engine.DATA}/containers", "config.v2.json"
#: The cell has no uplink: nothing to look for a newer release with.
ENVIRONMENT = {"CLAB_VERSION_CHECK": "disable", "DOCKER_HOST": f"unix://{engine.SOCKET}"}
FULL = (
    "the disk of the cell is in memory, with at most half of this machine's: use smaller images or "
    "fewer nodes, or a machine with more memory"
)
BANNER = "ERROR"  #: a line above the error that ends containerlab
IMAGES = "cell-image-files"  # mark: the archives that images were loaded from, by image name
LOADED_IMAGE = re.compile(r"Loaded image(?: ID)?: (\S+)")  # moby, image/tarexport/load.go
ESCAPES = re.compile("\x1b\\[[0-9;]*m")

# A packet filter must not see what bridges forward between nodes.  containerlab needs the chains,
# which are the engine's otherwise, and those of iptables-nft or the module ip_tables.  The list of
# modules is read by our build of containerlab; a kernel without modules has none.
PREPARE = f"""\
sysctl -q -w net.ipv6.conf.default.disable_ipv6=0
for name in iptables ip6tables arptables; do
    test ! -e /proc/sys/net/bridge/bridge-nf-call-$name ||
        sysctl -q -w net.bridge.bridge-nf-call-$name=0
done
cat /proc/modules > /run/testbed/modules 2> /dev/null || : > /run/testbed/modules
case $(iptables --version) in
    *legacy*) echo 'ip_tables 0 0 - Live 0x0' >> /run/testbed/modules;;
esac
for restore in iptables-restore ip6tables-restore; do
    printf '%s\n' '*filter' ':FORWARD ACCEPT' ':DOCKER-USER -' '-A FORWARD -j DOCKER-USER' COMMIT |
        $restore
done
mkdir -p {FOLDER}
"""


# Argument: the program.  The cell has a pid namespace of its own, so it is this lab's alone.
INTERRUPT = """\
for place in /proc/[0-9]*; do
    test "$(readlink "$place/exe")" != "$1" || kill -KILL "${place##*/}"
done
:
"""


@dataclass(frozen=True, slots=True)
class Container:
    """A container of a cell's engine, from the file in which the engine records it.

    ``pid`` is its first process in the cell's pid namespace, 0 if it does not run.
    """

    name: str
    id: str
    pid: int
    labels: Mapping[str, str] = field(default_factory=dict)
    env: tuple[str, ...] = ()  #: as NAME=VALUE
    image: str = ""
    image_id: str = ""  #: ID of its image, whatever the image's name means now
    exit: int = 0  #: exit status, if it has ended

    @property
    def environment(self) -> dict[str, str]:
        """Its environment, by variable."""
        return dict(one.partition("=")[::2] for one in self.env)

    @property
    def lab(self) -> str:
        """Containerlab's name of its lab; empty if containerlab has not created it."""
        return self.labels.get(LAB, "")

    @property
    def node(self) -> str:
        """Its name in the topology file; empty if containerlab has not created it."""
        return self.labels.get(NODE, "")


class Cell:
    """containerlab and an engine on a namespace node.

    ``node`` is the namespace node, ``store`` has the programs.
    """

    def __init__(self, node: NetnsNode, store: Store) -> None:
        self.node = node
        self._store = store

    def is_ready(self) -> bool:
        """Tell whether :meth:`start` has finished on this node."""
        with contextlib.suppress(OSError, NoSuchNode):
            self.node.get(READY)
            return True
        return False

    def start(self, archives: Iterable[Path] = (), *, bridge: bool = True) -> None:
        """Start the engine, and restart it if it has died or hangs.

        Without ``bridge``, a new engine has no docker0: a node's port can have that name.
        ``archives`` are images (docker-archives) that are likely to be loaded next: if the cache
        has the engine's files of them, the engine starts with these.
        """
        node = self.node
        env = {"PATH": engine.path(self._store, node, RELEASE), **GO}
        services = engine.services(self._store, node, RELEASE, env=env, digest="cell")
        containerd, dockerd = services
        if self.is_ready():
            node.start(containerd, timeout=START_SECONDS)
        else:
            node.put(engine.CONTAINERD_CONFIG.encode(), engine.CONTAINERD_FILE)
            with ThreadPoolExecutor(1) as pool:  # each takes half a tenth of a second
                prepared = pool.submit(self._prepare, archives, bridge)
                node.start(containerd, timeout=START_SECONDS)
                prepared.result()
        node.start(dockerd, timeout=START_SECONDS)
        if not self._answers():
            for service in reversed(services):
                node.stop(service.name)
            for service in services:
                node.start(service, timeout=START_SECONDS)
        node.put(b"", READY)

    def _prepare(self, archives: Iterable[Path], bridge: bool) -> None:  # noqa: FBT001  (a task)
        """Set the cell up for the first start of its dockerd."""
        node, version = self.node, engine.version_of(self._store, self.node, RELEASE)
        config = {
            **engine.configuration(engine.parse_version(version)),
            "live-restore": True,  # containers outlive a daemon that is restarted
            # It takes half of the engine's start, and a cell has no uplink to translate for.
            "iptables": False,
            "ip6tables": False,
            **({} if bridge else {"bridge": "none"}),
        }
        node.run(["sh", "-ec", PREPARE])
        node.put(json.dumps(config, indent=1).encode(), engine.CONFIG)
        seed.install(self._store, node, self._seed(archives))

    def _answers(self) -> bool:
        """Tell whether the engine, which runs, answers."""
        try:
            self._ask("GET", "/_ping", timeout=ANSWER_SECONDS)
        except NoAnswer:
            return False
        return True

    # -- images -----------------------------------------------------------

    def _seed(self, archives: Iterable[Path], harvest: seed.Harvest | None = None) -> seed.Seed:
        version = engine.version_of(self._store, self.node, RELEASE)
        return seed.Seed(version, seed.DOCKER, list(archives), harvest)

    def images(self) -> set[str]:
        """Return the names of the engine's images."""
        with _understood("list images"):
            listed = json.loads(self._ask("GET", "/images/json"))
            return {str(name) for image in listed for name in image.get("RepoTags") or ()}

    def load(self, archive: Path, name: str) -> None:
        """Load an image from a docker-archive into the engine, and give it this name.

        An archive with one image may contain another name, or none.
        """
        with archive.open("rb") as file:
            size = archive.stat().st_size
            said = self._ask("POST", "/images/load?quiet=1", file, size, timeout=DEPLOY_SECONDS)
        with _understood("load an image"):
            told = [json.loads(line) for line in said.splitlines()]
            errors = [words["error"] for words in told if words.get("error")]
            loaded = LOADED_IMAGE.findall("".join(words.get("stream", "") for words in told))
        if errors:
            raise LabError(
                f"{archive} cannot be loaded: {errors[0]}",
                hint="use an archive of `docker save`",
            )
        wanted = full_name(local_name(name))
        if wanted not in map(full_name, loaded):
            if len(set(loaded)) != 1:
                raise LabError(
                    f"{archive} has no image named {name}; it has {', '.join(loaded) or 'none'}",
                    hint=f"save that image alone: docker save -o FILE {name}",
                )
            repository, _, tag = wanted.rpartition(":")
            query = urlencode({"repo": repository, "tag": tag})
            self._ask("POST", f"/images/{quote(loaded[0], safe='')}/tag?{query}")

    def replaced(self, archives: Mapping[str, Path]) -> list[str]:
        """Return the names of images that the engine has from other archives than these."""
        before = noted(self.node, IMAGES)
        return [
            name
            for name, path in archives.items()
            if before.get(name, found := fingerprint(path)) != found
        ]

    def note_images(self, archives: Mapping[str, Path]) -> None:
        """Record the archives that the engine's images are from."""
        before = noted(self.node, IMAGES)
        now = {**before, **{name: fingerprint(path) for name, path in archives.items()}}
        if now != before:
            note(self.node, IMAGES, now)

    def keep_images(self, archives: Iterable[Path]) -> str:
        """Keep the engine's files of these images, the only ones that it has, for later cells.

        Return the reason why this failed, or an empty string.
        """
        files = self._seed(archives, seed.harvest(self.node, seed.DOCKER))
        return seed.keep(self._store, files)

    # -- labs ---------------------------------------------------------------

    def containerlab(self, *words: str, folder: str = FOLDER) -> str:
        """Run containerlab in a folder of the cell, and return its standard output.

        Raises LabError with containerlab's own words.
        """
        program = self.node.provide(self._store.binary(PROGRAM))
        script = 'cd "$1" && shift && exec "$@"'
        argv = ["sh", "-c", script, "sh", folder, program, *words]
        done = self.node.run(argv, env=ENVIRONMENT, timeout=DEPLOY_SECONDS, check=False)
        if not done.ok:
            raise refused(words, done.stderr, done.stdout)
        return done.stdout

    def claim(self, name: str) -> str:
        """Return a name for a new topology: ``name``, or ``name-2`` if that is taken, and so on."""
        top = Path(self.node.socket(FOLDER))
        for number in itertools.count(1):
            claimed = name if number == 1 else f"{name}-{number}"
            with contextlib.suppress(FileExistsError):
                (top / claimed).mkdir(mode=0o755)
                return claimed
        raise AssertionError

    def write(self, name: str, topology: str) -> str:
        """Write a topology file to a folder of its own; return its path in the cell."""
        path = f"{FOLDER}/{name}/{name}.clab.yml"
        self.node.put(topology.encode(), path)
        return path

    def deploy(self, path: str, *options: str) -> None:
        """Deploy the topology file ``path``, or what of it is missing or different."""
        self.containerlab(
            "deploy", "--topo", path, *options, folder=str(PurePosixPath(path).parent)
        )

    def interrupt(self) -> None:
        """Kill every containerlab that runs in the cell."""
        program = self.node.provide(self._store.binary(PROGRAM))
        self.node.run(["sh", "-c", INTERRUPT, "sh", program])

    def destroy(self, path: str, *options: str) -> None:
        """Remove the lab of a topology file."""
        self.containerlab("destroy", "--topo", path, "--cleanup", *options)

    def inspect(self) -> dict[str, Any]:
        """Return containerlab's description of all labs of the cell, by name."""
        return dict(json.loads(self.containerlab("inspect", "--all", "--format", "json") or "{}"))

    # -- containers ---------------------------------------------------------

    def containers(self) -> list[Container]:
        """Return all containers of the engine, running or not.

        They are read from the engine's files, so it need not run.
        """
        found = []
        for file in sorted(Path(self.node.socket(CONTAINERS)).glob(f"*/{RECORD}")):
            with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
                found.append(_container(json.loads(file.read_bytes())))
        return found

    def runs(self, container: Container) -> bool:
        """Tell whether a container's first process runs."""
        if not container.pid:
            return False
        return belongs(Path(self.node.socket(f"/proc/{container.pid}")), container.id)

    def last_words(self, container: Container) -> str:
        """Return the last lines that a container has written."""
        said = ""
        file = Path(self.node.socket(f"{CONTAINERS}/{container.id}/{container.id}-json.log"))
        with contextlib.suppress(OSError), file.open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - TAIL))
            for line in log.read(TAIL).decode(errors="replace").splitlines():
                with contextlib.suppress(ValueError, LookupError, TypeError):
                    said += json.loads(line)["log"]
        return "\n".join(lines(said)[-LAST_LINES:])

    def remove(self, container: Container) -> None:
        """Kill a container and remove it with its volumes."""
        path = f"/containers/{container.id}?force=1&v=1"
        self._ask("DELETE", path, timeout=DEPLOY_SECONDS, missing_ok=True)

    def kill(self, containers: Iterable[Container]) -> None:
        """Kill the processes of containers, and wait until they have ended; ask no engine."""
        alive = [container for container in containers if self.runs(container)]
        if alive:
            pids = [str(container.pid) for container in alive]
            self.node.run(["kill", "-KILL", *pids], check=False)
            until(lambda: not any(map(self.runs, alive)), KILL_SECONDS, pause=0.002)

    def _ask(
        self,
        method: str,
        path: str,
        body: BinaryIO | None = None,
        size: int = 0,
        *,
        timeout: float = ANSWER_SECONDS,
        missing_ok: bool = False,
    ) -> bytes:
        """Send a request to the engine and return its answer.

        ``timeout`` is in seconds.  Raises NoAnswer, or LabError for a refusal.
        """
        connection = UnixConnection(self.node.socket(engine.SOCKET), timeout)
        headers = {"Content-Type": "application/x-tar", "Content-Length": str(size)}
        try:
            with contextlib.suppress(BrokenPipeError):  # it has answered without reading all of it
                connection.request(method, path, body, headers if body else {})
            answer = connection.getresponse()
            said: bytes = answer.read()
        except (OSError, http.client.HTTPException) as error:
            lab = self.node.init.lab
            raise NoAnswer(
                f"the engine of the cell does not answer: {error}",
                daemon=engine.SERVICE,
                node=self.node.name,
                reason=str(error),
                hint=f"`testbed up -l {lab}` restarts it",
            ) from error
        finally:
            connection.close()
        if answer.status >= http.client.BAD_REQUEST:
            if missing_ok and answer.status in {http.client.NOT_FOUND, http.client.CONFLICT}:
                return b""
            words = said.decode(errors="replace").strip()
            raise LabError(f"the engine of the cell: {method} {path}: {answer.status}: {words}")
        return said


def belongs(process: Path, container: str) -> bool:
    """Tell whether a process is in the cgroup of a container with this ID.

    ``process`` is its folder in /proc.  Docker and Podman name the cgroup after the ID.
    """
    try:
        return container.encode() in (process / "cgroup").read_bytes()
    except OSError:
        return False


def exited(name: str, status: int, words: str) -> str:
    """Return the text of an error for a node that has exited, with its last lines."""
    return f"{name} exited with status {status}" + (f":\n{words}" if words else "")


@contextlib.contextmanager
def with_room() -> Iterator[None]:
    """Let an error say what to do if the reason is that the disk of a cell is full."""
    try:
        yield
    except TestbedError as error:
        if os.strerror(errno.ENOSPC).lower() in error.message.lower():
            error.hint = FULL
        raise
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise LabError(f"the disk of the cell is full: {error}", hint=FULL) from error


@contextlib.contextmanager
def _understood(what: str) -> Iterator[None]:
    """Raise LabError for an answer of the engine that is invalid in the Engine API."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        said = f"the engine of the cell cannot {what}: its answer is invalid ({error!r})"
        raise LabError(said) from error


def _container(record: Any) -> Container:
    state, config = record["State"], record["Config"]
    return Container(
        name=record["Name"].lstrip("/"),
        id=record["ID"],
        pid=state["Pid"],
        labels=config.get("Labels") or {},
        env=tuple(config.get("Env") or ()),
        image=config.get("Image") or "",
        image_id=record.get("Image") or "",
        exit=state["ExitCode"],
    )


def refused(words: Sequence[str], errors: str, output: str) -> LabError:
    """Return the error for a command that containerlab has refused, in its own words."""
    said = lines(ESCAPES.sub("", errors)) or lines(output)
    if BANNER in said:  # what follows is broken at the width of a terminal
        after = said.index(BANNER)
        said = [*said[:after], " ".join(said[after + 1 :])]
    told = [line for line in said if re.search(r"\b(ERRO|FATA|Error)\b", line)] or said[-1:]
    return LabError(f"containerlab {words[0]}: " + "\n    ".join(told[-LAST_LINES:]))

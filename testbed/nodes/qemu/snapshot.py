"""Snapshots of booted machines: memory, disk, and the keys until the machine wakes.

A snapshot fits only the same QEMU, machine type, processor options, hardware and
box, so all of them are part of its key, and it is created again when any changes.
"""

from __future__ import annotations

import json
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from testbed.artifacts.source import Job, Origin, Source
from testbed.errors import TimeoutExpired
from testbed.nodes.base import NodeSpec
from testbed.nodes.qemu import machine
from testbed.nodes.qemu.command import Hardware, command
from testbed.nodes.ssh.session import digest
from testbed.process import run
from testbed.vm.initramfs import APPEND

if TYPE_CHECKING:
    from testbed.nodes.base import Ahead
    from testbed.nodes.netns.provider import NetnsProvider
    from testbed.nodes.ssh.node import SshNode

NAME = "vm-snapshot"  #: name of snapshots in the store
HARDWARE = "hardware.json"
EVERY = 5.0  # seconds between two progress messages
WARM_SECONDS = 600.0

# Runs Docker once, without bridge, firewall rules or forwarding, and loads the box's images; then
# removes what identifies a daemon.  Forwarding stays off because a daemon that finds it on does
# not set the policy of the chain FORWARD.  Reads the programs into memory, and loads the logger
# that checks name in a sysctl, because the sysctl loads no module by itself.
WARM = """\
modprobe nfnetlink_log
log=/run/warm.log socket=/run/docker/containerd/containerd.sock
ready() {  # PID COMMAND...: wait until the command succeeds, as long as the process runs
    of=$1 tries=0
    shift
    until "$@" > /dev/null 2>&1; do
        tries=$((tries + 1))
        test $tries -lt 1200 && kill -0 "$of" 2> /dev/null || { tail -n 5 $log >&2; exit 1; }
        sleep 0.2
    done
}
# By itself dockerd gives it 15 s, and an emulated processor may take longer.  Both append, so
# that one that starts late doesn't cut off the other's words.
printf 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n' > /run/warm.toml
containerd --config=/run/warm.toml --root=/var/lib/docker/containerd/daemon \
    --state=/run/docker/containerd/daemon --address=$socket --log-level=error >> $log 2>&1 &
containerd=$!
ready $containerd ctr -a $socket version
dockerd --containerd=$socket --bridge=none --iptables=false --ip-forward=false \
    --log-level=error >> $log 2>&1 &
dockerd=$!
ready $dockerd docker version
for image in $IMAGES; do docker load -q -i "$image"; done
for daemon in $dockerd $containerd; do kill $daemon; wait $daemon || true; done
rm /run/warm.*
rm -rf /etc/docker/key.json /run/docker* /run/containerd /var/run/docker*
for program in $PROGRAMS; do cat "$program" > /dev/null; done
"""


def _host() -> str:
    """Return the properties of this machine that a KVM guest sees: CPU features and kernel."""
    facts = Path("/proc/cpuinfo").read_text("utf-8").partition("\n\n")[0]
    wanted = ("vendor_id", "model", "stepping", "microcode", "flags")
    lines = [line for line in facts.splitlines() if line.split("\t")[0].rstrip() in wanted]
    return sha256("\n".join([platform.release(), *lines]).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Snapshot(Source):
    """The snapshot of a machine that has just booted.

    ``cells`` creates the cell in which the machine runs, temporarily a part of ``lab``.
    """

    parts: machine.Parts
    hardware: Hardware
    cells: NetnsProvider = field(compare=False)
    lab: str = field(compare=False)
    origin: ClassVar[Origin] = "engine"

    def recipe(self) -> Mapping[str, object]:
        devices = command(
            self.parts.qemu, self.parts.acceleration, self.hardware, kernel="", initrd=""
        )
        return {
            "qemu": self.version(),
            "line": devices,  # machine type, processor options and every device
            "hardware": asdict(self.hardware),
            "box": self.parts.box.key,
            "host": _host() if self.parts.acceleration.kind == "kvm" else "",
            "agent": digest(self.parts.agent()),
            "append": APPEND,
            "warm": WARM,
            "form": 3,
        }

    def version(self) -> str:
        """Return the version that QEMU prints, which includes its package's revision."""
        words = run([self.parts.qemu, "--version"], timeout=30).stdout
        return words.partition("\n")[0].rpartition("version ")[2]

    def of(self) -> str:
        return self.parts.box.entry

    def whole(self, folder: Path) -> bool:
        names = (machine.MEMORY, machine.OVERLAY, machine.KEY, machine.HOST_KEY, HARDWARE)
        return all((folder / name).is_file() for name in names)

    def fill(self, job: Job) -> str:
        hardware = self.hardware
        # No node can have this name.  If this process is killed, the cell ends with it, and `down`
        # finds the rest.
        name = f"snapshot.{hardware.memory >> 20}.{hardware.cpus}.{hardware.interfaces}"
        self.cells.destroy(self.lab, [name])
        try:
            cell = self.cells.create_tied(self.lab, NodeSpec(name, "-"))
            node = machine.boot(cell, hardware, self.parts, Progress(job, "boot a machine"))
            manifest = self.parts.box.manifest()
            images = [image["place"] for image in manifest["images"].values()]
            wanted = ("dockerd", "containerd", "runc", "etcd", "etcdctl", "flanneld")
            known = manifest["programs"].values()
            programs = [path for path in known if path.rpartition("/")[2] in wanted]
            env = {"IMAGES": " ".join(images), "PROGRAMS": " ".join(programs)}
            _run(node, ["sh", "-ec", WARM], env, Progress(job, "start Docker in it"))
            job.say("save it")
            machine.save(cell, node, job.into)
            self.note(job.into)
        finally:
            self.cells.destroy(self.lab, [name])
        return self.version().partition(" ")[0]

    def note(self, folder: Path) -> None:
        """Record the machine's hardware and the key of the snapshot that it woke from."""
        said = {"hardware": asdict(self.hardware), "base": self.key()}
        (folder / HARDWARE).write_text(json.dumps(said), "utf-8")


@dataclass(frozen=True)
class Ready(Source):
    """The snapshot of a machine that woke from ``base``, in ``folder``, and has run ``ahead``."""

    base: Snapshot
    ahead: Ahead
    folder: Path = field(compare=False)
    origin: ClassVar[Origin] = "engine"

    def recipe(self) -> Mapping[str, object]:
        return {"base": self.base.key(), "ahead": self.ahead.key, "form": 2}

    def of(self) -> str:
        return self.base.of()

    def whole(self, folder: Path) -> bool:
        return self.base.whole(folder)

    def fill(self, job: Job) -> str:
        hardware, cells, lab = self.base.hardware, self.base.cells, self.base.lab
        name = f"snapshot.{self.ahead.key}"
        cells.destroy(lab, [name])
        try:
            cell = cells.create_tied(lab, NodeSpec(name, "-"))
            node = machine.wake(cell, hardware, self.base.parts, self.folder)
            with Ticking(Progress(job, "start the daemons that it is to contain")):
                self.ahead.act(node)
            job.say("save it")
            machine.save(cell, node, job.into, onto=self.base.parts.box.disk)
            self.base.note(job.into)
        finally:
            cells.destroy(lab, [name])
        return self.base.version().partition(" ")[0]


def _noted(folder: Path) -> dict[str, Any]:
    try:
        noted = json.loads((folder / HARDWARE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def hardware_of(folder: Path) -> Hardware | None:
    """Return the hardware of the machine of a snapshot; None if it is not recorded."""
    try:
        return Hardware(**_noted(folder)["hardware"])
    except (KeyError, TypeError):
        return None


def base_of(folder: Path) -> str:
    """Return the key of the boot snapshot that a snapshot is based on, or is."""
    return str(_noted(folder).get("base", ""))


class Progress:
    """Reports the current step and, every few seconds, how long it has taken."""

    def __init__(self, job: Job, words: str) -> None:
        self._job = job
        self._words = words
        self._next = EVERY
        job.say(words)

    def __call__(self, seconds: float) -> None:
        if seconds >= self._next:
            self._job.say(f"{self._words}, {seconds:.0f} s")
            self._next = seconds + EVERY


class Ticking:
    """Reports the seconds that have passed, from a separate thread."""

    def __init__(self, told: Callable[[float], None]) -> None:
        self._told = told
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def _tick(self) -> None:
        begin = time.monotonic()
        while not self._ended.wait(1.0):
            self._told(time.monotonic() - begin)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def _run(node: SshNode, argv: Sequence[str], env: Mapping[str, str], progress: Progress) -> None:
    """Run a command on a machine, with a timeout of minutes."""
    begin = time.monotonic()
    with node.spawn(argv, env=env) as running:
        while True:
            try:
                node.require(running.wait(EVERY))
            except TimeoutExpired:
                seconds = time.monotonic() - begin
                if seconds > WARM_SECONDS:
                    raise
                progress(seconds)
            else:
                return

"""A machine that has booted, saved: its memory, its disk, and the keys that it has until it wakes.

A snapshot fits the same QEMU, machine type, processor options, hardware and box
and no other, so it is kept by all of them, and made anew when any changes.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from testbed.artifacts.source import Job, Origin, Source
from testbed.nodes.base import NodeSpec
from testbed.nodes.qemu import machine
from testbed.nodes.qemu.command import APPEND, Hardware, command
from testbed.process import run

if TYPE_CHECKING:
    from testbed.nodes.netns.provider import NetnsProvider

NAME = "vm-snapshot"  #: under which the store keeps them
CELL = "machine"

# Docker has run once, with neither bridge nor firewall rules nor forwarding, and knows the images
# that the box brings; what makes one daemon differ from another is gone again.  A daemon that finds
# forwarding on sets no policy of the chain FORWARD.  Programs are in memory, and so
# is the logger that checks name in a sysctl, which loads no module by itself.
WARM = """\
modprobe nfnetlink_log
dockerd --bridge=none --iptables=false --ip-forward=false --log-level=error > /dev/null 2>&1 &
tries=0
until docker version > /dev/null 2>&1; do
    tries=$((tries + 1)); test $tries -lt 600; kill -0 $!; sleep 0.2
done
for image in {images}; do docker load -q -i "$image"; done
kill $!
wait $! || true
rm -rf /etc/docker/key.json /run/docker* /run/containerd /var/run/docker*
for program in {programs}; do cat "$program" > /dev/null; done
"""


def _host() -> str:
    """What a guest under KVM sees of this machine: its processor's features, and its kernel."""
    facts = Path("/proc/cpuinfo").read_text("utf-8").partition("\n\n")[0]
    wanted = ("vendor_id", "model", "stepping", "microcode", "flags")
    lines = [line for line in facts.splitlines() if line.split("\t")[0].rstrip() in wanted]
    return sha256("\n".join([platform.release(), *lines]).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Snapshot(Source):
    """``cells`` makes the cells in which machines run whose state is a given folder."""

    parts: machine.Parts
    hardware: Hardware
    cells: Callable[[Path], NetnsProvider] = field(compare=False)
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
            "append": APPEND,
            "warm": WARM,
            "form": 1,
        }

    def version(self) -> str:
        """QEMU's own words, with its package's revision: as exact as there is."""
        words = run([self.parts.qemu, "--version"], timeout=30).stdout
        return words.partition("\n")[0].rpartition("version ")[2]

    def whole(self, folder: Path) -> bool:
        names = (machine.MEMORY, machine.OVERLAY, machine.KEY, machine.HOST_KEY)
        return all((folder / name).is_file() for name in names)

    def fill(self, job: Job) -> str:
        cells = self.cells(job.into)
        try:
            job.say("boot a machine")
            cell = cells.create(CELL, NodeSpec(CELL, "-"))
            node = machine.boot(cell, self.hardware, self.parts)
            job.say("start Docker in it once")
            manifest = self.parts.box.manifest()
            images = " ".join(image["place"] for image in manifest["images"].values())
            wanted = ("dockerd", "containerd", "runc", "etcd", "etcdctl", "flanneld")
            known = manifest["programs"].values()
            programs = " ".join(path for path in known if path.rpartition("/")[2] in wanted)
            words = WARM.format(images=images, programs=programs)
            node.run(["sh", "-e"], input=words.encode(), timeout=600)
            job.say("save it")
            machine.save(cell, node, job.into)
        finally:
            cells.destroy(CELL)
        return self.version().partition(" ")[0]

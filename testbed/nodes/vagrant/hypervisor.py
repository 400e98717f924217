"""A lab's hypervisor: a cell in which libvirtd, Vagrant and all machines of the lab run.

It is one namespace node of a separate kind.  It contains all of libvirt's networks,
domains, volumes and dnsmasq, Vagrant's boxes and everything else they create; a
libvirt of this machine is not used.  When its pid 1 ends, the kernel ends all of
them.
"""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed import owner
from testbed.nodes.base import Service
from testbed.nodes.links import link_name
from testbed.nodes.qemu import identity
from testbed.nodes.qemu.command import Hardware
from testbed.vm.initramfs import APPEND, IDENTITY

if TYPE_CHECKING:
    from testbed.nodes.base import NodeSpec
    from testbed.nodes.netns.node import NetnsNode
    from testbed.vm.accel import Acceleration, Kind
    from testbed.vm.box import Built

NAME = "_vagrant"  #: name of the cell; no node can have it
FOLDER = "/var/lib/testbed/vagrant"  #: Vagrant's working directory, in the cell
HOME = f"{FOLDER}/home"  # VAGRANT_HOME
MACHINES = f"{FOLDER}/machines"
LAB = f"{FOLDER}/lab.json"
CONSOLES = "/var/log/testbed"
POOL = "/var/lib/libvirt/images"  # vagrant-libvirt's default
SOCKET = "/run/libvirt/libvirt-sock"
#: The link between machines and their hypervisor (RFC 3927); each lab has a separate one.
MANAGEMENT = {"name": "mgmt", "subnet": "169.254.78.0/24"}

#: libvirt's form of the options in :mod:`testbed.vm.accel`.  The CPU model has no AVX: Go programs
#: use it at start-up if available, and emulating it is slow.
CPU: dict[Kind, dict[str, str]] = {
    "kvm": {"mode": "host-passthrough"},
    "tcg": {"mode": "custom", "model": "Nehalem"},
}
DRIVER: dict[Kind, str] = {"kvm": "kvm", "tcg": "qemu"}

# All processes are root in one cell; the cell is the isolation.
QEMU_CONF = """\
security_driver = "none"
user = "root"
group = "root"
namespaces = []
cgroup_controllers = []
remember_owner = 0
"""
LIBVIRTD_CONF = 'auth_unix_rw = "none"\nauth_unix_ro = "none"\nunix_sock_rw_perms = "0700"\n'
# libvirt looks for this user at its start, even if machines run as another.
USER = "libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin\n"
GROUP = "libvirt-qemu:x:64055:\n"

# Arguments: the folder of the user's own Vagrant plugins, if any; the box's disk, its folder and
# its volume in the cell.  Vagrant gets the box, and libvirt its volume, without a copy.
# Writing to system folders is safe: the changes stay in the cell.
PREPARE = f"""\
mkdir -p {FOLDER} {MACHINES} {CONSOLES} {POOL}
test -e /dev/kvm || mknod /dev/kvm c 10 232
sysctl -q -w net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
number=0
over() {{  # FOLDER [PLACE]: what is there can be read, and written over
    number=$((number + 1))
    mkdir -p /var/lib/testbed/over/$number/upper /var/lib/testbed/over/$number/work "${{2:-$1}}"
    set -- "$1" "${{2:-$1}}" /var/lib/testbed/over/$number
    mount -t overlay over -o "lowerdir=$1,upperdir=$3/upper,workdir=$3/work" "$2"
}}
for folder in /var/cache /usr/share/vagrant-plugins; do
    if test -d "$folder"; then over "$folder"; fi
done
if test -n "$1"; then over "$1" {HOME}; fi
mkdir -p "$3"
ln -sf "$2" "$3/box.img"
qemu-img create -q -f qcow2 -F qcow2 -b "$2" "$4"
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """The description of one machine for Vagrant.  ``memory`` is in MiB."""

    name: str
    digest: str
    cpus: int
    memory: int
    interfaces: int

    @classmethod
    def of(cls, spec: NodeSpec) -> Machine:
        """Return the description of a node's machine."""
        hardware = Hardware.of(spec)
        memory = hardware.memory >> 20
        return cls(spec.name, spec.digest, hardware.cpus, memory, spec.interfaces)

    @property
    def folder(self) -> str:
        """The machine's folder in the hypervisor, with its keys."""
        return f"{MACHINES}/{self.name}"

    @property
    def bridges(self) -> list[str]:
        """The bridge of each of its interfaces."""
        return [bridge(self.name, index) for index in range(self.interfaces)]

    def described(self) -> dict[str, Any]:
        """Return the description in the form that the Vagrantfile reads."""
        return {
            "digest": self.digest,
            "cpus": self.cpus,
            "memory": self.memory,
            "bridges": self.bridges,
            "console": console(self.name),
            **{word: f"{self.folder}/{word}" for word in ("identity", "key", "address")},
        }


def bridge(machine: str, index: int) -> str:
    """Return the name of the hypervisor's bridge for a machine's ``ethN``."""
    return link_name(f"{machine}.{index}")


def joint(machine: str, index: int) -> str:
    """Return the name of the link from that bridge to the fabric."""
    return link_name(f"{machine}-{index}")


def console(machine: str) -> str:
    """Return the path of a machine's console log in the hypervisor."""
    return f"{CONSOLES}/{machine}.console"


def environment() -> dict[str, str]:
    """Return Vagrant's environment, isolated from the user's own Vagrant."""
    return {
        "VAGRANT_CWD": FOLDER,
        "VAGRANT_HOME": HOME,
        "VAGRANT_CHECKPOINT_DISABLE": "1",
        "VAGRANT_NO_COLOR": "1",
        "VAGRANT_DEFAULT_PROVIDER": "libvirt",
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
    }


def users_home() -> Path:
    """Return the home folder of the user's own Vagrant, with its plugins."""
    given = os.environ.get("VAGRANT_HOME")
    return Path(given) if given else owner.home() / ".vagrant.d"


def make(cell: NetnsNode, box: Built, acceleration: Acceleration, timeout: float) -> None:
    """Turn a new cell into a hypervisor with the box in it."""
    from testbed.vm.package import metadata

    cell.put(QEMU_CONF.encode(), "/etc/libvirt/qemu.conf")
    cell.put(LIBVIRTD_CONF.encode(), "/etc/libvirt/libvirtd.conf")
    for path, line in (("/etc/passwd", USER), ("/etc/group", GROUP)):
        there = cell.get(path)
        if line.partition(":")[0].encode() not in there:
            cell.put(there + line.encode(), path)
    home = users_home()
    plugins = cell.provide(home) if home.is_dir() else ""
    places = (cell.provide(box.disk), _box_folder(box), _volume(box))
    cell.run(["sh", "-ec", PREPARE, "sh", plugins, *places])
    cell.put(metadata(box).encode(), f"{_box_folder(box)}/metadata.json")
    vagrantfile = Path(__file__).with_name("Vagrantfile")
    cell.put(vagrantfile.read_bytes(), f"{FOLDER}/Vagrantfile")
    kernel, initrd = cell.provide(box.kernel), cell.provide(box.initramfs)
    write(cell, about(acceleration.kind, kernel=kernel, initrd=initrd, release=box.release))
    cell.start(Service("virtlogd", ("virtlogd",)), timeout=timeout)
    cell.start(Service("libvirtd", ("libvirtd",), notify=True), timeout=timeout)


def about(kind: Kind, *, kernel: str, initrd: str, release: str) -> dict[str, Any]:
    """Return the description of a lab without machines, as the Vagrantfile reads it."""
    from testbed.nodes.qemu.machine import BOOT_SECONDS
    from testbed.vm.package import BOX

    return {
        "box": {"name": BOX, "version": release},
        "uri": "qemu:///system",
        "driver": DRIVER[kind],
        "cpu": CPU[kind],
        "machine_type": "q35",
        "kernel": kernel,
        "initrd": initrd,
        "append": APPEND,
        "identity": IDENTITY,
        "management": MANAGEMENT,
        "boot_timeout": int(BOOT_SECONDS[kind]),
        "machines": {},
    }


def introduce(cell: NetnsNode, machine: Machine) -> None:
    """Write a machine's identity, with new keys, to the hypervisor; create its bridges."""
    keys = identity.make_keys()
    words = identity.script(machine.name, keys) + start(machine.interfaces)
    cell.put(words.encode(), f"{machine.folder}/identity", mode=0o600)
    cell.put(keys.client.encode(), f"{machine.folder}/key", mode=0o600)
    cell.put(keys.host_public.encode(), f"{machine.folder}/host")
    lines = [
        line
        for name in machine.bridges
        for line in (
            f"link add name {name} type bridge mcast_snooping 0",
            f"link set dev {name} up",
        )
    ]
    if lines:
        cell.run(["ip", "-batch", "-"], input="\n".join(lines).encode())


def start(interfaces: int) -> str:
    """Return the shell script that names a machine's links and sets an address for Vagrant.

    The machine runs it before its services start.  Vagrant's own link comes first.
    """
    from testbed.vm.package import lease

    names = [f"link set dev eth0 name {identity.INTERFACE}"]
    names += [f"link set dev eth{index + 1} name eth{index}" for index in range(interfaces)]
    batch = f"printf '%s\\n' {shlex.join(names)} | ip -batch -\n"
    return batch + lease(identity.INTERFACE)


def read(cell: NetnsNode) -> dict[str, Any]:
    """Read the current description of a lab."""
    lab: dict[str, Any] = json.loads(cell.get(LAB))
    return lab


def write(cell: NetnsNode, lab: dict[str, Any]) -> None:
    """Replace the description of a lab."""
    cell.put(json.dumps(lab, indent=1).encode(), LAB)


def _box_folder(box: Built) -> str:
    from testbed.vm.package import BOX

    return f"{HOME}/boxes/{BOX}/{box.release}/libvirt"


def _volume(box: Built) -> str:
    """Return vagrant-libvirt's name for the volume of a box."""
    from testbed.vm.package import BOX

    return f"{POOL}/{BOX}_vagrant_box_image_{box.release}_box.img"

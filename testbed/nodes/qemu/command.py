"""QEMU's command line for one virtual machine.  Nothing is started here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.nodes.qemu.identity import GUEST_MAC
from testbed.vm.initramfs import APPEND, IDENTITY

if TYPE_CHECKING:
    from testbed.nodes.base import NodeSpec
    from testbed.vm.accel import Acceleration

MEMORY = 768 << 20  # default size in bytes, enough for two daemons
FOLDER = "/var/lib/testbed"  # in the cell, on a tmpfs: it ends with the cell
DISK = f"{FOLDER}/disk.qcow2"
SCRIPT = f"{FOLDER}/identity"
MONITOR = "/run/testbed/monitor.sock"
CONSOLE = "/var/log/testbed/console.log"  # in the folder of the services' logs
MGMT_TAP = "mgmt"


@dataclass(frozen=True, slots=True)
class Hardware:
    """The hardware of a machine.  A memory snapshot fits only the same hardware."""

    memory: int  #: bytes
    cpus: int
    interfaces: int

    @classmethod
    def of(cls, spec: NodeSpec) -> Hardware:
        return cls(spec.memory or MEMORY, max(1, math.ceil(spec.cpus or 1)), spec.interfaces)


def tap(index: int) -> str:
    """Return the name of the cell's tap device for the machine's ``ethN``."""
    return f"tap{index}"


def placeholder(index: int) -> str:
    """Return the MAC address that ``ethN`` has until the node is connected."""
    return f"02:54:00:00:78:{index:02x}"


def command(
    qemu: str,
    acceleration: Acceleration,
    hardware: Hardware,
    *,
    kernel: str,
    initrd: str,
    more: Sequence[str] = (),
) -> tuple[str, ...]:
    """Return QEMU's command line, with paths as seen in the cell."""
    line = [
        qemu, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        *acceleration.machine, *acceleration.cpu,
        "-smp", str(hardware.cpus), "-m", f"{hardware.memory >> 20}M",
        "-kernel", kernel, "-initrd", initrd, "-append", APPEND,
        "-fw_cfg", f"name={IDENTITY},file={SCRIPT}",
        # The data is lost with the machine anyway, so no write has to wait for a disk.
        "-drive", f"if=none,id=disk,file={DISK},format=qcow2,cache=unsafe",
        "-device", "virtio-blk-pci,drive=disk,romfile=",
        "-object", "rng-random,id=rng,filename=/dev/urandom",
        "-device", "virtio-rng-pci,rng=rng",
        "-serial", f"file:{CONSOLE}",
        "-qmp", f"unix:{MONITOR},server=on,wait=off",
    ]  # fmt: skip
    nics = [(tap(index), placeholder(index)) for index in range(hardware.interfaces)]
    for device, mac in [*nics, (MGMT_TAP, GUEST_MAC)]:
        line += [
            "-netdev", f"tap,id={device},ifname={device},script=no,downscript=no",
            "-device", f"virtio-net-pci,netdev={device},mac={mac},romfile=",
        ]  # fmt: skip
    return (*line, *more)

"""The box's initramfs: loads the modules for the disk and runs the lab's identity script.

Guests of one box differ in host name, addresses and keys.  So a guest is started
with a shell script as the fw_cfg item IDENTITY, which runs in the guest's root file
system before any service starts.
"""

from __future__ import annotations

import lzma
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import ArtifactError

#: The name of the fw_cfg item: ``-fw_cfg name=opt/testbed/identity,file=...``.
IDENTITY = "opt/testbed/identity"
#: Modules for virtio disks and links; each needs those before it.
MODULES = (
    "virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci",
    "virtio_blk", "failover", "net_failover", "virtio_net", "qemu_fw_cfg",
)  # fmt: skip
DISK = "/dev/vda"
#: The kernel's command line.  Links are not named by bus position: ethN follows the bus order.
#: A panic ends the machine at once if QEMU does not restart it (-no-reboot).
APPEND = "console=ttyS0 quiet net.ifnames=0 mitigations=off apparmor=0 panic=-1"

# When pid 1 ends, the kernel panics: with panic=-1 and -no-reboot that ends QEMU, and the
# messages of this script are among the last lines of the console.
START = f"""#!/bin/busybox sh
b=/bin/busybox
fail() {{ echo "testbed: $*"; $b sleep 0.2; exit 1; }}
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
for module in MODULES; do
  $b insmod /modules/$module.ko || fail "cannot load the module $module"
done
tries=0
while [ ! -b {DISK} ]; do
  tries=$((tries + 1))
  [ $tries -lt 400 ] || fail "there is no disk {DISK}"
  $b sleep 0.05
done
$b mount -t ext4 -o rw,noatime {DISK} /root || fail "cannot mount the disk {DISK}"
for name in proc sys dev; do $b mount --move /$name /root/$name; done
$b mount -t tmpfs -o mode=755 run /root/run
$b mkdir -m 1777 /root/run/lock
$b ip link set lo up
item=/sys/firmware/qemu_fw_cfg/by_name/{IDENTITY}/raw
if [ -e /root$item ]; then
  $b mkdir /root/run/testbed
  $b cat /root$item > /root/run/testbed/identity || fail "cannot read the identity"
  PATH=/usr/sbin:/usr/bin:/sbin:/bin $b chroot /root /bin/sh -e /run/testbed/identity \\
    || fail "the identity ended with status $?"
fi
exec $b switch_root /root /sbin/init
"""


def init(modules: Iterable[str] = MODULES) -> str:
    """Return the script that is pid 1 of the initramfs and loads ``modules``, in this order."""
    return START.replace("in MODULES;", f"in {' '.join(modules)};")


@dataclass(frozen=True, slots=True)
class Item:
    """One file, folder or device of the archive."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def initramfs(root: Path, kernel: str) -> bytes:
    """Return the archive for a kernel, with busybox and modules from a tree.

    Raises ArtifactError if one of them is missing.
    """
    folders = ("bin", "dev", "modules", "proc", "root", "sys")
    items = [Item(name, stat.S_IFDIR | 0o755) for name in folders]
    items.append(Item("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)))  # for init's messages
    busybox = next(
        (p for p in (root / "usr/bin/busybox", root / "bin/busybox") if p.is_file()), None
    )
    if busybox is None:
        raise ArtifactError("the box has no busybox")
    items.append(Item("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes()))
    found = modules(root / "lib/modules" / kernel)
    items.append(Item("init", stat.S_IFREG | 0o755, init(found).encode()))
    for name, path in found.items():
        data = path.read_bytes()
        data = lzma.decompress(data) if path.suffix == ".xz" else data  # busybox's insmod does not
        items.append(Item(f"modules/{name}.ko", stat.S_IFREG | 0o644, data))
    return archive(items)


def modules(folder: Path) -> dict[str, Path]:
    """Return the files of MODULES, in that order, in a folder of a kernel's modules.

    Modules built into the kernel (kernel/.../NAME.ko in modules.builtin) are left out.
    Raises ArtifactError if a module is missing.
    """
    files = {_module(path.name): path for path in folder.rglob("*.ko*")}
    builtin = folder / "modules.builtin"
    lines = builtin.read_text(encoding="utf-8").splitlines() if builtin.exists() else []
    within = {_module(Path(line).name) for line in lines}
    for name in MODULES:
        if name not in {*files, *within}:
            raise ArtifactError(f"the kernel {folder.name} has no module {name}")
    return {name: files[name] for name in MODULES if name not in within}


def _module(file: str) -> str:
    """Return the name of a module from its file's name; - and _ are the same (modprobe(8))."""
    return file.partition(".ko")[0].replace("-", "_")


def archive(items: list[Item]) -> bytes:
    """Return a cpio archive in the "newc" format, which the kernel unpacks.

    (Kernel documentation, early-userspace.)
    """
    out = bytearray()
    for number, item in enumerate([*items, Item("TRAILER!!!", 0)], 1):
        name = item.name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(item.mode) else 1
        fields = (
            number, item.mode, 0, 0, links, 0, len(item.data), 0, 0, *item.device, len(name), 0,
        )  # fmt: skip
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        out += bytes(-len(out) % 4) + item.data
        out += bytes(-len(out) % 4)
    return bytes(out)

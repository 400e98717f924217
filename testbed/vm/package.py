"""A box packed for `vagrant box add`, for vagrant-libvirt.

It contains the disk, the kernel and the initramfs, because the machine starts
without a boot loader, and an identity that makes it an ordinary box: it accepts
Vagrant's well-known key, as Vagrant documents it, which the first ``vagrant up``
replaces.  A lab's own machines get another identity.
"""

from __future__ import annotations

import json
import shlex
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from testbed.artifacts.source import Job, Origin, Source
from testbed.vm.box import Built, digest
from testbed.vm.guest import AUTHORIZED, HOST_KEY
from testbed.vm.initramfs import APPEND, IDENTITY

if TYPE_CHECKING:
    from testbed.artifacts import Store

NAME = "vagrant-box"  #: name of packed boxes in the store
BOX = "testbed"  #: Vagrant's name for it
FILE, CATALOGUE, SUM = "testbed.box", "testbed.json", "testbed.box.sha256"
#: Vagrant's well-known public key, whose private key is public as well, on purpose
#: (hashicorp/vagrant, keys/README.md).
INSECURE = (
    "ssh-rsa AAAAB3NzaC1yc2EAAAABIwAAAQEA6NF8iallvQVp22WDkTkyrtvp9eWW6A8YVr+kz4TjGYe7gHzIw+niN"
    "ltGEFHzD8+v1I2YJ6oXevct1YeS0o9HZyN1Q9qgCgzUFtdOKLv6IedplqoPkcmF0aYet2PkEDo3MlTBckFXPITAMz"
    "F8dJSIFo9D8HfdOV0IAdx4O7PtixWKn5y2hMNG0zQPyUecp4pzC6kivAIhyfHilFR61RGL+GPXQ2MWZWFYbAGjyiY"
    "JnAmCP3NOTd0jMZEnDkbUvxhMmBYSdETk1rRgm+R4LOzFUGaHqHDLKLX+FIPKcF96hrucXzcWyLbIbEgE98OHlnVY"
    "CzRdK8jlqm8tehUc9c9WhQ== vagrant insecure public key"
)

# Takes only the address from the lease, no route and no name server.
LEASED = """\
#!/bin/sh
case $1 in bound|renew) ip address replace "$ip/$mask" dev "$interface";; esac
"""
LEASE = """\
[Unit]
Description=Address of the link to the hypervisor
DefaultDependencies=no
[Service]
ExecStart=/bin/busybox udhcpc -f -t 100 -T 1 -A 1 -i {interface} -s /etc/leased
Restart=always
"""

VAGRANTFILE = f"""\
# Started without a boot loader: the kernel is here.  A lab's own Vagrantfile says its own.
unless $testbed_lab
  Vagrant.configure("2") do |config|
    config.vm.guest = :linux
    config.vm.synced_folder ".", "/vagrant", disabled: true
    config.ssh.username = "root"
    config.ssh.sudo_command = "%c" # it is root already
    config.vm.provider :libvirt do |libvirt|
      libvirt.machine_type = "q35"
      libvirt.kernel = File.join(__dir__, "vmlinuz")
      libvirt.initrd = File.join(__dir__, "initramfs")
      libvirt.cmd_line = "{APPEND}"
      identity = File.join(__dir__, "identity")
      libvirt.qemuargs value: "-fw_cfg"
      libvirt.qemuargs value: "name={IDENTITY},file=#{{identity}}"
    end
  end
end
"""


def lease(interface: str) -> str:
    """Return the shell script that gives a machine's link an address, before its services."""
    unit = "/etc/systemd/system/lease.service"
    return (
        f"ip link set dev {interface} up\n"
        f"printf %s {shlex.quote(LEASED)} > /etc/leased\n"
        "chmod 755 /etc/leased\n"
        f"printf %s {shlex.quote(LEASE.format(interface=interface))} > {unit}\n"
        f"ln -sf {unit} /etc/systemd/system/multi-user.target.wants/\n"
    )


def identity() -> str:
    """Return the default identity script of a packed box; the host key is created at boot."""
    return (
        "umask 077\n"
        "mkdir -p /root/.ssh\n"
        f"printf '%s\\n' {shlex.quote(INSECURE)} > {AUTHORIZED}\n"
        f"test -e {HOST_KEY} || ssh-keygen -q -t ed25519 -N '' -f {HOST_KEY}\n"
        "umask 022\n" + lease("eth0")
    )


def metadata(box: Built) -> str:
    """Return ``metadata.json`` of a box (vagrant-libvirt, "Box Format")."""
    gib = -(-box.manifest()["disk"] // (1 << 30))
    return json.dumps({"provider": "libvirt", "format": "qcow2", "virtual_size": gib})


@dataclass(frozen=True)
class Package(Source):
    """A box packed as one file."""

    box: Built
    origin: ClassVar[Origin] = "engine"

    def recipe(self) -> Mapping[str, object]:
        return {"box": self.box.key, "vagrantfile": VAGRANTFILE, "identity": identity(), "form": 1}

    def version(self) -> str:
        return self.box.release

    def whole(self, folder: Path) -> bool:
        return all((folder / name).is_file() for name in (FILE, SUM))

    def fill(self, job: Job) -> str:
        job.say("pack it for Vagrant")
        texts = {
            "metadata.json": metadata(self.box),
            "Vagrantfile": VAGRANTFILE,
            "identity": identity(),
        }
        files = {
            "box.img": self.box.disk,
            "vmlinuz": self.box.kernel,
            "initramfs": self.box.initramfs,
        }
        with tarfile.open(job.into / FILE, "w") as tar:
            for name, text in texts.items():
                info = tarfile.TarInfo(name)
                info.size = len(text.encode())
                tar.addfile(info, BytesIO(text.encode()))
            for name, path in files.items():
                info = tar.gettarinfo(path, name)
                info.uid = info.gid = 0
                info.uname = info.gname = "root"
                with path.open("rb") as content:
                    tar.addfile(info, content)
        (job.into / SUM).write_text(f"{digest(job.into / FILE)}  {FILE}\n", "utf-8")
        return self.version()


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed box in the cache."""

    box: Built
    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / FILE

    def catalogue(self, file: Path) -> str:
        """Return the catalogue metadata, with version and checksum, for a copy of the box.

        ``file`` is the path of the copy.  (Vagrant documentation, "Box File Format",
        "Box Metadata".)
        """
        provider = {
            "name": "libvirt",
            "url": file.resolve().as_uri(),
            "checksum_type": "sha256",
            "checksum": (self.folder / SUM).read_text("utf-8").split()[0],
        }
        about = {
            "name": BOX,
            "description": f"Debian {self.box.manifest()['suite']} with Docker, etcd and flannel",
            "versions": [{"version": self.box.release, "providers": [provider]}],
        }
        return json.dumps(about, indent=1) + "\n"


def package(store: Store, box: Built) -> Packed:
    """Return the packed box; build it first if it is not in the cache."""
    return Packed(box, store.keep(NAME, Package(box)))

"""Configuration of a box's Debian tree: boot, ssh access, and disabled services.

A guest of a lab is reached as root with a key and gets its identity before its
first service starts (see :mod:`testbed.vm.initramfs`).  Only the lab starts services;
nothing contacts other hosts or runs on a timer.
"""

from __future__ import annotations

from pathlib import Path

from testbed.artifacts.bootstrap import PATH, inside, link, remove, write

HOST_KEY = "/etc/ssh/ssh_host_ed25519_key"  #: the guest's key, written by the identity script
AUTHORIZED = "/root/.ssh/authorized_keys"  #: keys for logging in, written by the same script
IMAGES = "/var/lib/testbed/images"  #: docker-archives, by image name

SSHD = f"""\
HostKey {HOST_KEY}
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
GSSAPIAuthentication no
PrintMotd no
PrintLastLog no
X11Forwarding no
AllowStreamLocalForwarding yes
MaxSessions 1000
MaxStartups 1000
AcceptEnv *
SetEnv PATH={PATH}
Subsystem sftp internal-sftp
"""
# Debian's own unit waits for all of sysinit and for the network, which the lab sets up.
SSH_UNIT = """\
[Unit]
Description=OpenSSH server
DefaultDependencies=no
Conflicts=shutdown.target
Before=shutdown.target

[Service]
Type=notify
ExecStart=/usr/sbin/sshd -D
RuntimeDirectory=sshd
RuntimeDirectoryMode=0755
KillMode=process
Restart=on-failure

[Install]
WantedBy=multi-user.target
"""
FILES = {
    "etc/ssh/sshd_config": SSHD,
    "etc/systemd/system/ssh.service": SSH_UNIT,
    "etc/systemd/journald.conf.d/testbed.conf": "[Journal]\nStorage=volatile\nRuntimeMaxUse=64M\n",
    "etc/systemd/system.conf.d/testbed.conf": (
        "[Manager]\nDefaultTimeoutStopSec=10s\nDefaultTasksMax=infinity\n"
        "DefaultLimitNOFILE=1048576\n"
    ),
    "etc/hostname": "box\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
    "etc/machine-id": "",
}
#: Units that are useless for a guest that runs for minutes, and slow it down.
MASKED = (
    "apt-daily-upgrade.timer", "apt-daily.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
    "e2scrub_reap.service", "fstrim.timer", "systemd-tmpfiles-clean.timer",
    "dev-hugepages.mount", "dev-mqueue.mount", "proc-sys-fs-binfmt_misc.automount",
    "sys-fs-fuse-connections.mount", "sys-kernel-config.mount", "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount", "modprobe@.service",
    "getty.target", "getty@tty1.service", "serial-getty@ttyS0.service", "console-getty.service",
    "networking.service", "ifup@.service", "ifupdown-pre.service",
    "systemd-networkd.service", "systemd-networkd.socket", "systemd-networkd-wait-online.service",
    "systemd-network-generator.service", "systemd-resolved.service", "systemd-timesyncd.service",
    "systemd-binfmt.service", "systemd-boot-system-token.service", "systemd-firstboot.service",
    "systemd-hwdb-update.service", "systemd-journal-catalog-update.service",
    "systemd-journal-flush.service", "systemd-logind.service", "systemd-machine-id-commit.service",
    "systemd-modules-load.service", "systemd-pcrphase-initrd.service",
    "systemd-pcrphase-sysinit.service", "systemd-pcrphase.service", "systemd-pstore.service",
    "systemd-random-seed.service", "systemd-remount-fs.service", "systemd-rfkill.service",
    "systemd-rfkill.socket", "systemd-sysctl.service", "systemd-sysusers.service",
    "systemd-tmpfiles-setup.service", "systemd-tmpfiles-setup-dev.service",
    "kmod-static-nodes.service", "systemd-update-done.service",
    "systemd-update-utmp-runlevel.service", "systemd-update-utmp.service",
    "systemd-user-sessions.service", "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path", "systemd-fsck-root.service",
    # The kernel creates the device nodes, and without udev MAC addresses stay as docker and
    # flanneld set them (systemd.link(5), MACAddressPolicy).
    "systemd-udevd.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket",
    "systemd-udev-trigger.service", "systemd-udev-settle.service",
)  # fmt: skip
#: Units that the lab starts itself, with its own settings.
DISABLED = (
    "docker.service", "docker.socket", "containerd.service", "etcd.service", "iperf3.service",
    "nftables.service", "remote-fs.target",
)  # fmt: skip
GONE = (
    "etc/fstab", "etc/resolv.conf", "etc/docker", "var/lib/etcd",
    "var/cache/apt/archives", "var/cache/debconf", "var/lib/apt/lists",
    "usr/lib/systemd/system/multi-user.target.wants/dbus.service",  # its socket starts it
)  # fmt: skip
SYSTEM = "etc/systemd/system"


def settle(root: Path) -> None:
    """Configure a tree as a guest.  Calling it again changes nothing."""
    for name in GONE:
        remove(root, name)
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()  # a shared key would prove nothing: each guest gets its own
    for name, text in FILES.items():
        write(root, name, text.encode())
    for unit in DISABLED:
        for wants in (root / SYSTEM).glob("*.wants"):
            (wants / unit).unlink(missing_ok=True)
    for unit in MASKED:
        link(root, f"{SYSTEM}/{unit}", "/dev/null")
    link(root, f"{SYSTEM}/default.target", "/lib/systemd/system/multi-user.target")
    link(root, f"{SYSTEM}/multi-user.target.wants/ssh.service", f"/{SYSTEM}/ssh.service")
    inside(root, "root/.ssh").mkdir(mode=0o700, exist_ok=True)

"""Small stand-ins for images of registries, made from Debian's packages and kept in the cache."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import archives

from testbed.artifacts.debian import Apt
from testbed.artifacts.image import PATH, docker_archive
from testbed.artifacts.inventory import Inventory
from testbed.artifacts.reference import full_name
from testbed.artifacts.source import Origin, Source, system
from testbed.artifacts.store import Store

if TYPE_CHECKING:
    from testbed.artifacts.source import Job

#: Applets of busybox that are on the PATH, as in an image of Alpine.
APPLETS = (
    "arp", "arping", "ash", "awk", "basename", "bc", "brctl", "cat", "chmod", "chown", "cp",
    "cut", "date", "dd", "df", "diff", "dirname", "du", "echo", "env", "expr", "false", "find",
    "free", "grep", "gzip", "head", "hostname", "id", "ifconfig", "ip", "kill", "killall", "ln",
    "ls", "mkdir", "mktemp", "more", "mount", "mv", "nc", "netstat", "nohup", "nslookup",
    "pgrep", "pidof", "ping", "ping6", "pkill", "printf", "ps", "pwd", "readlink", "realpath",
    "rm", "rmdir", "route", "sed", "seq", "sh", "sha256sum", "sleep", "sort", "stat", "stty",
    "sync", "sysctl", "tail", "tar", "tee", "test", "time", "timeout", "top", "touch", "tr",
    "traceroute", "true", "tty", "umount", "uname", "uniq", "uptime", "vi", "watch", "wc",
    "wget", "which", "whoami", "xargs", "yes",
)  # fmt: skip
USERS = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
#: Package managers of labs install iproute2, which the stand-ins have.
INSTALL = '#!/bin/sh\necho "stand-in: $0 $*"\n'
PERMIT = "auth sufficient pam_permit.so\naccount sufficient pam_permit.so\n"
FRR_START = """\
#!/bin/sh
# The daemons that /etc/frr/daemons wants, and the configuration; then sleep, as upstream's does.
mkdir -p /run/frr /var/log/frr /var/tmp/frr
chown -R frr:frr /run/frr /var/log/frr
. /etc/frr/daemons
for name in zebra mgmtd staticd ospfd ospf6d bgpd ripd isisd bfdd ldpd; do
    eval "wanted=\\$$name options=\\$${name}_options"
    case $name in zebra | staticd) wanted=yes ;; esac
    test "$wanted" = yes && test -x "/usr/lib/frr/$name" || continue
    "/usr/lib/frr/$name" -d $options
done
test "$vtysh_enable" = yes && vtysh -b
exec sleep 2147483647
"""


@dataclass(frozen=True)
class Standin(Source):
    """All files of packages and of what they need, with busybox for the rest.

    ``files`` are by path, each with its mode.
    """

    packages: tuple[str, ...]
    command: tuple[str, ...]
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    applets: tuple[str, ...] = APPLETS
    origin: ClassVar[Origin] = "debian"

    def recipe(self) -> Mapping[str, object]:
        return {
            "packages": list(self.packages),
            "command": list(self.command),
            "files": {name: list(file) for name, file in self.files.items()},
            "folders": list(self.folders),
            "applets": list(self.applets),
            "system": system(),
            "form": 6,
        }

    def whole(self, folder: Path) -> bool:
        return (folder / "image.tar").exists()

    def fill(self, job: Job) -> str:
        debian, root = job.into / "debian", job.into / "root"
        versions = Apt(job).unpack(["busybox", *self.packages], debian, depends=True)
        for name in ("bin", "lib", "lib64", "sbin"):  # as in Debian, /usr is merged
            (root / "usr" / name).mkdir(parents=True)
            (root / name).symlink_to(f"usr/{name}")
        _copy(debian, root)
        for folder in (*self.folders, "dev", "proc", "sys", "run", "tmp", "root", "etc", "var/tmp"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for applet in self.applets:
            if not any((root / "usr" / name / applet).exists() for name in ("bin", "sbin")):
                (root / "usr" / "bin" / applet).symlink_to("busybox")
        for name, (mode, text) in {**FILES, **self.files}.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, encoding="utf-8")
            (root / name).chmod(mode)
        (root / "tmp").chmod(0o1777)
        config: dict[str, Any] = {"Cmd": list(self.command), "Env": [PATH], "WorkingDir": "/"}
        docker_archive(root, job.into / "image.tar", tag="testbed/standin:1", config=config)
        shutil.rmtree(debian)
        shutil.rmtree(root)
        return versions["busybox"]


def _copy(debian: Path, root: Path) -> None:
    """Copy the files of unpacked packages, without documentation and languages."""
    for path in sorted(debian.rglob("*")):
        place = path.relative_to(debian)
        if place.parts[:1] in {("bin",), ("lib",), ("lib64",), ("sbin",)}:
            place = Path("usr", *place.parts)
        if {"doc", "man", "locale", "i18n", "gconv"} & set(place.parts):
            continue
        target = root / place
        if path.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                target.symlink_to(path.readlink())
        elif path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


FILES: Mapping[str, tuple[int, str]] = {
    "etc/passwd": (0o644, USERS),
    "etc/group": (0o644, "root:x:0:\nnogroup:x:65534:\n"),
    "etc/nsswitch.conf": (0o644, "passwd: files\ngroup: files\nhosts: files dns\n"),
    "etc/os-release": (0o644, 'ID=standin\nNAME="stand-in of a test"\n'),
    "usr/sbin/apk": (0o755, INSTALL),
}
SMALL = Standin(("iproute2", "bash"), ("/bin/sh",))
TOOLS = Standin(("iproute2", "iputils-ping", "tcpdump", "curl", "bash"), ("sleep", "2147483647"))
FRR = Standin(
    ("frr", "libpam-modules", "iproute2", "bash"),
    ("/usr/lib/frr/docker-start",),
    {
        "usr/lib/frr/docker-start": (0o755, FRR_START),
        "etc/passwd": (0o644, USERS + "frr:x:101:101:FRR:/nonexistent:/bin/false\n"),
        "etc/group": (0o644, "root:x:0:\nfrr:x:101:\nfrrvty:x:102:frr\nnogroup:x:65534:\n"),
        "etc/pam.d/frr": (0o644, PERMIT),
        "etc/pam.d/other": (0o644, PERMIT),
        "etc/frr/vtysh.conf": (0o644, "service integrated-vtysh-config\n"),
    },
)
PARTS: Mapping[str, Source] = {"standin-small": SMALL, "standin-tools": TOOLS, "standin-frr": FRR}
#: The part for each name; another name has the small one.
NAMED = {"frr": "standin-frr", "multitool": "standin-tools"}


def image(name: str, folder: Path) -> Path:
    """Return an archive of the stand-in for an image, in a folder; build it if necessary."""
    target = folder / f"{name.replace('/', '_').replace(':', '_')}.tar"
    if not target.exists():
        part = next((part for word, part in NAMED.items() if word in name), "standin-small")
        store = Store(
            inventory=Inventory(PARTS, images={part: part for part in PARTS}, tools={}, programs={})
        )
        if name.startswith("nginx"):
            archives.write(target, name)
        else:
            archives.write(target, name, source=store.file(part, "image.tar"))
    return target


def config(names: Iterable[str], folder: Path) -> Path:
    """Write a configuration file with stand-ins for these images, and return its path."""
    once = {full_name(name): name for name in sorted(names)}.values()
    lines = [f'[images."{name}"]\npath = "{image(name, folder)}"\n' for name in once]
    path = folder / "config.toml"
    path.write_text("".join(lines))
    return path

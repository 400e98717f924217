"""The image "nginx", built from Debian packages: a web server that shows its client's address.

It contains only the programs that labs use and their libraries, so it stays small.
It is built the same way everywhere, without a registry.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from testbed.artifacts.archive import processor
from testbed.artifacts.cache import remove_tree
from testbed.artifacts.debian import Apt, inside
from testbed.artifacts.source import Job, Origin, Source, system
from testbed.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROGRAMS = {  # package -> programs to include
    "nginx": ("usr/sbin/nginx",),
    "busybox": ("bin/busybox",),
    "curl": ("usr/bin/curl",),
    "iperf3": ("usr/bin/iperf3",),
    "iproute2": ("bin/ip", "bin/ss", "sbin/bridge", "sbin/tc"),
    "iputils-ping": ("bin/ping",),
    "tcpdump": ("usr/bin/tcpdump",),
    # Their output is what testinfra's modules expect; busybox's differs or is missing.
    "coreutils": ("bin/ls",),
    "libc-bin": ("usr/bin/getent",),
    "netcat-openbsd": ("bin/nc.openbsd",),
    "procps": ("bin/ps",),
    "util-linux": ("sbin/blockdev",),
}
TEXTS = {"base-files": ("usr/lib/os-release",)}  # package -> files to include as they are
# Loaded by name at run time, so no program's list of libraries contains it.
LIBRARIES = ("libgcc_s.so.1",)
# Names of links to busybox; tar is for `kubectl cp`.  Not ping, ip and wget: the image has the
# real ones, or busybox's fail.
APPLETS = (
    "arp", "awk", "basename", "cat", "chmod", "chown", "clear", "cp", "cut", "date", "dd", "df",
    "dirname", "du", "echo", "env", "expr", "false", "find", "free", "grep", "head", "hostname",
    "id", "ifconfig", "kill", "ln", "md5sum", "mkdir", "mktemp", "mount", "mv", "netstat",
    "nproc", "nslookup", "pidof", "printf", "pwd", "readlink", "realpath", "rm", "rmdir", "route",
    "sed", "seq", "sh", "sha256sum", "sleep", "sort", "stat", "sync", "sysctl", "tail", "tar",
    "tee", "test", "time", "timeout", "top", "touch", "tr", "traceroute", "true", "tty", "umount",
    "uname", "uniq", "uptime", "vi", "wc", "which", "whoami", "xargs", "yes",
)  # fmt: skip
ENTRYPOINT = r"""#!/bin/sh
# Every answer says who was asked and by whom. PORT: 80 by default; NAME: the host name.
set -eu
port=${PORT:-80} name=${NAME:-$(hostname)}
case $port in *[!0-9]* | "") echo "PORT: not a number: $port" >&2; exit 64 ;; esac
case $name in *[!A-Za-z0-9._:@/-]* | "") echo "NAME: not a plain name: $name" >&2; exit 64 ;; esac
listen="listen $port;"
if [ -e /proc/net/if_inet6 ]; then listen="$listen listen [::]:$port;"; fi
cat > /run/nginx.conf <<END
user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log /dev/stderr;
events { worker_connections 512; }
http {
  access_log /dev/stdout;
  default_type application/json;
  server {
    $listen
    location / {
      set \$server "\$server_addr:\$server_port";
      set \$client "\$remote_addr:\$remote_port";
      set \$host_json '"host": "\$http_host"';
      return 200 '{"name": "$name", "server": "\$server", "client": "\$client", \$host_json}\n';
    }
  }
}
END
exec nginx -c /run/nginx.conf -g 'daemon off;'
"""
#: Contents of every image of packages: PATH, mount points of the kernel, root's home, user names.
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KERNEL = ("dev", "proc", "root", "run", "sys", "tmp")
NSSWITCH = (0o644, "passwd: files\ngroup: files\nhosts: files dns\n")
FILES = {
    "entrypoint.sh": (0o755, ENTRYPOINT),
    # nginx runs as www-data, tcpdump as tcpdump: each needs its line.
    "etc/passwd": (
        0o644,
        "root:x:0:0:root:/root:/bin/sh\n"
        "www-data:x:33:33:www-data:/var/www:/bin/false\n"
        "tcpdump:x:101:101::/nonexistent:/bin/false\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    ),
    "etc/group": (0o644, "root:x:0:\nwww-data:x:33:\ntcpdump:x:101:\nnogroup:x:65534:\n"),
    # No user has a password (shadow(5): an asterisk matches none).
    "etc/shadow": (
        0o640,
        "".join(f"{name}:*:0:0:99999:7:::\n" for name in ("root", "www-data", "tcpdump", "nobody")),
    ),
    "etc/nsswitch.conf": NSSWITCH,
}
LINKS = {
    "etc/os-release": "../usr/lib/os-release",
    "etc/nginx/nginx.conf": "/run/nginx.conf",  # written by the entry point
    "usr/bin/nc": "nc.openbsd",
}
FOLDERS = (*KERNEL, "var/lib/nginx", "var/log/nginx", "var/www")
MERGED = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")  # links into usr, as Debian has them


@dataclass(frozen=True)
class Content:
    """The contents of an image: files of Debian packages, and others.

    ``programs`` maps a package to paths of its programs, or patterns of such paths; their
    libraries are included.
    ``texts`` maps a package to paths of its other files.
    ``links`` maps the path of a symbolic link to its target, as Debian's alternatives would.
    ``files`` maps a path to the mode and text of a file.
    """

    programs: Mapping[str, Sequence[str]]
    applets: Sequence[str] = ()  #: names of links to busybox
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    folders: Sequence[str] = ()

    @property
    def packages(self) -> list[str]:
        """All packages with files in the image."""
        return [*self.programs, *self.texts]

    def recipe(self) -> dict[str, object]:
        return {
            "programs": {package: list(names) for package, names in self.programs.items()},
            "libraries": list(LIBRARIES),
            "applets": list(self.applets),
            **(
                {"texts": {name: list(of) for name, of in self.texts.items()}} if self.texts else {}
            ),
            **({"links": dict(self.links)} if self.links else {}),
            "files": {name: list(content) for name, content in self.files.items()},
            "folders": list(self.folders),
            "system": system(),
            "form": 1,  # version of the format that docker_archive writes
        }

    def labels(self, versions: Mapping[str, str]) -> dict[str, str]:
        """Return an image's labels: its packages with their versions."""
        of = {f"testbed.version.{package}": versions[package] for package in sorted(self.packages)}
        return of | {"testbed.base": system()}


NGINX = Content(PROGRAMS, applets=APPLETS, texts=TEXTS, links=LINKS, files=FILES, folders=FOLDERS)


@dataclass(frozen=True)
class NginxImage(Source):
    """A docker-archive for ``docker load``, named nginx:latest."""

    origin: ClassVar[Origin] = "debian"

    def recipe(self) -> Mapping[str, object]:
        return NGINX.recipe()

    def whole(self, folder: Path) -> bool:
        return (folder / "image.tar").exists()

    def fill(self, job: Job) -> str:
        debian, root = job.into / "debian", job.into / "root"
        versions = Apt(job).unpack(NGINX.packages, debian, depends=True)
        job.say("select the files of the image")
        build_root(job, debian, root, NGINX)
        job.say("write the image")
        docker_archive(
            root,
            job.into / "image.tar",
            tag="nginx:latest",
            config={
                "Cmd": ["/entrypoint.sh"],
                "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
                "ExposedPorts": {"80/tcp": {}},
                "Labels": NGINX.labels(versions),
                "StopSignal": "SIGTERM",
                "WorkingDir": "/",
            },
        )
        remove_tree(debian)
        remove_tree(root)
        return versions["nginx"]


def build_root(job: Job, debian: Path, root: Path, content: Content) -> None:
    """Copy the programs, their libraries and the other files of an image into a tree."""
    for folder in (*content.folders, "etc", "usr/bin", "usr/sbin"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    merge(debian, root)
    programs = [
        place
        for places in content.programs.values()
        for pattern in places
        for place in (_matching(debian, pattern) if "*" in pattern else [pattern])
    ]
    needed = {}
    for place in programs:
        found = inside(debian, place)
        if not found:
            raise ArtifactError(f"no {place} in the packages {' '.join(content.programs)}")
        needed[merged(place)] = found
    needed |= libraries(job, debian, [needed[merged(place)] for place in programs])
    copy_in(needed, root)
    for place in (place for places in content.texts.values() for place in places):
        found = inside(debian, place)
        if not found:
            raise ArtifactError(f"no {place} in the packages {' '.join(content.texts)}")
        copy_in({merged(place): found}, root, mode=0o644)
    for applet in content.applets:
        (root / "usr" / "bin" / applet).symlink_to("busybox")
    for place, target in content.links.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).symlink_to(target)
    for name, (mode, text) in content.files.items():
        (root / name).write_text(text, encoding="utf-8")
        (root / name).chmod(mode)
    (root / "tmp").chmod(0o1777)


def _matching(debian: Path, pattern: str) -> list[str]:
    found = sorted(str(path.relative_to(debian)) for path in debian.glob(pattern))
    if not found:
        raise ArtifactError(f"no {pattern} in the packages")
    return found


def merge(debian: Path, root: Path) -> None:
    """Create the links into usr for the folders that the packages have."""
    for name in MERGED:
        if (debian / name).is_dir() or (debian / "usr" / name).is_dir():
            (root / "usr" / name).mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to(f"usr/{name}")


def copy_in(files: Mapping[str, Path], root: Path, *, mode: int = 0o755) -> None:
    """Copy files to their paths in a tree; the default mode is for programs and libraries."""
    import shutil

    for place, file in files.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, root / place)
        (root / place).chmod(mode)


def merged(place: str) -> str:
    """Return the path below usr for a path of a package, in a tree with a merged /usr."""
    return f"usr/{place}" if place.split("/", maxsplit=1)[0] in MERGED else place


def libraries(job: Job, debian: Path, programs: Sequence[Path]) -> dict[str, Path]:
    """Return all libraries that the programs load, by path in the image.

    They are searched only in the packages.
    """
    either = ("lib*/ld-linux*.so.*", "usr/lib*/ld-linux*.so.*")  # before, after /usr was merged
    loader = next((path for place in either for path in sorted(debian.glob(place))), None)
    if not loader:
        raise ArtifactError("no dynamic loader in the package libc6")
    interpreter = inside(debian, str(loader.relative_to(debian)))
    assert interpreter
    folders = sorted(
        {path.parent for top in ("lib", "usr/lib") for path in (debian / top).glob("*/lib*.so*")}
    )
    found = {merged(str(loader.relative_to(debian))): interpreter}
    for program in programs:
        # The packages' own loader lists what it would load: needs no root, uses no host library.
        answer = job.run(
            [
                interpreter, "--inhibit-cache", "--library-path", ":".join(map(str, folders)),
                "--list", program,
            ],
            env={**os.environ, "LC_ALL": "C", "LD_PRELOAD": ""},
        )  # fmt: skip
        for name, path in re.findall(r"^\s+(\S+) => (.*?)(?: \(0x|$)", answer.stdout, re.MULTILINE):
            found |= _library(debian, name, Path(path))
    for name in LIBRARIES:
        places = [folder / name for folder in folders if (folder / name).exists()]
        if places:
            found |= _library(debian, name, places[0])
    return found


def _library(debian: Path, name: str, path: Path) -> dict[str, Path]:
    if name.startswith("/"):  # the loader itself, under its full name
        return {}
    if not path.is_relative_to(debian):
        raise ArtifactError(f"{name} is not in the packages: the loader says {path}")
    place = str(path.relative_to(debian))
    real = inside(debian, place)
    if not real:
        raise ArtifactError(f"{place} is a link to nothing in the packages")
    return {merged(place): real}


def docker_archive(root: Path, target: Path, *, tag: str, config: Mapping[str, object]) -> None:
    """Write a tree as an image of one layer, owned by root.  The output is reproducible."""
    layer = target.with_suffix(".layer")
    write_layer(root, layer)
    docker_image([layer], target, tag=tag, config=config)
    layer.unlink()


def write_layer(root: Path, target: Path, *, faithful: bool = False) -> None:
    """Write a tree as a layer of an image.  The output is reproducible.

    All files belong to root, and none is a hard link.  With ``faithful`` owners, hard links and
    capabilities of programs are kept, as packages have made them.
    """
    import tarfile

    form = tarfile.PAX_FORMAT if faithful else tarfile.DEFAULT_FORMAT
    with target.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for path in sorted(root.rglob("*")):
            info = tar.gettarinfo(path, str(path.relative_to(root)))
            info.mtime = 0
            info.uname = info.gname = ""
            if not faithful:
                if info.islnk():  # a hard link in our tree would be an accident
                    raise ArtifactError(f"{path} is a hard link")
                info.uid = info.gid = 0
            elif info.isreg() and (kept := _capabilities(path)):
                info.pax_headers = {"SCHILY.xattr.security.capability": kept}
            if info.isreg():
                with path.open("rb") as content:
                    tar.addfile(info, content)
            else:
                tar.addfile(info)


def _capabilities(path: Path) -> str:
    """Return the capabilities of a program as a tar has them; empty if it has none."""
    try:
        data = os.getxattr(path, "security.capability")
    except OSError:
        return ""
    return data.decode("utf-8", "surrogateescape")  # tarfile writes it back as these bytes


def docker_image(
    layers: Sequence[Path], target: Path, *, tag: str, config: Mapping[str, object]
) -> None:
    """Write layers as an archive for ``docker load``.  The output is reproducible."""
    import tarfile

    digests = []
    for layer in layers:
        with layer.open("rb") as content:
            digests.append(hashlib.file_digest(content, "sha256").hexdigest())
    made = {"created": "1970-01-01T00:00:00Z", "created_by": "testbed"}
    description = json.dumps(
        {
            "architecture": processor(),
            "config": config,
            "created": "1970-01-01T00:00:00Z",
            "history": [made for _ in layers],
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
        },
        sort_keys=True,
    ).encode()
    name = f"{hashlib.sha256(description).hexdigest()}.json"
    places = [f"{digest}/layer.tar" for digest in digests]
    manifest = json.dumps(
        [{"Config": name, "Layers": places, "RepoTags": [tag]}], sort_keys=True
    ).encode()
    with target.open("wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
        for member, data in (("manifest.json", manifest), (name, description)):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for place, layer in zip(places, layers, strict=True):
            info = tarfile.TarInfo(place)
            info.size = layer.stat().st_size
            with layer.open("rb") as content:
                tar.addfile(info, content)

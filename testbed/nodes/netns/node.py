"""A namespace node; all requests go through its pid 1."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.errors import LabError, NoSuchNode, TimeoutExpired
from testbed.nodes import keeper
from testbed.nodes.base import Bind, Node, Service, ServiceState, has_ended, is_stopped
from testbed.nodes.netns import cgroups
from testbed.nodes.netns.agent import Command, Connection
from testbed.nodes.request import ENVIRONMENT, part_of

if TYPE_CHECKING:
    from testbed.nodes.netns.duplex import Duplex
    from testbed.nodes.netns.find import Init
    from testbed.nodes.place import Place

#: Folders that each node has separately from the machine (see ``set_up`` in ``init.c``).
PRIVATE = ("/run", "/etc", "/var/lib", "/var/log", "/tmp", "/var/tmp", "/proc", "/dev", "/sys")
#: Folders of the machine in which a node may have additional programs (FHS 3.0, 4.4 and 4.7).
PROGRAMS, HELPERS = "/usr/bin", "/usr/libexec"
#: Place on a node for files of this machine that one of those folders would hide.
EXPOSED = "/run/testbed/host"
#: Place on a node for its binds, by number.
BINDS = "/run/testbed/bind"
#: A file on nodes with an image: the image's environment, as JSON.
IMAGE = "/run/testbed/image.json"
#: Arguments: a bind, its path, and whether it is a folder.
MOUNT = """\
set -e
if [ ! -e "$2" ]; then
    mkdir -p "$(dirname "$2")"
    if [ "$3" = folder ]; then mkdir "$2"; else : > "$2"; fi
fi
mount -o rbind "$1" "$2"
"""
#: Lays a folder of the node over the nearest existing one of this machine above a path.
OPEN = """\
set -e
folder=$(dirname "$1")
while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
[ "$folder" != / ]
own=$(mktemp -d /run/testbed/open.XXXXXX)
chmod 755 "$own"
mkdir "$own/upper" "$own/work"
chown --reference="$folder" "$own/upper"
chmod --reference="$folder" "$own/upper"
cd "$folder"
mount -t overlay overlay -o "lowerdir=.,upperdir=$own/upper,workdir=$own/work" "$folder"
"""


def is_hidden(path: Path) -> bool:
    """Tell whether nodes cannot see a folder of this machine at the same path."""
    return any(path.is_relative_to(private) for private in (*PRIVATE, *program_folders()))


def program_folders() -> tuple[str, ...]:
    """Return the folders of this machine in which a node may add or hide programs."""
    return (*path_folders(), HELPERS)


@functools.cache
def path_folders() -> tuple[str, ...]:
    """Return the folders of a node's PATH, except those that are links to others."""
    folders = ENVIRONMENT["PATH"].split(":")
    return tuple(dict.fromkeys(os.path.realpath(folder) for folder in folders))


def mount_points(mountinfo: str) -> set[str]:
    r"""Return the paths of mounts, of proc_pid_mountinfo(5).

    >>> mount_points("36 35 98:0 /a /srv/a\\040b rw - ext3 /dev/root rw\n")
    {'/srv/a b'}
    """
    lines = (line.split(" ") for line in mountinfo.splitlines())
    octal = re.compile(r"\\([0-7]{3})")
    return {octal.sub(lambda found: chr(int(found[1], 8)), one[4]) for one in lines}


class NetnsNode(Node):
    """One namespace node, found or just created."""

    shares_files = True
    shares_kernel = True
    has_system = False

    def __init__(self, init: Init) -> None:
        self.init = init
        self.name = init.node
        self.digest = init.digest

    def __repr__(self) -> str:
        return f"<namespace node {self.name} of {self.init.lab}, pid {self.init.pid}>"

    def _connect(self) -> Connection:
        self._refuse_stopped()
        # Alive now, so also when the connection was made: no other process had its pid.
        connection = None
        with contextlib.suppress(NoSuchNode):
            connection = Connection(self.name, self.init.pid)
        if connection is not None and self.init.alive():
            return connection
        if connection is not None:
            connection.close()
        raise has_ended(self.name, self.init.lab)

    def refuse_ended(self) -> None:
        """Raise NodeNotRunning if the node has ended or is paused."""
        self._connect().close()

    def _refuse_stopped(self) -> None:
        """Raise NoSuchNode for a paused node, whose pid 1 would not answer."""
        if self._freezer_file and cgroups.is_paused(self._freezer_file):
            raise is_stopped(self.name, self.init.lab)

    @functools.cached_property
    def _freezer_file(self) -> str:
        """The file that tells whether the node is paused; empty if no node can be."""
        freezer = cgroups.freezer()
        if freezer is None:
            return ""
        folder = cgroups.folder_name(self.init.lab, Path(self.init.state))
        return str(freezer.file(folder, self.name))

    @functools.cached_property
    def image_env(self) -> Mapping[str, str] | None:
        """The environment of the image that is its file system; None without an image."""
        try:
            text = Path(self.socket(IMAGE)).read_text(encoding="utf-8")
        except OSError:
            return None
        found: dict[str, str] = json.loads(text)
        return found

    def keep_environment(self, env: Mapping[str, str]) -> None:
        """Note that its file system is an image, with this environment."""
        self.put(json.dumps(env).encode(), IMAGE)

    @property
    def network(self) -> Place:
        if self.image_env is None:
            return self
        from testbed.nodes.netns.beside import Beside

        return Beside(self)

    def spawn(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Command:
        merged = {**(self.image_env or {}), **self.env, **(env or {})}
        return Command(self.name, self._connect, argv, input=input, env=merged)

    def duplex(self, argv: Sequence[str]) -> Duplex:
        """Run a program on the node whose standard streams are one stream of bytes."""
        from testbed.nodes.netns.duplex import Duplex

        return Duplex(self._connect(), argv)

    def attach(self, argv: Sequence[str], *, tty: bool, inside: int = 1) -> int:
        from testbed.nodes.netns import terminal

        if not tty:
            files = [stream.fileno() for stream in (sys.stdin, sys.stdout, sys.stderr)]
            return terminal.with_files(self._connect(), argv, files, self.image_env)
        master = self._terminal(inside)
        return terminal.with_terminal(self._connect(), master, argv, self.image_env)

    def pipe(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> int:
        from testbed.nodes.netns import terminal

        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            files = [nothing if file is None else file for file in (stdin, stdout, stderr)]
            merged = {**(self.image_env or {}), **(env or {})}
            return terminal.with_files(self._connect(), argv, files, merged)
        finally:
            os.close(nothing)

    def _terminal(self, pid: int) -> int:
        """Open the master of a new terminal, in the /dev/pts that a process of the node sees."""
        try:
            return self._open(f"/proc/{pid}/root/dev/pts/ptmx", os.O_RDWR, 0)
        except OSError:
            if pid == 1:
                raise
            return self._terminal(1)  # a container need not have a /dev/pts

    def own_folder(self, path: str) -> bool:
        return self.run(["sh", "-c", OPEN, "sh", path], check=False).ok

    def put(self, data: bytes, path: str, *, mode: int = 0o644) -> None:
        part = part_of(path)
        fd = self._open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        with self._connect() as connection:
            connection.send(["move", part, path])
            words, _ = connection.receive(30.0)
        self._refuse_errno(words, path)

    def bind(self, binds: Sequence[Bind]) -> list[Bind]:
        missing = self.unbound(binds)
        for index, bind in enumerate(binds):
            if bind not in missing:
                continue
            kind = "folder" if bind.source.is_dir() else "file"
            mount = ["sh", "-c", MOUNT, "sh", f"{BINDS}/{index}", bind.target, kind]
            # The second time the folder above it is the node's own.
            result = self.run(mount, check=False)
            if not result.ok and self.own_folder(bind.target):
                result = self.run(mount, check=False)
            if not result.ok:
                raise LabError(
                    f"{self.name} cannot have {bind.target}: {result.stderr.strip()}",
                    hint="choose a path below a folder that exists on this machine, such as /srv",
                )
        return missing

    def unbound(self, binds: Sequence[Bind]) -> list[Bind]:
        there = mount_points(self.get("/proc/self/mountinfo").decode(errors="replace"))
        return [bind for bind in binds if bind.target not in there]

    def get(self, path: str) -> bytes:
        fd = self._open(path, os.O_RDONLY, 0)
        try:
            with open(fd, "rb", closefd=False) as file:
                return file.read()
        except IsADirectoryError as error:  # names our file descriptor, which says nothing
            raise IsADirectoryError(error.errno, error.strerror, f"{self.name}:{path}") from None
        finally:
            os.close(fd)

    def _open(self, path: str, flags: int, mode: int) -> int:
        # Pid 1 opens it, so that links on the node are resolved on the node.
        with self._connect() as connection:
            connection.send(["open", path, str(flags), str(mode)])
            words, files = connection.receive(30.0)
        self._refuse_errno(words, path)
        return files[0]

    def _refuse_errno(self, words: Sequence[str], path: str) -> None:
        if words[0] == "errno":
            number = int(words[1])
            raise OSError(number, os.strerror(number), f"{self.name}:{path}")
        if words[0] != "ok":
            raise LabError(f"{self.name}: {' '.join(words)}")

    def provide(self, path: Path) -> str:
        path = path.resolve()
        return f"{EXPOSED}{path}" if is_hidden(path) else str(path)

    def offer(self, programs: Mapping[str, Path]) -> None:
        fields = ["link"]
        for name, path in programs.items():
            fields += [str(Path(PROGRAMS, name)), self._for_all(path.resolve())]
        with self._connect() as connection:
            connection.send(fields)
            words, _ = connection.receive(30.0)
        self._refuse_errno(words, words[-1])

    def _for_all(self, path: Path) -> str:
        """Return a path on the node that users other than root can follow, too.

        Root's home folder is closed to them.
        """
        exposed = f"{EXPOSED}{path}"
        return exposed if Path(self.socket(exposed)).exists() else self.provide(path)

    def socket(self, path: str) -> str:
        return f"/proc/{self.init.pid}/root{path}"

    def start(self, service: Service, *, timeout: float = 60.0) -> None:
        if self.image_env:
            service = replace(service, env={**self.image_env, **service.env})
        keeper.start(self._ask, self, service, timeout)

    def start_again(self, service: str, *, timeout: float = 60.0) -> None:
        keeper.start_again(self._ask, self, service, timeout)

    def stop(self, service: str, *, grace: float = 5.0) -> None:
        keeper.stop(self._ask, self, service, grace)

    def services(self) -> dict[str, ServiceState]:
        return keeper.services(self._ask)

    def _ask(self, fields: Sequence[str], timeout: float) -> str:
        with self._connect() as connection:
            connection.send(fields)
            try:
                text, _ = connection.receive_text(timeout)
            except TimeoutExpired as error:
                raise TimeoutError(error.message) from None
        return text

"""Copy files and folders between this machine and a node or container, as tar streams.

The rules are those of ``docker cp``. Nothing is held in memory, and no daemon is asked: a
container's files are found by its process. What is incomplete is under a temporary name, on both
sides, and is renamed at the end.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import signal
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from testbed import signals
from testbed.errors import LabError, MachineError, ReaderGone, TestbedError, UsageError
from testbed.limits import exhausted
from testbed.nodes.request import part_of

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node

STREAM = "-"
#: NODE:PATH. A local path with a colon has a slash or a dot at its beginning, as for docker(1).
FAR = re.compile(r"(?P<where>[^/.:][^:]*):(?P<path>.*)", re.DOTALL)
BUFFER = 1 << 18  # bytes of a tar stream at once
JOIN = 10.0  # seconds for a command to end after its stream was closed
NO_PROGRAM = 127
NO_READER = 128 + signal.SIGPIPE
SAID = 8  # lines of a command's errors that are shown
#: Left out of a copy of a whole root directory: what the kernel shows there is no file.
NO_FILES = tuple(f"--exclude=./{name}/*" for name in ("proc", "sys", "dev"))
CHANGED = 1  # exit status of GNU tar: a file has changed while it was read

Kind = Literal["folder", "file", "link", "missing", "nowhere", "loop"]

#: Resolve a path as the kernel does for a process with another root directory; prints its kind
#: and the result.  Arguments: the root, the path, and 1 to follow a link at its end.
#: A missing name in a missing folder is "nowhere".
LOOK = r"""
root=$1 rest=$2 at= left=40
while [ -n "$rest" ]; do
  part=${rest%%/*}
  case $rest in */*) rest=${rest#*/};; *) rest=;; esac
  case $part in
    ''|.) continue;;
    ..) at=${at%/*}; continue;;
  esac
  if [ -L "$root$at/$part" ] && { [ -n "$rest" ] || [ "$3" = 1 ]; }; then
    left=$((left - 1))
    [ "$left" -gt 0 ] || { printf 'loop\n%s' "$at/$part"; exit; }
    to=$(readlink "$root$at/$part"; echo x)
    to=${to%?x}
    case $to in /*) at=;; esac
    rest=$to/$rest
    continue
  fi
  at=$at/$part
done
there=$root$at
if [ -z "$at" ]; then kind=folder
elif [ -L "$there" ]; then kind=link
elif [ -d "$there/." ]; then kind=folder
elif [ -e "$there" ]; then kind=file
elif [ -d "$root${at%/*}/." ]; then kind=missing
else kind=nowhere; fi
printf '%s\n%s' "$kind" "$at"
"""

#: Arguments: a new folder, in which the tar stream is unpacked.
UNPACK = 'mkdir -m 700 -- "$1" && tar -C "$1" -xpf -'

#: Put what was unpacked to its place.  Arguments: its path, and the path that it gets.  Files of a
#: folder that exists are replaced one by one: by a hard link, else as a copy.  A file that cannot
#: be replaced, such as a mount point, is written in place.
STORE = r"""
place() {
  if [ -d "$1" ] && ! [ -L "$1" ] && [ -d "$2" ]; then
    cp -alf -- "$1" "${2%/*}/" 2> /dev/null || cp -af -- "$1" "${2%/*}/"
  elif [ -d "$1" ] || [ -L "$1" ] || ! [ -e "$2" ]; then mv -f -- "$1" "$2"
  elif [ -d "$2" ]; then echo "$2 is a folder" >&2; return 1
  else mv -f -- "$1" "$2" 2> /dev/null || cat -- "$1" > "$2"; fi
}
if [ "$3" = contents ]; then
  cd -- "$1" || exit
  for name in * .[!.]* ..?*; do
    if [ -e "$name" ] || [ -L "$name" ]; then place "$PWD/$name" "$2/$name" || exit; fi
  done
else place "$1" "$2"; fi
"""


@dataclass(frozen=True, slots=True)
class Found:
    """A path on a node: its kind, and the path without links below the root directory."""

    kind: Kind
    path: str


@dataclass(frozen=True, slots=True)
class Far:
    """A path of a node or of a container; ``root`` is the container's root directory there."""

    node: Node
    name: str
    root: str
    path: str

    def __str__(self) -> str:
        return f"{self.name}:{self.path}"

    def look(self, *, follow: bool) -> Found:
        """Return what is at the path.  Raises LabError for a circle of links."""
        argv = ["sh", "-c", LOOK, "sh", self.root, self.path, "1" if follow else "0"]
        kind, _, path = self.node.run(argv).out.decode(errors="surrogateescape").partition("\n")
        if kind == "loop":
            raise LabError(f"{self}: too many symbolic links", hint=f"look at {path} there")
        return Found(kind, path)  # type: ignore[arg-type]  # the script prints no other word


@dataclass(frozen=True, slots=True)
class Options:
    """``archive`` keeps owners and all bits of modes, ``follow`` copies the target of a link."""

    archive: bool = False
    follow: bool = False


def split(text: str) -> tuple[str, str] | None:
    """Return NODE[/CONTAINER] and PATH of a text; None for a path of this machine.

    >>> split("node1/web:etc/hosts"), split("./a:b")
    (('node1/web', '/etc/hosts'), None)
    """
    found = FAR.fullmatch(text)
    if found is None:
        return None
    return found["where"], found["path"] if found["path"].startswith("/") else f"/{found['path']}"


def copy(
    source: str,
    target: str,
    place: Callable[[str], tuple[Node, str]],
    options: Options = Options(),
) -> None:
    """Copy one file or folder between this machine and a node or container.

    One of the two is ``NODE:PATH`` or ``NODE/CONTAINER:PATH``, the other a path of this machine, or
    ``-`` for a tar stream on standard input or output. ``place`` returns the node and the root
    directory on it for a NODE or NODE/CONTAINER. Raises UsageError for a path of this machine that
    does not fit, LabError for one of the lab, MachineError.
    """
    here, there = split(source), split(target)
    if here is None and there is None:
        raise UsageError(
            f"neither {source!r} nor {target!r} names a node",
            hint="write one of them as NODE:PATH or NODE/CONTAINER:PATH",
        )
    if here is not None and there is not None:
        raise UsageError(
            "both paths are in the lab",
            hint=f"testbed cp {source} - | testbed cp - {target}",
        )
    if here is not None:
        _Pull(_far(place, *here), options).copy(target)
    elif there is not None:
        _Push(_far(place, *there), options).copy(source)


def _far(place: Callable[[str], tuple[Node, str]], where: str, path: str) -> Far:
    node, root = place(where)
    return Far(node, where, root, path)


def place_in(lab: LiveLab, where: str) -> tuple[Node, str]:
    """Return the node of NODE or NODE/CONTAINER, and the root directory on it."""
    name, slash, container = where.partition("/")
    node = lab.node(name)
    return node, f"/proc/{lab.container(container, node=name).pid}/root" if slash else ""


def _is_contents(path: str) -> bool:
    """Tell whether a path names the contents of a folder, as ``folder/.`` does."""
    return path.endswith("/.") or path == "."


class _Command:
    """A command of a node in a thread, at the other end of a pipe."""

    def __init__(self, far: Far, argv: list[str], *, reads: bool) -> None:
        self._far = far
        self._argv = argv
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed by finish()
        self._status: int | None = None
        self._error: TestbedError | OSError | None = None
        source, sink = os.pipe2(os.O_CLOEXEC)
        self.ours, self._theirs = (sink, source) if reads else (source, sink)
        self._reads = reads
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        stdin, stdout = (self._theirs, None) if self._reads else (None, self._theirs)
        errors = self._errors.fileno()
        try:
            self._status = self._far.node.pipe(
                self._argv, stdin=stdin, stdout=stdout, stderr=errors
            )
        except (TestbedError, OSError) as error:
            self._error = error
        finally:
            os.close(self._theirs)

    def finish(self) -> None:
        """Wait until the command has ended; raise LabError if it has failed."""
        self._thread.join()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()
        self._errors.close()
        refuse_status(self._far, self._status, said, self._error, reads=self._reads)

    def abandon(self) -> None:
        """Wait a moment for the end of a command whose stream was closed."""
        self._thread.join(JOIN)


def refuse_status(
    far: Far, status: int | None, said: str, error: Exception | None = None, *, reads: bool = True
) -> None:
    """Raise the error of a command of a node, or LabError for its exit status.

    ``reads`` tells that the command reads the copy, otherwise tar(1) writes it.
    """
    if status == NO_READER and not reads:
        raise ReaderGone
    if error is not None or status is None:
        raise error or LabError(f"{far}: the copy has been interrupted")
    if status == NO_PROGRAM:
        raise LabError(
            f"{far.node.name} has no tar, which copies its files",
            hint="use an image with tar, or `testbed exec NODE cat FILE`",
        )
    if status and (reads or status != CHANGED):
        last = "\n".join(said.splitlines()[-SAID:])
        raise LabError(f"{far} cannot be copied: {last or f'exit status {status}'}")


class _Pull:
    """Copy from a node to this machine."""

    def __init__(self, far: Far, options: Options) -> None:
        self._far = far
        self._options = options

    def copy(self, target: str) -> None:
        path = self._far.path
        contents = _is_contents(path)
        follow = self._options.follow or contents or path.endswith("/")
        found = self._far.look(follow=follow)
        if found.kind in ("missing", "nowhere"):
            raise LabError(f"{self._far}: no such file or folder", hint="check the path there")
        if found.kind != "folder" and (contents or path.endswith("/")):
            raise LabError(f"{self._far} is not a folder", hint="remove the slash at its end")
        contents = contents or found.path == ""
        folder, name = posixpath.split(found.path)
        if target == STREAM:
            at = found.path if contents else folder
            self._stream([*self._tar(at), "--", "." if contents else name])
            return
        from testbed.labs.unpack import Unpacking

        with _local(target):
            if found.kind == "folder":
                into = _folder_for(target, name, contents=contents)
                argv = [*self._tar(found.path), "."]
                unpack = Unpacking(into, archive=self._options.archive)
            else:
                into = _file_for(target, name)
                argv = [*self._tar(folder), "--", name]
                unpack = Unpacking(
                    into.parent, archive=self._options.archive, names={name: into.name}
                )
            self._receive(argv, unpack.all)
            if found.kind != "folder" and unpack.devices:
                raise LabError(
                    f"{self._far} is a device, and none is created here",
                    hint=f"`testbed exec {self._far.name} cat {found.path}` reads it",
                )

    def _tar(self, folder: str) -> list[str]:
        """Return the command that packs names in a folder, which follow."""
        whole = () if folder else NO_FILES
        return ["tar", "-C", f"{self._far.root}{folder}/", *whole, "-cf", "-"]

    def _stream(self, argv: list[str]) -> None:
        sys.stdout.flush()
        out = sys.stdout.fileno()
        with tempfile.TemporaryFile() as errors:
            status = self._far.node.pipe(argv, stdout=out, stderr=errors.fileno())
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip()
            refuse_status(self._far, status, said, reads=False)

    def _receive(self, argv: list[str], unpack: Callable[[IO[bytes]], None]) -> None:
        command = _Command(self._far, argv, reads=False)
        try:
            with os.fdopen(command.ours, "rb", BUFFER) as stream:
                try:
                    unpack(stream)
                except tarfile.TarError as error:  # the command says why, if it has failed
                    command.finish()
                    raise LabError(f"{self._far}: the tar stream is damaged: {error}") from error
        except BaseException:
            command.abandon()
            raise
        command.finish()


def _folder_for(target: str, name: str, *, contents: bool) -> Path:
    """Return the folder of this machine for the contents of a copied folder."""
    path = Path(os.path.realpath(target))
    if path.is_dir():
        into = path if contents else path / name
        if into.exists() and not into.is_dir():
            raise UsageError(f"{into} exists and is no folder", hint="remove or rename it")
        return into
    if path.exists():
        raise UsageError(f"{target} is no folder", hint="a folder cannot replace a file")
    _require_parent(path, target)
    return path


def _file_for(target: str, name: str) -> Path:
    """Return the path of this machine for a copied file."""
    path = Path(os.path.realpath(target))
    if path.is_dir():
        into = path / name
        if into.is_dir() and not into.is_symlink():
            raise UsageError(f"{into} is a folder", hint="a file cannot replace a folder")
        return into
    if target.endswith("/"):
        raise UsageError(f"the folder {target} does not exist", hint="create it, or remove the /")
    _require_parent(path, target)
    return path


def _require_parent(path: Path, target: str) -> None:
    if not path.parent.is_dir():
        raise UsageError(f"the folder of {target} does not exist", hint=f"mkdir -p {path.parent}")


class _Push:
    """Copy from this machine to a node."""

    def __init__(self, far: Far, options: Options) -> None:
        self._far = far
        self._options = options

    def copy(self, source: str) -> None:
        found = self._far.look(follow=True)
        if source == STREAM:
            if found.kind != "folder":
                raise LabError(
                    f"{self._far} is not a folder", hint="a tar stream is unpacked into a folder"
                )
            self._store(found.path, lambda argv: self._unpack_ours(argv, sys.stdin.fileno()))
            return
        with _local(source):
            path = self._source(source)
        contents = _is_contents(source)
        final = self._final(found, path, contents=contents)
        name = "." if contents else posixpath.basename(final)

        def pack(stream: IO[bytes]) -> None:
            with _local(source), tarfile.open(
                fileobj=stream, mode="w|", bufsize=BUFFER, format=tarfile.GNU_FORMAT,
                errors="surrogateescape",
            ) as tar:  # fmt: skip
                tar.add(path, arcname=name, filter=self._entry)

        self._store(final, lambda argv: self._send(argv, pack), name="" if contents else name)

    def _source(self, source: str) -> str:
        """Return the path of this machine to copy.  Raises UsageError."""
        path = os.path.realpath(source) if self._options.follow else source
        if not os.path.lexists(path):
            raise UsageError(f"{source}: no such file or folder", hint="check the path")
        if source.endswith("/") and not Path(path).is_dir():
            raise UsageError(f"{source} is not a folder", hint="remove the slash at its end")
        return os.path.realpath(path) if source.endswith("/") else path

    def _final(self, found: Found, path: str, *, contents: bool) -> str:
        """Return the path below the root directory that the copy gets.  Raises LabError."""
        folder = Path(path).is_dir() and not Path(path).is_symlink()
        if found.kind == "nowhere":
            raise LabError(
                f"the folder of {self._far} does not exist",
                hint=f"testbed exec {self._far.name} mkdir -p {posixpath.dirname(found.path)}",
            )
        if found.kind == "folder":
            name = posixpath.basename(os.path.abspath(path))  # noqa: PTH100  keeps a link
            return found.path if contents else f"{found.path}/{name}"
        if folder and found.kind != "missing":
            raise LabError(f"{self._far} is no folder", hint="a folder cannot replace a file")
        if not folder and self._far.path.endswith("/"):
            raise LabError(
                f"the folder {self._far} does not exist", hint="create it, or remove the slash"
            )
        return found.path

    def _entry(self, entry: tarfile.TarInfo) -> tarfile.TarInfo:
        if not self._options.archive:
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
        return entry

    def _store(self, final: str, send: Callable[[list[str]], None], *, name: str = "") -> None:
        """Unpack a stream beside its place, and then move it there.

        Without a ``name`` these are the contents of the folder ``final``.
        """
        node, place = self._far.node, f"{self._far.root}{final}" or "/"
        missing = not name and not node.run(["test", "-d", place], check=False).ok
        inside = place if not name and not missing else posixpath.dirname(place)
        stage = part_of(f"{inside}/.cp")
        try:
            send(["sh", "-c", UNPACK, "sh", stage])
            with signals.held() as held:  # it is short, and half of it would be half a copy
                if missing:
                    node.run(["mkdir", "--", place])
                words = [f"{stage}/{name}", place, ""] if name else [stage, place, "contents"]
                stored = node.run(["sh", "-c", STORE, "sh", *words], timeout=600, check=False)
            held.check()
            refuse_status(self._far, stored.status, stored.stderr.strip())
        finally:
            with signals.held(), contextlib.suppress(LabError):  # the node may have ended
                node.run(["rm", "-rf", "--", stage], check=False)

    def _unpack_ours(self, argv: list[str], source: int) -> None:
        with tempfile.TemporaryFile() as errors:
            status = self._far.node.pipe(argv, stdin=source, stderr=errors.fileno())
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip()
        refuse_status(self._far, status, said)

    def _send(self, argv: list[str], pack: Callable[[IO[bytes]], None]) -> None:
        command = _Command(self._far, argv, reads=True)
        try:
            with os.fdopen(command.ours, "wb", BUFFER) as stream:
                pack(stream)
        except BrokenPipeError:  # the command says why
            command.finish()
            raise LabError(f"{self._far}: the copy has been interrupted") from None
        except BaseException:
            command.abandon()
            raise
        command.finish()


@contextlib.contextmanager
def _local(path: str) -> Iterator[None]:
    """Name a path of this machine in errors of the kernel."""
    try:
        yield
    except (BrokenPipeError, TestbedError):
        raise
    except OSError as error:
        where = os.fsdecode(error.filename) if error.filename else path
        raise exhausted(error) or MachineError(
            f"{where}: {error.strerror or error}", hint="check its permissions and free space"
        ) from error

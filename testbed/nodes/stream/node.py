"""A node that is reached by one stream of bytes, with the agent at its other end.

The stream may be an ssh channel, the pipes of ``docker exec -i``, or the exec channel of a Pod.
Many commands share it (:mod:`testbed.nodes.stream.wire`).
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, ClassVar

from testbed.errors import LabError, TimeoutExpired
from testbed.nodes.base import Node
from testbed.nodes.request import part_of, request
from testbed.nodes.stream import provide as provided
from testbed.nodes.stream.wire import Channel, Command, Link, Stream

if TYPE_CHECKING:
    from testbed.nodes.stream.forward import Forward

FILES = 60.0  # timeout in seconds for a file of a few megabytes
PATIENCE = 60.0  # timeout in seconds for the agent to start
PROGRAMS = "/usr/local/bin"  # before those of Debian's packages on PATH
#: Arguments: pairs of a file and the path of a link to it.
LINK = """\
while [ $# -gt 0 ]; do
  mkdir -p "$(dirname "$2")"
  ln -sfn "$1" "$2"
  shift 2
done
"""

_nodes: weakref.WeakSet[StreamNode] = weakref.WeakSet()


def _forked() -> None:
    for node in list(_nodes):
        node.forked()


# A forked child lacks the threads that serve a connection and would wait for them forever.
os.register_at_fork(after_in_child=_forked)


class StreamNode(Node):
    """Commands and files of a node whose agent is at the other end of a stream.

    A subclass implements :meth:`link`, which opens the stream when it is first needed, the
    terminal (:meth:`attach_terminal`) and the services.

    ``folder`` is the folder of this machine for the node's forwarded sockets.
    ``programs`` returns the programs of the node, by the sha256 of their content.
    ``env`` is the environment of the node's commands, in addition to that of all nodes.
    """

    #: True if copies pass other machines on their way, so that they are compressed.
    is_far: ClassVar[bool] = False

    def __init__(
        self,
        name: str,
        digest: str,
        *,
        folder: Path,
        programs: Callable[[], Mapping[str, str]] = dict,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.digest = digest
        self._env = dict(env or {})
        self._folder = folder
        self._programs = programs
        self._forwards: dict[str, Forward] = {}
        self._provided: dict[str, str] = {}
        self._providing = threading.Lock()
        _nodes.add(self)

    # -- the stream -----------------------------------------------------------

    @abstractmethod
    def link(self) -> Link:
        """Return the link to the node's agent; open a new one if there is none.

        Raises NoSuchNode when the node has ended, LabError when it cannot be reached.
        """

    @abstractmethod
    def attach_terminal(self, argv: Sequence[str], inside: int) -> int:
        """Run a command on a new terminal, joined to the caller's; return its exit status.

        ``inside`` is as in :meth:`attach`.
        """

    def close(self) -> None:
        """Close what is open on this machine; the next request opens it again."""
        with self._providing:
            forwards, self._forwards = self._forwards, {}
        for forward in forwards.values():
            forward.close()

    def forked(self) -> None:
        """In a forked child: leave the parent's connections alone."""
        self._forwards = {}
        self._providing = threading.Lock()  # a thread of the parent may hold the old one

    # -- commands -------------------------------------------------------------

    def spawn(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Command:
        merged = {**self._env, **self.env, **(env or {})}
        return Command(self.name, self.link, argv, input=input, env=merged)

    def attach(self, argv: Sequence[str], *, tty: bool, inside: int = 1) -> int:
        from testbed.nodes.stream import pipes

        if tty:
            return self.attach_terminal(argv, inside)
        files = [stream.fileno() for stream in (sys.stdin, sys.stdout, sys.stderr)]
        return pipes.with_files(self.name, self.link(), argv, self._env, files)

    def pipe(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> int:
        from testbed.nodes.stream import pipes

        merged = {**self._env, **(env or {})}
        return pipes.with_files(self.name, self.link(), argv, merged, (stdin, stdout, stderr))

    # -- files --------------------------------------------------------------

    def put(self, data: bytes, path: str, *, mode: int = 0o644) -> None:
        part = part_of(path)
        fields = request(self.name, [part, str(mode), path])
        stream = Stream(self.link())
        stream.send("w", fields)
        try:
            stream.finish(data)
            self._refuse(stream.wait(FILES + len(data) / 1e6), path)
        except TimeoutError:
            raise TimeoutExpired(f"{self.name}: timeout while writing {path}") from None
        finally:
            stream.forget()

    def get(self, path: str) -> bytes:
        stream = Stream(self.link())
        stream.send("g", request(self.name, [path])[:-1])
        try:
            self._refuse(stream.wait(None), path)
        finally:
            stream.forget()
        return bytes(stream.out)

    def _refuse(self, number: int, path: str) -> None:
        if number:
            raise OSError(number, os.strerror(number), f"{self.name}:{path}")

    def provide(self, path: Path) -> str:
        path = path.resolve()
        with self._providing:
            known = self._provided.get(str(path))
            if known and provided.is_system(path):
                return known
            place = self._own(path) or provided.place(path)
            if place != known:
                self._copy(path, place)
                self._provided[str(path)] = place
            return place

    def _own(self, path: Path) -> str | None:
        """Return the path itself if it is a system path that the machine has too, else None."""
        if provided.is_system(path) and self.run(["test", "-e", str(path)], check=False).ok:
            return str(path)
        return None

    def _copy(self, path: Path, place: str) -> None:
        if self.run(["test", "-e", place], check=False).ok:
            return
        # Unpacked next to its place and then renamed: another process may do the same.
        folder = place.rpartition("/")[0]
        part = part_of(folder)
        unpack = 'mkdir -p "$1" && tar -C "$1" "$3" - && { mv -T "$1" "$2" || rm -rf "$1"; }'
        far, own = self.is_far, self._programs()
        data = provided.compressed(path) if far else provided.packed(path, own)
        argv = ["sh", "-c", unpack, "sh", part, folder, "-xzf" if far else "-xf"]
        self.run(argv, input=data, timeout=FILES + len(data) / 1e6)

    def offer(self, programs: Mapping[str, Path]) -> None:
        words = []
        own = self._programs()
        for name, path in programs.items():
            there = own.get(provided.digest(path.resolve())) if own else None
            if there is None or Path(there).name != name:
                words += [there or self.provide(path), str(Path(PROGRAMS, name))]
        if words:
            self.run(["sh", "-ec", LINK, "sh", *words])

    def keep(self, data: bytes, path: str) -> None:
        place = self.kept(path)
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            place.unlink()
        # The folder may be one of a cell (/proc/PID/root), which a resolved path would not name.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(place, flags, 0o600), "wb") as file:
            file.write(data)

    def kept(self, path: str) -> Path:
        return self._folder / f"{self.name}.{PurePosixPath(path).name}"

    def socket(self, path: str) -> str:
        from testbed.nodes.stream.forward import Forward

        with self._providing:
            if path not in self._forwards:
                self._forwards[path] = Forward(self._folder, self.name, path, self.link)
            return self._forwards[path].path


class ChannelNode(StreamNode):
    """A node to which each process opens one channel, at its first request.

    A subclass implements :meth:`channel` and :meth:`lost_error`, and :meth:`alive` if it can tell.
    """

    def __init__(
        self,
        name: str,
        digest: str,
        *,
        folder: Path,
        programs: Callable[[], Mapping[str, str]] = dict,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._link: Link | None = None
        self._linking = threading.Lock()
        super().__init__(name, digest, folder=folder, programs=programs, env=env)

    @abstractmethod
    def channel(self) -> Channel:
        """Start the agent on the node, and return the stream that it is at the other end of.

        Raises LabError if that fails.
        """

    @abstractmethod
    def lost_error(self) -> LabError:
        """Return the error for a request when the stream has ended, or the node."""

    def alive(self) -> bool:
        """Tell whether the node still runs; called often.  A stream may outlive its node."""
        return True

    def link(self) -> Link:
        with self._linking:
            if self._link is None or self._link.closed or not self.alive():
                if not self.alive():
                    raise self.lost_error()
                channel = self.channel()
                link = Link(channel, self.alive, self.lost_error)
                try:
                    greeted = link.greet(PATIENCE)
                except BaseException:
                    link.close()
                    raise
                if not greeted:
                    said = str(getattr(channel, "errors", "")).strip()  # a program's, not ssh's
                    link.close()
                    if not self.alive():
                        raise self.lost_error()
                    raise LabError(
                        f"the agent of {self.name} does not start{said and f': {said}'}",
                        hint="the agent is built for this machine's processor architecture only",
                    )
                # Alive now, so also when it was entered: no other process had its pid.
                if not self.alive():
                    link.close()
                    raise self.lost_error()
                self._link = link
            return self._link

    def close(self) -> None:
        super().close()
        with self._linking:
            link, self._link = self._link, None
        if link is not None:
            link.close()

    def forked(self) -> None:
        self._link = None
        self._linking = threading.Lock()  # a thread of the parent may hold the old one
        super().forked()

"""Run commands on this machine; all of ``testbed`` uses this module.

Commands on a node go through :class:`testbed.nodes.base.Node` instead.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn, Self

from testbed.errors import CommandError, Interrupted, MachineError, TimeoutExpired

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = ["Completed", "Duplex", "no_more_processes", "run", "which"]

WHERE = "this machine"
CANCEL_POLL = 0.1  # seconds between two checks for a cancel
TICK = 1.0  # seconds between two calls of on_tick
ADMIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # an ordinary user's PATH often lacks these


@dataclass(frozen=True, slots=True)
class Completed:
    """The result of a command on this machine.

    >>> Completed(("true",), 0, b"", b"").stdout
    ''
    """

    argv: tuple[str, ...]
    status: int  #: exit status, or -N when signal N killed it
    out: bytes
    err: bytes

    @property
    def stdout(self) -> str:
        return self.out.decode(errors="replace")

    @property
    def stderr(self) -> str:
        return self.err.decode(errors="replace")


def which(name: str) -> str | None:
    """Return the path of a program, searched on PATH and then in the administrator's folders."""
    found = shutil.which(name)
    return found or shutil.which(name, path=os.pathsep.join(ADMIN))


def run(
    argv: Sequence[str | Path],
    *,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    input: bytes | None = None,
    timeout: float | None = None,
    check: bool = True,
    on_line: Callable[[str], None] | None = None,
    on_tick: Callable[[float], None] | None = None,
    cancel: threading.Event | None = None,
) -> Completed:
    """Run a command on this machine, wait until it exits, and return its result.

    The command gets a new session, and so a new process group.  ``env`` is the
    whole environment (None: ours), ``timeout`` is in seconds.  ``on_line`` is called
    with each line of standard output and standard error, without its newline;
    ``on_tick`` about once a second with the seconds that have passed.

    The whole process group is killed at the timeout, when ``cancel`` is set, and
    when an exception is raised meanwhile (KeyboardInterrupt, or one from a
    callback).  A child that outlives the command keeps running; it is not waited
    for.

    Raises CommandError if ``check`` is true and the status is not 0, and always if
    the program cannot be started; MachineError if no more processes can be
    created; TimeoutExpired; Interrupted when cancelled.
    """
    args = tuple(str(arg) for arg in argv)
    try:
        # Ctrl-C of the terminal must reach only us: we end the command and clean up.
        child = subprocess.Popen(
            args,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
    except OSError as error:
        _not_started(args, error)
    try:
        with _Pump(child, memoryview(input or b""), on_line) as pump:
            _until_ended(pump, args, timeout, on_tick, cancel)
            out, err = pump.result()
        status = child.wait()
    except BaseException:
        _kill(child)
        raise
    if check and status:
        raise CommandError(
            args,
            where=WHERE,
            status=status,
            stdout=out.decode(errors="replace"),
            stderr=err.decode(errors="replace"),
        )
    return Completed(args, status, out, err)


def in_network(path: str, argv: Sequence[str]) -> list[str]:
    """Return the command that runs a program of this machine in a network namespace.

    ``path`` is the namespace's, such as "/proc/7/ns/net". The program gets an empty /run:
    iptables would create its lock in this machine's.
    """
    script = 'mount -n -t tmpfs testbed /run && exec "$@"'
    return ["nsenter", f"--net={path}", "unshare", "--mount", "sh", "-c", script, "sh", *argv]


class OnSocket:
    """The stream of a running program, at our end of a pair of sockets.

    It can be the channel of a :class:`testbed.nodes.stream.wire.Link`.
    """

    _ours: socket.socket

    def send(self, data: bytes) -> int:
        return self._ours.send(data)

    def recv(self, nbytes: int) -> bytes:
        try:
            return self._ours.recv(nbytes)
        except ConnectionResetError:  # the program ended before it had read everything
            return b""

    def settimeout(self, timeout: float | None) -> None:
        self._ours.settimeout(timeout)


class Duplex(OnSocket):
    """A running program whose standard input and output are one stream of bytes.

    For example ``docker exec -i NODE AGENT``.  Raises CommandError if the program cannot be
    started.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv = tuple(argv)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the program runs
        self._ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._child = subprocess.Popen(
                    self.argv,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=self._errors,
                    start_new_session=True,
                )
            except OSError as error:
                self._ours.close()
                self._errors.close()
                _not_started(self.argv, error)

    @property
    def errors(self) -> str:
        """The standard error of the program so far; empty after :meth:`close`."""
        if self._errors.closed:
            return ""
        return os.pread(self._errors.fileno(), 1 << 16, 0).decode(errors="replace")

    def status(self, timeout: float) -> int | None:
        """Return the exit status, once the program has ended; None after ``timeout`` seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._child.wait(timeout)
        return None

    def close(self) -> None:
        """Close the stream and end the program."""
        with contextlib.suppress(OSError):  # the program has closed it
            self._ours.shutdown(socket.SHUT_RDWR)  # wakes a thread that reads
        _kill(self._child)
        self._ours.close()
        self._errors.close()


def no_more_processes() -> MachineError:
    """Return the error for EAGAIN of fork(2) or pthread_create(3)."""
    return MachineError(
        "cannot start another process or thread",
        hint=(
            "raise the limit (pids.max of `cat /proc/self/cgroup`, ulimit -u), or end "
            "other processes"
        ),
    )


def _not_started(args: tuple[str, ...], error: OSError) -> NoReturn:
    if error.errno == errno.EAGAIN:
        raise no_more_processes() from error
    missing = isinstance(error, FileNotFoundError)
    raise CommandError(
        args,
        where=WHERE,
        status=127 if missing else 126,  # a shell's statuses for "not found" and "cannot execute"
        stderr=f"{error.filename or args[0]}: {error.strerror}",
        hint="`testbed doctor` shows what is missing" if missing else None,
    ) from error


def _kill(child: subprocess.Popen[bytes]) -> None:
    # Not reaped yet, so no other process group can have its number.
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _until_ended(
    pump: _Pump,
    args: tuple[str, ...],
    timeout: float | None,
    on_tick: Callable[[float], None] | None,
    cancel: threading.Event | None,
) -> None:
    begin = time.monotonic()
    next_tick = TICK
    while True:
        gone = time.monotonic() - begin
        waits = [] if timeout is None else [timeout - gone]
        if on_tick:
            waits.append(next_tick - gone)
        if cancel:
            waits.append(CANCEL_POLL)
        if pump.step(max(0.0, min(waits)) if waits else None):
            return
        gone = time.monotonic() - begin
        if cancel and cancel.is_set():
            raise Interrupted(signal.SIGINT)
        if on_tick and gone >= next_tick:
            on_tick(gone)
            next_tick = gone + TICK
        if timeout is not None and gone >= timeout:
            command = " ".join(args)
            raise TimeoutExpired(f"on {WHERE}: {command}: killed after {timeout:g} s")


@dataclass
class _Pump:
    """Writes a child's input and collects its output until it has ended."""

    child: subprocess.Popen[bytes]
    feed: memoryview  # remaining input: a view, since copying it each time takes minutes for 100 MB
    on_line: Callable[[str], None] | None
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    ended: int = -1  # a pidfd: readable once the child is dead
    taken: dict[int, bytearray] = field(default_factory=dict)
    told: dict[int, int] = field(default_factory=dict)  # bytes of each output given to on_line

    def __enter__(self) -> Self:
        assert self.child.stdout
        assert self.child.stderr
        self.ended = os.pidfd_open(self.child.pid)
        self.selector.register(self.ended, selectors.EVENT_READ)
        for pipe in (self.child.stdout, self.child.stderr):
            os.set_blocking(pipe.fileno(), False)
            self.taken[pipe.fileno()] = bytearray()
            self.told[pipe.fileno()] = 0
            self.selector.register(pipe.fileno(), selectors.EVENT_READ)
        if self.child.stdin:
            os.set_blocking(self.child.stdin.fileno(), False)
            self.selector.register(self.child.stdin.fileno(), selectors.EVENT_WRITE)
        return self

    def __exit__(self, *_: object) -> None:
        self.selector.close()
        os.close(self.ended)
        for pipe in (self.child.stdin, self.child.stdout, self.child.stderr):
            if pipe:
                pipe.close()

    def result(self) -> tuple[bytes, bytes]:
        out, err = self.taken.values()
        return bytes(out), bytes(err)

    def step(self, wait: float | None) -> bool:
        """Transfer data for up to ``wait`` seconds; return True if the child has ended."""
        ready = {key.fd for key, _ in self.selector.select(wait)}
        dead = self.ended in ready
        for fd in self.taken:
            if (fd in ready or dead) and fd in self.selector.get_map():
                self._take(fd, all_of_it=dead)
        if self.child.stdin and self.child.stdin.fileno() in ready:
            self._give(self.child.stdin.fileno())
        return dead

    def _take(self, fd: int, *, all_of_it: bool) -> None:
        last = all_of_it
        while True:
            try:
                data = os.read(fd, 1 << 16)
            except BlockingIOError:
                break
            self.taken[fd] += data
            if not data:
                self.selector.unregister(fd)
                last = True
                break
            if not all_of_it:
                break
        self._tell(fd, last=last)

    def _tell(self, fd: int, *, last: bool) -> None:
        if not self.on_line:
            return
        text = self.taken[fd]
        end = len(text) if last else text.rfind(b"\n") + 1
        if end > self.told[fd]:
            fresh = text[self.told[fd] : end].decode(errors="replace")
            self.told[fd] = end
            for line in fresh.splitlines():
                self.on_line(line)

    def _give(self, fd: int) -> None:
        assert self.child.stdin
        try:
            self.feed = self.feed[os.write(fd, self.feed[: 1 << 16]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it does not read its input: its exit status decides
            self.feed = self.feed[:0]
        if not self.feed:
            self.selector.unregister(fd)
            self.child.stdin.close()
            self.child.stdin = None

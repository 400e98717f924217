"""The errors that ``testbed`` raises, as one class hierarchy.

::

    TestbedError                 exit code
    ├── UsageError                   2   the command or the topology is wrong
    │   ├── TopologyError            2   one topology file, all its problems at once
    │   └── CatalogueError           2   an entry of the catalogue of claims is wrong
    ├── MachineError                 3   this machine lacks something
    │   ├── ArtifactError            3   a binary or an image is unavailable
    │   └── OutputError              3   standard output cannot be written
    ├── LabError                     4   the lab did not start, or does not exist
    │   ├── CommandError             4   a command failed (argv, exit status, output)
    │   ├── PathError                4   a node cannot reach an address (address, port, reason)
    │   ├── ServiceError             4   a daemon died or never became ready (its last log lines)
    │   │   └── ServiceNotReady      4   it runs, but was not ready in time
    │   ├── ContainerError           4   a container ended or is not ready (its last log lines)
    │   ├── TimeoutExpired           4   something did not happen in time
    │   │   └── Unsettled                4   a system has not settled, so a check has no verdict
    │   ├── NoAnswer                 4   a daemon does not answer
    │   ├── StepsFailed              4   one or more steps of ``up`` failed (all of them)
    │   ├── CannotRun              126   a command cannot be run as asked for
    │   ├── LabBusy                  4   another testbed process holds the lab
    │   └── NotFound                 4   nothing of that name exists or runs (name, known names)
    │       ├── NoSuchLab                4   no lab of that name is up
    │       ├── NoSuchNode               4   no node of that name runs
    │       │   └── NodeNotRunning           4   the node has ended or is stopped
    │       ├── NoSuchContainer          4   no container of that name runs
    │       └── NoSuchService            4   the node has no service of that name
    ├── ChecksFailed                 1   a claim's verdict was not the expected one
    ├── NothingTested                5   no test was run, like pytest's status 5
    │   └── NothingSelected          5   the selection contains no check
    └── Interrupted                130   Ctrl-C (130) or SIGTERM (143)
        └── ReaderGone             141   the reader of standard output has gone

Each error's message names what failed, the expected and the actual state;
:attr:`TestbedError.hint` tells what to do.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "ArtifactError",
    "CannotRun",
    "CatalogueError",
    "ChecksFailed",
    "CommandError",
    "ContainerError",
    "Interrupted",
    "LabBusy",
    "LabError",
    "MachineError",
    "NoAnswer",
    "NoSuchContainer",
    "NoSuchLab",
    "NoSuchNode",
    "NoSuchService",
    "NodeNotRunning",
    "NotFound",
    "NothingSelected",
    "NothingTested",
    "OutputError",
    "PathError",
    "Problem",
    "ReaderGone",
    "ServiceError",
    "ServiceNotReady",
    "StepsFailed",
    "TestbedError",
    "TimeoutExpired",
    "TopologyError",
    "Unsettled",
    "UsageError",
    "output_error",
]


class TestbedError(Exception):
    """The base class of all errors; ``hint`` is one sentence on what to do next."""

    __test__ = False  # pytest would otherwise take the name for a test class
    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.hint}" if self.hint else self.message


class UsageError(TestbedError, ValueError):
    """The command line, or a value given by the user, is wrong.

    ``where`` is the place of the value, such as an option or a key of a file; the message
    begins with it. ``what`` is the message without the place.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", hint: str | None = None) -> None:
        super().__init__(f"{where}: {what}" if where else what, hint=hint)
        self.where = where
        self.what = what


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One problem of a file: a topology, or a file of a catalogue.

    ``line`` and ``column`` count from 1; 0 means the whole file. ``file`` is the file if it is
    not the one that was asked for, but one that it includes. ``at`` is the path of the value, with
    dots, in data without lines.
    """

    line: int
    column: int
    wanted: str
    seen: str
    hint: str
    file: str = ""
    at: str = ""

    def format(self, source: str) -> str:
        place = self.file or source
        if self.line:
            place += f":{self.line}:{self.column}" if self.column else f":{self.line}"
        return f"{place}: {self.words}; {self.hint}"

    @property
    def words(self) -> str:
        """The wanted value, its path if there is no line, and the seen value."""
        at = f" at {self.at}" if self.at else ""
        return f"wanted {self.wanted}{at}, saw {self.seen}"


class TopologyError(UsageError):
    """A topology file with one or more problems, in the order of its lines.

    Those of included files come last.
    """

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(sorted(problems, key=lambda one: (one.file, one)))
        super().__init__("\n".join(p.format(source) for p in self.problems))


class CatalogueError(UsageError):
    """A catalogue with one or more problems, each with its file, in the order of the files."""

    def __init__(self, problems: Sequence[tuple[str, Problem]]) -> None:
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(problem.format(file) for file, problem in self.problems))


class MachineError(TestbedError, OSError):
    """A required feature, program or resource is not available on this machine.

    ``missing`` are the names of missing programs or features.
    """

    exit_code = 3

    def __init__(
        self, message: str, *, missing: Iterable[str] = (), hint: str | None = None
    ) -> None:
        # OSError.__init__ is skipped on purpose: it would read the message as an errno.
        TestbedError.__init__(self, message, hint=hint)
        self.missing = tuple(missing)

    __str__ = TestbedError.__str__


class ArtifactError(MachineError):
    """A binary or an image could not be found, built, downloaded or trusted."""


class OutputError(MachineError):
    """Standard output cannot be written; ``error`` is the OSError of the write."""

    def __init__(self, error: OSError) -> None:
        self.error = error
        super().__init__(
            f"cannot write to standard output: {error.strerror}",
            hint="free space where it goes, or send it to another place",
        )


def output_error(error: OSError) -> OutputError | ReaderGone:
    """Convert an OSError of writing standard output to our error."""
    return ReaderGone() if isinstance(error, BrokenPipeError) else OutputError(error)


class LabError(TestbedError, RuntimeError):
    """The lab did not start, or is not in the required state."""

    exit_code = 4


class CommandError(LabError):
    """A command ended with an unexpected exit status."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        where: str,
        status: int,
        stdout: str = "",
        stderr: str = "",
        hint: str | None = None,
    ) -> None:
        self.argv = tuple(argv)
        self.where = where
        self.status = status
        self.stdout = stdout
        self.stderr = stderr
        how = f"exit status {status}" if status >= 0 else f"signal {-status}"
        lines = [f"on {where}: {shlex.join(argv)}: {how}"]
        lines += [f"    {line}" for line in (stderr.strip() or stdout.strip()).splitlines()[-12:]]
        super().__init__("\n".join(lines), hint=hint)


class ServiceError(LabError):
    """A daemon died or did not become ready; contains the end of its log."""

    def __init__(
        self, service: str, node: str, what: str, log: str, *, hint: str | None = None
    ) -> None:
        self.service = service
        self.node = node
        self.what = what
        self.log = log
        tail = [f"    {line}" for line in log.strip().splitlines()[-12:]]
        super().__init__("\n".join([f"{service} on {node} {what}", *tail]), hint=hint)


class ServiceNotReady(ServiceError, TimeoutError):
    """A daemon runs but did not become ready in time; it may still become ready."""


class PathError(LabError):
    """A node can't reach an address that it needs; ``reason`` is the cause.

    ``what`` names the target and its node, ``address`` and ``port`` are its address.
    """

    def __init__(self, node: str, what: str, address: str, port: int, reason: str) -> None:
        self.node = node
        self.what = what
        self.address = address
        self.port = port
        self.reason = reason
        super().__init__(
            f"{node} can't reach {what} at {address}:{port}: {reason}",
            hint="keep the lab with --keep, then look at `testbed status`, and at the routes: "
            f"testbed exec {node} -- ip route get {address}",
        )


class ContainerError(LabError):
    """A container did not start, ended unexpectedly or is not ready.

    The error contains the end of its log.  ``status`` is its exit status, None if it runs.
    """

    def __init__(
        self,
        container: str,
        node: str,
        what: str,
        log: str = "",
        *,
        status: int | None = None,
        hint: str | None = None,
    ) -> None:
        self.container = container
        self.node = node
        self.what = what
        self.status = status
        self.log = log
        tail = [f"    {line}" for line in log.strip().splitlines()[-12:]]
        lines = [f"the container {container} on {node} {what}", *tail]
        super().__init__("\n".join(lines), hint=hint)


class TimeoutExpired(LabError, TimeoutError):
    """An expected event did not happen before the timeout."""


class Unsettled(TimeoutExpired):
    """The lab had not settled when a check stopped waiting for it.

    Examples are sessions, leases, endpoints, a controller's rules and neighbour entries.
    """


class NoAnswer(LabError):
    """A daemon does not answer: it has ended, it hangs, or its node is gone.

    ``reason`` is the cause, empty if unknown.
    """

    def __init__(
        self,
        message: str,
        *,
        daemon: str = "",
        node: str = "",
        reason: str = "",
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.daemon = daemon
        self.node = node
        self.reason = reason


class StepsFailed(LabError):
    """``up`` failed; contains all failed steps, not only the first."""

    def __init__(
        self, failures: Sequence[tuple[str, Exception]], *, hint: str | None = None
    ) -> None:
        self.failures = tuple(failures)
        lines = []
        once: dict[int, tuple[list[str], Exception]] = {}  # of several steps that share an error
        for step, error in self.failures:
            once.setdefault(id(error), ([], error))[0].append(step)
        for steps, error in once.values():
            step = ", ".join(steps)
            first, *rest = str(error).splitlines() or [type(error).__name__]
            lines += [f"{step}: {first}", *(f"  {line}" for line in rest)]
        super().__init__("\n".join(lines), hint=hint)
        for kind in (MachineError, UsageError):
            if self.failures and all(isinstance(error, kind) for _, error in self.failures):
                self.exit_code = kind.exit_code


class CannotRun(LabError):
    """A command cannot be run as it was asked for, such as in a missing folder."""

    exit_code = 126  # a shell's status for a command that cannot be run


class LabBusy(LabError):
    """Another ``testbed`` process is working on the same lab.

    ``holder`` is its command and process id, empty if unknown; ``waited`` is in seconds.
    """

    def __init__(self, lab: str, holder: str, waited: float) -> None:
        super().__init__(
            f"lab {lab} is in use by {holder or 'another testbed process'}",
            hint=f"retry when it has ended (waited {waited:g} s)",
        )
        self.lab = lab
        self.holder = holder
        self.waited = waited


class NotFound(LabError, LookupError):
    """Nothing of the given name exists or runs.

    ``name`` is the given name, ``known`` are the names that exist, where they are known.
    """

    def __init__(
        self,
        message: str,
        *,
        name: str = "",
        known: Iterable[str] = (),
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.name = name
        self.known = tuple(known)


class NoSuchLab(NotFound):
    """No lab of the given name is up."""


class NoSuchNode(NotFound):
    """No node of the given name runs."""


class NodeNotRunning(NoSuchNode):
    """The node has ended, or a fault has stopped it; ``output`` is the last that it wrote."""

    def __init__(
        self, message: str, *, name: str = "", output: str = "", hint: str | None = None
    ) -> None:
        lines = [message, *(f"    {line}" for line in output.splitlines())]
        super().__init__("\n".join(lines), name=name, hint=hint)
        self.output = output


class NoSuchContainer(NotFound):
    """No container of the given name runs."""


class NoSuchService(NotFound):
    """The node has no service of the given name."""


class ChecksFailed(TestbedError):
    """At least one claim has another verdict than the expected one."""

    exit_code = 1


class NothingTested(TestbedError):
    """No test was run, so the run has no result."""

    exit_code = 5


class NothingSelected(NothingTested):
    """The selection contains no check that can run."""


class Interrupted(TestbedError):
    """The user or the system has interrupted the process."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        self.exit_code = 128 + signum
        super().__init__(f"interrupted by signal {signum}")


class ReaderGone(Interrupted):
    """The reader of our standard output has closed it, as `head` does after its last line.

    The command ends without a message, with the exit status that SIGPIPE gives to other tools.
    """

    exit_code = 128 + signal.SIGPIPE

    def __init__(self) -> None:
        super().__init__(signal.SIGPIPE)

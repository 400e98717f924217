"""Every error that ``testbed`` raises on purpose, as one tree.

::

    TestbedError                 exit code
    ├── UsageError                   2   the command or the topology is wrong
    │   ├── TopologyError            2   one topology file, all its problems at once
    │   └── CatalogueError           2   an entry of the catalogue of claims is wrong
    ├── MachineError                 3   this machine lacks something
    │   ├── ArtifactError            3   a binary or an image could not be had
    │   └── OutputError              3   standard output cannot be written
    ├── LabError                     4   the lab did not come up, or is not there
    │   ├── CommandError             4   a command failed (argv, exit status, output)
    │   ├── PathError                4   a node has no way to what it needs (address, port, reason)
    │   ├── ServiceError             4   a daemon died or never became ready (its last log lines)
    │   │   └── ServiceNotReady      4   it runs, and was not ready in time
    │   ├── ContainerError           4   a container ended or is not ready (its last log lines)
    │   ├── TimeoutExpired           4   something did not happen in time
    │   │   └── Unsettled                4   a system has not come to rest, so no verdict is due
    │   ├── NoAnswer                 4   a daemon does not answer
    │   ├── StepsFailed              4   one or more steps of ``up`` failed (all of them)
    │   ├── LabBusy                  4   another testbed process holds the lab
    │   └── NoSuchLab                4   no lab, node, container or service of that name
    ├── ChecksFailed                 1   a claim's verdict was not the expected one
    ├── NothingTested                5   no test was run, as pytest's own status 5
    │   └── NothingSelected          5   no check is left by what was selected
    └── Interrupted                130   Ctrl-C (130) or SIGTERM (143)
        └── ReaderGone             141   nobody reads our standard output any more

Each error says what was wanted and what was seen in its message, and what to
do about it in :attr:`TestbedError.hint`.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "ArtifactError",
    "CatalogueError",
    "ChecksFailed",
    "CommandError",
    "ContainerError",
    "Interrupted",
    "LabBusy",
    "LabError",
    "MachineError",
    "NoAnswer",
    "NoSuchLab",
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
    """Base of all errors; ``hint`` is one sentence on what to do next."""

    __test__ = False  # pytest would otherwise take the name for a test class
    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.hint}" if self.hint else self.message


class UsageError(TestbedError, ValueError):
    """The command line, or a value given by the user, is wrong."""

    exit_code = 2


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong with a topology file.

    ``line`` and ``column`` count from 1; 0 means the file as a whole.
    """

    line: int
    column: int
    wanted: str
    seen: str
    hint: str

    def format(self, source: str) -> str:
        place = f"{source}:{self.line}:{self.column}" if self.line else source
        return f"{place}: wanted {self.wanted}, saw {self.seen}; {self.hint}"


class TopologyError(UsageError):
    """A topology file with one or more problems, in the order of its lines."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(p.format(source) for p in self.problems))


class CatalogueError(UsageError):
    """An entry of the catalogue is not as it should be; names file, line and claim."""


class MachineError(TestbedError, OSError):
    """Something that was asked for is not to be had on this machine that was asked of it."""

    exit_code = 3

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        # OSError.__init__ is skipped on purpose: it would read the message as an errno.
        TestbedError.__init__(self, message, hint=hint)

    __str__ = TestbedError.__str__


class ArtifactError(MachineError):
    """A binary or an image could not be found, built, downloaded or trusted."""


class OutputError(MachineError):
    """Standard output cannot be written; ``error`` is the kernel's own."""

    def __init__(self, error: OSError) -> None:
        self.error = error
        super().__init__(
            f"cannot write to standard output: {error.strerror}",
            hint="free space where it goes, or send it to another place",
        )


def output_error(error: OSError) -> OutputError | ReaderGone:
    """The error of ours for one in writing standard output."""
    return ReaderGone() if isinstance(error, BrokenPipeError) else OutputError(error)


class LabError(TestbedError, RuntimeError):
    """The lab did not come up, or is not in the state that was asked for."""

    exit_code = 4


class CommandError(LabError):
    """A command ended with a status that was not expected."""

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
    """A daemon died, or did not become ready; carries the end of its log."""

    def __init__(
        self, service: str, node: str, what: str, log: str, *, hint: str | None = None
    ) -> None:
        self.service = service
        self.node = node
        self.log = log
        tail = [f"    {line}" for line in log.strip().splitlines()[-12:]]
        super().__init__("\n".join([f"{service} on {node} {what}", *tail]), hint=hint)


class ServiceNotReady(ServiceError, TimeoutError):
    """A daemon runs, and did not become ready in time; to wait on is possible."""


class PathError(LabError):
    """A node can't reach something that it needs; ``reason`` says how it failed.

    ``what`` names it, with its node, ``address`` and ``port``.
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
    """A container did not start, ended unexpectedly or is not ready; carries the end of its log.

    ``status`` is its exit status, None for one that runs.
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
        self.status = status
        self.log = log
        tail = [f"    {line}" for line in log.strip().splitlines()[-12:]]
        lines = [f"the container {container} on {node} {what}", *tail]
        super().__init__("\n".join(lines), hint=hint)


class TimeoutExpired(LabError, TimeoutError):
    """Something that was waited for did not happen in time."""


class Unsettled(TimeoutExpired):
    """The lab had not settled when a check stopped waiting for it.

    Sessions, leases, endpoints, rules of a controller and neighbour entries are such.
    """


class NoAnswer(LabError):
    """A daemon does not answer: it has ended, it hangs, or its node is gone."""


class StepsFailed(LabError):
    """``up`` failed: every step that did, not only the first."""

    def __init__(
        self, failures: Sequence[tuple[str, Exception]], *, hint: str | None = None
    ) -> None:
        self.failures = tuple(failures)
        lines = []
        for step, error in self.failures:
            first, *rest = str(error).splitlines() or [type(error).__name__]
            lines += [f"{step}: {first}", *(f"  {line}" for line in rest)]
        super().__init__("\n".join(lines), hint=hint)
        worst = [e.exit_code for _, e in self.failures if isinstance(e, MachineError)]
        if worst and len(worst) == len(self.failures):
            self.exit_code = MachineError.exit_code


class LabBusy(LabError):
    """Another ``testbed`` process is working on the same lab."""


class NoSuchLab(LabError, LookupError):
    """No lab, node, container or service has the name that was asked for."""


class ChecksFailed(TestbedError):
    """At least one claim ended in a verdict other than the expected one."""

    exit_code = 1


class NothingTested(TestbedError):
    """No test was run, so the run says nothing about the lab."""

    exit_code = 5


class NothingSelected(NothingTested):
    """The selection contains nothing that can be decided."""


class Interrupted(TestbedError):
    """The user, or the system, asked the process to stop."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        self.exit_code = 128 + signum
        super().__init__(f"interrupted by signal {signum}")


class ReaderGone(Interrupted):
    """The reader of our standard output has closed it, as `head` does when it has enough.

    The command ends without a word, with the exit status that SIGPIPE gives to other tools.
    """

    exit_code = 128 + signal.SIGPIPE

    def __init__(self) -> None:
        super().__init__(signal.SIGPIPE)

"""A client of QEMU's monitor, for stopping, saving and waking a machine (QEMU, qmp-spec)."""

from __future__ import annotations

import json
import socket
from typing import Any, Self

from testbed.errors import LabError, TimeoutExpired
from testbed.polling import until

POLL = 0.02
JOB = "testbed"  #: name of the only job at a time


class Monitor:
    """One connection to the monitor.  QEMU accepts one at a time."""

    def __init__(self, path: str, *, timeout: float = 30.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        self._lines = self._socket.makefile("rb")
        try:
            self._socket.connect(path)
            self._read()  # the greeting
            self.do("qmp_capabilities")
        except OSError as error:
            self.close()
            raise LabError(f"QEMU's monitor does not answer: {error}") from error
        except LabError:
            self.close()
            raise

    def do(self, command: str, **arguments: Any) -> Any:
        """Run a command and return its answer.  Raises LabError if QEMU refuses it."""
        request = {"execute": command, "arguments": arguments}
        try:
            self._socket.sendall(json.dumps(request).encode())
            while True:
                answer = self._read()
                if "error" in answer:
                    said = answer["error"]
                    words = said.get("desc", said) if isinstance(said, dict) else said
                    raise LabError(f"QEMU: {command}: {words}")
                if "return" in answer:
                    return answer["return"]
        except OSError as error:
            raise LabError(f"QEMU: {command}: {error}") from error

    def wait_state(self, wanted: str, seconds: float) -> None:
        """Wait until the machine is in a state, named as by ``query-status``."""
        if not until(lambda: self._status("query-status") == wanted, seconds, pause=POLL):
            state = self._status("query-status")
            raise TimeoutExpired(f"QEMU is {state} after {seconds:g} s, expected {wanted}")

    def save(self, path: str, seconds: float) -> None:
        """Stop the machine and write its memory and devices to a file, at ``path`` of its cell."""
        self.do("stop")
        # By default QEMU limits the speed, for migration over networks.
        self.do("migrate-set-parameters", **{"max-bandwidth": 1 << 34})
        self.do("migrate", uri=f"exec:cat > {path}")

        def saved() -> bool:
            state = self._status("query-migrate")
            if state in ("failed", "cancelled"):
                raise LabError(f"QEMU could not save the machine: {state}")
            return state == "completed"

        if not until(saved, seconds, pause=POLL):
            raise TimeoutExpired(f"QEMU has not saved the machine within {seconds:g} s")

    def disks(self) -> list[str]:
        """Return the names of the nodes of QEMU's block layer that hold the machine's disks."""
        inserted = (one.get("inserted") for one in self.do("query-block"))
        return [str(one["node-name"]) for one in inserted if one]

    def job(self, command: str, seconds: float, **arguments: Any) -> None:
        """Run a command that is a job of QEMU, and wait until it has ended.

        Raises LabError with the job's reason if it fails, TimeoutExpired.
        """
        if any((one["id"], one["status"]) == (JOB, "concluded") for one in self.do("query-jobs")):
            self.do("job-dismiss", id=JOB)  # that of a testbed that was killed
        self.do(command, **{"job-id": JOB, **arguments})
        ended: dict[str, Any] = {}

        def concluded() -> bool:
            ended.update(next(one for one in self.do("query-jobs") if one["id"] == JOB))
            return bool(ended["status"] == "concluded")

        if not until(concluded, seconds, pause=POLL):
            raise TimeoutExpired(f"QEMU: {command}: still running after {seconds:g} s")
        self.do("job-dismiss", id=JOB)
        if "error" in ended:
            raise LabError(f"QEMU: {command}: {ended['error']}")

    def _status(self, command: str) -> str | None:
        answer = self.do(command)
        # QEMU reports no status of a migration that has not begun.
        state = answer.get("status") if isinstance(answer, dict) else None
        return None if state is None else str(state)

    def _read(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line.endswith(b"\n"):
            raise LabError("QEMU's monitor closed the connection")
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise LabError(f"QEMU's monitor sent an invalid answer: {line[:80]!r}")
        return answer

    def close(self) -> None:
        self._lines.close()  # a socket stays open as long as a file of it
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

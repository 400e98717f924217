"""Commands of the tool, called in children of this process, which has loaded all of it already."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed import cli

SECONDS = 300.0  # for hanging only: no command may wait for a daemon for ever


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str


def call(folder: Path, *argv: str, env: Mapping[str, str] | None = None, given: str = "") -> Said:
    """The output of a command, which goes through ``folder``.

    ``env`` is added to the environment, ``given`` is the command's input.
    """
    files = [folder / "out", folder / "err"]
    (folder / "in").write_text(given)
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            os.environ.update(env or {})
            os.dup2(os.open(folder / "in", os.O_RDONLY), 0)
            for fd, path in enumerate(files, 1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
            sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
            status = cli.run(list(argv))
        except BaseException:  # noqa: BLE001  (a child that forked must not go on as pytest)
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    deadline = time.monotonic() + SECONDS
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            pytest.fail(f"{argv} has not ended within {SECONDS:g} s")
        time.sleep(0.01)
    return Said(os.waitstatus_to_exitcode(ended[1]), *(path.read_text() for path in files))


def call_each(folder: Path, lines: Iterable[str]) -> dict[str, Said]:
    """The output of each of some command lines; none may end in another way than commands end."""
    said = {}
    for line in lines:
        found = said[line] = call(folder, *line.split())
        assert found.status in {0, 1, 2, 3, 4}, (line, found)
        assert "Traceback" not in found.err, (line, found.err)
        assert "Traceback" not in found.out, (line, found.out)
        if found.status > 1 and not found.err.startswith("Usage"):
            assert found.err.startswith("testbed: "), (line, found.err)
            assert "\n  -> " in found.err, (line, found.err)
    return said

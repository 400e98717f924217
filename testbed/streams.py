"""Standard input, output and error of the command line, whatever the caller has made of them.

A descriptor that the caller closed is opened on /dev/null, as sshd and sudo do: otherwise the
next file that is opened would get its number, and our output.  An error in writing standard
output names it; standard error is for people, and a command goes on without it.
"""

from __future__ import annotations

import io
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO

from testbed.errors import output_error

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STANDARD = (0, 1, 2)


def prepare() -> None:
    """Make the three streams usable.  Must come before any file is opened."""
    for number in STANDARD:
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is taken, and the lower ones are in use by now.
            taken = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
            os.set_inheritable(taken, True)  # noqa: FBT003  the function's only argument
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  it stays open
    sys.stdout = _text(_Output(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Errors(2, "w", closefd=False), sys.stderr)


def _text(raw: io.FileIO, before: TextIO | None) -> TextIO:
    """A text stream like the one before.  What its encoding lacks is escaped, not an error."""
    encoding = before.encoding if before is not None else "utf-8"
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=raw.isatty() or raw.fileno() == 2,
    )


class _Output(io.FileIO):
    """Standard output.  Raises ReaderGone, OutputError; after that it takes all and keeps none."""

    _broken = False

    def write(self, data: ReadableBuffer, /) -> int:
        if self._broken:
            return memoryview(data).nbytes
        try:
            # None: a terminal or pipe that somebody has set to be non-blocking is full.
            while (count := super().write(data)) is None:
                select.select([], [self], [])
        except OSError as error:
            self._broken = True
            raise output_error(error) from error
        return count


class _Errors(io.FileIO):
    """Standard error.  What cannot be written is dropped."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            while (count := super().write(data)) is None:
                select.select([], [self], [])
        except OSError:
            return memoryview(data).nbytes
        return count

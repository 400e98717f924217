"""Standard input, output and error of the command line, made safe to use.

A descriptor that the caller closed is opened on /dev/null, as sshd and sudo do: otherwise the
next opened file would get its number, and so our output.  An error in writing standard output
is reported; standard error is for people, and a command continues without it.
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
    """Make the three streams usable.  Must be called before any file is opened."""
    for number in STANDARD:
        try:
            os.fstat(number)
        except OSError:
            # open(2) uses the lowest free number, and all lower ones are in use by now.
            taken = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
            os.set_inheritable(taken, True)  # noqa: FBT003  the function's only argument
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  it stays open
    sys.stdout = _text(_Output(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Errors(2, "w", closefd=False), sys.stderr)


def _text(raw: io.FileIO, before: TextIO | None) -> TextIO:
    """Return a text stream like ``before``.  Characters outside its encoding are escaped."""
    encoding = before.encoding if before is not None else "utf-8"
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=raw.isatty() or raw.fileno() == 2,
    )


class _Output(io.FileIO):
    """Standard output.  Raises ReaderGone or OutputError once, and then discards all output."""

    _broken = False

    def write(self, data: ReadableBuffer, /) -> int:
        if self._broken:
            return memoryview(data).nbytes
        try:
            # None: a terminal or pipe in non-blocking mode is full.
            while (count := super().write(data)) is None:
                select.select([], [self], [])
        except OSError as error:
            self._broken = True
            raise output_error(error) from error
        return count


class _Errors(io.FileIO):
    """Standard error.  Output that cannot be written is discarded."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            while (count := super().write(data)) is None:
                select.select([], [self], [])
        except OSError:
            return memoryview(data).nbytes
        return count

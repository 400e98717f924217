"""Where the outcome of a run goes: lines on the terminal, files in several forms."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Iterable

    from testbed.claims.model import Finding
    from testbed.lab.lab import Settings
    from testbed.suites.model import Check, Run

F = TypeVar("F", bound=Callable[..., Any])
STDOUT = "-"
OPTIONS = (
    click.option(
        "--junit", type=click.Path(path_type=Path), metavar="FILE", help="Write JUnit XML."
    ),
    click.option(
        "--json", "json_file", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE",
        help="Write all findings with their evidence; - is standard output.",
    ),
    click.option(
        "--html", type=click.Path(path_type=Path), metavar="FILE",
        help="Write the report, as one page.",
    ),
    click.option(
        "--lang", type=click.Choice(["en", "zh"]), default="en", help="The report's language."
    ),
)  # fmt: skip


def files(function: F) -> F:
    """The options of a command that name the files it is to write."""
    for option in reversed(OPTIONS):
        function = option(function)
    return function


class Output:
    """How much is shown, and where the data go."""

    def __init__(
        self,
        *,
        json_file: Path | None,
        junit: Path | None,
        html: Path | None,
        lang: str,
        evidence: bool,
        quiet: bool,
    ) -> None:
        self.json_file, self.junit, self.html = json_file, junit, html
        self.lang = lang
        self.evidence = evidence
        self.quiet = quiet
        self.silent = quiet or str(json_file) == STDOUT

    def refuse(self) -> None:
        """Raise UsageError now, and not after a minute's run, for a file that can't be written."""
        for option, path in (("json", self.json_file), ("junit", self.junit), ("html", self.html)):
            if path is None or str(path) == STDOUT:
                continue
            if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
                what = "is a folder" if path.is_dir() else "its folder cannot be written"
                raise click.UsageError(f"--{option} {path}: {what}")

    def say(self, text: str) -> None:
        if not self.silent:
            click.echo(text)

    def told(self, found: Finding | Check) -> None:
        from testbed.report import terminal

        self.say(terminal.line(found))
        if self.evidence:
            for piece in getattr(found, "evidence", ()):
                self.say(click.style(f"      {terminal.piece(piece)}", dim=True))

    def show(self, lines: Iterable[str]) -> None:
        if str(self.json_file) != STDOUT:
            for line in lines:
                click.echo(line)

    def write(self, settings: Settings, run: Run, *, keep: bool = True) -> None:
        """Write the files that were asked for; ``keep`` the run as the last one of ``verify``."""
        from testbed.report import data, last

        value = data.to_dict(run)
        if self.json_file is not None:
            self._file(self.json_file, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
        if self.junit is not None:
            from testbed.report.junit import to_xml

            self._file(self.junit, to_xml(run).decode())
        if self.html is not None:
            from testbed.report.html import render

            self._file(self.html, render(value, lang=self.lang))
            self.say(f"  the report is in {self.html}")
        if keep:
            last.keep(settings.state.path, value)

    @staticmethod
    def _file(path: Path, text: str) -> None:
        with click.open_file(str(path), "w", encoding="utf-8", atomic=str(path) != STDOUT) as file:
            file.write(text)

"""Output of a run: lines on the terminal, and files in several formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from testbed import files as places
from testbed.errors import (
    Interrupted,
    MachineError,
    OutputError,
    ReaderGone,
    TestbedError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from testbed.claims.catalogue import Catalogue
    from testbed.claims.model import Finding
    from testbed.labs.lab import Settings
    from testbed.suites.model import Check, Run

F = TypeVar("F", bound=Callable[..., Any])


def complete_languages(_ctx: object, _param: object, incomplete: str) -> list[str]:
    from testbed.report.words import LANGUAGES

    return [name for name in LANGUAGES if name.startswith(incomplete)]


OPTIONS = (
    click.option(
        "--junit", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE",
        help="Write JUnit XML; - is standard output.",
    ),
    click.option(
        "--json", "json_file", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE",
        help="Write all findings with their evidence as JSON; - is standard output.",
    ),
    click.option(
        "--html", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE",
        help="Write the report as one HTML page; - is standard output.",
    ),
    click.option(
        "--markdown", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE",
        help="Append a summary in Markdown, such as to $GITHUB_STEP_SUMMARY; - is standard output.",
    ),
    click.option(
        "--lang", default="en", metavar="LANGUAGE", shell_complete=complete_languages,
        help="The report's language: en, zh, or one that the claims are translated to.",
    ),
)  # fmt: skip


def files(function: F) -> F:
    """Add the options for a command's output files."""
    for option in reversed(OPTIONS):
        function = option(function)
    return function


class Output:
    """The level of detail on the terminal, and the output files.

    A failure to write one file does not prevent the other output.
    """

    def __init__(
        self,
        *,
        json_file: Path | None,
        junit: Path | None,
        html: Path | None,
        markdown: Path | None,
        lang: str,
        evidence: bool,
        quiet: bool,
        catalogue: Catalogue | None = None,
    ) -> None:
        from testbed.claims.catalogue import Catalogue

        self._catalogue = catalogue or Catalogue()
        self._files = {"json": json_file, "junit": junit, "html": html, "markdown": markdown}
        self.lang = lang
        self.evidence = evidence
        self.quiet = quiet
        # Only the data go to standard output, so that a program can read them.
        self._on_stdout = [
            option for option, path in self._wanted().items() if places.leads_to_stdout(path)
        ]
        self.silent = quiet or bool(self._on_stdout)
        self._failures: list[Exception] = []
        self._lost: OutputError | ReaderGone | None = None

    def _wanted(self) -> dict[str, Path]:
        return {option: path for option, path in self._files.items() if path is not None}

    def refuse(self) -> None:
        """Check before the run that all files can be written, in the language of the option.

        Raises UsageError for an invalid path or language, MachineError for a missing permission.
        """
        from testbed.report.words import words

        words(self.lang, self._catalogue.languages)
        if len(self._on_stdout) > 1:
            options = " and ".join(f"--{option}" for option in self._on_stdout)
            raise UsageError(
                f"{options} both name standard output", hint="name another file for one of them"
            )
        for option, path in self._wanted().items():
            try:
                places.check(path)
            except TestbedError as error:
                error.message = f"--{option}: {error.message}"
                raise

    def say(self, text: str) -> None:
        if not self.silent:
            self._echo(text)

    def told(self, found: Finding | Check) -> None:
        from testbed.report import terminal

        self.say(terminal.line(found, self._catalogue))
        if self.evidence:
            for piece in getattr(found, "evidence", ()):
                self.say(click.style(f"      {terminal.piece(piece)}", dim=True))

    def show(self, lines: Iterable[str]) -> None:
        if not self._on_stdout:
            for line in lines:
                self._echo(line)

    def _echo(self, text: str) -> None:
        try:
            click.echo(text)
        except (OutputError, ReaderGone) as error:
            if not self._wanted():
                raise
            self._lost = error  # the run continues, to write the files

    def write(self, settings: Settings, run: Run, *, keep: bool = True) -> None:
        """Write the requested files.

        With ``keep``, store the run as the last ``verify``. Errors are stored for :meth:`finish`.
        """
        from testbed.report import data, last

        value = data.to_dict(run)
        forms: dict[str, Callable[[], str | bytes]] = {
            "json": lambda: json.dumps(value, indent=1, ensure_ascii=False) + "\n",
            "junit": lambda: _junit(run),
            "html": lambda: _html(value, self.lang),
            "markdown": lambda: _markdown(value),
        }
        for option, path in self._wanted().items():
            try:
                put = places.append if option == "markdown" else places.write
                put(path, forms[option]())
            except (OutputError, ReaderGone) as error:
                self._lost = error
            except Interrupted:
                raise
            except Exception as error:  # noqa: BLE001  finish() raises it, even a bug
                self._failures.append(error)
            else:
                if option == "html":
                    self.say(f"  report written to {path}")
        if keep:
            try:
                last.keep(settings.state.path, value)
            except (MachineError, UsageError) as error:  # only --rerun-failed needs it
                _complain(error)

    def finish(self, run: Run, status: int) -> int:
        """Report files that could not be written; return the exit status.

        It is ``status`` if everything was written or the run was interrupted. Raises OutputError,
        ReaderGone, and any unexpected error while a file was created.
        """
        for error in self._failures:
            if not isinstance(error, TestbedError):
                raise error
            _complain(error)
        if self._lost is not None:
            raise self._lost
        return MachineError.exit_code if self._failures and run.signum is None else status


def _junit(run: Run) -> bytes:
    from testbed.report.junit import to_xml

    return to_xml(run)


def _html(value: dict[str, Any], lang: str) -> str:
    from testbed.report.html import render

    return render(value, lang=lang)


def _markdown(value: dict[str, Any]) -> str:
    from testbed.report.markdown import render

    return render(value)


def _complain(error: TestbedError) -> None:
    from testbed.cli import complain

    complain(error)

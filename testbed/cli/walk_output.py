"""Forms of a walk: options of ``testbed walk`` for its output, files and comparison."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from testbed import files
from testbed.cli import common
from testbed.cli.output import complete_languages
from testbed.errors import UsageError

if TYPE_CHECKING:
    from testbed.walk.compare import Difference
    from testbed.walk.model import Walk

F = TypeVar("F", bound=Callable[..., Any])

OTHERWISE = 1  # exit status: the packet was lost, or took another path than expected
#: Forms by the ending of a file's name.
ENDINGS = {
    ".json": "json", ".mmd": "mermaid", ".svg": "svg", ".html": "html", ".pcapng": "pcapng",
}  # fmt: skip
WIDTH = 100  # columns, where there is no terminal
FILE = click.Path(path_type=Path, allow_dash=True)
SAVED = click.Path(path_type=Path, dir_okay=False)

OPTIONS = (
    click.option("--json", "form", flag_value="json", help="Print JSON, as --expect reads it."),
    click.option("--mermaid", "form", flag_value="mermaid", help="Print a Mermaid diagram."),
    click.option("--svg", "form", flag_value="svg", help="Print an SVG picture."),
    click.option("--html", "form", flag_value="html", help="Print an HTML page."),
    click.option(
        "--pcapng", type=FILE, metavar="FILE",
        help="Write a capture file: an interface for each place, the reasons as comments.",
    ),
    click.option(
        "-o", "--output", "outputs", type=FILE, multiple=True, metavar="FILE",
        help="Write to this file, too. .json, .mmd, .svg, .html and .pcapng choose the form. "
        "Repeatable.",
    ),
    click.option(
        "--expect", type=SAVED, metavar="FILE",
        help="Compare the path with that of a saved walk; exit with 1 if it differs.",
    ),
    click.option(
        "--from", "saved", type=SAVED, metavar="FILE",
        help="Show a saved walk; send nothing.",
    ),
    click.option(
        "--compare", type=SAVED, nargs=2, metavar="OLD NEW",
        help="Show the difference of two saved walks; exit with 1 if they differ.",
    ),
    click.option(
        "--lang", default="en", metavar="LANGUAGE", shell_complete=complete_languages,
        help="The language of the HTML page: en or zh.",
    ),
)  # fmt: skip


def options(function: F) -> F:
    """Add the options for the output of a walk."""
    for option in reversed(OPTIONS):
        function = option(function)
    return function


class WalkOutput:
    """The forms in which a walk is shown and written; made before anything is sent.

    Raises UsageError for a file whose form is unknown or that cannot be written, for a saved
    walk that cannot be read, and for an unknown language.
    """

    def __init__(
        self,
        *,
        form: str | None,
        pcapng: Path | None,
        outputs: tuple[Path, ...],
        expect: Path | None,
        lang: str,
    ) -> None:
        from testbed.report.words import words

        words(lang)
        self._form, self._lang, self._expect = form, lang, expect
        self._files = [(_form_of(path), path) for path in outputs]
        self._files += [("pcapng", pcapng)] if pcapng else []
        on_stdout = [path for _, path in self._files if files.leads_to_stdout(path)]
        if len(on_stdout) + bool(form) > 1:
            raise UsageError(
                "two forms go to standard output", hint="name another file for one of them"
            )
        self._is_silent = bool(on_stdout)
        for _, path in self._files:
            files.check(path)
        self._expected = load_saved(expect) if expect else None

    def show(self, walk: Walk) -> int:
        """Show and write a walk; return the exit status.

        Without an expectation it is 1 for a lost packet, otherwise 1 for another path.
        """
        from testbed.walk.compare import compare

        found = compare(self._expected, walk) if self._expected else None
        for form, path in self._files:
            files.write(path, _rendered(walk, form, self._lang, found))
        if self._form:
            click.echo(_rendered(walk, self._form, self._lang, found), nl=False)
        elif not self._is_silent:
            self._tree(walk, found)
        return OTHERWISE if (not walk.arrived if found is None else found) else 0

    def _tree(self, walk: Walk, found: Difference | None) -> None:
        from testbed.walk.render import tree

        width = _width()
        for line in tree.lines(walk, width=width):
            click.echo(line)
        if found is not None:
            click.echo()
            _show_difference(found, f"the path of {self._expect}", width)


def compare_saved(old: Path, new: Path, form: str | None) -> int:
    """Show the difference of two saved walks; return the exit status."""
    if form not in (None, "json"):
        raise UsageError(f"a difference has no --{form}", hint="--json prints it as data")
    from testbed.walk.compare import compare

    found = compare(load_saved(old), load_saved(new))
    if form:
        common.print_json(found.to_dict())
    else:
        _show_difference(found, f"the path of {old}", _width())
    return OTHERWISE if found else 0


def load_saved(path: Path) -> Walk:
    """Read a saved walk.  Raises UsageError with the file and the place in it."""
    from testbed.walk.saved import load

    return load(path)


def _show_difference(found: Difference, than: str, width: int) -> None:
    from testbed.walk.render import tree

    if found:
        for line in tree.difference(found, width=width):
            click.echo(line)
        click.echo(click.style(f"✗ differs from {than}", fg="red", bold=True))
    else:
        click.echo(click.style(f"✓ the same as {than}", fg="green", bold=True))


def _width() -> int:
    return shutil.get_terminal_size((WIDTH, 24)).columns


def _form_of(path: Path) -> str:
    form = ENDINGS.get(path.suffix.lower())
    if form is None:
        raise UsageError(
            f"{path.name} has none of the endings {', '.join(ENDINGS)}",
            where="--output",
            hint="the ending of the name chooses the form",
        )
    return form


def _rendered(walk: Walk, form: str, lang: str, found: Difference | None) -> str | bytes:
    """Return a walk in a form."""
    if form == "json":
        more = {} if found is None else {"difference": found.to_dict()}
        return json.dumps({**walk.to_dict(), **more}, indent=1, ensure_ascii=False) + "\n"
    if form == "mermaid":
        from testbed.walk.render.mermaid import diagram

        return diagram(walk)
    if form == "pcapng":
        from testbed.walk.render.pcapng import write

        out = io.BytesIO()
        write(walk, out)
        return out.getvalue()
    from testbed.report import walk_page, walks

    return walks.svg(walk) if form == "svg" else walk_page.page(walk, lang=lang, difference=found)

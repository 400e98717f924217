"""``testbed verify``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from testbed.cli import common
from testbed.errors import LabError

if TYPE_CHECKING:
    from testbed.claims.model import Finding
    from testbed.suites.runner import Check, Results


@click.command("verify")
@click.argument("lab", required=False, shell_complete=common.complete_labs)
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("-k", "expression", default="", metavar="EXPRESSION", help="As pytest's -k.")
@click.option("--claim", "claims", multiple=True, metavar="ID", help="Only this claim; repeatable.")
@click.option(
    "--document", "documents", multiple=True, metavar="NNN", help="Only this document; repeatable."
)
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="Write JUnit XML.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE",
    help="Write all findings with their evidence; - is standard output.",
)  # fmt: skip
@click.option("-v", "--evidence", is_flag=True, help="Show the evidence of every claim.")
@click.option("-q", "--quiet", is_flag=True, help="Show only what is not as expected.")
def command(
    lab: str | None,
    paths: tuple[Path, ...],
    expression: str,
    claims: tuple[str, ...],
    documents: tuple[str, ...],
    junit: Path | None,
    json_file: Path | None,
    evidence: bool,  # noqa: FBT001  (click's way)
    quiet: bool,  # noqa: FBT001
) -> int:
    """Put the claims to the test on a lab that is up.

    Runs every check that the lab can decide, or with PATHS test files of your
    own (see docs/suites.md).  Exit status 1 when a claim's verdict is not the
    expected one, or a test fails.
    """
    common.need_root("`testbed verify`")
    from testbed.lab.live import LiveLab

    one = common.lab_meant(common.make_settings(), lab)
    context = one.context()
    absent = [name for name in context.topology.nodes if name not in context.nodes]
    if absent:
        raise LabError(
            f"lab {one.name} is not whole: {', '.join(absent)} not running",
            hint=f"`testbed up {one.name}` mends it",
        )
    from testbed.report import data, terminal
    from testbed.suites.runner import Selection, run

    to_stdout = json_file is not None and str(json_file) == "-"
    silent = quiet or to_stdout

    def told(found: Finding | Check) -> None:
        if silent:
            return
        click.echo(terminal.line(found))
        if evidence:
            for piece in getattr(found, "evidence", ()):
                click.echo(click.style(f"      {piece.what}", dim=True))

    live = LiveLab(context)
    began = time.monotonic()
    try:
        selection = Selection(expression, claims, documents, paths)
        results = run(live, selection, told=told, junit=junit)
    finally:
        live.close()
    seconds = time.monotonic() - began
    if json_file is not None:
        versions = one.record().versions
        found = data.to_dict(results, lab=one.name, seconds=seconds, versions=versions)
        _write_json(json_file, found)
    if not to_stdout:
        _show(results, one.name, seconds, quiet=quiet)
    if results.interrupted:
        return 130
    return 0 if terminal.is_good(results) else 1


def _show(results: Results, lab: str, seconds: float, *, quiet: bool) -> None:
    from testbed.report import terminal

    for text in terminal.failures(results):
        click.echo(text)
    if not quiet:
        for text in terminal.table(results):
            click.echo(text)
    click.echo(terminal.closing(results, lab, seconds))


def _write_json(path: Path, value: object) -> None:
    with click.open_file(str(path), "w", encoding="utf-8", atomic=str(path) != "-") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.write("\n")

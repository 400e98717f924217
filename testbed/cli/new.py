"""``testbed new``."""

from __future__ import annotations

from pathlib import Path

import click

from testbed.cli import common

HELP = """Write a small lab with a test, to begin a lab of your own.

DIR is a folder, which is created: lab.yaml has the topology, and the folder tests its
tests. Existing files are not changed.

With --bug, it is the lab of a public bug report: a topology, a test of the reported
behaviour and one of its fix, and a page with the link. The lab runs, and the tests fail
until they are complete. DIR has the name of the report by default, such as moby-45610.

\b
  testbed new office
  testbed up office/lab.yaml
  testbed verify office/lab.yaml office/tests
  testbed new --bug https://github.com/moby/moby/issues/45610
"""


@click.command("new", help=HELP)
@click.argument(
    "folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path, file_okay=False)
)
@click.option(
    "--bug", metavar="LINK|TITLE",
    help="Begin the lab of a bug report: its link, OWNER/REPOSITORY#NUMBER, or a title.",
)  # fmt: skip
@common.json_option
def command(folder: Path | None, bug: str | None, as_json: bool) -> None:
    """See HELP."""
    from testbed.claims.catalogue import shown
    from testbed.suites.skeleton import create

    written = create(folder, bug)
    if as_json:
        common.print_json({"files": [str(path) for path in written]})
        return
    for path in written:
        click.echo(shown(path))
    lab, tests = (shown(path) for path in (written[0], written[1].parent))
    told = f"  next: testbed up {lab} · testbed verify {lab} {tests}"
    click.echo(click.style(told, dim=True))

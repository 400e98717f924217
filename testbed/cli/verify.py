"""``testbed verify``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from testbed.cli import common
from testbed.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from testbed.claims.model import Finding
    from testbed.lab.lab import Settings
    from testbed.suites.runner import Check, Results, Selection


@click.command("verify")
@click.argument("lab", required=False, shell_complete=common.complete_labs)
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--all", "everything", is_flag=True, help="Bring up every lab that is needed, too.")
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
@click.option(
    "--check-machine", is_flag=True, help="With --all: fail if the machine is not as it was."
)
def command(
    lab: str | None,
    paths: tuple[Path, ...],
    expression: str,
    claims: tuple[str, ...],
    documents: tuple[str, ...],
    junit: Path | None,
    json_file: Path | None,
    everything: bool,
    evidence: bool,
    quiet: bool,
    check_machine: bool,
) -> int:
    """Put the claims to the test on a lab that is up, or with --all on every lab.

    Runs every check that the lab can decide, or with PATHS test files of your
    own (see docs/suites.md).  With --all each shipped topology is brought up
    under a name of its own and taken down again.  Exit status 1 when a claim's
    verdict is not the expected one, or a test fails.
    """
    common.need_root("`testbed verify`")
    from testbed.suites.runner import Selection

    if everything and (lab or junit):
        raise click.UsageError("--all goes with neither a lab's name nor --junit")
    settings = common.make_settings()
    selection = Selection(expression, claims, documents, paths)
    output = _Output(
        json_file=json_file,
        evidence=evidence,
        quiet=quiet,
        silent=quiet or str(json_file) == "-",
    )
    if everything:
        return _all(settings, selection, output, check_machine=check_machine)
    return _one(settings, lab, selection, output, junit)


class _Output:
    """How much is shown, and where the data go."""

    def __init__(
        self, *, json_file: Path | None, evidence: bool, quiet: bool, silent: bool
    ) -> None:
        self.json_file = json_file
        self.evidence = evidence
        self.quiet = quiet
        self.silent = silent

    def say(self, text: str) -> None:
        if not self.silent:
            click.echo(text)

    def told(self, found: Finding | Check) -> None:
        from testbed.report import terminal

        self.say(terminal.line(found))
        if self.evidence:
            for piece in getattr(found, "evidence", ()):
                self.say(click.style(f"      {piece.what}", dim=True))

    def show(self, lines: Iterable[str]) -> None:
        if str(self.json_file) != "-":
            for line in lines:
                click.echo(line)

    def write(self, value: Any) -> None:
        if self.json_file is None:
            return
        to_file = str(self.json_file) != "-"
        with click.open_file(str(self.json_file), "w", encoding="utf-8", atomic=to_file) as file:
            json.dump(value, file, indent=1, ensure_ascii=False)
            file.write("\n")


def _one(
    settings: Settings, name: str | None, selection: Selection, output: _Output, junit: Path | None
) -> int:
    from testbed.lab.live import LiveLab
    from testbed.report import data, terminal
    from testbed.suites.runner import run

    lab = common.lab_meant(settings, name)
    context = lab.context()
    absent = [name for name in context.topology.nodes if name not in context.nodes]
    if absent:
        raise LabError(
            f"lab {lab.name} is not whole: {', '.join(absent)} not running",
            hint=f"`testbed up {lab.name}` mends it",
        )
    live = LiveLab(context)
    began = time.monotonic()
    try:
        results = run(live, selection, told=output.told, junit=junit)
    finally:
        live.close()
    seconds = time.monotonic() - began
    versions = lab.record().versions
    output.write(data.to_dict(results, lab=lab.name, seconds=seconds, versions=versions))
    output.show(terminal.failures(results))
    if not output.quiet:
        output.show(terminal.table(results))
    output.show([terminal.closing(results, lab.name, seconds)])
    return _status([results])


def _all(settings: Settings, selection: Selection, output: _Output, *, check_machine: bool) -> int:
    from testbed import leaks
    from testbed.report import data, terminal
    from testbed.suites.everything import Watching, run_everything

    ours = settings.state.path  # labs of other folders may come and go meanwhile
    before = leaks.snapshot(ours) if check_machine else None
    watching = Watching(
        lab=lambda name: output.say(click.style(f"\n{name}", bold=True)),
        up=lambda _, seconds: output.say(f"  up in {seconds:.2f} s"),
        found=output.told,
        down=lambda _, seconds: output.say(f"  gone in {seconds:.2f} s"),
    )
    began = time.monotonic()
    runs = run_everything(settings, selection, watching)
    seconds = time.monotonic() - began
    output.write(
        [
            data.to_dict(r.results, lab=r.topology, seconds=r.seconds, versions=r.versions)
            for r in runs
        ]
    )
    for one in runs:
        output.show(terminal.failures(one.results))
    if not output.quiet:
        output.show(terminal.overview(runs))
    output.show([terminal.closing_all(runs, seconds)])
    left = leaks.left(before, below=ours) if before else []
    if before:
        output.show(terminal.machine(left))
    return _status([r.results for r in runs]) or (1 if left else 0)


def _status(all_results: list[Results]) -> int:
    from testbed.report import terminal

    for results in all_results:
        if results.signum is not None:
            return 128 + results.signum
    return 0 if all(terminal.is_good(results) for results in all_results) else 1

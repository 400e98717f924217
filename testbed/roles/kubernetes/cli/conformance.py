"""``testbed conformance``."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import click

from testbed.cli import common
from testbed.cli.output import Output, files
from testbed.conformance.ginkgo import FOCUS
from testbed.requirement import need_root

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.suites.model import LabRun


@click.command("conformance")
@common.set_option
@click.argument("lab_name", metavar="[LAB]", required=False, shell_complete=common.complete_labs)
@click.option(
    "--focus", default=FOCUS, show_default=True, metavar="REGEXP",
    help="Run only tests whose full name matches, as upstream's --ginkgo.focus.",
)  # fmt: skip
@click.option("--skip", default="", metavar="REGEXP", help="Skip tests whose full name matches.")
@click.option(
    "--procs", type=click.IntRange(1, 64), metavar="N",
    help="Number of parallel tests; default: two per CPU, at most 8.",
)  # fmt: skip
@click.option(
    "--timeout", type=click.IntRange(1), default=3600, show_default=True, metavar="SECONDS",
    help="End the run after this time and report the results so far.",
)  # fmt: skip
@files
@click.option("-q", "--quiet", is_flag=True, help="Show only failed tests.")
def command(
    lab_name: str | None,
    focus: str,
    skip: str,
    procs: int | None,
    timeout: int,
    junit: Path | None,
    json_file: Path | None,
    html: Path | None,
    markdown: Path | None,
    lang: str,
    quiet: bool,
) -> int:
    """Run upstream's end-to-end tests on a lab's cluster.

    Kubernetes' own test suite runs on the node of the control plane. By default it runs the
    network tests that are part of conformance. The first run compiles the suite from its Go
    module and builds its images, which takes minutes. Ctrl-C ends the run: tests clean up after
    themselves, and leftovers are removed. Exit status 1 if a test fails.
    """
    need_root("`testbed conformance`")
    from testbed.conformance import run as running
    from testbed.conformance.ginkgo import Asked
    from testbed.labs.live import LiveLab
    from testbed.report import terminal
    from testbed.roles.kubernetes import client
    from testbed.suites.model import LabRun, Run, Selection

    output = Output(
        json_file=json_file, junit=junit, html=html, markdown=markdown, lang=lang,
        evidence=False, quiet=quiet,
    )  # fmt: skip
    output.refuse()
    settings = common.make_settings()
    lab = common.lab_meant(settings, lab_name)
    context = common.whole(lab)
    client.control_plane(context)  # refuses a lab without a cluster

    def say(words: str) -> None:
        if not quiet:
            click.echo(f"  {words}", err=True)

    running.prepare(context, say)
    asked = Asked(focus, skip, procs or running.processes(), timeout)
    live = LiveLab(context)
    began = time.monotonic()
    part = LabRun(lab.name, context.topology, versions=lab.record().versions)
    try:
        part.look(live)
        part.results = running.run(context, asked, told=output.told, say=say)
    finally:
        live.close()
    part.seconds = time.monotonic() - began
    selection = Selection(tests=tuple(check.name for check in part.results.checks))
    whole = Run(selection, [part], seconds=part.seconds, signum=part.results.signum)
    output.write(settings, whole, keep=False)  # `verify --rerun-failed` cannot run these tests
    output.show(terminal.failures(part, whole.catalogue))
    output.show([_closing(part, good=whole.status == 0)])
    return output.finish(whole, whole.status)


def _closing(part: LabRun, *, good: bool) -> str:
    from testbed.conformance.run import WHOLE

    tests = [check for check in part.results.checks if check.name != WHOLE]
    counts = Counter(check.outcome for check in tests)
    words = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed"))
    if counts["skipped"]:
        words += f", {counts['skipped']} skipped"
    if part.results.interrupted:
        words += "; interrupted"
    return click.style(
        f"\n{len(tests)} of upstream's tests on {part.name}: {words} ({part.seconds:.1f} s)",
        fg="green" if good else "red",
        bold=True,
    )

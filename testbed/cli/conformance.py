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
@click.argument("lab_name", metavar="[LAB]", required=False, shell_complete=common.complete_labs)
@click.option(
    "--focus", default=FOCUS, show_default=True, metavar="REGEXP",
    help="Only tests whose whole name fits, as upstream's --ginkgo.focus.",
)  # fmt: skip
@click.option("--skip", default="", metavar="REGEXP", help="No tests whose whole name fits.")
@click.option(
    "--procs", type=click.IntRange(1, 64), metavar="N",
    help="Tests that run at once; by default two for each CPU, 8 at most.",
)  # fmt: skip
@click.option(
    "--timeout", type=click.IntRange(1), default=3600, show_default=True, metavar="SECONDS",
    help="End the run after that time; what there is by then is told.",
)  # fmt: skip
@files
@click.option("-q", "--quiet", is_flag=True, help="Show only what has failed.")
def command(
    lab_name: str | None,
    focus: str,
    skip: str,
    procs: int | None,
    timeout: int,
    junit: Path | None,
    json_file: Path | None,
    html: Path | None,
    lang: str,
    quiet: bool,
) -> int:
    """Run upstream's end-to-end tests on a lab's cluster.

    Kubernetes' own suite, built from its Go module as the cluster's programs are, runs on the
    node of the control plane; by default the tests of the network that make for
    conformance.  The first time it is compiled, which takes minutes, and its images are made.
    Ctrl-C ends it: tests clean up after themselves, and what they leave is removed.
    Exit status 1 when a test fails.
    """
    need_root("`testbed conformance`")
    from testbed.conformance import run as running
    from testbed.conformance.ginkgo import Asked
    from testbed.labs.live import LiveLab
    from testbed.report import terminal
    from testbed.roles.kubernetes import client
    from testbed.suites.model import LabRun, Run, Selection

    output = Output(
        json_file=json_file, junit=junit, html=html, lang=lang, evidence=False, quiet=quiet
    )
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
    output.write(settings, whole, keep=False)  # `verify --rerun-failed` could not run these
    output.show(terminal.failures(part))
    output.show([_closing(part, good=whole.status == 0)])
    return output.finish(whole, whole.status)


def _closing(part: LabRun, *, good: bool) -> str:
    from testbed.conformance.run import WHOLE

    tests = [check for check in part.results.checks if check.name != WHOLE]
    counts = Counter(check.outcome for check in tests)
    words = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed"))
    if counts["skipped"]:
        words += f", {counts['skipped']} left themselves out"
    if part.results.interrupted:
        words += "; interrupted"
    return click.style(
        f"\n{len(tests)} of upstream's tests on {part.name}: {words} ({part.seconds:.1f} s)",
        fg="green" if good else "red",
        bold=True,
    )

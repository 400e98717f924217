"""``testbed verify``."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

from testbed import limits
from testbed.cli import common
from testbed.cli.output import Output, files
from testbed.errors import UsageError
from testbed.progress import Log
from testbed.requirement import need_root

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.live import Live

    from testbed.claims.catalogue import Catalogue
    from testbed.claims.model import Finding
    from testbed.labs.lab import Lab, Settings
    from testbed.suites.model import Check, LabRun, Selection


FILES = 128  # open files, for captures on several nodes at once


@click.command("verify")
@click.argument("lab", required=False, shell_complete=common.complete_labs)
@common.set_option
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--all", "everything", is_flag=True, help="Create every required lab, and check it.")
@click.option(
    "--lab", "labs", multiple=True, metavar="PATTERN",
    help="With --all: only labs whose names match, such as 'k8s-*'; repeatable.",
)  # fmt: skip
@click.option(
    "--recovery", is_flag=True, help="Break the lab and measure its recovery, without claims."
)
@click.option(
    "--prove", is_flag=True,
    help="Break the lab as the catalogue's sabotages say: each check must fail.",
)  # fmt: skip
@click.option("--provider", metavar="NAME", help="Only labs whose nodes have this provider.")
@click.option(
    "--allow-changes", is_flag=True,
    help="On machines that exist already: run checks that change them, too.",
)  # fmt: skip
@click.option("-k", "expression", default="", metavar="EXPRESSION", help="Same as pytest's -k.")
@common.catalogue_option
@click.option(
    "--claim", "claims", multiple=True, metavar="ID", shell_complete=common.complete_claims,
    help="Only this claim; repeatable.",
)  # fmt: skip
@click.option(
    "--document", "documents", multiple=True, metavar="ID",
    shell_complete=common.complete_documents, help="Only this document; repeatable.",
)  # fmt: skip
@click.option(
    "--rerun-failed", is_flag=True, help="Only claims with unexpected results in the last run."
)
@files
@click.option("-v", "--evidence", is_flag=True, help="Show every claim and its evidence.")
@click.option("-q", "--quiet", is_flag=True, help="Show only unexpected results.")
@click.option("--check-machine", is_flag=True, help="With --all: fail if the machine has changed.")
def command(
    lab: str | None,
    paths: tuple[Path, ...],
    recovery: bool,
    prove: bool,
    provider: str | None,
    allow_changes: bool,
    expression: str,
    catalogues: tuple[str, ...],
    claims: tuple[str, ...],
    documents: tuple[str, ...],
    rerun_failed: bool,
    junit: Path | None,
    json_file: Path | None,
    html: Path | None,
    markdown: Path | None,
    lang: str,
    everything: bool,
    labs: tuple[str, ...],
    evidence: bool,
    quiet: bool,
    check_machine: bool,
) -> int:
    """Check claims on a running lab, or with --all on every lab.

    Run every check that the lab can decide, or your own test files in PATHS
    (see docs/suites.md). The claims are those of --catalogue, else of the folder
    `claims` beside the lab's topology file, else of [tool.testbed] in
    pyproject.toml, else the shipped ones (see docs/claims.md). Without PATHS,
    --catalogue, --claim and --document, tests in the folder `tests` beside the
    topology file run too, if they use the lab.

    With --all, create each lab that the catalogues require under a name of its
    own, several at a time, and remove it afterwards. Labs whose software is
    missing and takes long to build are left out.

    With --prove, break the lab in each way of the catalogue's sabotages.yaml. The
    check of each claim there must pass before, fail then, and pass again. With
    --all, do so on each lab that can decide such a claim.

    With --recovery, cause faults instead of checking claims (see docs/faults.md).

    An interrupted run still writes its results so far. Exit status 1 if a verdict
    is not the expected one or a test fails. Exit status 5 if nothing was checked,
    because nothing was selected or everything was skipped.
    """
    if everything and (lab or common.values_given()):
        raise click.UsageError("--all cannot be combined with the name of a lab, or with --set")
    if labs and not everything:
        raise click.UsageError("--lab needs --all; name a running lab without --lab")
    if everything and provider:
        raise click.UsageError(
            "--provider cannot be combined with --all, which creates its own labs"
        )
    if recovery and (paths or claims or documents):
        raise click.UsageError("--recovery cannot be combined with PATHS, --claim and --document")
    if prove and (recovery or rerun_failed):
        raise click.UsageError("--prove cannot be combined with --recovery and --rerun-failed")
    need_root("`testbed verify`")
    from testbed.claims.choose import choose
    from testbed.report import last
    from testbed.suites.model import Selection

    settings = common.make_settings()
    limits.require(FILES, "`testbed verify`")  # a check that cannot open a file would seem to fail
    if recovery:
        from testbed.suites.runner import RECOVERY

        paths = (RECOVERY,)
    one = None if everything else _meant(settings, lab, breaks=recovery or prove)
    narrowed = bool(paths or catalogues or claims or documents)
    if rerun_failed and not catalogues:
        catalogues = last.catalogues(settings.state.path)
    catalogue = choose(catalogues, source=common.file_of(one) if one else "")
    selection = Selection(
        expression, claims, documents, paths, changes=allow_changes, catalogue=catalogue
    )
    output = Output(
        json_file=json_file, junit=junit, html=html, markdown=markdown, lang=lang,
        evidence=evidence, quiet=quiet, catalogue=catalogue,
    )  # fmt: skip
    output.refuse()
    if rerun_failed:
        selection = last.failed(settings.state.path, selection)
        if not selection.names_some:
            output.show([click.style("nothing failed in the last run", fg="green")])
            return 0
    if prove and one is not None:
        return _prove(settings, one, selection, output)
    if one is None:
        return _all(
            settings,
            selection,
            output,
            check_machine=check_machine,
            recovery=recovery,
            labs=labs,
            proving=prove,
        )
    return _one(settings, one, selection, output, provider, beside=not narrowed)


def _meant(settings: Settings, name: str | None, *, breaks: bool) -> Lab:
    """Return the lab to check.  ``breaks`` tells that it will be broken on purpose."""
    lab = common.lab_meant(settings, name)
    if breaks:
        lab.refuse_attached("broken")
    return lab


def _one(
    settings: Settings,
    lab: Lab,
    selection: Selection,
    output: Output,
    provider: str | None,
    *,
    beside: bool,
) -> int:
    from testbed.labs.live import LiveLab
    from testbed.report import terminal
    from testbed.suites.beside import find_tests
    from testbed.suites.model import LabRun, Run
    from testbed.suites.runner import run

    context = common.whole(lab)
    if provider not in {None, context.topology.maker}:
        raise UsageError(
            f"lab {lab.name} has the provider {context.topology.maker}, not {provider}",
            hint=f"remove it (`testbed down {lab.name}`), and create it with --provider",
        )
    if beside:
        tests = find_tests(common.file_of(lab), context.topology.nodes)
        selection = replace(selection, beside=tests)
    live = LiveLab(context)
    began = time.monotonic()
    part = LabRun(lab.name, context.topology, versions=lab.record().versions)
    try:
        part.look(live)
        part.results = run(live, selection, told=output.told)
    finally:
        live.close()
    part.seconds = time.monotonic() - began
    whole = Run(selection, [part], seconds=part.seconds, signum=part.results.signum)
    output.write(settings, whole)
    output.show(terminal.failures(part, whole.catalogue))
    if not output.quiet:
        output.show(terminal.table(whole))
        output.show(terminal.skipped(whole))
        output.show(terminal.measured(whole))
    output.show([terminal.closing(whole)])
    return output.finish(whole, whole.status)


def _prove(settings: Settings, lab: Lab, selection: Selection, output: Output) -> int:
    from testbed.labs.live import LiveLab
    from testbed.report import terminal
    from testbed.suites.model import LabRun, Run, Selection
    from testbed.suites.prove import prove

    context = common.whole(lab)
    live = LiveLab(context)
    began = time.monotonic()
    part = LabRun(lab.name, context.topology, versions=lab.record().versions)
    try:
        part.look(live)
        proofs = prove(live, lab, selection, told=output.told)
    finally:
        live.close()
    part.results, part.proofs, part.seconds = (
        proofs.results, proofs.outcomes, time.monotonic() - began,
    )  # fmt: skip
    chosen = Selection(tests=("",), catalogue=selection.catalogue)  # no claim is undecided
    whole = Run(chosen, [part], seconds=part.seconds, signum=part.results.signum)
    output.write(settings, whole, keep=False)  # --rerun-failed cannot run these
    output.show(terminal.failures(part, whole.catalogue))
    output.show([terminal.proofs(whole)])
    return output.finish(whole, whole.status)


def _all(
    settings: Settings,
    selection: Selection,
    output: Output,
    *,
    check_machine: bool,
    recovery: bool,
    labs: tuple[str, ...],
    proving: bool,
) -> int:
    from testbed import machine_state
    from testbed.report import terminal
    from testbed.suites.everything import BACKENDS, run_everything

    ours = settings.state.path  # labs of other state folders may change meanwhile
    before = machine_state.snapshot(ours) if check_machine else None
    with _Progress(output, selection.catalogue) as progress:
        wanted = BACKENDS if recovery else None
        run = run_everything(
            settings, selection, progress.watching(), wanted=wanted, labs=labs, proving=proving
        )
    output.write(settings, run, keep=not proving)  # --rerun-failed cannot run proofs
    for lab in run.labs:
        output.show(terminal.failures(lab, run.catalogue))
    output.show(terminal.errors(run))
    if not output.quiet and not proving:
        output.show(terminal.overview(run))
        output.show(terminal.table(run))
        output.show(terminal.skipped(run))
        output.show(terminal.differences(run))
        output.show(terminal.measured(run))
        output.show(terminal.slowest(run))
    output.show(terminal.undecided(run))
    output.show([terminal.proofs(run) if proving else terminal.closing(run)])
    left = machine_state.left(before, below=ours) if before else []
    if before:
        output.show(terminal.machine(left))
    return output.finish(run, run.status or (1 if left else 0))


class _Progress:
    """Shows the progress of several labs.

    A terminal gets a live line, and one line per finished lab. A file gets a line when a lab
    begins, one when it has ended, and one every 30 seconds.
    """

    def __init__(
        self,
        output: Output,
        catalogue: Catalogue,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._output = output
        self._catalogue = catalogue
        self._done: dict[str, int] = {}  # number of finished checks of each active lab
        self._began = time.monotonic()
        self._live: Live | None = None
        self._log = Log(self._note, clock)

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True)
        if console.is_terminal and not self._output.silent:
            # No refresh thread: a process that is forked while that thread writes would inherit
            # a locked file that nothing unlocks.
            self._live = Live(
                console=console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=sys.stdout.isatty(),  # a file gets its own lines
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def watching(self) -> Any:
        from testbed.suites.everything import Watching

        return Watching(began=self._began_lab, up=self._up, found=self._found, ended=self._ended)

    def _show(self) -> None:
        if self._live:
            from rich.text import Text

            labs = ", ".join(
                f"{name} {count}" if count else name for name, count in self._done.items()
            )
            text = f"{time.monotonic() - self._began:3.0f} s  {labs}"
            self._live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)

    def _note(self, line: str) -> None:
        if not (self._live or self._output.silent):
            click.echo(click.style(f"        {line}", dim=True), err=True)

    def _began_lab(self, name: str) -> None:
        self._done[name] = 0
        self._log.tell(name, f"{name} begins")
        self._show()

    def _up(self, name: str, _seconds: float) -> None:
        self._log.tell(name, f"{name} is up")
        self._show()

    def _found(self, name: str, found: Finding | Check) -> None:
        from testbed.claims.model import Finding
        from testbed.report import terminal

        self._done[name] = self._done.get(name, 0) + 1
        bad = not found.as_expected if isinstance(found, Finding) else found.outcome == "failed"
        if bad or self._output.evidence:
            self._output.say(
                click.style(f"{name}", dim=True) + terminal.line(found, self._catalogue)
            )
        self._log.tell(name, f"{name}: {self._done[name]} checks done")
        self._show()

    def _ended(self, lab: LabRun) -> None:
        from testbed.report import terminal

        self._done.pop(lab.name, None)
        self._log.end(lab.name)
        self._output.say(terminal.lab_line(lab))
        self._show()

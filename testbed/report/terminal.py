"""A run for the terminal: a line per claim, then failures and summaries."""

from __future__ import annotations

import shutil
import statistics
import textwrap
from collections import Counter
from typing import TYPE_CHECKING

import click

from testbed.claims.model import JUDGEMENTS, WALK, Finding, Verdict
from testbed.claims.observation import spread
from testbed.errors import NothingTested

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from testbed.claims.catalogue import Catalogue
    from testbed.claims.model import Evidence
    from testbed.suites.model import Check, LabRun, Run

COLOURS = {
    "confirmed": "green",
    "contradicted": "magenta",
    "conditional": "cyan",
    "inconclusive": "yellow",
    "skipped": "bright_black",
    "not testable": "bright_black",
}
ORDER: tuple[Verdict, ...] = (
    "confirmed", "conditional", "contradicted", "inconclusive", "skipped", "not testable",
)  # fmt: skip


def line(found: Finding | Check, catalogue: Catalogue) -> str:
    """Format one finding, or one ordinary check, as a line."""
    if not isinstance(found, Finding):
        colour = {"passed": "green", "skipped": "bright_black"}.get(found.outcome, "red")
        return f"  {click.style(f'{found.outcome:<12}', fg=colour)}  {found.name}"
    claim = catalogue.claims[found.claim]
    verdict = found.verdict or "error"
    good = found.as_expected
    shown = click.style(f"{verdict:<12}", fg=COLOURS.get(verdict, "red") if good else "red")
    width = shutil.get_terminal_size((120, 24)).columns - len(
        f"  {verdict:<12}  {claim.document}  "
    )
    text = textwrap.shorten(claim.claim, max(40, width), placeholder=" …")
    if found.verdict == "skipped":
        reason = found.reason.removeprefix("Skipped: ")
        text += click.style(f"  ({textwrap.shorten(reason, 60, placeholder=' …')})", dim=True)
    return f"  {shown}  {claim.document}  {text}"


def piece(found: Evidence) -> str:
    """Format a piece of evidence as a line: a judgement and its result, or a look."""
    return f"{found.what}: {found.seen}" if found.what in JUDGEMENTS else found.what


LINES, COLUMNS = 10, 200  # limits for one output, so that the judgements stay visible


def _cut(text: str) -> tuple[str, int]:
    """Return the beginning of an output and the number of characters cut off."""
    lines = [line[:COLUMNS] for line in text.split("\n")[:LINES]]
    left = len(text) - len("\n".join(lines))
    return textwrap.indent("\n".join(lines), "      "), left


def failures(lab: LabRun, catalogue: Catalogue) -> Iterable[str]:
    """Format claims that did not end as expected, and failed checks, with evidence.

    Judgements come first, failed ones before the others; outputs are cut.
    """
    results = lab.results
    whole = True
    for finding in results.findings:
        claim = catalogue.claims[finding.claim]
        if finding.as_expected:
            continue
        yield (
            click.style(f"\n{claim.id}", fg="red", bold=True) + f"  on {lab.name}  ({claim.origin})"
        )
        yield f"  claim:    {claim.claim}"
        yield f"  expected: {finding.expected}" + (f", {finding.why}" if finding.why else "")
        seen = finding.problem or f"{finding.verdict}; {finding.reason}"
        yield f"  seen:     {seen}"
        judged = [found for found in finding.evidence if found.what in JUDGEMENTS]
        for found in sorted(judged, key=lambda found: JUDGEMENTS[found.what] is not False):
            colour = "red" if JUDGEMENTS[found.what] is False else None
            yield click.style(f"  {piece(found)}", fg=colour)
        for found in finding.evidence:
            if found.what.startswith(WALK):
                yield f"  {found.what}"
            elif found.what not in JUDGEMENTS:
                shown, left = _cut(found.seen)
                whole = whole and not left
                yield f"  {found.what}"
                yield shown
                if left:
                    yield click.style(f"      [{left} more characters]", dim=True)
    for check in results.checks:
        if check.outcome == "failed":
            yield click.style(f"\n{check.name}", fg="red", bold=True)
            yield textwrap.indent(check.problem, "  ")
    for text in results.broken:
        yield click.style("\na suite could not be loaded", fg="red", bold=True)
        yield textwrap.indent(text, "  ")
    if not whole:
        yield click.style(
            "\n  Outputs are shortened; --html FILE and --json FILE have more.", dim=True
        )


def table(run: Run) -> Iterable[str]:
    """Format documents by verdicts, and the deviations from the documents."""
    worst, claims = run.worst(), run.catalogue.claims
    meant = [(claim, run.verdict(claim, worst)) for claim in run.meant()]
    verdicts: list[Verdict | None] = [v for v in ORDER if any(found == v for _, found in meant)]
    if any(found is None for _, found in meant):
        verdicts.append(None)
    wide = max([8, *(len(claim.document) for claim, _ in meant)])
    if meant:
        heads = "".join(f"{v or 'undecided':>14}" for v in verdicts)
        yield click.style(f"\n  {'document':<{wide}}{heads}{'unexpected':>14}", bold=True)
    for document in dict.fromkeys(claim.document for claim, _ in meant):
        mine = [(claim, found) for claim, found in meant if claim.document == document]
        counts = Counter(found for _, found in mine)
        bad = sum(claim.id in worst and not worst[claim.id].as_expected for claim, _ in mine)
        cells = "".join(f"{counts[v] or '-':>14}" for v in verdicts)
        unexpected = click.style(f"{bad or '-':>14}", fg="red" if bad else None)
        yield f"  {document:<{wide}}{cells}{unexpected}"
    wrong = [f for f in worst.values() if f.verdict in ("contradicted", "conditional")]
    wrong = [f for f in wrong if f.as_expected]
    if wrong:
        yield click.style("\n  Differs from the documents:", bold=True)
    for finding in wrong:
        yield _paragraph(
            claims[finding.claim].document,
            f"{claims[finding.claim].claim} "
            f"{click.style(f'{finding.verdict}:', fg=COLOURS[str(finding.verdict)])} {finding.why}",
        )


def _paragraph(head: str, text: str) -> str:
    indent = " " * (len(head) + 4)
    return textwrap.fill(
        text,
        100,
        initial_indent=f"  {head}  ",
        subsequent_indent=indent,
        break_on_hyphens=False,  # names of labs and claims have them
    )


def measured(run: Run) -> Iterable[str]:
    """Format measurements of ordinary checks: a row per way, a column per lab."""
    tables: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for lab in run.labs:
        for check in lab.results.checks:
            for one in check.measurements:
                rows = tables.setdefault((one.what, one.unit), {})
                for name, figures in one.series.items():
                    shown = f"{statistics.median(figures):.3g} ± {spread(figures):.2g}"
                    rows.setdefault(name, {})[lab.name] = shown
    labs = [lab.name for lab in run.labs]
    for (what, unit), rows in tables.items():
        wide = max(map(len, rows))
        columns = {name: max(len(name), 14) for name in labs}
        heads = "".join(f"  {name:>{width}}" for name, width in columns.items())
        yield click.style(f"\n  {what}, {unit}: median ± spread", bold=True)
        yield click.style(f"  {'':<{wide}}{heads}", bold=True)
        for name, figures_by_lab in rows.items():
            cells = (f"  {figures_by_lab.get(n, '-'):>{w}}" for n, w in columns.items())
            yield f"  {name:<{wide}}{''.join(cells)}"


UNDECIDED = ("skipped", "inconclusive")  # neither supports nor contradicts other labs' verdicts


def differences(run: Run) -> Iterable[str]:
    """Format the claims whose verdict differs between labs, with each lab's verdict."""
    differing = {}
    for name, found in run.by_claim().items():
        by_verdict: dict[str, list[str]] = {}
        for lab, finding in found:
            if finding.verdict not in UNDECIDED:
                by_verdict.setdefault(finding.verdict or "error", []).append(lab.name)
        if len(by_verdict) > 1:
            differing[name] = by_verdict
    if differing:
        yield click.style("\n  Verdict differs between labs:", bold=True)
    for name, by_verdict in differing.items():
        words = "; ".join(
            f"{click.style(verdict, fg=COLOURS.get(verdict, 'red'))} on {', '.join(labs)}"
            for verdict, labs in by_verdict.items()
        )
        claim = run.catalogue.claims[name]
        yield _paragraph(claim.document, f"{claim.claim} {words}")


def slowest(run: Run, count: int = 10) -> Iterable[str]:
    """Format the slowest checks."""
    found = [
        (seconds, lab.name, name)
        for lab in run.labs
        for seconds, name in (
            *((finding.seconds, finding.claim) for finding in lab.results.findings),
            *((check.seconds, check.name) for check in lab.results.checks),
        )
    ]
    if len(found) > count:
        yield click.style(f"\n  The slowest {count}:", bold=True)
        for seconds, lab, name in sorted(found, reverse=True)[:count]:
            yield f"  {seconds:7.2f} s  {name}  {click.style(lab, dim=True)}"


def undecided(run: Run) -> Iterable[str]:
    """Format the claims that should have been decided but were not."""
    names = run.undecided()
    if names and run.signum is None:
        yield click.style("\n  Not decided by any lab:", fg="red", bold=True)
        yield from (f"  {name}" for name in names)


def skipped(run: Run) -> Iterable[str]:
    """Format the reasons for which claims were skipped on every lab, with their number."""
    reasons = Counter(
        finding.reason.removeprefix("Skipped: ").partition("\n")[0]
        for finding in run.worst().values()
        if finding.verdict == "skipped"
    )
    if reasons:
        yield click.style("\n  Skipped:", bold=True)
    for reason, count in reasons.most_common():
        yield _paragraph(f"{count:>4}", reason)


def closing(run: Run) -> str:
    """Format the last line."""
    worst = run.worst().values()
    skipped = sum(f.verdict == "skipped" for f in worst)
    total = len(worst) - skipped
    bad = sum(not f.as_expected for f in worst)
    checks = [check for lab in run.labs for check in lab.results.checks]
    failed = sum(c.outcome == "failed" for c in checks)
    broken = len({text for lab in run.labs for text in lab.results.broken})
    errors = sum(bool(lab.error) for lab in run.labs)
    elsewhere = {name for lab in run.labs for name in lab.results.elsewhere}
    words = f"{total} {'claim' if total == 1 else 'claims'} checked on {_where(run)}, "
    words += f"{total - bad} as expected"
    if skipped:
        words += f"; {skipped} skipped"
    if checks:
        words += f"; {len(checks)} other checks, {failed} failed"
    if broken:
        words += f"; {broken} {'suite' if broken == 1 else 'suites'} cannot be loaded"
    if elsewhere and not run.complete:
        words += f"; {len(elsewhere)} need another lab"
    if errors:
        words += f"; {errors} {'lab' if errors == 1 else 'labs'} failed"
    if run.signum is not None:
        words += "; interrupted"
    if run.status == NothingTested.exit_code:
        words = f"nothing was tested: {words}"
    return click.style(
        f"\n{words} ({run.seconds:.1f} s)", fg="red" if run.status else "green", bold=True
    )


def proofs(run: Run) -> str:
    """Format the last line of ``verify --prove``."""
    found = run.proofs()
    seen = [one for one in found.values() if "passed" in one and "failed" not in one]
    without = sum(one == {"skipped"} for one in found.values())
    words = f"{len(seen)} of {len(found)} checks were seen to fail on {_where(run)}"
    if without:
        words += f"; {without} skipped"
    errors = sum(bool(lab.error) for lab in run.labs)
    if errors:
        words += f"; {errors} {'lab' if errors == 1 else 'labs'} failed"
    if run.signum is not None:
        words += "; interrupted"
    colour = "red" if run.status else "green"
    return click.style(f"\n{words} ({run.seconds:.1f} s)", fg=colour, bold=True)


def _where(run: Run) -> str:
    labs = [lab for lab in run.labs if lab.topology]
    return labs[0].name if len(labs) == 1 else f"{len(labs)} labs" if labs else "no lab"


def overview(run: Run) -> Iterable[str]:
    """Format labs by verdicts."""
    findings = [f for lab in run.labs for f in lab.results.findings]
    verdicts = [v for v in ORDER if any(f.verdict == v for f in findings)]
    columns = "".join(f"{v:>14}" for v in verdicts)
    wide = max((len(lab.name) for lab in run.labs), default=0)
    yield click.style(
        f"\n  {'lab':<{wide}}{'up':>9}{columns}{'unexpected':>14}{'checks':>8}{'time':>9}",
        bold=True,
    )
    for lab in run.labs:
        counts = Counter(f.verdict for f in lab.results.findings)
        bad = sum(not f.as_expected for f in lab.results.findings)
        cells = "".join(f"{counts[v] or '-':>14}" for v in verdicts)
        unexpected = click.style(f"{bad or '-':>14}", fg="red" if bad else None)
        checks = f"{len(lab.results.checks) or '-':>8}"
        up = f"{lab.up:.2f} s" if lab.topology else "-"
        yield f"  {lab.name:<{wide}}{up:>9}{cells}{unexpected}{checks}{lab.seconds:>7.1f} s"


def lab_line(lab: LabRun) -> str:
    """Format one lab that has ended, or was left out, as a line."""
    if lab.absent:
        count = len(lab.results.findings) or len(lab.proofs)
        words = f"{count:>3} {'claim' if count == 1 else 'claims'} skipped: {lab.absent}"
        return click.style(f"  --    {lab.name:<26} {words}", dim=True)
    bad = sum(not f.as_expected for f in lab.results.findings)
    bad += sum(c.outcome == "failed" for c in lab.results.checks) + len(lab.results.broken)
    good = len(lab.results.findings) - sum(not f.as_expected for f in lab.results.findings)
    words = f"{good:>3} as expected"
    if lab.proofs:
        seen = sum(check.outcome == "passed" for check in lab.results.checks)
        words = f"{seen:>3} seen to fail"
    if lab.topology:
        words = f"up {lab.up:5.2f} s  {words}"
    if bad:
        words += click.style(f", {bad} not", fg="red")
    if lab.topology and lab.topology.uplinks:
        words += click.style(", has a way out", fg="yellow")
    if lab.results.interrupted:
        words += ", interrupted"
    if lab.error:
        words += click.style(f"  {lab.error.strip().splitlines()[-1]}", fg="red")
    mark = click.style("ok  ", fg="green") if not bad and not lab.error else ""
    return (
        f"  {mark or click.style('FAIL', fg='red')}  {lab.name:<26} {words}  {lab.seconds:5.1f} s"
    )


def errors(run: Run) -> Iterable[str]:
    """Format the labs that could not be checked, and the reasons."""
    for lab in run.labs:
        if lab.error:
            yield click.style(f"\n{lab.name}", fg="red", bold=True)
            yield textwrap.indent(lab.error.rstrip(), "  ")


def machine(left: Sequence[str]) -> Iterable[str]:
    """Format changes that the run left on this machine, or that there are none."""
    if not left:
        yield click.style(
            "the machine is unchanged: "
            "namespaces, links, rules, mounts, cgroups, processes, sysctls",
            fg="green",
        )
        return
    yield click.style("the machine has changed:", fg="red", bold=True)
    for line in left:
        yield f"  {line}"

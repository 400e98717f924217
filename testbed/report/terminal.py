"""What came of a run, for the terminal: a line a claim, then who said what and was it so."""

from __future__ import annotations

import shutil
import textwrap
from collections import Counter
from typing import TYPE_CHECKING

import click

from testbed.claims.catalogue import claims
from testbed.claims.model import Finding, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from testbed.suites.everything import LabRun
    from testbed.suites.runner import Check, Results

COLOURS = {
    "confirmed": "green",
    "contradicted": "magenta",
    "depends": "cyan",
    "inconclusive": "yellow",
    "not here": "bright_black",
    "not testable": "bright_black",
}
ORDER: tuple[Verdict, ...] = (
    "confirmed", "depends", "contradicted", "inconclusive", "not here", "not testable",
)  # fmt: skip


def line(found: Finding | Check) -> str:
    """One finding, or one ordinary check, as a line."""
    if not isinstance(found, Finding):
        colour = {"passed": "green", "skipped": "bright_black"}.get(found.outcome, "red")
        return f"  {click.style(f'{found.outcome:<12}', fg=colour)}  {found.name}"
    claim = claims()[found.claim]
    verdict = found.verdict or "error"
    good = found.as_expected
    shown = click.style(f"{verdict:<12}", fg=COLOURS.get(verdict, "red") if good else "red")
    width = shutil.get_terminal_size((120, 24)).columns - len(
        f"  {verdict:<12}  {claim.document}  "
    )
    text = textwrap.shorten(claim.claim, max(40, width), placeholder=" …")
    if found.verdict == "not here":
        reason = found.reason.removeprefix("Skipped: ")
        text += click.style(f"  ({textwrap.shorten(reason, 60, placeholder=' …')})", dim=True)
    return f"  {shown}  {claim.document}  {text}"


def failures(results: Results) -> Iterable[str]:
    """Every claim that did not end as expected, with its evidence, and every failed check."""
    for finding in results.findings:
        claim = claims()[finding.claim]
        if finding.as_expected:
            continue
        yield (
            click.style(f"\n{claim.id}", fg="red", bold=True)
            + f"  ({claim.document}, {claim.place})"
        )
        yield f"  claim:    {claim.claim}"
        yield f"  expected: {finding.expected}" + (f", {finding.why}" if finding.why else "")
        seen = finding.problem or f"{finding.verdict}; {finding.reason}"
        yield f"  seen:     {seen}"
        for piece in finding.evidence:
            yield f"  {piece.what}"
            yield textwrap.indent(piece.seen, "      ")
    for check in results.checks:
        if check.outcome == "failed":
            yield click.style(f"\n{check.name}", fg="red", bold=True)
            yield textwrap.indent(check.problem, "  ")
    for text in results.broken:
        yield click.style("\na suite that cannot be loaded", fg="red", bold=True)
        yield textwrap.indent(text, "  ")


def table(results: Results) -> Iterable[str]:
    """Documents by verdicts, and what is not as the documents say."""
    documents = sorted({claims()[f.claim].document for f in results.findings})
    verdicts = [v for v in ORDER if any(f.verdict == v for f in results.findings)]
    if documents:
        yield click.style(
            "\n  document" + "".join(f"{v:>14}" for v in verdicts) + f"{'unexpected':>14}",
            bold=True,
        )
    for document in documents:
        mine = [f for f in results.findings if claims()[f.claim].document == document]
        counts = Counter(f.verdict for f in mine)
        bad = sum(not f.as_expected for f in mine)
        cells = "".join(f"{counts[v] or '-':>14}" for v in verdicts)
        unexpected = click.style(f"{bad or '-':>14}", fg="red" if bad else None)
        yield f"  {document:<8}{cells}{unexpected}"
    wrong = [f for f in results.findings if f.verdict in ("contradicted", "depends")]
    wrong = [f for f in wrong if f.as_expected]
    if wrong:
        yield click.style("\n  Not as the documents say:", bold=True)
    for finding in wrong:
        claim = claims()[finding.claim]
        yield textwrap.fill(
            f"{claim.claim} {click.style(f'{finding.verdict}:', fg=COLOURS[str(finding.verdict)])} "
            f"{finding.why}",
            100,
            initial_indent=f"  {claim.document}  ",
            subsequent_indent="       ",
        )


def closing(results: Results, lab: str, seconds: float) -> str:
    """The last line."""
    absent = sum(f.verdict == "not here" for f in results.findings)
    total = len(results.findings) - absent
    bad = sum(not f.as_expected for f in results.findings)
    failed = sum(c.outcome == "failed" for c in results.checks) + len(results.broken)
    what = "claim" if total == 1 else "claims"
    words = f"{total} {what} put to the test on {lab}, {total - bad} as expected"
    if absent:
        words += f"; {absent} not here"
    if results.checks:
        words += f"; {len(results.checks)} other checks, {failed} failed"
    if results.elsewhere:
        words += f"; {len(results.elsewhere)} need another lab"
    if results.interrupted:
        words += "; interrupted"
    colour = "red" if bad or failed else "green"
    return click.style(f"\n{words} ({seconds:.1f} s)", fg=colour, bold=True)


def is_good(results: Results) -> bool:
    """True when every claim ended as expected and no check failed."""
    bad = any(not f.as_expected for f in results.findings)
    return not bad and not results.broken and all(c.outcome != "failed" for c in results.checks)


def overview(runs: Sequence[LabRun]) -> Iterable[str]:
    """Labs by verdicts, then all documents together."""
    verdicts = [v for v in ORDER if any(f.verdict == v for r in runs for f in r.results.findings)]
    columns = "".join(f"{v:>14}" for v in verdicts)
    yield click.style(
        f"\n  {'lab':<18}{'up':>8}{columns}{'unexpected':>14}{'checks':>8}", bold=True
    )
    for run in runs:
        counts = Counter(f.verdict for f in run.results.findings)
        bad = sum(not f.as_expected for f in run.results.findings)
        cells = "".join(f"{counts[v] or '-':>14}" for v in verdicts)
        unexpected = click.style(f"{bad or '-':>14}", fg="red" if bad else None)
        checks = f"{len(run.results.checks) or '-':>8}"
        yield f"  {run.topology:<18}{run.up:>7.2f}s{cells}{unexpected}{checks}"
    yield from table(merged(runs))


def merged(runs: Sequence[LabRun]) -> Results:
    """The results of several labs as one: a claim is as good as its worst finding."""
    from testbed.suites.runner import Results

    by_claim: dict[str, Finding] = {}
    for run in runs:
        for finding in run.results.findings:
            seen = by_claim.get(finding.claim)
            if seen is None or _rank(finding) > _rank(seen):
                by_claim[finding.claim] = finding
    order = {claim: index for index, claim in enumerate(claims())}
    return Results(
        findings=sorted(by_claim.values(), key=lambda f: order[f.claim]),
        checks=[check for run in runs for check in run.results.checks],
        broken=[text for run in runs for text in run.results.broken],
        signum=next((r.results.signum for r in runs if r.results.interrupted), None),
    )


def _rank(finding: Finding) -> int:
    if not finding.as_expected:
        return 2
    return 0 if finding.verdict == "not here" else 1


def closing_all(runs: Sequence[LabRun], seconds: float) -> str:
    """The last line of a run over several labs."""
    names = ", ".join(run.topology for run in runs)
    return closing(merged(runs), f"{len(runs)} labs ({names})", seconds)


def machine(left: Sequence[str]) -> Iterable[str]:
    """What differs on this machine from before, or that nothing does."""
    if not left:
        yield click.style(
            "the machine is as it was: "
            "namespaces, links, rules, mounts, cgroups, processes, sysctls",
            fg="green",
        )
        return
    yield click.style("the machine is not as it was:", fg="red", bold=True)
    for line in left:
        yield f"  {line}"

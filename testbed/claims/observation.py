"""The notes of a check: evidence, and the verdict that follows from it."""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from testbed.claims.model import WALK, Evidence, Measurement, Verdict
from testbed.errors import CommandError

if TYPE_CHECKING:
    from testbed.nodes.base import Result
    from testbed.nodes.place import Runs
    from testbed.walk.model import Walk

LIMIT = 50_000  # characters for one piece of evidence: only runaway output is longer


class Observation:
    """The notes of one check.

    :meth:`holds` tests the document's statement as written, once or more often.
    :meth:`holds_when` and :meth:`fails_when` test a statement that is true only
    under some conditions, each with its condition.  A check that tests nothing
    has no verdict, and that is an error.

    >>> notes = Observation()
    >>> notes.holds(True, "docker0 is there")
    >>> notes.verdict
    'confirmed'
    """

    def __init__(self) -> None:
        self.evidence: list[Evidence] = []
        self.measurements: list[Measurement] = []
        self._unclear = False
        self._tested: list[tuple[bool, bool, str]] = []  # (expected to hold, holds, subject)

    # -- recording --------------------------------------------------------

    def note(self, what: str, seen: object) -> None:
        """Record an observation as evidence; data is stored as JSON."""
        text = seen if isinstance(seen, str) else json.dumps(seen, default=str, indent=1)
        if len(text) > LIMIT:
            kept = text[: text.rfind("\n", 0, LIMIT) + 1] or text[:LIMIT]  # whole lines
            text = f"{kept.rstrip()}\n[{len(text) - len(kept)} more characters]"
        self.evidence.append(Evidence(what, text.rstrip()))

    def run(
        self, where: Runs, argv: Sequence[str], *, timeout: float = 60.0, check: bool = True
    ) -> Result:
        """Run a command and record it with its output."""
        result = where.run(argv, timeout=timeout, check=False)
        seen = result.stdout + (f"\n{result.stderr}" if result.stderr else "")
        if not result.ok:
            seen += f"\n[exit status {result.status}]"
        self.note(f"{where.name}# {shlex.join(argv)}", seen)
        if check and not result.ok:
            raise CommandError(
                argv,
                where=where.name,
                status=result.status,
                stdout=result.stdout,
                stderr=result.stderr,
            )
        return result

    def json(self, where: Runs, argv: Sequence[str], *, timeout: float = 60.0) -> Any:
        """Run a command that prints JSON, record it, and return the decoded output."""
        return self.run(where, argv, timeout=timeout).json()

    def walk(self, walk: Walk) -> None:
        """Record the path of a packet, which the report draws."""
        self.note(f"{WALK}{walk}", walk.brief())

    # -- judging ----------------------------------------------------------

    def holds(self, holds: object, what: str) -> None:
        """Judge the statement, or a part of it, as written; ``what`` names the subject."""
        self._tested.append((True, bool(holds), what))
        self.note("holds" if holds else "does not hold", what)

    def holds_when(self, condition: str, holds: object) -> None:
        """Judge under an unstated condition under which the statement should hold."""
        self._tested.append((True, bool(holds), condition))
        self.note("holds when" if holds else "does not hold even when", condition)

    def fails_when(self, condition: str, fails: object) -> None:
        """Judge under a condition that should make it fail; ``fails``: True if it does."""
        self._tested.append((False, not fails, condition))
        self.note("fails when" if fails else "does not fail even when", condition)

    # -- measuring --------------------------------------------------------

    def measured(self, measurement: Measurement) -> None:
        """Record figures, as evidence and for the report's charts."""
        self.measurements.append(measurement)
        lines = [
            f"{name}: median {statistics.median(figures):.4g} {measurement.unit}, "
            f"spread {spread(figures):.2g} (rounds: {', '.join(f'{x:.4g}' for x in figures)})"
            for name, figures in measurement.series.items()
        ]
        self.note(f"measured: {measurement.what}", "\n".join(lines))

    def differ(self, measurement: Measurement, more: str, less: str) -> bool | None:
        """Tell whether the series ``more`` has the larger figures; None if unclear.

        Conditions that change from round to round, such as the CPU's clock, affect both
        figures of a round.  So only the differences within rounds count: the result is clear
        if their median is further from zero than their spread.
        """
        rounds = zip(measurement.series[more], measurement.series[less], strict=True)
        differences = [larger - smaller for larger, smaller in rounds]
        difference = statistics.median(differences)
        return difference > 0 if abs(difference) > spread(differences) else None

    def unclear(self, what: str) -> None:
        """Record that the figures are unclear: "inconclusive", unless a judgement fails."""
        self._unclear = True
        self.note("not clear", what)

    @property
    def verdict(self) -> Verdict | None:
        """The verdict that follows from the notes; None if nothing was tested."""
        positive = [holds for wanted, holds, _ in self._tested if wanted]
        negative = [not holds for wanted, holds, _ in self._tested if not wanted]
        if self._unclear and all(positive):
            return "inconclusive"
        if not self._tested:
            return None
        if not negative:
            return "confirmed" if all(positive) else "contradicted"
        if all(negative) and positive and all(positive):
            return "conditional"
        # Failing under some conditions only matches neither the expectation nor a confirmation.
        return "confirmed" if all(positive) and not any(negative) else "contradicted"

    @property
    def refuted_by(self) -> list[str]:
        """Subjects that did not hold, or that held where they should not."""
        refuted = [what for wanted, holds, what in self._tested if wanted and not holds]
        held = [what for wanted, holds, what in self._tested if not wanted and holds]
        return refuted + [f"does not fail even when {what}" for what in held]


def spread(figures: Sequence[float]) -> float:
    """Return the interquartile range, in the figures' unit.

    Of fewer than four figures it is the range.

    >>> spread([1, 2, 3, 4, 100])
    2.0
    """
    low, _, high = quartiles(figures)
    return high - low


def quartiles(figures: Sequence[float]) -> tuple[float, float, float]:
    """Return the quartiles; of fewer than four figures: minimum, median, maximum."""
    if len(figures) < 4:
        return min(figures), statistics.median(figures), max(figures)
    low, middle, high = statistics.quantiles(figures, n=4, method="inclusive")
    return low, middle, high

"""Show that checks can fail: break a lab as its catalogue says, and run the checks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from testbed.errors import CommandError, LabError, MachineError, NothingSelected, TestbedError
from testbed.faults.force import Faults, fault_of
from testbed.suites.model import Check, Results, Selection
from testbed.suites.runner import refuse_unknown, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from testbed.claims.model import Finding, Order, Sabotage
    from testbed.labs.lab import Lab
    from testbed.labs.live import LiveLab
    from testbed.nodes.place import Runs

PATIENCE = 2.0  #: seconds to wait for an event on a broken lab, where most never come


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Shorten the waits of checks for the length of the block."""
    from testbed.observe.capture import Capture
    from testbed.suites import helpers

    late, settled, wait = helpers.LATE, helpers.SETTLED, Capture.wait_for.__defaults__
    helpers.LATE = PATIENCE
    helpers.SETTLED = PATIENCE * 4  # a Pod takes two seconds
    Capture.wait_for.__defaults__ = (PATIENCE,)
    try:
        yield
    finally:
        helpers.LATE, helpers.SETTLED, Capture.wait_for.__defaults__ = late, settled, wait


class Broken:
    """A lab that is broken for the length of a ``with`` block."""

    def __init__(self, live: LiveLab, lab: Lab, sabotage: Sabotage) -> None:
        self._live = live
        self._faults = Faults(lab)
        self._sabotage = sabotage

    def missing(self) -> str:
        """Return why the sabotage does not fit the lab; empty if it does."""
        nodes, containers = self._live.topology.nodes, self._live.topology.containers
        for order in (*self._sabotage.do, *self._sabotage.undo):
            node, _, container = order.place.partition("/")
            if node not in nodes or (container and container not in containers):
                return f"the lab has no {order.place}"
        try:
            for words in self._sabotage.faults:
                fault_of(words, self._live.topology)
        except TestbedError as error:
            return error.message
        return ""

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Break the lab, and repair it after the block.

        Raises CommandError or LabError if a command fails, MachineError if a fault cannot be
        caused on this machine.
        """
        with contextlib.ExitStack() as undone:
            done = [fault_of(words, self._live.topology) for words in self._sabotage.faults]
            keys = {fault.key for fault in done}
            if done:
                undone.callback(self._heal, keys)
            for fault in done:
                self._faults.apply(fault)
            undone.callback(self._orders, self._sabotage.undo)
            self._orders(self._sabotage.do)
            yield

    def _heal(self, keys: set[tuple[str, str, str]]) -> None:
        self._faults.heal(lambda fault: fault.key in keys, kinds={kind for kind, *_ in keys})
        self._live.close()  # a restarted engine requires a new connection

    def _orders(self, orders: Sequence[Order]) -> None:
        """Run commands; if one fails, run the others too, and raise its error."""
        errors: list[LabError] = []
        for order in orders:
            try:
                self._place(order.place).run(["sh", "-c", order.command])
            except LabError as error:
                errors.append(error)
        if errors:
            first = errors[0]
            if isinstance(first, CommandError):
                first.hint = f"correct the sabotage {self._sabotage.name!r} in sabotages.yaml"
            raise first

    def _place(self, name: str) -> Runs:
        node, _, container = name.partition("/")
        return self._live.container(container, node=node) if container else self._live.node(node)


@dataclass
class Proofs:
    """The outcomes: a check for each claim and sabotage, and for each claim without one."""

    results: Results = field(default_factory=Results)
    outcomes: dict[str, set[str]] = field(default_factory=dict)  #: of the checks, by claim

    def tell(
        self, claim: str, sabotage: str, outcome: str, problem: str, found: Finding | None = None
    ) -> Check:
        """Add the outcome of a claim, with the finding on the broken lab if there is one."""
        name = f"{claim} fails under {sabotage}" if sabotage else f"{claim} has a sabotage"
        evidence = tuple(found.evidence) if found else ()
        check = Check(name, outcome, found.seconds if found else 0.0, problem, evidence)
        self.results.checks.append(check)
        self.outcomes.setdefault(claim, set()).add(outcome)
        return check

    def tell_without(self, claim: str) -> Check:
        """Add a claim that no sabotage is for."""
        return self.tell(claim, "", "skipped", "no entry of sabotages.yaml names the claim")


Checks = Callable[["LiveLab", Selection], Results]  #: runs the checks of a selection on a lab


def provable(selection: Selection) -> list[str]:
    """Return the selected claims for which the catalogue has a sabotage.

    Raises UsageError for an unknown claim, NothingSelected if there are none.
    """
    refuse_unknown(selection)
    catalogue = selection.catalogue
    named = {name for sabotage in catalogue.sabotages for name in sabotage.claims}
    found = [one.id for one in catalogue.claims.values() if one.id in named and selection.has(one)]
    if not found:
        raise NothingSelected(
            f"no sabotage of catalogue {catalogue.name} is for a selected claim",
            hint="add an entry to its sabotages.yaml (docs/claims.md), or choose other claims",
        )
    return found


def prove(
    live: LiveLab,
    lab: Lab,
    selection: Selection,
    *,
    told: Callable[[Check], None] = lambda _: None,
    checks: Checks | None = None,
    proofs: Proofs | None = None,
) -> Proofs:
    """Break the lab with each sabotage, and show that the checks of its claims fail.

    The check must be as expected before, not as expected while the lab is broken, and as expected
    again afterwards.  ``checks`` runs the checks; the outcomes are added to ``proofs``.  Raises
    UsageError, NothingSelected if no selected claim has a sabotage or none can be decided on the
    lab, and LabError if the lab cannot be repaired.
    """
    provable(selection)
    prover = _Prover(
        live,
        lab,
        selection,
        told=told,
        checks=checks or run,
        proofs=Proofs() if proofs is None else proofs,
    )
    prover.look()
    for sabotage in selection.catalogue.sabotages:
        if not prover.proofs.results.interrupted:
            prover.carry_out(sabotage)
    return prover.proofs


class _Prover:
    """Breaks one lab again and again."""

    def __init__(
        self,
        live: LiveLab,
        lab: Lab,
        selection: Selection,
        *,
        told: Callable[[Check], None],
        checks: Checks,
        proofs: Proofs,
    ) -> None:
        self._live = live
        self._lab = lab
        self._selection = selection
        self._told = told
        self._checks = checks
        self._before: dict[str, Finding] = {}
        self.proofs = proofs

    def look(self) -> None:
        """Run the checks on the lab as it is."""
        results = self._run(self._selection)
        self.proofs.results.signum = results.signum
        self.proofs.results.broken = results.broken
        found = _by_claim(results)
        if not (found or results.interrupted or results.broken):
            raise NothingSelected(
                f"the selection has no check for lab {self._live.name}",
                hint="remove -k, --claim and --document, or choose another lab",
            )
        self._before = {n: one for n, one in found.items() if one.verdict != "skipped"}
        named = {name for one in self._selection.catalogue.sabotages for name in one.claims}
        for name in self._before:
            if name not in named:
                self._told(self.proofs.tell_without(name))

    def carry_out(self, sabotage: Sabotage) -> None:
        """Break the lab once, and judge the checks of its claims."""
        wanted = [name for name in sabotage.claims if name in self._before]
        whole = [name for name in wanted if self._before[name].as_expected]
        for name in wanted:
            if name not in whole:
                found = self._before[name]
                why = f"the check is not as expected without it: {_said(found)}"
                self._tell(name, sabotage.name, "failed", why, found)
        broken = Broken(self._live, self._lab, sabotage)
        why = broken.missing()
        if whole and not why:
            try:
                self._judge(broken, sabotage, whole)
            except MachineError as error:  # of a fault, before anything was changed
                why = str(error)
        for name in whole if why else ():
            self._tell(name, sabotage.name, "skipped", why)

    def _judge(self, broken: Broken, sabotage: Sabotage, names: list[str]) -> None:
        chosen = replace(self._selection, claims=tuple(names))
        with broken(), impatient():
            during = self._run(chosen)
        after = during if during.interrupted else self._run(chosen)
        self.proofs.results.signum = after.signum
        if after.interrupted:
            return
        under, again = _by_claim(during), _by_claim(after)
        for name in names:
            found, later = under.get(name), again.get(name)
            if found is None or found.verdict == "skipped":
                problem = f"the check did not run: {found.reason if found else 'it was not found'}"
            elif found.as_expected:
                problem = f"the check did not detect it ({found.verdict}). {sabotage.what}"
            elif later is None or not later.as_expected:
                seen = _said(later) if later else "it did not run"
                problem = f"the check is not as expected after it was undone: {seen}"
            else:
                problem = ""
            self._tell(name, sabotage.name, "failed" if problem else "passed", problem, found)

    def _tell(
        self, claim: str, sabotage: str, outcome: str, problem: str, found: Finding | None = None
    ) -> None:
        self._told(self.proofs.tell(claim, sabotage, outcome, problem, found))

    def _run(self, selection: Selection) -> Results:
        with contextlib.suppress(NothingSelected):
            return self._checks(self._live, selection)
        return Results()


def _by_claim(results: Results) -> dict[str, Finding]:
    """Return a finding of each claim: of several, one that is not as expected."""
    found: dict[str, Finding] = {}
    for finding in results.findings:
        if finding.claim not in found or not finding.as_expected:
            found[finding.claim] = finding
    return found


def _said(finding: Finding) -> str:
    return finding.problem or f"{finding.verdict}; {finding.reason}"

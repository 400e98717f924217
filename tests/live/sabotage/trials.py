"""Sabotage: a lab, or a tool on it, made wrong in a known way, so that checks must fail.

A check that cannot fail says nothing.  Each sabotage names the claims that must
flip under it: whose finding is then no longer the expected one.  ::

    @sabotage("docker-single", "nat-outbound-reaches-external")
    def masquerade_is_missing(lab: LiveLab) -> Iterator[None]:
        '''The rule that masquerades what containers send is deleted.'''
        with undone(...):
            yield

There are three kinds.  Most break the lab.  Where a check makes all that it
looks at itself, a tool lies: one of the same name is put before the real one,
and does something else, so that the world is really different.  What is pure
arithmetic is told other numbers.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from catalogues import claims, selection

from sabotage.judgements import Place, watched
from sabotage.means import forget
from testbed import pytest_plugin
from testbed.catalogues.shipped import FOLDER
from testbed.labs.lab import Lab, Settings
from testbed.labs.live import LiveLab
from testbed.roles.kubernetes.section import KubernetesSection
from testbed.settings import settings
from testbed.suites import cluster
from testbed.suites.prove import impatient
from testbed.suites.runner import run
from testbed.topology.load import Overrides, load

if TYPE_CHECKING:
    from testbed.claims.model import Finding

#: ``refuted``: the verdict is not the expected one.  ``broke``: the check raised an error
#: instead of a verdict, which is noticed too, but says less.  ``unsettled``: the check has waited
#: in vain for what its statement rests on.  ``unclear``: the machine is too busy to measure.
#: ``undecided``: no check of it could run.
Outcome = Literal["refuted", "broke", "unsettled", "held", "unclear", "undecided"]
Make = Callable[[LiveLab], Iterator[None]]

NO_LAB = ""  #: for claims that need none
LEGACY = "docker-single-legacy"  #: whose trace is the one that document 003 prints
CILIUM = "k8s-cilium"
KUBE_ROUTER = "k8s-kube-router"
IPV6 = "two-node-ipv6-29"
VARIANTS = {
    LEGACY: ("docker-single", Overrides(firewall="iptables-legacy")),
    CILIUM: ("k8s-two-node", Overrides(cni="cilium")),
    KUBE_ROUTER: ("k8s-two-node", Overrides(cni="kube-router")),
    IPV6: ("two-node-ipv6", Overrides(docker="29")),
}
CLUSTERS = "k8s-"  #: what the names of topologies with a cluster begin with
#: Network plugins whose programs have to be brought: none is had by building or by a package.
BROUGHT = {"pods-by-calico", "pods-by-weave"}
ATTEMPTS = 3


@dataclass(frozen=True)
class Sabotage:
    """One way to break a lab.

    ``lab`` is the name of a topology or of a variant, ``flips`` the claims that must
    flip.  Of these ``vain`` are claims about what others bring about in their own time, who are
    kept from it: their checks wait in vain, and give no verdict.  A statement that is false of
    what is there must be contradicted.  One that ``ruins`` its lab is not undone: the next gets
    a new one.  One that ``slows`` its lab is for claims that measure it.
    """

    name: str
    lab: str
    what: str
    flips: tuple[str, ...]
    make: Callable[[LiveLab], AbstractContextManager[None]]
    ruins: bool = False
    vain: tuple[str, ...] = ()
    slows: bool = False


SABOTAGES: list[Sabotage] = []
JUDGED: set[tuple[Place, bool]] = set()  #: single judgements, and how they came out


def sabotage(
    lab: str, *flips: str, ruins: bool = False, vain: Sequence[str] = (), slows: bool = False
) -> Callable[[Make], Make]:
    """Enter a generator function as a sabotage; its docstring's first line says what it does."""

    def enter(make: Make) -> Make:
        what = (inspect.getdoc(make) or "").partition("\n")[0]
        made = contextlib.contextmanager(make)
        every = (*flips, *vain)
        SABOTAGES.append(Sabotage(make.__name__, lab, what, every, made, ruins, tuple(vain), slows))
        return make

    return enter


@dataclass(frozen=True)
class Share:
    """Sabotages of one lab that are carried out one after the other, on a lab of their own."""

    lab: str
    number: int

    def __str__(self) -> str:
        return f"{self.lab or 'no lab'} {self.number}"


SHARE = 12  #: sabotages: they take longer than it takes to bring their lab up


def shares(some: Sequence[Sabotage]) -> dict[Share, list[Sabotage]]:
    """Sabotages in shares, which can be carried out side by side; those that ruin come last."""
    found: dict[Share, list[Sabotage]] = {}
    labs = sorted({one.lab for one in some})
    for lab in labs:
        here = sorted((one for one in some if one.lab == lab), key=lambda one: one.ruins)
        for begin in range(0, len(here), SHARE):
            found[Share(lab, begin // SHARE + 1)] = here[begin : begin + SHARE]
    return found


@dataclass(frozen=True)
class Trial:
    """The results of the claims under a sabotage; ``said`` is each finding in a few words."""

    sabotage: Sabotage
    outcomes: dict[str, Outcome]
    said: dict[str, str]
    seconds: float

    def having(self, *outcomes: Outcome) -> list[str]:
        return [claim for claim, outcome in self.outcomes.items() if outcome in outcomes]

    @property
    def wrong(self) -> dict[str, str]:
        """The claims that have not flipped, or not as they should: by a verdict."""
        vain = set(self.having("unsettled")) - set(self.sabotage.vain)
        return {claim: self.said[claim] for claim in {*self.having("held", "undecided"), *vain}}


def outcome(finding: Finding) -> Outcome:
    """Return the value of a finding on a broken lab."""
    if finding.problem:
        return "broke"
    if finding.missing:  # on a lab that was broken for good it does not come
        return "unsettled"
    if finding.verdict in {"skipped", None}:
        return "undecided"
    if finding.verdict == "inconclusive":
        return "unclear"
    return "held" if finding.as_expected else "refuted"


#: From bad to good: a claim with several checks has flipped if one of them has.
RANK: tuple[Outcome, ...] = ("undecided", "unclear", "held", "unsettled", "broke", "refuted")


def decide(lab: LiveLab | None, wanted: Sequence[str]) -> list[Finding]:
    """The findings of some claims on a lab as it is now."""
    with watched(JUDGED):
        results = run(lab, selection(claims=tuple(wanted), paths=files_with(wanted)))
    if results.interrupted:  # the run within this one has taken the signal for itself
        raise KeyboardInterrupt
    assert not results.broken, results.broken
    return results.findings


def try_out(sabotage: Sabotage, lab: LiveLab) -> Trial:
    """Break the lab, and put the claims that must flip to the test.

    It is tried again where a busy machine has left open what is measured, or has kept a check
    waiting longer than it waits here.
    """
    began = time.monotonic()
    with sabotage.make(lab), impatient():
        for _ in range(ATTEMPTS):
            found = decide(lab if sabotage.lab else None, sabotage.flips)
            if not any(_is_open(one, sabotage) for one in found):
                break
    if sabotage.lab and not sabotage.ruins:
        forget(lab)
    outcomes: dict[str, Outcome] = dict.fromkeys(sabotage.flips, "undecided")
    said = dict.fromkeys(sabotage.flips, "no check of it ran")
    for finding in found:
        one = outcome(finding)
        if RANK.index(one) >= RANK.index(outcomes[finding.claim]):
            outcomes[finding.claim] = one
            said[finding.claim] = f"{finding.verdict}: {finding.problem or finding.reason}"
    return Trial(sabotage, outcomes, said, time.monotonic() - began)


def _is_open(finding: Finding, sabotage: Sabotage) -> bool:
    """Tell whether a finding decides nothing about the sabotage, so that another try may."""
    waited = outcome(finding) == "unsettled" and finding.claim not in sabotage.vain
    return waited or outcome(finding) == "unclear"


CLAIM = re.compile(rf'@pytest\.mark\.{pytest_plugin.CLAIM}\(\s*"([^"]+)"')


def files_with(wanted: Sequence[str]) -> tuple[Path, ...]:
    """The suites with the checks of some claims: the others need not be read."""
    return tuple(
        path
        for path in sorted(FOLDER.glob("test_*.py"))
        if set(wanted) & set(CLAIM.findall(path.read_text(encoding="utf-8")))
    )


def can_be_refuted() -> list[str]:
    """The claims that a check can refute here, in the order of the catalogue."""
    return [
        claim.id
        for claim in claims().values()
        if claim.is_testable and not set(claim.needs) & BROUGHT
    ]


@dataclass
class Labs:
    """The lab that is up: one at a time, kept for as long as the next sabotage wants the same."""

    settings: Settings = field(default_factory=settings)
    up: LiveLab | None = None
    topology: str = NO_LAB
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def get(self, topology: str) -> LiveLab:
        """The lab of a topology, brought up unless it is."""
        if self.up is None or self.topology != topology:
            self.drop()
            name, overrides = VARIANTS.get(topology, (topology, Overrides()))
            wanted = load(name, overrides.named(f"sabotage-{topology}"))
            lab = Lab(wanted.name, self.settings)
            self.topology = topology
            lab.up(wanted)
            self.up = LiveLab(lab.context())
            if KubernetesSection.find(self.up.topology):
                self.held.enter_context(cluster.held(self.up))
        return self.up

    def drop(self) -> None:
        """Take the lab down."""
        self.held.pop_all()  # what is in the cluster goes with it
        cluster.HELD.clear()
        if self.up is not None:
            self.up.close()
        if self.topology:
            Lab(f"sabotage-{self.topology}", self.settings).down()
        self.up, self.topology = None, NO_LAB


@contextlib.contextmanager
def dropped_when_not_whole(labs: Labs, *, ruins: bool) -> Iterator[None]:
    """Use a new lab for the next trial if this one was not or cannot be repaired."""
    try:
        yield
    except BaseException:
        labs.drop()
        raise
    if ruins:
        labs.drop()


def not_as_expected(lab: LiveLab | None, wanted: list[str]) -> dict[str, str]:
    """Of some claims those that did not end as expected, and why."""
    return {f.claim: f.problem or f.reason for f in decide(lab, wanted) if not f.as_expected}

"""The verdicts of claims by provider, as far as they are known without a lab.

A claim has the verdict that it expects, unless one of these holds for a provider: it can create no
lab of the catalogue that has what the claim needs; the check changes machines, and those of the
provider exist already; the claim says so itself (``otherwise``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from testbed.claims import marks
from testbed.errors import TopologyError, UsageError
from testbed.pytest_checks import features
from testbed.registry import PROVIDERS, existing
from testbed.topology.load import Overrides, vary

if TYPE_CHECKING:
    from testbed.claims.catalogue import Catalogue
    from testbed.claims.labs import Wanted
    from testbed.claims.model import Claim, Verdict


@dataclass(frozen=True, slots=True)
class Known:
    """A verdict; ``why`` is the reason if the provider is one."""

    verdict: Verdict
    why: str = ""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def verdicts(
    catalogue: Catalogue,
    claims: Iterable[Claim] | None = None,
    providers: Iterable[str] | None = None,
) -> dict[str, dict[str, Known]]:
    """Return the verdict of each claim with each provider, by claim ID and provider.

    ``claims`` are by default all of the catalogue, ``providers`` all that can be loaded.  Raises
    UsageError and TopologyError for a lab of the catalogue that cannot be loaded.
    """
    names = [*(PROVIDERS.usable() if providers is None else providers)]
    labs, changing = _Labs(catalogue.labs), _changing(catalogue)
    return {
        claim.id: {name: _known(claim, name, labs, changing) for name in names}
        for claim in (catalogue.claims.values() if claims is None else claims)
    }


def table(found: Mapping[str, Mapping[str, Known]]) -> list[tuple[str, ...]]:
    """Return the rows of a table of :func:`verdicts`, the names of the providers first."""
    names = next(iter(found.values()), {})
    rows = ((claim, *(row[name].verdict for name in names)) for claim, row in found.items())
    return [("claim", *names), *rows]


def reasons(found: Mapping[str, Mapping[str, Known]]) -> dict[str, Counter[Known]]:
    """Return the verdicts that have a provider as their reason, with their number, by provider."""
    names = next(iter(found.values()), {})
    every = {name: Counter(row[name] for row in found.values() if row[name].why) for name in names}
    return {name: counter for name, counter in every.items() if counter}


def _known(claim: Claim, provider: str, labs: _Labs, changing: Collection[str]) -> Known:
    if not claim.is_testable or "none" in claim.needs:
        return Known(claim.expect)
    if why := labs.refusal(claim, provider):
        return Known("skipped", why)
    if claim.id in changing and (machines := existing([provider])):
        return Known("skipped", f"the check changes {machines}, and changes are not allowed")
    facts = {"provider": provider}
    if why := claim.undecided(facts):
        return Known("skipped", why)
    verdict, why = claim.expected(facts)
    return Known(verdict, why if (verdict, why) != (claim.expect, claim.why) else "")


def _changing(catalogue: Catalogue) -> set[str]:
    """Return the claims whose checks change machines."""
    found = (mark for folder in catalogue.folders for mark in marks.marked(folder))
    return {mark.claim for mark in found if mark.changes}


class _Labs:
    """The labs of a catalogue; each is loaded when it is first needed."""

    def __init__(self, labs: Iterable[Wanted]) -> None:
        self._labs = tuple(labs)
        self._has: dict[Wanted, AbstractSet[str]] = {}
        self._refusals: dict[tuple[Wanted, str], str] = {}

    def refusal(self, claim: Claim, provider: str) -> str:
        """Return why a provider can create no lab that has what a claim needs.

        It is the first reason; empty if it can create one, or if the catalogue names none.
        """
        needs, first = set(claim.needs), ""
        for lab in self._labs:
            if claim.document in lab.documents and needs <= self._features(lab):
                why = self._refusal(lab, provider)
                if not why:
                    return ""
                first = first or why
        return first

    def _features(self, lab: Wanted) -> AbstractSet[str]:
        if lab not in self._has:
            self._has[lab] = features(lab.load())
        return self._has[lab]

    def _refusal(self, lab: Wanted, provider: str) -> str:
        """Return why a provider cannot create a lab; empty if it can."""
        key = lab, provider
        if key not in self._refusals:
            self._refusals[key] = _refused(lab, provider)
        return self._refusals[key]


def _refused(lab: Wanted, provider: str) -> str:
    try:
        vary(lab.load(), Overrides(provider=provider))
    except TopologyError as error:
        wanted = dict.fromkeys(problem.wanted for problem in error.problems)
        return f"no lab: wanted {'; '.join(wanted)}"
    except UsageError as error:
        return f"no lab: {error.message}"
    return ""

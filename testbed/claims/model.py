"""Claims: the statements of a document, and the findings of their checks."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from testbed.registry import ROLES

#: ``conditional``: true under a condition that the document does not name, false otherwise.
#: ``not testable``: a definition or a motive, which no machine can refute.
#: ``inconclusive``: the spread of the measurements is larger than the difference, or the system
#: had not settled when the check stopped waiting.
Verdict = Literal[
    "confirmed", "contradicted", "conditional", "skipped", "inconclusive", "not testable"
]
Kind = Literal["state", "reach", "path", "isolation", "arith", "perf", "definition", "api"]

ANY_LAB = "netns"  #: the feature of every lab
#: Features that every lab or no lab has, or that nodes have without a role (words of ``needs``).
OF_NODES: Mapping[str, str] = {
    "none": "no lab at all: it is computed",
    ANY_LAB: "any lab: each machine has namespaces",
    "gateway": "a gateway node, which stands for the rest of the world",
}


def feature_words() -> dict[str, str]:
    """Return the features that a claim can require of a lab, and their meanings."""
    found = dict(OF_NODES)
    for role in ROLES.usable().values():
        found |= role.needs or {role.name: f"a node with the role {role.name}"}
    return found


def fact_names() -> tuple[str, ...]:
    """Return the facts of a lab that an expectation may depend on.

    See :attr:`testbed.labs.live.LiveLab.facts`.
    """
    of_roles = (name for role in ROLES.usable().values() for name in role.fact_names)
    return tuple(dict.fromkeys(("provider", *of_roles)))


#: Verdicts that a claim can be expected to have.
EXPECTED: tuple[Verdict, ...] = ("confirmed", "contradicted", "conditional", "not testable")
#: Verdicts of an alternative expectation: a check that cannot decide its claim there skips it.
ALTERNATIVES: tuple[Verdict, ...] = (*EXPECTED, "skipped")

COMPARISON = re.compile(r"(<|<=|>=|>) (\d+(?:\.\d+)*)")
OPERATORS = {"<": operator.lt, "<=": operator.le, ">=": operator.ge, ">": operator.gt}


def fits(wanted: str, seen: str) -> bool:
    """Tell whether a fact meets a condition: a word, or a version as in ``>= 28``.

    Versions are compared over as many numbers as the condition has.

    >>> fits(">= 28", "29.0.1"), fits("> 20.10", "20.10.24"), fits("nftables", "iptables-nft")
    (True, False, False)
    """
    compared = COMPARISON.fullmatch(wanted)
    if compared is None:
        return wanted == seen
    limit = [int(number) for number in compared[2].split(".")]
    version = [int(number) for number in re.findall(r"\d+", seen)[: len(limit)]]
    return bool(version) and OPERATORS[compared[1]](version, limit)


@dataclass(frozen=True, slots=True)
class Otherwise:
    """An alternative expectation for labs whose facts all meet ``when``."""

    when: Mapping[str, str]
    expect: Verdict
    why: str

    def holds(self, facts: Mapping[str, str]) -> bool:
        return all(name in facts and fits(value, facts[name]) for name, value in self.when.items())


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement.

    ``document`` is the ID of the document, ``place`` the section and lines or
    empty, ``quoted`` the values that the document prints, ``needs`` the features
    that a lab must have (words of :func:`feature_words`), ``expect`` the verdict
    for a present-day system, ``check`` how it is checked, or empty if only the
    test says so, and ``why`` the reason if that is not simply "confirmed".  On a
    lab that meets the condition of an entry in ``otherwise``, the first such entry
    replaces ``expect`` and ``why``.  An entry with "skipped" only tells that the check
    cannot decide the claim there.
    """

    id: str
    document: str
    place: str
    claim: str
    kind: Kind
    needs: tuple[str, ...]
    expect: Verdict
    check: str
    why: str = ""
    quoted: tuple[str, ...] = ()
    otherwise: tuple[Otherwise, ...] = ()

    @property
    def origin(self) -> str:
        """The document's ID, and the place in it if known."""
        return ", ".join(filter(None, (self.document, self.place)))

    @property
    def is_testable(self) -> bool:
        return self.expect != "not testable"

    def expected(self, facts: Mapping[str, str]) -> tuple[Verdict, str]:
        """Return the expected verdict for a lab with these facts, and the reason."""
        for other in self.otherwise:
            if other.expect != "skipped" and other.holds(facts):
                return other.expect, other.why
        return self.expect, self.why

    def undecided(self, facts: Mapping[str, str]) -> str:
        """Return why the check skips the claim on a lab with these facts; empty if it does not."""
        found = (one.why for one in self.otherwise if one.expect == "skipped" and one.holds(facts))
        return next(found, "")

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "document": self.document,
            "place": self.place,
            "claim": self.claim,
            "kind": self.kind,
            "needs": list(self.needs),
            "expect": self.expect,
            "check": self.check,
            "why": self.why,
            "quoted": list(self.quoted),
            "otherwise": [asdict(other) for other in self.otherwise],
        }


@dataclass(frozen=True, slots=True)
class Document:
    """A text whose statements are the claims.

    ``title`` is in the document's own ``language`` (a tag of BCP 47), ``titles`` are translations
    of it by language, ``claims_in`` is the language in which its claims are written.
    """

    id: str
    title: str
    language: str
    claims_in: str
    titles: Mapping[str, str] = field(default_factory=dict)
    link: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Order:
    """A shell command of a sabotage; ``place`` is ``NODE`` or ``NODE/CONTAINER``."""

    place: str
    command: str


@dataclass(frozen=True, slots=True)
class Sabotage:
    """A way to break a lab on purpose, with which the checks of ``claims`` must fail.

    ``faults`` are in the words of ``testbed fault``.  They are healed, and ``undo`` is run, after
    the checks.
    """

    name: str
    what: str
    claims: tuple[str, ...]
    faults: tuple[str, ...] = ()
    do: tuple[Order, ...] = ()
    undo: tuple[Order, ...] = ()


@dataclass(frozen=True, slots=True)
class Translation:
    """A claim's texts in another language; ``otherwise`` keeps the entry's order."""

    claim: str
    why: str = ""
    otherwise: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {"claim": self.claim, "why": self.why, "otherwise": list(self.otherwise)}


def texts(claim: Mapping[str, Any], translation: Mapping[str, Any]) -> Mapping[str, str]:
    """Map a claim's own texts to their translations, where they exist.

    Both are plain data, as ``to_dict`` returns it.
    """
    pairs = [(claim[key], translation[key]) for key in ("claim", "why")]
    reasons = [other["why"] for other in claim["otherwise"]]
    if len(reasons) == len(translation["otherwise"]):  # otherwise they can't be matched
        pairs += zip(reasons, translation["otherwise"], strict=True)
    return {own: text for own, text in pairs if own and text}


WALK = "path of a packet: "  #: begins evidence that is a saved walk

#: The judgements of :class:`testbed.claims.observation.Observation`, and whether each supports
#: the statement; None: it decides nothing.
JUDGEMENTS: Mapping[str, bool | None] = {
    "holds": True,
    "does not hold": False,
    "holds when": True,
    "does not hold even when": False,
    "fails when": True,
    "does not fail even when": False,
    "not clear": None,
}


@dataclass(frozen=True, slots=True)
class Evidence:
    """An action of a check and its outcome, as text."""

    what: str
    seen: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """Figures measured in rounds, side by side.

    ``series`` maps each subject of measurement to its figures, one a round, all
    in ``unit``; ``better`` says which direction is better.
    """

    what: str
    unit: str
    series: Mapping[str, tuple[float, ...]]
    better: Literal["higher", "lower"]


@dataclass(slots=True)
class Finding:
    """The result of one check of one claim on one lab.

    ``expected`` and ``why`` come from the catalogue, for that lab.  ``problem``
    is set if the check itself failed, ``missing`` if it timed out waiting for the
    system to settle: no verdict is given on a system that has not settled.
    """

    claim: str
    verdict: Verdict | None
    seconds: float = 0.0
    reason: str = ""
    problem: str = ""
    missing: str = ""
    evidence: list[Evidence] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    expected: Verdict | None = None
    why: str = ""

    def unsettled(self, missing: str) -> None:
        """Record that the check timed out before the system settled, so gives no verdict."""
        self.verdict, self.missing = "inconclusive", missing
        self.reason = f"expected {self.expected}: {missing}"

    @property
    def as_expected(self) -> bool:
        """True if the verdict is as expected and the check had no problem.

        An inconclusive measurement counts as expected: it reflects noise on the machine and is
        no evidence against the claim.  A lab that does not settle is broken or overloaded: not
        as expected.
        """
        return not (self.problem or self.missing) and self.verdict in {
            self.expected or "confirmed",
            "skipped",
            "inconclusive",
        }

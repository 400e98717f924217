"""A claim: one statement of a document, and what testing it came to."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

#: ``depends``: true under a condition that the document does not name, false otherwise.
#: ``not testable``: a definition or a motive, which no machine can refute.
#: ``inconclusive``: the spread of what was measured is larger than the difference, or what comes
#: about by itself was still missing when the check stopped waiting.
Verdict = Literal[
    "confirmed", "contradicted", "depends", "not here", "inconclusive", "not testable"
]
Kind = Literal["state", "reach", "path", "isolation", "arith", "perf", "definition", "api"]

#: What a lab may have to have for a claim, in the words of ``needs``, and what each means.
FEATURES: Mapping[str, str] = {
    "none": "no lab at all: it is computed",
    "netns": "any lab: each machine has namespaces",
    "namespaces": "a node with namespaces of the topology's own, as document 002 makes them",
    "docker": "a node with Docker",
    "plain-docker": "a node with Docker, and no flannel",
    "two-docker-nodes": "two nodes with Docker, or more",
    "etcd": "a node with etcd",
    "flannel": "flannel, whatever its backend",
    "flannel-udp": "flannel with the backend udp",
    "flannel-vxlan": "flannel with the backend vxlan",
    "flannel-host-gw": "flannel with the backend host-gw",
    "kubernetes": "a Kubernetes cluster",
    "dns": "a cluster with a DNS of its own",
    "ingress": "a cluster with an Ingress controller",
    "network-policy": "a cluster whose network plugin enforces policies",
    "hairpin": "a cluster whose Pods reach themselves by a Service",
    "pods-by-flannel": "a cluster whose Pods are joined by flannel",
    "pods-by-bgp": "a cluster whose Pods are joined by routes that BGP spreads",
    "pods-by-cilium": "a cluster whose Pods are joined by Cilium",
    "pods-by-calico": "a cluster whose Pods are joined by Calico",
    "pods-by-kube-router": "a cluster whose Pods are joined by Kube-router",
    "pods-by-weave": "a cluster whose Pods are joined by Weave Net",
    "pods-over-vxlan": "a cluster whose flannel has the backend vxlan",
    "gateway": "a gateway node, which stands for the rest of the world",
}

#: Of these, what a Kubernetes cluster alone may have.
OF_CLUSTERS = tuple(
    name
    for name in FEATURES
    if name in {"kubernetes", "dns", "ingress", "network-policy", "hairpin"}
    or name.startswith("pods-")
)

#: What of a lab an expectation may depend on (see :attr:`testbed.labs.live.LiveLab.facts`).
FACTS = ("docker", "firewall", "backend", "provider", "cni", "proxy")
COMPARISON = re.compile(r"(<|<=|>=|>) (\d+(?:\.\d+)*)")
OPERATORS = {"<": operator.lt, "<=": operator.le, ">=": operator.ge, ">": operator.gt}


def fits(wanted: str, seen: str) -> bool:
    """Whether a fact is what a condition wants: a word, or a version compared as ``>= 28``.

    A version is compared in as many numbers as the condition has.

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
    """Another expectation, for labs whose facts all fit ``when``."""

    when: Mapping[str, str]
    expect: Verdict
    why: str

    def holds(self, facts: Mapping[str, str]) -> bool:
        return all(name in facts and fits(value, facts[name]) for name, value in self.when.items())


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement.

    ``document`` is the number of the document, ``place`` its section and
    lines, ``quoted`` the values that it prints, ``needs`` what a lab must have
    (words of FEATURES), ``expect`` the verdict that a present-day system gives
    and ``why`` the reason where that is not plainly "confirmed".  The first of
    ``otherwise`` whose condition fits a lab takes the place of ``expect`` and
    ``why`` there.
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
    def is_testable(self) -> bool:
        return self.expect != "not testable"

    def expected(self, facts: Mapping[str, str]) -> tuple[Verdict, str]:
        """The verdict that is expected on a lab with these facts, and why."""
        for other in self.otherwise:
            if other.holds(facts):
                return other.expect, other.why
        return self.expect, self.why

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
class Translation:
    """A claim's texts in another language; ``otherwise`` has the reasons in the entry's order."""

    claim: str
    why: str = ""
    otherwise: tuple[str, ...] = ()

    def texts(self, claim: Claim) -> Mapping[str, str]:
        """The claim's English texts with what each is called here, as far as there are any."""
        pairs = [(claim.claim, self.claim), (claim.why, self.why)]
        if len(self.otherwise) == len(claim.otherwise):  # else which is whose is not known
            reasons = (other.why for other in claim.otherwise)
            pairs += zip(reasons, self.otherwise, strict=True)
        return {english: text for english, text in pairs if english and text}


#: What :class:`testbed.claims.observation.Observation` calls its judgements, and whether
#: each speaks for the statement; None: it decides nothing.
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
    """One thing that was done and what came of it, as text."""

    what: str
    seen: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """Figures that were measured in rounds, side by side.

    ``series`` maps what was measured to its figure of each round, all in
    ``unit``; ``better`` says which way is good.
    """

    what: str
    unit: str
    series: Mapping[str, tuple[float, ...]]
    better: Literal["higher", "lower"]


@dataclass(slots=True)
class Finding:
    """What one check of one claim came to on one lab.

    ``expected`` and ``why`` are the catalogue's for that lab.  ``problem`` is set
    when the check itself failed, ``missing`` when it has waited in vain for what
    comes about by itself: no verdict is given on a system that has not settled.
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
        """Note that no verdict is due: what the check needs was missing when it gave up waiting."""
        self.verdict, self.missing = "inconclusive", missing
        self.reason = f"expected {self.expected}: {missing}"

    @property
    def as_expected(self) -> bool:
        """Whether nothing is to be said against it.

        A measurement may be inconclusive: that says something of the machine's quiet, nothing
        against the claim. A lab that does not settle is broken, or far too busy: both are told.
        """
        return not (self.problem or self.missing) and self.verdict in {
            self.expected or "confirmed",
            "not here",
            "inconclusive",
        }

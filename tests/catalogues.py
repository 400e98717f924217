"""The shipped catalogue, read once for all tests of a process."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from testbed.catalogues.shipped import FOLDER
from testbed.claims.catalogue import Catalogue
from testbed.claims.load import load
from testbed.claims.model import Claim, Document
from testbed.suites.by_provider import Known, verdicts
from testbed.suites.model import Selection

#: Features that a cluster alone can have.
OF_CLUSTERS = ("kubernetes", "dns", "ingress", "network-policy", "hairpin", "pods-")


@functools.cache
def shipped() -> Catalogue:
    return load(FOLDER)


@functools.cache
def by_provider() -> Mapping[str, Mapping[str, Known]]:
    """The verdicts of the shipped claims with each provider."""
    return verdicts(shipped())


def claims() -> Mapping[str, Claim]:
    """The claims of the shipped catalogue by id."""
    return shipped().claims


def selection(*args: Any, **more: Any) -> Selection:
    """A selection of the shipped catalogue."""
    return Selection(*args, **{"catalogue": shipped(), **more})


def of_claims(*some: Claim) -> Catalogue:
    """A catalogue of these claims, and of documents that they are of."""
    documents = dict.fromkeys(claim.document for claim in some)
    return Catalogue(
        documents={name: Document(name, f"Title of {name}", "en", "en") for name in documents},
        claims={claim.id: claim for claim in some},
    )


def of_a_cluster(claim: Claim) -> bool:
    """Tell whether a claim is about a Kubernetes cluster."""
    return any(need.startswith(OF_CLUSTERS) for need in claim.needs)

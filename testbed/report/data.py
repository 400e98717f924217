"""A run as data: the format of ``verify --json``, the HTML report, the record."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from testbed import __version__
from testbed.claims.model import Document
from testbed.errors import UsageError

if TYPE_CHECKING:
    from testbed.claims.model import Finding
    from testbed.suites.model import LabRun, Run

VERSION = 3
#: Verdicts that version 2 named differently.
RENAMED = {"depends": "conditional", "not here": "skipped"}


def to_dict(run: Run) -> dict[str, Any]:
    """Return the run: machine, labs with findings and evidence, verdict of each claim."""
    worst = run.worst()
    found = run.by_claim()
    meant = [*run.meant()]
    documents = {claim.document for claim in meant}
    return {
        "version": VERSION,
        "testbed": __version__,
        "started": datetime.fromtimestamp(run.started, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "seconds": round(run.seconds, 3),
        "interrupted": run.signum is not None,
        "complete": run.complete,
        "machine": machine(),
        "labs": [_lab(lab) for lab in run.labs],
        "catalogues": [source.to_dict() for source in run.catalogue.sources],
        "documents": [
            document.to_dict()
            for document in run.catalogue.documents.values()
            if document.id in documents
        ],
        "claims": [
            {
                **claim.to_dict(),
                "translations": run.catalogue.texts(claim.id),
                "verdict": run.verdict(claim, worst),
                "as_expected": (
                    all(finding.as_expected for _, finding in found[claim.id])
                    if claim.id in found
                    else not claim.is_testable
                ),
            }
            for claim in meant
        ],
    }


def current(run: object) -> Mapping[str, Any]:
    """Return a record of this version or of version 2 in the present form.

    Raises UsageError for anything else.
    """
    if not isinstance(run, dict) or run.get("version") not in (2, VERSION):
        raise UsageError(
            "not the record of a run that this version of testbed can read",
            hint="create one with `testbed verify --json FILE`",
        )
    if run["version"] == VERSION:
        return run
    renamed: dict[str, Any] = _renamed(run)
    claims = [{**claim, "translations": {}} for claim in renamed["claims"]]
    documents = [
        Document(name, "", "en", "en").to_dict()
        for name in dict.fromkeys(claim["document"] for claim in claims)
    ]
    return {
        **renamed,
        "version": VERSION,
        "catalogues": [],
        "documents": documents,
        "claims": claims,
    }


def _renamed(part: Any) -> Any:
    """Return a part of a record of version 2 with the present names of the verdicts."""
    if isinstance(part, list):
        return [_renamed(item) for item in part]
    if not isinstance(part, dict):
        return part
    return {
        key: RENAMED.get(value, value)
        if key in {"verdict", "expected", "expect"} and isinstance(value, str)
        else _renamed(value)
        for key, value in part.items()
    }


def tested(run: Mapping[str, Any]) -> bool:
    """Tell whether a run, as :func:`to_dict` returns it, tested anything."""
    return any(
        any(finding["verdict"] != "skipped" for finding in lab["findings"])
        or any(check["outcome"] != "skipped" for check in lab["checks"])
        for lab in run["labs"]
    )


def _lab(lab: LabRun) -> dict[str, Any]:
    results = lab.results
    return {
        "lab": lab.name,
        "topology": lab.topology.to_dict() if lab.topology else None,
        "facts": dict(lab.facts),
        "versions": dict(lab.versions),
        "picture": dict(lab.picture),
        "up": round(lab.up, 3),
        "seconds": round(lab.seconds, 3),
        "down": round(lab.down, 3),
        "error": lab.error,
        "absent": lab.absent,
        "interrupted": results.interrupted,
        "findings": [_finding(finding) for finding in results.findings],
        "checks": [asdict(check) for check in results.checks],
        "elsewhere": results.elsewhere,
        "missed": results.missed,
        "broken": results.broken,
    }


def _finding(finding: Finding) -> dict[str, Any]:
    seconds = round(finding.seconds, 4)
    return {**asdict(finding), "seconds": seconds, "as_expected": finding.as_expected}


def machine() -> dict[str, Any]:
    """Describe the machine that ran the checks.  ``memory`` is in bytes."""
    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:  # the file is optional
        system = ""
    return {
        "kernel": platform.release(),
        "system": system or platform.system(),
        "architecture": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }

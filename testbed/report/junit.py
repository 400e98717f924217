"""A run as JUnit XML for CI services: a suite per lab, a case per claim or test."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from testbed.claims.catalogue import Catalogue
    from testbed.claims.model import Finding
    from testbed.suites.model import LabRun, Run

#: Characters that XML 1.0 forbids (section 2.2), but a command's output may contain.
UNFIT = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_xml(run: Run) -> bytes:
    """Return the document, encoded."""
    root = ET.Element("testsuites", name="testbed", time=f"{run.seconds:.3f}")
    for lab in run.labs:
        _suite(root, lab, run.catalogue)
    ET.indent(root)
    document: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return document


def _suite(root: ET.Element, lab: LabRun, catalogue: Catalogue) -> None:
    suite = ET.SubElement(root, "testsuite", name=lab.name, time=f"{lab.seconds:.3f}")
    for finding in lab.results.findings:
        case = _case(suite, f"{lab.name}.{catalogue.claims[finding.claim].document}", finding)
        evidence = "\n".join(f"{piece.what}\n{piece.seen}" for piece in finding.evidence)
        ET.SubElement(case, "system-out").text = _fit(evidence)
    for check in lab.results.checks:
        case = ET.SubElement(
            suite,
            "testcase",
            classname=lab.name,
            name=_fit(check.name),
            time=f"{check.seconds:.3f}",
        )
        if check.evidence:
            evidence = "\n".join(f"{piece.what}\n{piece.seen}" for piece in check.evidence)
            ET.SubElement(case, "system-out").text = _fit(evidence)
        if check.outcome == "failed":
            _said(case, "failure", check.problem)
        elif check.outcome == "skipped":
            _said(case, "skipped", check.problem)
    for text in [*lab.results.broken, *([lab.error] if lab.error else [])]:
        case = ET.SubElement(suite, "testcase", classname=lab.name, name="lab", time="0")
        _said(case, "error", text)
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(len(list(suite.iter(tag)))))
    suite.set("tests", str(len(suite.findall("testcase"))))


def _case(suite: ET.Element, group: str, finding: Finding) -> ET.Element:
    case = ET.SubElement(
        suite, "testcase", classname=group, name=finding.claim, time=f"{finding.seconds:.3f}"
    )
    if finding.problem:
        _said(case, "error", finding.problem)
    elif not finding.as_expected:
        _said(case, "failure", f"{finding.verdict}: {finding.reason}")
    elif finding.verdict == "skipped":
        _said(case, "skipped", finding.reason)
    return case


def _said(case: ET.Element, tag: str, text: str) -> None:
    first = text.partition("\n")[0]
    ET.SubElement(case, tag, message=_fit(first)).text = _fit(text)


def _fit(text: str) -> str:
    return UNFIT.sub("\N{REPLACEMENT CHARACTER}", text)

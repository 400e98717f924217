"""Begin a catalogue: ``testbed claims new``."""

from __future__ import annotations

from pathlib import Path

from testbed.claims.load import CATALOGUE, CLAIMS, SABOTAGES
from testbed.errors import TopologyError, UsageError
from testbed.topology import skeleton
from testbed.topology.load import beside, load

HEAD = """\
# The catalogue as a whole. Without `labs`, its labs are the topologies in the folder above.
name: {name}
title: {title}
language: en
"""

DOCUMENT = """\
# One file for each document. Its name, {name}, is the document's ID.
title: {title}
language: en
# link: https://example.com/the-document
claims:
- id: {name}-lo-is-up
  place: section 1
  claim: The loopback interface of {node} is up.
  kind: state
  needs: [netns]
  expect: confirmed
  check: >-
    `ip -j link show dev lo` on {node}. Refuted if UP is not among its flags.
"""

CHECK = '''\
"""Checks of the claims in {name}.yaml."""

import pytest


@pytest.mark.testbed_claim("{name}-lo-is-up")
@pytest.mark.testbed_needs("netns")
def test_lo_is_up(lab, observe):
    (lo,) = observe.json(lab.node("{node}"), ["ip", "-j", "link", "show", "dev", "lo"])
    # Judge what the claim says. This line does, in place of the one below it:
    # observe.holds("UP" in lo["flags"], "lo is up")
    observe.holds(False, "this check is complete")
'''

BROKEN = """\
# Ways to break the lab. `testbed verify {name} --prove` shows that the checks then fail.
- name: lo-is-down
  what: The loopback interface of {node} is set down.
  claims: [{name}-lo-is-up]
  do:
  - {node}: ip link set dev lo down
  undo:
  - {node}: ip link set dev lo up
"""

README = """\
# {title}

- `{topology}`: the lab
- `claims/{name}.yaml`: the claims of a document
- `claims/test_{name}.py`: their checks. The first one fails until you complete it
- `claims/sabotages.yaml`: ways to break the lab, with which the checks must fail

    testbed up ./{topology}
    testbed verify {lab}            # each claim, with the verdict of its check
    testbed verify {lab} --prove    # can each check fail?
    testbed down {lab}
"""


def create(folder: Path) -> list[Path]:
    """Write the files of a new catalogue: FOLDER/claims, and what is missing beside it.

    A topology and a README are written only if there is none.  Returns the new files.  Raises
    UsageError, before anything is written, if there is a folder ``claims`` with files.
    """
    folder = folder.resolve()
    claims = folder / CLAIMS
    if claims.exists() and (not claims.is_dir() or any(claims.iterdir())):
        raise UsageError(
            f"{claims} exists already", hint="choose another folder, or add to the files there"
        )
    name = skeleton.name_from(folder.name)
    texts: dict[Path, str] = {}
    found = _topology(folder)
    if found is None:
        topology, lab, node = f"{name}.yaml", name, "node1"
        texts[folder / topology] = skeleton.TOPOLOGY
    else:
        loaded = load(found)
        topology, lab, node = found.name, loaded.name, next(iter(loaded.nodes))
    texts[claims / CATALOGUE] = HEAD
    texts[claims / f"{name}.yaml"] = DOCUMENT
    texts[claims / f"test_{name.replace('-', '_')}.py"] = CHECK
    texts[claims / SABOTAGES] = BROKEN
    if not (folder / "README.md").exists():
        texts[folder / "README.md"] = README.replace("test_{name}", "test_{module}")
    return skeleton.write(
        texts,
        name=name,
        module=name.replace("-", "_"),
        title=name.replace("-", " ").capitalize(),
        description="Two machines for the claims in the folder claims.",
        topology=topology,
        lab=lab,
        node=node,
    )


def _topology(folder: Path) -> Path | None:
    """Return the first file in a folder that is a valid topology."""
    for path in beside(folder):
        try:
            load(path)
        except TopologyError:
            continue
        return path
    return None

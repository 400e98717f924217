"""Every check can fail: each claim is seen to flip on a lab, or with a tool, that was broken.

``make sabotage`` runs this alone and shows the table.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from sabotage import (
    of_addresses,
    of_docker,
    of_flannel,
    of_namespaces,
    of_performance,
    of_traces,
)
from sabotage.trials import (
    SABOTAGES,
    Labs,
    Sabotage,
    Trial,
    decide,
    impatient,
    try_out,
)

if TYPE_CHECKING:
    from testbed.lab.live import LiveLab

# They enter their sabotages when they are imported.
MODULES = (of_addresses, of_docker, of_flannel, of_namespaces, of_performance, of_traces)
TOPOLOGIES = sorted({one.lab for one in SABOTAGES})


def name(one: Sabotage) -> str:
    return one.name


@contextlib.contextmanager
def _dropped_when_not_whole(labs: Labs, *, ruins: bool) -> Iterator[None]:
    """The next gets a new lab where this one cannot be, or has not been, put right."""
    try:
        yield
    except BaseException:
        labs.drop()
        raise
    if ruins:
        labs.drop()


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=name)
def test_the_claims_flip(sabotage: Sabotage, labs: Labs, trials: list[Trial]) -> None:
    with _dropped_when_not_whole(labs, ruins=sabotage.ruins):
        trial = try_out(sabotage, labs.get(sabotage.lab or "netns-experiments"))
    trials.append(trial)
    stayed = {claim: trial.said[claim] for claim in trial.having("held", "undecided")}
    assert not stayed, f"{sabotage.what} These claims did not flip"
    if trial.having("unclear"):
        pytest.skip(f"the machine is too busy to measure: {', '.join(trial.having('unclear'))}")


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda topology: topology or "no lab")
def test_the_lab_is_whole_again(topology: str, labs: Labs) -> None:
    """What has flipped holds on the lab that was broken, and put right, so many times.

    So it was the sabotage that made it flip, and not the waits, which are as short here.
    """
    wanted = sorted({claim for one in SABOTAGES if one.lab == topology for claim in one.flips})
    lab = labs.get(topology) if topology else None
    with _dropped_when_not_whole(labs, ruins=False), impatient():
        wrong = _not_as_expected(lab, wanted)
        # A busy machine may hold up a packet or a capture once; what is left broken stays so.
        wrong = _not_as_expected(lab, sorted(wrong)) if wrong else {}
    assert wrong == {}


def _not_as_expected(lab: LiveLab | None, wanted: list[str]) -> dict[str, str]:
    """Of some claims those that did not end as expected, and why."""
    return {f.claim: f.problem or f.reason for f in decide(lab, wanted) if not f.as_expected}

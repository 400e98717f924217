"""Every check of a cluster can fail: each claim is seen to flip on a cluster that was broken."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sabotage.every import SABOTAGES
from sabotage.trials import (
    CLUSTERS,
    VARIANTS,
    Labs,
    Sabotage,
    dropped_when_not_whole,
    not_as_expected,
    try_out,
)

from testbed.suites.everything import lacking
from testbed.suites.prove import impatient
from testbed.topology.load import Overrides, load

HERE = sorted(
    (one for one in SABOTAGES if one.lab.startswith(CLUSTERS)), key=lambda one: (one.lab, one.ruins)
)
TOPOLOGIES = sorted({one.lab for one in HERE})


@pytest.fixture(scope="module")
def labs() -> Iterator[Labs]:
    kept = Labs()
    yield kept
    kept.drop()


def skip_what_is_not_made(topology: str, labs: Labs) -> None:
    """A plugin that takes an hour to build is not built for a test."""
    name, overrides = VARIANTS.get(topology, (topology, Overrides()))
    if why := lacking(labs.settings.store, load(name, overrides)):
        pytest.skip(why)


@pytest.mark.seconds(4)
@pytest.mark.parametrize("sabotage", HERE, ids=lambda one: one.name)
def test_the_claims_flip(sabotage: Sabotage, labs: Labs) -> None:
    skip_what_is_not_made(sabotage.lab, labs)
    with dropped_when_not_whole(labs, ruins=sabotage.ruins):
        trial = try_out(sabotage, labs.get(sabotage.lab))
    assert trial.wrong == {}, f"{sabotage.what} These claims did not flip"
    if trial.having("unclear"):
        pytest.skip(f"the machine is too busy to measure: {', '.join(trial.having('unclear'))}")


@pytest.mark.seconds(20)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_cluster_is_whole_again(topology: str, labs: Labs) -> None:
    """Flipped claims hold again on the repaired cluster, so many times in a row."""
    skip_what_is_not_made(topology, labs)
    wanted = sorted({claim for one in HERE if one.lab == topology for claim in one.flips})
    lab = labs.get(topology)
    with dropped_when_not_whole(labs, ruins=False):
        with impatient():
            wrong = not_as_expected(lab, wanted)
        # A busy machine may need more than the short waits; what is left broken stays so.
        wrong = not_as_expected(lab, sorted(wrong)) if wrong else {}
    assert wrong == {}

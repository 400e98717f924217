"""Every check can fail: each claim is seen to flip on a lab, or with a tool, that was broken.

``make sabotage`` runs this alone, in the long form, and shows the table.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sabotage.every import SABOTAGES
from sabotage.gather import TRIAL
from sabotage.means import forget
from sabotage.table import write_trial
from sabotage.trials import (
    CLUSTERS,
    Labs,
    Sabotage,
    Share,
    dropped_when_not_whole,
    not_as_expected,
    shares,
    try_out,
)
from sabotage.walks import ENDS, WALKS, is_named, lost, told, walked
from testbed.polling import until
from testbed.suites.prove import impatient

#: Those of clusters are carried out beside the other tests of clusters.
SHARES = shares([one for one in SABOTAGES if not one.lab.startswith(CLUSTERS)])
#: One share shows in `make test` that sabotages work.
FIRST = Share("docker-single", 1)
#: Traffic that is slowed down keeps both processors busy, and a busy machine cannot measure it.
SLOW = (pytest.mark.thorough, pytest.mark.long)
EACH = [
    pytest.param(
        share,
        one,
        id=one.name,
        marks=SLOW if one.slows else () if share == FIRST else pytest.mark.thorough,
    )
    for share, some in SHARES.items()
    for one in some
]


@pytest.mark.seconds(2)
@pytest.mark.parametrize(("share", "sabotage"), EACH)
def test_the_claims_flip(
    share: Share, sabotage: Sabotage, labs: Labs, record_property: Callable[[str, object], None]
) -> None:
    del share
    with dropped_when_not_whole(labs, ruins=sabotage.ruins):
        trial = try_out(sabotage, labs.get(sabotage.lab or "netns-experiments"))
    record_property(TRIAL, write_trial(trial))
    assert trial.wrong == {}, f"{sabotage.what} These claims did not flip"
    if trial.having("unclear"):
        pytest.skip(f"the machine is too busy to measure: {', '.join(trial.having('unclear'))}")


WALKED = [
    pytest.param(
        share,
        one,
        id=one.name,
        marks=SLOW if one.name not in ENDS else () if share == FIRST else pytest.mark.thorough,
    )
    for share, some in SHARES.items()
    for one in some
    if walked(one)
]


@pytest.mark.parametrize(("share", "sabotage"), WALKED)
def test_a_walk_names_what_ended_it(share: Share, sabotage: Sabotage, labs: Labs) -> None:
    """Of a sabotage that breaks no walk there is nothing to name."""
    del share
    lab = labs.get(sabotage.lab)
    wanted = ENDS.get(sabotage.name)
    walks = [(wanted.source, wanted.target, wanted.request)] if wanted else WALKS[sabotage.lab]
    with dropped_when_not_whole(labs, ruins=False):
        for one in walks:
            assert until(lambda one=one: not lost(lab, *one), 120)  # type: ignore[misc]
        with sabotage.make(lab):
            forget(lab)
            ends = [leg.hops[-1] for one in walks for leg in lost(lab, *one)]
        forget(lab)
    if wanted:
        (end,) = ends
        assert (str(end.spot).partition(":")[0], wanted.words in told(end)) == (
            wanted.place, True,
        ), told(end)  # fmt: skip
    assert [told(one) for one in ends if not is_named(one)] == []


@pytest.mark.thorough
@pytest.mark.long
@pytest.mark.seconds(5)
@pytest.mark.parametrize("share", SHARES, ids=str)
def test_the_lab_is_whole_again(share: Share, labs: Labs) -> None:
    """Flipped claims hold again on the repaired lab, so many times in a row.

    So it was the sabotage that made it flip, and not the waits, which are as short here.
    """
    wanted = sorted({claim for one in SHARES[share] for claim in one.flips})
    lab = labs.get(share.lab) if share.lab else None
    with dropped_when_not_whole(labs, ruins=False):
        with impatient():
            wrong = not_as_expected(lab, wanted)
        # A busy machine may need more than the short waits; what is left broken stays so.
        wrong = not_as_expected(lab, sorted(wrong)) if wrong else {}
    assert wrong == {}

"""Every check can fail: each claim is seen to flip on a lab, or with a tool, that was broken.

``make sabotage`` runs this alone and shows the table.
"""

from __future__ import annotations

import pytest

from sabotage import (
    of_addresses,
    of_cni,
    of_docker,
    of_flannel,
    of_ingress,
    of_kube_router,
    of_namespaces,
    of_performance,
    of_pods,
    of_policies,
    of_services,
    of_traces,
)
from sabotage.trials import (
    CLUSTERS,
    SABOTAGES,
    Labs,
    Sabotage,
    Trial,
    dropped_when_not_whole,
    impatient,
    not_as_expected,
    try_out,
)

# They enter their sabotages when they are imported.
MODULES = (
    *(of_addresses, of_docker, of_flannel, of_namespaces, of_performance, of_traces),
    *(of_cni, of_ingress, of_kube_router, of_pods, of_policies, of_services),
)
#: Those of clusters are carried out beside the other tests of clusters.
HERE = [one for one in SABOTAGES if not one.lab.startswith(CLUSTERS)]
TOPOLOGIES = sorted({one.lab for one in HERE})


def name(one: Sabotage) -> str:
    return one.name


@pytest.mark.parametrize("sabotage", HERE, ids=name)
def test_the_claims_flip(sabotage: Sabotage, labs: Labs, trials: list[Trial]) -> None:
    with dropped_when_not_whole(labs, ruins=sabotage.ruins):
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
    with dropped_when_not_whole(labs, ruins=False), impatient():
        wrong = not_as_expected(lab, wanted)
        # A busy machine may hold up a packet or a capture once; what is left broken stays so.
        wrong = not_as_expected(lab, sorted(wrong)) if wrong else {}
    assert wrong == {}

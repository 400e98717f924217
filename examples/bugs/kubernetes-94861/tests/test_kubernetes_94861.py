"""A connection whose answers take another router than its requests."""

import re

ROUTERS = ["node1", "node2"]
ASYMMETRIC, SYMMETRIC = "10.1.0.8", "10.1.0.9"


def connects(lab, address, seconds=30):
    command = ["curl", "-sSo", "/dev/null", "-m", str(seconds), f"http://{address}/"]
    return lab.node("client").run(command, check=False).ok


def dropped(lab, router):
    """Return how many packets the rule for INVALID has dropped."""
    rules = lab.node(router).run(["iptables", "-vS", "KUBE-FORWARD"]).stdout
    return int(re.search(r"INVALID -c (\d+)", rules)[1])


def test_the_router_of_the_answers_drops_them(lab):
    before = dropped(lab, "node2")
    assert not connects(lab, ASYMMETRIC, seconds=3)
    assert dropped(lab, "node2") > before


def test_with_the_same_router_both_ways_it_connects(lab):
    before = dropped(lab, "node1")
    assert connects(lab, SYMMETRIC)
    assert dropped(lab, "node1") == before


def test_without_the_rule_the_asymmetric_path_works(lab):
    rule = ["KUBE-FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"]
    for router in ROUTERS:
        lab.node(router).run(["iptables", "-D", *rule])
    try:
        assert connects(lab, ASYMMETRIC)
    finally:
        for router in ROUTERS:
            lab.node(router).run(["iptables", "-A", *rule])

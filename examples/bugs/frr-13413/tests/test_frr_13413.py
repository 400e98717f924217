"""Two equal paths, of which one was down for a moment."""

from functools import partial

import pytest

from testbed.polling import until

TARGETS = {"r1": "10.0.0.2/32", "r2": "10.0.0.1/32"}


def selected(lab, router):
    """Return how many paths zebra has selected for the other router's address.

    FRR 10 keeps a path whose link is down, as one that is not active.
    """
    command = ["vtysh", "-c", f"show ip route {TARGETS[router]} json"]
    routes = lab.node(router).run(command).json().get(TARGETS[router], [])
    paths = [path for route in routes for path in route["nexthops"]]
    return sum("fib" in path and "active" in path for path in paths)


def has_selected(lab, router, paths):
    return selected(lab, router) == paths


def installed(lab, router):
    """Return how many of them the kernel has."""
    routes = lab.node(router).run(["ip", "-j", "route", "show", "root", TARGETS[router]]).json()
    return sum(len(route.get("nexthops", [route])) for route in routes)


@pytest.fixture(scope="module")
def flapped(lab):
    """Take the first link down and up again, as zebra sees it on both routers."""
    for state, paths in (("up", 2), ("down", 1), ("up", 2)):
        lab.node("r1").run(["ip", "link", "set", "eth1", state])
        for router in TARGETS:
            assert until(partial(has_selected, lab, router, paths), 120)


def test_zebra_shows_two_paths_and_the_kernel_has_one(lab, flapped):
    version = lab.node("r1").run(["vtysh", "-c", "show version"]).stdout.split()[1]
    if not version.startswith("8."):
        pytest.skip(f"FRR {version} is newer than the report")
    assert selected(lab, "r1") == 2
    assert not until(lambda: installed(lab, "r1") != 1, 3)


def test_without_groups_of_next_hops_the_kernel_has_both(lab, flapped):
    assert selected(lab, "r2") == 2
    assert until(lambda: installed(lab, "r2") == 2, 60)

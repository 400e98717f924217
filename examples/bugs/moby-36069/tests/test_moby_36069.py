"""A new container with the address of an old one, and another MAC address."""

import pytest

ADDRESS, FIRST, SECOND = "172.30.0.10", "02:52:00:00:00:01", "02:52:00:00:00:02"


def answers(node):
    return node.run(["ping", "-c1", "-W2", ADDRESS], check=False).ok


def known(node):
    """Return the MAC address that the host knows for the container."""
    (entry,) = node.run(["ip", "-j", "neigh", "show", "to", ADDRESS]).json()
    return entry["lladdr"]


@pytest.fixture
def replaced(lab, host):
    """A host that has sent packets to the first container, and now has the second one."""
    node = lab.node(host)
    # Ten minutes, so that the entry is still there on a slow machine.
    node.run(["sysctl", "net.ipv4.neigh.br-testing.base_reachable_time_ms=600000"])
    run = ["docker", "run", "--detach", "--name=testing", "--network=testing"]
    for mac in (FIRST, SECOND):
        node.run([*run, f"--ip={ADDRESS}", f"--mac-address={mac}", "nginx"])
        if mac == FIRST:
            assert answers(node)
            assert known(node) == FIRST
            node.run(["docker", "rm", "--force", "testing"])
    yield node
    node.run(["docker", "rm", "--force", "testing"])
    node.run(["ip", "neigh", "flush", "to", ADDRESS])


@pytest.mark.parametrize("host", ["old"])
def test_the_host_does_not_reach_it_on_an_engine_before_28_0(replaced):
    assert not answers(replaced)
    assert known(replaced) == FIRST
    replaced.run(["ip", "neigh", "flush", "to", ADDRESS])
    assert answers(replaced)


@pytest.mark.parametrize("host", ["new"])
def test_engine_29_announces_the_new_mac_address(replaced):
    assert answers(replaced)
    assert known(replaced) == SECOND

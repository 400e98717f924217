"""A container with a fixed address that is started again."""

import pytest

HOSTS = pytest.mark.parametrize("host", ["old", "new"])


@pytest.fixture
def node(lab, host):
    found = lab.node(host)
    yield found
    found.run(["docker", "rm", "--force", "fixed", "other"], check=False)


def start_again(node, network, address):
    """Stop a container with a fixed address, start one without, and start the first again."""
    run = ["docker", "run", "--detach", "--network", network]
    node.run([*run, "--name", "fixed", "--ip", address, "nginx"])
    node.run(["docker", "stop", "--time", "0", "fixed"])
    node.run([*run, "--name", "other", "nginx"])
    return node.run(["docker", "start", "fixed"], check=False)


@HOSTS
def test_another_container_may_have_taken_its_address(node):
    done = start_again(node, "plain", "172.30.0.2")
    assert not done.ok
    assert "Address already in use" in done.stderr


@HOSTS
def test_an_address_outside_of_the_range_is_kept(node):
    assert start_again(node, "ranged", "172.31.0.2").ok

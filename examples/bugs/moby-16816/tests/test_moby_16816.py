"""Published ports after somebody else has removed all rules of iptables."""

import pytest

RUN = ["docker", "run", "-d", "--rm", "--name=web", "-p", "8080:80", "nginx"]
HOSTS = pytest.mark.parametrize("host", ["old", "new"])


def restart(node):
    node.run(["systemctl", "restart", "docker"])
    node.run(["sh", "-c", "until docker info; do sleep 0.1; done"], timeout=120)


@pytest.fixture
def flushed(lab, host):
    """A host whose rules were removed, as the start of another firewall does it."""
    node = lab.node(host)
    for table in ("filter", "nat"):
        node.run(["iptables", "-t", table, "-F"])
        node.run(["iptables", "-t", table, "-X"])
    yield node
    node.run(["docker", "rm", "-f", "web"], check=False)
    restart(node)


@HOSTS
def test_a_port_cannot_be_published_without_dockers_chains(flushed):
    done = flushed.run(RUN, check=False)
    assert not done.ok
    assert "No chain/target/match by that name" in done.stderr


@HOSTS
def test_a_restart_of_the_daemon_creates_the_chains_again(flushed):
    restart(flushed)
    flushed.run(RUN)
    assert flushed.run(["curl", "-sS", "--retry", "9", "--retry-all-errors", "127.0.0.1:8080"]).ok

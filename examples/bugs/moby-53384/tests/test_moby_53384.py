"""A flow of UDP to a port that was published under another number."""

import time

import pytest

HOSTS = {"new": "10.168.0.3", "nft": "10.168.0.4"}
CLIENT, SAME, OTHER = "10.168.0.9", 5140, 5141
SEND = """
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 40000))
for _ in range(600):
    s.sendto(b"x", ("%s", %d))
    time.sleep(0.1)
"""
RECEIVE = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 5140))
s.settimeout(30)
print(s.recvfrom(9)[1][0])
"""


def source(lab, host):
    """Return the source address of the next datagram in the container."""
    return lab.container(f"log-{host}").run(["python3", "-c", RECEIVE]).stdout.strip()


def gateway(lab, host):
    (route,) = lab.container(f"log-{host}").run(["ip", "-j", "route", "show", "default"]).json()
    return route["gateway"]


@pytest.fixture
def restarted(lab, host, port):
    """A host whose container was stopped and started again, while a client sends all the time."""
    with lab.node("client").spawn(["python3", "-c", SEND % (HOSTS[host], port)]):
        assert source(lab, host) == CLIENT
        lab.node(host).run(["docker", "stop", "-t0", f"log-{host}"])
        time.sleep(1)  # packets of the flow find no container
        lab.node(host).run(["docker", "start", f"log-{host}"])
        yield lab.node(host)


@pytest.mark.parametrize("port", [OTHER])
@pytest.mark.parametrize("host", HOSTS)
def test_the_flow_comes_from_the_proxy_if_the_ports_differ(lab, host, port, restarted):
    assert source(lab, host) == gateway(lab, host)
    restarted.run(["conntrack", "-D", "-p", "udp", "--orig-port-dst", str(OTHER)])
    assert source(lab, host) == CLIENT


@pytest.mark.parametrize("port", [SAME])
@pytest.mark.parametrize("host", HOSTS)
def test_the_flow_comes_from_the_client_if_they_are_equal(lab, host, port, restarted):
    assert source(lab, host) == CLIENT

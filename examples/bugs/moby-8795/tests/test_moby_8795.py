"""A flow of UDP to a published port, while the container is started again."""

import time

import pytest

HOSTS = {"old": "10.168.0.2", "new": "10.168.0.3", "nft": "10.168.0.4"}
PORT = 5140
SEND = f"""
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 40000))
for _ in range(600):
    s.sendto(b"x", ("ADDRESS", {PORT}))
    time.sleep(0.1)
"""
RECEIVE = f"""
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", {PORT}))
s.settimeout(TIMEOUT)
print(s.recvfrom(9)[1][0])
"""


def received(lab, host, seconds):
    """Return the source address of the next datagram in the container, or None."""
    code = RECEIVE.replace("TIMEOUT", str(seconds))
    done = lab.container(f"log-{host}").run(["python3", "-c", code], check=False)
    return done.stdout.strip() or None


@pytest.fixture
def restarted(lab, host):
    """A host whose container was stopped and started again, while a client sends all the time."""
    send = ["python3", "-c", SEND.replace("ADDRESS", HOSTS[host])]
    with lab.node("client").spawn(send):
        assert received(lab, host, 9) == "10.168.0.9"
        lab.node(host).run(["docker", "stop", "-t0", f"log-{host}"])
        time.sleep(1)  # packets of the flow find no container
        lab.node(host).run(["docker", "start", f"log-{host}"])
        yield lab.node(host)


@pytest.mark.parametrize("host", ["old"])
def test_nothing_arrives_any_more_on_an_engine_before_23_0(lab, host, restarted):
    version = lab.engine(host).version["Version"]
    if int(version.partition(".")[0]) >= 23:
        pytest.skip(f"engine {version} is newer than the report")
    assert received(lab, host, 3) is None
    restarted.run(["conntrack", "-D", "-p", "udp", "--orig-port-dst", str(PORT)])
    assert received(lab, host, 9) == "10.168.0.9"


@pytest.mark.parametrize("host", ["new", "nft"])
def test_the_flow_goes_on_on_engine_29(lab, host, restarted):
    assert received(lab, host, 9) == "10.168.0.9"
